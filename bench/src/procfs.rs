//! What the operating system counts: processor time, memory and written bytes of processes, bytes on loopback.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// `USER_HZ`: the unit of times in `/proc/PID/stat` on every Linux that Rust's standard library supports.
const TICKS_PER_SECOND: u64 = 100;

/// What some processes have used since they started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and kernel time of all threads, those that have ended too.
    pub(crate) cpu: Duration,
    /// Resident now.
    pub(crate) memory_bytes: u64,
    /// Sent towards the disk, not counting what was deleted before it got there.
    pub(crate) written_bytes: u64,
}

/// The sum over these processes.
///
/// # Errors
/// When one of them is gone.
pub(crate) fn usage(pids: &[u32]) -> Result<Usage> {
    pids.iter().try_fold(Usage::default(), |sum, pid| {
        let one = of(*pid).with_context(|| format!("process {pid}"))?;
        Ok(Usage {
            cpu: sum.cpu + one.cpu,
            memory_bytes: sum.memory_bytes + one.memory_bytes,
            written_bytes: sum.written_bytes + one.written_bytes,
        })
    })
}

fn of(pid: u32) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    Ok(Usage {
        cpu: cpu(&stat).context("no times in stat")?,
        memory_bytes: field(&status, "VmRSS:").context("no VmRSS in status")? * 1024,
        written_bytes: written(&io).context("no write_bytes in io")?,
    })
}

/// The 14th and 15th field, counted behind the command's name, which may hold anything.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + kernel) * 1000 / TICKS_PER_SECOND,
    ))
}

fn written(io: &str) -> Option<u64> {
    let cancelled = field(io, "cancelled_write_bytes:")?;
    let written = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))?;
    Some(
        written
            .trim()
            .parse::<u64>()
            .ok()?
            .saturating_sub(cancelled),
    )
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes that have gone over the loopback interface, headers included, whoever sent them.
pub(crate) fn loopback_bytes() -> Result<u64> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let lo = devices
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("lo:"));
    let received = lo.and_then(|counts| counts.split_whitespace().next());
    received
        .and_then(|bytes| bytes.parse().ok())
        .context("no loopback interface in /proc/net/dev")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_a_name_with_brackets() {
        let stat = "42 (a) (b)) S 1 42 42 0 -1 4194560 900 0 2 0 150 50 7 8 20 0 5 0 1 2 3";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
    }

    #[test]
    fn bytes_that_never_reached_the_disk_do_not_count() {
        let io = "rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 1024\n";
        assert_eq!(written(io), Some(3072));
    }

    #[test]
    fn this_process_can_be_measured() -> Result<()> {
        let usage = usage(&[std::process::id()])?;
        assert!(usage.memory_bytes > 0, "{usage:?}");
        loopback_bytes().map(drop)
    }
}
