//! A cluster under test, with what every test needs around it: the binary from `ROOST_BIN`, free ports, a directory,
//! a history, accounts, and who leads what.
//!
//! The directory (node logs, data, history) is removed after [`Lab::pass`] and kept, and named, after anything else.

mod secrets;
mod setup;

use std::env;
use std::fs::{self, File};
use std::future::Future;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use roost_client::{Admin, Credentials, Options, StatusResponse};
use roost_local::{Cluster, Config};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use xxhash_rust::xxh3::xxh3_64;

use self::secrets::Secrets;
pub use self::setup::Setup;
use crate::checker;
use crate::history::{Device, Event, History};

/// The variable that names the binary under test.
const BINARY_VARIABLE: &str = "ROOST_BIN";
/// For a shard to have a leader again, and for a node to be ready again, on a busy machine.
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Violations that are printed; the history has the rest.
const VIOLATIONS_SHOWN: usize = 20;

/// A cluster under test.
#[derive(Debug)]
pub struct Lab {
    /// The nodes.
    pub cluster: Cluster,
    /// What clients see.
    pub history: History,
    shards: u32,
    secrets: Secrets,
    directory: Option<TempDir>,
    _turn: Option<File>,
}

impl Lab {
    /// Starts a cluster and waits until it is ready.
    ///
    /// # Errors
    /// When there is no binary to test, or a node does not become ready.
    pub async fn start(setup: Setup) -> Result<Self> {
        let mut lab = Self::prepare(setup, |config| config)?;
        lab.cluster.start_all()?;
        lab.cluster.wait_ready().await?;
        Ok(lab)
    }

    /// Describes a cluster, lets the caller adapt it, and starts nothing.
    ///
    /// # Errors
    /// When there is no binary to test, no free port or no room for files.
    pub fn prepare(setup: Setup, adapt: impl FnOnce(Config) -> Config) -> Result<Self> {
        let turn = setup.alone.then(take_turn).transpose()?;
        let directory = tempfile::Builder::new()
            .prefix("roost-lab-")
            .tempdir()
            .context("no temporary directory")?;
        let config = Config::new(binary()?, directory.path().join("cluster"))
            .nodes(setup.nodes)
            .shards(setup.shards)
            .base_port(roost_local::free_base_port(setup.nodes)?)
            .toml(setup.toml);
        Ok(Self {
            cluster: Cluster::prepare(adapt(config))?,
            history: History::create(&directory.path().join("history.jsonl"))?,
            shards: setup.shards,
            secrets: Secrets::default(),
            directory: Some(directory),
            _turn: turn,
        })
    }

    /// Where a test may leave files.
    ///
    /// # Panics
    /// Never: the directory is there until the end.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory
            .as_ref()
            .expect("the directory is taken at the end only")
            .path()
    }

    /// The administrator's side of the client library, asking all nodes.
    ///
    /// # Errors
    /// When the cluster has left no token.
    pub fn admin(&self) -> Result<Admin> {
        let token = self.cluster.admin_token()?;
        Ok(Admin::new(self.cluster.client_urls(), &token)?)
    }

    /// Adds a device, and the account with its first.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn add_device(&self, user: &str, name: &str) -> Result<Credentials> {
        let key = Credentials::draw_key();
        let added = self
            .admin()?
            .add_device(user, name, key.clone())
            .await
            .with_context(|| format!("adding {name} of {user}"))?;
        let credentials = Credentials {
            user: user.to_owned(),
            device: added.device,
            device_name: name.to_owned(),
            key,
            servers: Vec::new(),
        };
        self.history.record(Event::DeviceAdded {
            device: device(&credentials),
        });
        self.secrets.add(&credentials);
        Ok(credentials)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn remove_device(&self, credentials: &Credentials) -> Result<()> {
        let device = device(credentials);
        self.history.record(Event::DeviceRemoved { device });
        let admin = self.admin()?;
        let removed = admin.remove_device(&credentials.user, &credentials.device_name);
        removed.await.context("removing a device")
    }

    /// Options of a client that may connect to any node.
    #[must_use]
    pub fn anywhere(&self, credentials: &Credentials) -> Options {
        Options::new(self.cluster.client_urls(), credentials.clone())
    }

    /// Options of a client that connects to node `k` only.
    #[must_use]
    pub fn through(&self, k: u16, credentials: &Credentials) -> Options {
        let url = self.cluster.node(k).client_url();
        Options::new(vec![url], credentials.clone())
    }

    /// The shard of a user.
    #[must_use]
    pub fn shard_of(&self, user: &str) -> u32 {
        shard_of(user, self.shards)
    }

    /// The number of the node that leads a shard, as node `k` sees it; `None` while it knows none.
    ///
    /// # Errors
    /// When node `k` does not answer.
    pub async fn leader_seen_by(&self, k: u16, shard: u32) -> Result<Option<u16>> {
        let status = self.admin_through(k)?.status().await?;
        Ok(self.leader_in(&status, shard))
    }

    fn leader_in(&self, status: &StatusResponse, shard: u32) -> Option<u16> {
        let leader = status.shards.iter().find(|known| known.id == shard)?;
        let mut nodes = status.nodes.iter();
        let node = nodes.find(|node| node.id == leader.leader)?;
        self.number_of(&node.name)
    }

    /// The number of the node that leads a user's shard, waiting for one if there is none at the moment.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn leader_of(&self, user: &str) -> Result<u16> {
        let shard = self.shard_of(user);
        let admin = self.admin()?;
        let deadline = Instant::now() + RECOVERY_LIMIT;
        while Instant::now() < deadline {
            if let Ok(status) = admin.status().await
                && let Some(k) = self.leader_in(&status, shard)
            {
                return Ok(k);
            }
            sleep(POLL_INTERVAL).await;
        }
        bail!("no node says that it leads shard {shard} within {RECOVERY_LIMIT:?}")
    }

    fn number_of(&self, name: &str) -> Option<u16> {
        let nodes = self.cluster.nodes();
        nodes
            .iter()
            .find(|node| node.name() == name)
            .map(roost_local::Node::number)
    }

    /// Entries and devices of a user, as the cluster counts them.
    ///
    /// # Errors
    /// When the cluster does not answer or there is no such user.
    pub async fn queued_entries(&self, user: &str) -> Result<u64> {
        let mut entries = None;
        self.admin()?
            .list_accounts(|account| {
                if account.user == user {
                    entries = Some(account.queued_entries);
                }
            })
            .await?;
        entries.with_context(|| format!("{user} is not among the accounts"))
    }

    /// Waits until a user's queue holds so many entries.
    ///
    /// # Errors
    /// When it does not in time, saying how many it holds.
    pub async fn wait_queued(&self, user: &str, wanted: u64) -> Result<()> {
        let deadline = Instant::now() + RECOVERY_LIMIT;
        loop {
            let entries = self.queued_entries(user).await?;
            if entries == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the queue holds {entries} entries, not {wanted}, after {RECOVERY_LIMIT:?}"
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// What node `k` has written to its log so far, over all its starts.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self, k: u16) -> Result<String> {
        let file = self.cluster.node(k).log_file();
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A metric of node `k`, summed over its labels; `None` when the node has never touched it.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn metric(&self, k: u16, name: &str) -> Result<Option<f64>> {
        let metrics = self.cluster.node(k).get("/metrics").await?.body;
        let samples = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let own = rest.starts_with([' ', '{']);
            own.then(|| line.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        Ok(samples.reduce(|sum, sample| sum + sample))
    }

    /// The administrator's side of the client library, asking node `k` only.
    ///
    /// # Errors
    /// When the cluster has left no token.
    pub fn admin_through(&self, k: u16) -> Result<Admin> {
        let url = self.cluster.node(k).client_url();
        Ok(Admin::new(vec![url], &self.cluster.admin_token()?)?)
    }

    /// SIGKILL to node `k`.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self, k: u16) -> Result<()> {
        self.fault(format!("kill -9 node {k}"));
        self.cluster.node_mut(k).kill().await?;
        Ok(())
    }

    /// Starts node `k` again over its data and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&mut self, k: u16) -> Result<()> {
        let node = self.cluster.node_mut(k);
        node.start()?;
        node.wait_ready().await?;
        self.fault(format!("node {k} is ready again"));
        Ok(())
    }

    /// Writes what is done to the cluster into the history.
    pub fn fault(&self, what: impl Into<String>) {
        self.history.record(Event::Fault { what: what.into() });
    }

    /// Holds the history against the contract.
    ///
    /// # Errors
    /// With every violation, the first of them in words.
    pub fn check(&self) -> Result<()> {
        let violations = checker::check(&self.history.records()?);
        if violations.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = violations
            .iter()
            .take(VIOLATIONS_SHOWN)
            .map(|violation| format!("  {violation}"))
            .collect();
        bail!(
            "{} violations of the contract, of which the first are:\n{}",
            violations.len(),
            shown.join("\n")
        )
    }

    /// No node shows in its log, or in its metrics, who its users are or what lets them in.
    ///
    /// # Errors
    /// When one does, saying which node; the secret is in the files that are kept.
    async fn check_secrets(&self) -> Result<()> {
        let mut shown = Vec::new();
        for node in self.cluster.nodes() {
            shown.push(("log", node.number(), self.log(node.number())?));
            // A node that was killed has none.
            if let Ok(metrics) = node.get("/metrics").await {
                shown.push(("metrics", node.number(), metrics.body));
            }
        }
        let token = self.cluster.admin_token().ok();
        for (place, k, text) in shown {
            let token = token.as_ref().is_some_and(|token| text.contains(token));
            ensure!(
                !token && !self.secrets.are_in(&text),
                "a user's name or a secret is in the {place} of node {k}"
            );
        }
        Ok(())
    }

    /// Checks the history and what the nodes show, stops the nodes and removes all files.
    ///
    /// # Errors
    /// When the history breaks the contract, or a node shows a secret; then the files are kept.
    pub async fn pass(self) -> Result<()> {
        self.check()?;
        self.check_secrets().await?;
        self.forget().await
    }

    /// Stops the nodes and removes all files.
    ///
    /// # Errors
    /// When a process cannot be signalled.
    pub async fn forget(mut self) -> Result<()> {
        self.cluster.kill_all().await?;
        drop(self.directory.take());
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            eprintln!(
                "logs, data and history are kept in {}",
                directory.keep().display()
            );
        }
    }
}

/// The lock lasts as long as the file, or this process.
fn take_turn() -> Result<File> {
    let path = env::temp_dir().join("roost-lab-turn.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    file.lock()?;
    Ok(file)
}

/// The shard of a user among so many, by the documented hash: the top bits of XXH3-64 over the id's UTF-8 bytes.
#[must_use]
pub fn shard_of(user: &str, shards: u32) -> u32 {
    match shards.trailing_zeros() {
        0 => 0,
        bits => (xxh3_64(user.as_bytes()) >> (64 - bits)) as u32,
    }
}

/// The device that credentials are for.
#[must_use]
pub fn device(credentials: &Credentials) -> Device {
    Device {
        user: credentials.user.clone(),
        device: credentials.device,
    }
}

/// All files of a directory, however deep. One that is removed meanwhile may be missing.
///
/// # Errors
/// When a directory cannot be read.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.with_context(|| directory.display().to_string())?,
        };
        for entry in entries {
            let path = entry?.path();
            match path.is_dir() {
                true => directories.push(path),
                false => found.push(path),
            }
        }
    }
    Ok(found)
}

/// The binary under test.
///
/// # Errors
/// When nobody said which; a test never looks for one itself, because it might find an old one.
pub fn binary() -> Result<PathBuf> {
    let path = env::var_os(BINARY_VARIABLE).map(PathBuf::from).ok_or_else(|| {
        anyhow!(
            "{BINARY_VARIABLE} does not say which roost binary to test: run `cargo xtask test`, or build one and set it"
        )
    })?;
    ensure!(
        path.is_file(),
        "{BINARY_VARIABLE} names {}, which is no file: build it first",
        path.display()
    );
    Ok(path)
}

/// Asks `probe` again and again until it has something.
///
/// # Errors
/// When `probe` fails, or has nothing in time.
pub async fn until<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(POLL_INTERVAL).await;
    }
}

/// What `future` gives, or an error that says what did not happen in time.
///
/// # Errors
/// When the time runs out.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> Result<T> {
    timeout(limit, future)
        .await
        .map_err(|_| anyhow!("{what}: not within {limit:?}"))
}
