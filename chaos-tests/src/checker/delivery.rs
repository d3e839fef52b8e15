//! What came, against what was accepted: nothing lost, nothing invented, nothing twice, nothing removed too early.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Delivery, Facts, Life, Message, When};
use super::{MessageKey, Violation};
use crate::history::{ClientRun, Device, Place};

pub(super) fn check(facts: &Facts) -> Vec<Violation> {
    let mut found: Vec<Violation> = facts
        .deliveries
        .iter()
        .filter_map(|delivery| genuine(facts, delivery))
        .collect();
    found.extend(once(facts));
    found.extend(gone(facts));
    found.extend(complete(facts));
    found
}

/// A delivery is of a message that was sent, as it was sent, and not refused.
fn genuine(facts: &Facts, delivery: &Delivery) -> Option<Violation> {
    let message = delivery.message.clone();
    let device = delivery.device.clone();
    let Some(sent) = facts.messages.get(&message) else {
        return Some(Violation::NeverSent { message, device });
    };
    if !sent.sends.iter().any(|send| send.body == delivery.body) {
        return Some(Violation::BodyChanged { message, device });
    }
    if sent.refused_for_good() {
        return Some(Violation::RefusedYetDelivered { message, device });
    }
    None
}

/// One place for each message at each device, and none twice for a client that keeps its cursor.
fn once(facts: &Facts) -> Vec<Violation> {
    let mut places: BTreeMap<(&Device, &MessageKey), Place> = BTreeMap::new();
    let mut seen: BTreeSet<(ClientRun, Place)> = BTreeSet::new();
    let mut found = Vec::new();
    for delivery in &facts.deliveries {
        let place = delivery.place;
        let first = *places
            .entry((&delivery.device, &delivery.message))
            .or_insert(place);
        let again_here = !seen.insert((delivery.client, place));
        let cursor = facts.clients[&delivery.client].cursor;
        let behind_cursor = cursor.is_some_and(|cursor| {
            cursor.incarnation == place.incarnation && place.seq <= cursor.seq
        });
        if first != place || again_here || behind_cursor {
            found.push(Violation::Duplicated {
                message: delivery.message.clone(),
                device: delivery.device.clone(),
                first,
                again: place,
            });
        }
    }
    found
}

/// What a device has acknowledged for certain is not handed to it again.
fn gone(facts: &Facts) -> impl Iterator<Item = Violation> + '_ {
    let came_back = |delivery: &&Delivery| {
        let started = facts.clients[&delivery.client].started;
        facts.is_committed(&delivery.device, delivery.place, started)
    };
    let came_back = facts.deliveries.iter().filter(came_back);
    came_back.map(|delivery| Violation::CameBack {
        message: delivery.message.clone(),
        device: delivery.device.clone(),
    })
}

/// Everything accepted came to every device that was there and has been drained.
fn complete(facts: &Facts) -> Vec<Violation> {
    let mut came: BTreeMap<&MessageKey, BTreeSet<&Device>> = BTreeMap::new();
    for delivery in &facts.deliveries {
        came.entry(&delivery.message)
            .or_default()
            .insert(&delivery.device);
    }
    let nobody = BTreeSet::new();
    let mut found = Vec::new();
    for (key, message) in &facts.messages {
        let got = came.get(key).unwrap_or(&nobody);
        for (device, life) in &facts.devices {
            if device.user == key.to && owed(message, life) && !got.contains(device) {
                found.push(missing(key, device, !got.is_empty()));
            }
        }
    }
    found
}

fn owed(message: &Message, life: &Life) -> bool {
    let (Some((accepted, _)), Some(sent), Some(added), Some(drained)) = (
        message.accepted(),
        message.first_sent(),
        life.added,
        life.drained,
    ) else {
        return false;
    };
    let drained_after = |accepted: When| accepted < drained;
    life.removed.is_none()
        && added < sent
        && drained_after(accepted)
        && !message.may_have_expired(drained.at_us)
}

fn missing(key: &MessageKey, device: &Device, others_got_it: bool) -> Violation {
    let message = key.clone();
    let device = device.clone();
    if others_got_it {
        Violation::RemovedEarly { message, device }
    } else {
        Violation::Lost { message, device }
    }
}
