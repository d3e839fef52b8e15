//! The accounts of a run: users are numbers, and everything about a user follows from the number.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use roost_client::wire::admin::AddDeviceRequest;
use roost_client::wire::admin::admin_client::AdminClient;
use serde::{Deserialize, Serialize};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// Calls open at a time while accounts are added: enough that many ride in one proposal of each shard.
const ADDING_AT_A_TIME: usize = 256;
/// The number that the first device of an account gets.
pub(crate) const DEVICE: u32 = 1;
/// Makes a user's number a phone number.
const PREFIX: &str = "+1555";
const KEY_BYTES: usize = 32;

/// Some users in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Users {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Users {
    pub(crate) const fn new(first: u32, count: u32) -> Self {
        Self { first, count }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u32> {
        self.first..self.first + self.count
    }

    /// As even parts as there can be, none of them empty.
    pub(crate) fn split(self, parts: u32) -> Vec<Self> {
        let parts = parts.clamp(1, self.count.max(1));
        let start = |part: u32| self.first + self.count * part / parts;
        (0..parts)
            .map(|part| Self::new(start(part), start(part + 1) - start(part)))
            .collect()
    }
}

/// The user's phone number.
pub(crate) fn name(user: u32) -> String {
    format!("{PREFIX}{user:08}")
}

/// Whose phone number it is; `None` for a stranger's.
pub(crate) fn number(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// The key of the user's device. No secret: the cluster lives for one run, on the loopback interface.
pub(crate) fn key(user: u32) -> Bytes {
    let mut key = [0x5a; KEY_BYTES];
    key[..4].copy_from_slice(&user.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

/// Adds an account with one device for each, spread over all nodes.
pub(crate) async fn add(servers: &[String], token: &str, users: Users) -> Result<()> {
    let channels: Vec<Channel> = servers
        .iter()
        .map(|server| Ok(Endpoint::from_shared(server.clone())?.connect_lazy()))
        .collect::<Result<_>>()?;
    stream::iter(users.iter())
        .map(|user| add_one(&channels[user as usize % channels.len()], token, user))
        .buffer_unordered(ADDING_AT_A_TIME)
        .try_collect()
        .await
}

async fn add_one(channel: &Channel, token: &str, user: u32) -> Result<()> {
    let mut request = Request::new(AddDeviceRequest {
        user: name(user),
        name: "bench".to_owned(),
        key: key(user),
    });
    let bearer = format!("Bearer {token}").parse()?;
    request.metadata_mut().insert("authorization", bearer);
    let mut admin = AdminClient::new(channel.clone());
    let device = admin
        .add_device(request)
        .await
        .with_context(|| format!("cannot add user {user}"))?
        .into_inner()
        .device;
    ensure!(device == DEVICE, "a new account's first device is {device}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_the_number() {
        assert_eq!(number(&name(90_000_017)), Some(90_000_017));
        assert_eq!(number("+4915100000001"), None);
    }

    #[test]
    fn parts_cover_all_and_differ_by_one_at_most() {
        let parts = Users::new(10, 50).split(3);
        let all: Vec<u32> = parts.iter().flat_map(|part| part.iter()).collect();
        assert_eq!(all, (10..60).collect::<Vec<_>>());
        assert!(parts.iter().all(|part| (16..=17).contains(&part.count)));
        assert_eq!(Users::new(0, 2).split(5).len(), 2);
    }
}
