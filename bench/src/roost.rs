//! Roost under test: three node processes with the shipped configuration, and what they have used.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use roost_local::{Cluster, Config, free_base_port};

use crate::procfs::{self, Usage};
use crate::users::{self, Users};

/// Names the binary under test.
const BINARY: &str = "ROOST_BIN";
/// Counts the syncs of a node's write-ahead log.
const SYNCS: &str = "roost_storage_sync_latency_seconds_count";
/// For stopping by request, before a node is killed.
const GRACE: Duration = Duration::from_secs(20);
const NODES: u16 = 3;

/// A cluster that exists for one run. Dropping it kills the nodes and removes their data.
pub(crate) struct Roost {
    pub(crate) cluster: Cluster,
    directory: PathBuf,
}

/// What the nodes have used together since they started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) usage: Usage,
    pub(crate) syncs: f64,
    pub(crate) loopback_bytes: u64,
}

impl Roost {
    /// Starts an empty cluster in `directory`, which must not hold anything of value.
    ///
    /// # Errors
    /// When there is no binary to test, or it does not become ready.
    pub(crate) async fn start(directory: &Path, shards: u32) -> Result<Self> {
        let binary = std::env::var_os(BINARY)
            .with_context(|| format!("{BINARY} must name the roost binary to measure"))?;
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        let config = Config::new(binary, directory)
            .nodes(NODES)
            .shards(shards)
            .base_port(free_base_port(NODES)?);
        Ok(Self {
            cluster: Cluster::start(config).await?,
            directory: directory.to_owned(),
        })
    }

    /// Where clients connect.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.cluster.client_urls()
    }

    /// Makes accounts.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(crate) async fn add(&self, users: Users) -> Result<()> {
        users::add(&self.servers(), &self.cluster.admin_token()?, users).await
    }

    /// The node processes that run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let nodes = self.cluster.nodes().iter();
        nodes.filter_map(roost_local::Node::pid).collect()
    }

    /// How many replicas each message has.
    pub(crate) fn replicas(&self) -> f64 {
        f64::from(NODES)
    }

    /// # Errors
    /// When a node does not answer.
    pub(crate) async fn sample(&self) -> Result<Sample> {
        let mut syncs = 0.0;
        for node in self.cluster.nodes() {
            syncs += metric(&node.get("/metrics").await?.body, SYNCS)
                .with_context(|| format!("{} has no {SYNCS}", node.name()))?;
        }
        Ok(Sample {
            usage: procfs::usage(&self.pids())?,
            syncs,
            loopback_bytes: procfs::loopback_bytes()?,
        })
    }

    /// Bytes of all files of all nodes.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn disk_bytes(&self) -> Result<u64> {
        size(&self.directory)
    }

    /// Stops the nodes and removes their data.
    ///
    /// # Errors
    /// When they cannot be stopped.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.cluster.stop(GRACE).await?;
        Ok(())
    }
}

impl Drop for Roost {
    fn drop(&mut self) {
        // What is left is only disk space, and the next run in this directory removes it.
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn metric(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn size(path: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += size(&entry.path())?,
            Ok(metadata) => bytes += metadata.len(),
            // The store removes files as it goes.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_name() {
        let text = format!("# HELP {SYNCS} x\n{SYNCS} 42\nother 7\n");
        assert_eq!(metric(&text, SYNCS), Some(42.0));
        assert_eq!(metric(&text, "absent"), None);
    }
}
