//! A session's receiving side: its attachment, made again at whoever leads, and its window.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use roost_proto::peer::{AttachRequest, AttachResponse, Push, push};
use roost_proto::v1::{
    AckAnswer, Code, Cursor, Entries, Epoch, Error, Watching, server_frame::Frame,
};

use super::hello::Identity;
use super::{Settings, refusal};
use crate::metrics;
use crate::replica::body_bytes;
use crate::router::{self, Attached, Room, Router};
use crate::sabotage::{self, Break};

/// Wait before attaching is tried again, when the router has given up.
const RETRY: Duration = Duration::from_millis(200);
/// For how long a leader is looked for. An election takes less; a node that finds none may be the one that is cut off, and
/// its clients are better served by any other.
const ATTACH_MAX: Duration = Duration::from_secs(3);

/// Receipts, and pushes that only name what has expired, that may be on their way to a session. They are granted again
/// when they are handed on, which is as fast as the client reads.
const WINDOW_NOTICES: u32 = 1024;

/// What a session is for besides sending.
pub(super) struct Wanted {
    /// Receive the device's queue.
    pub(super) attach: Option<Start>,
    /// See receipts as they come.
    pub(super) watch: bool,
}

/// Where receiving starts, and how much may be on its way.
pub(super) struct Start {
    pub(super) cursor: Cursor,
    pub(super) window_entries: u32,
    pub(super) window_bytes: u64,
    /// The session's, and that of its client's first session.
    pub(super) epoch: Epoch,
    pub(super) client: Epoch,
    /// Wait until the client has said something: it may have gone while its hello was on its way, and connected again.
    pub(super) on_first_frame: bool,
}

/// What [`Receive::next`] gives.
pub(super) enum Received {
    /// For the client.
    Frame(Frame),
    /// The session is over.
    Over(Error),
}

/// The receiving side.
pub(super) struct Receive {
    router: Arc<Router>,
    identity: Arc<Identity>,
    within: Duration,
    window: Option<Window>,
    watch: bool,
    link: Link,
    /// Receipts up to this revision were handed to the client; the next attachment goes on from there.
    receipts_after: Option<u64>,
    /// What became free since the attachment's room was reckoned, and was not granted yet.
    ungranted: Room,
}

enum Link {
    /// Nothing is wanted, or not yet.
    Off,
    Attaching(BoxFuture<'static, Result<(Attached, AttachResponse), router::Error>>),
    Attached(Attached),
}

/// What was handed to the client and not acknowledged.
struct Window {
    start: Start,
    handed_seq: u64,
    unacknowledged: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Receive {
    pub(super) fn new(
        router: Arc<Router>,
        identity: Arc<Identity>,
        wanted: Wanted,
        settings: &Settings,
    ) -> Self {
        let mut receive = Self {
            router,
            identity,
            within: Duration::from_millis(settings.session.request_timeout_ms).min(ATTACH_MAX),
            window: wanted.attach.map(Window::new),
            watch: wanted.watch,
            link: Link::Off,
            receipts_after: None,
            ungranted: Room::default(),
        };
        let waits = |window: &Window| window.start.on_first_frame;
        if !receive.window.as_ref().is_some_and(waits) {
            receive.begin();
        }
        receive
    }

    /// The client has said something, so it has the welcome.
    pub(super) fn client_is_here(&mut self) {
        if let Some(window) = &mut self.window
            && std::mem::take(&mut window.start.on_first_frame)
        {
            self.begin();
        }
    }

    fn begin(&mut self) {
        if self.window.is_some() || self.watch {
            self.attach(Duration::ZERO);
        }
    }

    /// Whether this session receives the queue, and not only watches.
    pub(super) fn is_attached(&self) -> bool {
        self.window.is_some()
    }

    /// Checks a client's cursor and makes room for what it covers. Refused beyond what was handed to it.
    pub(super) fn on_ack(&mut self, cursor: Option<Cursor>) -> Result<Cursor, AckAnswer> {
        let refuse = |message: &str| AckAnswer {
            cursor,
            error: Some(refusal::last(Code::BadCursor, message)),
        };
        let Some(acked) = cursor else {
            return Err(refuse("an ack carries a cursor"));
        };
        let Some(window) = &mut self.window else {
            return Err(refuse("only a session that receives acknowledges"));
        };
        let beyond = acked.seq > window.handed_seq && !sabotage::on(Break::CursorUnchecked);
        if acked.incarnation != window.start.cursor.incarnation || beyond {
            return Err(refuse("the cursor is beyond what this session was handed"));
        }
        let (entries, bytes) = window.free_up_to(acked.seq);
        self.ungranted.entries += entries;
        self.ungranted.bytes += bytes;
        self.grant();
        Ok(acked)
    }

    /// Passes on what became free. While attaching it waits: the request that is under way speaks of less room, and
    /// without this a full window would stay shut.
    fn grant(&mut self) {
        let (window, room) = (self.window.as_ref(), &self.ungranted);
        let is_worth_it = room.notices >= WINDOW_NOTICES / 4
            || window.is_some_and(|window| window.is_worth_a_grant(room));
        if is_worth_it && let Link::Attached(attached) = &self.link {
            attached.grant(std::mem::take(&mut self.ungranted));
        }
    }

    /// The next thing for the client; waits for ever if nothing is wanted.
    pub(super) async fn next(&mut self) -> Received {
        loop {
            match &mut self.link {
                Link::Off => return std::future::pending().await,
                Link::Attaching(attaching) => {
                    let answer = attaching.await;
                    if let Some(received) = self.on_attached(answer) {
                        return received;
                    }
                }
                Link::Attached(attached) => {
                    let push = attached.next().await;
                    if let Some(received) = self.on_push(push) {
                        return received;
                    }
                }
            }
        }
    }

    fn on_attached(
        &mut self,
        answer: Result<(Attached, AttachResponse), router::Error>,
    ) -> Option<Received> {
        let (attached, response) = match answer {
            Ok(answer) => answer,
            Err(router::Error::Unavailable { .. }) => {
                let why = "this node finds no leader of the account's shard";
                return Some(Received::Over(refusal::retryable(
                    Code::GoElsewhere,
                    why,
                    0,
                )));
            }
            Err(error) => {
                tracing::debug!(%error, "attaching again");
                self.attach(RETRY);
                return None;
            }
        };
        match response.error {
            Some(error) if error.retryable => {
                self.attach(RETRY);
                None
            }
            Some(error) => Some(Received::Over(error)),
            None => {
                self.link = Link::Attached(attached);
                self.grant();
                // Attached again, it goes on behind the last revision, and has missed nothing that it is not told of.
                let first = self.receipts_after.is_none();
                self.receipts_after.get_or_insert(response.receipts_after);
                (first && self.watch).then(|| Received::Frame(Frame::Watching(Watching {})))
            }
        }
    }

    fn on_push(&mut self, push: Option<Push>) -> Option<Received> {
        match push.and_then(|push| push.push) {
            Some(push::Push::Entries(entries)) => {
                self.window.as_mut()?.hand(&entries);
                self.free_notices(usize::from(entries.entries.is_empty()));
                Some(Received::Frame(Frame::Entries(entries)))
            }
            Some(push::Push::Receipts(receipts)) => {
                let last = receipts.receipts.last();
                let reached = last.map_or(receipts.missed_up_to, |receipt| receipt.revision);
                self.receipts_after = self.receipts_after.max(Some(reached));
                self.free_notices(receipts.receipts.len().max(1));
                Some(Received::Frame(Frame::Receipts(receipts)))
            }
            Some(push::Push::Ended(ended)) => match ended.error {
                Some(error) => Some(Received::Over(error)),
                None => {
                    self.attach(Duration::ZERO);
                    None
                }
            },
            None => {
                self.attach(Duration::ZERO);
                None
            }
        }
    }

    /// These have been handed on.
    fn free_notices(&mut self, notices: usize) {
        self.ungranted.notices += u32::try_from(notices).unwrap_or(u32::MAX);
        self.grant();
    }

    /// Attaches (again) from what was handed to the client last, with the room that its window has left.
    fn attach(&mut self, after: Duration) {
        let (room_entries, room_bytes) = self.window.as_ref().map_or((0, 0), Window::room);
        self.ungranted = Room::default();
        let request = AttachRequest {
            shard: self.identity.shard.0,
            attachment: 0,
            user: self.identity.user.to_string(),
            device: self.identity.device,
            cursor: self.window.as_ref().map(Window::handed),
            receipts: true,
            window_entries: room_entries,
            window_bytes: room_bytes,
            epoch: self.window.as_ref().map(|window| window.start.epoch),
            receipts_after: self.receipts_after,
            client: self.window.as_ref().map(|window| window.start.client),
            window_notices: WINDOW_NOTICES,
        };
        let (router, within) = (Arc::clone(&self.router), self.within);
        self.link = Link::Attaching(Box::pin(async move {
            tokio::time::sleep(after).await;
            router.attach(request, within).await
        }));
    }
}

impl Window {
    fn new(start: Start) -> Self {
        Self {
            handed_seq: start.cursor.seq,
            start,
            unacknowledged: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Room is granted by the quarter, not one by one: the leader has the rest meanwhile.
    fn is_worth_a_grant(&self, room: &Room) -> bool {
        let (entries, bytes) = (self.start.window_entries / 4, self.start.window_bytes / 4);
        room.entries >= entries.max(1) || room.bytes >= bytes.max(1)
    }

    fn handed(&self) -> Cursor {
        Cursor {
            incarnation: self.start.cursor.incarnation,
            seq: self.handed_seq,
        }
    }

    fn room(&self) -> (u32, u64) {
        let held = u32::try_from(self.unacknowledged.len()).unwrap_or(u32::MAX);
        let entries = self.start.window_entries.saturating_sub(held);
        (entries, self.start.window_bytes.saturating_sub(self.bytes))
    }

    fn hand(&mut self, entries: &Entries) {
        for entry in &entries.entries {
            let bytes = body_bytes(entry) as u64;
            self.unacknowledged.push_back((entry.seq, bytes));
            self.bytes += bytes;
            self.handed_seq = self.handed_seq.max(entry.seq);
            metrics::WINDOW_BYTES.handle().increment(bytes as f64);
        }
        for skipped in &entries.skipped {
            self.handed_seq = self.handed_seq.max(skipped.last);
        }
        metrics::WINDOW_ENTRIES
            .handle()
            .increment(entries.entries.len() as f64);
    }

    fn free_up_to(&mut self, seq: u64) -> (u32, u64) {
        let (mut entries, mut freed) = (0, 0);
        while let Some((first, bytes)) = self.unacknowledged.front()
            && *first <= seq
        {
            entries += 1;
            freed += bytes;
            self.unacknowledged.pop_front();
        }
        self.bytes -= freed;
        metrics::WINDOW_ENTRIES
            .handle()
            .decrement(f64::from(entries));
        metrics::WINDOW_BYTES.handle().decrement(freed as f64);
        (entries, freed)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        metrics::WINDOW_ENTRIES
            .handle()
            .decrement(self.unacknowledged.len() as f64);
        metrics::WINDOW_BYTES.handle().decrement(self.bytes as f64);
    }
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
