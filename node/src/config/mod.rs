//! A node's settings: defaults, under a TOML file, under the environment, under flags.
//!
//! An unknown key is an error that names it, wherever it stands, and so is a value of the wrong type or outside its
//! range: a node that starts runs with what was written. In the environment `ROOST_RAFT__HEARTBEAT_MS=50` sets
//! `raft.heartbeat_ms`, and `ROOST__NAME=a` the top-level `name`; names without a double underscore (`ROOST_SERVER`,
//! and what Kubernetes injects for a Service named roost) are no settings and left alone.

mod check;
mod settings;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

pub use settings::{
    Advertise, Cluster, Config, Listen, Log, LogFormat, Peer, Queue, Raft, Replica, Session,
    Storage, Token,
};

/// What is wrong with a config, for whoever wrote it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the config file {}: {source}", path.display())]
    Unreadable {
        /// As it was given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is no TOML, or holds an unknown key or a value of the wrong type.
    #[error("config file {}: {}", path.display(), one_line(source))]
    File {
        /// As it was given.
        path: PathBuf,
        /// Names the key and its line.
        source: Box<toml::de::Error>,
    },
    /// A variable or flag names a setting that does not exist.
    #[error("{origin}: there is no setting {key}; `roost node --dump-config` lists them all")]
    UnknownKey {
        /// The variable or flag.
        origin: String,
        /// What it would have set.
        key: String,
    },
    /// A variable or flag holds a value of the wrong type.
    #[error("{origin}: {key} is {expected}, and this is not one")]
    WrongType {
        /// The variable or flag.
        origin: String,
        /// The setting.
        key: String,
        /// What it takes.
        expected: &'static str,
    },
    /// A flag is not `key=value`.
    #[error("--set takes key=value, for example --set raft.heartbeat_ms=50")]
    NotAPair,
    /// Everything was read, and together it is no config.
    #[error("config: {}", one_line(.0))]
    Invalid(#[source] Box<toml::de::Error>),
    /// A number is outside its range.
    #[error("config: {key} = {value} is out of range, which is {min} to {max}")]
    OutOfRange {
        /// The setting.
        key: String,
        /// What it was given.
        value: String,
        /// The least it takes.
        min: String,
        /// The most it takes.
        max: String,
    },
    /// A setting does not fit the others.
    #[error("config: {key} {problem}")]
    Refused {
        /// The setting.
        key: &'static str,
        /// Why, and what would be right.
        problem: &'static str,
    },
}

impl Config {
    /// Defaults, under `file`, under `environment` (all variables of the process), under `flags` (`key=value`).
    ///
    /// # Errors
    /// The first thing that is wrong, with where it stands. All of them are usage errors: exit 64.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = String>,
    ) -> Result<Self, Error> {
        let defaults = defaults();
        let mut table = defaults.clone();
        if let Some(path) = file {
            merge(&mut table, read(path)?);
        }
        for (name, text) in environment {
            if let Some(path) = variable_path(&name) {
                set(&mut table, &defaults, &name, &path, &text)?;
            }
        }
        for flag in flags {
            let (key, text) = flag.split_once('=').ok_or(Error::NotAPair)?;
            let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
            set(&mut table, &defaults, "--set", &path, text.trim())?;
        }
        let config: Self = table
            .try_into()
            .map_err(|error| Error::Invalid(Box::new(error)))?;
        config.check()?;
        Ok(config)
    }

    /// The whole config as the file that would give it, the cluster token included.
    #[must_use]
    pub fn dump(&self) -> String {
        toml::to_string_pretty(self)
            .expect("every setting is text, a number in range, or a list of text")
    }

    /// Where other nodes are told to find this one.
    #[must_use]
    pub fn advertised_peer(&self) -> String {
        advertised(&self.advertise.peer, self.listen.peer)
    }

    /// Where clients are told to find this node.
    #[must_use]
    pub fn advertised_client(&self) -> String {
        advertised(&self.advertise.client, self.listen.client)
    }

    /// Peer addresses of all founding nodes, at least this one.
    #[must_use]
    pub fn founding_nodes(&self) -> Vec<String> {
        match self.cluster.initial_nodes.as_slice() {
            [] => vec![self.advertised_peer()],
            nodes => nodes.to_vec(),
        }
    }

    /// Replicas of each shard: one in a cluster founded by one node.
    #[must_use]
    pub fn replicas(&self) -> u32 {
        match self.cluster.initial_nodes.len() {
            0 | 1 => 1,
            _ => self.cluster.replication_factor,
        }
    }

    /// The listeners beyond loopback, which status and log warn about until they are encrypted.
    #[must_use]
    pub fn insecure_listeners(&self) -> Vec<(&'static str, std::net::SocketAddr)> {
        [
            ("listen.client", self.listen.client),
            ("listen.peer", self.listen.peer),
            ("listen.http", self.listen.http),
        ]
        .into_iter()
        .filter(|(_, address)| !address.ip().is_loopback())
        .collect()
    }
}

fn advertised(text: &str, listen: std::net::SocketAddr) -> String {
    if text.is_empty() {
        listen.to_string()
    } else {
        text.to_owned()
    }
}

fn defaults() -> Table {
    Table::try_from(Config::default()).expect("every default is text, a number in range, or a list")
}

/// Checked alone first, so that an error tells the line.
fn read(path: &Path) -> Result<Table, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |source| Error::File {
        path: path.to_owned(),
        source: Box::new(source),
    };
    toml::from_str::<Config>(&text).map_err(wrong)?;
    toml::from_str(&text).map_err(wrong)
}

/// The setting that a variable names, if it names one.
fn variable_path(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix("ROOST_")?;
    // `ROOST__NAME`: the empty section is the top level.
    let rest = match rest.strip_prefix('_') {
        Some(top_level) => top_level,
        None if rest.contains("__") => rest,
        None => return None,
    };
    Some(rest.split("__").map(str::to_ascii_lowercase).collect())
}

/// Lays one value over the table. The default tells its type, so that a token of digits stays text.
fn set(
    table: &mut Table,
    defaults: &Table,
    origin: &str,
    path: &[String],
    text: &str,
) -> Result<(), Error> {
    let unknown = || Error::UnknownKey {
        origin: origin.to_owned(),
        key: path.join("."),
    };
    let (field, sections) = path.split_last().ok_or_else(unknown)?;
    let (mut table, mut defaults) = (table, defaults);
    for section in sections {
        defaults = defaults
            .get(section)
            .and_then(Value::as_table)
            .ok_or_else(unknown)?;
        table = table
            .get_mut(section)
            .and_then(Value::as_table_mut)
            .ok_or_else(unknown)?;
    }
    let default = defaults.get(field).ok_or_else(unknown)?;
    let value = parse(text, default).map_err(|expected| Error::WrongType {
        origin: origin.to_owned(),
        key: path.join("."),
        expected,
    })?;
    table.insert(field.clone(), value);
    Ok(())
}

/// A value of the default's type, or what would have been one.
fn parse(text: &str, default: &Value) -> Result<Value, &'static str> {
    match default {
        Value::String(_) => Ok(Value::String(text.to_owned())),
        Value::Integer(_) => text
            .parse()
            .map(Value::Integer)
            .map_err(|_| "a whole number"),
        Value::Boolean(_) => text
            .parse()
            .map(Value::Boolean)
            .map_err(|_| "true or false"),
        Value::Array(_) => Ok(Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(Value::from)
                .collect(),
        )),
        Value::Table(_) => Err("a section: set one of its keys"),
        Value::Float(_) | Value::Datetime(_) => Err("of a type that settings do not use"),
    }
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

/// TOML's errors draw the line and an arrow; errors here are one line.
fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('|'));
    lines.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
