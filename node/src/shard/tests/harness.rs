//! A shard over a store in memory, and short ways to say commands.

use bytes::Bytes;
use roost_proto::storage::*;
use roost_proto::v1::{Code, Cursor, Error, Kind, SendAnswer, Status};

use crate::shard::read::Reader;
use crate::shard::{Applied, Effects, Machine, Txn, UserShard};
use crate::storage::keys::{Home, home_range};
use crate::storage::memory::MemoryStore;
use crate::storage::{Batch as Writes, Column, Read as _, Store as _};
use crate::types::{ReplicaId, ShardId};

pub(crate) const HOME: Home = Home {
    replica: ReplicaId(7),
    generation: 1,
};
/// A Tuesday noon.
pub(crate) const NOON_MS: u64 = 20_000 * 86_400_000 + 43_200_000;
pub(crate) const DAY_MS: u64 = 86_400_000;
pub(crate) const TTL_MS: u64 = 30 * DAY_MS;

pub(crate) struct Shard {
    pub(crate) store: MemoryStore,
    pub(crate) machine: UserShard,
    pub(crate) limits: Limits,
    pub(crate) now_ms: u64,
    pub(crate) effects: Effects,
}

impl Shard {
    /// The only shard, with Alice (one device) and Bob (one device).
    pub(crate) fn new() -> Self {
        let mut shard = Self::empty();
        shard.add("alice", "phone");
        shard.add("bob", "phone");
        shard
    }

    pub(crate) fn empty() -> Self {
        Self {
            store: MemoryStore::new(),
            machine: UserShard {
                shard: ShardId(0),
                shards: 1,
            },
            limits: limits(),
            now_ms: NOON_MS,
            effects: Effects::default(),
        }
    }

    pub(crate) fn apply(&mut self, commands: Vec<command::Command>) -> Vec<Outcome> {
        let batch = Batch {
            time_ms: self.now_ms,
            limits: Some(self.limits),
            feature_level: 1,
            commands: commands
                .into_iter()
                .map(|command| Command {
                    command: Some(command),
                })
                .collect(),
        };
        let mut txn = Txn::new(&self.store, HOME);
        let Applied { outcomes, effects } = self.machine.apply(&mut txn, &batch).unwrap();
        self.store.write(Writes(txn.into_ops())).unwrap();
        self.effects = effects;
        assert_eq!(outcomes.len(), batch.commands.len());
        outcomes
    }

    pub(crate) fn one(&mut self, command: command::Command) -> outcome::Outcome {
        self.apply(vec![command]).remove(0).outcome.unwrap()
    }

    pub(crate) fn add(&mut self, user: &str, name: &str) -> outcome::Outcome {
        self.one(add(user, name))
    }

    pub(crate) fn send(&mut self, send: Send) -> Vec<SendAnswer> {
        match self.one(command::Command::Send(send)) {
            outcome::Outcome::Send(outcome) => outcome.answers,
            other => panic!("not a send's outcome: {other:?}"),
        }
    }

    /// Sends one message and gives its status, or the refusal's code.
    pub(crate) fn say(&mut self, from: &str, to: &str, item: SendItem) -> Result<Status, Code> {
        let send = Send {
            from: from.into(),
            device: 1,
            to: to.into(),
            items: vec![item],
        };
        verdict(&self.send(send)[0])
    }

    pub(crate) fn ack(&mut self, user: &str, device: u32, seq: u64) -> Result<(u64, bool), Code> {
        match self.one(ack(user, device, 1, seq)) {
            outcome::Outcome::Ack(ack) => Ok((ack.cursor.unwrap().seq, ack.more)),
            outcome::Outcome::Refused(error) => Err(error.code()),
            other => panic!("not an ack's outcome: {other:?}"),
        }
    }

    /// Commands that end in `Done` or a refusal.
    pub(crate) fn done(&mut self, command: command::Command) -> Result<bool, Code> {
        match self.one(command) {
            outcome::Outcome::Done(done) => Ok(done.more),
            outcome::Outcome::Refused(error) => Err(error.code()),
            other => panic!("neither done nor refused: {other:?}"),
        }
    }

    /// Carries all outbox rows to this same shard, as the leader's pump does.
    pub(crate) fn pump(&mut self) {
        let items = self.outbox();
        let Some(last) = items.last().map(|(number, _)| *number) else {
            return;
        };
        let items = items.into_iter().map(|(number, item)| InboundItem {
            number,
            item: Some(item),
        });
        let inbound = Inbound {
            source: 0,
            source_incarnation: 1,
            items: items.collect(),
        };
        self.one(command::Command::Inbound(inbound));
        let trim = OutboxTrim {
            destination: 0,
            number: last,
        };
        assert_eq!(self.done(command::Command::OutboxTrim(trim)), Ok(false));
    }

    pub(crate) fn outbox(&self) -> Vec<(u64, OutboxItem)> {
        self.read().outbox(ShardId(0), 1, usize::MAX).unwrap()
    }

    pub(crate) fn read(&self) -> Reader<'_> {
        Reader::new(&self.store, HOME)
    }

    pub(crate) fn user(&self, name: &str) -> User {
        self.read().user(name).unwrap().unwrap()
    }

    pub(crate) fn seqs(&self, name: &str) -> Vec<u64> {
        let slice = self.read().entries(name, 1, usize::MAX, u64::MAX).unwrap();
        slice.entries.into_iter().map(|(seq, _)| seq).collect()
    }

    /// Every row of the state.
    pub(crate) fn rows(&self) -> Vec<(Bytes, Bytes)> {
        let rows = self.store.scan(Column::State, home_range(HOME));
        rows.collect::<Result<_, _>>().unwrap()
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        queue_entries_max: 100_000,
        queue_bytes_max: 64 << 20,
        dedup_window_ms: 7 * DAY_MS,
        sender_ids_max: 100_000,
        chains_max: 16,
        devices_max: 10,
        outbox_rows_max: 100_000,
        receipt_bytes_max: 1 << 20,
        receipt_age_max_ms: 30 * DAY_MS,
    }
}

/// The n-th message of chain 1, with id `m<n>`.
pub(crate) fn item(position: u64) -> SendItem {
    SendItem {
        id: format!("m{position}"),
        chain: 1,
        position,
        kind: Kind::Text.into(),
        body: Bytes::from_static(b"hello"),
        sent_at_ms: NOON_MS,
        ttl_ms: TTL_MS,
        refuse: Code::Unspecified.into(),
    }
}

pub(crate) fn add(user: &str, name: &str) -> command::Command {
    command::Command::AddDevice(AddDevice {
        user: user.into(),
        name: name.into(),
        key_hash: Bytes::copy_from_slice(name.as_bytes()),
    })
}

pub(crate) fn remove_device(user: &str, name: &str) -> command::Command {
    command::Command::RemoveDevice(RemoveDevice {
        user: user.into(),
        name: name.into(),
    })
}

pub(crate) fn remove_account(user: &str) -> command::Command {
    command::Command::RemoveAccount(RemoveAccount { user: user.into() })
}

pub(crate) fn ack(user: &str, device: u32, incarnation: u64, seq: u64) -> command::Command {
    command::Command::Ack(Ack {
        user: user.into(),
        device,
        cursor: Some(Cursor { incarnation, seq }),
    })
}

pub(crate) fn read(user: &str, device: u32, from: &str, seq: u64) -> command::Command {
    command::Command::Read(Read {
        user: user.into(),
        device,
        from: from.into(),
        up_to: Some(Cursor {
            incarnation: 1,
            seq,
        }),
    })
}

pub(crate) fn receipt_ack(user: &str, device: u32, revision: u64) -> command::Command {
    command::Command::ReceiptAck(ReceiptAck {
        user: user.into(),
        device,
        revision,
    })
}

pub(crate) fn expire(users: &[&str]) -> command::Command {
    command::Command::Expire(Expire {
        users: users.iter().map(|&user| user.into()).collect(),
    })
}

pub(crate) fn verdict(answer: &SendAnswer) -> Result<Status, Code> {
    match &answer.error {
        Some(error) => Err(Error::code(error)),
        None => Ok(answer.status()),
    }
}
