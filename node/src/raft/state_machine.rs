//! A replica's applied state, in openraft's state machine interface, around a [`Machine`] that knows nothing of Raft.
//!
//! One batch carries what the entries change, the last applied log id and the membership. It is not synced: with one
//! write-ahead log per node a crash leaves log and state of one moment, and openraft applies again what came later.

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot,
};
use prost::Message as _;
use roost_proto::storage::Batch as Commands;

use super::codec::{self, Progress};
use super::fault::Fault;
use super::log_store::LogStore;
use super::snapshot::{self, Handle, Received};
use super::states::{States, read_progress};
use super::types::{
    Command, Entry, LogId, Outcomes, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use crate::shard::{Effects, KnownRows, Machine, Txn};
use crate::storage::keys::{Home, Key};
use crate::storage::{Batch, Column, Error, Op, value};
use crate::versions;

/// Takes the effects of every applied batch, on every replica; only the leader acts on them. Must not block.
pub type EffectSink = Arc<dyn Fn(Effects) + Send + Sync>;

/// The one writer of a replica's state.
pub(super) struct StateMachine {
    states: Arc<States>,
    log: LogStore,
    machine: Arc<dyn Machine>,
    effects: EffectSink,
    fault: Fault,
    progress: Progress,
    known: Known,
}

/// Rows of the current state that need not be read again.
struct Known {
    rows: KnownRows,
    /// Of all replicas of the node together.
    fill: ::metrics::Gauge,
}

impl StateMachine {
    /// Reads how far the state is.
    pub(super) fn open(
        states: Arc<States>,
        log: LogStore,
        machine: Arc<dyn Machine>,
        effects: EffectSink,
        fault: Fault,
    ) -> Result<Self, Error> {
        let view = states.view();
        Ok(Self {
            progress: read_progress(view.store().as_ref(), view.home())?,
            states,
            log,
            machine,
            effects,
            fault,
            known: Known {
                rows: KnownRows::default(),
                fill: crate::metrics::KNOWN_ROWS_BYTES.handle(),
            },
        })
    }

    fn apply_all(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<Vec<Outcomes>, Error> {
        let view = self.states.view();
        // Whatever fails below, nothing is known afterwards.
        let known = self.known.replace(KnownRows::default());
        let mut txn = Txn::with_known(view.store().as_ref(), view.home(), known);
        let mut progress = self.progress.clone();
        let mut outcomes = Vec::new();
        let mut effects = Vec::new();
        for entry in entries {
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcomes::default(),
                EntryPayload::Normal(Command(bytes)) => {
                    let applied = self.machine.apply(&mut txn, &decode(bytes)?)?;
                    effects.push(applied.effects);
                    Outcomes(applied.outcomes)
                }
                EntryPayload::Membership(membership) => {
                    progress.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcomes::default()
                }
            });
            assert!(
                progress
                    .applied
                    .is_none_or(|last| last.index < entry.log_id.index),
                "entries are applied in order, each once"
            );
            progress.applied = Some(entry.log_id);
        }
        let (mut ops, known) = txn.finish();
        ops.push(progress_row(view.home(), &progress));
        self.states.write(Batch(ops))?;
        self.known.replace(known);
        self.progress = progress;
        effects
            .into_iter()
            .for_each(|effects| (self.effects)(effects));
        drop(view);
        self.states.sweep()?;
        Ok(outcomes)
    }

    async fn install(&mut self, meta: &SnapshotMeta, handle: Handle) -> Result<(), Error> {
        let received = match handle {
            Handle::Received(received) => received,
            Handle::Frozen(frozen) => {
                let home = self.states.reserve();
                snapshot::copy(frozen, home, &self.states)?
            }
            Handle::Empty => return Err(mismatch("it was never received")),
        };
        let upto = check(meta, &received)?;
        let batch = self.states.switch_batch(received.home)?;
        self.states
            .while_open(|_| self.log.clear_for_snapshot(batch, upto))?;
        self.log.sync().await?;
        self.states.switch(received.home);
        self.known.replace(KnownRows::default());
        self.progress = received.progress;
        self.states.sweep()
    }

    fn fail(&self, subject: ErrorSubject<u64>, verb: ErrorVerb, error: Error) -> StorageError {
        self.fault.report(subject, verb, error)
    }
}

impl Known {
    fn replace(&mut self, rows: KnownRows) -> KnownRows {
        self.fill
            .increment(rows.bytes() as f64 - self.rows.bytes() as f64);
        std::mem::replace(&mut self.rows, rows)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.replace(KnownRows::default());
    }
}

fn decode(bytes: bytes::Bytes) -> Result<Commands, Error> {
    // The entry's checksum was right, so this is no batch that anybody should have proposed.
    let batch = Commands::decode(bytes).map_err(|error| Error::Corrupt {
        what: "command",
        detail: error.to_string(),
    })?;
    let known = batch
        .commands
        .iter()
        .all(|command| command.command.is_some());
    match known && versions::understands(batch.feature_level) {
        true => Ok(batch),
        // To skip it would be to diverge from the replicas that know it.
        false => Err(Error::UnknownFormat {
            what: "a command in the log",
            version: batch.feature_level,
            known: versions::FEATURE_LEVEL,
        }),
    }
}

fn progress_row(home: Home, progress: &Progress) -> Op {
    let key = Key::RaftState(home).encode();
    let value = value::seal(&key, &codec::encode(progress));
    Op::Put(Column::State, key, value)
}

fn check(meta: &SnapshotMeta, received: &Received) -> Result<LogId, Error> {
    let Progress {
        applied,
        membership,
    } = &received.progress;
    match applied {
        Some(upto) if meta.last_log_id == *applied && meta.last_membership == *membership => {
            Ok(*upto)
        }
        _ => Err(mismatch("it is not the one that was announced")),
    }
}

fn mismatch(detail: &str) -> Error {
    Error::Corrupt {
        what: "snapshot",
        detail: detail.to_owned(),
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.progress.applied, self.progress.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.apply_all(entries)
            .map_err(|error| self.fail(ErrorSubject::StateMachine, ErrorVerb::Write, error))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            states: self.states.clone(),
            fault: self.fault.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Handle>, StorageError> {
        Ok(Box::new(Handle::Empty))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Handle>,
    ) -> Result<(), StorageError> {
        self.install(meta, *snapshot)
            .await
            .map_err(|error| self.fail(ErrorSubject::Snapshot(None), ErrorVerb::Write, error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let current = snapshot::current(&self.states)
            .map_err(|error| self.fail(ErrorSubject::Snapshot(None), ErrorVerb::Read, error))?;
        // A state that holds nothing yet is no snapshot.
        Ok(Some(current).filter(|current| current.meta.last_log_id.is_some()))
    }
}

/// "Builds" a snapshot by looking: openraft learns up to where the log may be purged.
pub(super) struct Builder {
    states: Arc<States>,
    fault: Fault,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        snapshot::current(&self.states).map_err(|error| {
            self.fault
                .report(ErrorSubject::Snapshot(None), ErrorVerb::Read, error)
        })
    }
}
