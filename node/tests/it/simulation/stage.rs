//! Who takes part in a run, and how it ends.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use roost::auth::DeviceKey;
use roost::types::{ReplicaId, UserId};
use roost_chaos_tests::history::{Device, Event, Record};
use roost_proto::storage::{AddDevice, command, outcome};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::Xxh3;

use super::client::Account;
use super::cluster::{CLOCK_ERROR_MAX_MS, Cluster, NODES};
use super::marks::Marks;
use super::recorder::{self, Recorder};
use super::run::Plan;
use super::{faults, listener, sender};

/// Users and how many devices each has.
const CAST: [(&str, u32); 4] = [
    ("+4915100000001", 2),
    ("+4915100000002", 2),
    ("+4915100000003", 1),
    ("news", 1),
];
/// Messages that each device sends.
pub(super) const MESSAGES: usize = 48;
/// Of all connections while a node is cut off, those that are tried there.
const SIDED: f64 = 0.4;
/// Between two looks at what replicas say of themselves; an election takes longer.
const OBSERVE: Duration = Duration::from_millis(20);
/// Between two looks for a node that has ended itself, or that the end of the run waits for.
const LOOK: Duration = Duration::from_millis(250);
/// How long a cluster that nothing befalls any more may take to be whole, and its replicas to be the same.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);

/// Everything that clients share.
pub(super) struct Stage {
    seed: u64,
    pub(super) cluster: Cluster,
    pub(super) recorder: Recorder,
    pub(super) cast: Vec<Account>,
    /// Senders that still wait for an answer.
    pub(super) senders_left: Cell<usize>,
    /// What a device's attached sessions have heard of its messages.
    pub(super) receipts: RefCell<BTreeMap<Device, Marks>>,
    /// Devices whose sessions were told that receipts are no longer kept: their senders have to ask.
    pub(super) missed: RefCell<BTreeSet<Device>>,
    /// Devices whose senders have every tick.
    pub(super) settled: RefCell<BTreeSet<Device>>,
    /// The node that is cut off from the others.
    pub(super) lonely: Cell<Option<usize>>,
    /// Since when no more faults come.
    quiet: Cell<Option<Instant>>,
    deadline: Instant,
    complaints: RefCell<Vec<String>>,
    seen: RefCell<BTreeMap<&'static str, u64>>,
}

/// What came of a run.
pub(super) struct Played {
    pub(super) records: Vec<Record>,
    pub(super) accepted: usize,
    /// How often what happened.
    pub(super) seen: BTreeMap<&'static str, u64>,
    /// Shards whose replicas hold different states.
    pub(super) diverged: Vec<String>,
    /// Replicas that forgot a term.
    pub(super) forgetful: Vec<String>,
    /// Replica ids that were used twice.
    pub(super) reused: Vec<String>,
    /// Clients that were treated as the protocol does not allow, or had not what they were owed at the deadline.
    pub(super) complaints: Vec<String>,
    pub(super) virtual_time: Duration,
    /// Of the history and of every byte on every disk.
    pub(super) digest: u128,
}

impl Stage {
    /// A cluster, and users who have not done anything yet.
    pub(super) async fn set(plan: Plan) -> Self {
        let seed = plan.seed;
        let mut chance = StdRng::seed_from_u64(seed);
        let offsets_ms = [0; NODES].map(|_: u64| chance.random_range(0..CLOCK_ERROR_MAX_MS));
        let cluster = Cluster::start(seed, offsets_ms).await;
        let mut stage = Self {
            seed,
            cluster,
            recorder: Recorder::new(),
            cast: Vec::new(),
            senders_left: Cell::new(0),
            receipts: RefCell::default(),
            missed: RefCell::default(),
            settled: RefCell::default(),
            lonely: Cell::new(None),
            quiet: Cell::new(None),
            deadline: Instant::now() + Duration::from_secs(plan.limit_s),
            complaints: RefCell::default(),
            seen: RefCell::default(),
        };
        for (user, devices) in CAST {
            for device in 1..=devices {
                let watches = stage.cast.len().is_multiple_of(2);
                let account = stage.add(user, device, chance.random(), watches).await;
                stage.cast.push(account);
            }
        }
        stage.senders_left.set(stage.cast.len());
        stage.cluster.lie_about_syncs(plan.disks_lie);
        stage
    }

    async fn add(&self, user: &str, device: u32, key: [u8; 32], watches: bool) -> Account {
        let hash = DeviceKey::parse(&key).expect("32 bytes").hash();
        let add = AddDevice {
            user: user.to_owned(),
            name: format!("device-{device}"),
            key_hash: hash.as_bytes().to_vec().into(),
        };
        let router = self.cluster.router(0).expect("all nodes run");
        let shard = router.shard_of(&UserId::parse(user).expect("a valid name"));
        let command = command::Command::AddDevice(add);
        let added = router.propose(shard, command, Duration::from_secs(10));
        match added.await.expect("all nodes run").outcome {
            Some(outcome::Outcome::Device(added)) => assert_eq!(added.device, device),
            other => panic!("not added: {other:?}"),
        }
        let device = Device {
            user: user.to_owned(),
            device,
        };
        self.recorder.record(Event::DeviceAdded {
            device: device.clone(),
        });
        Account {
            device,
            key,
            watches,
        }
    }

    /// Lets everybody act until all have what they are owed, and the cluster is whole.
    pub(super) async fn play(self) -> Played {
        let began = Instant::now();
        let acting = async {
            let senders = self.cast.iter().zip(0u64..);
            let senders = senders.map(|(account, number)| sender::run(&self, account, number));
            let listeners = self.cast.iter().zip(0u64..);
            let listeners =
                listeners.map(|(account, number)| listener::run(&self, account, number));
            let faults = async {
                faults::befall(&self, &mut self.chance(0, 0)).await;
                self.quiet.set(Some(Instant::now()));
            };
            futures::join!(
                faults,
                futures::future::join_all(senders),
                futures::future::join_all(listeners),
            );
            self.end().await
        };
        let diverged = tokio::select! {
            biased;
            diverged = acting => diverged,
            never = self.watch() => match never {},
        };
        self.tell(diverged, began.elapsed())
    }

    /// Looks at the replicas, and starts nodes again that have ended themselves: a sound one never does.
    async fn watch(&self) -> std::convert::Infallible {
        let mut looked = Instant::now();
        loop {
            sleep(OBSERVE).await;
            self.cluster.observe();
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            for number in self.cluster.ended() {
                self.complain(format!("node {number} ended by itself"));
                self.cluster.crash(number, usize::MAX);
                self.cluster.power_on(number).await;
            }
        }
    }

    /// Waits until the cluster is whole and its replicas are the same; gives those that are not.
    async fn end(&self) -> Vec<String> {
        let began = Instant::now();
        loop {
            let lacks = self.cluster.lacks();
            let compared = self.cluster.compare();
            let same = compared.behind.is_empty() && compared.different.is_empty();
            if (lacks.is_empty() && same) || began.elapsed() > WHOLE_WITHIN {
                if !lacks.is_empty() || !compared.behind.is_empty() {
                    self.complain(format!(
                        "the cluster does not become whole again: {lacks:?}; behind are {:?}",
                        compared.behind
                    ));
                }
                let different = compared.different.iter();
                return different.map(|shard| format!("shard {shard}")).collect();
            }
            sleep(LOOK).await;
        }
    }

    fn tell(self, diverged: Vec<String>, virtual_time: Duration) -> Played {
        let observer = self.cluster.observer.borrow();
        let mut seen = self.seen.take();
        for (what, times) in [
            ("election", observer.elections()),
            ("lost vote", observer.lost_votes()),
            ("snapshot install", observer.snapshots),
            (
                "log truncation",
                self.cluster.truncations.load(Ordering::Relaxed),
            ),
            ("renewal", self.cluster.renewed()),
            ("flipped snapshot", self.cluster.network.flipped_bits()),
        ] {
            seen.insert(what, times);
        }
        let named = |replicas: &BTreeSet<ReplicaId>| {
            let names = replicas.iter().map(|replica| format!("replica {replica}"));
            names.collect::<Vec<_>>()
        };
        let (forgetful, reused) = (named(&observer.forgetful), named(&observer.reused));
        drop(observer);
        let accepted = self.recorder.accepted();
        let records = self.recorder.into_records();
        Played {
            digest: digest(&records, &self.cluster),
            records,
            accepted,
            seen,
            diverged,
            forgetful,
            reused,
            complaints: self.complaints.into_inner(),
            virtual_time,
        }
    }

    /// The chance of one actor, whatever the others do.
    pub(super) fn chance(&self, role: u64, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ (role << 32) ^ (number << 40))
    }

    /// The node that a client connects to. Some are on the side of the one that is cut off.
    pub(super) fn draw_node(&self, chance: &mut StdRng) -> usize {
        match self.lonely.get() {
            Some(lonely) if chance.random_bool(SIDED) => lonely,
            _ => chance.random_range(0..NODES),
        }
    }

    /// Whether nothing has befallen the cluster for so long.
    pub(super) fn is_quiet_for(&self, time: Duration) -> bool {
        self.quiet
            .get()
            .is_some_and(|since| since.elapsed() >= time)
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Notes that a client was not treated as the protocol says.
    pub(super) fn complain(&self, what: String) {
        self.complaints.borrow_mut().push(what);
    }

    /// Counts what was seen.
    pub(super) fn saw(&self, what: &'static str) {
        *self.seen.borrow_mut().entry(what).or_default() += 1;
    }
}

fn digest(records: &[Record], cluster: &Cluster) -> u128 {
    let mut hash = Xxh3::new();
    for record in records {
        hash.update(recorder::line(record).as_bytes());
    }
    for number in 0..NODES {
        cluster.dump(number, |key, value| {
            hash.update(key);
            hash.update(value);
        });
    }
    hash.digest128()
}
