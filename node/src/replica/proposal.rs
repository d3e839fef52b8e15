//! A command as it travels to its leader: encoded once, with what the leader has to know of it beside.

use prost::Message as _;
use roost_proto::storage::{Command, Proposal, command};

use super::error::Error;
use crate::versions::level_of;

/// Encodes a command.
#[must_use]
pub fn encode(command: command::Command) -> Proposal {
    let items = match &command {
        command::Command::Send(send) => send.items.len(),
        command::Command::Inbound(inbound) => inbound.items.len(),
        _ => 1,
    };
    let sends = matches!(command, command::Command::Send(_));
    // The client has gone on already; its tick or its receipt comes a moment later.
    let may_wait = matches!(
        command,
        command::Command::Ack(_)
            | command::Command::Read(_)
            | command::Command::ReceiptAck(_)
            | command::Command::Inbound(_)
            | command::Command::OutboxTrim(_)
    );
    let feature_level = level_of(&command);
    let command = Command {
        command: Some(command),
    };
    let command = bytes::Bytes::from(command.encode_to_vec());
    Proposal {
        checksum: crc32c::crc32c(&command),
        command,
        feature_level,
        items: u32::try_from(items).unwrap_or(u32::MAX).max(1),
        sends,
        may_wait,
    }
}

/// Refuses what was damaged on its way.
pub(super) fn check(proposal: &Proposal) -> Result<(), Error> {
    match proposal.checksum == crc32c::crc32c(&proposal.command) {
        true => Ok(()),
        false => Err(Error::Internal(
            "a command came damaged; it is refused, and must be sent again".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use roost_proto::storage::{Ack, Batch, EncodedBatch, Limits};

    use super::*;
    use crate::testing::{add, messages};

    #[test]
    fn a_batch_of_encoded_commands_is_a_batch() {
        let commands = [add("bob"), messages("bob", 1..=3)];
        let limits = Some(Limits {
            chains_max: 7,
            ..Limits::default()
        });
        let encoded = EncodedBatch {
            time_ms: 5,
            limits,
            commands: commands
                .iter()
                .map(|command| encode(command.clone()).command)
                .collect(),
            feature_level: 1,
        };
        let batch = Batch {
            time_ms: 5,
            limits,
            commands: commands
                .map(|command| Command {
                    command: Some(command),
                })
                .into(),
            feature_level: 1,
        };
        assert_eq!(encoded.encode_to_vec(), batch.encode_to_vec());
    }

    #[test]
    fn what_a_leader_must_know_stands_beside() {
        let three = encode(messages("bob", 1..=3));
        assert_eq!((three.items, three.sends, three.may_wait), (3, true, false));
        let add = encode(add("bob"));
        assert_eq!((add.items, add.sends, add.may_wait), (1, false, false));
        assert!(encode(command::Command::Ack(Ack::default())).may_wait);
    }

    #[test]
    fn a_damaged_command_is_refused() {
        let sound = encode(messages("bob", 1..=3));
        assert!(check(&sound).is_ok());
        for bit in 0..sound.command.len() * 8 {
            let mut damaged = sound.command.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let damaged = Proposal {
                command: damaged.into(),
                ..sound.clone()
            };
            assert!(check(&damaged).is_err(), "bit {bit}");
        }
    }
}
