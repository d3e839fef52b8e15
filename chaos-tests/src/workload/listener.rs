//! A device that receives in turns of being online and away, with and without the cursor it kept; in a load sometimes
//! slowly, and sometimes dying between receiving and acknowledging.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rand::Rng as _;
use rand::rngs::StdRng;
use roost_client::{AttachOptions, Credentials, Cursor, Incoming};
use tokio::time::{sleep, timeout, timeout_at};

use super::Stage;
use crate::witness::{Witness, drained};

/// Entries that a device takes before it goes away, at most.
const TURN_ENTRIES_MAX: usize = 100;
/// In a load.
const LOAD_TURN_ENTRIES_MAX: usize = 1_000;
/// A device goes away when nothing comes for so long.
const TURN_IDLE: Duration = Duration::from_millis(500);
/// What a slow reader holds unacknowledged, and how long he looks at an entry.
const SLOW_WINDOW: u32 = 8;
const SLOW_PAUSE: Duration = Duration::from_millis(4);
/// And for how many.
const SLOW_ENTRIES: usize = 50;

/// What a device keeps while it is away.
#[derive(Default)]
struct Kept {
    cursor: Option<Cursor>,
    seen: BTreeSet<Cursor>,
    /// The last that it has committed.
    acked: Option<Cursor>,
}

/// Receives until everything is there and acknowledged; says how much that was.
pub(super) async fn play(stage: &Stage, index: u64, device: &Credentials) -> Result<u64> {
    let mut chance = stage.chance(2, index);
    let mut kept = Kept::default();
    let mut result = Ok(());
    while result.is_ok() && !(complete(stage, device, &kept) && kept.acked >= kept.cursor) {
        result = turn(stage, &mut chance, device, &mut kept).await;
        if stage.left().is_zero() {
            break;
        }
    }
    // Whoever had to stop earlier has not listened to the end.
    if result.is_ok() {
        drained(&stage.history, device);
    }
    let (received, accepted) = (kept.seen.len() as u64, stage.accepted_for(&device.user));
    result.with_context(|| format!("device {} of {}", device.device, device.user))?;
    if received < accepted {
        bail!(
            "device {} of {} has {received} of {accepted} entries at the deadline",
            device.device,
            device.user
        );
    }
    Ok(received)
}

fn complete(stage: &Stage, device: &Credentials, kept: &Kept) -> bool {
    *stage.senders_left.borrow() == 0 && kept.seen.len() as u64 >= stage.accepted_for(&device.user)
}

/// Online for some entries, then away; what it has may be left unacknowledged, unless nothing new came.
async fn turn(
    stage: &Stage,
    chance: &mut StdRng,
    device: &Credentials,
    kept: &mut Kept,
) -> Result<()> {
    let cursor = kept.cursor.filter(|_| chance.random_bool(0.5));
    let slow = stage.odd && chance.random_bool(0.1);
    let quota = match (stage.odd, slow) {
        (_, true) => SLOW_ENTRIES,
        (true, false) => chance.random_range(1..=LOAD_TURN_ENTRIES_MAX),
        (false, false) => chance.random_range(1..=TURN_ENTRIES_MAX),
    };
    let attach = AttachOptions {
        cursor,
        ..match slow {
            true => AttachOptions {
                window_entries: SLOW_WINDOW,
                ..AttachOptions::default()
            },
            false => AttachOptions::default(),
        }
    };
    let witness = Witness::attach(&stage.history, stage.options(device), attach)?;
    let before = kept.seen.len();
    // An acknowledgement beyond what this session was handed is refused, whatever an earlier one was handed.
    let mut handed = cursor;
    for _ in 0..quota {
        let Some(incoming) = next(stage, &witness, device, kept, handed).await else {
            break;
        };
        let cursor = incoming.cursor();
        if matches!(incoming, Incoming::Delivery(_)) {
            kept.seen.insert(cursor);
            stage.progress.delivered.fetch_add(1, Ordering::SeqCst);
        }
        kept.cursor = kept.cursor.max(Some(cursor));
        handed = handed.max(Some(cursor));
        if slow {
            sleep(SLOW_PAUSE).await;
        }
        // A slow reader's window is full at once, and so is anybody's in the end.
        if slow || chance.random_bool(0.1) {
            witness.ack_soon(cursor);
        }
    }
    let news = kept.seen.len() > before;
    if stage.odd && news && chance.random_bool(0.2) {
        // It dies: neither what it has asked for nor what it has is told to anybody.
        drop(witness);
        return Ok(());
    }
    let leave_some = news && chance.random_bool(0.3);
    if let (false, Some(cursor)) = (leave_some, handed) {
        witness.ack(cursor, stage.left()).await?;
        kept.acked = kept.acked.max(Some(cursor));
    }
    witness.close().await;
    Ok(())
}

/// The next item, unless nothing comes for a while, or nothing more is to come after what this session was `handed`.
async fn next(
    stage: &Stage,
    witness: &Witness,
    device: &Credentials,
    kept: &Kept,
    handed: Option<Cursor>,
) -> Option<Incoming> {
    let mut senders_left = stage.senders_left.subscribe();
    let finished = async {
        // The sender of the watch lives as long as the stage.
        let _ = senders_left.wait_for(|left| *left == 0).await;
        if !complete(stage, device, kept) || handed < kept.cursor {
            std::future::pending::<()>().await;
        }
    };
    let taken = async {
        tokio::select! {
            biased;
            incoming = timeout(TURN_IDLE, witness.next()) => incoming.ok().flatten(),
            () = finished => None,
        }
    };
    timeout_at(stage.deadline, taken).await.ok().flatten()
}
