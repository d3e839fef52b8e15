//! The native client protocol: one bidirectional stream a session.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use roost_proto::v1::messaging_server::Messaging;
use roost_proto::v1::{ClientFrame, ServerFrame};
use tonic::{Request, Response, Status, Streaming};

use super::Seat;

/// The messaging service.
pub struct MessagingService {
    seat: Arc<Seat>,
}

impl MessagingService {
    /// Serves once the node does.
    #[must_use]
    pub fn new(seat: Arc<Seat>) -> Self {
        Self { seat }
    }
}

#[tonic::async_trait]
impl Messaging for MessagingService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ServerFrame, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<ClientFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let sessions = &self.seat.served()?.sessions;
        let frames = sessions.spawn(request.into_inner());
        Ok(Response::new(Box::pin(frames.map(Ok))))
    }
}
