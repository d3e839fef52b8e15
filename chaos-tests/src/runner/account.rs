//! What a history says of each fault: how long it lasted, how much went on under it, how long nobody was served.
//!
//! Pure, like the checker: an old history can be judged again.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::history::{Event, Record};
use crate::lab::shard_of;

/// A stretch of time, in microseconds since the start of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// From here.
    pub from_us: u64,
    /// To here.
    pub to_us: u64,
}

impl Span {
    fn overlaps(&self, other: &Self) -> bool {
        self.from_us < other.to_us && other.from_us < self.to_us
    }

    /// How long it is.
    #[must_use]
    pub fn ms(&self) -> u64 {
        self.to_us.saturating_sub(self.from_us) / 1000
    }

    /// What is left of it without the others, in pieces.
    fn without(self, others: &[Self]) -> Vec<Self> {
        let mut left = vec![self];
        for other in others {
            left = left
                .into_iter()
                .flat_map(|span| {
                    let before = Self {
                        to_us: span.to_us.min(other.from_us),
                        ..span
                    };
                    let behind = Self {
                        from_us: span.from_us.max(other.to_us),
                        ..span
                    };
                    match span.overlaps(other) {
                        true => vec![before, behind],
                        false => vec![span],
                    }
                })
                .filter(|span| span.from_us < span.to_us)
                .collect();
        }
        left
    }
}

/// One fault, from its injection until everything was well again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which.
    pub fault: String,
    /// Whether a majority stayed.
    pub majority: bool,
    /// What was seen of it.
    pub proof: String,
    /// Injection to recovery.
    pub whole: Span,
    /// From its proof to its end.
    pub lasted: Span,
    /// Messages accepted while it lasted; where it takes the majority, those that it struck: accepted since the fault
    /// before it.
    pub accepted: u64,
    /// Entries delivered while it lasted.
    pub delivered: u64,
    /// From its end until every node was ready.
    pub recovery_ms: u64,
    /// The longest time in which a shard whose majority was up answered nobody who waited, from injection to recovery.
    pub longest_unavailable_ms: u64,
}

/// A time in which a shard answered nobody although somebody waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Which shard.
    pub shard: u32,
    /// When.
    pub span: Span,
}

/// Every fault of a history, in their order; with the gaps while a majority was up.
#[must_use]
pub fn rows(history: &[Record], gaps: &[Gap]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let end = history.last().map_or(0, |record| record.at_us);
    let mut before = 0;
    for record in history {
        let at = record.at_us;
        before = match &record.event {
            Event::Accepted { .. } => before + 1,
            Event::Recovered => 0,
            _ => before,
        };
        match &record.event {
            Event::FaultBegins { fault, majority } => rows.push(Row {
                fault: fault.clone(),
                majority: *majority,
                proof: String::new(),
                whole: Span {
                    from_us: at,
                    to_us: end,
                },
                lasted: Span {
                    from_us: end,
                    to_us: end,
                },
                accepted: if *majority { 0 } else { before },
                delivered: 0,
                recovery_ms: 0,
                longest_unavailable_ms: 0,
            }),
            event => {
                let Some(row) = rows.last_mut() else { continue };
                note(row, event, at, end);
            }
        }
    }
    for row in &mut rows {
        let longest = gaps.iter().filter(|gap| gap.span.overlaps(&row.whole));
        row.longest_unavailable_ms = longest.map(|gap| gap.span.ms()).max().unwrap_or(0);
    }
    rows
}

fn note(row: &mut Row, event: &Event, at: u64, end: u64) {
    let lasts = row.lasted.from_us <= at && row.lasted.to_us == end;
    match event {
        Event::FaultProved { proof } => {
            row.proof.clone_from(proof);
            row.lasted.from_us = at;
        }
        Event::FaultEnds => row.lasted.to_us = at,
        Event::Recovered => {
            row.whole.to_us = at;
            row.recovery_ms = at.saturating_sub(row.lasted.to_us) / 1000;
        }
        Event::Accepted { .. } if lasts && row.majority => row.accepted += 1,
        Event::Delivered { .. } if lasts => row.delivered += 1,
        _ => {}
    }
}

/// All rows of one fault together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Which fault.
    pub fault: String,
    /// How often it was run.
    pub runs: usize,
    /// Accepted while it lasted.
    pub accepted: u64,
    /// The longest unavailability of a run: the middle one, the 99th of a hundred, the longest.
    pub unavailable_ms: [u64; 3],
    /// The longest recovery.
    pub recovery_ms: u64,
}

/// Rows of the same fault together, in the order of their names.
#[must_use]
pub fn sums(rows: &[Row]) -> Vec<Sum> {
    let mut by_fault: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_fault.entry(&row.fault).or_default().push(row);
    }
    let sums = by_fault.into_iter().map(|(fault, rows)| {
        let mut gaps: Vec<u64> = rows.iter().map(|row| row.longest_unavailable_ms).collect();
        gaps.sort_unstable();
        let at = |percent: usize| gaps[(gaps.len() * percent).div_ceil(100).max(1) - 1];
        Sum {
            fault: fault.to_owned(),
            runs: rows.len(),
            accepted: rows.iter().map(|row| row.accepted).sum(),
            unavailable_ms: [at(50), at(99), at(100)],
            recovery_ms: rows.iter().map(|row| row.recovery_ms).max().unwrap_or(0),
        }
    });
    sums.collect()
}

/// When which shard answered nobody although a message waited, times without a majority left out.
#[must_use]
pub fn gaps(history: &[Record], shards: u32) -> Vec<Gap> {
    let mut waiting: BTreeMap<u32, Waiting> = BTreeMap::new();
    let mut gaps = Vec::new();
    let end = history.last().map_or(0, |record| record.at_us);
    for record in history {
        let at = record.at_us;
        match &record.event {
            Event::Sent { to, .. } => {
                let shard = waiting.entry(shard_of(to, shards)).or_default();
                shard.since_us.get_or_insert(at);
                shard.open += 1;
            }
            Event::Accepted { to, .. } | Event::Refused { to, .. } => {
                let shard = shard_of(to, shards);
                let state = waiting.entry(shard).or_default();
                if let Some(since) = state.since_us {
                    let span = Span {
                        from_us: since,
                        to_us: at,
                    };
                    gaps.push(Gap { shard, span });
                }
                state.open = state.open.saturating_sub(1);
                state.since_us = (state.open > 0).then_some(at);
            }
            _ => {}
        }
    }
    for (shard, state) in waiting {
        if let Some(since) = state.since_us {
            let span = Span {
                from_us: since,
                to_us: end,
            };
            gaps.push(Gap { shard, span });
        }
    }
    let dark = without_majority(history);
    let pieces = gaps.into_iter().flat_map(|gap| {
        let spans = gap.span.without(&dark);
        spans.into_iter().map(move |span| Gap { span, ..gap })
    });
    pieces.collect()
}

#[derive(Debug, Default)]
struct Waiting {
    open: usize,
    since_us: Option<u64>,
}

/// From injection to recovery of every fault that takes a majority.
fn without_majority(history: &[Record]) -> Vec<Span> {
    let none: &[Gap] = &[];
    let rows = rows(history, none);
    let taken = rows.iter().filter(|row| !row.majority);
    taken.map(|row| row.whole).collect()
}

/// Accepted and delivered in each second, and the median time from send to accepted in it, in milliseconds.
#[must_use]
pub fn seconds(history: &[Record]) -> Vec<Second> {
    let mut seconds: Vec<Second> = Vec::new();
    let mut sent = BTreeMap::new();
    let mut took: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for record in history {
        let at = (record.at_us / 1_000_000) as usize;
        if seconds.len() <= at {
            seconds.resize(at + 1, Second::default());
        }
        match &record.event {
            Event::Sent { client, to, id, .. } => {
                sent.insert((*client, to.as_str(), id.as_str()), record.at_us);
            }
            Event::Accepted { client, to, id, .. } => {
                seconds[at].accepted += 1;
                if let Some(since) = sent.remove(&(*client, to.as_str(), id.as_str())) {
                    took.entry(at).or_default().push(record.at_us - since);
                }
            }
            Event::Delivered { .. } => seconds[at].delivered += 1,
            _ => {}
        }
    }
    for (at, mut took) in took {
        took.sort_unstable();
        seconds[at].median_ms = took[took.len() / 2] / 1000;
        seconds[at].worst_ms = took[took.len() - 1] / 1000;
    }
    seconds
}

/// One second of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Messages accepted.
    pub accepted: u64,
    /// Entries delivered.
    pub delivered: u64,
    /// From send to accepted, in the middle.
    pub median_ms: u64,
    /// The same, at worst.
    pub worst_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{ClientRun, Digest, Place};

    const BOB: &str = "+15550002";

    fn sent(id: &str) -> Event {
        Event::Sent {
            client: ClientRun(1),
            to: BOB.to_owned(),
            id: id.to_owned(),
            body: Digest::of(b""),
            ttl_ms: None,
        }
    }

    fn accepted(id: &str) -> Event {
        Event::Accepted {
            client: ClientRun(1),
            to: BOB.to_owned(),
            id: id.to_owned(),
            place: Place {
                incarnation: 1,
                seq: 1,
            },
        }
    }

    fn begins(majority: bool) -> Event {
        Event::FaultBegins {
            fault: "kill".to_owned(),
            majority,
        }
    }

    fn proved() -> Event {
        Event::FaultProved {
            proof: "seen".to_owned(),
        }
    }

    /// At 1 s, 2 s, ...
    fn history(events: impl IntoIterator<Item = Event>) -> Vec<Record> {
        let at = (1..).map(|second| second * 1_000_000);
        let records = at.zip(events);
        records
            .map(|(at_us, event)| Record { at_us, event })
            .collect()
    }

    fn longest_ms(history: &[Record]) -> u64 {
        let gaps = gaps(history, 8);
        gaps.iter().map(|gap| gap.span.ms()).max().unwrap_or(0)
    }

    #[test]
    fn only_time_in_which_somebody_waits_is_a_gap() {
        let quiet = history([
            sent("a"),
            accepted("a"),
            Event::Recovered,
            sent("b"),
            accepted("b"),
        ]);
        assert_eq!(longest_ms(&quiet), 1000);
        let waiting = history([sent("a"), Event::Recovered, sent("b"), accepted("b")]);
        assert_eq!(longest_ms(&waiting), 3000);
        let never = history([sent("a"), Event::Recovered, Event::Recovered]);
        assert_eq!(longest_ms(&never), 2000);
    }

    #[test]
    fn time_without_a_majority_is_left_out() {
        let all = |majority| {
            history([
                sent("a"),
                begins(majority),
                proved(),
                Event::FaultEnds,
                Event::Recovered,
                accepted("a"),
            ])
        };
        assert_eq!(longest_ms(&all(true)), 5000);
        assert_eq!(longest_ms(&all(false)), 1000);
    }

    #[test]
    fn what_a_fault_without_a_majority_struck_was_accepted_before_it() {
        let history = history([
            sent("a"),
            accepted("a"),
            Event::Recovered,
            sent("b"),
            accepted("b"),
            begins(false),
            proved(),
            sent("c"),
            accepted("c"),
        ]);
        assert_eq!(rows(&history, &[])[0].accepted, 1);
    }

    #[test]
    fn only_what_came_while_a_fault_lasted_counts_as_life() {
        let history = history([
            sent("a"),
            begins(true),
            accepted("a"),
            proved(),
            sent("b"),
            accepted("b"),
            Event::FaultEnds,
            sent("c"),
            accepted("c"),
            Event::Recovered,
        ]);
        let rows = rows(&history, &gaps(&history, 8));
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].accepted, rows[0].recovery_ms), (1, 3000));
        assert_eq!((rows[0].whole.ms(), rows[0].lasted.ms()), (8000, 3000));
        assert_eq!(rows[0].longest_unavailable_ms, 2000);
    }
}
