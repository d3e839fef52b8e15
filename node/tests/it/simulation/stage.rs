//! Who takes part in a run, and how it ends.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use roost::auth::DeviceKey;
use roost::types::UserId;
use roost_chaos_tests::history::{Device, Event, Record};
use roost_proto::storage::{AddDevice, command, outcome};
use tokio::time::Instant;

use super::client::Account;
use super::cluster::{Cluster, NODES};
use super::recorder::Recorder;
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
/// What a run is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Disks say that they have synced, and have not.
    pub(super) disks_lie: bool,
    /// Virtual time after which clients give up; a good run takes a fraction of it.
    pub(super) limit: Duration,
}

/// Everything that clients share.
pub(super) struct Stage {
    seed: u64,
    pub(super) cluster: Cluster,
    pub(super) recorder: Recorder,
    pub(super) cast: Vec<Account>,
    /// Senders that still wait for an answer.
    pub(super) senders_left: Cell<usize>,
    /// Since when no more faults come.
    quiet: Cell<Option<Instant>>,
    pub(super) deadline: Instant,
    complaints: RefCell<Vec<String>>,
}

/// What came of a run.
pub(super) struct Told {
    pub(super) records: Vec<Record>,
    pub(super) accepted: usize,
    pub(super) crashes: usize,
    pub(super) cuts: usize,
    /// Clients that were treated as the protocol does not allow, or had not what they were owed at the deadline.
    pub(super) complaints: Vec<String>,
    pub(super) virtual_time: Duration,
}

impl Stage {
    /// A cluster, and users who have not done anything yet.
    pub(super) async fn set(plan: Plan) -> Self {
        let seed = plan.seed;
        let mut chance = StdRng::seed_from_u64(seed);
        let offsets_ms = [0; NODES].map(|_: u64| chance.random_range(0..2_000));
        let cluster = Cluster::start(seed, offsets_ms).await;
        let mut stage = Self {
            seed,
            cluster,
            recorder: Recorder::new(),
            cast: Vec::new(),
            senders_left: Cell::new(0),
            quiet: Cell::new(None),
            deadline: Instant::now() + plan.limit,
            complaints: RefCell::default(),
        };
        for (user, devices) in CAST {
            for device in 1..=devices {
                let account = stage.add(user, device, chance.random()).await;
                stage.cast.push(account);
            }
        }
        stage.senders_left.set(stage.cast.len());
        stage.cluster.lie_about_syncs(plan.disks_lie);
        stage
    }

    async fn add(&self, user: &str, device: u32, key: [u8; 32]) -> Account {
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
        Account { device, key }
    }

    /// Lets everybody act until all have what they are owed.
    pub(super) async fn play(self) -> Told {
        let began = Instant::now();
        let senders = self.cast.iter().zip(0u64..);
        let senders = senders.map(|(account, number)| sender::run(&self, account, number));
        let listeners = self.cast.iter().zip(0u64..);
        let listeners = listeners.map(|(account, number)| listener::run(&self, account, number));
        let faults = async {
            let mut chance = self.chance(0, 0);
            let done = faults::befall(&self.cluster, &self.recorder, &mut chance).await;
            self.quiet.set(Some(Instant::now()));
            done
        };
        let (done, _, _) = futures::join!(
            faults,
            futures::future::join_all(senders),
            futures::future::join_all(listeners),
        );
        Told {
            accepted: self.recorder.accepted(),
            records: self.recorder.into_records(),
            crashes: done.crashes,
            cuts: done.cuts,
            complaints: self.complaints.into_inner(),
            virtual_time: began.elapsed(),
        }
    }

    /// The chance of one actor, whatever the others do.
    pub(super) fn chance(&self, role: u64, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ (role << 32) ^ (number << 40))
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
}
