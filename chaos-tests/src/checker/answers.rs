//! Answers: the same id gets the same one, and a refusal carries a code that fits.

use super::facts::{Answer, Facts, Message};
use super::{MessageKey, Violation};

/// Refusals of a send that no retry mends.
const FINAL: [&str; 9] = [
    "NOT_FOUND",
    "QUEUE_FULL",
    "TOO_LARGE",
    "INVALID",
    "ALREADY_ANSWERED",
    "ID_TOO_OLD",
    "UNAUTHENTICATED",
    "DISPLACED",
    "NOT_DELIVERED",
];

/// Refusals that say: again, under the same id.
const RETRYABLE: [&str; 8] = [
    "OVERLOADED",
    "DISK_LOW",
    "UNAVAILABLE",
    "POSITION_GAP",
    "UNKNOWN_CHAIN",
    "CLOCK_AHEAD",
    "GO_ELSEWHERE",
    "SLOW_CONSUMER",
];

pub(super) fn check(facts: &Facts) -> Vec<Violation> {
    let mut found = Vec::new();
    for (key, message) in &facts.messages {
        found.extend(same(key, message));
        found.extend(fitting(facts, key, message));
    }
    found
}

fn same(key: &MessageKey, message: &Message) -> Option<Violation> {
    let mut finals = message
        .answers
        .iter()
        .map(|(_, answer)| answer)
        .filter(|answer| is_final(answer));
    let first = finals.next()?;
    let then = finals.find(|answer| *answer != first)?;
    Some(Violation::TwoAnswers {
        message: key.clone(),
        first: shown(first),
        then: shown(then),
    })
}

/// `ALREADY_ANSWERED` says that there was a final answer, which the server no longer has.
fn is_final(answer: &Answer) -> bool {
    match answer {
        Answer::Accepted(_) => true,
        Answer::Refused { code, retryable } => !retryable && code != "ALREADY_ANSWERED",
    }
}

fn shown(answer: &Answer) -> String {
    match answer {
        Answer::Accepted(place) => format!("accepted at {place}"),
        Answer::Refused { code, .. } => code.clone(),
    }
}

fn fitting<'a>(
    facts: &'a Facts,
    key: &'a MessageKey,
    message: &'a Message,
) -> impl Iterator<Item = Violation> + 'a {
    message.answers.iter().filter_map(move |(_, answer)| {
        let Answer::Refused { code, retryable } = answer else {
            return None;
        };
        let why = wrong(facts, key, message, code, *retryable)?;
        Some(Violation::WrongError {
            message: key.clone(),
            code: code.clone(),
            why,
        })
    })
}

fn wrong(
    facts: &Facts,
    key: &MessageKey,
    message: &Message,
    code: &str,
    retryable: bool,
) -> Option<&'static str> {
    if FINAL.contains(&code) {
        if retryable {
            return Some("it is final, and was called retryable");
        }
    } else if RETRYABLE.contains(&code) {
        if !retryable {
            return Some("it is retryable, and was called final");
        }
    } else {
        return Some("no send is refused with this code unless something is broken");
    }
    (code == "NOT_FOUND" && was_there(facts, key, message)).then_some("the recipient was there")
}

/// Whether the recipient had a device before the first send, and never lost one.
fn was_there(facts: &Facts, key: &MessageKey, message: &Message) -> bool {
    let lives = facts.devices.iter();
    let mut lives = lives.filter(|(device, _)| device.user == key.to);
    let none_removed = lives.clone().all(|(_, life)| life.removed.is_none());
    none_removed && lives.any(|(_, life)| life.added.is_some() && life.added < message.first_sent())
}
