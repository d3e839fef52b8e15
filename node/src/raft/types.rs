//! The types that openraft is instantiated with, and the runtime it runs on.
//!
//! Nothing here leaves `raft`: the layers above speak in [`crate::types`] and in what `group` defines.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use openraft::{AsyncRuntime, RaftTypeConfig, TokioInstant, TokioRuntime};
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use roost_proto::storage::Outcome;

use super::snapshot::Handle;
use crate::types::NodeId;

/// What openraft is instantiated with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Command;
    type R = Outcomes;
    /// A `ReplicaId`.
    type NodeId = u64;
    /// Where the replica lives; its address is nobody's business here and may change.
    type Node = NodeId;
    type Entry = Entry;
    type SnapshotData = Handle;
    type AsyncRuntime = Runtime;
    type Responder = openraft::impls::OneshotResponder<Self>;
}

/// An encoded `storage.Batch`: encoded once, by the proposer; these bytes go to disk and to the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command(pub Bytes);

/// One a command of the batch; none for entries that Raft writes itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcomes(pub Vec<Outcome>);

pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Membership = openraft::Membership<u64, NodeId>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, NodeId>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, NodeId>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(super) type AppendResponse = openraft::raft::AppendEntriesResponse<u64>;
pub(super) type VoteRequest = openraft::raft::VoteRequest<u64>;
pub(super) type VoteResponse = openraft::raft::VoteResponse<u64>;
pub(super) type Raft = openraft::Raft<TypeConfig>;

/// Tokio, with random numbers that a test can seed. Tokio's own clock can be paused, so time is an argument already.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = ThreadRng;
    type OneshotSender<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;
    type OneshotReceiver<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        ThreadRng
    }

    fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

thread_local! {
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Makes this thread's election timeouts and delays repeatable. For tests that run a whole cluster in one thread.
pub fn seed(seed: u64) {
    RNG.with_borrow_mut(|rng| *rng = SmallRng::seed_from_u64(seed));
}

/// A number below `end`, from the thread's generator.
pub(super) fn random_below(end: u64) -> u64 {
    RNG.with_borrow_mut(|rng| rand::Rng::random_range(rng, 0..end.max(1)))
}

/// A number that nobody has drawn before.
pub(super) fn random_id() -> u64 {
    RNG.with_borrow_mut(|rng| rng.next_u64())
}

/// This thread's generator, in the trait of the `rand` that openraft uses.
#[derive(Debug)]
pub(super) struct ThreadRng;

impl rand_core_06::RngCore for ThreadRng {
    fn next_u32(&mut self) -> u32 {
        RNG.with_borrow_mut(|rng| rng.next_u32())
    }

    fn next_u64(&mut self) -> u64 {
        random_id()
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        RNG.with_borrow_mut(|rng| rng.fill_bytes(dest));
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core_06::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}
