//! Open loop: when each message is due, whatever the server does.
//!
//! A thread of its own, because the runtime's timers are a millisecond coarse and that is what is to be measured.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// Gives the senders their turns, one after the other, evenly spaced; ends when a sender has.
pub(super) fn start(per_second: f64, senders: Vec<mpsc::UnboundedSender<Instant>>) {
    let interval = Duration::from_secs_f64(1.0 / per_second);
    thread::spawn(move || {
        let start = Instant::now();
        for (turn, sender) in (1u32..).zip(senders.iter().cycle()) {
            let due = start + interval * turn;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send(due).is_err() {
                return;
            }
        }
    });
}
