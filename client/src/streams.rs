//! What a client hears, as streams.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::message::{Event, Incoming, Receipt};

/// The own queue, every number once and in order; it ends with the client. All streams of a client share it, one
/// consumer at a time.
#[derive(Clone, Debug)]
pub struct Entries(pub(crate) Arc<Mutex<mpsc::Receiver<Incoming>>>);

impl Stream for Entries {
    type Item = Incoming;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .poll_recv(context)
    }
}

/// The consumer was too slow, and this many items are not in its stream: ask for the status of what is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} items were dropped because nobody took them")]
pub struct Lagged(pub u64);

/// Receipts from the moment the stream was made; it ends with the client.
#[derive(Debug)]
pub struct Receipts(pub(crate) BroadcastStream<Receipt>);

/// What happens to the session from the moment the stream was made; it ends with the client.
#[derive(Debug)]
pub struct Events(pub(crate) BroadcastStream<Event>);

macro_rules! broadcast_stream {
    ($stream:ty, $item:ty) => {
        impl From<broadcast::Receiver<$item>> for $stream {
            fn from(receiver: broadcast::Receiver<$item>) -> Self {
                Self(BroadcastStream::new(receiver))
            }
        }

        impl Stream for $stream {
            type Item = Result<$item, Lagged>;

            fn poll_next(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<Option<Self::Item>> {
                Pin::new(&mut self.0).poll_next(context).map(|item| {
                    item.map(|item| {
                        item.map_err(|BroadcastStreamRecvError::Lagged(count)| Lagged(count))
                    })
                })
            }
        }
    };
}

broadcast_stream!(Receipts, Receipt);
broadcast_stream!(Events, Event);
