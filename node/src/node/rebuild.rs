//! Opening a node's store, or an empty one in place of one that cannot be trusted any more: the *rebuild*.
//!
//! Where the store cannot tell whose bytes are damaged, the whole node is out (contract C9): it keeps its node id and
//! gives up every replica id that it had. The store is set aside in one rename, an empty one is made, and the node
//! learns its cluster again from its peers. What the meta shard has placed here is then *lost*, and renewed under new
//! ids. Only after that is the old store deleted. Never guessed: without the file `identity` a node is a new one, and
//! with fewer than three replicas of each shard nobody could bring a lost one up to date, so nothing is set aside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use roost_proto::storage::{KeptIdentity, LocalReplica, NodeIdentity, ReplicaState};

use super::{identity, keeper};
use crate::config::Config;
use crate::router::placement::Placement;
use crate::storage::keys::Key;
use crate::storage::rocks::{RocksStore, damage};
use crate::storage::{Store, value};
use crate::types::{NodeId, ReplicaId, ShardId};

/// With fewer, a shard that has lost a replica has no majority to change its members.
const COPIES_MIN: u32 = 3;

/// How many stores may stand set aside: the first, and those that were damaged before its rebuild had ended. Each may hold
/// what no other node has any more, so none of them is deleted to make room for the next.
const ASIDE_MAX: usize = 4;

/// What a node starts with.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// Who this node was, if it has belonged to a cluster.
    pub(crate) kept: Option<KeptIdentity>,
}

/// Opens the store of a data directory; sets it aside and opens an empty one if it is damaged and can be rebuilt.
///
/// # Errors
/// A store that cannot be opened for another reason, or that must not be rebuilt: the words say what to do.
pub(crate) fn open(config: &Config) -> anyhow::Result<Opened> {
    let kept = identity::read(&config.data_dir)?;
    let path = keeper::store_path(config);
    if let Some(kept) = &kept
        && !path.exists()
    {
        may_rebuild(kept, "it is gone", &path)?;
    }
    let opened = RocksStore::open(&path, &keeper::store_options(config));
    let damaged = opened.as_ref().err().and_then(|error| error.damage());
    let store = match (&kept, damaged) {
        (Some(kept), Some(reason)) => {
            may_rebuild(kept, &reason, &path)?;
            let Some(aside) = asides(&config.data_dir).find(|aside| !aside.exists()) else {
                bail!(
                    "{reason}. {ASIDE_MAX} stores were set aside in {} before, and no rebuild has ended since. Check this \
                     disk first. If roost status shows every shard served without this node, remove them and start again; \
                     else keep them",
                    config.data_dir.display()
                );
            };
            tracing::error!(reason, aside = %aside.display(), "the store is damaged; it is set aside and rebuilt");
            damage::set_aside(&path, &aside)?;
            RocksStore::open(&path, &keeper::store_options(config))
        }
        _ => opened,
    };
    let store: Arc<dyn Store> =
        Arc::new(store.with_context(|| format!("cannot open the store in {}", path.display()))?);
    // Also after a crash between the setting aside and the first row.
    if let Some(kept) = &kept
        && value::get::<NodeIdentity>(&*store, &Key::Identity)?.is_none()
    {
        may_rebuild(kept, "it is empty", &path)?;
        tracing::error!(
            node = kept.node,
            cluster = kept.cluster_id,
            "the store is lost; the node is rebuilt"
        );
    }
    Ok(Opened { store, kept })
}

fn may_rebuild(kept: &KeptIdentity, reason: &str, path: &Path) -> anyhow::Result<()> {
    if kept.copies < COPIES_MIN {
        bail!(
            "the store in {} cannot be used: {reason}. This cluster keeps {} of each shard, so no majority is left to bring \
             this node up to date, and nothing is changed. Mend the disk, or bring the files back as they were; to give up \
             what only this node has, move its data directory away, which makes it a new node",
            path.display(),
            match kept.copies {
                1 => "one replica".to_owned(),
                copies => format!("{copies} replicas"),
            }
        );
    }
    Ok(())
}

/// Where stores are set aside, one after the other.
fn asides(data_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let name = |n| match n {
        1 => "store.damaged".to_owned(),
        n => format!("store.damaged-{n}"),
    };
    (1..=ASIDE_MAX).map(move |n| data_dir.join(name(n)))
}

/// What the cluster has put on this node and its disk does not know: it was in a store that is gone. A renewal names
/// the store that may open the new replica; one for a former store may have been carried out there.
pub(crate) fn lost(
    me: NodeId,
    store_id: u64,
    placement: &Placement,
    locals: &[LocalReplica],
) -> Vec<LocalReplica> {
    // The founding plan does not know which replicas were renewed since: only the meta shard's word counts.
    if placement.epoch == 0 {
        return Vec::new();
    }
    let placed = placed_here(me, placement).map(|(shard, id)| (shard.0, id.0));
    let ordered = placement.renewals().iter();
    let ordered = ordered
        .filter(|renewal| renewal.node == me.to_string() && renewal.store != store_id)
        .map(|renewal| (renewal.shard, renewal.new_replica));
    placed
        .chain(ordered)
        .filter(|(_, id)| !locals.iter().any(|local| local.replica == *id))
        .map(|(shard, id)| super::local::lost(shard, id))
        .collect()
}

/// How far the rebuild is, while there is one.
pub(crate) fn progress(
    me: NodeId,
    placement: &Placement,
    locals: &[LocalReplica],
) -> Option<String> {
    if placement.epoch == 0 && locals.is_empty() {
        return Some(
            "rebuilding: waits for the meta shard to say which replicas were here".to_owned(),
        );
    }
    let is_lost = |id: ReplicaId| {
        let mut lost = locals
            .iter()
            .filter(|local| local.state() == ReplicaState::Lost);
        lost.any(|local| local.replica == id.0)
    };
    let placed: Vec<_> = placed_here(me, placement).collect();
    let waiting = placed.iter().filter(|(_, id)| is_lost(*id)).count();
    (waiting > 0).then(|| {
        let (renewed, all) = (placed.len() - waiting, placed.len());
        format!("rebuilding: {renewed} of {all} replicas renewed")
    })
}

/// Whether a store was set aside.
pub(crate) fn is_aside(data_dir: &Path) -> bool {
    asides(data_dir).any(|aside| aside.exists())
}

/// Deletes what was set aside, once nothing of it is needed. True if there was anything. Blocks.
///
/// # Errors
/// What the system says; tried again, it goes on.
pub(crate) fn delete_aside(data_dir: &Path) -> io::Result<bool> {
    let mut deleted = false;
    for aside in asides(data_dir) {
        match fs::remove_dir_all(aside) {
            Ok(()) => deleted = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

fn placed_here(me: NodeId, placement: &Placement) -> impl Iterator<Item = (ShardId, ReplicaId)> {
    placement.all_shards().flat_map(move |shard| {
        let here = placement.replicas(shard).iter();
        here.filter(move |(_, node)| *node == me)
            .map(move |(id, _)| (shard, *id))
    })
}

#[cfg(test)]
mod tests;
