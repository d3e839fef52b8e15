//! Time to live: what is due, and when to look again.
//!
//! A user has one expiry row, at the earliest time that any of its entries may expire, rounded up; so a queue costs one
//! row here whatever its length. The price is that a pass looks at every entry of a due queue. The rounding grows with
//! the queue, so that messages with a short time to live cannot make a long queue be read again and again. A pass goes
//! in bounded steps and remembers in the user's row how far it is.

use roost_proto::storage::{Expire, Outcome, User};

use super::delivered;
use super::queue;
use super::refusal::done;
use super::step::Step;
use crate::storage::Error;
use crate::storage::keys::Key;

/// How many entries one command looks at, over all users that it names.
pub const EXPIRE_STEP_ENTRIES_MAX: usize = 4096;

/// An expiry row is due at a multiple of this, for every thousand entries that the queue holds.
pub const EXPIRY_ROUNDING_MS: u64 = 1000;

/// How long what is due waits when its senders cannot be told yet, because the outbox is full or earlier entries wait.
pub const EXPIRY_POSTPONED_MS: u64 = 10_000;

/// Sees to it that the user's expiry row is due when this entry expires. The caller stores `user`.
pub(super) fn note(step: &mut Step<'_, '_>, name: &str, user: &mut User, expires_ms: u64) {
    let rounding = EXPIRY_ROUNDING_MS * (1 + user.entries / 1000);
    let due_ms = expires_ms.div_ceil(rounding).saturating_mul(rounding);
    if user.expiry_due_ms == 0 || due_ms < user.expiry_due_ms {
        replace(step, name, user, due_ms);
    }
}

/// Removes the expiry row of a queue that is empty. The caller stores `user`.
pub(super) fn clear(step: &mut Step<'_, '_>, name: &str, user: &mut User) {
    replace(step, name, user, 0);
    user.expiry_seq = 0;
    user.expiry_next_ms = 0;
}

/// Deletes what is due in the queues of these users, in order, as far as one step goes.
pub(super) fn expire(step: &mut Step<'_, '_>, expire: &Expire) -> Result<Outcome, Error> {
    let mut budget = EXPIRE_STEP_ENTRIES_MAX;
    let mut more = false;
    for name in &expire.users {
        if budget == 0 {
            more = true;
            break;
        }
        more |= pass(step, name, &mut budget)?;
    }
    Ok(done(more))
}

/// One user's turn. True if its queue has not been looked at to the end.
fn pass(step: &mut Step<'_, '_>, name: &str, budget: &mut usize) -> Result<bool, Error> {
    // Looking at a user costs a read, too.
    *budget -= 1;
    if !step.owns(name) {
        return Ok(false);
    }
    let Some(mut user) = step.txn.user(name)?.filter(|user| !user.removed) else {
        return Ok(false);
    };
    if user.expiry_due_ms == 0 || user.expiry_due_ms > step.now() {
        return Ok(false);
    }
    let first = user.expiry_seq.max(user.done_seq) + 1;
    // At least one, or the last user of a full command would never move.
    let max = (*budget).max(1);
    let seen = queue::known(step, name, first, user.next_seq, max)?;
    *budget -= seen.len().min(*budget);
    let ended = seen.len() < max;
    let last_seq = seen.last().map_or(user.expiry_seq, |entry| entry.seq);
    let now = step.now();
    // What a device has acknowledged waits until its sender can be told so, which is after all that came before it.
    let untold = |seq: u64| seq > user.told_seq && delivered::covers(&user, seq);
    let (gone, kept): (Vec<_>, Vec<_>) = seen
        .into_iter()
        .partition(|entry| entry.expires_ms <= now && !untold(entry.seq));
    if !delivered::report(step, name, &user, &gone)? {
        // Another's full outbox must not keep the users behind this one from their turn.
        let later_ms = now.saturating_add(EXPIRY_POSTPONED_MS);
        replace(step, name, &mut user, later_ms);
        step.txn.put_user(name, user);
        return Ok(false);
    }
    user.expiry_seq = last_seq;
    for entry in &kept {
        let again_ms = match entry.expires_ms <= now {
            true => now.saturating_add(EXPIRY_POSTPONED_MS),
            false => entry.expires_ms,
        };
        user.expiry_next_ms = match user.expiry_next_ms {
            0 => again_ms,
            next_ms => next_ms.min(again_ms),
        };
    }
    for entry in &gone {
        queue::remove(step, name, &mut user, entry);
    }
    if !gone.is_empty() {
        close_head(step, name, &mut user)?;
        queue::settle(step, name, &mut user)?;
        step.wake(name);
    }
    if ended {
        end_pass(step, name, &mut user);
    }
    step.txn.put_user(name, user);
    Ok(!ended)
}

/// Moves `done_seq` over what has expired at the head of the queue.
fn close_head(step: &mut Step<'_, '_>, name: &str, user: &mut User) -> Result<(), Error> {
    let head = queue::known(step, name, user.done_seq + 1, user.next_seq, 1)?;
    let next = head.first().map_or(user.next_seq, |entry| entry.seq);
    let trimmed = user.trimmed_seq == user.done_seq;
    user.done_seq = next - 1;
    if trimmed {
        user.trimmed_seq = user.done_seq;
    }
    Ok(())
}

fn end_pass(step: &mut Step<'_, '_>, name: &str, user: &mut User) {
    let next_ms = user.expiry_next_ms;
    clear(step, name, user);
    // Rows that only wait for their deletion expire nothing; a queue that still has others has one to wait for.
    if next_ms != 0 {
        note(step, name, user, next_ms);
    }
}

fn replace(step: &mut Step<'_, '_>, name: &str, user: &mut User, due_ms: u64) {
    let home = step.home();
    if user.expiry_due_ms != 0 {
        let old = Key::Expiry(home, user.expiry_due_ms, name);
        step.txn.delete_row(&old);
    }
    if due_ms != 0 {
        step.txn.put_empty(&Key::Expiry(home, due_ms, name));
    }
    user.expiry_due_ms = due_ms;
}
