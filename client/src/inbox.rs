//! The own queue as it comes in: every number once, in order, whatever the server sends again.

use std::collections::VecDeque;

use roost_proto::v1;

use crate::message::{Cursor, Delivery, Incoming};

/// What the server may have on its way beyond the window that we granted, before we call it broken.
const SLACK_ENTRIES: usize = 64;

#[derive(Debug)]
pub(crate) struct Inbox {
    /// Everything up to here has been taken in.
    received: Option<Cursor>,
    /// Taken in, and not yet handed to the caller.
    waiting: VecDeque<Incoming>,
    waiting_max: usize,
}

impl Inbox {
    /// `from`: what the caller has already. `window` bounds what waits here.
    pub(crate) fn new(from: Option<Cursor>, window: usize) -> Self {
        Self {
            received: from,
            waiting: VecDeque::new(),
            waiting_max: window.saturating_add(SLACK_ENTRIES).saturating_mul(2),
        }
    }

    /// Where the server has the device's cursor: where reading begins when nothing was received before.
    pub(crate) fn begin(&mut self, cursor: Option<Cursor>) {
        self.received = self.received.or(cursor);
    }

    /// The server does not take our cursor: read on from its own.
    pub(crate) fn reset(&mut self) {
        self.received = None;
    }

    /// Takes a frame in.
    ///
    /// # Errors
    /// When more comes than the window allows.
    pub(crate) fn take(&mut self, frame: v1::Entries) -> Result<(), &'static str> {
        let incarnation = frame.incarnation;
        let mut skipped = frame.skipped.into_iter().peekable();
        for entry in frame.entries {
            while let Some(range) = skipped.next_if(|range| range.first < entry.seq) {
                self.skip(incarnation, range.first, range.last);
            }
            self.entry(incarnation, entry);
        }
        for range in skipped {
            self.skip(incarnation, range.first, range.last);
        }
        if self.waiting.len() > self.waiting_max {
            return Err("the server sent more entries than the window allows");
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn pop(&mut self) -> Option<Incoming> {
        self.waiting.pop_front()
    }

    fn entry(&mut self, incarnation: u64, entry: v1::Entry) {
        if !self.is_new(incarnation, entry.seq) {
            return;
        }
        self.note_missing(incarnation, entry.seq);
        self.push(Incoming::Delivery(Delivery {
            incarnation,
            seq: entry.seq,
            envelope: entry.envelope.unwrap_or_default(),
        }));
    }

    fn skip(&mut self, incarnation: u64, first: u64, last: u64) {
        if !self.is_new(incarnation, last) || first > last {
            return;
        }
        self.note_missing(incarnation, first);
        let first = first.max(self.next(incarnation).unwrap_or(first));
        self.push(Incoming::Skipped {
            incarnation,
            first,
            last,
        });
    }

    fn is_new(&self, incarnation: u64, seq: u64) -> bool {
        self.received
            .is_none_or(|received| Cursor { incarnation, seq } > received)
    }

    /// The number that should come next; unknown in a new incarnation.
    fn next(&self, incarnation: u64) -> Option<u64> {
        self.received
            .filter(|received| received.incarnation == incarnation)
            .map(|received| received.seq + 1)
    }

    fn note_missing(&mut self, incarnation: u64, seq: u64) {
        if let Some(first) = self.next(incarnation)
            && first < seq
        {
            self.push(Incoming::Missing {
                incarnation,
                first,
                last: seq - 1,
            });
        }
    }

    fn push(&mut self, incoming: Incoming) {
        self.received = Some(incoming.cursor());
        self.waiting.push_back(incoming);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(incarnation: u64, seqs: &[u64], skipped: &[(u64, u64)]) -> v1::Entries {
        v1::Entries {
            incarnation,
            entries: seqs
                .iter()
                .map(|seq| v1::Entry {
                    seq: *seq,
                    envelope: None,
                })
                .collect(),
            skipped: skipped
                .iter()
                .map(|(first, last)| v1::Range {
                    first: *first,
                    last: *last,
                })
                .collect(),
        }
    }

    /// E.g. `"3 s4-5 m6-6"`: entry 3, 4 to 5 skipped, 6 missing.
    fn drain(inbox: &mut Inbox) -> String {
        let mut words = Vec::new();
        while let Some(incoming) = inbox.pop() {
            words.push(match incoming {
                Incoming::Delivery(delivery) => delivery.seq.to_string(),
                Incoming::Skipped { first, last, .. } => format!("s{first}-{last}"),
                Incoming::Missing { first, last, .. } => format!("m{first}-{last}"),
            });
        }
        words.join(" ")
    }

    fn at(incarnation: u64, seq: u64) -> Cursor {
        Cursor { incarnation, seq }
    }

    fn inbox(from: Cursor) -> Inbox {
        Inbox::new(Some(from), 8)
    }

    #[test]
    fn what_comes_again_is_dropped() {
        let mut inbox = inbox(at(1, 2));
        for seqs in [&[1, 2, 3][..], &[2, 3, 4], &[3, 4]] {
            inbox.take(frame(1, seqs, &[])).expect("within the window");
        }
        assert_eq!(drain(&mut inbox), "3 4");
    }

    #[test]
    fn skipped_ranges_stand_where_they_belong_and_are_clipped() {
        let mut inbox = inbox(at(1, 2));
        inbox
            .take(frame(1, &[5, 8], &[(1, 4), (6, 7), (9, 9)]))
            .expect("within the window");
        assert_eq!(drain(&mut inbox), "s3-4 5 s6-7 8 s9-9");
    }

    #[test]
    fn an_unexplained_gap_is_told() {
        let mut inbox = inbox(at(1, 2));
        inbox.take(frame(1, &[5], &[])).expect("within the window");
        assert_eq!(drain(&mut inbox), "m3-4 5");
    }

    #[test]
    fn a_new_incarnation_counts_anew_and_an_old_one_is_dropped() {
        let mut inbox = inbox(at(1, 200));
        inbox.take(frame(2, &[7], &[])).expect("within the window");
        inbox.take(frame(1, &[201], &[])).expect("dropped");
        inbox.take(frame(2, &[8], &[])).expect("within the window");
        assert_eq!(drain(&mut inbox), "7 8");
    }

    #[test]
    fn more_than_the_window_is_an_error() {
        let mut inbox = inbox(at(1, 0));
        let seqs: Vec<u64> = (1..=1000).collect();
        assert!(inbox.take(frame(1, &seqs, &[])).is_err());
    }
}
