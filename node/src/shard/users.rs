//! Accounts and devices.
//!
//! A device's number is never given to another, not even after the account was removed and created again; that raises
//! the incarnation and begins a new queue. A removed account leaves its row behind, for these numbers, and its other
//! rows go in bounded steps, before which it cannot be created again.

use roost_proto::storage::{
    AddDevice, Device, DeviceOutcome, Outcome, RemoveAccount, RemoveDevice, Trim, User, outcome,
};
use roost_proto::v1::Code;

use super::refusal::{done, refused};
use super::step::Step;
use super::{UserFill, delivered, expiry, queue, receipts};
use crate::storage::Error;
use crate::storage::keys::Key;

/// Adds a device, and creates the account if there is none. Again with the same key: the same answer.
pub(super) fn add_device(step: &mut Step<'_, '_>, add: &AddDevice) -> Result<Outcome, Error> {
    let before = step.txn.user(&add.user)?;
    let created = before.as_ref().is_none_or(|user| user.removed);
    if before.as_ref().is_some_and(|u| u.removed && u.trimming) {
        return Ok(refused(
            Code::Overloaded,
            "the account's removal has not finished",
        ));
    }
    let mut user = match before {
        Some(user) if !user.removed => user,
        Some(removed) => next_incarnation(&removed),
        None => next_incarnation(&User::default()),
    };
    if let Some(known) = user.devices.iter().find(|known| known.name == add.name) {
        return Ok(if known.key_hash == add.key_hash {
            added(known.device, user.incarnation)
        } else {
            refused(Code::AlreadyExists, "a device of this name has another key")
        });
    }
    if user.devices.len() >= step.limits.devices_max as usize {
        return Ok(refused(
            Code::TooManyDevices,
            "the account has as many devices as it may",
        ));
    }
    if !delivered::has_room(&user) {
        return Ok(refused(
            Code::Overloaded,
            "too many devices were added while entries wait for earlier ones",
        ));
    }
    let device = user.next_device;
    let new = new_device(&user, add);
    user.devices.push(new);
    step.note_user(UserFill::Devices(user.devices.len()));
    user.next_device += 1;
    if created {
        step.sums.accounts += 1;
    }
    let incarnation = user.incarnation;
    step.txn.put_user(&add.user, user);
    Ok(added(device, incarnation))
}

/// Removes a device: it holds no entries back any more.
pub(super) fn remove_device(
    step: &mut Step<'_, '_>,
    remove: &RemoveDevice,
) -> Result<Outcome, Error> {
    let Some(mut user) = step.txn.user(&remove.user)? else {
        return Ok(refused(Code::NotFound, "no such account"));
    };
    let Some(at) = user.devices.iter().position(|d| d.name == remove.name) else {
        return Ok(done(false));
    };
    let device = user.devices.remove(at).device;
    step.device_removed(&remove.user, device);
    queue::settle(step, &remove.user, &mut user)?;
    receipts::settle(step, &remove.user, &mut user)?;
    step.txn.put_user(&remove.user, user);
    Ok(done(false))
}

/// Removes an account with all it has. Senders of what was never delivered are told that it has expired.
pub(super) fn remove_account(
    step: &mut Step<'_, '_>,
    remove: &RemoveAccount,
) -> Result<Outcome, Error> {
    let Some(mut user) = step.txn.user(&remove.user)? else {
        return Ok(refused(Code::NotFound, "no such account"));
    };
    if user.removed {
        return Ok(done(false));
    }
    for device in std::mem::take(&mut user.devices) {
        step.device_removed(&remove.user, device.device);
    }
    user.removed = true;
    user.read_marks = 0;
    user.reads_ahead.clear();
    user.done_seq = user.next_seq - 1;
    step.sums.accounts -= 1;
    expiry::clear(step, &remove.user, &mut user);
    if clean(step, &remove.user, &mut user)? != Rest::Nothing {
        queue::leave_trim(step, &remove.user, &mut user);
    }
    step.txn.put_user(&remove.user, user);
    Ok(done(false))
}

/// Goes on deleting what nobody needs any more.
pub(super) fn trim(step: &mut Step<'_, '_>, trim: &Trim) -> Result<Outcome, Error> {
    let Some(mut user) = step.txn.user(&trim.user)?.filter(|user| user.trimming) else {
        return Ok(done(false));
    };
    let rest = clean(step, &trim.user, &mut user)?;
    if rest == Rest::Nothing {
        let home = step.home();
        user.trimming = false;
        step.txn.delete_row(&Key::Trim(home, &trim.user));
    }
    step.txn.put_user(&trim.user, user);
    Ok(match rest {
        Rest::Nothing => done(false),
        Rest::More => done(true),
        Rest::Blocked => refused(Code::Overloaded, "too many receipts wait for another shard"),
    })
}

/// What a cleaning step has left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    More,
    /// Senders cannot be told yet: the outbox is full.
    Blocked,
}

fn clean(step: &mut Step<'_, '_>, name: &str, user: &mut User) -> Result<Rest, Error> {
    let told = queue::trim_entries(step, name, user)?;
    let receipts_gone = receipts::trim(step, name, user)?;
    let marks_gone = !user.removed || receipts::trim_marks(step, name)?;
    delivered::advance(step, name, user)?;
    let told = delivered::tell(step, name, user)? && told;
    Ok(
        match (receipts_gone && marks_gone, queue::is_settled(user)) {
            (true, true) => Rest::Nothing,
            (true, false) if !told => Rest::Blocked,
            _ => Rest::More,
        },
    )
}

fn next_incarnation(before: &User) -> User {
    User {
        incarnation: before.incarnation + 1,
        next_device: before.next_device.max(1),
        next_seq: 1,
        // Not from 1 again: an acknowledgement of receipts names no incarnation.
        next_revision: before.next_revision.max(1),
        ..User::default()
    }
}

/// A new device begins at the end; the first of a user whose entries were kept begins with those.
fn new_device(user: &User, add: &AddDevice) -> Device {
    let first = user.devices.is_empty();
    Device {
        device: user.next_device,
        name: add.name.clone(),
        key_hash: add.key_hash.clone(),
        cursor_seq: if first {
            user.done_seq
        } else {
            user.next_seq - 1
        },
        receipt_revision: if first { 0 } else { user.next_revision - 1 },
    }
}

fn added(device: u32, incarnation: u64) -> Outcome {
    Outcome {
        outcome: Some(outcome::Outcome::Device(DeviceOutcome {
            device,
            incarnation,
        })),
    }
}
