//! A device that sends: pipelined, again under the same ids after a session breaks, until everything is answered; then
//! it waits for its ticks.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use roost_chaos_tests::history::{ClientRun, Digest, Event, Tick};
use roost_proto::v1::{
    Cursor, Hello, Kind, Receipt, Send, SendAnswer, Status, client_frame, server_frame,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{self, Account, Line, place};
use super::cluster::{BODY_BYTES_MAX, NODES};
use super::stage::{MESSAGES, Stage};

/// Clients that a device sends with, one after the other.
const CLIENTS: usize = 2;
/// Sends that wait for their answers, at most.
const PIPELINE: usize = 12;
/// A session in which nothing is answered for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(6);

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
}

struct Sender<'a> {
    stage: &'a Stage,
    account: &'a Account,
    chance: &'a mut StdRng,
    run: ClientRun,
    name: usize,
    chain: u64,
    /// Messages that are still to be made.
    left: usize,
    /// In the order in which they were sent.
    sent: Vec<Sent>,
    /// What receipts said last, by peer.
    marks: BTreeMap<String, Marks>,
}

struct Sent {
    send: Send,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unanswered,
    Accepted(Cursor, Tick),
    Refused,
}

/// Up to where messages are delivered and read.
#[derive(Default)]
struct Marks {
    delivered: Option<Cursor>,
    read: Option<Cursor>,
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
            stage,
            account,
            chance,
            name,
            left: MESSAGES / CLIENTS,
            sent: Vec::new(),
            marks: BTreeMap::new(),
        }
    }

    async fn send_all(&mut self) {
        while self.left > 0 || self.unanswered() > 0 {
            if self.stage.is_over() {
                self.gave_up("unanswered", self.unanswered());
                return;
            }
            let length = Duration::from_millis(self.chance.random_range(500..8_000));
            self.session(Instant::now() + length, |sender| {
                sender.left == 0 && sender.unanswered() == 0
            })
            .await;
        }
    }

    /// Waits for every tick: listeners acknowledge everything in the end, and what they have read is read.
    async fn settle(&mut self) {
        while self.owed() > 0 {
            if self.stage.is_over() {
                self.gave_up("without the tick that they are owed", self.owed());
                return;
            }
            let length = Duration::from_millis(self.chance.random_range(5_000..15_000));
            self.session(Instant::now() + length, |sender| sender.owed() == 0)
                .await;
        }
        self.stage
            .recorder
            .record(Event::Settled { client: self.run });
    }

    async fn session(&mut self, until: Instant, enough: impl Fn(&Self) -> bool) {
        let hello = Hello {
            watch: true,
            ..Hello::default()
        };
        let node = self.chance.random_range(0..NODES);
        let connected = client::connect(self.stage, node, self.account, hello).await;
        let Some((mut line, welcome)) = connected else {
            return sleep(Duration::from_millis(self.chance.random_range(20..300))).await;
        };
        let made_ms = welcome.server_time_ms;
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
        let others: Vec<&Account> = self
            .stage
            .cast
            .iter()
            .filter(|other| other.device.user != self.account.device.user)
            .collect();
        let to = &others[self.chance.random_range(0..others.len())]
            .device
            .user;
        let position = 1 + self.sent.iter().filter(|sent| sent.send.to == *to).count();
        let length = match self.chance.random_bool(0.04) {
            true => BODY_BYTES_MAX + 1,
            false => self.chance.random_range(1..200),
        };
        let mut body = vec![0; length];
        self.chance.fill(&mut body[..]);
        let device = &self.account.device;
        let send = Send {
            id: format!(
                "{}/{}-{}-{}",
                device.user,
                device.device,
                self.name,
                self.sent.len()
            ),
            to: to.clone(),
            chain: self.chain,
            position: position as u64,
            kind: Kind::Data.into(),
            body: body.into(),
            sent_at_ms: made_ms,
            ttl_ms: 0,
        };
        self.left -= 1;
        self.stage.recorder.record(Event::Sent {
            client: self.run,
            to: send.to.clone(),
            id: send.id.clone(),
            body: Digest::of(&send.body),
            ttl_ms: None,
        });
        line.say(client_frame::Frame::Send(send.clone()));
        self.sent.push(Sent {
            send,
            state: State::Unanswered,
        });
    }

    /// Sends again, in order and under the same ids, what is in such a state.
    fn again(&self, line: &Line, which: impl Fn(State) -> bool) {
        for sent in self.sent.iter().filter(|sent| which(sent.state)) {
            line.say(client_frame::Frame::Send(sent.send.clone()));
        }
    }

    /// What became of what is not read yet.
    fn ask(&self, line: &Line) {
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
                for receipt in receipts.receipts {
                    self.on_receipt(&receipt);
                }
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
        let found = self.sent.iter_mut();
        let Some(sent) = found
            .filter(|sent| sent.send.to == answer.to)
            .find(|sent| sent.send.id == answer.id)
        else {
            return self.complain(&answer);
        };
        let (client, to, id) = (self.run, answer.to.clone(), answer.id.clone());
        if let Some(error) = &answer.error {
            self.stage.recorder.record(Event::Refused {
                client,
                to,
                id,
                code: error.code().as_str_name().to_owned(),
                retryable: error.retryable,
            });
            // What was sent behind it has a gap before it: all of it goes again, in order, in a new session.
            return match error.retryable {
                true => Turn::HangUp,
                false => {
                    sent.state = State::Refused;
                    Turn::GoOn
                }
            };
        }
        let cursor = answer.place.expect("what is accepted has a place");
        if sent.state == State::Unanswered {
            sent.state = State::Accepted(cursor, Tick::Accepted);
        }
        self.stage.recorder.record(Event::Accepted {
            client,
            to,
            id,
            place: place(cursor),
        });
        match answer.status() {
            Status::Accepted => {}
            Status::Delivered => self.tick(&answer.to, &answer.id, Tick::Delivered),
            Status::Read => self.tick(&answer.to, &answer.id, Tick::Read),
            _ => return self.complain(&answer),
        }
        self.apply_marks(&answer.to);
        Turn::GoOn
    }

    fn on_receipt(&mut self, receipt: &Receipt) {
        let marks = self.marks.entry(receipt.peer.clone()).or_default();
        let cursor = Some(Cursor {
            incarnation: receipt.incarnation,
            seq: receipt.up_to_seq,
        });
        let mark = match receipt.status() {
            Status::Delivered => &mut marks.delivered,
            Status::Read => &mut marks.read,
            // Nothing expires here.
            _ => {
                self.complain(receipt);
                return;
            }
        };
        let known = mark.map(place);
        if known < cursor.map(place) {
            *mark = cursor;
        }
        self.apply_marks(&receipt.peer);
    }

    fn apply_marks(&mut self, peer: &str) {
        let Some(marks) = self.marks.get(peer) else {
            return;
        };
        let covers = |mark: Option<Cursor>, at: Cursor| {
            mark.is_some_and(|mark| mark.incarnation == at.incarnation && mark.seq >= at.seq)
        };
        let mut ticks = Vec::new();
        for sent in self.sent.iter().filter(|sent| sent.send.to == peer) {
            if let State::Accepted(at, _) = sent.state {
                if covers(marks.read, at) {
                    ticks.push((sent.send.id.clone(), Tick::Read));
                } else if covers(marks.delivered, at) {
                    ticks.push((sent.send.id.clone(), Tick::Delivered));
                }
            }
        }
        for (id, tick) in ticks {
            self.tick(peer, &id, tick);
        }
    }

    /// Records a tick that is news.
    fn tick(&mut self, to: &str, id: &str, tick: Tick) {
        for sent in &mut self.sent {
            if sent.send.to == to
                && sent.send.id == id
                && let State::Accepted(at, known) = sent.state
                && known < tick
            {
                sent.state = State::Accepted(at, tick);
                self.stage.recorder.record(Event::Ticked {
                    client: self.run,
                    to: to.to_owned(),
                    id: id.to_owned(),
                    tick,
                });
            }
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
                let recorder = &self.stage.recorder;
                recorder.is_read(&sent.send.to, me, place(at))
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
