//! A node's log file: opened for its process, and its last lines for an error.
//!
//! A log is appended to across restarts and put aside when a start finds it large, so two files bound what it takes
//! unless one run alone writes more.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::Error;

/// A log larger than this is put aside when its node starts.
const LOG_BYTES_MAX: u64 = 16 << 20;
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 20;

/// Opens the log at `path` for appending; an overlong one becomes `*.log.old`.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.old")).map_err(Error::file(path))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::file(path))
}

/// The last lines of the log at `path`, or why there are none.
pub(crate) fn tail(path: &Path) -> String {
    match read_end(path) {
        Ok(end) if end.trim().is_empty() => "(the log is empty)".to_owned(),
        Ok(end) => last_lines(&end),
        Err(error) => format!("(cannot read it: {error})"),
    }
}

fn read_end(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut end = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("node-1.log");
        let text: String = (0..5_000).map(|line| format!("line {line}\n")).collect();
        fs::write(&path, text)?;
        let tail = tail(&path);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(
            tail.starts_with("line 4980\n") && tail.ends_with("line 4999"),
            "{tail}"
        );
        Ok(())
    }

    #[test]
    fn a_missing_log_is_said_to_be_missing() {
        assert!(tail(Path::new("/nonexistent/node-1.log")).contains("cannot read"));
    }
}
