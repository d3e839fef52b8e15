//! A device's connection to a node: frames in memory, cut when the node dies.

use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt as _;
use roost::session::Frames;
use roost_chaos_tests::history::{Device, Place};
use roost_proto::v1::{ClientFrame, Cursor, Hello, Welcome, client_frame, server_frame};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::stage::Stage;

/// Frames under way to a node.
const FRAMES_MAX: usize = 1024;
/// How long a client waits for its welcome until it tries elsewhere.
const WELCOME_WITHIN: Duration = Duration::from_secs(5);

/// Who connects.
#[derive(Clone)]
pub(super) struct Account {
    pub(super) device: Device,
    pub(super) key: [u8; 32],
    /// Whether its senders watch and ask; otherwise they live by the receipts of the attached session.
    pub(super) watches: bool,
}

/// A session, from the client's side. Dropping it is hanging up.
pub(super) struct Line {
    to_node: mpsc::Sender<Result<ClientFrame, Infallible>>,
    from_node: Frames,
    node_died: CancellationToken,
}

/// Connects to a node, if it runs and welcomes the device.
pub(super) async fn connect(
    stage: &Stage,
    node: usize,
    account: &Account,
    hello: Hello,
) -> Option<(Line, Welcome)> {
    let (sessions, node_died) = stage.cluster.door(node)?;
    let (to_node, incoming) = mpsc::channel(FRAMES_MAX);
    let from_node = sessions.spawn(ReceiverStream::new(incoming));
    let mut line = Line {
        to_node,
        from_node,
        node_died,
    };
    line.say(client_frame::Frame::Hello(Hello {
        user: account.device.user.clone(),
        device: account.device.device,
        key: account.key.to_vec().into(),
        ..hello
    }));
    let first = timeout(WELCOME_WITHIN, line.next()).await.ok()??;
    match first {
        server_frame::Frame::Welcome(welcome) => Some((line, welcome)),
        server_frame::Frame::Goodbye(goodbye) => {
            let error = goodbye.error.unwrap_or_default();
            if !error.retryable {
                stage.complain(format!("{} is not welcome: {error:?}", account.device));
            }
            None
        }
        other => {
            stage.complain(format!("the first frame is a welcome, not {other:?}"));
            None
        }
    }
}

impl Line {
    /// Sends a frame; what a dead node does not get is lost, and so is what does not fit.
    pub(super) fn say(&self, frame: client_frame::Frame) {
        drop(
            self.to_node
                .try_send(Ok(ClientFrame { frame: Some(frame) })),
        );
    }

    /// The next frame; `None` when the connection is gone.
    pub(super) async fn next(&mut self) -> Option<server_frame::Frame> {
        tokio::select! {
            biased;
            () = self.node_died.cancelled() => None,
            frame = self.from_node.next() => frame.and_then(|frame| frame.frame),
        }
    }
}

/// A cursor as histories name it.
pub(super) fn place(cursor: Cursor) -> Place {
    Place {
        incarnation: cursor.incarnation,
        seq: cursor.seq,
    }
}
