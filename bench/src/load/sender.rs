//! One sender: a session, its conversations, and when the next message goes.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use roost_client::wire::v1::{
    Kind, ReceiptAck, Receipts, Send, SendAnswer, Status, client_frame::Frame as Out,
    server_frame::Frame as In,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::conversation::{Conversation, Message, Step};
use super::recorder::Recorder;
use super::session::Session;
use crate::users;

/// Before what was refused for the moment goes again.
const PAUSE: Duration = Duration::from_millis(50);
/// Under way in open loop; what is due beyond it waits here, and its latency counts.
const OPEN_LOOP_WINDOW: usize = 1000;

/// A sender, ready to go.
pub(super) struct Sender {
    pub(super) session: Session,
    pub(super) recorder: Rc<Recorder>,
    pub(super) recipients: Recipients,
    pub(super) body_bytes: usize,
    pub(super) pace: SenderPace,
    pub(super) until: Until,
    /// Messages that it still has to send; for ever, if not said.
    pub(super) left: Option<u64>,
}

/// When a sender's next message goes.
pub(super) enum SenderPace {
    /// As soon as fewer than so many are under way.
    Window(usize),
    /// When the pacer says so.
    Due(mpsc::UnboundedReceiver<Instant>),
}

/// What a message must have reached to be done.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Until {
    /// *Accepted*.
    Accepted,
    /// *Delivered*, as told to the sender's attached device, which acknowledges that.
    Told,
}

/// Who gets the next message.
pub(super) struct Recipients {
    pub(super) users: users::Users,
    pub(super) by_chance: bool,
    pub(super) state: u64,
}

impl Recipients {
    pub(super) fn next(&mut self) -> u32 {
        let step = match self.by_chance {
            // Marsaglia's xorshift: cheap, and good enough to choose with.
            true => {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.state
            }
            false => {
                self.state += 1;
                self.state
            }
        };
        self.users.first + (step % u64::from(self.users.count)) as u32
    }
}

struct Running {
    session: Session,
    recorder: Rc<Recorder>,
    recipients: Recipients,
    body_bytes: usize,
    until: Until,
    left: Option<u64>,
    conversations: BTreeMap<u32, Conversation>,
    stalled: Vec<u32>,
    /// When the stalled ones go again.
    resume_at: Instant,
    under_way: usize,
}

impl Sender {
    /// Sends until there is nothing left to send and all is done.
    ///
    /// # Errors
    /// When the session breaks, or the server answers what it must not.
    pub(super) async fn run(self) -> Result<()> {
        let (window, mut due) = match self.pace {
            SenderPace::Window(window) => (window, None),
            SenderPace::Due(due) => (OPEN_LOOP_WINDOW, Some(due)),
        };
        let mut running = Running {
            session: self.session,
            recorder: self.recorder,
            recipients: self.recipients,
            body_bytes: self.body_bytes,
            until: self.until,
            left: self.left,
            conversations: BTreeMap::new(),
            stalled: Vec::new(),
            resume_at: Instant::now(),
            under_way: 0,
        };
        loop {
            if due.is_none() {
                while running.under_way < window && running.left != Some(0) {
                    running.send(Instant::now())?;
                }
            }
            if running.under_way == 0 && running.left == Some(0) {
                return Ok(());
            }
            tokio::select! {
                frame = running.session.next() => running.on_frame(frame?)?,
                next = next_due(&mut due), if running.under_way < window => running.send(next?)?,
                () = tokio::time::sleep_until(running.resume_at.into()), if !running.stalled.is_empty() => running.resend()?,
            }
        }
    }
}

async fn next_due(due: &mut Option<mpsc::UnboundedReceiver<Instant>>) -> Result<Instant> {
    match due {
        Some(due) => due.recv().await.context("the pacer ended"),
        None => std::future::pending().await,
    }
}

impl Running {
    fn send(&mut self, due: Instant) -> Result<()> {
        let to = self.recipients.next();
        let sent_at_ms = self.session.now_ms();
        let conversation = self
            .conversations
            .entry(to)
            .or_insert_with(Conversation::new);
        self.under_way += 1;
        self.left = self.left.map(|left| left - 1);
        match conversation.push(Uuid::new_v4(), sent_at_ms, due) {
            Some(message) => self.transmit(to, message),
            None => Ok(()),
        }
    }

    fn transmit(&self, to: u32, message: Message) -> Result<()> {
        let seed = message.id.as_u128() as u64;
        let body = self
            .recorder
            .bodies
            .make(message.due, seed, self.body_bytes);
        self.session.send(Out::Send(Send {
            id: message.id.to_string(),
            to: users::name(to),
            chain: message.chain,
            position: message.position,
            kind: Kind::Data.into(),
            body,
            sent_at_ms: message.sent_at_ms,
            ttl_ms: 0,
        }))
    }

    fn resend(&mut self) -> Result<()> {
        for to in std::mem::take(&mut self.stalled) {
            let conversation = self.conversations.get_mut(&to).context("it was stalled")?;
            let again: Vec<_> = conversation.resend().collect();
            again
                .into_iter()
                .try_for_each(|message| self.transmit(to, message))?;
        }
        Ok(())
    }

    fn on_frame(&mut self, frame: In) -> Result<()> {
        match frame {
            In::Answer(answer) => self.on_answer(&answer),
            In::Receipts(receipts) => self.on_receipts(&receipts),
            In::Ack(_) | In::Watching(_) => Ok(()),
            other => bail!("a sender was sent {other:?}"),
        }
    }

    fn on_answer(&mut self, answer: &SendAnswer) -> Result<()> {
        let to = users::number(&answer.to).context("an answer about a stranger")?;
        let conversation = self.conversations.get_mut(&to);
        let conversation = conversation.context("an answer about nobody")?;
        match conversation.answer(answer)? {
            Step::Accepted(due) => {
                self.recorder.accepted(due);
                match self.until {
                    Until::Accepted => {
                        conversation.forget_accepted();
                        self.finish(1);
                    }
                    Until::Told => self.settle(to)?,
                }
            }
            Step::Refused => bail!("refused for good: {:?}", answer.error),
            Step::Wait => self.recorder.refused(),
            Step::Stalled => {
                self.recorder.refused();
                if self.stalled.is_empty() {
                    self.resume_at = Instant::now() + PAUSE;
                }
                self.stalled.push(to);
            }
        }
        Ok(())
    }

    fn on_receipts(&mut self, receipts: &Receipts) -> Result<()> {
        for receipt in &receipts.receipts {
            if receipt.status() != Status::Delivered {
                bail!("a receipt that nobody caused: {receipt:?}");
            }
            let from = users::number(&receipt.peer).context("a receipt of a stranger")?;
            let conversation = self
                .conversations
                .entry(from)
                .or_insert_with(Conversation::new);
            conversation.delivered(receipt.up_to_seq);
            self.settle(from)?;
        }
        let newest = receipts
            .receipts
            .iter()
            .map(|receipt| receipt.revision)
            .max();
        let ack = |revision| self.session.send(Out::ReceiptAck(ReceiptAck { revision }));
        newest.map_or(Ok(()), ack)
    }

    fn settle(&mut self, to: u32) -> Result<()> {
        let conversation = self.conversations.get_mut(&to).context("it was there")?;
        let mut told = 0;
        while let Some(due) = conversation.next_told() {
            self.recorder.told(due);
            told += 1;
        }
        self.finish(told);
        Ok(())
    }

    fn finish(&mut self, messages: usize) {
        self.under_way -= messages;
        self.recorder.count(messages as u64);
    }
}
