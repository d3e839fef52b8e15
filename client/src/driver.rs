//! The background task: it owns the connection, makes it anew, and moves the state between caller and server.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use roost_proto::v1::{self, ClientFrame, Status};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::acks::{self, Wanted};
use crate::backoff::Backoff;
use crate::bounds::Permit;
use crate::connection::{Connection, Failure, of_goodbye, of_status};
use crate::error::{Error, Trouble};
use crate::message::{Answer, Cursor, Event, Incoming, Outgoing, Receipt};
use crate::options::Options;
use crate::servers::Servers;
use crate::state::{Effect, State};
use crate::{conversation, reads, ticks};

/// How long the last frames may take to leave when the client closes.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the caller asks of the task. Each that has to wait there holds a permit of its kind.
#[derive(Debug)]
pub(crate) enum Command {
    Send(Outgoing, conversation::Reply, Permit),
    Read(String, Cursor, reads::Reply, Permit),
    WaitStatus(Answer, Status, ticks::Reply, Permit),
    WaitAcked(Cursor, acks::Reply, OwnedSemaphorePermit),
    Close(oneshot::Sender<()>),
}

/// Where the client stands.
#[derive(Clone, Debug, Default)]
pub(crate) enum Standing {
    #[default]
    Connecting,
    Up {
        node: String,
    },
    Ended(Error),
}

/// The task's ends of the channels to the caller.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) entries: mpsc::Sender<Incoming>,
    pub(crate) receipts: broadcast::Sender<Receipt>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) trouble: watch::Sender<Option<Trouble>>,
    pub(crate) dropped: CancellationToken,
}

pub(crate) struct Driver {
    options: Options,
    caller: Caller,
    state: State,
    servers: Servers,
    backoff: Backoff,
    /// Attach without a cursor: the server refused ours.
    cursor_refused: bool,
    closing: Option<Closing>,
}

struct Closing {
    deadline: Instant,
    replies: Vec<oneshot::Sender<()>>,
}

/// How serving a connection ended.
enum End {
    Failed(Failure),
    Closed,
}

impl Driver {
    pub(crate) fn new(options: Options, caller: Caller) -> Self {
        Self {
            state: State::new(options.clone(), caller.wanted.clone()),
            servers: Servers::new(&options.servers),
            backoff: Backoff::new(options.backoff_min, options.backoff_max),
            cursor_refused: false,
            closing: None,
            options,
            caller,
        }
    }

    pub(crate) async fn run(mut self) {
        let dropped = self.caller.dropped.clone();
        let error = tokio::select! {
            () = dropped.cancelled() => Error::Closed,
            error = self.keep_connected() => error,
        };
        self.caller
            .standing
            .send_replace(Standing::Ended(error.clone()));
        self.state.fail(&error);
        let _ = self.caller.events.send(Event::Ended(error));
        for reply in self.closing.into_iter().flat_map(|closing| closing.replies) {
            let _ = reply.send(());
        }
        // Commands that come too late are dropped with the channel: their callers look at the standing.
    }

    /// Returns when the client is over, with the reason.
    async fn keep_connected(&mut self) -> Error {
        let mut failures = 0;
        loop {
            let server = self.servers.next();
            let hello = self.hello();
            let connect = Connection::open(server.clone(), hello, self.options.connect_timeout);
            let end = match self.meanwhile(connect).await {
                None => return Error::Closed,
                Some(Ok((connection, welcome))) => {
                    failures = 0;
                    self.connected(welcome);
                    let end = self.serve(&server, connection).await;
                    self.state.disconnected();
                    end
                }
                Some(Err(failure)) => {
                    failures += 1;
                    End::Failed(failure)
                }
            };
            let pause = match end {
                End::Closed => return Error::Closed,
                End::Failed(Failure::Final(error)) => return error,
                End::Failed(Failure::BadCursor(refusal)) if self.cursor_refused => {
                    return Error::Ended(refusal);
                }
                End::Failed(failure) => self.failed(failure, failures),
            };
            if self.meanwhile(sleep(pause)).await.is_none() {
                return Error::Closed;
            }
        }
    }

    /// The pause before the next attempt.
    fn failed(&mut self, failure: Failure, failures: usize) -> Duration {
        let (reason, pause) = match failure {
            // After the session or an attempt failed, the other servers are each worth one try at once.
            Failure::Lost(reason) if failures < self.servers.len() => {
                (reason, self.options.backoff_min.mul_f64(rand::random()))
            }
            Failure::Lost(reason) => (reason, self.backoff.pause()),
            Failure::Elsewhere {
                reason,
                servers,
                after,
            } => {
                self.servers.hint(&servers);
                (reason, after.max(self.backoff.pause()))
            }
            Failure::BadCursor(refusal) => {
                self.cursor_refused = true;
                self.state.inbox.reset();
                let _ = self.caller.events.send(Event::CursorReset);
                (refusal.to_string(), Duration::ZERO)
            }
            Failure::Final(error) => (error.to_string(), Duration::ZERO),
        };
        tracing::debug!(reason, ?pause, "no session");
        self.caller.standing.send_replace(Standing::Connecting);
        self.caller
            .trouble
            .send_replace(Some(Trouble::Disconnected(reason.clone())));
        let _ = self.caller.events.send(Event::Disconnected { reason });
        pause
    }

    fn hello(&self) -> v1::Hello {
        let cursor = self
            .state
            .attach_cursor()
            .filter(|_| !self.cursor_refused)
            .map(Into::into);
        v1::Hello {
            user: self.options.credentials.user.clone(),
            device: self.options.credentials.device,
            key: self.options.credentials.key.clone(),
            attach: self.options.attach.map(|attach| v1::Attach {
                cursor,
                window_entries: attach.window_entries,
                window_bytes: attach.window_bytes,
                client: self.state.client_epoch(),
                on_first_frame: true,
            }),
            watch: self.options.watch,
            client: self.options.software.clone(),
        }
    }

    fn connected(&mut self, welcome: v1::Welcome) {
        self.state.connected(&welcome, Instant::now());
        self.cursor_refused = false;
        tracing::debug!(node = welcome.node, "session");
        self.caller.trouble.send_replace(None);
        self.caller.standing.send_replace(Standing::Up {
            node: welcome.node.clone(),
        });
        let node = welcome.node;
        let _ = self.caller.events.send(Event::Connected { node });
    }

    async fn serve(&mut self, server: &str, mut connection: Connection) -> End {
        loop {
            let now = Instant::now();
            if self.closing.is_some() && self.state.is_flushed() {
                farewell(connection).await;
                return End::Closed;
            }
            let speak = self.state.has_next(now);
            let wakes_at = self.state.wakes_at(now);
            tokio::select! {
                biased;
                frame = connection.inbound.message() => match frame {
                    Ok(Some(v1::ServerFrame { frame: Some(frame) })) => {
                        let effect = self.state.take(frame, Instant::now());
                        if let Some(failure) = self.perform(effect) {
                            return End::Failed(failure);
                        }
                    }
                    // A frame of a later version.
                    Ok(Some(v1::ServerFrame { frame: None })) => {}
                    Ok(None) => return End::Failed(Failure::Lost(format!("{server} ended the session"))),
                    Err(status) => return End::Failed(of_status(server, &status)),
                },
                permit = connection.outbound.reserve(), if speak => match permit {
                    Ok(permit) => {
                        if let Some(frame) = self.state.next(now) {
                            permit.send(ClientFrame { frame: Some(frame) });
                        }
                    }
                    Err(_) => return End::Failed(Failure::Lost(format!("{server} closed the stream"))),
                },
                closed = self.local() => if closed {
                    return End::Closed;
                },
                () = sleep_until(wakes_at) => {
                    if let Some(why) = self.state.is_dead(Instant::now()) {
                        return End::Failed(Failure::Lost(format!("{server}: {why}")));
                    }
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Failure> {
        match effect {
            Effect::None => {}
            Effect::Progress => {
                self.backoff.reset();
                self.caller
                    .trouble
                    .send_if_modified(|trouble| trouble.take().is_some());
            }
            Effect::Refused(refusal) => {
                // Positions are between the client and the server; the refusal that made the gap is what matters.
                if refusal.code != v1::Code::PositionGap {
                    self.caller
                        .trouble
                        .send_replace(Some(Trouble::Refused(refusal)));
                }
            }
            Effect::Tell(event) => {
                let _ = self.caller.events.send(event);
            }
            Effect::Receipts {
                missed_up_to,
                receipts,
            } => {
                if missed_up_to > 0 {
                    let missed = Event::ReceiptsMissed {
                        up_to: missed_up_to,
                    };
                    let _ = self.caller.events.send(missed);
                }
                for receipt in receipts {
                    let _ = self.caller.receipts.send(receipt);
                }
            }
            Effect::Reconnect(reason) => {
                return Some(Failure::Elsewhere {
                    reason,
                    servers: Vec::new(),
                    after: Duration::ZERO,
                });
            }
            Effect::Goodbye(goodbye) => return Some(of_goodbye(goodbye)),
        }
        None
    }

    /// Drives `future` while the caller is served; `None` when the client has closed meanwhile.
    async fn meanwhile<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        loop {
            if self.closing.is_some() && self.state.is_flushed() {
                return None;
            }
            tokio::select! {
                biased;
                output = &mut future => return Some(output),
                closed = self.local() => if closed {
                    return None;
                },
            }
        }
    }

    /// One thing between the caller and the state; true when the time to close is over. Loses nothing when dropped.
    async fn local(&mut self) -> bool {
        let deadline = self.closing.as_ref().map(|closing| closing.deadline);
        let waiting = !self.state.inbox.is_empty();
        let caller = &mut self.caller;
        tokio::select! {
            // The channel ends with the client, and so does the task.
            Some(command) = caller.commands.recv() => self.command(command),
            Ok(()) = caller.wanted.changed() => {}
            Ok(()) = async { caller.entries.reserve().await.map(drop) }, if waiting => {
                // There is room, and nobody else sends.
                if let Some(incoming) = self.state.inbox.pop() {
                    let sent = self.caller.entries.try_send(incoming);
                    debug_assert!(sent.is_ok());
                }
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return true,
            else => std::future::pending().await,
        }
        false
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Send(message, reply, permit) => {
                self.state.pipeline.push(message, reply, permit);
            }
            Command::Read(from, up_to, reply, permit) => {
                self.state.reads.push(from, up_to, reply, permit);
            }
            Command::WaitStatus(answer, status, reply, permit) => {
                self.state.ticks.wait(answer, status, reply, permit);
            }
            Command::WaitAcked(cursor, reply, permit) => {
                self.state.acks.wait(cursor, reply, permit);
            }
            Command::Close(reply) => {
                let deadline = Instant::now() + self.options.close_timeout;
                self.closing
                    .get_or_insert(Closing {
                        deadline,
                        replies: Vec::new(),
                    })
                    .replies
                    .push(reply);
            }
        }
    }
}

/// Ends the stream from our side and lets the last frames out.
async fn farewell(mut connection: Connection) {
    drop(connection.outbound);
    let drain = async { while let Ok(Some(_)) = connection.inbound.message().await {} };
    let _ = timeout(FAREWELL, drain).await;
}
