//! Ticks: each has a cause that came before it, none goes back, and none that is owed is missing.

use std::collections::BTreeMap;

use super::facts::{Client, Facts, Mark, Message, When};
use super::{MessageKey, Violation};
use crate::history::{ClientRun, Place, Tick};

pub(super) fn check(facts: &Facts) -> Vec<Violation> {
    let mut found = Vec::new();
    for (run, client) in &facts.clients {
        found.extend(caused(facts, *run, client));
        found.extend(forward(*run, client));
        found.extend(owed(facts, *run, client));
    }
    found
}

fn caused(facts: &Facts, run: ClientRun, client: &Client) -> Vec<Violation> {
    let baseless = client
        .ticks
        .iter()
        .filter(|(when, key, tick)| !has_cause(facts, *when, key, *tick));
    baseless
        .map(|(_, key, tick)| Violation::TickWithoutCause {
            message: key.clone(),
            tick: *tick,
            client: run,
        })
        .collect()
}

fn has_cause(facts: &Facts, when: When, key: &MessageKey, tick: Tick) -> bool {
    let Some(message) = facts.messages.get(key) else {
        return false;
    };
    let Some((_, place)) = message.accepted() else {
        return false;
    };
    let before = |mark: Mark| mark.when < when && mark.covers(place);
    match tick {
        Tick::Accepted => true,
        Tick::Delivered => facts.acks(&key.to).any(before),
        Tick::Read => facts.reads(&key.to, &key.from.user).any(before),
        Tick::Expired => {
            message.may_have_expired(when.at_us) && !kept_in_time(facts, key, message, place)
        }
    }
}

/// Whether a device had it for certain before its time ran out.
fn kept_in_time(facts: &Facts, key: &MessageKey, message: &Message, place: Place) -> bool {
    let mut acks = facts.acks(&key.to);
    acks.any(|ack| ack.committed && ack.covers(place) && !message.may_have_expired(ack.when.at_us))
}

fn forward(run: ClientRun, client: &Client) -> Vec<Violation> {
    let mut furthest: BTreeMap<&MessageKey, Tick> = BTreeMap::new();
    let mut found = Vec::new();
    for (_, key, tick) in &client.ticks {
        let first = *furthest.entry(key).or_insert(*tick);
        let settled = matches!((first, tick), (Tick::Read | Tick::Delivered, Tick::Expired));
        if *tick < first || settled {
            found.push(Violation::TickBack {
                message: key.clone(),
                first,
                then: *tick,
                client: run,
            });
        }
        furthest.insert(key, first.max(*tick));
    }
    found
}

/// A client that waited to the end knows of everything that was committed before.
fn owed(facts: &Facts, run: ClientRun, client: &Client) -> Vec<Violation> {
    let Some(settled) = client.settled else {
        return Vec::new();
    };
    let mut furthest: BTreeMap<&MessageKey, Tick> = BTreeMap::new();
    for (_, key, tick) in &client.ticks {
        let known = furthest.entry(key).or_insert(*tick);
        *known = (*known).max(*tick);
    }
    let mut found = Vec::new();
    for key in &client.sent {
        let Some((_, place)) = facts.messages[key].accepted() else {
            continue;
        };
        let known = furthest.get(key).copied().unwrap_or(Tick::Accepted);
        let due = due(facts, key, place, settled);
        if known < due {
            found.push(Violation::TickMissing {
                message: key.clone(),
                tick: due,
                client: run,
            });
        }
    }
    found
}

fn due(facts: &Facts, key: &MessageKey, place: Place, settled: When) -> Tick {
    let committed = |mark: Mark| mark.committed && mark.when < settled && mark.covers(place);
    if facts.reads(&key.to, &key.from.user).any(committed) {
        Tick::Read
    } else if facts.acks(&key.to).any(committed) {
        Tick::Delivered
    } else {
        Tick::Accepted
    }
}
