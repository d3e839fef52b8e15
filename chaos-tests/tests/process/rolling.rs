//! A rolling restart: every node in turn is told to stop, and started again, while people talk.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use futures::future::try_join_all;
use roost_chaos_tests::lab::{Lab, Setup, within};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::{Event, Incoming};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::{BOB, CAROL, LIMIT};

const SENDERS: [&str; 3] = ["+15550011", "+15550012", "+15550013"];
/// Between two messages of a sender to one recipient: enough to be busy, not so much that the history grows large.
const PACE: Duration = Duration::from_millis(5);
/// The default of `session.drain_ms`, and what a process takes to end on a busy machine.
const GRACE: Duration = Duration::from_secs(20);
/// Messages that must be accepted while all nodes are up, before each stop and after the last.
const BETWEEN: usize = 300;
const ACK_EVERY: usize = 50;
/// What a session is told.
const TOLD: &str = "GO_ELSEWHERE";

/// What the load has done so far.
#[derive(Clone, Debug)]
struct Load {
    accepted: watch::Sender<usize>,
    over: watch::Sender<bool>,
}

/// Goal: a rolling restart of the whole cluster loses and doubles nothing, and no client sees more than a reconnect.
/// Method: three senders and two listeners that may go to any node; SIGTERM to each node in turn, start again, wait
/// until it is ready. Every call of the client library must succeed, each node end well within its grace period, and
/// whoever sat on the node have been told to go elsewhere and have gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_costs_a_reconnect() -> Result<()> {
    let mut lab = Lab::start(Setup::nodes(3).alone()).await?;
    let mut senders = Vec::new();
    for user in SENDERS {
        senders.push(lab.add_device(user, "phone").await?);
    }
    let listeners = [
        lab.add_device(BOB, "phone").await?,
        lab.add_device(CAROL, "phone").await?,
    ];
    let load = Load {
        accepted: watch::Sender::new(0),
        over: watch::Sender::new(false),
    };
    let mut sending = Vec::new();
    for device in &senders {
        let witness = Witness::connect(&lab.history, lab.anywhere(device))?;
        sending.push(load.clone().send(witness));
    }
    let totals = [watch::Sender::new(None), watch::Sender::new(None)];
    let mut receiving = Vec::new();
    for (device, total) in listeners.iter().zip(&totals) {
        let witness = Witness::listen(&lab.history, lab.anywhere(device), None)?;
        receiving.push(receive(witness, total.subscribe()));
    }
    // On each node sits somebody who may leave only when told to.
    let mut seated = Vec::new();
    for k in 1..=3 {
        let user = format!("+1555002{k}");
        let device = lab.add_device(&user, "phone").await?;
        seated.push(Witness::listen(
            &lab.history,
            lab.through(k, &device),
            None,
        )?);
    }
    let restarts = async {
        for (k, witness) in (1..=3).zip(&seated) {
            load.wait_accepted(BETWEEN).await?;
            restart(&mut lab, k, witness).await?;
        }
        load.wait_accepted(BETWEEN).await?;
        load.over.send_replace(true);
        Ok::<_, anyhow::Error>(())
    };
    let sending = async {
        let sent = try_join_all(sending).await?;
        for (to, total) in totals.iter().enumerate() {
            total.send_replace(Some(sent.iter().map(|sent| sent[to]).sum()));
        }
        Ok(())
    };
    let all = async { futures::try_join!(sending, try_join_all(receiving), restarts) };
    within(4 * LIMIT, "the load and three restarts", all).await??;
    for device in &listeners {
        drained(&lab.history, device);
    }
    lab.pass().await
}

/// SIGTERM, and up again. Whoever sits there must be told to go elsewhere, and stand somewhere else at once.
async fn restart(lab: &mut Lab, k: u16, seated: &Witness) -> Result<()> {
    seated.client().ready().await?;
    let mut events = seated.client().events();
    lab.fault(format!("SIGTERM to node {k}"));
    let node = lab.cluster.node_mut(k);
    let name = node.name().to_owned();
    let told = async {
        let mut reason = String::new();
        loop {
            match events.next().await.context("the client is over")?? {
                Event::Disconnected { reason: why } if reason.is_empty() => reason = why,
                Event::Connected { node } => return Ok::<_, anyhow::Error>((reason, node)),
                _ => {}
            }
        }
    };
    let (ended, told) = tokio::join!(node.terminate(GRACE), within(LIMIT, "a reconnect", told));
    let status = ended?;
    ensure!(status.code() == Some(0), "node {k}: {status}");
    let (reason, went_to) = told??;
    ensure!(reason.contains(TOLD), "not told to go elsewhere: {reason}");
    ensure!(went_to != name, "the client came back to {name}");
    lab.restart(k).await
}

impl Load {
    /// So many more than now.
    async fn wait_accepted(&self, more: usize) -> Result<()> {
        let mut accepted = self.accepted.subscribe();
        let wanted = *accepted.borrow() + more;
        let reached = accepted.wait_for(|accepted| *accepted >= wanted);
        within(LIMIT, "messages that are accepted", reached).await??;
        Ok(())
    }

    /// Sends at an even pace to both until it is over; every message must be accepted. Gives how many went to each.
    async fn send(self, witness: Witness) -> Result<[usize; 2]> {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answers = futures::stream::FuturesUnordered::new();
        let mut sent = [0; 2];
        loop {
            let over = *self.over.borrow();
            tokio::select! {
                _ = pace.tick(), if !over => {
                    let number = sent[0] + sent[1];
                    let to = [BOB, CAROL][number % 2];
                    sent[number % 2] += 1;
                    let id = format!("m-{number}");
                    let pending = witness.send(to, &id, format!("message {number}"), None).await?;
                    answers.push(witness.answer(pending, LIMIT));
                }
                Some(answer) = answers.next() => {
                    let answer = answer?;
                    ensure!(answer.is_accepted(), "{answer:?}");
                    self.accepted.send_modify(|accepted| *accepted += 1);
                }
                else => return Ok(sent),
            }
        }
    }
}

/// Takes everything, once, until it has as much as was accepted for this user, which is known in the end.
async fn receive(witness: Witness, mut total: watch::Receiver<Option<usize>>) -> Result<()> {
    let mut seen = BTreeSet::new();
    loop {
        let total_now = *total.borrow_and_update();
        if total_now.is_some_and(|total| seen.len() >= total) {
            break;
        }
        tokio::select! {
            incoming = witness.next() => {
                let incoming = incoming.context("the client is over")?;
                let Incoming::Delivery(delivery) = incoming else {
                    anyhow::bail!("not a message: {incoming:?}");
                };
                ensure!(seen.insert(delivery.cursor()), "twice: {:?}", delivery.cursor());
                if seen.len() % ACK_EVERY == 0 {
                    witness.ack_soon(delivery.cursor());
                }
            }
            changed = total.changed() => changed?,
        }
    }
    let last = seen.last().context("nothing came")?;
    witness.ack(*last, LIMIT).await
}
