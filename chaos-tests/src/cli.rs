//! The command line under test: `roost` run as people and scripts run it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use roost_local::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::lab::{binary, within};

/// For one call that does not set a limit of its own.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Exit code: everything was done.
pub const OK: i32 = 0;
/// Exit code: refused for good.
pub const REFUSED: i32 = 1;
/// Exit code: internal error.
pub const INTERNAL: i32 = 2;
/// Exit code: the time ran out.
pub const TIMED_OUT: i32 = 4;
/// Exit code: wrong use of the command.
pub const USAGE: i32 = 64;
/// Exit code: no server, or no majority.
pub const UNAVAILABLE: i32 = 69;
/// Exit code: credentials are missing or not accepted.
pub const CREDENTIALS: i32 = 77;

/// How `roost` is called: which servers, whose credentials, which admin token.
#[derive(Clone, Debug)]
pub struct Cli {
    binary: PathBuf,
    servers: String,
    credentials: PathBuf,
    token: Option<PathBuf>,
}

/// What a call left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cli {
    /// Calls that may use any node of a cluster, credentials in `directory`, with the cluster's admin token.
    ///
    /// # Errors
    /// When there is no binary to test.
    pub fn new(cluster: &Cluster, directory: &Path) -> Result<Self> {
        let token = cluster.node(1).admin_token_file();
        Self::at(&cluster.client_urls(), directory, token)
    }

    /// Calls to these servers, credentials in `directory`, with this admin token file.
    ///
    /// # Errors
    /// When there is no binary to test.
    pub fn at(servers: &[String], directory: &Path, token: PathBuf) -> Result<Self> {
        Ok(Self {
            binary: binary()?,
            servers: servers.join(","),
            credentials: directory.join("credentials"),
            token: Some(token),
        })
    }

    /// The same, through one server.
    #[must_use]
    pub fn through(&self, server: impl Into<String>) -> Self {
        Self {
            servers: server.into(),
            ..self.clone()
        }
    }

    /// The same, with another admin token file, or none.
    #[must_use]
    pub fn token(&self, token: Option<PathBuf>) -> Self {
        Self {
            token,
            ..self.clone()
        }
    }

    /// Where the credentials of a device are.
    #[must_use]
    pub fn credentials_file(&self, user: &str, device: &str) -> PathBuf {
        self.credentials.join(user).join(format!("{device}.json"))
    }

    /// Where all credentials are.
    #[must_use]
    pub fn credentials(&self) -> &Path {
        &self.credentials
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(words)
            // Nothing of the caller's own Roost may leak in, and no default token be found.
            .env_remove("ROOST_SERVER")
            .env_remove("ROOST_ADMIN_TOKEN_FILE")
            .env("ROOST_SERVER", &self.servers)
            .current_dir(self.credentials.parent().unwrap_or(Path::new("/")))
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if needs_credentials(words) {
            command.arg("--credentials").arg(&self.credentials);
        }
        if let Some(token) = &self.token {
            command.env("ROOST_ADMIN_TOKEN_FILE", OsString::from(token));
        }
        command
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// When it does not start or does not end in time.
    pub async fn run(&self, words: &[&str]) -> Result<Output> {
        let child = self.command(words).spawn().context("starting roost")?;
        finish(child, words.join(" "), CALL_LIMIT).await
    }

    /// Runs to the end with this on standard input.
    ///
    /// # Errors
    /// When it does not start or does not end in time.
    pub async fn run_with_input(&self, words: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .spawn()
            .context("starting roost")?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        let feed = async move {
            // A call that ends before it has read everything says so by its exit code.
            let _ = stdin.write_all(input).await;
        };
        let (output, ()) = futures::join!(finish(child, words.join(" "), CALL_LIMIT), feed);
        output
    }

    /// Starts a call that is fed and read while it runs. It ends some time after its standard input is dropped.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with_input(&self, words: &[&str]) -> Result<(ChildStdin, Running)> {
        let mut command = self.command(words);
        let mut running = Running::start(command.stdin(Stdio::piped()), words)?;
        let stdin = running.child.stdin.take();
        Ok((stdin.context("standard input is a pipe")?, running))
    }

    /// Starts a call that is read line by line while it runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, words: &[&str]) -> Result<Running> {
        Running::start(&mut self.command(words), words)
    }
}

/// Only the commands that speak as a device, or make one.
fn needs_credentials(words: &[&str]) -> bool {
    matches!(
        words.first(),
        Some(&"send" | &"listen" | &"chat" | &"account")
    )
}

/// Ctrl-C to a process that was started here.
///
/// # Errors
/// When it has ended.
pub fn interrupt(child: &Child) -> Result<()> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    Ok(kill_process(pid.context("it has ended")?, Signal::INT)?)
}

async fn finish(mut child: Child, words: String, limit: Duration) -> Result<Output> {
    let what = format!("roost {words}");
    let mut stdout = child.stdout.take().context("standard output is a pipe")?;
    let mut stderr = child.stderr.take().context("standard error is a pipe")?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let all = async {
        let (out, err) = futures::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        out.and(err)?;
        child.wait().await
    };
    let status = within(limit, &what, all).await??;
    Ok(Output {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out).into_owned(),
        stderr: String::from_utf8_lossy(&err).into_owned(),
    })
}

impl Output {
    /// Itself, if it ended with this code.
    ///
    /// # Errors
    /// With all that it printed, if it ended with another.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "exit code {} instead of {code}\nstandard output: {}\nstandard error: {}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Standard output as one JSON value a line.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn json(&self) -> Result<Vec<Value>> {
        let lines = self.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }
}

/// A call that goes on.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    words: String,
}

impl Running {
    fn start(command: &mut Command, words: &[&str]) -> Result<Self> {
        let mut child = command.spawn().context("starting roost")?;
        let stdout = child.stdout.take().context("standard output is a pipe")?;
        Ok(Self {
            child,
            lines: BufReader::new(stdout).lines(),
            words: words.join(" "),
        })
    }

    /// Waits for its end; what it still prints is not looked at.
    ///
    /// # Errors
    /// When it does not end in time, or with anything but success.
    pub async fn finish(mut self, limit: Duration) -> Result<()> {
        // Read all the same: a command whose output nobody takes fails.
        self.child.stdout = Some(self.lines.into_inner().into_inner());
        let what = format!("the end of roost {}", self.words);
        let output = within(limit, &what, self.child.wait_with_output()).await??;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "roost {}: {errors}", self.words);
        Ok(())
    }

    /// The next line of standard output, as JSON.
    ///
    /// # Errors
    /// When none comes in time, it is not JSON, or the call has ended.
    pub async fn json(&mut self, limit: Duration) -> Result<Value> {
        let what = format!("a line from roost {}", self.words);
        let line = within(limit, &what, self.lines.next_line()).await??;
        let line = line.with_context(|| format!("{what}: it has ended"))?;
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))
    }

    /// Reads standard output up to this line.
    ///
    /// # Errors
    /// When it does not come in time or at all, with what came instead.
    pub async fn shows(&mut self, wanted: &str, limit: Duration) -> Result<()> {
        let what = format!("{wanted:?} from roost {}", self.words);
        let mut before = Vec::new();
        let read = async {
            while let Some(line) = self.lines.next_line().await? {
                if line == wanted {
                    return Ok::<(), anyhow::Error>(());
                }
                before.push(line);
            }
            bail!("{what}: it has ended")
        };
        let shown = within(limit, &what, read).await.flatten();
        shown.with_context(|| format!("what came: {before:?}"))
    }

    /// Ctrl-C.
    ///
    /// # Errors
    /// When it has ended.
    pub fn interrupt(&self) -> Result<()> {
        interrupt(&self.child)
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills it.
    ///
    /// # Errors
    /// When the system does not let us.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
