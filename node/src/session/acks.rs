//! What a session says about its own queue: acknowledgements, read marks, receipts seen. One at a time, in order, and
//! acknowledgements that wait are one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use roost_proto::storage::{self, Outcome, command, outcome};
use roost_proto::v1::{AckAnswer, Code, Cursor, Error, ReadAnswer, ReadMark, server_frame::Frame};
use tokio::time::Instant;

use super::hello::Identity;
use super::{Settings, refusal};
use crate::metrics;
use crate::router::{self, Router};
use crate::types::UserId;

/// Read marks that wait; beyond it they are refused. Acknowledgements merge into one.
const WAITING_MAX: usize = 256;

/// Nobody waits for the acknowledgement of receipts: it waits for others for so long.
const RECEIPTS_AFTER: Duration = Duration::from_millis(200);

/// What a session has said and not been answered.
pub(super) struct Acks {
    router: Arc<Router>,
    identity: Arc<Identity>,
    within: Duration,
    waiting: VecDeque<Saying>,
    /// The revision up to which receipts were seen, and when that is to be said.
    receipts: Option<(u64, Instant)>,
    on_its_way: Option<BoxFuture<'static, Option<Frame>>>,
}

enum Saying {
    Ack(Cursor),
    Read(ReadMark),
    Receipts(u64),
}

impl Acks {
    pub(super) fn new(router: Arc<Router>, identity: Arc<Identity>, settings: &Settings) -> Self {
        let within = Duration::from_millis(settings.session.request_timeout_ms);
        Self {
            router,
            identity,
            within,
            waiting: VecDeque::new(),
            receipts: None,
            on_its_way: None,
        }
    }

    /// Everything up to here is the client's. The caller has checked that it was handed out.
    pub(super) fn ack(&mut self, cursor: Cursor) {
        // Earlier than read marks that were said in between, which only need it before them.
        let merged = self.waiting.iter_mut().find_map(|saying| match saying {
            Saying::Ack(last) if last.incarnation == cursor.incarnation => Some(last),
            _ => None,
        });
        match merged {
            Some(last) => last.seq = last.seq.max(cursor.seq),
            None => self.queue(Saying::Ack(cursor)),
        }
    }

    /// A conversation was read up to here; answered at once only if that cannot be.
    pub(super) fn read(&mut self, mark: ReadMark) -> Option<ReadAnswer> {
        let refuse = |mark: ReadMark, error: Error| {
            Some(ReadAnswer {
                from: mark.from,
                up_to: mark.up_to,
                error: Some(error),
            })
        };
        if let Err(error) = UserId::parse(&mark.from) {
            return refuse(mark, refusal::last(Code::Invalid, &error.to_string()));
        }
        if self.waiting.len() >= WAITING_MAX {
            return refuse(
                mark,
                refusal::retryable(Code::Overloaded, "too many read marks wait", 50),
            );
        }
        self.queue(Saying::Read(mark));
        None
    }

    /// Receipts up to this revision are the client's.
    pub(super) fn receipts(&mut self, revision: u64) {
        let (last, due) = self
            .receipts
            .unwrap_or_else(|| (0, Instant::now() + RECEIPTS_AFTER));
        self.receipts = Some((revision.max(last), due));
    }

    /// The next answer; waits for ever while nothing is on its way.
    pub(super) async fn next(&mut self) -> Frame {
        loop {
            if self.on_its_way.is_none() {
                let saying = self.next_saying().await;
                self.on_its_way = Some(self.say(saying));
            }
            // Kept until it is done: the caller may drop this call at any await.
            let answer = match &mut self.on_its_way {
                Some(on_its_way) => on_its_way.await,
                None => None,
            };
            self.on_its_way = None;
            if let Some(answer) = answer {
                return answer;
            }
        }
    }

    /// What is said next; waits for ever while there is nothing.
    async fn next_saying(&mut self) -> Saying {
        let due = self.receipts.map(|(_, due)| due);
        let is_due = due.is_some_and(|due| due <= Instant::now());
        if !is_due && let Some(saying) = self.waiting.pop_front() {
            metrics::WAITING_MARKS.handle().decrement(1.0);
            return saying;
        }
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        match self.receipts.take() {
            Some((revision, _)) => Saying::Receipts(revision),
            None => std::future::pending().await,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.receipts.is_none() && self.on_its_way.is_none()
    }

    fn queue(&mut self, saying: Saying) {
        metrics::WAITING_MARKS.handle().increment(1.0);
        self.waiting.push_back(saying);
    }

    fn say(&self, saying: Saying) -> BoxFuture<'static, Option<Frame>> {
        let (router, identity, within) = (
            Arc::clone(&self.router),
            Arc::clone(&self.identity),
            self.within,
        );
        Box::pin(async move {
            match saying {
                Saying::Ack(cursor) => {
                    Some(Frame::Ack(ack(&router, &identity, cursor, within).await))
                }
                Saying::Read(mark) => {
                    Some(Frame::Read(read(&router, &identity, mark, within).await))
                }
                Saying::Receipts(revision) => {
                    let (user, device) = (identity.user.to_string(), identity.device);
                    let command = command::Command::ReceiptAck(storage::ReceiptAck {
                        user,
                        device,
                        revision,
                    });
                    // Unanswered on the wire: receipts not acknowledged simply come again.
                    drop(router.propose(identity.shard, command, within).await);
                    None
                }
            }
        })
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        metrics::WAITING_MARKS
            .handle()
            .decrement(self.waiting.len() as f64);
    }
}

async fn ack(router: &Router, identity: &Identity, cursor: Cursor, within: Duration) -> AckAnswer {
    loop {
        let ack = storage::Ack {
            user: identity.user.to_string(),
            device: identity.device,
            cursor: Some(cursor),
        };
        match router
            .propose(identity.shard, command::Command::Ack(ack), within)
            .await
        {
            Ok(Outcome {
                outcome: Some(outcome::Outcome::Ack(ack)),
            }) if ack.more => {}
            Ok(Outcome {
                outcome: Some(outcome::Outcome::Ack(ack)),
            }) => {
                return AckAnswer {
                    cursor: ack.cursor,
                    error: None,
                };
            }
            other => {
                return AckAnswer {
                    cursor: Some(cursor),
                    error: Some(error_of(other)),
                };
            }
        }
    }
}

async fn read(
    router: &Router,
    identity: &Identity,
    mark: ReadMark,
    within: Duration,
) -> ReadAnswer {
    let command = command::Command::Read(storage::Read {
        user: identity.user.to_string(),
        device: identity.device,
        from: mark.from.clone(),
        up_to: mark.up_to,
    });
    let error = match router.propose(identity.shard, command, within).await {
        Ok(Outcome {
            outcome: Some(outcome::Outcome::Done(_)),
        }) => None,
        other => Some(error_of(other)),
    };
    ReadAnswer {
        from: mark.from,
        up_to: mark.up_to,
        error,
    }
}

fn error_of(outcome: Result<Outcome, router::Error>) -> Error {
    match outcome.map(|outcome| outcome.outcome) {
        Ok(Some(outcome::Outcome::Refused(error))) => error,
        Ok(_) => refusal::retryable(Code::Internal, "the server failed; its log says how", 0),
        Err(error) => refusal::from_router(&error),
    }
}

#[cfg(test)]
#[path = "acks_tests.rs"]
mod tests;
