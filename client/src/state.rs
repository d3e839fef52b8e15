//! Everything a client knows, moved by frames and instants: what to say next, and when to look again.

use roost_proto::v1::{self, client_frame, server_frame};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::acks::{Acks, Wanted};
use crate::backoff::Backoff;
use crate::clock::ServerClock;
use crate::conversation::Taken;
use crate::error::{Error, Refusal};
use crate::inbox::Inbox;
use crate::message::{Cursor, Event, Receipt};
use crate::options::Options;
use crate::pipeline::Pipeline;
use crate::reads::Reads;
use crate::ticks::Ticks;
use crate::window::Window;

/// What a frame asks of the driver.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Nothing more.
    None,
    /// Something was refused, and will be tried again.
    Refused(Refusal),
    /// Something succeeded.
    Progress,
    /// Tell the caller.
    Tell(Event),
    /// Tell the caller.
    Receipts {
        missed_up_to: u64,
        receipts: Vec<Receipt>,
    },
    /// Make another session: this one cannot do, for this reason.
    Reconnect(String),
    /// The server ends the session.
    Goodbye(v1::Goodbye),
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) pipeline: Pipeline,
    pub(crate) inbox: Inbox,
    pub(crate) acks: Acks,
    pub(crate) reads: Reads,
    pub(crate) ticks: Ticks,
    attached: bool,
    /// Of the first session. Whichever client of the device began last stays attached, however they connect again.
    client_epoch: Option<v1::Epoch>,
    /// The server attaches this session when something has come that shows that we have its greeting.
    unheard: bool,
    clock: Option<ServerClock>,
    /// Messages and questions on their way.
    window: Window,
    /// When an answer came, or the first question since went out.
    answered_at: Instant,
    nonce: u64,
    heard_at: Instant,
    pinged_at: Instant,
    options: Options,
}

/// How far a frame of entries reaches.
fn last_of(frame: &v1::Entries) -> Option<Cursor> {
    let entries = frame.entries.iter().map(|entry| entry.seq);
    let skipped = frame.skipped.iter().map(|range| range.last);
    let seq = entries.chain(skipped).max()?;
    Some(Cursor {
        incarnation: frame.incarnation,
        seq,
    })
}

impl State {
    pub(crate) fn new(options: Options, wanted: watch::Receiver<Wanted>) -> Self {
        let backoff = Backoff::new(options.backoff_min, options.backoff_max);
        let window = options
            .attach
            .map_or(0, |attach| attach.window_entries as usize);
        let now = Instant::now();
        Self {
            pipeline: Pipeline::new(backoff),
            inbox: Inbox::new(options.attach.and_then(|attach| attach.cursor), window),
            acks: Acks::new(wanted, backoff),
            reads: Reads::new(backoff),
            ticks: Ticks::new(backoff),
            attached: options.attach.is_some(),
            client_epoch: None,
            unheard: false,
            clock: None,
            window: Window::new(),
            answered_at: now,
            nonce: 0,
            heard_at: now,
            pinged_at: now,
            options,
        }
    }

    /// The cursor to attach with: what the caller has said is safe.
    pub(crate) fn attach_cursor(&self) -> Option<Cursor> {
        let given = self.options.attach.and_then(|attach| attach.cursor);
        self.acks.wanted().max(given)
    }

    pub(crate) fn client_epoch(&self) -> Option<v1::Epoch> {
        self.client_epoch
    }

    pub(crate) fn connected(&mut self, welcome: &v1::Welcome, now: Instant) {
        let cursor = welcome.cursor.map(Cursor::from);
        self.clock = Some(ServerClock {
            server_ms: welcome.server_time_ms,
            at: now,
        });
        self.window
            .limit(welcome.in_flight_max, welcome.conversation_in_flight_max);
        if welcome.body_bytes_max > 0 {
            self.pipeline.limit_bodies(welcome.body_bytes_max as usize);
        }
        (self.heard_at, self.pinged_at, self.answered_at) = (now, now, now);
        self.client_epoch = self.client_epoch.or(welcome.epoch);
        self.unheard = self.attached;
        if self.attached {
            self.inbox.begin(cursor);
        }
        self.acks.connected(cursor);
    }

    pub(crate) fn disconnected(&mut self) {
        self.clock = None;
        self.window.clear();
        self.pipeline.disconnected();
        self.acks.disconnected();
        self.reads.disconnected();
        self.ticks.disconnected();
    }

    pub(crate) fn fail(&mut self, error: &Error) {
        self.pipeline.fail(error);
        self.acks.fail(error);
        self.reads.fail(error);
        self.ticks.fail(error);
    }

    pub(crate) fn take(&mut self, frame: server_frame::Frame, now: Instant) -> Effect {
        self.heard_at = now;
        match frame {
            server_frame::Frame::Answer(answer) => self.answer(answer, now),
            server_frame::Frame::Entries(entries) => {
                if let Some(last) = last_of(&entries) {
                    self.acks.handed(last);
                }
                match self.inbox.take(entries) {
                    Ok(()) => Effect::Progress,
                    Err(why) => Effect::Reconnect(why.to_owned()),
                }
            }
            server_frame::Frame::Receipts(receipts) => {
                if receipts.missed_up_to > 0 {
                    self.ticks.missed();
                }
                let missed_up_to = receipts.missed_up_to;
                let receipts: Vec<Receipt> =
                    receipts.receipts.into_iter().map(Receipt::from).collect();
                receipts
                    .iter()
                    .for_each(|receipt| self.ticks.receipt(receipt));
                Effect::Receipts {
                    missed_up_to,
                    receipts,
                }
            }
            server_frame::Frame::Ack(answer) => match self.acks.answer(answer, now) {
                Some(refusal) => Effect::Tell(Event::AckRefused(refusal)),
                None => Effect::None,
            },
            server_frame::Frame::Read(answer) => {
                self.reads.answer(answer, now);
                Effect::None
            }
            server_frame::Frame::Watching(v1::Watching {}) => {
                self.ticks.watching();
                Effect::Tell(Event::Watching)
            }
            server_frame::Frame::Goodbye(goodbye) => Effect::Goodbye(goodbye),
            server_frame::Frame::Pong(_) => Effect::None,
            server_frame::Frame::Welcome(_) => {
                Effect::Reconnect("the server greeted twice".to_owned())
            }
        }
    }

    fn answer(&mut self, answer: v1::SendAnswer, now: Instant) -> Effect {
        self.answered_at = now;
        let to = answer.to.clone();
        let effect = if self.ticks.is_asking(&to, &answer.id) {
            match self.ticks.answer(answer, now) {
                Some(refusal) => Effect::Refused(refusal),
                None => Effect::Progress,
            }
        } else {
            match self.pipeline.answer(answer, now) {
                Taken::Stray => return Effect::None,
                Taken::Settled => Effect::Progress,
                Taken::Retry(refusal) => Effect::Refused(refusal),
                Taken::Remeasure(refusal) => Effect::Reconnect(refusal.to_string()),
            }
        };
        self.window.answered(&to);
        self.pipeline.resume(&to);
        self.ticks.resume(&to);
        effect
    }

    /// Whether [`next`](Self::next) would find something to say.
    pub(crate) fn has_next(&mut self, now: Instant) -> bool {
        let committed = self.acks.committed();
        self.clock.is_some()
            && (self.acks_now(now)
                || self.reads.has_next(committed, now)
                || self.pipeline.has_next(now, &self.window)
                || self.ticks.has_next(now, &self.window)
                || self.ping_is_due(now))
    }

    /// What to say next: acknowledgements before messages, messages before questions.
    pub(crate) fn next(&mut self, now: Instant) -> Option<client_frame::Frame> {
        let frame = self.next_frame(now, self.clock?);
        self.unheard &= frame.is_none();
        frame
    }

    fn next_frame(&mut self, now: Instant, clock: ServerClock) -> Option<client_frame::Frame> {
        if self.attached {
            if let Some(ack) = self.acks.next(now) {
                return Some(client_frame::Frame::Ack(ack));
            }
            if let Some(ack) = self.acks.next_receipts() {
                return Some(client_frame::Frame::ReceiptAck(ack));
            }
        }
        if let Some(mark) = self.reads.next(self.acks.committed(), now) {
            return Some(client_frame::Frame::Read(mark));
        }
        if let Some(send) = self.next_send(now, clock) {
            return Some(client_frame::Frame::Send(send));
        }
        if self.ping_is_due(now) {
            self.pinged_at = now;
            self.nonce += 1;
            return Some(client_frame::Frame::Ping(v1::Ping { nonce: self.nonce }));
        }
        None
    }

    fn next_send(&mut self, now: Instant, clock: ServerClock) -> Option<v1::Send> {
        let idle = self.window.total() == 0;
        let (pipeline, window) = (&mut self.pipeline, &mut self.window);
        let mut send = pipeline.next(now, clock, self.ticks.watch(), window);
        if send.is_none() {
            let is_being_sent = |to: &str, id: &str| pipeline.is_in_flight(to, id);
            send = self.ticks.next(now, window, is_being_sent);
        }
        if idle {
            self.answered_at = now;
        }
        send
    }

    /// When there may be something to say, or to give up, though nothing comes in.
    pub(crate) fn wakes_at(&self, now: Instant) -> Instant {
        // What is due already and still unsaid waits for an answer, not for time.
        let due = [
            self.pipeline.wakes_at(),
            self.acks.wakes_at(),
            self.reads.wakes_at(),
            self.ticks.wakes_at(),
            (self.window.total() > 0).then(|| self.answered_at + self.options.answer_timeout),
            Some(self.ping_at()),
        ];
        let silent = self.heard_at + self.options.silence_max;
        due.into_iter()
            .flatten()
            .filter(|due| *due > now)
            .fold(silent, Instant::min)
    }

    /// Why this session is as good as dead, if it is.
    pub(crate) fn is_dead(&self, now: Instant) -> Option<&'static str> {
        if now >= self.heard_at + self.options.silence_max {
            return Some("the server fell silent");
        }
        (self.window.total() > 0 && now >= self.answered_at + self.options.answer_timeout)
            .then_some("the server does not answer what is sent")
    }

    /// Whether nothing but unanswered messages would be lost by leaving now.
    pub(crate) fn is_flushed(&self) -> bool {
        !self.attached || (self.acks.is_done() && !self.acks.has_receipts())
    }

    fn acks_now(&self, now: Instant) -> bool {
        self.attached && (self.acks.has_next(now) || self.acks.has_receipts())
    }

    fn ping_is_due(&self, now: Instant) -> bool {
        self.unheard || self.ping_at() <= now
    }

    fn ping_at(&self) -> Instant {
        self.heard_at.max(self.pinged_at) + self.options.ping_after
    }
}
