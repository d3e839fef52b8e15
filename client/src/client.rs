//! The handle: what a caller can do.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use roost_proto::v1::Status;
use tokio::sync::{AcquireError, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::acks::Wanted;
use crate::bounds::Bound;
use crate::driver::{Caller, Command, Driver, Standing};
use crate::error::{Error, Trouble};
use crate::message::{Answer, Cursor, Event, Incoming, Outgoing, Receipt};
use crate::options::{Options, SendOptions};
use crate::streams::{Entries, Events, Receipts};

/// Commands on their way to the task.
const COMMANDS_MAX: usize = 256;
/// Entries between the task and the caller; what waits behind them is bounded by the window.
const ENTRIES_MAX: usize = 64;
/// Receipts that a slow stream may be behind before it is told that it lags.
const RECEIPTS_MAX: usize = 4096;
/// The same for events.
const EVENTS_MAX: usize = 256;
/// Read marks without an answer; beyond it [`Client::mark_read`] waits.
const READS_MAX: usize = 1024;
/// The same for one conversation.
const CONVERSATION_READS_MAX: usize = 256;
/// Callers that wait for an acknowledgement; beyond it [`Client::acked`] waits for its turn first.
const ACKED_MAX: usize = 1024;

/// A device's session with the cluster. Dropping it ends the session at once; [`close`](Self::close) flushes first.
#[derive(Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    wanted: watch::Sender<Wanted>,
    entries: Arc<Mutex<mpsc::Receiver<Incoming>>>,
    receipts: broadcast::WeakSender<Receipt>,
    events: broadcast::WeakSender<Event>,
    standing: watch::Receiver<Standing>,
    trouble: watch::Receiver<Option<Trouble>>,
    pending: Bound,
    open: Bound,
    reads: Bound,
    acked: Arc<Semaphore>,
    watches: bool,
    _task: DropGuard,
}

impl Client {
    /// Starts the client; it connects in the background and for as long as it lives. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the options make no sense; never because no server answers.
    pub fn connect(options: Options) -> Result<Self, Error> {
        options.check()?;
        let (commands, command_receiver) = mpsc::channel(COMMANDS_MAX);
        let (wanted, wanted_receiver) = watch::channel(Wanted::default());
        let (entry_sender, entries) = mpsc::channel(ENTRIES_MAX);
        let (receipts, _) = broadcast::channel(RECEIPTS_MAX);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (standing_sender, standing) = watch::channel(Standing::default());
        let (trouble_sender, trouble) = watch::channel(None);
        let dropped = CancellationToken::new();
        let client = Self {
            commands,
            wanted,
            entries: Arc::new(Mutex::new(entries)),
            receipts: receipts.downgrade(),
            events: events.downgrade(),
            standing,
            trouble,
            pending: Bound::new(options.pending_max, options.conversation_pending_max),
            open: Bound::new(options.open_max, options.conversation_open_max),
            reads: Bound::new(READS_MAX, CONVERSATION_READS_MAX),
            acked: Arc::new(Semaphore::new(ACKED_MAX)),
            watches: options.watch,
            _task: dropped.clone().drop_guard(),
        };
        let caller = Caller {
            commands: command_receiver,
            wanted: wanted_receiver,
            entries: entry_sender,
            receipts,
            events,
            standing: standing_sender,
            trouble: trouble_sender,
            dropped,
        };
        tokio::spawn(Driver::new(options, caller).run());
        Ok(client)
    }

    /// Waits until a session stands, and says with which node.
    ///
    /// # Errors
    /// When the client is over.
    pub async fn ready(&self) -> Result<String, Error> {
        let mut standing = self.standing.clone();
        let standing = standing
            .wait_for(|standing| !matches!(standing, Standing::Connecting))
            .await;
        match standing.as_deref() {
            Ok(Standing::Up { node }) => Ok(node.clone()),
            Ok(Standing::Ended(error)) => Err(error.clone()),
            Ok(Standing::Connecting) | Err(_) => Err(Error::Closed),
        }
    }

    /// Waits until the client is over, and says why.
    pub async fn ended(&self) -> Error {
        let mut standing = self.standing.clone();
        let standing = standing
            .wait_for(|standing| matches!(standing, Standing::Ended(_)))
            .await;
        match standing.as_deref() {
            Ok(Standing::Ended(error)) => error.clone(),
            _ => Error::Closed,
        }
    }

    /// What stands in the way at the moment, if anything does.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.borrow().clone()
    }

    /// Waits until something stands in the way, and says what; `None` when the client is over.
    pub async fn troubled(&self) -> Option<Trouble> {
        let mut trouble = self.trouble.clone();
        let trouble = trouble.wait_for(Option::is_some).await;
        trouble.ok().and_then(|trouble| trouble.clone())
    }

    /// Hands a message to the client; waits while `pending_max` are unanswered, or `conversation_pending_max` of this
    /// recipient. Messages to one recipient go in the order in which these calls return. The handle is the answer to
    /// come; the message is sent also without it.
    ///
    /// # Errors
    /// When the client is over.
    pub async fn send(
        &self,
        to: impl Into<String>,
        body: impl Into<Bytes>,
        options: SendOptions,
    ) -> Result<SendHandle, Error> {
        let to = to.into();
        let permit = self.unless_ended(self.pending.room(&to)).await?;
        let id = options.id.unwrap_or_else(|| Uuid::new_v4().to_string());
        let message = Outgoing {
            id: id.clone(),
            to,
            kind: options.kind,
            body: body.into(),
            ttl_ms: options.ttl.map_or(0, |ttl| {
                u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
            }),
            made: Instant::now(),
            sent_at_ms: options.sent_at_ms,
        };
        let (reply, answer) = oneshot::channel();
        self.command(Command::Send(message, reply, permit)).await?;
        Ok(SendHandle {
            id,
            answer,
            standing: self.standing.clone(),
        })
    }

    /// Waits until an accepted message has come as far as `Delivered` or `Read`, or has expired. Needs a client that
    /// watches; it survives reconnects.
    ///
    /// # Errors
    /// When the client does not watch, the server has forgotten the message, or the client is over.
    pub async fn wait_status(&self, answer: &Answer, status: Status) -> Result<Answer, Error> {
        if answer.has_reached(status) {
            return Ok(answer.clone());
        }
        if !self.watches {
            return Err(Error::Invalid(
                "only a client that watches sees receipts".to_owned(),
            ));
        }
        let permit = self.unless_ended(self.open.room(&answer.to)).await?;
        let (reply, settled) = oneshot::channel();
        self.command(Command::WaitStatus(answer.clone(), status, reply, permit))
            .await?;
        self.reply(settled).await
    }

    /// The own queue; needs a client that attaches.
    #[must_use]
    pub fn entries(&self) -> Entries {
        Entries(Arc::clone(&self.entries))
    }

    /// Receipts from now on.
    #[must_use]
    pub fn receipts(&self) -> Receipts {
        subscribe(&self.receipts).into()
    }

    /// What happens to the session from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        subscribe(&self.events).into()
    }

    /// Everything up to here is safely the caller's and may be deleted. Cumulative; returns at once.
    pub fn ack(&self, cursor: Cursor) {
        self.wanted.send_if_modified(|wanted| {
            let newer = Some(cursor) > wanted.cursor;
            if newer {
                wanted.cursor = Some(cursor);
            }
            newer
        });
    }

    /// Receipts up to this revision have been taken note of by this device. Cumulative; returns at once.
    pub fn ack_receipts(&self, revision: u64) {
        self.wanted.send_if_modified(|wanted| {
            let newer = Some(revision) > wanted.receipts;
            if newer {
                wanted.receipts = Some(revision);
            }
            newer
        });
    }

    /// Waits until an acknowledgement up to here is committed.
    ///
    /// # Errors
    /// When it was refused for good, or the client is over.
    pub async fn acked(&self, cursor: Cursor) -> Result<Cursor, Error> {
        let acked = Arc::clone(&self.acked);
        let permit = self.unless_ended(acked.acquire_owned()).await?;
        let (reply, committed) = oneshot::channel();
        self.command(Command::WaitAcked(cursor, reply, permit))
            .await?;
        self.reply(committed).await
    }

    /// Tells `from` that everything of his up to here has been read. It goes out once the acknowledgement up to there
    /// is committed, and the answer comes when the mark is.
    ///
    /// # Errors
    /// When it was refused for good, or the client is over.
    pub async fn mark_read(&self, from: impl Into<String>, up_to: Cursor) -> Result<Cursor, Error> {
        let from = from.into();
        let permit = self.unless_ended(self.reads.room(&from)).await?;
        let (reply, marked) = oneshot::channel();
        self.command(Command::Read(from, up_to, reply, permit))
            .await?;
        self.reply(marked).await
    }

    /// Waits until acknowledgements are committed, within `close_timeout`, and ends the session. What is sent and
    /// unanswered is answered with [`Error::Closed`].
    pub async fn close(self) {
        let (reply, closed) = oneshot::channel();
        if self.command(Command::Close(reply)).await.is_ok() {
            // Dropped without an answer, the client is over as well.
            let _ = closed.await;
        }
    }

    async fn unless_ended<T>(
        &self,
        room: impl Future<Output = Result<T, AcquireError>>,
    ) -> Result<T, Error> {
        tokio::select! {
            room = room => room.map_err(|_| Error::Closed),
            error = self.ended() => Err(error),
        }
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        match self.commands.send(command).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.ended().await),
        }
    }

    async fn reply<T>(&self, reply: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        match reply.await {
            Ok(result) => result,
            Err(_) => Err(self.ended().await),
        }
    }
}

/// After the client is over there is nothing to hear.
fn subscribe<T: Clone>(sender: &broadcast::WeakSender<T>) -> broadcast::Receiver<T> {
    match sender.upgrade() {
        Some(sender) => sender.subscribe(),
        None => broadcast::channel(1).1,
    }
}

/// The answer to one send, to come. Final: accepted or refused for good; what is retryable is retried inside.
#[derive(Debug)]
pub struct SendHandle {
    id: String,
    answer: oneshot::Receiver<Result<Answer, Error>>,
    standing: watch::Receiver<Standing>,
}

impl SendHandle {
    /// The message's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Future for SendHandle {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.answer).poll(context)) {
            Ok(result) => result,
            // The task has dropped it: the client is over.
            Err(_) => Err(match &*self.standing.borrow() {
                Standing::Ended(error) => error.clone(),
                Standing::Connecting | Standing::Up { .. } => Error::Closed,
            }),
        })
    }
}
