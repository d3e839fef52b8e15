//! From commands to the tables that carry them out. Nothing is decided here but which table.

use roost_proto::storage::{Batch, Command, Outcome, command::Command as Kind};
use roost_proto::v1::Code;

use super::refusal::refused;
use super::step::Step;
use super::{Applied, Machine, Txn, expiry, outbox, queue, receipts, senders, users};
use crate::storage::Error;
use crate::types::ShardId;

/// The state machine of one user shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserShard {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many user shards the cluster has; a power of two.
    pub shards: u32,
}

impl Machine for UserShard {
    fn apply(&self, txn: &mut Txn<'_>, batch: &Batch) -> Result<Applied, Error> {
        let mut step = Step::begin(*self, txn, batch)?;
        let mut outcomes = Vec::with_capacity(batch.commands.len());
        for command in &batch.commands {
            outcomes.push(dispatch(&mut step, command)?);
        }
        let effects = step.finish();
        Ok(Applied { outcomes, effects })
    }
}

fn dispatch(step: &mut Step<'_, '_>, command: &Command) -> Result<Outcome, Error> {
    let Some(command) = &command.command else {
        return Ok(refused(Code::Internal, "an empty command"));
    };
    if subject(command).is_some_and(|user| !step.owns(user)) {
        return Ok(refused(
            Code::Invalid,
            "no valid user, or one of another shard",
        ));
    }
    match command {
        Kind::Send(send) => senders::send(step, send),
        Kind::Ack(ack) => queue::ack(step, ack),
        Kind::Read(read) => receipts::read(step, read),
        Kind::ReceiptAck(ack) => receipts::ack(step, ack),
        Kind::AddDevice(add) => users::add_device(step, add),
        Kind::RemoveDevice(remove) => users::remove_device(step, remove),
        Kind::RemoveAccount(remove) => users::remove_account(step, remove),
        Kind::Expire(expire) => expiry::expire(step, expire),
        Kind::Trim(trim) => users::trim(step, trim),
        Kind::Inbound(inbound) => outbox::inbound(step, inbound),
        Kind::OutboxTrim(trim) => outbox::trim(step, trim),
        Kind::SweepIds(_) => senders::sweep(step),
        Kind::Found(_) | Kind::UpdateNode(_) | Kind::RenewReplica(_) | Kind::FinishRenewal(_) => {
            Ok(refused(Code::Internal, "a command for the meta shard"))
        }
    }
}

/// The user whose rows a command is about. Commands about many check each.
fn subject(command: &Kind) -> Option<&str> {
    match command {
        Kind::Send(send) => Some(&send.to),
        Kind::Ack(ack) => Some(&ack.user),
        Kind::Read(read) => Some(&read.user),
        Kind::ReceiptAck(ack) => Some(&ack.user),
        Kind::AddDevice(add) => Some(&add.user),
        Kind::RemoveDevice(remove) => Some(&remove.user),
        Kind::RemoveAccount(remove) => Some(&remove.user),
        Kind::Trim(trim) => Some(&trim.user),
        _ => None,
    }
}
