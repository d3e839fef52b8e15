//! What a leader answers from its state, each after a quorum has confirmed that it still leads.

use roost_proto::peer::{
    Authenticate, Authenticated, DeviceSummary, ListUsers, UserList, UserSummary,
};
use roost_proto::storage::ClusterState;
use roost_proto::v1::{Code, Cursor};

use super::{Error, Replica, reader, refusal};
use crate::auth;
use crate::storage::keys::Key;
use crate::storage::value;
use crate::types::UserId;

/// Users in one page of a listing.
const LIST_USERS_MAX: usize = 500;

impl Replica {
    /// Whether a device is who it says it is.
    pub(super) async fn authenticate(
        &self,
        request: &Authenticate,
    ) -> Result<Authenticated, Error> {
        self.barrier.confirm().await?;
        self.wait_for_time()?;
        let term = self.term_led()?;
        let row = reader(&self.view())
            .user(&request.user)
            .map_err(|error| self.read_failed(error))?
            .filter(|row| !row.removed);
        let device = row
            .as_ref()
            .and_then(|row| row.devices.iter().find(|d| d.device == request.device));
        let stored = device.map(|device| &device.key_hash[..]);
        let welcome = auth::device_is_welcome(&request.key, stored);
        let (Some(row), Some(device), true) = (&row, device, welcome) else {
            let error = refusal(
                Code::Unauthenticated,
                "unknown account or device, or wrong key",
            );
            return Ok(Authenticated {
                error: Some(error),
                ..Authenticated::default()
            });
        };
        Ok(Authenticated {
            error: None,
            cursor: Some(Cursor {
                incarnation: row.incarnation,
                seq: device.cursor_seq,
            }),
            server_time_ms: self.clock.now_ms(),
            epoch: Some(self.delivery.draw_epoch(term, self.id)),
        })
    }

    /// A page of the shard's accounts.
    pub(super) async fn list_users(&self, request: &ListUsers) -> Result<UserList, Error> {
        self.barrier.confirm().await?;
        let limit = (request.limit as usize).clamp(1, LIST_USERS_MAX);
        let after = UserId::parse(&request.after).ok();
        let page = reader(&self.view())
            .list_users(after.as_ref(), limit)
            .map_err(|error| self.read_failed(error))?;
        let more = page.len() == limit;
        let last = page
            .last()
            .map(|(user, _)| user.to_string())
            .unwrap_or_default();
        let users = page
            .into_iter()
            .filter(|(_, row)| !row.removed)
            .map(|(user, row)| UserSummary {
                user: user.to_string(),
                entries: row.entries,
                bytes: row.bytes,
                devices: row
                    .devices
                    .iter()
                    .map(|device| DeviceSummary {
                        device: device.device,
                        name: device.name.clone(),
                        cursor: Some(Cursor {
                            incarnation: row.incarnation,
                            seq: device.cursor_seq,
                        }),
                    })
                    .collect(),
            })
            .collect();
        Ok(UserList { users, more, last })
    }

    /// The cluster as the meta shard has it.
    pub(super) async fn read_cluster(&self) -> Result<ClusterState, Error> {
        self.barrier.confirm().await?;
        let view = self.view();
        let key = Key::Cluster(view.home());
        let cluster =
            value::get(view.store().as_ref(), &key).map_err(|error| self.read_failed(error))?;
        // Not recorded yet: the meta shard's first command is on its way.
        cluster.ok_or(Error::Unknown)
    }
}
