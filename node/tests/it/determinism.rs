//! The same log gives the same bytes: in two processes, cut into different batches, with a restart and a snapshot in
//! between.
//!
//! The processes are this test binary, run again: what a process draws for itself (the order of a `HashMap`, addresses)
//! differs between them, and may not show in a state.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use roost::config::Config;
use roost::peer::memory::Network;
use roost::peer::{LinkId, LinkPushes, Service};
use roost::raft::{Group, GroupConfig, Keep, Timing};
use roost::shard::read::Reader;
use roost::shard::{Machine as _, Txn, UserShard};
use roost::storage::keys::Home;
use roost::storage::memory::MemoryStore;
use roost::storage::rocks::{Options, RocksStore};
use roost::storage::syncer::Syncer;
use roost::storage::{Batch as Writes, Store};
use roost::types::{NodeId, ReplicaId, ShardId};
use roost_proto::peer::{AttachRequest, Detach, Grant, Request, Response, request, response};
use roost_proto::storage::command::Command as Kind;
use roost_proto::storage::{
    Ack, AddDevice, Batch, Command, Expire, Inbound, InboundItem, Limits, OutboxItem, OutboxTrim,
    Outcome, Read, ReceiptAck, RemoveAccount, RemoveDevice, Send, SendItem, SweepIds, Trim,
    outcome,
};
use roost_proto::v1::{self, Cursor, Receipt, Status};
use tokio_util::sync::CancellationToken;

const SEEDS: [u64; 3] = [11, 12, 13];
/// Commands in a log.
const COMMANDS: usize = 600;
/// Commands in a batch, at most.
const BATCH_MAX: usize = 16;
/// What a child process is to do: `seed how`.
const TASK: &str = "ROOST_DETERMINISM_TASK";
/// The only shard.
const SHARD: UserShard = UserShard {
    shard: ShardId(0),
    shards: 1,
};
const USERS: [&str; 5] = ["alice", "bob", "carol", "dave", "+4915100000001"];
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// A Tuesday noon.
const NOON_MS: u64 = 20_000 * DAY_MS + DAY_MS / 2;

/// Goal and method: see the module. One process applies command by command; the other lets three replicas replicate
/// batches, restarts one, and fills the third by a snapshot.
#[test]
fn two_processes_make_the_same_bytes_of_a_log() {
    for seed in SEEDS {
        let plain = in_child(seed, "plain");
        let replicated = in_child(seed, "replicated");
        assert_eq!(
            (plain.len(), replicated.len()),
            (1, 3),
            "seed {seed}: {plain:?} {replicated:?}"
        );
        for digest in replicated {
            assert_eq!(digest, plain[0], "seed {seed}");
        }
    }
}

/// Goal: the log does something, and the digest tells states apart. Method: a log, and the same with another end.
#[test]
fn another_log_makes_other_bytes() {
    let mut log = log(SEEDS[0]);
    let (all, refused) = apply(&log);
    assert!(refused * 2 < COMMANDS, "{refused} commands were refused");
    log.pop();
    log.push((
        NOON_MS,
        Kind::AddDevice(AddDevice {
            user: "erin".to_owned(),
            ..AddDevice::default()
        }),
    ));
    assert_ne!(apply(&log).0, all);
}

/// The children's work; nothing when it is run by itself.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let (seed, how) = task.split_once(' ').expect("a seed and a way");
    let seed = seed.parse().expect("a seed");
    let digests = match how {
        "plain" => vec![apply(&log(seed)).0],
        _ => replicate(seed),
    };
    for digest in digests {
        println!("digest {digest:032x}");
    }
}

/// Runs [`child`] in a process of its own and gives the digests that it says.
fn in_child(seed: u64, how: &str) -> Vec<String> {
    let this = std::env::current_exe().expect("a running test is a file");
    let output = Process::new(this)
        .args(["determinism::child", "--exact", "--nocapture"])
        .env(TASK, format!("{seed} {how}"))
        .output()
        .expect("this file can be run again");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "seed {seed}, {how}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The test runner may have begun the line.
    let digests = said
        .split("digest ")
        .skip(1)
        .filter_map(|rest| rest.get(..32));
    digests.map(str::to_owned).collect()
}

/// Command by command, into memory: the digest, and how many commands were refused.
fn apply(log: &[(u64, Kind)]) -> (u128, usize) {
    let store = MemoryStore::new();
    let home = Home {
        replica: ReplicaId(1),
        generation: 1,
    };
    let mut refused = 0;
    for entry in log {
        let mut txn = Txn::new(&store, home);
        let applied = SHARD.apply(&mut txn, &batch(std::slice::from_ref(entry)));
        let outcomes = applied.expect("the store is whole").outcomes;
        let refusal = |outcome: &&Outcome| match &outcome.outcome {
            Some(outcome::Outcome::Send(send)) => send.answers.iter().all(|a| a.error.is_some()),
            Some(outcome::Outcome::Refused(_)) | None => true,
            Some(_) => false,
        };
        refused += outcomes.iter().filter(refusal).count();
        let written = store.write(Writes(txn.into_ops()));
        written.expect("the store is whole");
    }
    let digest = Reader::new(&store, home).digest();
    (digest.expect("the store is whole"), refused)
}

/// In batches of random size through Raft: the first replica, on RocksDB, restarts after a third; the third one comes
/// to life after two, when the log no longer reaches back to its beginning.
fn replicate(seed: u64) -> Vec<u128> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let runtime = runtime.expect("a runtime of one thread needs nothing");
    runtime.block_on(async {
        roost::raft::seed(seed);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let network = Network::new(seed, Config::default().peer);
        let mut chance = StdRng::seed_from_u64(seed);
        let log = log(seed);
        let (first, rest) = log.split_at(COMMANDS / 3);
        let (second, third) = rest.split_at(COMMANDS / 3);

        let on_rocks = Running::open(&network, 1, rocks(dir.path()).await).await;
        let in_memory = Running::open(&network, 2, Arc::new(MemoryStore::new())).await;
        for running in [&on_rocks, &in_memory] {
            let founded = running.group.initialize(members()).await;
            founded.expect("it is a member");
        }
        propose(&[&on_rocks, &in_memory], first, &mut chance).await;
        on_rocks.stop(&network).await;
        let on_rocks = Running::open(&network, 1, rocks(dir.path()).await).await;
        propose(&[&on_rocks, &in_memory], second, &mut chance).await;
        for running in [&on_rocks, &in_memory] {
            running.purge().await;
        }
        let late = Running::open(&network, 3, Arc::new(MemoryStore::new())).await;
        let all = [&on_rocks, &in_memory, &late];
        propose(&all, third, &mut chance).await;
        let last = leader(&all).await.group.state().borrow().last_applied;
        for running in all {
            running.applies(last).await;
        }
        let generation = late.group.view().home().generation;
        assert!(generation > on_rocks.group.view().home().generation);
        all.map(Running::digest).to_vec()
    })
}

/// A replica and what keeps it going.
struct Running {
    number: u64,
    group: Arc<Group>,
    life: CancellationToken,
}

impl Running {
    async fn open(network: &Network, number: u64, store: Arc<dyn Store>) -> Self {
        let life = CancellationToken::new();
        let timing = Timing::LOCAL;
        let group = Group::open(GroupConfig {
            shard: SHARD.shard,
            replica: ReplicaId(number),
            syncer: Arc::new(Syncer::inline(Arc::clone(&store), |error| {
                panic!("a sync failed: {error}")
            })),
            store,
            machine: Arc::new(SHARD),
            peers: Arc::new(network.links(node(number), life.clone())),
            timing,
            log_cache_bytes_max: 1 << 20,
            pace: Arc::default(),
            effects: Arc::new(|_| ()),
        });
        let group = Arc::new(group.await.expect("the store is whole"));
        network.serve(node(number), Arc::new(RaftOnly(Arc::clone(&group))));
        let (ticking, ends) = (Arc::clone(&group), life.clone());
        tokio::spawn(async move {
            let ticks = async {
                loop {
                    tokio::time::sleep(timing.heartbeat).await;
                    ticking.heartbeat().await;
                }
            };
            ends.run_until_cancelled(ticks).await
        });
        Self {
            number,
            group,
            life,
        }
    }

    async fn stop(self, network: &Network) {
        network.crash(node(self.number));
        self.life.cancel();
        self.group.shutdown().await;
    }

    /// Purges the log as far as it goes.
    async fn purge(&self) {
        let keep = Keep {
            age: Duration::ZERO,
            bytes: 0,
        };
        let upto = self.group.collect(keep).await.expect("the store is whole");
        assert!(upto.is_some(), "there is something to purge");
        let mut state = self.group.state();
        let purged = state.wait_for(|state| state.purged >= upto).await;
        purged.expect("the group lives");
    }

    async fn applies(&self, index: Option<u64>) {
        let mut state = self.group.state();
        let applied = state.wait_for(|state| state.last_applied >= index);
        let applied = tokio::time::timeout(Duration::from_secs(60), applied).await;
        applied
            .expect("the leader replicates")
            .expect("the group lives");
    }

    fn digest(&self) -> u128 {
        let view = self.group.view();
        let digest = Reader::new(view.store().as_ref(), view.home()).digest();
        digest.expect("the store is whole")
    }
}

/// Answers Raft requests and nothing else.
struct RaftOnly(Arc<Group>);

impl Service for RaftOnly {
    fn call(&self, _: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let group = Arc::clone(&self.0);
        async move {
            let response = match request.request {
                Some(request::Request::Raft(raft)) => match group.handle(raft).await {
                    Ok(answer) => Some(response::Response::Raft(answer)),
                    Err(failure) => Some(response::Response::Failure(failure)),
                },
                _ => None,
            };
            Response { response }
        }
        .boxed()
    }

    fn attach(
        &self,
        _: NodeId,
        _: LinkId,
        _: LinkPushes,
        _: AttachRequest,
    ) -> BoxFuture<'static, Response> {
        async { Response::default() }.boxed()
    }

    fn grant(&self, _: LinkId, _: Grant) {}

    fn detach(&self, _: LinkId, _: Detach) {}

    fn link_closed(&self, _: LinkId) {}
}

/// Opens the store, once the process before has let go of it.
async fn rocks(dir: &Path) -> Arc<dyn Store> {
    for _ in 0..1_000 {
        match RocksStore::open(dir, &Options::default()) {
            Ok(store) => return Arc::new(store),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    let opened = RocksStore::open(dir, &Options::default());
    Arc::new(opened.expect("the store can be opened"))
}

/// Proposes commands in batches of random size, each exactly once: nothing fails meanwhile.
async fn propose(among: &[&Running], log: &[(u64, Kind)], chance: &mut StdRng) {
    let mut rest = log;
    while let Some((time_ms, _)) = rest.first() {
        let same = rest.iter().take_while(|(time, _)| time == time_ms).count();
        let (now, later) = rest.split_at(same.min(chance.random_range(1..=BATCH_MAX)));
        rest = later;
        let group = &leader(among).await.group;
        let proposed = group.propose(batch(now).encode_to_vec().into()).await;
        let outcomes = proposed.expect("nothing fails here");
        assert_eq!(outcomes.len(), now.len());
    }
}

async fn leader<'a>(among: &[&'a Running]) -> &'a Running {
    for _ in 0..100_000 {
        for running in among {
            if running.group.state().borrow().serves() && running.group.confirm_read().await.is_ok()
            {
                return running;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a majority is up, and nobody leads")
}

fn node(number: u64) -> NodeId {
    NodeId::from_bytes(u128::from(number).to_be_bytes())
}

fn members() -> BTreeMap<ReplicaId, NodeId> {
    (1..=3)
        .map(|number| (ReplicaId(number), node(number)))
        .collect()
}

/// Commands of one moment.
fn batch(commands: &[(u64, Kind)]) -> Batch {
    Batch {
        time_ms: commands[0].0,
        feature_level: roost::versions::FEATURE_LEVEL,
        limits: Some(Limits {
            queue_entries_max: 60,
            queue_bytes_max: 8_000,
            dedup_window_ms: 2 * DAY_MS,
            sender_ids_max: 1_000,
            chains_max: 3,
            devices_max: 3,
            outbox_rows_max: 10,
            // Some ten receipts: they are dropped, too.
            receipt_bytes_max: 800,
            receipt_age_max_ms: 3 * DAY_MS,
        }),
        commands: commands
            .iter()
            .map(|(_, command)| Command {
                command: Some(command.clone()),
            })
            .collect(),
    }
}

/// Every kind of command, most of them sensible, with the time at which each is proposed.
fn log(seed: u64) -> Vec<(u64, Kind)> {
    let mut author = Author {
        chance: StdRng::seed_from_u64(seed),
        positions: BTreeMap::new(),
        inbound: 0,
        sent: 0,
    };
    let mut time_ms = NOON_MS;
    let added = USERS.map(|user| (time_ms, author.add(user)));
    let mut log = added.to_vec();
    while log.len() < COMMANDS {
        // Many at one moment, so that there is something to cut.
        if author.chance.random_bool(0.1) {
            time_ms += author.chance.random_range(0..3 * HOUR_MS);
        }
        log.push((time_ms, author.command(time_ms)));
    }
    log
}

struct Author {
    chance: StdRng,
    /// The next one by sender, recipient and chain.
    positions: BTreeMap<(String, String, u64), u64>,
    inbound: u64,
    sent: u64,
}

impl Author {
    fn command(&mut self, time_ms: u64) -> Kind {
        let user = self.user();
        let cursor = Some(Cursor {
            incarnation: 1,
            seq: self.chance.random_range(0..40),
        });
        let device = 1 + u32::from(self.chance.random_bool(0.1));
        match self.chance.random_range(0..100) {
            0..45 => self.send(time_ms),
            45..65 => Kind::Ack(Ack {
                user,
                device,
                cursor,
            }),
            65..72 => Kind::Read(Read {
                user,
                device,
                from: self.user(),
                up_to: cursor,
            }),
            72..77 => Kind::ReceiptAck(ReceiptAck {
                user,
                device,
                revision: self.chance.random_range(0..40),
            }),
            77..82 => Kind::Expire(Expire {
                users: USERS.map(str::to_owned).to_vec(),
            }),
            82..86 => Kind::OutboxTrim(OutboxTrim {
                destination: 0,
                number: self.chance.random_range(0..30),
            }),
            86..90 => self.receipts(),
            90..92 => Kind::SweepIds(SweepIds {}),
            92..94 => Kind::Trim(Trim { user }),
            94..98 => self.add(&user),
            98 => Kind::RemoveDevice(RemoveDevice {
                user,
                name: "device-2".to_owned(),
            }),
            _ if self.chance.random_bool(0.8) => self.add(&user),
            _ => Kind::RemoveAccount(RemoveAccount { user }),
        }
    }

    fn user(&mut self) -> String {
        USERS[self.chance.random_range(0..USERS.len())].to_owned()
    }

    fn add(&mut self, user: &str) -> Kind {
        Kind::AddDevice(AddDevice {
            user: user.to_owned(),
            name: format!("device-{}", self.chance.random_range(1..=2)),
            key_hash: Bytes::from(vec![7; 32]),
        })
    }

    fn send(&mut self, time_ms: u64) -> Kind {
        let (from, to) = (self.user(), self.user());
        let items = (0..self.chance.random_range(1..=4)).map(|_| {
            let chain = self.chance.random_range(1..=3);
            let key = (from.clone(), to.clone(), chain);
            let next = self.positions.entry(key).or_insert(0);
            // Now and then the same again, or a gap.
            let position = match self.chance.random_range(0..12) {
                0 => *next,
                1 => *next + 2,
                _ => {
                    *next += 1;
                    *next
                }
            };
            self.sent += 1;
            SendItem {
                id: format!("m{}", self.sent - self.chance.random_range(0..2)),
                chain,
                position,
                kind: v1::Kind::Data.into(),
                body: Bytes::from(vec![1; self.chance.random_range(0..200)]),
                sent_at_ms: time_ms,
                ttl_ms: self.chance.random_range(1..2 * DAY_MS),
                ..SendItem::default()
            }
        });
        let items = items.collect();
        Kind::Send(Send {
            from,
            device: 1,
            to,
            items,
        })
    }

    fn receipts(&mut self) -> Kind {
        let items = (0..self.chance.random_range(1..=3)).map(|_| {
            self.inbound += 1;
            let status = [Status::Delivered, Status::Read][self.chance.random_range(0..2)];
            let receipt = Receipt {
                peer: USERS[self.chance.random_range(0..USERS.len())].to_owned(),
                status: status.into(),
                incarnation: 1,
                up_to_seq: self.chance.random_range(1..100),
                ..Receipt::default()
            };
            InboundItem {
                number: self.inbound,
                item: Some(OutboxItem {
                    to: USERS[self.chance.random_range(0..USERS.len())].to_owned(),
                    receipt: Some(receipt),
                }),
            }
        });
        let items = items.collect();
        Kind::Inbound(Inbound {
            source: 3,
            source_incarnation: 1,
            items,
        })
    }
}
