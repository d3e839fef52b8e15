//! What an operator may ask, over gRPC, with the admin token.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use roost_proto::admin::admin_server::Admin;
use roost_proto::admin::{
    Account, AddDeviceRequest, AddDeviceResponse, Device, ListAccountsRequest, Node, Queues,
    RemoveAccountRequest, RemoveAccountResponse, RemoveDeviceRequest, RemoveDeviceResponse,
    Replica, Shard, StatusRequest, StatusResponse,
};
use roost_proto::peer::{
    self, ListUsers, UserSummary, request, response, shard_request, shard_response,
};
use roost_proto::storage::{self, Outcome, command, outcome};
use roost_proto::v1::{self, Code};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Seat;
use crate::auth::{self, DeviceKey};
use crate::peer::Lane;
use crate::router::Router;
use crate::types::{NodeId, ShardId, UserId, check_device_name};

/// How long an operator waits at most.
const WITHIN: Duration = Duration::from_secs(10);
/// How long status waits for a node that may be dead.
const STATUS_WITHIN: Duration = Duration::from_secs(2);
/// Accounts in one page of a listing.
const PAGE: u32 = 200;

/// The admin service.
pub struct AdminService {
    seat: Arc<Seat>,
}

impl AdminService {
    /// Serves once the node does.
    #[must_use]
    pub fn new(seat: Arc<Seat>) -> Self {
        Self { seat }
    }

    fn check<T>(&self, request: Request<T>) -> Result<T, Status> {
        let authorization = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        match auth::admin_is_welcome(authorization, &self.router()?.placement().admin_token_hash) {
            true => Ok(request.into_inner()),
            false => Err(Status::unauthenticated(
                "the admin token is missing or wrong; see --admin-token",
            )),
        }
    }

    fn router(&self) -> Result<&Arc<Router>, Status> {
        Ok(&self.seat.served()?.router)
    }

    async fn propose(&self, user: &UserId, command: command::Command) -> Result<Outcome, Status> {
        let router = self.router()?;
        router
            .propose(router.shard_of(user), command, WITHIN)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn remove(&self, user: &UserId, command: command::Command) -> Result<(), Status> {
        match self.propose(user, command).await?.outcome {
            Some(outcome::Outcome::Done(_)) => Ok(()),
            other => Err(refused(other)),
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn add_device(
        &self,
        request: Request<AddDeviceRequest>,
    ) -> Result<Response<AddDeviceResponse>, Status> {
        let request = self.check(request)?;
        let user = parse_user(&request.user)?;
        check_device_name(&request.name)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = DeviceKey::parse(&request.key)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let command = command::Command::AddDevice(storage::AddDevice {
            user: request.user,
            name: request.name,
            key_hash: key.hash().as_bytes().to_vec().into(),
        });
        match self.propose(&user, command).await?.outcome {
            Some(outcome::Outcome::Device(device)) => Ok(Response::new(AddDeviceResponse {
                device: device.device,
                incarnation: device.incarnation,
            })),
            other => Err(refused(other)),
        }
    }

    async fn remove_device(
        &self,
        request: Request<RemoveDeviceRequest>,
    ) -> Result<Response<RemoveDeviceResponse>, Status> {
        let request = self.check(request)?;
        let user = parse_user(&request.user)?;
        let command = storage::RemoveDevice {
            user: request.user,
            name: request.name,
        };
        self.remove(&user, command::Command::RemoveDevice(command))
            .await?;
        Ok(Response::new(RemoveDeviceResponse {}))
    }

    async fn remove_account(
        &self,
        request: Request<RemoveAccountRequest>,
    ) -> Result<Response<RemoveAccountResponse>, Status> {
        let user = parse_user(&self.check(request)?.user)?;
        let command = storage::RemoveAccount {
            user: user.to_string(),
        };
        self.remove(&user, command::Command::RemoveAccount(command))
            .await?;
        Ok(Response::new(RemoveAccountResponse {}))
    }

    type ListAccountsStream = Pin<Box<dyn Stream<Item = Result<Account, Status>> + Send>>;

    async fn list_accounts(
        &self,
        request: Request<ListAccountsRequest>,
    ) -> Result<Response<Self::ListAccountsStream>, Status> {
        self.check(request)?;
        let (accounts, stream) = mpsc::channel(PAGE as usize);
        let router = Arc::clone(self.router()?);
        tokio::spawn(async move {
            for shard in router.placement().user_shards() {
                if let Err(status) = list_shard(&router, shard, &accounts).await {
                    // A receiver that has gone wants no error either.
                    drop(accounts.send(Err(status)).await);
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.check(request)?;
        let peers = &self.seat.served()?.peers;
        let placement = self.router()?.placement();
        let asked = placement.nodes().keys().map(|node| async {
            let ask = peer::Request {
                request: Some(request::Request::Status(peer::StatusRequest {})),
            };
            let answer = peers.call(*node, Lane::Control, STATUS_WITHIN, ask).await;
            match answer.map(|answer| answer.response) {
                Ok(Some(response::Response::Status(status))) => (*node, Some(status)),
                _ => (*node, None),
            }
        });
        let answers: BTreeMap<NodeId, Option<peer::StatusResponse>> =
            futures::future::join_all(asked).await.into_iter().collect();
        let nodes = placement.nodes().iter().map(|(id, node)| Node {
            id: id.to_string(),
            name: node.name.clone(),
            address: node.client_address.clone(),
            ready: answers[id].as_ref().is_some_and(|status| status.ready),
            feature_level_min: node.feature_level_min,
            feature_level: node.feature_level,
        });
        Ok(Response::new(StatusResponse {
            cluster_id: placement.cluster_id.clone(),
            epoch: placement.epoch,
            nodes: nodes.collect(),
            shards: placement
                .all_shards()
                .map(|shard| shard_status(&placement, shard, &answers))
                .collect(),
            queues: Some(queues(&answers)),
            warnings: answers
                .into_values()
                .flatten()
                .flat_map(|status| status.warnings)
                .collect(),
        }))
    }
}

type Answers = BTreeMap<NodeId, Option<peer::StatusResponse>>;

fn leaders(answers: &Answers) -> impl Iterator<Item = (NodeId, &peer::ReplicaStatus)> {
    answers.iter().flat_map(|(node, status)| {
        let replicas = status.iter().flat_map(|status| &status.replicas);
        replicas
            .filter(|replica| replica.leader)
            .map(move |replica| (*node, replica))
    })
}

fn shard_status(
    placement: &crate::router::placement::Placement,
    shard: ShardId,
    answers: &Answers,
) -> Shard {
    // After a partition two may say that they lead; the higher term is right.
    let leader = leaders(answers)
        .filter(|(_, replica)| replica.shard == shard.0)
        .max_by_key(|(_, replica)| replica.term);
    let last_log = leader.map_or(0, |(_, replica)| replica.last_log);
    let replicas = placement.replicas(shard).iter().map(|(id, node)| {
        let known = answers
            .get(node)
            .and_then(Option::as_ref)
            .and_then(|status| {
                status
                    .replicas
                    .iter()
                    .find(|replica| replica.replica == id.0)
            });
        Replica {
            node: node.to_string(),
            role: known.map_or_else(|| "unreachable".to_owned(), |replica| replica.role.clone()),
            lag_entries: known.map_or(last_log, |replica| last_log.saturating_sub(replica.applied)),
            replica: id.0,
            snapshot_bytes: known.and_then(|replica| replica.snapshot_bytes),
        }
    });
    Shard {
        id: shard.0,
        leader: leader.map(|(node, _)| node.to_string()).unwrap_or_default(),
        term: leader.map_or(0, |(_, replica)| replica.term),
        replicas: replicas.collect(),
    }
}

fn queues(answers: &Answers) -> Queues {
    let mut queues = Queues::default();
    for (_, replica) in leaders(answers) {
        queues.entries += replica.queued_entries;
        queues.bytes += replica.queued_bytes;
        queues.oldest_ms = queues.oldest_ms.max(replica.oldest_ms);
    }
    queues
}

async fn list_shard(
    router: &Router,
    shard: ShardId,
    accounts: &mpsc::Sender<Result<Account, Status>>,
) -> Result<(), Status> {
    let mut after = String::new();
    loop {
        let request = shard_request::Request::ListUsers(ListUsers {
            after: after.clone(),
            limit: PAGE,
        });
        let answer = router
            .request(shard, request, WITHIN)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let shard_response::Response::Users(page) = answer else {
            return Err(Status::internal(
                "a node answered something else than it was asked",
            ));
        };
        for user in page.users {
            if accounts.send(Ok(account(user))).await.is_err() {
                return Ok(());
            }
        }
        if !page.more {
            return Ok(());
        }
        after = page.last;
    }
}

fn account(user: UserSummary) -> Account {
    Account {
        user: user.user,
        queued_entries: user.entries,
        queued_bytes: user.bytes,
        devices: user
            .devices
            .into_iter()
            .map(|device| Device {
                device: device.device,
                name: device.name,
                cursor: device.cursor,
            })
            .collect(),
    }
}

fn parse_user(text: &str) -> Result<UserId, Status> {
    UserId::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn refused(outcome: Option<outcome::Outcome>) -> Status {
    let Some(outcome::Outcome::Refused(error)) = outcome else {
        return Status::internal("a node answered something else than it was asked");
    };
    status_of(&error)
}

fn status_of(error: &v1::Error) -> Status {
    let message = error.message.clone();
    match error.code() {
        Code::NotFound => Status::not_found(message),
        Code::AlreadyExists => Status::already_exists(message),
        Code::TooManyDevices => Status::resource_exhausted(message),
        Code::Invalid => Status::invalid_argument(message),
        _ if error.retryable => Status::unavailable(message),
        _ => Status::failed_precondition(message),
    }
}
