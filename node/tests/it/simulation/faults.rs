//! What befalls the cluster: power losses, cuts, broken links; one after the other, now and then together.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::cluster::{Cluster, NODES};
use super::recorder::Recorder;

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Done {
    pub(super) crashes: usize,
    pub(super) cuts: usize,
}

/// Faults in a run.
const FAULTS: usize = 14;
/// The last ones crash nodes until there were so many.
const CRASHES: usize = 7;

/// Harms the cluster, and leaves it whole.
pub(super) async fn befall(cluster: &Cluster, recorder: &Recorder, chance: &mut StdRng) -> Done {
    let mut done = Done::default();
    for number in 0.. {
        if number >= FAULTS && done.crashes >= CRASHES {
            break;
        }
        sleep(Duration::from_millis(chance.random_range(300..2_500))).await;
        match chance.random_range(0..10) {
            0 => everybody(cluster, recorder, chance, &mut done).await,
            1..=4 => one(cluster, recorder, chance, &mut done).await,
            5..=6 => cut(cluster, recorder, chance, &mut done).await,
            7..=8 => isolate(cluster, recorder, chance, &mut done).await,
            _ => {
                let (a, b) = pair(chance);
                recorder.fault(format!("links between {a} and {b} break"));
                cluster.network.reset(cluster.id(a), cluster.id(b));
            }
        }
    }
    cluster.network.heal();
    recorder.fault("no more faults".to_owned());
    done
}

async fn one(cluster: &Cluster, recorder: &Recorder, chance: &mut StdRng, done: &mut Done) {
    let number = chance.random_range(0..NODES);
    crash(cluster, recorder, chance, number, done);
    sleep(Duration::from_millis(chance.random_range(50..5_000))).await;
    back(cluster, recorder, number).await;
}

/// Power loss of every node at once.
async fn everybody(cluster: &Cluster, recorder: &Recorder, chance: &mut StdRng, done: &mut Done) {
    for number in 0..NODES {
        crash(cluster, recorder, chance, number, done);
    }
    for number in 0..NODES {
        sleep(Duration::from_millis(chance.random_range(50..1_500))).await;
        back(cluster, recorder, number).await;
    }
}

/// One direction of one link; with luck a node crashes meanwhile.
async fn cut(cluster: &Cluster, recorder: &Recorder, chance: &mut StdRng, done: &mut Done) {
    let (from, to) = pair(chance);
    recorder.fault(format!("nothing passes from {from} to {to}"));
    cluster.network.cut(cluster.id(from), cluster.id(to));
    done.cuts += 1;
    sleep(Duration::from_millis(chance.random_range(100..4_000))).await;
    if chance.random_bool(0.3) {
        one(cluster, recorder, chance, done).await;
    }
    recorder.fault("cuts end".to_owned());
    cluster.network.heal();
}

/// A node alone, without knowing it.
async fn isolate(cluster: &Cluster, recorder: &Recorder, chance: &mut StdRng, done: &mut Done) {
    let number = chance.random_range(0..NODES);
    recorder.fault(format!("{number} is alone"));
    for other in (0..NODES).filter(|other| *other != number) {
        cluster.network.part(cluster.id(number), cluster.id(other));
    }
    done.cuts += 1;
    sleep(Duration::from_millis(chance.random_range(100..6_000))).await;
    recorder.fault("cuts end".to_owned());
    cluster.network.heal();
}

fn crash(
    cluster: &Cluster,
    recorder: &Recorder,
    chance: &mut StdRng,
    number: usize,
    done: &mut Done,
) {
    if !cluster.is_up(number) {
        return;
    }
    let unsynced = cluster.unsynced(number);
    let keep = chance.random_range(0..=unsynced);
    recorder.fault(format!(
        "{number} loses power and keeps {keep} of {unsynced} unsynced batches"
    ));
    cluster.crash(number, keep);
    done.crashes += 1;
}

async fn back(cluster: &Cluster, recorder: &Recorder, number: usize) {
    cluster.power_on(number).await;
    recorder.fault(format!("{number} is back"));
}

fn pair(chance: &mut StdRng) -> (usize, usize) {
    let from = chance.random_range(0..NODES);
    (from, (from + chance.random_range(1..NODES)) % NODES)
}
