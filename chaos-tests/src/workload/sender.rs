//! A device that sends: over several clients one after the other, to anybody whose conversation has room.
//!
//! Each conversation has its own share of the pipeline, so that a shard that does not answer holds up nobody else's
//! messages.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::stream::{FuturesUnordered, StreamExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use roost_client::{Answer, Credentials, Status};
use tokio::time::{Instant, sleep_until};

use super::Stage;
use crate::witness::Witness;

/// The longest body, in bytes.
const BODY_BYTES_MAX: usize = 200;
/// Recipients that a device writes to, at most.
const FRIENDS_MAX: usize = 4;
/// Messages of one client of a load before it makes way for the next, at most.
const CLIENT_MESSAGES_MAX: usize = 1_500;
/// The share of messages of a load that are sent again once they are accepted.
const AGAIN: f64 = 0.01;

/// Sends everything; receives nothing.
pub(super) async fn play(stage: &Stage, index: u64, device: &Credentials) -> Result<u64> {
    let result = send_all(stage, index, device).await;
    stage.senders_left.send_modify(|left| *left -= 1);
    result.with_context(|| format!("device {} of {}", device.device, device.user))?;
    Ok(0)
}

async fn send_all(stage: &Stage, index: u64, device: &Credentials) -> Result<()> {
    let mut chance = stage.chance(1, index);
    let plan = stage.plan;
    let friends = friends(stage, device);
    let mut settling = FuturesUnordered::new();
    for client in 0..plan.clients {
        if stage.is_stopped() {
            break;
        }
        let witness = Witness::connect(&stage.history, stage.options(device).watch())?;
        let share = match stage.odd {
            true => chance.random_range(1..=CLIENT_MESSAGES_MAX),
            false => plan.messages / plan.clients,
        };
        let seed = chance.random();
        let answers = pipeline(stage, &witness, seed, &friends, client, share).await?;
        let settles = chance.random_bool(0.5);
        let end = async move {
            if settles {
                settle(stage, &witness, &answers).await?;
            }
            witness.close().await;
            anyhow::Ok(())
        };
        // The next client does not wait for the ticks of this one in a load: they may need a shard that is down.
        settling.push(end);
        if !stage.odd {
            settling.next().await.transpose()?;
        }
    }
    while let Some(settled) = settling.next().await {
        settled?;
    }
    Ok(())
}

/// In a load everybody writes to the few who stand around him, so that conversations go both ways; else to all.
fn friends(stage: &Stage, device: &Credentials) -> Vec<String> {
    let mut others: Vec<String> = stage.users.keys().cloned().collect();
    let own = others.iter().position(|user| *user == device.user);
    if let Some(own) = own {
        others.rotate_left(own);
        others.remove(0);
    }
    if stage.odd && others.len() > FRIENDS_MAX {
        let far = others.split_off(others.len() - FRIENDS_MAX / 2);
        others.truncate(FRIENDS_MAX / 2);
        others.extend(far);
    }
    others
}

/// Sends `count` messages to anybody, and gives the answers of the accepted ones.
async fn pipeline(
    stage: &Stage,
    witness: &Witness,
    seed: u64,
    friends: &[String],
    client: usize,
    count: usize,
) -> Result<Vec<Answer>> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut answers = Vec::new();
    let mut under_way = FuturesUnordered::new();
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    let share = (stage.plan.pipeline / friends.len()).max(1);
    let mut next_at = Instant::now();
    let mut number = 0;
    while number < count && !stage.is_stopped() {
        let with_room: Vec<&str> = friends
            .iter()
            .map(String::as_str)
            .filter(|to| open.get(to).is_none_or(|open| *open < share))
            .collect();
        let may_send = !with_room.is_empty();
        tokio::select! {
            Some((to, answer)) = under_way.next() => {
                *open.entry(to).or_default() -= 1;
                answers.extend(kept(stage, answer?)?);
            }
            () = sleep_until(next_at), if may_send => {
                let to = with_room[chance.random_range(0..with_room.len())];
                let mut body = vec![0; chance.random_range(1..=BODY_BYTES_MAX)];
                chance.fill(&mut body[..]);
                let again = stage.odd && chance.random_bool(AGAIN);
                let id = format!("{client}-{number}");
                *open.entry(to).or_default() += 1;
                under_way.push(async move { (to, send(stage, witness, to, &id, body, again).await) });
                number += 1;
                next_at = later(stage, next_at);
            }
        }
    }
    while let Some((_, answer)) = under_way.next().await {
        answers.extend(kept(stage, answer?)?);
    }
    Ok(answers)
}

/// When the next message goes; what a device could not send in time it does not make up for.
fn later(stage: &Stage, at: Instant) -> Instant {
    let now = Instant::now();
    match stage.rate {
        Some(rate) => (at + Duration::from_secs_f64(1.0 / rate)).max(now),
        None => now,
    }
}

async fn send(
    stage: &Stage,
    witness: &Witness,
    to: &str,
    id: &str,
    body: Vec<u8>,
    again: bool,
) -> Result<Answer> {
    let pending = witness.send(to, id, body.clone(), None).await?;
    let answer = witness.answer(pending, stage.left()).await?;
    if again && answer.is_accepted() {
        let pending = witness.send(to, id, body, None).await?;
        let repeated = witness.answer(pending, stage.left()).await?;
        ensure!(
            repeated.place == answer.place,
            "{id} sent again is at {:?}, and was at {:?}",
            repeated.place,
            answer.place
        );
    }
    Ok(answer)
}

fn kept(stage: &Stage, answer: Answer) -> Result<Option<Answer>> {
    if !answer.is_accepted() {
        bail!("{} was refused: {:?}", answer.id, answer.error);
    }
    stage.users[answer.to.as_str()].fetch_add(1, Ordering::SeqCst);
    stage.progress.accepted.fetch_add(1, Ordering::SeqCst);
    Ok(Some(answer))
}

async fn settle(stage: &Stage, witness: &Witness, answers: &[Answer]) -> Result<()> {
    for answer in answers {
        witness
            .wait_status(answer, Status::Delivered, stage.left())
            .await?;
    }
    witness.settled();
    Ok(())
}
