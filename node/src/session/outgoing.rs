//! Frames to a client, bounded: a client that does not read loses its session, never a message.

use std::sync::atomic::{AtomicBool, Ordering};

use roost_proto::v1::{ServerFrame, server_frame::Frame};
use tokio::sync::mpsc;

/// The way to the client.
pub(super) struct Outgoing {
    frames: mpsc::Sender<ServerFrame>,
    over: AtomicBool,
}

impl Outgoing {
    /// `frames` holds as many as may wait.
    pub(super) fn new(frames: mpsc::Sender<ServerFrame>) -> Self {
        Self {
            frames,
            over: AtomicBool::new(false),
        }
    }

    /// Queues a frame. When there is no room, or nobody reads any more, the session is over.
    pub(super) fn send(&self, frame: Frame) {
        if self
            .frames
            .try_send(ServerFrame { frame: Some(frame) })
            .is_err()
        {
            self.over.store(true, Ordering::Relaxed);
        }
    }

    /// Queues a farewell if there is room; a client that does not read does not get one.
    pub(super) fn send_last(&self, frame: Frame) {
        drop(self.frames.try_send(ServerFrame { frame: Some(frame) }));
    }

    /// Whether something could not be queued.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}
