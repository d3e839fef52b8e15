//! What an operator may ask of the cluster.

use std::time::Duration;

use bytes::Bytes;
use roost_proto::admin::admin_client::AdminClient;
use roost_proto::admin::{
    Account, AddDeviceRequest, AddDeviceResponse, ListAccountsRequest, RemoveAccountRequest,
    RemoveDeviceRequest, StatusRequest, StatusResponse,
};
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::servers::Servers;

/// Accounts in one listing message stream are small; a status names every shard and replica.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// For one call to one server.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Rounds over all servers before giving up, unless the time is over before.
const ROUNDS: usize = 3;
/// For all attempts together; one that has begun may take its own time.
const ALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Between rounds: time for a shard to elect.
const ROUND_PAUSE: Duration = Duration::from_millis(700);

/// Why an operator's call did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The server does not take the admin token.
    #[error("the server does not accept this admin token: {0}")]
    Unauthenticated(String),
    /// Refused for good.
    #[error("{0}")]
    Refused(String),
    /// No server answered, or none had a majority.
    #[error("no server could do it: {0}")]
    Unavailable(String),
    /// The server is broken, or of another kind.
    #[error("the server failed: {0}")]
    Internal(String),
    /// The token or a server's URL cannot be used.
    #[error("{0}")]
    Invalid(String),
}

/// A caller of the admin service; each call tries the servers in turn. Every call is idempotent.
#[derive(Clone, Debug)]
pub struct Admin {
    servers: Vec<String>,
    authorization: MetadataValue<Ascii>,
}

impl Admin {
    /// Connects with each call.
    ///
    /// # Errors
    /// When there is no server to ask, or the token cannot stand in a header.
    pub fn new(servers: Vec<String>, token: &str) -> Result<Self, AdminError> {
        if servers.is_empty() {
            return Err(AdminError::Invalid("name at least one server".to_owned()));
        }
        let mut authorization: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| AdminError::Invalid("the admin token is not plain text".to_owned()))?;
        authorization.set_sensitive(true);
        Ok(Self {
            servers,
            authorization,
        })
    }

    /// Adds a device, and the account with its first. Again with the same key: the same answer.
    ///
    /// # Errors
    /// When the name is taken under another key, or the call fails.
    pub async fn add_device(
        &self,
        user: &str,
        name: &str,
        key: Bytes,
    ) -> Result<AddDeviceResponse, AdminError> {
        let request = AddDeviceRequest {
            user: user.to_owned(),
            name: name.to_owned(),
            key,
        };
        self.call(request, async |mut client, request| {
            client.add_device(request).await
        })
        .await
    }

    /// Removes a device; it holds no entries back any more. One that is not there counts as removed.
    ///
    /// # Errors
    /// When there is no such account, or the call fails.
    pub async fn remove_device(&self, user: &str, name: &str) -> Result<(), AdminError> {
        let request = RemoveDeviceRequest {
            user: user.to_owned(),
            name: name.to_owned(),
        };
        self.call(request, async |mut client, request| {
            client.remove_device(request).await
        })
        .await
        .map(drop)
    }

    /// Removes an account with its queue. One that was removed before counts as removed.
    ///
    /// # Errors
    /// When there never was such an account, or the call fails.
    pub async fn remove_account(&self, user: &str) -> Result<(), AdminError> {
        let request = RemoveAccountRequest {
            user: user.to_owned(),
        };
        self.call(request, async |mut client, request| {
            client.remove_account(request).await
        })
        .await
        .map(drop)
    }

    /// All accounts, handed to `each` as they come. A server that fails in the middle ends it: some may have come.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn list_accounts(&self, mut each: impl FnMut(Account)) -> Result<(), AdminError> {
        let mut accounts = self
            .call(ListAccountsRequest {}, async |mut client, request| {
                client.list_accounts(request).await
            })
            .await?;
        while let Some(account) = accounts.message().await.map_err(|status| of(&status))? {
            each(account);
        }
        Ok(())
    }

    /// The cluster as one of its nodes sees it.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn status(&self) -> Result<StatusResponse, AdminError> {
        self.call(StatusRequest {}, async |mut client, request| {
            client.status(request).await
        })
        .await
    }

    async fn call<Q: Clone, A>(
        &self,
        message: Q,
        call: impl AsyncFn(AdminClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, AdminError> {
        let deadline = Instant::now() + ALL_TIMEOUT;
        let mut servers = Servers::new(&self.servers);
        let mut last = AdminError::Unavailable("none was asked".to_owned());
        for attempt in 0..ROUNDS * servers.len() {
            if Instant::now() >= deadline {
                break;
            }
            if attempt > 0 && attempt % servers.len() == 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            let server = servers.next();
            let channel = Endpoint::from_shared(server.clone())
                .map_err(|_| AdminError::Invalid(format!("{server} is not a URL")))?
                .connect_timeout(CALL_TIMEOUT)
                .timeout(CALL_TIMEOUT);
            let channel = match channel.connect().await {
                Ok(channel) => channel,
                Err(_) => {
                    last = AdminError::Unavailable(format!("{server} cannot be reached"));
                    continue;
                }
            };
            let client = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let mut request = Request::new(message.clone());
            request
                .metadata_mut()
                .insert("authorization", self.authorization.clone());
            match call(client, request).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => match of(&status) {
                    error @ AdminError::Unavailable(_) => last = error,
                    error => return Err(error),
                },
            }
        }
        Err(last)
    }
}

fn of(status: &Status) -> AdminError {
    use tonic::Code;
    let message = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => AdminError::Unauthenticated(message),
        // Unknown: the connection broke, by whatever cause, and with it the answer.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Cancelled
        | Code::Unknown => AdminError::Unavailable(message),
        Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange => AdminError::Refused(message),
        _ => AdminError::Internal(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what another try may mend is tried again.
    #[test]
    fn too_many_devices_is_for_good_and_a_broken_connection_is_not() {
        let full = of(&Status::resource_exhausted("as many devices as it may"));
        assert!(matches!(full, AdminError::Refused(_)), "{full:?}");
        let broken = of(&Status::unknown("connection reset"));
        assert!(matches!(broken, AdminError::Unavailable(_)), "{broken:?}");
    }
}
