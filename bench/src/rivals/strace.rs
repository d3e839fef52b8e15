//! How often processes ask the kernel to make something durable.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};

/// The calls that do.
const SYNCS: &str = "fsync,fdatasync,sync_file_range,msync,sync,syncfs";
/// Until strace says that it is there.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);

/// A strace that counts.
pub(super) struct Trace {
    child: Child,
    errors: BufReader<ChildStderr>,
}

impl Trace {
    /// Looks at all threads of these processes.
    ///
    /// # Errors
    /// When there is no strace, or it may not look.
    pub(super) async fn of(pids: &[u32]) -> Result<Self> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", SYNCS]);
        for pid in pids {
            strace.args(["-p", &pid.to_string()]);
        }
        let mut child = strace
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start strace")?;
        let mut errors = BufReader::new(child.stderr.take().context("its errors are piped")?);
        let mut line = String::new();
        let attached = errors.read_line(&mut line);
        let bytes = tokio::time::timeout(ATTACH_WITHIN, attached)
            .await
            .context("strace does not attach")??;
        anyhow::ensure!(bytes > 0 && line.contains("attached"), "strace: {line}");
        Ok(Self { child, errors })
    }

    /// Calls seen.
    ///
    /// # Errors
    /// When strace has failed meanwhile.
    pub(super) async fn end(mut self) -> Result<usize> {
        let pid = self.child.id().context("strace ended early")?;
        Command::new("kill")
            .args(["-INT", &pid.to_string()])
            .status()
            .await?;
        let mut text = String::new();
        self.errors.read_to_string(&mut text).await?;
        self.child.wait().await?;
        Ok(calls(&text))
    }
}

/// One line a call; a call that was interrupted is told again as "resumed".
fn calls(text: &str) -> usize {
    let names: Vec<&str> = SYNCS.split(',').collect();
    let is_call = |line: &&str| {
        let call = line.rsplit("] ").next().unwrap_or(line);
        names.iter().any(|name| {
            call.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('('))
        })
    };
    text.lines().filter(is_call).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_once() {
        let text = "strace: Process 7 attached with 3 threads\n\
                    [pid 7] fdatasync(3 <unfinished ...>\n[pid 8] fsync(4) = 0\n\
                    [pid 7] <... fdatasync resumed>) = 0\nfsync(5) = 0\n[pid 9] fsyncing\n";
        assert_eq!(calls(text), 3);
    }
}
