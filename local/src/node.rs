//! One node: its files, its addresses, and its process while it has one.
//!
//! The process leads a process group of its own, and signals go to the group: a command put before the node (strace, a
//! shell) is stopped and killed with it, and Ctrl-C at the terminal reaches the nodes only through whoever started
//! them. The write end of its standard input is held here and nowhere else; that is what lets it notice our death.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::config::name;
use crate::http::{self, Answer};
use crate::ports::Addresses;
use crate::{Config, Error, Overrides, log};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// For one question on the HTTP port.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// One node of a [`Cluster`](crate::Cluster), running or not.
#[derive(Debug)]
pub struct Node {
    k: u16,
    name: String,
    addresses: Addresses,
    overrides: Overrides,
    config: Arc<Config>,
    process: Option<Process>,
    /// How the last process ended, once somebody has waited for it.
    ended: Option<ExitStatus>,
}

/// The process of a node. `Child` would close the pipe whenever it is waited for, so the pipe is kept apart.
#[derive(Debug)]
struct Process {
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Node {
    pub(crate) fn new(config: Arc<Config>, k: u16) -> Self {
        let overrides = config.overrides(k);
        Self {
            k,
            name: name(k),
            addresses: config.addresses(k),
            overrides,
            config,
            process: None,
            ended: None,
        }
    }

    /// Its number, from 1.
    pub fn number(&self) -> u16 {
        self.k
    }

    /// Its name, `node-2`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients find it, as a URL.
    pub fn client_url(&self) -> String {
        format!("http://{}", self.addresses.client)
    }

    /// Where clients find it.
    pub fn client_address(&self) -> SocketAddr {
        self.addresses.client
    }

    /// Where other nodes find it.
    pub fn peer_address(&self) -> SocketAddr {
        self.addresses.peer
    }

    /// Where it serves health and metrics.
    pub fn http_address(&self) -> SocketAddr {
        self.addresses.http
    }

    /// Where its data lies.
    pub fn data_dir(&self) -> PathBuf {
        self.config.node_dir(self.k)
    }

    /// Its config, written anew at every start.
    pub fn config_file(&self) -> PathBuf {
        self.config.data_dir.join(format!("{}.toml", self.name))
    }

    /// Where its standard output and standard error go.
    pub fn log_file(&self) -> PathBuf {
        self.config.data_dir.join(format!("{}.log", self.name))
    }

    /// Where cluster creation leaves the administrator's token.
    pub fn admin_token_file(&self) -> PathBuf {
        self.data_dir().join("admin.token")
    }

    /// The process that was started: the node, or the command put before it.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(|process| process.child.id())
    }

    /// What it has for itself; a change counts from the next start. Its host cannot change.
    pub fn overrides_mut(&mut self) -> &mut Overrides {
        &mut self.overrides
    }

    /// Refuses when somebody listens on one of its ports.
    pub(crate) fn check_ports(&self) -> Result<(), Error> {
        self.addresses.check_free(&self.name)
    }

    /// Writes the config and starts the process, without waiting for it to be ready.
    ///
    /// # Errors
    ///
    /// When it runs already, its files cannot be written, or the binary does not start.
    pub fn start(&mut self) -> Result<(), Error> {
        if self.is_running() {
            return Err(Error::AlreadyRunning {
                node: self.name.clone(),
            });
        }
        self.write_config()?;
        self.process = Some(self.spawn()?);
        self.ended = None;
        Ok(())
    }

    fn write_config(&self) -> Result<(), Error> {
        let text = self.config.text(self.k, &self.overrides)?;
        let data_dir = self.data_dir();
        fs::create_dir_all(&data_dir).map_err(Error::file(&data_dir))?;
        let file = self.config_file();
        fs::write(&file, text).map_err(Error::file(&file))
    }

    fn spawn(&self) -> Result<Process, Error> {
        let log_file = self.log_file();
        let output = log::open(&log_file)?;
        let errors = output.try_clone().map_err(Error::file(&log_file))?;
        let mut words = self.overrides.prefix.iter().cloned().chain([self
            .config
            .binary
            .clone()
            .into_os_string()]);
        let program = words.next().unwrap_or_default();
        Command::new(&program)
            .args(words)
            .args(["node", "--config"])
            .arg(self.config_file())
            .envs(&self.overrides.env)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map(|mut child| Process {
                _stdin: child.stdin.take(),
                child,
            })
            .map_err(|source| Error::Spawn {
                node: self.name.clone(),
                program: program.into(),
                source,
            })
    }

    /// Waits until the node says that it is ready, as long as the cluster's config allows.
    ///
    /// # Errors
    ///
    /// With the end of its log, when the process ends first or the time runs out.
    pub async fn wait_ready(&mut self) -> Result<(), Error> {
        let limit = self.config.ready_timeout;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                let (node, log, tail) = self.account();
                return Err(Error::Exited {
                    node,
                    status,
                    log,
                    tail,
                });
            }
            if self.process.is_none() {
                return Err(Error::NotRunning {
                    node: self.name.clone(),
                });
            }
            let last = match self.get("/readyz").await {
                Ok(Answer { status: 200, .. }) => return Ok(()),
                Ok(Answer { status, body }) => format!("{status} {}", body.trim()),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let (node, log, tail) = self.account();
                return Err(Error::NotReady {
                    node,
                    after: limit,
                    last,
                    log,
                    tail,
                });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    fn account(&self) -> (String, PathBuf, String) {
        let log_file = self.log_file();
        let tail = log::tail(&log_file);
        (self.name.clone(), log_file, tail)
    }

    /// Asks the node's HTTP port for `path`, for example `/metrics`.
    ///
    /// # Errors
    ///
    /// When it does not answer within a few seconds, as a paused or dead node.
    pub async fn get(&self, path: &str) -> Result<Answer, Error> {
        let answer = http::get(self.addresses.http, path, ANSWER_TIMEOUT).await;
        answer.map_err(|source| self.process_error("ask", source))
    }

    /// SIGKILL, and waits until the process is gone.
    ///
    /// # Errors
    ///
    /// When it is not running.
    pub async fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.send_kill()?;
        self.wait().await
    }

    pub(crate) fn send_kill(&self) -> Result<(), Error> {
        self.signal("kill", Signal::KILL)
    }

    /// SIGTERM, so that it drains and stops; after `grace` SIGKILL. A paused process is continued.
    ///
    /// # Errors
    ///
    /// When it is not running.
    pub async fn terminate(&mut self, grace: Duration) -> Result<ExitStatus, Error> {
        self.send_terminate()?;
        match timeout(grace, self.wait()).await {
            Ok(status) => status,
            Err(_) => self.kill().await,
        }
    }

    pub(crate) fn send_terminate(&self) -> Result<(), Error> {
        self.signal("terminate", Signal::TERM)?;
        self.signal("continue", Signal::CONT)
    }

    /// SIGSTOP: the process stands still a moment later, its connections stay open.
    ///
    /// # Errors
    ///
    /// When it is not running.
    pub fn pause(&self) -> Result<(), Error> {
        self.signal("pause", Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    ///
    /// When it is not running.
    pub fn resume(&self) -> Result<(), Error> {
        self.signal("continue", Signal::CONT)
    }

    /// Waits until the process has ended, also when it ended before; each end is returned once. May be dropped and
    /// called again.
    ///
    /// # Errors
    ///
    /// When it has no process, or its end was returned before.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        let Some(process) = &mut self.process else {
            return Err(Error::NotRunning {
                node: self.name.clone(),
            });
        };
        let status = process.child.wait().await;
        let status = status.map_err(|source| self.process_error("wait for", source))?;
        self.process = None;
        self.ended = Some(status);
        Ok(status)
    }

    /// Whether [`wait`](Self::wait) has something to wait for or to return.
    pub(crate) fn has_process(&self) -> bool {
        self.process.is_some()
    }

    /// How the last process ended, if it has.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        let Some(process) = &mut self.process else {
            return Ok(self.ended);
        };
        let status = process.child.try_wait();
        status.map_err(|source| self.process_error("look at", source))
    }

    /// Whether it has a living process.
    pub fn is_running(&mut self) -> bool {
        self.process.is_some() && matches!(self.exited(), Ok(None))
    }

    fn signal(&self, action: &'static str, signal: Signal) -> Result<(), Error> {
        let group = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let Some(group) = group else {
            return Err(Error::NotRunning {
                node: self.name.clone(),
            });
        };
        kill_process_group(group, signal)
            .map_err(|source| self.process_error(action, source.into()))
    }

    fn process_error(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Process {
            action,
            node: self.name.clone(),
            source,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nobody is left to tell; a process that is gone already is what we want.
        let _ = self.signal("kill", Signal::KILL);
    }
}
