//! A device that sends: pipelined, again under the same ids after a session breaks, now and then in a new chain or with two
//! frames in the wrong order, until everything is answered; then it waits for its ticks. Some devices watch, and ask about
//! what they may have missed; the others live by the receipts that come to their attached session.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use roost_chaos_tests::history::{ClientRun, Digest, Event, Place, Tick};
use roost_proto::v1::{Code, Hello, Kind, Send, SendAnswer, Status, client_frame, server_frame};
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{self, Account, Line, place};
use super::cluster::{BODY_BYTES_MAX, CLOCK_ERROR_MAX_MS};
use super::marks::Marks;
use super::stage::{MESSAGES, Stage};

/// Clients that a device sends with, one after the other.
const CLIENTS: usize = 2;
/// Sends that wait for their answers, at most.
const PIPELINE: usize = 12;
/// A session in which nothing is answered for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Between two looks whether the attached session has heard of receipts.
const LOOK: Duration = Duration::from_millis(200);
/// Of all messages: too large; with a short time to live; overtaken by the next on the way.
const TOO_LARGE: f64 = 0.04;
const SHORT_LIVED: f64 = 0.06;
const OVERTAKEN: f64 = 0.04;
/// Of all sessions that begin with something unanswered.
const NEW_CHAIN: f64 = 0.15;
/// Shorter ones would depend on the error of the nodes' clocks.
const TTL_MS: std::ops::RangeInclusive<u64> = CLOCK_ERROR_MAX_MS + 500..=CLOCK_ERROR_MAX_MS + 3_000;

/// Sends everything that the device has to say.
pub(super) async fn run(stage: &Stage, account: &Account, number: u64) {
    let mut chance = stage.chance(1, number);
    for client in 0..CLIENTS {
        let mut sender = Sender::new(stage, account, client, &mut chance);
        sender.send_all().await;
        if client + 1 == CLIENTS {
            stage.senders_left.set(stage.senders_left.get() - 1);
            sender.settle().await;
        }
    }
    stage.settled.borrow_mut().insert(account.device.clone());
}

struct Sender<'a> {
    stage: &'a Stage,
    account: &'a Account,
    chance: &'a mut StdRng,
    run: ClientRun,
    name: usize,
    chain: u64,
    /// The last positions taken in the chain, by recipient.
    positions: BTreeMap<String, u64>,
    /// Messages that are still to be made.
    left: usize,
    /// In the order in which they were sent.
    sent: Vec<Sent>,
    /// On the way behind the next one.
    overtaken: Option<Send>,
    /// What receipts have said during this watch.
    marks: Marks,
}

struct Sent {
    send: Send,
    state: State,
    /// Its state was known at a moment of the present watch: receipts settle it. Until then they do not count for it,
    /// because a mark speaks only of what had not been reported expired before.
    covered: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unanswered,
    Accepted(Place, Tick),
    Refused,
}

/// What the client does next.
enum Turn {
    GoOn,
    HangUp,
}

impl<'a> Sender<'a> {
    fn new(stage: &'a Stage, account: &'a Account, name: usize, chance: &'a mut StdRng) -> Self {
        Self {
            run: stage.recorder.start_client(&account.device, None),
            chain: chance.random_range(1..u64::MAX),
            positions: BTreeMap::new(),
            stage,
            account,
            chance,
            name,
            left: MESSAGES / CLIENTS,
            sent: Vec::new(),
            overtaken: None,
            marks: Marks::default(),
        }
    }

    async fn send_all(&mut self) {
        while self.left > 0 || self.unanswered() > 0 {
            if self.stage.is_over() {
                return self.gave_up("unanswered", self.unanswered());
            }
            let length = Duration::from_millis(self.chance.random_range(500..8_000));
            self.session(Instant::now() + length, |sender| {
                sender.left == 0 && sender.unanswered() == 0
            })
            .await;
        }
    }

    /// Waits for every tick, for as long as anything could come: listeners acknowledge everything in the end, and what
    /// they have read is read.
    async fn settle(&mut self) {
        while self.owed() > 0 {
            if self.stage.is_over() {
                self.gave_up("without the tick that they are owed", self.owed());
                break;
            }
            match self.watches() {
                true => {
                    let length = Duration::from_millis(self.chance.random_range(5_000..15_000));
                    self.session(Instant::now() + length, |sender| sender.owed() == 0)
                        .await;
                }
                false => {
                    sleep(LOOK).await;
                    let rows = self
                        .stage
                        .receipts
                        .borrow()
                        .get(&self.account.device)
                        .cloned();
                    self.apply(&rows.unwrap_or_default(), |_| true);
                }
            }
        }
        self.stage
            .recorder
            .record(Event::Settled { client: self.run });
    }

    async fn session(&mut self, until: Instant, enough: impl Fn(&Self) -> bool) {
        let hello = Hello {
            watch: self.watches(),
            ..Hello::default()
        };
        let node = self.stage.draw_node(self.chance);
        let connected = client::connect(self.stage, node, self.account, hello).await;
        let Some((mut line, welcome)) = connected else {
            return sleep(Duration::from_millis(self.chance.random_range(20..300))).await;
        };
        let made_ms = welcome.server_time_ms;
        self.overtaken = None;
        self.forget_watch();
        if self.unanswered() > 0 && self.chance.random_bool(NEW_CHAIN) {
            self.open_chain();
        }
        self.again(&line, |state| state == State::Unanswered);
        let mut heard = Instant::now();
        let mut next_send = Instant::now();
        while !enough(self) {
            let frame = tokio::select! {
                biased;
                frame = line.next() => match frame {
                    Some(frame) => frame,
                    None => return,
                },
                () = sleep_until(next_send), if self.may_send() => {
                    self.send_new(&line, made_ms);
                    next_send += Duration::from_millis(self.pause_ms());
                    continue;
                }
                () = sleep_until(until) => return,
                () = sleep_until(heard + SILENCE_MAX), if self.unanswered() > 0 => return,
            };
            heard = Instant::now();
            if let Turn::HangUp = self.on_frame(&line, frame) {
                return sleep(Duration::from_millis(self.chance.random_range(10..200))).await;
            }
        }
    }

    fn watches(&self) -> bool {
        let missed = self.stage.missed.borrow();
        self.account.watches || missed.contains(&self.account.device)
    }

    /// What was heard in an earlier watch says nothing of what was missed since.
    fn forget_watch(&mut self) {
        self.marks = Marks::default();
        self.sent.iter_mut().for_each(|sent| sent.covered = false);
    }

    /// What is unanswered goes into a new chain, in order and under the same ids.
    fn open_chain(&mut self) {
        self.chain = self.chance.random_range(1..u64::MAX);
        self.positions.clear();
        for sent in &mut self.sent {
            if sent.state == State::Unanswered {
                sent.send.chain = self.chain;
                sent.send.position = next(&mut self.positions, &sent.send.to);
            }
        }
    }

    /// Mostly in bursts.
    fn pause_ms(&mut self) -> u64 {
        match self.chance.random_bool(0.5) {
            true => 0,
            false => self.chance.random_range(0..2_500),
        }
    }

    fn may_send(&self) -> bool {
        self.left > 0 && self.unanswered() < PIPELINE
    }

    fn send_new(&mut self, line: &Line, made_ms: u64) {
        let send = self.make(made_ms);
        self.left -= 1;
        let short_lived = send.ttl_ms > 0;
        self.stage.recorder.record(Event::Sent {
            client: self.run,
            to: send.to.clone(),
            id: send.id.clone(),
            body: Digest::of(&send.body),
            // It ends by the clocks of the nodes.
            ttl_ms: short_lived.then(|| send.ttl_ms - CLOCK_ERROR_MAX_MS),
        });
        self.sent.push(Sent {
            send: send.clone(),
            state: State::Unanswered,
            covered: true,
        });
        if self.overtaken.is_none() && self.chance.random_bool(OVERTAKEN) {
            self.overtaken = Some(send);
            return;
        }
        line.say(client_frame::Frame::Send(send));
        if let Some(overtaken) = self.overtaken.take() {
            line.say(client_frame::Frame::Send(overtaken));
        }
    }

    fn make(&mut self, made_ms: u64) -> Send {
        let others: Vec<&Account> = self
            .stage
            .cast
            .iter()
            .filter(|other| other.device.user != self.account.device.user)
            .collect();
        let to = &others[self.chance.random_range(0..others.len())]
            .device
            .user;
        let length = match self.chance.random_bool(TOO_LARGE) {
            true => BODY_BYTES_MAX + 1,
            false => self.chance.random_range(1..200),
        };
        let mut body = vec![0; length];
        self.chance.fill(&mut body[..]);
        let ttl_ms = match self.chance.random_bool(SHORT_LIVED) {
            true => self.chance.random_range(TTL_MS),
            false => 0,
        };
        let device = &self.account.device;
        Send {
            id: format!(
                "{}/{}-{}-{}",
                device.user,
                device.device,
                self.name,
                self.sent.len()
            ),
            to: to.clone(),
            chain: self.chain,
            position: next(&mut self.positions, to),
            kind: Kind::Data.into(),
            body: body.into(),
            sent_at_ms: made_ms,
            ttl_ms,
        }
    }

    /// Sends again, in order and under the same ids, what is in such a state.
    fn again(&self, line: &Line, which: impl Fn(State) -> bool) {
        for sent in self.sent.iter().filter(|sent| which(sent.state)) {
            line.say(client_frame::Frame::Send(sent.send.clone()));
        }
    }

    /// What became of what is not read yet. Until the answer comes no receipt counts for it.
    fn ask(&mut self, line: &Line) {
        self.forget_watch();
        let open = |state| matches!(state, State::Accepted(_, tick) if tick < Tick::Read);
        self.again(line, open);
    }

    fn on_frame(&mut self, line: &Line, frame: server_frame::Frame) -> Turn {
        match frame {
            server_frame::Frame::Answer(answer) => self.on_answer(answer),
            server_frame::Frame::Receipts(receipts) => {
                if receipts.missed_up_to > 0 {
                    self.ask(line);
                }
                for receipt in &receipts.receipts {
                    if !self.marks.note(receipt) {
                        return self.complain(receipt);
                    }
                }
                self.apply_marks();
                Turn::GoOn
            }
            // Receipts written before this were not seen. What is written from now on is, also while the leader changes.
            server_frame::Frame::Watching(_) => {
                self.ask(line);
                Turn::GoOn
            }
            server_frame::Frame::Goodbye(goodbye) => {
                let error = goodbye.error.unwrap_or_default();
                if !error.retryable {
                    self.complain(&error);
                }
                Turn::HangUp
            }
            other => self.complain(&other),
        }
    }

    fn on_answer(&mut self, answer: SendAnswer) -> Turn {
        let (client, to, id) = (self.run, answer.to.clone(), answer.id.clone());
        let Some(at) = self.find(&to, &id) else {
            return self.complain(&answer);
        };
        if let Some(error) = &answer.error {
            self.stage.recorder.record(Event::Refused {
                client,
                to,
                id,
                code: error.code().as_str_name().to_owned(),
                retryable: error.retryable,
            });
            if error.code() == Code::UnknownChain {
                self.open_chain();
            }
            // What was sent behind it has a gap before it: all of it goes again, in order, in a new session.
            return match error.retryable {
                true => Turn::HangUp,
                false => {
                    self.sent[at].state = State::Refused;
                    Turn::GoOn
                }
            };
        }
        let cursor = place(answer.place.expect("what is accepted has a place"));
        match self.sent[at].state {
            State::Accepted(..) => self.stage.saw("dedup hit"),
            _ => self.sent[at].state = State::Accepted(cursor, Tick::Accepted),
        }
        self.sent[at].covered = true;
        self.stage.recorder.record(Event::Accepted {
            client,
            to,
            id,
            place: cursor,
        });
        match answer.status() {
            Status::Accepted => {}
            Status::Delivered => self.tick(at, Tick::Delivered),
            Status::Read => self.tick(at, Tick::Read),
            Status::Expired => self.tick(at, Tick::Expired),
            _ => return self.complain(&answer),
        }
        self.apply_marks();
        Turn::GoOn
    }

    fn find(&self, to: &str, id: &str) -> Option<usize> {
        let mut sent = self.sent.iter();
        sent.position(|sent| sent.send.to == to && sent.send.id == id)
    }

    fn apply_marks(&mut self) {
        let marks = std::mem::take(&mut self.marks);
        self.apply(&marks, |sent| sent.covered);
        self.marks = marks;
    }

    /// Records what is news.
    fn apply(&mut self, marks: &Marks, counts: impl Fn(&Sent) -> bool) {
        for at in 0..self.sent.len() {
            let sent = &self.sent[at];
            if let State::Accepted(place, _) = sent.state
                && counts(sent)
                && let Some(tick) = marks.tick(&sent.send.to, place)
            {
                self.tick(at, tick);
            }
        }
    }

    /// Records a tick that is news.
    fn tick(&mut self, at: usize, tick: Tick) {
        let sent = &mut self.sent[at];
        let State::Accepted(place, known) = sent.state else {
            return;
        };
        if known < tick {
            sent.state = State::Accepted(place, tick);
            self.stage.recorder.record(Event::Ticked {
                client: self.run,
                to: sent.send.to.clone(),
                id: sent.send.id.clone(),
                tick,
            });
        }
    }

    fn unanswered(&self) -> usize {
        let unanswered = |sent: &&Sent| sent.state == State::Unanswered;
        self.sent.iter().filter(unanswered).count()
    }

    fn owed(&self) -> usize {
        let me = &self.account.device.user;
        let owed = |sent: &&Sent| match sent.state {
            State::Accepted(_, Tick::Accepted) => true,
            State::Accepted(at, Tick::Delivered) => {
                self.stage.recorder.is_read(&sent.send.to, me, at)
            }
            _ => false,
        };
        self.sent.iter().filter(owed).count()
    }

    /// Nothing that a server may say to a sender here.
    fn complain(&self, of: &impl std::fmt::Debug) -> Turn {
        self.stage
            .complain(format!("{} was told {of:?}", self.account.device));
        Turn::HangUp
    }

    fn gave_up(&self, what: &str, count: usize) {
        self.stage.complain(format!(
            "{:?} of {} has {count} messages {what} at the deadline",
            self.run, self.account.device
        ));
    }
}

fn next(positions: &mut BTreeMap<String, u64>, to: &str) -> u64 {
    let position = positions.entry(to.to_owned()).or_default();
    *position += 1;
    *position
}
