//! What befalls the cluster: power losses, cuts, broken links, a wiped disk, flipped bits, a clock that is wrong; one after
//! the other, now and then together.
//!
//! One node of each seed has the bad disk: whatever is damaged is damaged there, so that a majority of every shard stays
//! sound. One clock at a time is wrong by more than clocks may be.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::cluster::NODES;
use super::stage::Stage;

/// Faults in a run.
const FAULTS: usize = 12;
/// The last ones crash nodes until there were so many.
const CRASHES: u64 = 6;
/// Chunks of snapshots in which a bit flips on the way.
const FLIPPED_CHUNKS: f64 = 0.2;
/// How far a wrong clock is off, milliseconds: minutes, or years.
const WRONG_CLOCKS_MS: [i64; 4] = [600_000, 315_360_000_000, 315_360_000_000, -315_360_000_000];

/// Harms the cluster, and leaves it running and connected.
pub(super) async fn befall(stage: &Stage, chance: &mut StdRng) {
    let mut faults = Faults {
        bad_disk: chance.random_range(0..NODES),
        stage,
        crashes: 0,
    };
    stage.cluster.network.flip_bits_of_snapshots(FLIPPED_CHUNKS);
    for number in 0.. {
        if number >= FAULTS && faults.crashes >= CRASHES {
            break;
        }
        sleep(Duration::from_millis(chance.random_range(200..1_800))).await;
        match chance.random_range(0..20) {
            0..=1 => faults.everybody(chance).await,
            2..=8 => faults.one(chance).await,
            9..=10 => faults.cut(chance).await,
            11..=13 => faults.isolate(chance).await,
            14 => faults.reset(chance),
            15..=16 => faults.wrong_clock(chance).await,
            17 => faults.wipe(chance).await,
            _ => faults.flip(chance),
        }
    }
    stage.cluster.network.heal();
    stage.cluster.network.flip_bits_of_snapshots(0.0);
    faults.note("no more faults".to_owned());
}

struct Faults<'a> {
    stage: &'a Stage,
    bad_disk: usize,
    crashes: u64,
}

impl Faults<'_> {
    async fn one(&mut self, chance: &mut StdRng) {
        let number = chance.random_range(0..NODES);
        self.crash(chance, number);
        sleep(Duration::from_millis(chance.random_range(50..4_000))).await;
        self.back(number).await;
    }

    /// Power loss of every node at once.
    async fn everybody(&mut self, chance: &mut StdRng) {
        for number in 0..NODES {
            self.crash(chance, number);
        }
        for number in 0..NODES {
            sleep(Duration::from_millis(chance.random_range(50..1_000))).await;
            self.back(number).await;
        }
    }

    /// One direction of one link; with luck a node crashes meanwhile.
    async fn cut(&mut self, chance: &mut StdRng) {
        let cluster = &self.stage.cluster;
        let (from, to) = pair(chance);
        self.note(format!("nothing passes from {from} to {to}"));
        self.stage.saw("cut");
        cluster.network.cut(cluster.id(from), cluster.id(to));
        sleep(Duration::from_millis(chance.random_range(100..4_000))).await;
        if chance.random_bool(0.3) {
            self.one(chance).await;
        }
        self.note("cuts end".to_owned());
        cluster.network.heal();
    }

    /// A node alone, without knowing it.
    async fn isolate(&mut self, chance: &mut StdRng) {
        let cluster = &self.stage.cluster;
        let number = chance.random_range(0..NODES);
        self.note(format!("{number} is alone"));
        self.stage.saw("cut");
        for other in (0..NODES).filter(|other| *other != number) {
            cluster.network.part(cluster.id(number), cluster.id(other));
        }
        self.stage.lonely.set(Some(number));
        sleep(Duration::from_millis(chance.random_range(500..6_000))).await;
        self.stage.lonely.set(None);
        self.note("cuts end".to_owned());
        cluster.network.heal();
    }

    fn reset(&self, chance: &mut StdRng) {
        let cluster = &self.stage.cluster;
        let (a, b) = pair(chance);
        self.note(format!("links between {a} and {b} break"));
        cluster.network.reset(cluster.id(a), cluster.id(b));
    }

    /// One clock is wrong; with luck its node leads, or comes to lead.
    async fn wrong_clock(&mut self, chance: &mut StdRng) {
        let cluster = &self.stage.cluster;
        let number = chance.random_range(0..NODES);
        let by_ms = WRONG_CLOCKS_MS[chance.random_range(0..WRONG_CLOCKS_MS.len())];
        self.note(format!("the clock of {number} is off by {by_ms} ms"));
        self.stage.saw("wrong clock");
        cluster.move_clock(number, by_ms);
        sleep(Duration::from_millis(chance.random_range(500..4_000))).await;
        if chance.random_bool(0.3) {
            self.one(chance).await;
        }
        self.note(format!("the clock of {number} is right"));
        cluster.move_clock(number, -by_ms);
    }

    /// The bad disk is replaced by an empty one.
    async fn wipe(&mut self, chance: &mut StdRng) {
        if !self.stage.cluster.is_whole() {
            return;
        }
        let number = self.bad_disk;
        self.crash(chance, number);
        self.note(format!("{number} loses its disk"));
        self.stage.saw("wiped disk");
        self.stage.cluster.wipe(number);
        sleep(Duration::from_millis(chance.random_range(50..1_000))).await;
        self.back(number).await;
    }

    /// A bit of a queued entry on the bad disk.
    fn flip(&self, chance: &mut StdRng) {
        let keys = self.stage.cluster.entry_keys(self.bad_disk);
        if keys.is_empty() {
            return;
        }
        let key = &keys[chance.random_range(0..keys.len())];
        self.note(format!("a bit flips on the disk of {}", self.bad_disk));
        self.stage.saw("flipped row");
        self.stage.cluster.flip_bit(self.bad_disk, key);
    }

    fn crash(&mut self, chance: &mut StdRng, number: usize) {
        let cluster = &self.stage.cluster;
        if !cluster.is_up(number) {
            return;
        }
        let unsynced = cluster.unsynced(number);
        let keep = chance.random_range(0..=unsynced);
        self.note(format!(
            "{number} loses power and keeps {keep} of {unsynced} unsynced batches"
        ));
        cluster.crash(number, keep);
        self.crashes += 1;
        self.stage.saw("crash");
    }

    async fn back(&self, number: usize) {
        self.stage.cluster.power_on(number).await;
        self.note(format!("{number} is back"));
    }

    fn note(&self, what: String) {
        self.stage.recorder.fault(what);
    }
}

fn pair(chance: &mut StdRng) -> (usize, usize) {
    let from = chance.random_range(0..NODES);
    (from, (from + chance.random_range(1..NODES)) % NODES)
}
