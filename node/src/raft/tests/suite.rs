//! openraft's own storage suite, on both stores.

use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::super::fault::Fault;
use super::super::log_store::LogStore;
use super::super::state_machine::StateMachine;
use super::super::states::States;
use super::super::types::{StorageError, TypeConfig};
use super::cluster::Counter;
use crate::storage::Store;
use crate::storage::memory::MemoryStore;
use crate::storage::rocks::{Options, RocksStore};
use crate::storage::syncer::Syncer;
use crate::types::{ReplicaId, ShardId};

const REPLICA: ReplicaId = ReplicaId(1);

async fn open(store: Arc<dyn Store>, syncer: Arc<Syncer>) -> (LogStore, StateMachine) {
    let fault = Fault::default();
    let states = Arc::new(States::open(store.clone(), ShardId(0), REPLICA).unwrap());
    let log = LogStore::open(REPLICA, store, syncer, fault.clone(), 1 << 20)
        .await
        .unwrap();
    let effects = Arc::new(|_| ());
    let machine =
        StateMachine::open(states, log.clone(), Arc::new(Counter), effects, fault).unwrap();
    (log, machine)
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, StateMachine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let syncer = Arc::new(Syncer::inline(store.clone(), |error| panic!("{error}")));
        let (log, machine) = open(store, syncer).await;
        Ok(((), log, machine))
    }
}

#[test]
fn the_suite_passes_in_memory() {
    Suite::test_all(InMemory).unwrap();
}

struct OnDisk;

/// Each log has a directory of its own, which goes when the guard does.
impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(dir.path(), &Options::default()).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let syncer = Syncer::start(store.clone(), |error| panic!("{error}")).unwrap();
        let (log, machine) = open(store, Arc::new(syncer)).await;
        Ok((dir, log, machine))
    }
}

#[test]
fn the_suite_passes_on_disk() {
    Suite::test_all(OnDisk).unwrap();
}
