//! Hand-made histories: a clean one, and for each violation one that contains it and nothing else.

use super::*;
use crate::history::{Digest, Event};

const ANN: &str = "+15550001";
const BOB: &str = "+15550002";

/// Ann's one client (1) sends to Bob, whose devices 1 and 2 listen as clients 2 and 3.
#[derive(Clone)]
struct Story {
    events: Vec<(u64, Event)>,
    now_ms: u64,
}

fn device(user: &str, device: u32) -> Device {
    let user = user.to_owned();
    Device { user, device }
}

fn place(seq: u64) -> Place {
    Place {
        incarnation: 1,
        seq,
    }
}

fn key(id: &str) -> MessageKey {
    MessageKey {
        from: device(ANN, 1),
        to: BOB.to_owned(),
        id: id.to_owned(),
    }
}

const SENDER: ClientRun = ClientRun(1);
const FIRST: ClientRun = ClientRun(2);
const SECOND: ClientRun = ClientRun(3);

impl Story {
    fn new() -> Self {
        let mut story = Self {
            events: Vec::new(),
            now_ms: 0,
        };
        for device in [device(ANN, 1), device(BOB, 1), device(BOB, 2)] {
            story.add(Event::DeviceAdded { device });
        }
        story.starts(SENDER, device(ANN, 1), None);
        story.starts(FIRST, device(BOB, 1), Some(place(0)));
        story.starts(SECOND, device(BOB, 2), Some(place(0)));
        story
    }

    fn add(&mut self, event: Event) -> &mut Self {
        self.now_ms += 1;
        self.events.push((self.now_ms, event));
        self
    }

    fn wait_ms(&mut self, ms: u64) -> &mut Self {
        self.now_ms += ms;
        self
    }

    fn starts(&mut self, client: ClientRun, device: Device, cursor: Option<Place>) -> &mut Self {
        self.add(Event::Started {
            client,
            device,
            cursor,
        })
    }

    fn sends_ttl(&mut self, id: &str, ttl_ms: Option<u64>) -> &mut Self {
        self.add(Event::Sent {
            client: SENDER,
            to: BOB.to_owned(),
            id: id.to_owned(),
            body: Digest::of(id.as_bytes()),
            ttl_ms,
        })
    }

    fn sends(&mut self, ids: &[&str]) -> &mut Self {
        for id in ids {
            self.sends_ttl(id, None);
        }
        self
    }

    fn accepted(&mut self, id: &str, seq: u64) -> &mut Self {
        self.add(Event::Accepted {
            client: SENDER,
            to: BOB.to_owned(),
            id: id.to_owned(),
            place: place(seq),
        })
    }

    fn refused(&mut self, id: &str, code: &str, retryable: bool) -> &mut Self {
        self.add(Event::Refused {
            client: SENDER,
            to: BOB.to_owned(),
            id: id.to_owned(),
            code: code.to_owned(),
            retryable,
        })
    }

    fn delivered(&mut self, client: ClientRun, id: &str, seq: u64) -> &mut Self {
        self.delivered_body(client, id, seq, id)
    }

    fn delivered_body(&mut self, client: ClientRun, id: &str, seq: u64, body: &str) -> &mut Self {
        self.add(Event::Delivered {
            client,
            place: place(seq),
            from: device(ANN, 1),
            id: id.to_owned(),
            body: Digest::of(body.as_bytes()),
        })
    }

    fn skipped(&mut self, client: ClientRun, first: u64, last: u64) -> &mut Self {
        self.add(Event::Skipped {
            client,
            first: place(first),
            last,
        })
    }

    fn acked(&mut self, client: ClientRun, seq: u64) -> &mut Self {
        let cursor = place(seq);
        self.add(Event::AckCalled { client, cursor })
            .add(Event::AckCommitted { client, cursor })
    }

    fn read(&mut self, client: ClientRun, seq: u64) -> &mut Self {
        let cursor = place(seq);
        let from = ANN.to_owned();
        self.add(Event::ReadCalled {
            client,
            from: from.clone(),
            cursor,
        })
        .add(Event::ReadCommitted {
            client,
            from,
            cursor,
        })
    }

    fn ticked(&mut self, id: &str, tick: Tick) -> &mut Self {
        self.add(Event::Ticked {
            client: SENDER,
            to: BOB.to_owned(),
            id: id.to_owned(),
            tick,
        })
    }

    /// Both of Bob's devices have listened to the end, and Ann has waited for her ticks.
    fn ends(&mut self) -> &mut Self {
        for device in [device(BOB, 1), device(BOB, 2)] {
            self.add(Event::Drained { device });
        }
        self.add(Event::Settled { client: SENDER })
    }

    fn check(&self) -> Vec<Violation> {
        let records: Vec<Record> = self
            .events
            .iter()
            .map(|(at_ms, event)| Record {
                at_us: at_ms * 1000,
                event: event.clone(),
            })
            .collect();
        super::check(&records)
    }
}

/// One message sent, accepted and delivered to both devices.
fn one() -> Story {
    let mut story = Story::new();
    story.sends(&["a"]).accepted("a", 1);
    story.delivered(FIRST, "a", 1).delivered(SECOND, "a", 1);
    story
}

/// Goal: no false alarm. Method: everything that a good run may contain, once: retries, a refusal and an expiry inside
/// a conversation, a client that starts again without a cursor, all ticks.
#[test]
fn a_clean_history_passes() {
    let mut story = Story::new();
    story.sends(&["a", "b"]).sends_ttl("short", Some(50));
    story.sends(&["full", "c", "b"]);
    story.accepted("a", 1).accepted("b", 2).accepted("short", 3);
    story.refused("full", "QUEUE_FULL", false);
    story.accepted("c", 4).accepted("b", 2);
    story.delivered(FIRST, "a", 1).acked(FIRST, 1);
    story.delivered(FIRST, "b", 2).wait_ms(100);
    let again = ClientRun(9);
    story.starts(again, device(BOB, 1), None);
    story.delivered(again, "b", 2).skipped(again, 3, 3);
    story.delivered(again, "c", 4).acked(again, 4);
    story
        .ticked("a", Tick::Delivered)
        .ticked("short", Tick::Expired);
    story.read(again, 4);
    for id in ["a", "b", "c"] {
        story.ticked(id, Tick::Read);
    }
    story.delivered(SECOND, "a", 1).delivered(SECOND, "b", 2);
    story.skipped(SECOND, 3, 3).delivered(SECOND, "c", 4);
    story.ends();
    assert_eq!(story.check(), []);
}

/// Goal: a cursor brought along is an acknowledgement. Method: a tick that only it can have caused.
#[test]
fn a_cursor_brought_along_causes_ticks() {
    let mut story = one();
    story.starts(ClientRun(9), device(BOB, 1), Some(place(1)));
    story.ticked("a", Tick::Delivered).ends();
    assert_eq!(story.check(), []);
}

/// Goal: what the history leaves open is no violation. Method: no answer, a device not drained, one added too late, one
/// removed.
#[test]
fn the_checker_does_not_guess() {
    let mut story = Story::new();
    story.sends(&["unanswered"]).sends(&["a"]).accepted("a", 2);
    story.add(Event::DeviceAdded {
        device: device(BOB, 3),
    });
    let removed = device(BOB, 2);
    story.add(Event::DeviceRemoved { device: removed });
    for number in [2, 3] {
        story.add(Event::Drained {
            device: device(BOB, number),
        });
    }
    story.add(Event::Settled { client: SENDER });
    assert_eq!(story.check(), []);
}

/// Goal and method: accepted, and neither device gets it.
#[test]
fn a_lost_message_is_found() {
    let mut story = Story::new();
    story.sends(&["a"]).accepted("a", 1).ends();
    let lost = |number| Violation::Lost {
        message: key("a"),
        device: device(BOB, number),
    };
    assert_eq!(story.check(), [lost(1), lost(2)]);
}

/// Goal and method: a time to live that has not run out excuses no loss.
#[test]
fn a_message_lost_before_its_time_is_found() {
    let mut story = Story::new();
    story.sends_ttl("a", Some(60_000)).accepted("a", 1).ends();
    assert_eq!(story.check().len(), 2);
}

/// Goal and method: the first device acknowledges, and the second never gets it.
#[test]
fn a_message_removed_before_every_device_had_it_is_found() {
    let mut story = Story::new();
    story.sends(&["a"]).accepted("a", 1);
    story.delivered(FIRST, "a", 1).acked(FIRST, 1);
    story.ticked("a", Tick::Delivered).ends();
    let early = Violation::RemovedEarly {
        message: key("a"),
        device: device(BOB, 2),
    };
    assert_eq!(story.check(), [early]);
}

/// Goal and method: a delivery under an id that nobody sent.
#[test]
fn an_invented_message_is_found() {
    let mut story = one();
    story.delivered(FIRST, "ghost", 2).ends();
    let invented = Violation::NeverSent {
        message: key("ghost"),
        device: device(BOB, 1),
    };
    assert_eq!(story.check(), [invented]);
}

/// Goal and method: the right id with another body.
#[test]
fn a_changed_body_is_found() {
    let mut story = Story::new();
    story.sends(&["a"]).accepted("a", 1);
    story
        .delivered_body(FIRST, "a", 1, "A")
        .delivered(SECOND, "a", 1);
    story.ends();
    let changed = Violation::BodyChanged {
        message: key("a"),
        device: device(BOB, 1),
    };
    assert_eq!(story.check(), [changed]);
}

/// Goal and method: refused for good, and delivered all the same.
#[test]
fn a_refused_message_that_comes_is_found() {
    let mut story = Story::new();
    story.sends(&["a"]).refused("a", "QUEUE_FULL", false);
    story.delivered(FIRST, "a", 1).ends();
    let came = Violation::RefusedYetDelivered {
        message: key("a"),
        device: device(BOB, 1),
    };
    assert_eq!(story.check(), [came]);
}

/// Goal: each way of getting a message twice. Method: as a second entry; the same entry to the same client; an entry
/// behind the cursor that a client brought.
#[test]
fn a_duplicate_is_found() {
    let duplicated = |first, again| Violation::Duplicated {
        message: key("a"),
        device: device(BOB, 1),
        first: place(first),
        again: place(again),
    };
    let mut second_entry = one();
    second_entry.delivered(FIRST, "a", 2).ends();
    assert_eq!(second_entry.check(), [duplicated(1, 2)]);

    let mut same_entry = one();
    same_entry.delivered(FIRST, "a", 1).ends();
    assert_eq!(same_entry.check(), [duplicated(1, 1)]);

    let mut behind_cursor = one();
    let again = ClientRun(9);
    behind_cursor.starts(again, device(BOB, 1), Some(place(1)));
    behind_cursor.delivered(again, "a", 1).ends();
    assert!(behind_cursor.check().contains(&duplicated(1, 1)));
}

/// Goal: an entry that is handed out after its acknowledgement was committed is found, as a leader that no longer leads
/// would do it. Method: to a client that begins later, without a cursor; not to one that was there before, and not to the
/// other device.
#[test]
fn what_comes_back_is_found() {
    let again = ClientRun(9);
    let mut before = one();
    before.starts(again, device(BOB, 1), None);
    before
        .acked(FIRST, 1)
        .delivered(again, "a", 1)
        .acked(SECOND, 1);
    assert_eq!(before.ticked("a", Tick::Delivered).ends().check(), []);

    let mut other = one();
    other.acked(SECOND, 1).starts(again, device(BOB, 1), None);
    other.delivered(again, "a", 1).ticked("a", Tick::Delivered);
    assert_eq!(other.ends().check(), []);

    let mut after = one();
    after.acked(FIRST, 1).starts(again, device(BOB, 1), None);
    after.delivered(again, "a", 1).ticked("a", Tick::Delivered);
    let came_back = Violation::CameBack {
        message: key("a"),
        device: device(BOB, 1),
    };
    assert_eq!(after.ends().check(), [came_back]);
}

/// Goal: a conversation out of order is found. Method: answers that give the later message the earlier place; and
/// without any answer, the deliveries alone.
#[test]
fn messages_out_of_order_are_found() {
    let swapped = [Violation::OutOfOrder {
        earlier: key("a"),
        later: key("b"),
    }];
    let mut answers = Story::new();
    answers.sends(&["a", "b"]).accepted("a", 2).accepted("b", 1);
    assert_eq!(answers.check(), swapped);

    let mut deliveries = Story::new();
    deliveries.sends(&["a", "b"]);
    deliveries.delivered(FIRST, "b", 1).delivered(FIRST, "a", 2);
    assert_eq!(deliveries.check(), swapped);
}

/// Goal and method: entries that go back, and numbers that nobody accounts for.
#[test]
fn a_queue_that_goes_back_or_jumps_is_found() {
    let mut back = Story::new();
    back.sends(&["a"])
        .skipped(FIRST, 1, 3)
        .delivered(FIRST, "a", 2);
    let first = place(3);
    let then = place(2);
    assert_eq!(
        back.check(),
        [Violation::QueueOutOfOrder {
            device: device(BOB, 1),
            first,
            then
        }]
    );

    let mut jump = Story::new();
    jump.sends(&["a"]).delivered(FIRST, "a", 3);
    let first = place(0);
    let then = place(3);
    assert_eq!(
        jump.check(),
        [Violation::QueueGap {
            device: device(BOB, 1),
            first,
            then
        }]
    );
}

/// Goal: a device that has lost its cursor may miss what it acknowledged before, and nothing else. Method: the
/// acknowledgement of two by an earlier client of the device is committed while the next client receives. Found by a
/// simulated run in which a cut had held that acknowledgement up.
#[test]
fn what_a_device_acknowledged_before_is_no_gap() {
    const AGAIN: ClientRun = ClientRun(4);
    let story = |asked: u64| {
        let mut story = Story::new();
        story.sends(&["a", "b", "c"]);
        story.delivered(FIRST, "a", 1).delivered(FIRST, "b", 2);
        story.add(Event::AckCalled {
            client: FIRST,
            cursor: place(asked),
        });
        story.starts(AGAIN, device(BOB, 1), None);
        story.delivered(AGAIN, "a", 1).delivered(AGAIN, "c", 3);
        story.check()
    };
    assert_eq!(story(2), []);
    let gap = Violation::QueueGap {
        device: device(BOB, 1),
        first: place(1),
        then: place(3),
    };
    assert_eq!(story(1), [gap]);
}

/// Goal: a hole in a conversation is found even when the queue's numbers are dense and no answer ever came. Method: the
/// middle one of three is missing.
#[test]
fn a_gap_in_a_conversation_is_found() {
    let mut story = Story::new();
    story.sends(&["a", "b", "c"]);
    story.delivered(FIRST, "a", 1).delivered(FIRST, "c", 2);
    let gap = Violation::Gap {
        message: key("b"),
        device: device(BOB, 1),
    };
    assert_eq!(story.check(), [gap]);
}

/// Goal and method: one id, two places; one id, accepted and refused for good.
#[test]
fn two_answers_are_found() {
    let two = |then: &str| {
        [Violation::TwoAnswers {
            message: key("a"),
            first: "accepted at 1:1".to_owned(),
            then: then.to_owned(),
        }]
    };
    let mut places = one();
    places.accepted("a", 2).ends();
    assert_eq!(places.check(), two("accepted at 1:2"));

    let mut refused = Story::new();
    refused.sends(&["a"]).accepted("a", 1);
    refused.refused("a", "QUEUE_FULL", false);
    assert_eq!(refused.check(), two("QUEUE_FULL"));
}

/// Goal: every kind of wrong error. Method: final called retryable and the reverse, a code for what is broken, and
/// `NOT_FOUND` for a user who was there.
#[test]
fn a_wrong_error_is_found() {
    let cases = [
        ("QUEUE_FULL", true),
        ("OVERLOADED", false),
        ("INTERNAL", false),
        ("NONSENSE", true),
        ("NOT_FOUND", false),
    ];
    for (code, retryable) in cases {
        let mut story = Story::new();
        story.sends(&["a"]).refused("a", code, retryable);
        let found = story.check();
        assert!(
            matches!(&found[..], [Violation::WrongError { code: told, .. }] if told == code),
            "{code}: {found:?}"
        );
    }
}

/// Goal: each tick needs its own cause, in time. Method: each kind without one, and a cause that comes after the tick.
#[test]
fn a_tick_without_cause_is_found() {
    let baseless = |tick| {
        [Violation::TickWithoutCause {
            message: key("a"),
            tick,
            client: SENDER,
        }]
    };
    for tick in [Tick::Delivered, Tick::Read, Tick::Expired] {
        let mut story = one();
        story.ticked("a", tick);
        assert_eq!(story.check(), baseless(tick));
    }
    let mut early = one();
    early.ticked("a", Tick::Delivered).acked(FIRST, 1);
    assert_eq!(early.check(), baseless(Tick::Delivered));

    let mut not_read = one();
    not_read.acked(FIRST, 1).ticked("a", Tick::Read);
    assert_eq!(not_read.check(), baseless(Tick::Read));

    let mut kept = Story::new();
    kept.sends_ttl("a", Some(50)).accepted("a", 1);
    kept.delivered(FIRST, "a", 1).acked(FIRST, 1).wait_ms(100);
    kept.ticked("a", Tick::Expired);
    assert_eq!(kept.check(), baseless(Tick::Expired));
}

/// Goal and method: acknowledged, or read, for certain, and the sender who waited was not told.
#[test]
fn a_missing_tick_is_found() {
    let missing = |tick| {
        [Violation::TickMissing {
            message: key("a"),
            tick,
            client: SENDER,
        }]
    };
    let mut delivered = one();
    delivered.acked(FIRST, 1).ends();
    assert_eq!(delivered.check(), missing(Tick::Delivered));

    let mut read = one();
    read.acked(FIRST, 1).read(FIRST, 1);
    read.ticked("a", Tick::Delivered).ends();
    assert_eq!(read.check(), missing(Tick::Read));
}

/// Goal and method: read, then only delivered; delivered, then expired.
#[test]
fn a_tick_that_goes_back_is_found() {
    let mut story = Story::new();
    story.sends_ttl("a", Some(1)).accepted("a", 1);
    story.wait_ms(10).acked(FIRST, 1).read(FIRST, 1);
    story.ticked("a", Tick::Read).ticked("a", Tick::Delivered);
    story.ticked("a", Tick::Expired);
    let back = |then| Violation::TickBack {
        message: key("a"),
        first: Tick::Read,
        then,
        client: SENDER,
    };
    assert_eq!(story.check(), [back(Tick::Delivered), back(Tick::Expired)]);
}
