//! Links over gRPC: one connection for each node and lane, so that no lane waits in another's socket.
//!
//! A dead peer is noticed by HTTP/2 pings within `peer.keep_alive_ms` and `peer.keep_alive_timeout_ms`; calls have their
//! own, shorter deadlines. Also the two calls to an address that need no link, because a cluster begins with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use roost_proto::peer::peer_client::PeerClient;
use roost_proto::peer::{Frame, Introduction};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::{Dial, DialError, Frames, Lane, MESSAGE_BYTES_MAX};
use crate::config;
use crate::types::NodeId;
use crate::versions;

/// Metadata that opens a stream: the cluster's id.
pub const CLUSTER: &str = "roost-cluster";
/// Metadata that opens a stream: the calling node's id.
pub const NODE: &str = "roost-node";
/// Metadata that opens a stream: the id of the node that is wanted. At its address another may listen by now.
pub const WANTED: &str = "roost-wanted";
/// Metadata that opens a stream: the caller's [`versions::PEER_WIRE`].
pub const VERSION: &str = "roost-wire-version";
/// Metadata that opens a stream: the oldest and the newest feature level that the caller understands.
pub const LEVELS: [&str; 2] = ["roost-feature-level-min", "roost-feature-level"];

/// Bytes on their way that one stream's receiver takes before it must have read some: eight frames of usual size, so
/// that a long round trip does not hold up a busy link.
pub(super) const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Where a node may listen for other nodes (`host:port`), as far as it is known now, the likeliest first.
pub type Resolve = Arc<dyn Fn(NodeId) -> Vec<String> + Send + Sync>;

/// Dials other nodes of one cluster.
pub struct Dialer {
    me: NodeId,
    cluster_id: String,
    bounds: config::Peer,
    resolve: Resolve,
    /// Failed attempts: each goes on to the next of a node's addresses. One number a lane of each node.
    failed: Mutex<BTreeMap<(NodeId, Lane), usize>>,
}

impl Dialer {
    /// Node `me` of a cluster, finding the others by `resolve`.
    #[must_use]
    pub fn new(me: NodeId, cluster_id: String, bounds: config::Peer, resolve: Resolve) -> Self {
        Self {
            me,
            cluster_id,
            bounds,
            resolve,
            failed: Mutex::default(),
        }
    }

    async fn open(
        &self,
        node: NodeId,
        lane: Lane,
        frames: Frames,
    ) -> Result<BoxStream<'static, Frame>, DialError> {
        let addresses = (self.resolve)(node);
        let failed = self.failed.lock().get(&(node, lane)).copied();
        let next = failed.unwrap_or(0) % addresses.len().max(1);
        let address = addresses.get(next).ok_or(DialError::UnknownAddress)?;
        let opened = self.open_in_time(address, node, lane, frames).await;
        if opened.is_err() {
            *self.failed.lock().entry((node, lane)).or_default() = next + 1;
        }
        opened
    }

    async fn open_in_time(
        &self,
        address: &str,
        node: NodeId,
        lane: Lane,
        frames: Frames,
    ) -> Result<BoxStream<'static, Frame>, DialError> {
        let limit = Duration::from_millis(self.bounds.connect_timeout_ms);
        let opening = self.open_at(address, node, lane, frames, limit);
        match tokio::time::timeout(limit, opening).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(FoundingError::NoConnection { address, reason })) => {
                Err(DialError::NoConnection { address, reason })
            }
            Ok(Err(FoundingError::Refused { address, reason })) => {
                Err(DialError::Refused { address, reason })
            }
            Err(_) => Err(DialError::NoConnection {
                address: address.to_owned(),
                reason: format!("not open after {} ms", limit.as_millis()),
            }),
        }
    }

    async fn open_at(
        &self,
        address: &str,
        node: NodeId,
        lane: Lane,
        frames: Frames,
        limit: Duration,
    ) -> Result<BoxStream<'static, Frame>, FoundingError> {
        let endpoint = endpoint(address, limit)?
            .http2_keep_alive_interval(Duration::from_millis(self.bounds.keep_alive_ms))
            .keep_alive_timeout(Duration::from_millis(self.bounds.keep_alive_timeout_ms))
            .keep_alive_while_idle(true);
        let mut client = connect(&endpoint, address).await?;
        let request = self.request(node, frames);
        let answered = match lane {
            Lane::Control => client.control(request).await,
            Lane::Traffic => client.traffic(request).await,
            Lane::Bulk => client.bulk(request).await,
        };
        let frames = answered.map_err(refused(address))?.into_inner();
        let frames = frames.inspect_err(move |status| {
            tracing::debug!(lane = lane.as_str(), %status, "link broke");
        });
        // The connection lives as long as its client, which therefore goes with the stream.
        Ok(frames
            .scan(client, |_, frame| std::future::ready(frame.ok()))
            .boxed())
    }

    fn request(&self, wanted: NodeId, frames: Frames) -> Request<Frames> {
        let mut request = Request::new(frames);
        let metadata = request.metadata_mut();
        // Ids are hexadecimal digits and dashes; anything else would be refused by the other side anyway.
        for (key, value) in [
            (CLUSTER, self.cluster_id.clone()),
            (NODE, self.me.to_string()),
            (WANTED, wanted.to_string()),
        ] {
            if let Ok(value) = MetadataValue::try_from(value) {
                metadata.insert(key, value);
            }
        }
        let [level_min, level] = LEVELS;
        metadata.insert(VERSION, versions::PEER_WIRE.into());
        metadata.insert(level_min, versions::FEATURE_LEVEL_MIN.into());
        metadata.insert(level, versions::FEATURE_LEVEL.into());
        request
    }
}

impl Dial for Dialer {
    fn dial(
        &self,
        node: NodeId,
        lane: Lane,
        frames: Frames,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Frame>, DialError>> {
        Box::pin(self.open(node, lane, frames))
    }
}

/// Why a node at an address did not answer.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// Nobody there, or not in time.
    #[error("nobody answers at {address}: {reason}")]
    NoConnection {
        /// Where.
        address: String,
        /// The transport's reason.
        reason: String,
    },
    /// It answered, and not with what was asked for.
    #[error("{address} refuses: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// The other side's reason.
        reason: String,
    },
}

/// Says who this node is, to whoever listens at an address, and learns who that is.
///
/// # Errors
/// When nobody answers within `limit`, or it is no node.
pub async fn introduce(
    address: &str,
    limit: Duration,
    introduction: Introduction,
) -> Result<Introduction, FoundingError> {
    within(address, limit, async {
        let mut client = connect(&endpoint(address, limit)?, address).await?;
        let answer = client.introduce(introduction).await;
        Ok(answer.map_err(refused(address))?.into_inner())
    })
    .await
}

async fn within<T>(
    address: &str,
    limit: Duration,
    asking: impl Future<Output = Result<T, FoundingError>>,
) -> Result<T, FoundingError> {
    tokio::time::timeout(limit, asking)
        .await
        .unwrap_or_else(|_| Err(no_connection(address, "no answer in time")))
}

fn endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint, FoundingError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| no_connection(address, error))?;
    Ok(endpoint
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES))
}

async fn connect(endpoint: &Endpoint, address: &str) -> Result<PeerClient<Channel>, FoundingError> {
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| no_connection(address, with_sources(&error)))?;
    Ok(PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn no_connection(address: &str, reason: impl ToString) -> FoundingError {
    FoundingError::NoConnection {
        address: address.to_owned(),
        reason: reason.to_string(),
    }
}

fn refused(address: &str) -> impl Fn(Status) -> FoundingError {
    let address = address.to_owned();
    move |status| FoundingError::Refused {
        address: address.clone(),
        reason: status.message().to_owned(),
    }
}

/// The transport's own words are "transport error"; what happened stands in its sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
