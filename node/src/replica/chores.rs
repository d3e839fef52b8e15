//! What a leader does unasked: expiry, deletion of what nobody needs, forgetting old ids.
//!
//! Each round is bounded; what is left is found again, because it is a row.

use std::time::Duration;

use roost_proto::storage::{Expire, Outcome, SweepIds, Trim, command, outcome};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Error, Replica};

/// Between two looks at what is due.
const TICK: Duration = Duration::from_secs(1);
/// Between two sweeps of remembered ids, which go by whole days.
const SWEEP: Duration = Duration::from_secs(600);
/// Users in one expiry command.
const USERS_MAX: usize = 256;
/// Proposals in one round of one chore.
const ROUNDS_MAX: usize = 64;

/// Runs until the replica stops.
pub(super) async fn run(replica: &Replica) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = replica.trims.notified() => {}
        }
        if !replica.serves() {
            continue;
        }
        let done = async {
            expire(replica).await?;
            trim(replica).await?;
            if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
                let step = command::Command::SweepIds(SweepIds {});
                while more(&replica.propose(step.clone()).await?) {}
                swept = Some(Instant::now());
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = done.await {
            // The rows are still there for the next round, or for the next leader.
            tracing::debug!(shard = %replica.shard(), %error, "chores interrupted");
        }
    }
}

async fn expire(replica: &Replica) -> Result<(), Error> {
    for _ in 0..ROUNDS_MAX {
        let due = super::reader(&replica.view())
            .due_expiries(replica.clock.now_ms(), USERS_MAX)
            .map_err(|error| replica.read_failed(error))?;
        if due.is_empty() {
            break;
        }
        let users = due.iter().map(ToString::to_string).collect();
        let expire = command::Command::Expire(Expire { users });
        replica.propose(expire).await?;
    }
    Ok(())
}

/// One step for each user that waits. Whom a full outbox holds up is met again in the next round; the others go on.
async fn trim(replica: &Replica) -> Result<(), Error> {
    let mut after = None;
    for _ in 0..ROUNDS_MAX {
        let users = super::reader(&replica.view())
            .trims(after.as_ref(), USERS_MAX)
            .map_err(|error| replica.read_failed(error))?;
        let Some(last) = users.last().cloned() else {
            break;
        };
        for user in users {
            let step = command::Command::Trim(Trim {
                user: user.to_string(),
            });
            while more(&replica.propose(step.clone()).await?) {}
        }
        after = Some(last);
    }
    Ok(())
}

fn more(outcome: &Outcome) -> bool {
    matches!(&outcome.outcome, Some(outcome::Outcome::Done(done)) if done.more)
}
