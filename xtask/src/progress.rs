//! One line that says how far something long has come.
//!
//! On a terminal the line is rewritten every second; in a log file it is a new line now and then.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The line, and since when.
pub(crate) struct Progress {
    since: Instant,
    last_line: Option<Instant>,
    terminal: bool,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self {
            since: Instant::now(),
            last_line: None,
            terminal: stderr().is_terminal(),
        }
    }

    /// Shows `text` with the time taken so far.
    pub(crate) fn show(&mut self, text: &str) {
        let line = format!("{text}, {}", minutes(self.since.elapsed()));
        // Progress that cannot be shown is no reason to stop the work.
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K{line}");
        } else if self
            .last_line
            .is_none_or(|last| last.elapsed() >= LOG_INTERVAL)
        {
            self.last_line = Some(Instant::now());
            let _ = writeln!(stderr(), "{line}");
        }
    }

    /// Ends the line; says how long it took.
    pub(crate) fn end(self) -> Duration {
        if self.terminal {
            let _ = writeln!(stderr());
        }
        self.since.elapsed()
    }
}

/// A duration for people: `4 min 09 s`.
pub(crate) fn minutes(duration: Duration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, _) => format!("{:.1} s", duration.as_secs_f64()),
        (minutes, seconds) => format!("{minutes} min {seconds:02} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_for_people() {
        assert_eq!(minutes(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(minutes(Duration::from_secs(249)), "4 min 09 s");
    }
}
