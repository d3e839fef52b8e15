//! Holds a history against the contract: every way in which a run can have broken a promise, each with its evidence.
//!
//! Pure: the same history always gives the same answer. It never guesses: what the history leaves open (an answer that
//! never came, a device that was not drained) is no violation. It assumes that no client is thrown away while a final
//! refusal is still on its way to it, because such a hole in a conversation has no witness.
//!
//! `facts` turns the lines into messages, devices and clients; `delivery` (C2, C3, C5), `order` (C4), `ticks` (C6) and
//! `answers` (stable codes) each look at them from one side.

mod answers;
mod delivery;
mod facts;
mod order;
mod ticks;

#[cfg(test)]
mod tests;

use std::fmt;

use crate::history::{ClientRun, Device, Place, Record, Tick};
use facts::Facts;

/// A message: ids are unique within (sender device, recipient).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageKey {
    /// The sender's device.
    pub from: Device,
    /// The recipient.
    pub to: String,
    /// The message id.
    pub id: String,
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Accepted, not expired, and no device of the recipient ever got it.
    #[error("lost: {message} was accepted and never came to {device}, nor to any other device")]
    Lost {
        /// Which.
        message: MessageKey,
        /// A device that was there when it was accepted.
        device: Device,
    },
    /// One device got it, and another that was there did not.
    #[error("removed too early: {message} never came to {device}, though another device got it")]
    RemovedEarly {
        /// Which.
        message: MessageKey,
        /// The device that was forgotten.
        device: Device,
    },
    /// Nobody had sent it.
    #[error("never sent: {message} came to {device}")]
    NeverSent {
        /// What the delivery claimed.
        message: MessageKey,
        /// Who got it.
        device: Device,
    },
    /// The sender had been told that it is refused for good.
    #[error("delivered though refused for good: {message} came to {device}")]
    RefusedYetDelivered {
        /// Which.
        message: MessageKey,
        /// Who got it.
        device: Device,
    },
    /// It was sent with another body.
    #[error("body changed: {message} came to {device} with another body than was sent")]
    BodyChanged {
        /// Which.
        message: MessageKey,
        /// Who got it.
        device: Device,
    },
    /// A client that keeps its cursor saw it twice.
    #[error("duplicated: {message} came to {device} at {first} and again at {again}")]
    Duplicated {
        /// Which.
        message: MessageKey,
        /// Who got it.
        device: Device,
        /// The first time.
        first: Place,
        /// The second time.
        again: Place,
    },
    /// What the device had acknowledged, and the server had committed, was handed out again to a client that began later.
    #[error("came back: {message} came to {device} again after its acknowledgement was committed")]
    CameBack {
        /// Which.
        message: MessageKey,
        /// Who got it.
        device: Device,
    },
    /// Entries came to a client with numbers that go back.
    #[error("out of order: {device} got the entry at {then} after the one at {first}")]
    QueueOutOfOrder {
        /// Who got them.
        device: Device,
        /// What came first.
        first: Place,
        /// What came then.
        then: Place,
    },
    /// Numbers are missing between two entries, and nobody said that they have expired.
    #[error(
        "gap: {device} got the entry at {then} after the one at {first}, and nothing of what is between"
    )]
    QueueGap {
        /// Who got them.
        device: Device,
        /// The last before the gap.
        first: Place,
        /// The first behind it.
        then: Place,
    },
    /// One client's messages of one conversation changed places.
    #[error(
        "out of order: {later} was sent after {earlier} by the same client and stands before it"
    )]
    OutOfOrder {
        /// Sent first.
        earlier: MessageKey,
        /// Sent after it.
        later: MessageKey,
    },
    /// A message is missing between others of the same conversation, neither refused nor expired.
    #[error("gap: {message} is missing at {device} between messages of the same conversation")]
    Gap {
        /// The missing one.
        message: MessageKey,
        /// Where.
        device: Device,
    },
    /// The same id got two different final answers.
    #[error("two answers: {message} was answered with {first}, then with {then}")]
    TwoAnswers {
        /// Which.
        message: MessageKey,
        /// The first answer.
        first: String,
        /// The other one.
        then: String,
    },
    /// A code that does not fit what happened, or is not what the protocol says of it.
    #[error("wrong error: {message} was refused with {code}: {why}")]
    WrongError {
        /// Which.
        message: MessageKey,
        /// The stable name.
        code: String,
        /// What is wrong about it.
        why: &'static str,
    },
    /// Nothing that had happened calls for it.
    #[error("tick without cause: {message} was reported {tick:?} to {client:?}")]
    TickWithoutCause {
        /// Which.
        message: MessageKey,
        /// The tick.
        tick: Tick,
        /// Who was told.
        client: ClientRun,
    },
    /// The sender waited and was not told.
    #[error("tick missing: {message} is {tick:?}, and {client:?} was not told")]
    TickMissing {
        /// Which.
        message: MessageKey,
        /// The tick.
        tick: Tick,
        /// Who waited.
        client: ClientRun,
    },
    /// A message came less far than before.
    #[error("tick went back: {message} was {first:?}, then {then:?} for {client:?}")]
    TickBack {
        /// Which.
        message: MessageKey,
        /// What was reported first.
        first: Tick,
        /// What was reported then.
        then: Tick,
        /// Who was told.
        client: ClientRun,
    },
}

/// Every broken promise in a history.
#[must_use]
pub fn check(history: &[Record]) -> Vec<Violation> {
    let facts = Facts::gather(history);
    let mut found = delivery::check(&facts);
    found.extend(order::check(&facts));
    found.extend(ticks::check(&facts));
    found.extend(answers::check(&facts));
    found
}

impl fmt::Display for MessageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of {} to {}", self.id, self.from, self.to)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.device)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation, self.seq)
    }
}
