//! Which generation of a replica's state is in use, and the switch to the next one.
//!
//! A snapshot is received into a generation of its own, without sync, and one synced batch then makes it the current
//! one. Whatever else is on disk is left over from an install that did not finish, and is removed at open; a
//! generation that was replaced is removed as soon as nobody looks at it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use roost_proto::storage::{LocalReplica, ReplicaState};

use super::codec::{Progress, read_sealed};
use crate::storage::keys::{Home, Key, home_range, replica_state_range};
use crate::storage::{Batch, Column, Error, Read, Store, value};
use crate::types::{ReplicaId, ShardId};

/// A replica's applied state, to read. The generation stays on disk as long as the view lives, so keep it for one
/// request only.
#[derive(Clone)]
pub struct View {
    store: Arc<dyn Store>,
    home: Arc<Home>,
}

impl View {
    /// The store that the state is in.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Where in it.
    #[must_use]
    pub fn home(&self) -> Home {
        *self.home
    }
}

/// The generations of one replica.
pub(super) struct States {
    store: Arc<dyn Store>,
    shard: ShardId,
    current: RwLock<Arc<Home>>,
    /// Replaced, and perhaps still looked at.
    replaced: Mutex<Vec<Arc<Home>>>,
    next_generation: AtomicU32,
    /// Whether the group may still write. Held while it does.
    open: Mutex<bool>,
}

impl States {
    /// Finds the generation in use, and removes what an unfinished install left behind.
    pub(super) fn open(
        store: Arc<dyn Store>,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<Self, Error> {
        let row: Option<LocalReplica> = value::get(store.as_ref(), &Key::Replica(replica))?;
        let home = Home {
            replica,
            generation: row.map_or(0, |row| row.generation),
        };
        let (all, current) = (replica_state_range(home.replica), home_range(home));
        let mut batch = Batch::default();
        batch.delete_range(Column::State, all.start..current.start);
        batch.delete_range(Column::State, current.end..all.end);
        store.write(batch)?;
        Ok(Self {
            store,
            shard,
            current: RwLock::new(Arc::new(home)),
            replaced: Mutex::default(),
            next_generation: AtomicU32::new(home.generation + 1),
            open: Mutex::new(true),
        })
    }

    /// Does what writes to the store, unless the group has ended: openraft's worker may still have entries to apply
    /// when its core is gone, and the group may have been opened again.
    pub(super) fn while_open<T>(
        &self,
        write: impl FnOnce(&dyn Store) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let open = self.open.lock();
        match *open {
            true => write(self.store.as_ref()),
            false => Err(Error::Io {
                action: "writing a state",
                message: "the group has ended".to_owned(),
            }),
        }
    }

    /// Writes to the state column, unless the group has ended.
    pub(super) fn write(&self, batch: Batch) -> Result<(), Error> {
        self.while_open(|store| store.write(batch))
    }

    /// Nothing is written from now on.
    pub(super) fn close(&self) {
        *self.open.lock() = false;
    }

    pub(super) fn view(&self) -> View {
        View {
            store: self.store.clone(),
            home: self.current.read().clone(),
        }
    }

    pub(super) fn home(&self) -> Home {
        **self.current.read()
    }

    /// A view that does not change, with where the state is in it and how far that state is.
    pub(super) fn freeze(&self) -> Result<(Arc<dyn Read>, Home, Progress), Error> {
        loop {
            let home = self.home();
            let frozen = self.store.freeze();
            // An install may have switched in between, and the old generation may be gone from the view.
            if home == self.home() {
                let progress = read_progress(frozen.as_ref(), home)?;
                return Ok((frozen, home, progress));
            }
        }
    }

    /// A generation that no one has used.
    pub(super) fn reserve(&self) -> Home {
        Home {
            replica: self.replica(),
            generation: self.next_generation.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Removes a reserved generation that was not switched to.
    pub(super) fn abandon(&self, home: Home) -> Result<(), Error> {
        if home == self.home() {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.delete_range(Column::State, home_range(home));
        self.write(batch)
    }

    /// What has to be written, and synced, before [`States::switch`].
    pub(super) fn switch_batch(&self, home: Home) -> Result<Batch, Error> {
        let key = Key::Replica(home.replica);
        let row: Option<LocalReplica> = value::get(self.store.as_ref(), &key)?;
        let row = LocalReplica {
            generation: home.generation,
            ..row.unwrap_or(LocalReplica {
                replica: home.replica.0,
                shard: self.shard.0,
                state: ReplicaState::Active.into(),
                ..LocalReplica::default()
            })
        };
        let key = key.encode();
        let mut batch = Batch::default();
        let value = value::encode(&key, &row);
        batch.put(Column::Node, key, value);
        Ok(batch)
    }

    /// Everybody who asks from now on gets the new generation.
    pub(super) fn switch(&self, home: Home) {
        let old = std::mem::replace(&mut *self.current.write(), Arc::new(home));
        self.replaced.lock().push(old);
    }

    /// Removes replaced generations that nobody looks at any more.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        let mut replaced = self.replaced.lock();
        if replaced.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        replaced.retain(|home| {
            // Nobody can get another handle to it: it is no longer the current one.
            let looked_at = Arc::strong_count(home) > 1;
            if !looked_at {
                batch.delete_range(Column::State, home_range(**home));
            }
            looked_at
        });
        self.write(batch)
    }

    fn replica(&self) -> ReplicaId {
        self.current.read().replica
    }
}

/// How far a state is; a state that was never written is at the beginning.
pub(super) fn read_progress(store: &(impl Read + ?Sized), home: Home) -> Result<Progress, Error> {
    Ok(read_sealed(store, &Key::RaftState(home))?.unwrap_or_default())
}
