//! What one sender has under way to one recipient: positions, and sending again what was refused for the moment.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use roost_client::wire::v1::{Code, SendAnswer, Status};
use uuid::Uuid;

/// The open messages of one conversation.
pub(crate) struct Conversation {
    chain: u64,
    /// Of the next message.
    position: u64,
    /// Not answered for good, in order.
    open: VecDeque<Message>,
    on_their_way: usize,
    /// One was refused for the moment: nothing goes until nothing is on its way.
    stalled: Option<NewChain>,
    /// Accepted, with their seq; the recipient has not acknowledged them.
    accepted: VecDeque<(u64, Instant)>,
    delivered_up_to: u64,
}

type NewChain = bool;

/// One message under way.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: Uuid,
    pub(crate) chain: u64,
    pub(crate) position: u64,
    pub(crate) sent_at_ms: u64,
    /// When it was to be sent: what latencies count from.
    pub(crate) due: Instant,
}

/// What follows from an answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// The message that was due then has been accepted.
    Accepted(Instant),
    /// A message is gone for good.
    Refused,
    /// A message has to be sent again, but not yet.
    Wait,
    /// Time to pause and then to send again.
    Stalled,
}

impl Conversation {
    pub(crate) fn new() -> Self {
        Self {
            chain: chain(),
            position: 1,
            open: VecDeque::new(),
            on_their_way: 0,
            stalled: None,
            accepted: VecDeque::new(),
            delivered_up_to: 0,
        }
    }

    /// Takes a new message; it is to be sent now, unless the conversation is stalled.
    pub(crate) fn push(&mut self, id: Uuid, sent_at_ms: u64, due: Instant) -> Option<Message> {
        let message = Message {
            id,
            chain: self.chain,
            position: self.position,
            sent_at_ms,
            due,
        };
        self.position += 1;
        self.open.push_back(message.clone());
        let goes = self.stalled.is_none();
        self.on_their_way += usize::from(goes);
        goes.then_some(message)
    }

    /// Answers come in the order sent.
    ///
    /// # Errors
    /// When this one does not, which the server must not let happen.
    pub(crate) fn answer(&mut self, answer: &SendAnswer) -> Result<Step> {
        self.on_their_way = self
            .on_their_way
            .checked_sub(1)
            .context("an answer to nothing")?;
        let retryable = answer.error.as_ref().filter(|error| error.retryable);
        if self.stalled.is_some() {
            ensure!(
                retryable.is_some(),
                "answered behind a refused message: {answer:?}"
            );
            return Ok(self.pause());
        }
        let front = self.open.front().context("an answer to nothing")?;
        ensure!(
            Uuid::parse_str(&answer.id).ok() == Some(front.id),
            "answers out of order"
        );
        if let Some(error) = retryable {
            let anew = matches!(error.code(), Code::UnknownChain | Code::PositionGap);
            self.stalled = Some(anew);
            return Ok(self.pause());
        }
        let due = front.due;
        self.open.pop_front();
        if answer.status() == Status::Refused {
            return Ok(Step::Refused);
        }
        let place = answer.place.context("accepted without a place")?;
        self.accepted.push_back((place.seq, due));
        Ok(Step::Accepted(due))
    }

    fn pause(&self) -> Step {
        match self.on_their_way {
            0 => Step::Stalled,
            _ => Step::Wait,
        }
    }

    /// After the pause: everything that is open, in order.
    pub(crate) fn resend(&mut self) -> impl Iterator<Item = Message> {
        if self.stalled.take() == Some(true) {
            self.chain = chain();
            self.position = 1 + self.open.len() as u64;
            for (message, position) in self.open.iter_mut().zip(1..) {
                (message.chain, message.position) = (self.chain, position);
            }
        }
        self.on_their_way = self.open.len();
        self.open.iter().cloned()
    }

    /// The recipient has everything up to this seq.
    pub(crate) fn delivered(&mut self, up_to_seq: u64) {
        self.delivered_up_to = self.delivered_up_to.max(up_to_seq);
    }

    /// The next message that is accepted and delivered, by when it was due.
    pub(crate) fn next_told(&mut self) -> Option<Instant> {
        let told = self
            .accepted
            .pop_front_if(|(seq, _)| *seq <= self.delivered_up_to);
        told.map(|(_, due)| due)
    }

    /// Forgets what is accepted, for who does not wait for receipts.
    pub(crate) fn forget_accepted(&mut self) {
        self.accepted.clear();
    }
}

/// By chance, and never 0.
fn chain() -> u64 {
    (Uuid::new_v4().as_u128() as u64) | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_client::wire::v1::{Cursor, Error};

    fn answer(message: &Message, code: Option<Code>, seq: u64) -> SendAnswer {
        let error = code.map(|code| Error {
            code: code.into(),
            retryable: true,
            ..Error::default()
        });
        SendAnswer {
            id: message.id.to_string(),
            status: match code {
                None => Status::Accepted.into(),
                Some(_) => Status::Refused.into(),
            },
            place: code.is_none().then_some(Cursor {
                incarnation: 1,
                seq,
            }),
            error,
            ..SendAnswer::default()
        }
    }

    fn push(conversation: &mut Conversation) -> Message {
        let pushed = conversation.push(Uuid::new_v4(), 1, Instant::now());
        pushed.unwrap_or_else(|| panic!("stalled"))
    }

    #[test]
    fn a_refused_message_and_what_is_behind_it_go_again_in_order() -> Result<()> {
        let mut conversation = Conversation::new();
        let sent = [0; 3].map(|_| push(&mut conversation));
        let first = conversation.answer(&answer(&sent[0], None, 1))?;
        assert_eq!(first, Step::Accepted(sent[0].due));
        let overloaded = answer(&sent[1], Some(Code::Overloaded), 0);
        assert_eq!(conversation.answer(&overloaded)?, Step::Wait);
        assert!(conversation.push(Uuid::new_v4(), 1, sent[0].due).is_none());
        let gap = answer(&sent[2], Some(Code::PositionGap), 0);
        assert_eq!(conversation.answer(&gap)?, Step::Stalled);
        let again: Vec<_> = conversation
            .resend()
            .map(|m| (m.chain, m.position))
            .collect();
        assert_eq!(again, [2, 3, 4].map(|position| (sent[0].chain, position)));
        Ok(())
    }

    #[test]
    fn an_unknown_chain_is_replaced() -> Result<()> {
        let mut conversation = Conversation::new();
        let sent = push(&mut conversation);
        let unknown = answer(&sent, Some(Code::UnknownChain), 0);
        assert_eq!(conversation.answer(&unknown)?, Step::Stalled);
        let again: Vec<_> = conversation.resend().collect();
        assert!(again[0].chain != sent.chain && again[0].position == 1 && again[0].id == sent.id);
        Ok(())
    }

    #[test]
    fn a_receipt_may_come_before_the_answer() -> Result<()> {
        let mut conversation = Conversation::new();
        let sent = push(&mut conversation);
        conversation.delivered(7);
        assert_eq!(conversation.next_told(), None);
        conversation.answer(&answer(&sent, None, 7))?;
        assert_eq!(conversation.next_told(), Some(sent.due));
        Ok(())
    }

    #[test]
    fn answers_out_of_order_are_an_error() {
        let mut conversation = Conversation::new();
        let sent = [0; 2].map(|_| push(&mut conversation));
        assert!(conversation.answer(&answer(&sent[1], None, 1)).is_err());
    }
}
