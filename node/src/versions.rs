//! Which versions this build speaks and understands: the one place that `roost --version`, nodes that meet, proposers
//! and apply go by.
//!
//! The **feature level** is the version of the commands in a shard's log. A build understands a range of levels, which
//! its node's record announces. A leader proposes only what every voter understands ([`common_level`]), nodes whose
//! ranges do not meet open no link ([`check_levels`]), and a replica that finds a level in its log which it does not
//! know stops ([`understands`]): to skip a command would be to diverge.

use roost_proto::storage::NodeRecord;
use roost_proto::storage::command::Command;

/// The newest feature level: rises when nodes learn a command, or a field that changes what a command does.
pub const FEATURE_LEVEL: u32 = 1;

/// The oldest feature level that this build still understands: one version back always works in one cluster.
pub const FEATURE_LEVEL_MIN: u32 = 1;

/// The wire between nodes, said when a link is opened.
pub const PEER_WIRE: u32 = 1;

/// The oldest wire between nodes that this build still understands.
pub const PEER_WIRE_MIN: u32 = 1;

/// The client API: the number in the package name `roost.v1`.
pub const CLIENT_WIRE: u32 = 1;

/// The feature level that a command asks of everybody who applies it.
#[must_use]
pub fn level_of(_command: &Command) -> u32 {
    // So far every command is as old as the first level.
    FEATURE_LEVEL_MIN
}

/// Whether this build applies commands of a level.
#[must_use]
pub fn understands(level: u32) -> bool {
    (FEATURE_LEVEL_MIN..=FEATURE_LEVEL).contains(&level)
}

/// What may be proposed, from the newest levels that the voters have announced: what all of them understand.
#[must_use]
pub fn common_level(voters: impl IntoIterator<Item = u32>) -> u32 {
    voters.into_iter().fold(FEATURE_LEVEL, u32::min)
}

/// Whether another node's range of feature levels, from `min` to `max`, and this build's have a level in common.
///
/// # Errors
/// The reason, for the operator.
pub fn check_levels(min: u32, max: u32) -> Result<(), String> {
    if min <= FEATURE_LEVEL && FEATURE_LEVEL_MIN <= max {
        return Ok(());
    }
    Err(format!(
        "it understands feature levels {min} to {max}, this node {FEATURE_LEVEL_MIN} to {FEATURE_LEVEL}: \
         upgrade one version at a time"
    ))
}

/// Writes into a node's record what this build understands.
#[must_use]
pub fn announced(record: NodeRecord) -> NodeRecord {
    NodeRecord {
        feature_level_min: FEATURE_LEVEL_MIN,
        feature_level: FEATURE_LEVEL,
        ..record
    }
}

#[cfg(test)]
mod tests {
    use roost_proto::storage::SweepIds;

    use super::*;

    #[test]
    fn the_oldest_voter_decides_what_is_proposed() {
        assert_eq!(
            common_level([FEATURE_LEVEL + 1, FEATURE_LEVEL + 2]),
            FEATURE_LEVEL
        );
        assert_eq!(common_level([FEATURE_LEVEL + 1, 0, FEATURE_LEVEL]), 0);
    }

    #[test]
    fn ranges_that_do_not_meet_are_refused() {
        assert_eq!(check_levels(FEATURE_LEVEL, FEATURE_LEVEL + 1), Ok(()));
        assert_eq!(check_levels(0, FEATURE_LEVEL_MIN), Ok(()));
        for (min, max) in [(FEATURE_LEVEL + 1, FEATURE_LEVEL + 2), (0, 0)] {
            let refused = check_levels(min, max).expect_err("nothing in common");
            assert!(refused.contains(&format!("{min} to {max}")), "{refused}");
        }
    }

    #[test]
    fn what_a_newer_build_proposes_is_not_understood() {
        assert!(understands(level_of(&Command::SweepIds(SweepIds {}))));
        assert!(!understands(FEATURE_LEVEL + 1) && !understands(FEATURE_LEVEL_MIN - 1));
    }
}
