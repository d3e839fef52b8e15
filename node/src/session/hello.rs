//! How a session begins: hello, who are you, what for.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use roost_proto::peer::{Authenticate, shard_request, shard_response};
use roost_proto::storage::{self, command, outcome};
use roost_proto::v1::{
    ClientFrame, Code, Cursor, Epoch, Error, Hello, Welcome, client_frame::Frame,
};

use super::receive::Wanted;
use super::{Settings, refusal};
use crate::router::Router;
use crate::types::{ShardId, UserId};

/// Who a session is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) user: UserId,
    pub(super) device: u32,
    pub(super) shard: ShardId,
}

/// A session that may begin.
pub(super) struct Opened {
    pub(super) identity: Identity,
    pub(super) welcome: Welcome,
    pub(super) wanted: Wanted,
}

/// Waits for hello and checks it; `None` if the client went without one.
pub(super) async fn open<S, E>(
    router: &Router,
    settings: &Settings,
    incoming: &mut S,
) -> Result<Option<Opened>, Error>
where
    S: Stream<Item = Result<ClientFrame, E>> + Unpin,
{
    let timeout = Duration::from_millis(settings.session.hello_timeout_ms);
    let first = tokio::time::timeout(timeout, incoming.next())
        .await
        .map_err(|_| refusal::last(Code::Invalid, "no hello came in time"))?;
    let hello = match first {
        None | Some(Err(_)) => return Ok(None),
        Some(Ok(ClientFrame {
            frame: Some(Frame::Hello(hello)),
        })) => hello,
        Some(Ok(_)) => return Err(refusal::last(Code::Invalid, "a session begins with hello")),
    };
    welcome(router, settings, hello).await.map(Some)
}

async fn welcome(router: &Router, settings: &Settings, hello: Hello) -> Result<Opened, Error> {
    let user = UserId::parse(&hello.user)
        .map_err(|error| refusal::last(Code::Invalid, &error.to_string()))?;
    let shard = router.shard_of(&user);
    let within = Duration::from_millis(settings.session.request_timeout_ms);
    let request = Authenticate {
        user: hello.user,
        device: hello.device,
        key: hello.key,
    };
    let answer = router
        .request(shard, shard_request::Request::Authenticate(request), within)
        .await
        .map_err(|error| refusal::from_router(&error))?;
    let shard_response::Response::Authenticated(known) = answer else {
        return Err(refusal::last(
            Code::Internal,
            "the server failed; its log says how",
        ));
    };
    if let Some(error) = known.error {
        return Err(error);
    }
    let identity = Identity {
        user,
        device: hello.device,
        shard,
    };
    let epoch = known.epoch.unwrap_or_default();
    let committed = known.cursor.unwrap_or_default();
    let cursor = match hello.attach.as_ref().and_then(|attach| attach.cursor) {
        Some(claimed) => claim(router, &identity, committed, claimed, within).await?,
        None => committed,
    };
    let wanted = Wanted {
        attach: hello
            .attach
            .map(|attach| start(settings, &attach, cursor, epoch)),
        watch: hello.watch,
    };
    let welcome = Welcome {
        node: settings.node.clone(),
        server_time_ms: known.server_time_ms,
        cursor: Some(cursor),
        in_flight_max: settings.session.in_flight_max,
        body_bytes_max: u32::try_from(settings.queue.body_bytes_max).unwrap_or(u32::MAX),
        dedup_window_ms: settings.queue.dedup_window_ms,
        ttl_default_ms: settings.queue.ttl_default_ms,
        ttl_max_ms: settings.queue.ttl_max_ms,
        epoch: Some(epoch),
        conversation_in_flight_max: settings.session.conversation_in_flight_max,
    };
    Ok(Opened {
        identity,
        welcome,
        wanted,
    })
}

/// A cursor in hello is an ack whose answer the client may never have seen: it is committed before anything is pushed.
async fn claim(
    router: &Router,
    identity: &Identity,
    committed: Cursor,
    claimed: Cursor,
    within: Duration,
) -> Result<Cursor, Error> {
    if claimed.incarnation == committed.incarnation && claimed.seq <= committed.seq {
        return Ok(committed);
    }
    loop {
        let ack = storage::Ack {
            user: identity.user.to_string(),
            device: identity.device,
            cursor: Some(claimed),
        };
        let outcome = router
            .propose(identity.shard, command::Command::Ack(ack), within)
            .await
            .map_err(|error| refusal::from_router(&error))?;
        match outcome.outcome {
            Some(outcome::Outcome::Ack(ack)) if ack.more => {}
            // Not the cursor of the answer: that may be behind messages that have expired, and the client is to be told.
            Some(outcome::Outcome::Ack(_)) => return Ok(claimed),
            Some(outcome::Outcome::Refused(error)) => return Err(error),
            _ => {
                return Err(refusal::last(
                    Code::Internal,
                    "the server failed; its log says how",
                ));
            }
        }
    }
}

fn start(
    settings: &Settings,
    attach: &roost_proto::v1::Attach,
    cursor: Cursor,
    epoch: Epoch,
) -> super::receive::Start {
    let bounded = |wanted: u64, most: u64| if wanted == 0 { most } else { wanted.min(most) };
    let entries = bounded(
        u64::from(attach.window_entries),
        u64::from(settings.session.window_entries),
    );
    super::receive::Start {
        cursor,
        window_entries: u32::try_from(entries).unwrap_or(u32::MAX),
        window_bytes: bounded(attach.window_bytes, settings.session.window_bytes),
        epoch,
        client: attach.client.unwrap_or(epoch),
        on_first_frame: attach.on_first_frame,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roost_proto::storage::{AckOutcome, Done};

    use super::*;
    use crate::testing::{SHARD, Script, answered, command_of, router};

    /// A message had expired right behind the cursor that a client came back with. The session began behind that message,
    /// and the client was never told of it. Found by the simulation.
    #[tokio::test]
    async fn a_session_begins_at_the_cursor_that_its_client_came_with() {
        let at = |seq| Cursor {
            incarnation: 1,
            seq,
        };
        let script = Arc::new(Script::new(move |_, request| match command_of(request)? {
            command::Command::Ack(_) => answered(outcome::Outcome::Ack(AckOutcome {
                cursor: Some(at(3)),
                more: false,
            })),
            _ => answered(outcome::Outcome::Done(Done { more: false })),
        }));
        let identity = Identity {
            user: UserId::parse("bob").expect("a name"),
            device: 2,
            shard: SHARD,
        };
        let within = Duration::from_secs(1);
        let begins = claim(&router(&script), &identity, at(1), at(2), within).await;
        assert_eq!(begins, Ok(at(2)));
    }
}
