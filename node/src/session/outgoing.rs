//! Frames to a client, bounded. What is pushed waits for room; an answer that finds none ends the session: a client that
//! does not read loses its session, never a message.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::Stream;
use roost_proto::v1::{ServerFrame, server_frame::Frame};
use tokio::sync::{Notify, mpsc};

use crate::metrics;

/// The way to the client, and its other end for the edge. `max` frames may wait.
pub(super) fn channel(max: usize) -> (Outgoing, Frames) {
    let (sender, receiver) = mpsc::channel(max);
    let taken = Arc::new(Notify::new());
    let outgoing = Outgoing {
        frames: sender,
        taken: Arc::clone(&taken),
        over: AtomicBool::new(false),
    };
    let frames = Frames {
        frames: receiver,
        taken,
    };
    (outgoing, frames)
}

/// The way to the client.
pub(super) struct Outgoing {
    frames: mpsc::Sender<ServerFrame>,
    taken: Arc<Notify>,
    over: AtomicBool,
}

/// What the client is to read, at its own pace.
#[derive(Debug)]
pub struct Frames {
    frames: mpsc::Receiver<ServerFrame>,
    taken: Arc<Notify>,
}

impl Outgoing {
    /// Queues a frame. When there is no room, or nobody reads any more, the session is over.
    pub(super) fn send(&self, frame: Frame) {
        if !self.queue(frame) {
            self.over.store(true, Ordering::Relaxed);
        }
    }

    /// Queues a farewell if there is room; a client that does not read does not get one.
    pub(super) fn send_last(&self, frame: Frame) {
        self.queue(frame);
    }

    /// Whether something could not be queued.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Returns while half of the queue is free: the other half is for answers. Also when nobody reads any more.
    pub(super) async fn room(&self) {
        while self.frames.capacity() <= self.frames.max_capacity() / 2 && !self.frames.is_closed() {
            // What is taken between looking and waiting leaves its notice.
            self.taken.notified().await;
        }
    }

    fn queue(&self, frame: Frame) -> bool {
        let queued = self.frames.try_send(ServerFrame { frame: Some(frame) });
        if queued.is_ok() {
            metrics::OUTGOING_FRAMES.handle().increment(1.0);
        }
        queued.is_ok()
    }
}

impl Stream for Frames {
    type Item = ServerFrame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ServerFrame>> {
        let frame = self.frames.poll_recv(cx);
        if let Poll::Ready(Some(_)) = &frame {
            metrics::OUTGOING_FRAMES.handle().decrement(1.0);
            self.taken.notify_one();
        }
        frame
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.frames.close();
        while self.frames.try_recv().is_ok() {
            metrics::OUTGOING_FRAMES.handle().decrement(1.0);
        }
        self.taken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};
    use roost_proto::v1::Pong;

    use super::*;

    fn pong(nonce: u64) -> Frame {
        Frame::Pong(Pong { nonce })
    }

    #[tokio::test]
    async fn pushes_wait_for_room_and_answers_have_the_other_half() {
        let (outgoing, mut frames) = channel(4);
        outgoing.send(pong(1));
        assert_eq!(outgoing.room().now_or_never(), Some(()));
        outgoing.send(pong(2));
        let mut room = Box::pin(outgoing.room());
        assert_eq!(room.as_mut().now_or_never(), None);
        outgoing.send(pong(3));
        outgoing.send(pong(4));
        assert!(!outgoing.is_over());
        for _ in 0..2 {
            frames.next().await;
            assert_eq!(room.as_mut().now_or_never(), None);
        }
        frames.next().await;
        room.await;
    }

    #[tokio::test]
    async fn an_answer_without_room_ends_the_session() {
        let (outgoing, _frames) = channel(1);
        outgoing.send(pong(1));
        outgoing.send(pong(2));
        assert!(outgoing.is_over());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_client_that_has_gone() {
        let (outgoing, frames) = channel(2);
        outgoing.send(pong(1));
        outgoing.send(pong(2));
        let room = outgoing.room();
        tokio::pin!(room);
        assert_eq!(room.as_mut().now_or_never(), None);
        drop(frames);
        room.await;
    }
}
