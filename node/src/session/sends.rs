//! A session's sends: one batch at a time for each conversation, so that order needs no further care.
//!
//! Whatever a client sends to one recipient while a batch is on its way rides in the next. Different conversations do
//! not wait for each other, and one of them has a share of what the session may have in flight: a recipient whose shard
//! does not answer leaves room for the others. What exceeds a bound is refused at once and takes no position.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use prost::Message as _;
use roost_proto::storage::{self, SendItem, command, outcome};
use roost_proto::v1::{Code, Error, Kind, Send, SendAnswer, Status};
use tokio::time::Instant;

use super::hello::Identity;
use super::{Settings, refusal};
use crate::metrics;
use crate::router::Router;
use crate::types::{UserId, check_message_id};

/// Messages in one batch of one conversation.
const BATCH_ITEMS: usize = 128;
/// Bytes in one batch, unless a single message is larger.
const BATCH_BYTES: usize = 512 * 1024;

/// What a session has sent and not been answered.
pub(super) struct Sends {
    router: Arc<Router>,
    identity: Arc<Identity>,
    settings: Settings,
    /// A conversation is here while a batch of it is on its way.
    conversations: BTreeMap<UserId, Conversation>,
    on_their_way: FuturesUnordered<BoxFuture<'static, Done>>,
    in_flight: usize,
}

#[derive(Default)]
struct Conversation {
    /// What waits behind the batch.
    behind: VecDeque<Waiting>,
    /// That, and the batch.
    in_flight: usize,
}

struct Waiting {
    item: SendItem,
    since: Instant,
}

struct Done {
    to: UserId,
    since: Vec<Instant>,
    answers: Vec<SendAnswer>,
}

impl Sends {
    pub(super) fn new(router: Arc<Router>, identity: Arc<Identity>, settings: &Settings) -> Self {
        Self {
            router,
            identity,
            settings: settings.clone(),
            conversations: BTreeMap::new(),
            on_their_way: FuturesUnordered::new(),
            in_flight: 0,
        }
    }

    /// Takes a send, or answers it at once.
    pub(super) fn push(&mut self, send: Send) -> Option<SendAnswer> {
        let to = match self.room().and_then(|()| self.address(&send)) {
            Ok(to) => to,
            Err(error) => return Some(refuse(send.id, send.to, error)),
        };
        let waiting = Waiting {
            item: self.item(send),
            since: Instant::now(),
        };
        self.in_flight += 1;
        metrics::IN_FLIGHT_SENDS.handle().increment(1.0);
        let conversation = self.conversations.entry(to.clone()).or_default();
        let first = conversation.in_flight == 0;
        conversation.in_flight += 1;
        conversation.behind.push_back(waiting);
        if first {
            self.start(&to);
        }
        None
    }

    /// The next answers; waits for ever while nothing is on its way.
    pub(super) async fn next(&mut self) -> Vec<SendAnswer> {
        let Some(done) = self.on_their_way.next().await else {
            return std::future::pending().await;
        };
        self.in_flight -= done.since.len();
        metrics::IN_FLIGHT_SENDS
            .handle()
            .decrement(done.since.len() as f64);
        if let Some(conversation) = self.conversations.get_mut(&done.to) {
            conversation.in_flight -= done.since.len();
        }
        self.start(&done.to);
        for (answer, since) in done.answers.iter().zip(&done.since) {
            measure(answer, *since);
        }
        done.answers
    }

    pub(super) fn is_idle(&self) -> bool {
        self.on_their_way.is_empty()
    }

    /// Sends what waits in a conversation, or forgets the conversation.
    fn start(&mut self, to: &UserId) {
        let Some(conversation) = self.conversations.get_mut(to) else {
            return;
        };
        let (mut items, mut since, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = conversation.behind.front() {
            bytes += next.item.encoded_len();
            if !items.is_empty() && (items.len() == BATCH_ITEMS || bytes > BATCH_BYTES) {
                break;
            }
            let next = conversation.behind.pop_front().expect("front was there");
            items.push(next.item);
            since.push(next.since);
        }
        if items.is_empty() {
            self.conversations.remove(to);
            return;
        }
        let batch = storage::Send {
            from: self.identity.user.to_string(),
            device: self.identity.device,
            to: to.to_string(),
            items,
        };
        let (router, to) = (Arc::clone(&self.router), to.clone());
        let within = Duration::from_millis(self.settings.session.request_timeout_ms);
        self.on_their_way.push(Box::pin(async move {
            let answers = propose(&router, &to, batch, within).await;
            Done { to, since, answers }
        }));
    }

    fn room(&self) -> Result<(), Error> {
        match self.in_flight < self.settings.session.in_flight_max as usize {
            true => Ok(()),
            false => Err(overloaded("more sends wait than Welcome.in_flight_max")),
        }
    }

    /// Checks what has to be right before a position can be taken at all.
    fn address(&self, send: &Send) -> Result<UserId, Error> {
        let to = address(send)?;
        let in_flight = self.conversations.get(&to).map_or(0, |of| of.in_flight);
        match in_flight < self.settings.session.conversation_in_flight_max as usize {
            true => Ok(to),
            false => Err(overloaded(
                "more sends to this recipient wait than Welcome.conversation_in_flight_max",
            )),
        }
    }

    /// What apply is asked. A body or setting out of bounds is refused there too, because a final refusal takes its
    /// position and is remembered, so that the pipeline goes on behind it.
    fn item(&self, send: Send) -> SendItem {
        let queue = &self.settings.queue;
        let refuse = if send.body.len() as u64 > queue.body_bytes_max {
            Code::TooLarge
        } else if send.kind() == Kind::Unspecified || send.ttl_ms > queue.ttl_max_ms {
            Code::Invalid
        } else {
            Code::Unspecified
        };
        SendItem {
            chain: send.chain,
            position: send.position,
            kind: send.kind,
            body: if refuse == Code::Unspecified {
                send.body
            } else {
                bytes::Bytes::new()
            },
            sent_at_ms: send.sent_at_ms,
            ttl_ms: if send.ttl_ms == 0 {
                queue.ttl_default_ms
            } else {
                send.ttl_ms
            },
            id: send.id,
            refuse: refuse.into(),
        }
    }
}

impl Drop for Sends {
    fn drop(&mut self) {
        metrics::IN_FLIGHT_SENDS
            .handle()
            .decrement(self.in_flight as f64);
    }
}

fn overloaded(message: &str) -> Error {
    /// Answers that make room come at the pace of commits.
    const RETRY_MS: u64 = 50;
    refusal::retryable(Code::Overloaded, message, RETRY_MS)
}

fn address(send: &Send) -> Result<UserId, Error> {
    let invalid = |message: &str| refusal::last(Code::Invalid, message);
    check_message_id(&send.id).map_err(|error| invalid(&error.to_string()))?;
    if send.chain == 0 || send.position == 0 {
        return Err(invalid("chain and position count from 1"));
    }
    UserId::parse(&send.to).map_err(|error| invalid(&error.to_string()))
}

async fn propose(
    router: &Router,
    to: &UserId,
    batch: storage::Send,
    within: Duration,
) -> Vec<SendAnswer> {
    let ids: Vec<String> = batch.items.iter().map(|item| item.id.clone()).collect();
    let outcome = router
        .propose(router.shard_of(to), command::Command::Send(batch), within)
        .await;
    let error = match outcome.map(|outcome| outcome.outcome) {
        Ok(Some(outcome::Outcome::Send(send))) if send.answers.len() == ids.len() => {
            return send.answers;
        }
        Ok(Some(outcome::Outcome::Refused(error))) => error,
        Ok(_) => refusal::retryable(Code::Internal, "the server failed; its log says how", 0),
        Err(error) => refusal::from_router(&error),
    };
    ids.into_iter()
        .map(|id| refuse(id, to.to_string(), error.clone()))
        .collect()
}

fn refuse(id: String, to: String, error: Error) -> SendAnswer {
    SendAnswer {
        id,
        to,
        status: Status::Refused.into(),
        place: None,
        error: Some(error),
    }
}

fn measure(answer: &SendAnswer, since: Instant) {
    match &answer.error {
        None => metrics::ACCEPT_LATENCY.handle().record(since.elapsed()),
        Some(error) => metrics::REFUSED_SENDS
            .of(error.code().as_str_name())
            .increment(1),
    }
}

#[cfg(test)]
#[path = "sends_tests.rs"]
mod tests;
