//! What a cluster looks like, and the TOML text that tells each node its part.
//!
//! The keys are the ones `roost node --config FILE` accepts. What a caller adds as TOML is merged table by table over
//! what stands here, the cluster's first, then the node's, so that a test lowers one bound without writing the rest.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use crate::Error;
use crate::ports::{Addresses, KIND_STEP};

/// A cluster to be: which binary, where its data goes, how many nodes, and what differs from the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) binary: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) nodes: u16,
    pub(crate) ready_timeout: Duration,
    base_port: u16,
    shards: u32,
    replication_factor: Option<u32>,
    token: String,
    toml: String,
    overrides: BTreeMap<u16, Overrides>,
}

/// What one node has for itself.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Where it listens and is reached, if not 127.0.0.1; beyond loopback its config says `insecure = true`.
    pub host: Option<IpAddr>,
    /// TOML merged over the cluster's.
    pub toml: String,
    /// Variables added to the environment of its process.
    pub env: BTreeMap<OsString, OsString>,
    /// Put before the command, for example `ip netns exec host-2` or `strace -f -o FILE`.
    pub prefix: Vec<OsString>,
}

impl Config {
    /// Three nodes, 32 shards, base port 7400, run by `binary`, everything they write below `data_dir`.
    pub fn new(binary: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            data_dir: data_dir.into(),
            nodes: 3,
            ready_timeout: Duration::from_secs(30),
            base_port: 7400,
            shards: 32,
            replication_factor: None,
            token: "dev".to_owned(),
            toml: String::new(),
            overrides: BTreeMap::new(),
        }
    }

    /// How many nodes.
    #[must_use]
    pub fn nodes(self, nodes: u16) -> Self {
        Self { nodes, ..self }
    }

    /// How many shards; fixed when the cluster is created.
    #[must_use]
    pub fn shards(self, shards: u32) -> Self {
        Self { shards, ..self }
    }

    /// How many replicas of each shard; three, or as many as there are nodes, when not said.
    #[must_use]
    pub fn replication_factor(self, replicas: u32) -> Self {
        Self {
            replication_factor: Some(replicas),
            ..self
        }
    }

    /// Node `k` serves clients on `base_port + k`, peers 100 above, HTTP 200 above.
    #[must_use]
    pub fn base_port(self, base_port: u16) -> Self {
        Self { base_port, ..self }
    }

    /// The token that founding nodes must share.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        Self {
            token: token.into(),
            ..self
        }
    }

    /// How long a node may take until it says ready.
    #[must_use]
    pub fn ready_timeout(self, ready_timeout: Duration) -> Self {
        Self {
            ready_timeout,
            ..self
        }
    }

    /// TOML for every node, merged over what stands in its config.
    #[must_use]
    pub fn toml(self, toml: impl Into<String>) -> Self {
        Self {
            toml: toml.into(),
            ..self
        }
    }

    /// What node `k` (from 1) has for itself.
    #[must_use]
    pub fn node(mut self, k: u16, overrides: Overrides) -> Self {
        self.overrides.insert(k, overrides);
        self
    }

    pub(crate) fn overrides(&self, k: u16) -> Overrides {
        self.overrides.get(&k).cloned().unwrap_or_default()
    }

    /// Refuses what no cluster can be, and makes paths absolute, because a prefix may change directory.
    pub(crate) fn checked(mut self) -> Result<Self, Error> {
        if !(1..=KIND_STEP).contains(&self.nodes) {
            return Err(Error::Invalid(format!(
                "{} nodes: choose 1 to {KIND_STEP}",
                self.nodes
            )));
        }
        if self
            .base_port
            .checked_add(2 * KIND_STEP + self.nodes)
            .is_none()
        {
            return Err(Error::Invalid(format!(
                "base port {} leaves no room above it",
                self.base_port
            )));
        }
        if let Some(k) = self
            .overrides
            .keys()
            .find(|k| !(1..=self.nodes).contains(k))
        {
            return Err(Error::Invalid(format!(
                "there is no node {k} of {}",
                self.nodes
            )));
        }
        self.data_dir = absolute(&self.data_dir)?;
        self.binary = absolute(&self.binary)?;
        Ok(self)
    }

    pub(crate) fn addresses(&self, k: u16) -> Addresses {
        let host = self.overrides.get(&k).and_then(|overrides| overrides.host);
        Addresses::of(
            host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            self.base_port,
            k,
        )
    }

    /// The text of node `k`'s config; `overrides` are the node's as they are now.
    pub(crate) fn text(&self, k: u16, overrides: &Overrides) -> Result<String, Error> {
        let mut table = self.table(k);
        for extra in [&self.toml, &overrides.toml] {
            let extra = extra.parse().map_err(|source| Error::Toml {
                node: name(k),
                source,
            })?;
            merge(&mut table, extra);
        }
        Ok(table.to_string())
    }

    fn table(&self, k: u16) -> Table {
        let own = self.addresses(k);
        let peers = (1..=self.nodes).map(|k| Value::from(self.addresses(k).peer.to_string()));
        let replicas = self
            .replication_factor
            .unwrap_or_else(|| u32::from(self.nodes.min(3)));
        let mut table = Table::new();
        table.insert(
            "data_dir".into(),
            self.node_dir(k).to_string_lossy().into_owned().into(),
        );
        table.insert("name".into(), name(k).into());
        table.insert("exit_with_stdin".into(), true.into());
        if !own.client.ip().is_loopback() {
            table.insert("insecure".into(), true.into());
        }
        table.insert(
            "listen".into(),
            section([
                ("client", own.client.to_string().into()),
                ("peer", own.peer.to_string().into()),
                ("http", own.http.to_string().into()),
            ]),
        );
        table.insert(
            "cluster".into(),
            section([
                ("initial_nodes", Value::Array(peers.collect())),
                ("token", self.token.as_str().into()),
                ("shards", self.shards.into()),
                ("replication_factor", replicas.into()),
            ]),
        );
        table
    }

    pub(crate) fn node_dir(&self, k: u16) -> PathBuf {
        self.data_dir.join(name(k))
    }
}

/// What node `k` is called.
pub(crate) fn name(k: u16) -> String {
    format!("node-{k}")
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(Error::file(path))
}

fn section<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Table(
        entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

/// Lays `extra` over `table`: tables are merged, everything else is replaced.
fn merge(table: &mut Table, extra: Table) {
    for (key, value) in extra {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(extra)) => merge(inner, extra),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(config: Config, k: u16) -> String {
        let overrides = config.overrides(k);
        config
            .text(k, &overrides)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_node_is_told_its_part() {
        let text = text(Config::new("/bin/roost", "/data"), 2);
        let expected: Table = r#"
            data_dir = "/data/node-2"
            name = "node-2"
            exit_with_stdin = true
            [listen]
            client = "127.0.0.1:7402"
            peer = "127.0.0.1:7502"
            http = "127.0.0.1:7602"
            [cluster]
            initial_nodes = ["127.0.0.1:7501", "127.0.0.1:7502", "127.0.0.1:7503"]
            token = "dev"
            shards = 32
            replication_factor = 3
        "#
        .parse()
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(text.parse::<Table>().ok(), Some(expected), "{text}");
    }

    #[test]
    fn one_node_has_one_replica() {
        let text = text(Config::new("roost", "/data").nodes(1), 1);
        assert!(text.contains("replication_factor = 1"), "{text}");
    }

    #[test]
    fn added_toml_is_merged_and_the_nodes_wins() {
        let overrides = Overrides {
            toml: "[limits]\nqueue_entries = 5".into(),
            ..Overrides::default()
        };
        let config = Config::new("roost", "/data")
            .toml("log = \"json\"\n[limits]\nqueue_entries = 9\nqueue_bytes = 7\n[cluster]\nshards = 4")
            .node(1, overrides);
        let (first, second) = (text(config.clone(), 1), text(config, 2));
        assert!(
            first.contains("queue_entries = 5") && first.contains("queue_bytes = 7"),
            "{first}"
        );
        assert!(
            second.contains("queue_entries = 9") && second.contains("log = \"json\""),
            "{second}"
        );
        assert!(
            second.contains("shards = 4") && second.contains("token = \"dev\""),
            "{second}"
        );
    }

    #[test]
    fn beyond_loopback_is_said_to_be_insecure() {
        let overrides = Overrides {
            host: Some(IpAddr::from([10, 0, 0, 2])),
            ..Overrides::default()
        };
        let config = Config::new("roost", "/data").node(2, overrides);
        let (first, second) = (text(config.clone(), 1), text(config, 2));
        assert!(
            second.contains("insecure = true") && second.contains("client = \"10.0.0.2:7402\""),
            "{second}"
        );
        assert!(
            !first.contains("insecure") && first.contains("\"10.0.0.2:7502\""),
            "{first}"
        );
    }

    #[test]
    fn impossible_clusters_are_refused() {
        let config = || Config::new("roost", "/data");
        assert!(config().nodes(0).checked().is_err());
        assert!(config().nodes(101).checked().is_err());
        assert!(config().base_port(65_400).checked().is_err());
        assert!(config().node(4, Overrides::default()).checked().is_err());
        assert!(config().checked().is_ok());
    }
}
