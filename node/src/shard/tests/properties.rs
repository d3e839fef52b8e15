//! Random commands against the model, and against themselves under another batching.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use roost_proto::storage::command::Command;
use roost_proto::storage::*;
use roost_proto::v1::{Code, Kind, Receipt, Status};

use super::harness::*;
use super::model::Model;
use crate::shard::{Machine as _, Txn};
use crate::storage::keys::{Home, Key};
use crate::storage::{Batch as Writes, Column, Store as _, value};
use crate::types::{ReplicaId, ShardId};

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const DEVICES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Op {
    Send {
        from: usize,
        device: u32,
        to: usize,
        items: Vec<Draw>,
    },
    Ack {
        user: usize,
        device: usize,
        back: u64,
        incarnation: bool,
    },
    Read {
        user: usize,
        device: usize,
        from: usize,
        back: u64,
    },
    ReceiptAck(usize, usize),
    Add(usize, usize),
    Remove(usize, usize),
    RemoveAccount(usize),
    Expire,
    Pump,
    Pass(u64),
    Sweep,
}

/// A message to be made up from what the model expects.
#[derive(Clone, Debug)]
struct Draw {
    chain: u64,
    shift: i64,
    /// The n-th id that was used before, or a new one.
    again: Option<usize>,
    ttl_steps: u64,
    body: usize,
    age_steps: i64,
}

fn draw() -> impl Strategy<Value = Draw> {
    let shift = prop_oneof![12 => Just(0), 1 => Just(1), 1 => Just(-1)];
    let again = prop_oneof![3 => Just(None), 1 => (0..40_usize).prop_map(Some)];
    let age_steps = prop_oneof![12 => 0..4_i64, 1 => 0..60_000_i64, 1 => -60..0_i64];
    (1..4_u64, shift, again, 1..12_u64, 0..30_usize, age_steps).prop_map(
        |(chain, shift, again, ttl_steps, body, age_steps)| Draw {
            chain,
            shift,
            again,
            ttl_steps,
            body,
            age_steps,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let user = 0..USERS.len();
    prop_oneof![
        12 => (user.clone(), 1..3_u32, user.clone(), prop::collection::vec(draw(), 1..5))
            .prop_map(|(from, device, to, items)| Op::Send { from, device, to, items }),
        8 => (user.clone(), 0..4_usize, 0..4_u64, prop::bool::weighted(0.05)).prop_map(
            |(user, device, back, incarnation)| Op::Ack { user, device, back, incarnation }),
        4 => (user.clone(), 0..4_usize, user.clone(), 0..4_u64)
            .prop_map(|(user, device, from, back)| Op::Read { user, device, from, back }),
        3 => (user.clone(), 0..4_usize).prop_map(|(user, device)| Op::ReceiptAck(user, device)),
        3 => (user.clone(), 0..DEVICES.len()).prop_map(|(user, device)| Op::Add(user, device)),
        2 => (user.clone(), 0..DEVICES.len()).prop_map(|(user, device)| Op::Remove(user, device)),
        1 => user.prop_map(Op::RemoveAccount),
        4 => Just(Op::Expire),
        3 => Just(Op::Pump),
        5 => prop_oneof![9 => 1..8_u64, 1 => Just(6 * 60 * 24 * 2)].prop_map(Op::Pass),
        1 => Just(Op::Sweep),
    ]
}

/// Time moves in these steps, which expiry's rounding and postponing do not blur.
const STEP_MS: u64 = 10_000;

/// A shard, its model, what was proposed, and what the senders were told.
struct Trial {
    shard: Shard,
    model: Model,
    log: Vec<(u64, Command)>,
    ids: Vec<String>,
    /// (sender, peer, incarnation) -> ticks
    told: BTreeMap<(String, String, u64), Ticks>,
}

#[derive(Default)]
struct Ticks {
    delivered: u64,
    read: u64,
    expired: Vec<u64>,
}

impl Trial {
    fn new() -> Self {
        let mut shard = Shard::empty();
        shard.limits = Limits {
            queue_entries_max: 8,
            queue_bytes_max: 200,
            dedup_window_ms: 3 * DAY_MS,
            sender_ids_max: 40,
            chains_max: 2,
            devices_max: 3,
            ..shard.limits
        };
        let mut trial = Self {
            shard,
            model: Model::default(),
            log: Vec::new(),
            ids: Vec::new(),
            told: BTreeMap::new(),
        };
        trial.model.advance_to(NOON_MS, &trial.shard.limits);
        for user in 0..2 {
            trial.run(&Op::Add(user, 0));
        }
        trial
    }

    fn one(&mut self, command: Command) -> outcome::Outcome {
        self.log.push((self.shard.now_ms, command.clone()));
        self.shard.one(command)
    }

    fn done(&mut self, command: Command) -> Result<(), Code> {
        match self.one(command) {
            outcome::Outcome::Done(done) => {
                assert!(!done.more);
                Ok(())
            }
            outcome::Outcome::Refused(error) => Err(error.code()),
            other => panic!("neither done nor refused: {other:?}"),
        }
    }

    fn run(&mut self, op: &Op) {
        let limits = self.shard.limits;
        match op {
            Op::Send {
                from,
                device,
                to,
                items,
            } => self.send(USERS[*from], *device, USERS[*to], items),
            Op::Ack {
                user,
                device,
                back,
                incarnation,
            } => {
                let user = USERS[*user];
                let (device, next_seq, real) = self.cursor(user, *device);
                let incarnation = real + u64::from(*incarnation);
                let seq = next_seq.saturating_sub(*back);
                let expected = self.model.ack(user, device, incarnation, seq);
                let got = match self.one(ack(user, device, incarnation, seq)) {
                    outcome::Outcome::Ack(ack) => {
                        assert!(!ack.more);
                        Ok(ack.cursor.unwrap().seq)
                    }
                    outcome::Outcome::Refused(error) => Err(error.code()),
                    other => panic!("not an ack's outcome: {other:?}"),
                };
                assert_eq!(got, expected, "ack of {seq} by {user}/{device}");
            }
            Op::Read {
                user,
                device,
                from,
                back,
            } => {
                let (user, from) = (USERS[*user], USERS[*from]);
                let (device, next_seq, incarnation) = self.cursor(user, *device);
                let seq = next_seq.saturating_sub(*back);
                let expected = self.model.read(user, device, from, incarnation, seq);
                let read = Read {
                    user: user.into(),
                    device,
                    from: from.into(),
                    up_to: Some(roost_proto::v1::Cursor { incarnation, seq }),
                };
                assert_eq!(self.done(Command::Read(read)), expected);
            }
            Op::ReceiptAck(user, device) => {
                let user = USERS[*user];
                let (device, ..) = self.cursor(user, *device);
                let row = self.shard.read().user(user).unwrap().unwrap_or_default();
                let known = row.devices.iter().any(|known| known.device == device);
                let revision = row.next_revision.saturating_sub(1);
                let done = self.done(receipt_ack(user, device, revision));
                assert_eq!(done.is_ok(), known);
            }
            Op::Add(user, device) => {
                let (user, device) = (USERS[*user], DEVICES[*device]);
                let expected = self.model.add_device(&limits, user, device);
                let got = match self.one(add(user, device)) {
                    outcome::Outcome::Device(added) => Ok((added.device, added.incarnation)),
                    outcome::Outcome::Refused(error) => Err(error.code()),
                    other => panic!("not a device's outcome: {other:?}"),
                };
                assert_eq!(got, expected);
            }
            Op::Remove(user, device) => {
                let (user, device) = (USERS[*user], DEVICES[*device]);
                let expected = self.model.remove_device(user, device);
                assert_eq!(self.done(remove_device(user, device)), expected);
            }
            Op::RemoveAccount(user) => {
                let expected = self.model.remove_account(USERS[*user]);
                assert_eq!(self.done(remove_account(USERS[*user])), expected);
            }
            Op::Expire => {
                let due = self
                    .shard
                    .read()
                    .due_expiries(self.shard.now_ms, 9)
                    .unwrap();
                let due: Vec<_> = due.iter().map(|user| user.as_str()).collect();
                USERS.iter().for_each(|user| self.model.expire(user));
                assert_eq!(self.done(expire(&due)), Ok(()));
            }
            Op::Pump => self.pump(),
            Op::Pass(steps) => {
                self.shard.now_ms += steps * STEP_MS;
                self.model.advance_to(self.shard.now_ms, &limits);
            }
            Op::Sweep => {
                while matches!(
                    self.one(Command::SweepIds(SweepIds {})),
                    outcome::Outcome::Done(Done { more: true })
                ) {}
            }
        }
    }

    fn send(&mut self, from: &str, device: u32, to: &str, draws: &[Draw]) {
        let mut items = Vec::new();
        let mut expected = Vec::new();
        for draw in draws {
            let key = (to.to_owned(), from.to_owned(), device);
            let chains = self.model.pairs.get(&key).map(|pair| &pair.chains);
            let next = chains.and_then(|chains| chains.get(&draw.chain));
            let position = next.map_or(1, |(next, _)| *next);
            let id = match draw.again.filter(|_| !self.ids.is_empty()) {
                Some(n) => self.ids[n % self.ids.len()].clone(),
                None => format!("id{}", self.ids.len()),
            };
            self.ids.push(id.clone());
            let age_ms = draw.age_steps * STEP_MS as i64;
            let item = SendItem {
                id,
                chain: draw.chain,
                position: position.saturating_add_signed(draw.shift).max(1),
                kind: Kind::Data.into(),
                body: Bytes::from(vec![7; draw.body]),
                sent_at_ms: self.shard.now_ms.saturating_add_signed(-age_ms),
                ttl_ms: draw.ttl_steps * STEP_MS,
                refuse: match draw.body {
                    // Found by the session, whose bound is on bodies.
                    0 => Code::TooLarge.into(),
                    _ => Code::Unspecified.into(),
                },
            };
            let limits = self.shard.limits;
            expected.push(self.model.send(&limits, from, device, to, &item));
            items.push(item);
        }
        let send = Send {
            from: from.into(),
            device,
            to: to.into(),
            items,
        };
        let outcome::Outcome::Send(outcome) = self.one(Command::Send(send.clone())) else {
            panic!("not a send's outcome");
        };
        let got: Vec<_> = outcome.answers.iter().map(verdict).collect();
        assert_eq!(got, expected, "{send:?}");
    }

    /// One of the user's devices (or none of them), its last seq, and the incarnation.
    fn cursor(&self, user: &str, device: usize) -> (u32, u64, u64) {
        let Some(user) = self.model.users.get(user) else {
            return (1, 0, 1);
        };
        let device = user.devices.get(device).map_or(99, |device| device.device);
        (device, user.next_seq - 1, user.incarnation)
    }

    /// Carries the outbox over, and plays the client that keeps the ticks.
    fn pump(&mut self) {
        let items = self.shard.outbox();
        let Some(number) = items.last().map(|(number, _)| *number) else {
            return;
        };
        assert!(items.is_sorted_by(|a, b| a.0 < b.0));
        let existing = |to: &str| self.model.users.get(to).is_some_and(|user| !user.removed);
        let dropped = items.iter().filter(|(_, item)| !existing(&item.to)).count();
        for (_, item) in &items {
            let receipt = item.receipt.clone().unwrap();
            tick(&mut self.told, &item.to, &receipt);
        }
        let items = items.into_iter().map(|(number, item)| InboundItem {
            number,
            item: Some(item),
        });
        let inbound = Inbound {
            source: 0,
            source_incarnation: 1,
            items: items.collect(),
        };
        for dropped in [dropped as u64, 0] {
            let outcome::Outcome::Inbound(outcome) = self.one(Command::Inbound(inbound.clone()))
            else {
                panic!("not an inbound's outcome");
            };
            assert_eq!((outcome.number, outcome.dropped), (number, dropped));
        }
        let destination = 0;
        let trim = OutboxTrim {
            destination,
            number,
        };
        assert_eq!(self.done(Command::OutboxTrim(trim)), Ok(()));
        assert_eq!(self.shard.outbox(), []);
        self.check_ticks();
    }

    /// Everything that a sender should know by now, and nothing else.
    fn check_ticks(&self) {
        for ((to, incarnation, seq), message) in &self.model.messages {
            let key = (message.from.clone(), to.clone(), *incarnation);
            let (mut delivered, mut expired) = (false, false);
            if let Some(ticks) = self.told.get(&key) {
                expired = ticks.expired.contains(seq);
                delivered = !expired && *seq <= ticks.delivered.max(ticks.read);
            }
            let place = (to, incarnation, seq);
            assert_eq!(expired, message.expired, "expired: {place:?}");
            assert!(!delivered || message.acked, "told delivered: {place:?}");
            // A watermark waits for what came before it and is still there.
            let user = &self.model.users[to];
            let held = user.queue.range(..seq).any(|before| {
                let before = (to.clone(), *incarnation, *before);
                !self.model.messages[&before].acked
            });
            let waits = *incarnation == user.incarnation && held;
            assert!(delivered || !message.acked || waits, "{place:?}");
        }
    }

    /// What is there is what the model has, and the rows fit each other.
    fn check_state(&self) {
        for (name, expected) in &self.model.users {
            let user = self.shard.user(name);
            assert_eq!(user.removed, expected.removed);
            assert_eq!(user.incarnation, expected.incarnation);
            let queue: Vec<u64> = expected.queue.iter().copied().collect();
            assert_eq!(self.shard.seqs(name), queue, "{name}");
            assert_eq!(user.entries, queue.len() as u64);
            assert_eq!(user.bytes, self.model.held_bytes(name));
            assert_eq!(user.done_seq, expected.done_seq, "{name}");
            assert_eq!(user.trimmed_seq, expected.done_seq, "{name}");
            assert_eq!(user.told_seq, user.delivered_seq);
            assert_eq!(user.next_seq, expected.next_seq);
            assert!(!user.trimming);
            if !user.removed {
                let slice = self.shard.read().entries(name, 1, 99, u64::MAX).unwrap();
                let skipped = slice
                    .skipped
                    .iter()
                    .map(|range| range.last - range.first + 1);
                let seen = skipped.sum::<u64>() + queue.len() as u64;
                assert_eq!((seen, slice.next_seq), (user.next_seq - 1, user.next_seq));
            }
            let cursors = |(device, cursor): (u32, u64)| (device, cursor);
            assert_eq!(
                user.devices
                    .iter()
                    .map(|d| cursors((d.device, d.cursor_seq)))
                    .collect::<Vec<_>>(),
                expected
                    .devices
                    .iter()
                    .map(|d| cursors((d.device, d.cursor)))
                    .collect::<Vec<_>>(),
            );
        }
        self.check_rows();
    }

    fn check_rows(&self) {
        let (mut entries, mut bytes, mut accounts, mut outbox) = (0, 0, 0, 0);
        let rows: BTreeMap<Bytes, Bytes> = self.shard.rows().into_iter().collect();
        let there = |key: Key<'_>| rows.contains_key(&key.encode());
        for (key, row) in &rows {
            let parsed = Key::decode(Column::State, key).unwrap();
            match parsed {
                Key::Entry(_, name, seq) => {
                    let entry: Entry = value::decode("entry", key, row.clone()).unwrap();
                    let user = self.shard.user(name);
                    assert!((user.trimmed_seq + 1..user.next_seq).contains(&seq));
                    assert!(there(Key::Expiry(HOME, user.expiry_due_ms, name)));
                    assert!(
                        user.expiry_due_ms <= entry.expires_ms.max(self.shard.now_ms + STEP_MS)
                    );
                    entries += 1;
                    bytes += crate::shard::entry_bytes(&entry.envelope.unwrap());
                }
                Key::Expiry(_, due_ms, name) => {
                    let user = self.shard.user(name);
                    assert_eq!(user.expiry_due_ms, due_ms);
                    assert!(user.entries > 0);
                }
                Key::User(_, name) => {
                    let user = self.shard.user(name);
                    accounts += u64::from(!user.removed);
                    assert!(user.delivered_seq >= user.trimmed_seq);
                }
                Key::Outbox(_, _, number) => {
                    outbox += 1;
                    let head = self.shard.read().outbox_heads().unwrap()[0].1;
                    assert!((head.trimmed_number + 1..head.next_number).contains(&number));
                }
                Key::OutboxIndex(_, destination, ..) => {
                    let number: Number = value::decode("index", key, row.clone()).unwrap();
                    assert!(there(Key::Outbox(HOME, destination, number.number)));
                }
                Key::ReceiptIndex(_, name, ..) => {
                    let number: Number = value::decode("index", key, row.clone()).unwrap();
                    assert!(there(Key::Receipt(HOME, name, number.number)));
                }
                Key::Receipt(_, name, _) | Key::ReadMark(_, name, _) => {
                    assert!(!self.shard.user(name).removed);
                }
                Key::Trim(..) => panic!("nothing is left over at this size"),
                _ => {}
            }
        }
        let sums = self.shard.read().applied().unwrap();
        assert_eq!((sums.queued_entries, sums.queued_bytes), (entries, bytes));
        assert_eq!(sums.accounts, accounts);
        let heads = self.shard.read().outbox_heads().unwrap();
        assert_eq!(heads.first().map_or(0, |(_, head)| head.rows), outbox);
    }
}

/// A client's bookkeeping: ticks never go back, and *expired* never comes after a watermark that covers it.
fn tick(told: &mut BTreeMap<(String, String, u64), Ticks>, to: &str, receipt: &Receipt) {
    let key = (to.to_owned(), receipt.peer.clone(), receipt.incarnation);
    let ticks = told.entry(key).or_default();
    match receipt.status() {
        Status::Delivered => {
            assert!(receipt.up_to_seq > ticks.delivered);
            ticks.delivered = receipt.up_to_seq;
        }
        Status::Read => {
            assert!(receipt.up_to_seq > ticks.read);
            ticks.read = receipt.up_to_seq;
        }
        Status::Expired => {
            for range in &receipt.expired {
                assert!(range.first > ticks.delivered.max(ticks.read));
                ticks.expired.extend(range.first..=range.last);
            }
        }
        other => panic!("no receipt: {other:?}"),
    }
}

/// Applies a log to an empty state, cut into batches; with a restart between any two.
fn replay(log: &[(u64, Command)], limits: Limits, sizes: &[usize], home: Home) -> u128 {
    let shard = Shard::empty();
    let mut sizes = sizes.iter().cycle();
    let mut rest = log;
    let mut store = shard.store;
    while let Some(&(time_ms, _)) = rest.first() {
        let same = rest.iter().take_while(|(time, _)| *time == time_ms).count();
        let (now, later) = rest.split_at(same.min(*sizes.next().unwrap()));
        rest = later;
        let batch = Batch {
            time_ms,
            limits: Some(limits),
            feature_level: 1,
            commands: now
                .iter()
                .map(|(_, command)| roost_proto::storage::Command {
                    command: Some(command.clone()),
                })
                .collect(),
        };
        let mut txn = Txn::new(&store, home);
        shard.machine.apply(&mut txn, &batch).unwrap();
        store.write(Writes(txn.into_ops())).unwrap();
        store.sync().unwrap();
        store = store.crash(0);
    }
    crate::shard::read::Reader::new(&store, home)
        .digest()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// Outcomes and state are the model's after every command; replicas that cut the same log into other batches, and
    /// keep it under other keys, end with the same rows.
    #[test]
    fn a_shard_does_what_the_model_does(
        ops in prop::collection::vec(op(), 1..120),
        sizes in prop::collection::vec(1..9_usize, 1..5),
    ) {
        let mut trial = Trial::new();
        for op in &ops {
            trial.run(op);
            trial.check_state();
        }
        trial.run(&Op::Pump);
        let limits = trial.shard.limits;
        let digest = trial.shard.read().digest().unwrap();
        let home = Home { replica: ReplicaId(8), generation: 3 };
        prop_assert_eq!(replay(&trial.log, limits, &sizes, home), digest);
        prop_assert_eq!(trial.shard.machine.shard, ShardId(0));
    }
}
