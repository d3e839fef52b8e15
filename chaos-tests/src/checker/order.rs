//! Order and gaps: of entries within a queue, and of one client's messages within a conversation.

use std::collections::BTreeMap;

use super::facts::{Client, Facts, Incoming, Message};
use super::{MessageKey, Violation};
use crate::history::{ClientRun, Device, Place};

pub(super) fn check(facts: &Facts) -> Vec<Violation> {
    let mut found: Vec<Violation> = facts
        .clients
        .iter()
        .flat_map(|(run, client)| queue(facts, *run, client))
        .collect();
    let places = places(facts);
    for client in facts.clients.values() {
        for conversation in conversations(facts, client) {
            found.extend(answered_in_order(facts, &conversation));
            for (device, at_device) in &places {
                found.extend(delivered_in_order(facts, &conversation, device, at_device));
            }
        }
    }
    found
}

/// What one client receives goes up by one, except over ranges that it was told have expired, and over what an earlier
/// client of its device had: that one's acknowledgement may be committed when this one, which lacks its cursor, receives.
fn queue(facts: &Facts, run: ClientRun, client: &Client) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut last = client.cursor;
    for (when, incoming) in &client.incoming {
        let (first, end) = match *incoming {
            Incoming::Entry(place) => (place, place),
            Incoming::Skipped(first, seq) => (first, Place { seq, ..first }),
        };
        if let Some(last) = last {
            let jumped = Place {
                seq: first.seq.saturating_sub(1),
                ..first
            };
            let had = || facts.another_asked(&client.device, run, jumped, *when);
            let wrong = step(&client.device, last, first);
            found.extend(
                wrong.filter(|wrong| !matches!(wrong, Violation::QueueGap { .. } if had())),
            );
        }
        last = Some(last.map_or(end, |last| last.max(end)));
    }
    found
}

fn step(device: &Device, first: Place, then: Place) -> Option<Violation> {
    let device = device.clone();
    // The same place again is a duplicate, which is told elsewhere.
    if then < first {
        return Some(Violation::QueueOutOfOrder {
            device,
            first,
            then,
        });
    }
    let same_queue = then.incarnation == first.incarnation;
    (same_queue && then.seq > first.seq + 1).then_some(Violation::QueueGap {
        device,
        first,
        then,
    })
}

/// Where each message first stood, by device.
fn places(facts: &Facts) -> BTreeMap<&Device, BTreeMap<&MessageKey, Place>> {
    let mut places: BTreeMap<&Device, BTreeMap<&MessageKey, Place>> = BTreeMap::new();
    for delivery in &facts.deliveries {
        places
            .entry(&delivery.device)
            .or_default()
            .entry(&delivery.message)
            .or_insert(delivery.place);
    }
    places
}

type Conversation<'a> = Vec<&'a MessageKey>;

/// What a client alone sent, by recipient, in its order. What two clients sent under one id has no order of its own.
fn conversations<'a>(facts: &'a Facts, client: &'a Client) -> Vec<Conversation<'a>> {
    let mut conversations: BTreeMap<&str, Conversation<'_>> = BTreeMap::new();
    for key in &client.sent {
        if sent_by_one(&facts.messages[key]) {
            conversations.entry(&key.to).or_default().push(key);
        }
    }
    conversations.into_values().collect()
}

fn sent_by_one(message: &Message) -> bool {
    let mut clients = message.sends.iter().map(|send| send.client);
    let first = clients.next();
    clients.all(|client| Some(client) == first)
}

fn answered_in_order(facts: &Facts, conversation: &[&MessageKey]) -> Vec<Violation> {
    let placed = conversation.iter().filter_map(|&key| {
        let (_, place) = facts.messages[key].accepted()?;
        Some((key, place))
    });
    descents(placed)
}

fn delivered_in_order(
    facts: &Facts,
    conversation: &[&MessageKey],
    device: &Device,
    places: &BTreeMap<&MessageKey, Place>,
) -> Vec<Violation> {
    let came = |key: &&MessageKey| places.contains_key(*key);
    let (Some(first), Some(last)) = (
        conversation.iter().position(came),
        conversation.iter().rposition(came),
    ) else {
        return Vec::new();
    };
    let mut found = descents(
        conversation[first..=last]
            .iter()
            .filter_map(|&key| Some((key, *places.get(key)?))),
    );
    let missing = conversation[first..=last]
        .iter()
        .filter(|key| !came(key) && !excused(&facts.messages[**key]));
    found.extend(missing.map(|&key| Violation::Gap {
        message: key.clone(),
        device: device.clone(),
    }));
    found
}

fn excused(message: &Message) -> bool {
    message.refused_for_good() || message.may_have_expired(u64::MAX)
}

/// Neighbours whose places go down.
fn descents<'a>(placed: impl Iterator<Item = (&'a MessageKey, Place)>) -> Vec<Violation> {
    let placed: Vec<_> = placed.collect();
    placed
        .windows(2)
        .filter(|pair| pair[1].1 < pair[0].1)
        .map(|pair| Violation::OutOfOrder {
            earlier: pair[0].0.clone(),
            later: pair[1].0.clone(),
        })
        .collect()
}
