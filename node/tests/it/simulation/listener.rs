//! A device that receives: in turns of being online and away, with and without the cursor it kept, until it has and has
//! acknowledged everything that was accepted for its user.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use roost_chaos_tests::history::{ClientRun, Device, Digest, Event, Place};
use roost_proto::v1::{
    Ack, AckAnswer, Attach, Code, Cursor, Entries, Entry, Epoch, Hello, Ping, Range, ReadAnswer,
    ReadMark, ReceiptAck, Receipts, client_frame, server_frame,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::client::{self, Account, Line, place};
use super::cluster::WINDOW_ENTRIES_MAX;
use super::stage::Stage;

/// Sessions of one client, at most.
const SESSIONS_MAX: usize = 3;
/// One session in so many lasts until the device has everything, however often its node attaches it again.
const STAYS: f64 = 0.25;
/// Of all committed acknowledgements, those that are followed by one of something never handed out.
const LIES: f64 = 0.05;
/// Between two looks whether that is so.
const LOOK: Duration = Duration::from_millis(500);
/// In a quiet cluster such a session gets within this what is there.
const PROMPT: Duration = Duration::from_secs(10);

/// Receives until the device has everything.
pub(super) async fn run(stage: &Stage, account: &Account, number: u64) {
    let mut listener = Listener {
        chance: stage.chance(2, number),
        stage,
        account,
        kept: None,
        seen: BTreeSet::new(),
    };
    while !listener.is_done() {
        if stage.is_over() {
            stage.complain(format!("{} has not got everything", account.device));
            break;
        }
        listener.client().await;
        let away = Duration::from_millis(listener.chance.random_range(0..3_000));
        sleep(away).await;
    }
    listener.acknowledge_all().await;
    stage.recorder.record(Event::Drained {
        device: account.device.clone(),
    });
}

struct Listener<'a> {
    stage: &'a Stage,
    account: &'a Account,
    chance: StdRng,
    /// Everything up to here is the device's, whichever of its clients got it.
    kept: Option<Cursor>,
    seen: BTreeSet<Place>,
}

/// One run of the client.
struct Run {
    client: ClientRun,
    cursor: Option<Cursor>,
    /// Of its first session.
    epoch: Option<Epoch>,
    /// What was acknowledged in this session.
    acked: Option<Cursor>,
    /// Read marks follow acknowledgements that are committed.
    last_from: Option<String>,
    /// What it acknowledged though it was never handed that.
    lie: Option<Cursor>,
}

impl Listener<'_> {
    /// Its device has everything, and the sender that lives by its receipts has them.
    fn is_done(&self) -> bool {
        let settled = || self.stage.settled.borrow().contains(&self.account.device);
        self.has_all() && (self.account.watches || settled())
    }

    fn has_all(&self) -> bool {
        self.stage.senders_left.get() == 0 && !self.misses_something()
    }

    fn misses_something(&self) -> bool {
        let recorder = &self.stage.recorder;
        recorder.misses(&self.account.device.user, &self.seen)
    }

    async fn client(&mut self) {
        let cursor = self.kept.filter(|_| self.chance.random_bool(0.6));
        let mut run = self.start(cursor);
        for _ in 0..self.chance.random_range(1..=SESSIONS_MAX) {
            let stays = self.chance.random_bool(STAYS);
            let length = match stays {
                true => Duration::from_secs(100),
                false => Duration::from_millis(self.chance.random_range(200..6_000)),
            };
            self.session(&mut run, Instant::now() + length).await;
        }
    }

    fn start(&mut self, cursor: Option<Cursor>) -> Run {
        let device = &self.account.device;
        Run {
            client: self.stage.recorder.start_client(device, cursor.map(place)),
            cursor,
            epoch: None,
            acked: None,
            last_from: None,
            lie: None,
        }
    }

    async fn connect(&mut self, run: &mut Run) -> Option<Line> {
        // A cursor in hello acknowledges.
        if let Some(cursor) = run.cursor {
            self.stage.recorder.record(Event::AckCalled {
                client: run.client,
                cursor: place(cursor),
            });
        }
        let hello = Hello {
            attach: Some(Attach {
                cursor: run.cursor,
                window_entries: self.chance.random_range(0..=8),
                window_bytes: 0,
                client: run.epoch,
                on_first_frame: true,
            }),
            ..Hello::default()
        };
        let node = self.stage.draw_node(&mut self.chance);
        let connected = client::connect(self.stage, node, self.account, hello).await;
        let Some((line, welcome)) = connected else {
            sleep(Duration::from_millis(self.chance.random_range(20..300))).await;
            return None;
        };
        run.epoch = run.epoch.or(welcome.epoch);
        line.say(client_frame::Frame::Ping(Ping::default()));
        if let Some(cursor) = run.cursor {
            self.committed(run, cursor);
        }
        Some(line)
    }

    async fn session(&mut self, run: &mut Run, until: Instant) {
        let Some(mut line) = self.connect(run).await else {
            return;
        };
        run.acked = None;
        run.lie = None;
        let mut came = Instant::now();
        loop {
            let frame = tokio::select! {
                biased;
                frame = line.next() => frame,
                () = sleep_until(until) => return,
                () = sleep(LOOK) => {
                    if self.is_done() {
                        return;
                    }
                    let waits = self.misses_something() && came.elapsed() >= PROMPT;
                    if waits && self.stage.is_quiet_for(PROMPT) {
                        return self.complain(&"nothing, though there is something to tell");
                    }
                    self.ack(run, &line);
                    continue;
                }
            };
            came = Instant::now();
            match frame {
                Some(server_frame::Frame::Entries(entries)) => self.on_entries(run, &line, entries),
                Some(server_frame::Frame::Ack(answer)) => self.on_ack(run, &line, &answer),
                Some(server_frame::Frame::Read(answer)) => self.on_read(run, &answer),
                Some(server_frame::Frame::Receipts(receipts)) => {
                    self.on_receipts(&line, &receipts);
                }
                Some(server_frame::Frame::Pong(_)) => {}
                Some(server_frame::Frame::Goodbye(goodbye)) => {
                    let error = goodbye.error.unwrap_or_default();
                    // Not displaced either: a device has one client at a time here.
                    if !error.retryable {
                        self.complain(&error);
                    }
                    return;
                }
                Some(other) => return self.complain(&other),
                None => return,
            }
        }
    }

    /// At least once on the wire; a client that keeps its cursor takes each once. Ranges that have expired stand among
    /// the entries by their numbers.
    fn on_entries(&mut self, run: &mut Run, line: &Line, entries: Entries) {
        let incarnation = entries.incarnation;
        let mut skipped = entries.skipped.into_iter().peekable();
        for entry in entries.entries {
            while let Some(range) = skipped.next_if(|range| range.first < entry.seq) {
                self.skip(run, incarnation, range);
            }
            self.take(run, incarnation, entry);
        }
        for range in skipped {
            self.skip(run, incarnation, range);
        }
        if self.chance.random_bool(0.7) {
            self.ack(run, line);
        }
    }

    fn take(&mut self, run: &mut Run, incarnation: u64, entry: Entry) {
        let at = Cursor {
            incarnation,
            seq: entry.seq,
        };
        if run.cursor.is_some_and(|cursor| place(at) <= place(cursor)) {
            return;
        }
        let envelope = entry.envelope.expect("an entry has an envelope");
        self.stage.recorder.record(Event::Delivered {
            client: run.client,
            place: place(at),
            from: Device {
                user: envelope.from.clone(),
                device: envelope.device,
            },
            id: envelope.id,
            body: Digest::of(&envelope.body),
        });
        run.last_from = Some(envelope.from);
        self.seen.insert(place(at));
        self.keep(run, at);
    }

    fn skip(&mut self, run: &mut Run, incarnation: u64, range: Range) {
        let known = run.cursor.map_or(0, |cursor| cursor.seq);
        let first = range.first.max(known + 1);
        if first > range.last {
            return;
        }
        let at = |seq| Cursor { incarnation, seq };
        self.stage.recorder.record(Event::Skipped {
            client: run.client,
            first: place(at(first)),
            last: range.last,
        });
        self.seen
            .extend((first..=range.last).map(|seq| place(at(seq))));
        self.stage.saw("expiry");
        self.keep(run, at(range.last));
    }

    fn keep(&mut self, run: &mut Run, at: Cursor) {
        run.cursor = Some(at);
        if self.kept.map(place) < Some(place(at)) {
            self.kept = Some(at);
        }
    }

    /// For the device's sender; what it has is acknowledged now and then.
    fn on_receipts(&mut self, line: &Line, receipts: &Receipts) {
        let device = &self.account.device;
        if receipts.missed_up_to > 0 {
            self.stage.missed.borrow_mut().insert(device.clone());
        }
        let mut all = self.stage.receipts.borrow_mut();
        let marks = all.entry(device.clone()).or_default();
        for receipt in &receipts.receipts {
            if !marks.note(receipt) {
                self.complain(receipt);
            }
        }
        let last = receipts.receipts.last();
        let revision = last
            .map_or(0, |last| last.revision)
            .max(receipts.missed_up_to);
        if self.chance.random_bool(0.3) {
            line.say(client_frame::Frame::ReceiptAck(ReceiptAck { revision }));
        }
    }

    /// Acknowledges what has come, unless that was done.
    fn ack(&self, run: &mut Run, line: &Line) {
        if run.cursor.map(place) <= run.acked.map(place) {
            return;
        }
        run.acked = run.cursor;
        let Some(cursor) = run.cursor else {
            return;
        };
        self.stage.recorder.record(Event::AckCalled {
            client: run.client,
            cursor: place(cursor),
        });
        let ack = Ack {
            cursor: Some(cursor),
        };
        line.say(client_frame::Frame::Ack(ack));
    }

    /// Acknowledges what it never got, as a broken client might.
    fn lie(&self, run: &mut Run, line: &Line) {
        if let Some(cursor) = run.cursor
            && run.lie.is_none()
        {
            // Beyond every window: what is on its way to it may be acknowledged.
            let seq = cursor.seq + WINDOW_ENTRIES_MAX + 1;
            run.lie = Some(Cursor { seq, ..cursor });
            line.say(client_frame::Frame::Ack(Ack { cursor: run.lie }));
        }
    }

    fn on_ack(&mut self, run: &mut Run, line: &Line, answer: &AckAnswer) {
        let lied = run.lie.is_some() && answer.cursor == run.lie;
        let cursor = match (&answer.error, answer.cursor) {
            (Some(error), _) if lied && error.code() == Code::BadCursor => {
                run.lie = None;
                return;
            }
            (None, Some(cursor)) => cursor,
            (Some(error), _) if error.retryable => {
                run.acked = None;
                return;
            }
            _ => return self.complain(answer),
        };
        self.committed(run, cursor);
        if self.chance.random_bool(LIES) {
            self.lie(run, line);
        }
        let (Some(from), true) = (&run.last_from, self.chance.random_bool(0.3)) else {
            return;
        };
        self.stage.recorder.record(Event::ReadCalled {
            client: run.client,
            from: from.clone(),
            cursor: place(cursor),
        });
        line.say(client_frame::Frame::Read(ReadMark {
            from: from.clone(),
            up_to: Some(cursor),
        }));
    }

    fn on_read(&mut self, run: &Run, answer: &ReadAnswer) {
        match &answer.error {
            Some(error) if error.retryable => {}
            Some(_) => self.complain(answer),
            None => self.stage.recorder.record(Event::ReadCommitted {
                client: run.client,
                from: answer.from.clone(),
                cursor: place(answer.up_to.unwrap_or_default()),
            }),
        }
    }

    /// Nothing that a server may say to a listener here.
    fn complain(&self, of: &impl std::fmt::Debug) {
        self.stage
            .complain(format!("{} was told {of:?}", self.account.device));
    }

    fn committed(&self, run: &Run, cursor: Cursor) {
        self.stage.recorder.record(Event::AckCommitted {
            client: run.client,
            cursor: place(cursor),
        });
    }

    /// Comes back with the kept cursor until that is committed.
    async fn acknowledge_all(&mut self) {
        let mut run = self.start(self.kept);
        while !self.stage.is_over() {
            if let Some(mut line) = self.connect(&mut run).await {
                let entries = async {
                    loop {
                        match line.next().await {
                            Some(server_frame::Frame::Entries(entries)) => return Some(entries),
                            Some(_) => {}
                            None => return None,
                        }
                    }
                };
                // Whatever more came would be a message twice, which the checker has to see.
                let more = timeout(Duration::from_secs(1), entries).await;
                if let Ok(Some(entries)) = more {
                    self.on_entries(&mut run, &line, entries);
                }
                return;
            }
        }
        self.stage
            .complain(format!("{} could not acknowledge", self.account.device));
    }
}
