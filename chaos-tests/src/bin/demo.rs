//! The story of `cargo xtask demo`: a thousand messages, one node killed in the middle, nothing lost.
//!
//! Three nodes of its own, on free ports, in a temporary directory. Succeeds only if all of the story was true, and
//! ends within its time either way; the nodes end with it.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt as _};
use roost_chaos_tests::lab::{Lab, Setup, within};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::{Answer, Credentials, Delivery, Status};

const ANN: &str = "+15550001";
const BOB: &str = "+15550002";
const MESSAGES: usize = 1_000;
/// The kill comes when so many have been accepted.
const KILL_AFTER: usize = MESSAGES / 2;
/// Sent and not yet answered, at most: so the kill comes in the middle of what is under way.
const PIPELINE: usize = 64;
/// For any one step.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// For the whole story.
const STORY_LIMIT: Duration = Duration::from_secs(150);

#[tokio::main]
async fn main() -> ExitCode {
    let told = within(STORY_LIMIT, "the story", story()).await;
    match told.and_then(|result| result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn story() -> Result<()> {
    let clock = Clock(Instant::now());
    let mut lab = Lab::start(Setup::nodes(3).shards(32)).await?;
    clock.say(format_args!(
        "three nodes are ready: {}",
        lab.cluster.client_urls().join(" ")
    ));
    let ann = lab.add_device(ANN, "phone").await?;
    let bob = lab.add_device(BOB, "phone").await?;
    let leader = lab.leader_of(BOB).await?;
    clock.say(format_args!(
        "Ann and Bob have accounts; Bob is offline; node-{leader} leads his shard"
    ));

    let sender = Witness::connect(&lab.history, lab.anywhere(&ann).watch())?;
    let answers = send_through_a_kill(&mut lab, &clock, &sender, leader).await?;
    let online = 1 + leader % 3;
    let listener = Witness::listen(&lab.history, lab.through(online, &bob), None)?;
    let deliveries = listener.receive(MESSAGES, STEP_LIMIT).await?;
    in_order(&deliveries)?;
    clock.say(format_args!(
        "Bob came online through node-{online}: all {MESSAGES} arrived, once and in order"
    ));
    ticks(
        &lab,
        &clock,
        &sender,
        &answers,
        &listener,
        &deliveries,
        &bob,
    )
    .await?;
    lab.pass().await?;
    clock.say(format_args!("nothing was lost"));
    Ok(())
}

/// Ann sends, and half way the leader of Bob's shard dies.
async fn send_through_a_kill(
    lab: &mut Lab,
    clock: &Clock,
    sender: &Witness,
    leader: u16,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::with_capacity(MESSAGES);
    let mut under_way = FuturesUnordered::new();
    let mut killed_at = None;
    let mut longest_wait = Duration::ZERO;
    let mut sent = 0;
    let mut last_answer = Instant::now();
    while answers.len() < MESSAGES {
        while sent < MESSAGES && under_way.len() < PIPELINE {
            sent += 1;
            let body = format!("message {sent} of {MESSAGES}");
            let pending = sender
                .send(BOB, &format!("demo-{sent}"), body, None)
                .await?;
            under_way.push(sender.answer(pending, STEP_LIMIT));
        }
        let answer = under_way.next().await.context("nothing is under way")??;
        ensure!(
            answer.is_accepted(),
            "{} was refused: {:?}",
            answer.id,
            answer.error
        );
        if killed_at.is_some() {
            longest_wait = longest_wait.max(last_answer.elapsed());
        }
        last_answer = Instant::now();
        answers.push(answer);
        if answers.len() == KILL_AFTER {
            killed_at = Some(Instant::now());
            lab.kill(leader).await?;
            clock.say(format_args!(
                "{KILL_AFTER} messages accepted, {} under way: kill -9 of node-{leader}",
                under_way.len()
            ));
        }
    }
    clock.say(format_args!(
        "all {MESSAGES} accepted; the kill cost one pause of {:.1} s",
        longest_wait.as_secs_f64()
    ));
    Ok(answers)
}

fn in_order(deliveries: &[Delivery]) -> Result<()> {
    for (number, delivery) in (1..).zip(deliveries) {
        let id = format!("demo-{number}");
        let body = format!("message {number} of {MESSAGES}");
        ensure!(
            delivery.envelope.id == id && delivery.envelope.body == body,
            "entry {number} is {}, not {id}",
            delivery.envelope.id
        );
    }
    let places: BTreeSet<_> = deliveries.iter().map(Delivery::cursor).collect();
    ensure!(places.len() == MESSAGES, "some arrived twice");
    Ok(())
}

/// Bob has them, then reads them, and Ann sees both.
async fn ticks(
    lab: &Lab,
    clock: &Clock,
    sender: &Witness,
    answers: &[Answer],
    listener: &Witness,
    deliveries: &[Delivery],
    bob: &Credentials,
) -> Result<()> {
    let last = deliveries.last().context("nothing came")?.cursor();
    listener.ack(last, STEP_LIMIT).await?;
    for answer in answers {
        let answer = sender
            .wait_status(answer, Status::Delivered, STEP_LIMIT)
            .await?;
        ensure!(answer.status != Status::Expired, "{} expired", answer.id);
    }
    clock.say(format_args!(
        "Ann sees two ticks on all {MESSAGES}: delivered"
    ));
    listener.mark_read(ANN, last, STEP_LIMIT).await?;
    for answer in answers {
        let answer = sender.wait_status(answer, Status::Read, STEP_LIMIT).await?;
        ensure!(
            answer.status == Status::Read,
            "{} is {:?}",
            answer.id,
            answer.status
        );
    }
    clock.say(format_args!("Ann sees that Bob has read them"));
    sender.settled();
    drained(&lab.history, bob);
    lab.wait_queued(BOB, 0).await?;
    clock.say(format_args!("Bob's queue is empty again"));
    Ok(())
}

struct Clock(Instant);

impl Clock {
    fn say(&self, what: std::fmt::Arguments<'_>) {
        println!("{:6.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}
