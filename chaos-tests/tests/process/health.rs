//! The standard services on the client port: health and server reflection.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup, until, within};
use roost_chaos_tests::witness::Witness;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::{v1, v1alpha};

use crate::{ANN, LIMIT};

/// The node as a whole, and what clients call.
const SERVICES: [&str; 3] = ["", "roost.v1.Messaging", "roost.admin.v1.Admin"];
const PEER_SERVICE: &str = "roost.peer.v1.Peer";
/// For a node to end after SIGTERM, however it is told.
const GRACE: Duration = Duration::from_secs(30);

async fn channel(lab: &Lab, k: u16) -> Result<Channel> {
    let url = lab.cluster.node(k).client_url();
    until(LIMIT, "the client port", async || {
        Ok(Endpoint::from_shared(url.clone())?.connect().await.ok())
    })
    .await
}

/// Waits until a watch says this.
async fn say(
    watch: &mut tonic::Streaming<HealthCheckResponse>,
    wanted: ServingStatus,
) -> Result<()> {
    let says = async {
        loop {
            let message = watch.message().await?.context("the watch has ended")?;
            if message.status() == wanted {
                return Ok::<_, anyhow::Error>(());
            }
        }
    };
    within(LIMIT, wanted.as_str_name(), says).await?
}

/// Goal: the standard health service follows readiness: a load balancer that asks it sends nobody to a node that waits
/// for the others, or that is leaving. Method: one node of three alone, then all, then SIGTERM while a session is open;
/// three watches see each change.
#[tokio::test]
async fn the_health_service_follows_readiness() -> Result<()> {
    let mut lab = Lab::prepare(Setup::nodes(3).alone(), |config| config)?;
    lab.cluster.node_mut(1).start()?;
    let mut health = HealthClient::new(channel(&lab, 1).await?);
    let mut watches = Vec::new();
    for service in SERVICES {
        let request = || HealthCheckRequest {
            service: service.to_owned(),
        };
        let now = health.check(request()).await?.into_inner();
        ensure!(
            now.status() == ServingStatus::NotServing,
            "{service:?} is served by a node without a cluster"
        );
        watches.push(health.watch(request()).await?.into_inner());
    }
    for k in [2, 3] {
        lab.cluster.node_mut(k).start()?;
    }
    lab.cluster.wait_ready().await?;
    for watch in &mut watches {
        say(watch, ServingStatus::Serving).await?;
    }
    let ann = lab.add_device(ANN, "phone").await?;
    let client = Witness::listen(&lab.history, lab.through(1, &ann), None)?;
    client.client().ready().await?;
    let node = lab.cluster.node_mut(1);
    let (status, told) = tokio::join!(node.terminate(GRACE), async {
        for watch in &mut watches {
            say(watch, ServingStatus::NotServing).await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    told?;
    ensure!(status?.success(), "the node did not end well");
    drop(client);
    lab.pass().await
}

/// Goal: a generic client of today or of some years ago finds what it may call, and nothing of what nodes say to each
/// other. Method: both versions of server reflection list the services; the peer service is asked for by name.
#[tokio::test]
async fn reflection_shows_clients_their_services() -> Result<()> {
    let lab = Lab::start(Setup::nodes(1)).await?;
    let channel = channel(&lab, 1).await?;
    let (new, missing) = ask_v1(channel.clone()).await?;
    let old = ask_v1alpha(channel).await?;
    for names in [&new, &old] {
        let all = SERVICES[1..]
            .iter()
            .chain(&["grpc.health.v1.Health"])
            .all(|service| names.iter().any(|name| name == service));
        ensure!(all, "{names:?}");
        ensure!(!names.iter().any(|name| name.contains("peer")), "{names:?}");
    }
    ensure!(missing, "{PEER_SERVICE} is described on the client port");
    lab.pass().await
}

/// The services, and whether the peer service is unknown.
async fn ask_v1(channel: Channel) -> Result<(Vec<String>, bool)> {
    use v1::server_reflection_request::MessageRequest::{FileContainingSymbol, ListServices};
    use v1::server_reflection_response::MessageResponse;
    let ask = |message| v1::ServerReflectionRequest {
        message_request: Some(message),
        ..v1::ServerReflectionRequest::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let list = tokio_stream::once(ask(ListServices(String::new())));
    let mut answers = client.server_reflection_info(list).await?.into_inner();
    let answer = answers
        .message()
        .await?
        .and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        anyhow::bail!("no list: {answer:?}");
    };
    let peer = tokio_stream::once(ask(FileContainingSymbol(PEER_SERVICE.to_owned())));
    let missing = match client.server_reflection_info(peer).await {
        Ok(answers) => {
            let answer = answers.into_inner().message().await;
            !matches!(
                answer.map(|answer| answer.and_then(|answer| answer.message_response)),
                Ok(Some(MessageResponse::FileDescriptorResponse(_)))
            )
        }
        Err(_) => true,
    };
    let names = list.service.into_iter().map(|service| service.name);
    Ok((names.collect(), missing))
}

async fn ask_v1alpha(channel: Channel) -> Result<Vec<String>> {
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;
    let list = tokio_stream::once(v1alpha::ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..v1alpha::ServerReflectionRequest::default()
    });
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(list).await?.into_inner();
    let answer = answers
        .message()
        .await?
        .and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        anyhow::bail!("no list: {answer:?}");
    };
    Ok(list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect())
}
