//! Who a node is, in the file `identity` beside its store.
//!
//! It is durable before the node speaks for any replica, so a node whose store is gone knows that it was somebody: it
//! rebuilds under the same node id, and never passes for a new node nor for its former replicas. A data directory
//! without the file is of a node that has not said anything to anybody yet.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use roost_proto::storage::{KeptIdentity, Plan};

use crate::storage::value;
use crate::types::NodeId;

const NAME: &str = "identity";
const UNFINISHED_NAME: &str = "identity.new";

/// What is kept of a plan that names this node.
pub(crate) fn of(me: NodeId, plan: &Plan) -> KeptIdentity {
    let nodes = u32::try_from(plan.nodes.len()).unwrap_or(u32::MAX);
    KeptIdentity {
        node: me.to_string(),
        cluster_id: plan.cluster_id.clone(),
        copies: plan.replication_factor.min(nodes),
    }
}

/// Reads the file, if there is one.
///
/// # Errors
/// A file that cannot be read, is damaged, or was written by a newer version.
pub(crate) fn read(data_dir: &Path) -> anyhow::Result<Option<KeptIdentity>> {
    let path = data_dir.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    match value::decode::<KeptIdentity>("identity", NAME.as_bytes(), bytes) {
        Ok(kept) => Ok(Some(kept)),
        // Not passed on as it is: it says nothing about the store.
        Err(error) => bail!(
            "{} says who this node is and cannot be used ({error}); if the store beside it is sound, remove the file, and \
             it is written anew",
            path.display()
        ),
    }
}

/// Writes the file, durably, whole or not at all.
///
/// # Errors
/// What the system says.
pub(crate) fn write(data_dir: &Path, kept: &KeptIdentity) -> anyhow::Result<()> {
    let (path, unfinished) = (data_dir.join(NAME), data_dir.join(UNFINISHED_NAME));
    let write = || -> io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(&value::encode(NAME.as_bytes(), kept))?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(data_dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_written_is_read_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let kept = KeptIdentity {
            node: NodeId::from_random([7; 16]).to_string(),
            cluster_id: "c".to_owned(),
            copies: 3,
        };
        // A crash may have left the beginning of another.
        fs::write(dir.path().join(UNFINISHED_NAME), "torn").unwrap();
        write(dir.path(), &kept).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(kept));
        let path = dir.path().join(NAME);
        let mut bytes = fs::read(&path).unwrap();
        bytes[5] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("remove"));
    }
}
