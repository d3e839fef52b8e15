//! A sync that fails ends the node for good; a sync that hangs only costs it its leaderships.

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use roost_chaos_tests::lab::{Lab, Setup, until, within};
use roost_chaos_tests::witness::{Pending, Witness, drained};
use roost_client::Credentials;

use crate::room::failure_mark;
use crate::syncs::{Fault, failing_device};
use crate::{ANN, BOB, INTERNAL, LIMIT};

const MESSAGES: usize = 200;

struct Stage {
    lab: Lab,
    sender: Witness,
    bob: Credentials,
    sent: usize,
}

impl Stage {
    async fn start(nodes: u16) -> Result<Self> {
        let lab = Lab::start(Setup::nodes(nodes).alone()).await?;
        let ann = lab.add_device(ANN, "phone").await?;
        let bob = lab.add_device(BOB, "phone").await?;
        let mut stage = Self {
            sender: Witness::connect(&lab.history, lab.anywhere(&ann))?,
            lab,
            bob,
            sent: 0,
        };
        stage.send(MESSAGES).await?;
        Ok(stage)
    }

    /// Sends so many in one pipeline and waits until all are accepted.
    async fn send(&mut self, count: usize) -> Result<()> {
        for pending in self.begin(count).await? {
            let answer = self.sender.answer(pending, LIMIT).await?;
            ensure!(answer.is_accepted(), "{answer:?}");
        }
        Ok(())
    }

    async fn begin(&mut self, count: usize) -> Result<Vec<Pending>> {
        let mut pending = Vec::with_capacity(count);
        for _ in 0..count {
            self.sent += 1;
            let (id, body) = (format!("m-{}", self.sent), format!("message {}", self.sent));
            pending.push(self.sender.send(BOB, &id, body, None).await?);
        }
        Ok(pending)
    }

    fn pid(&self, k: u16) -> Result<u32> {
        self.lab.cluster.node(k).pid().context("it is not running")
    }

    /// Bob gets everything, once and in order.
    async fn listen(self) -> Result<()> {
        let listener = Witness::listen(&self.lab.history, self.lab.anywhere(&self.bob), None)?;
        let deliveries = listener.receive(self.sent, LIMIT).await?;
        listener
            .ack(deliveries[self.sent - 1].cursor(), LIMIT)
            .await?;
        drained(&self.lab.history, &self.bob);
        self.lab.pass().await
    }
}

/// The node must end by itself, saying why, and leave the mark.
async fn ends(lab: &mut Lab, k: u16, why: &str) -> Result<()> {
    let node = lab.cluster.node_mut(k);
    let status = within(LIMIT, "the end of the node", node.wait()).await??;
    let log = lab.log(k)?;
    ensure!(status.code() == Some(INTERNAL), "{status}: {log}");
    ensure!(log.contains(why), "the log does not say {why:?}: {log}");
    let mark = failure_mark(&lab.cluster.node(k).data_dir());
    ensure!(mark.exists(), "there is no {}", mark.display());
    Ok(())
}

/// Starts it where every sync fails: it must refuse, and keep the mark. Then where none does.
async fn restart_refused_then_healed(lab: &mut Lab, k: u16) -> Result<()> {
    let trace = lab.directory().join("refused.strace");
    let node = lab.cluster.node_mut(k);
    let mark = failure_mark(&node.data_dir());
    node.overrides_mut().prefix = failing_device(&trace);
    node.start()?;
    let status = within(LIMIT, "the refusal", node.wait()).await??;
    let injected = std::fs::read_to_string(&trace)?.contains("(INJECTED)");
    let log = lab.log(k)?;
    ensure!(injected, "no sync has failed");
    ensure!(!status.success(), "it started on a device that fails");
    ensure!(log.contains("still fails its test"), "{log}");
    ensure!(mark.exists(), "the mark is gone");
    lab.cluster.node_mut(k).overrides_mut().prefix.clear();
    lab.restart(k).await?;
    ensure!(!mark.exists(), "the mark is still there");
    Ok(())
}

/// Goal: after a failed sync a node answers nobody, ends, and does not come back before its device is well; the others
/// go on, and nothing accepted is lost. Method: a pipeline of messages while every sync of the leader of their shard
/// fails; a start under strace, which makes every sync fail from the beginning; then one without.
#[tokio::test]
async fn a_failed_sync_ends_the_node_until_the_device_is_well() -> Result<()> {
    let mut stage = Stage::start(3).await?;
    let leader = stage.lab.leader_of(BOB).await?;
    let fault = Fault::fail(stage.pid(leader)?, stage.lab.directory()).await?;
    stage
        .lab
        .fault(format!("every sync of node {leader} fails"));
    stage.send(MESSAGES).await?;
    ends(&mut stage.lab, leader, "a sync failed").await?;
    fault.prove_failed()?;
    fault.heal();
    stage.send(MESSAGES).await?;
    restart_refused_then_healed(&mut stage.lab, leader).await?;
    // With one of the others gone it is needed for a majority.
    let other = leader % 3 + 1;
    stage.lab.kill(other).await?;
    stage.send(MESSAGES).await?;
    stage.lab.restart(other).await?;
    stage.listen().await
}

/// Goal: what was written before a failed sync is never answered, not even by a later sync that would succeed. Method: a
/// node alone; while its syncs fail messages are sent; none may be answered before it has ended; healed, it takes them.
#[tokio::test]
async fn nothing_is_answered_after_a_failed_sync() -> Result<()> {
    let mut stage = Stage::start(1).await?;
    let fault = Fault::fail(stage.pid(1)?, stage.lab.directory()).await?;
    stage.lab.fault("every sync fails");
    let pending = stage.begin(MESSAGES).await?;
    let sender = &stage.sender;
    let mut answers: Vec<_> = pending
        .into_iter()
        .map(|pending| Box::pin(sender.answer(pending, LIMIT)))
        .collect();
    ends(&mut stage.lab, 1, "a sync failed").await?;
    fault.prove_failed()?;
    for answer in &mut answers {
        ensure!(answer.now_or_never().is_none(), "a message was answered");
    }
    fault.heal();
    restart_refused_then_healed(&mut stage.lab, 1).await?;
    for answer in answers {
        let answer = answer.await?;
        ensure!(answer.is_accepted(), "{answer:?}");
    }
    stage.listen().await
}

/// Goal: a node whose disk hangs stops leading, the others go on, and it comes back when the sync returns. Method: no
/// sync of a leader returns; the node itself must count the stall (its HTTP port still answers); messages go to its
/// shards meanwhile; when the syncs return it catches up, and with another node killed messages need it.
#[tokio::test]
async fn a_hung_sync_moves_leaderships_and_the_node_rejoins() -> Result<()> {
    const STALLS: &str = "roost_storage_sync_stalls_total";
    let mut stage = Stage::start(3).await?;
    let leader = stage.lab.leader_of(BOB).await?;
    let before = stage.lab.metric(leader, STALLS).await?;
    let fault = Fault::hang(stage.pid(leader)?, stage.lab.directory()).await?;
    stage.lab.fault(format!("no sync of node {leader} returns"));
    // Answered by the others, whoever was asked first.
    stage.send(MESSAGES).await?;
    let lab = &stage.lab;
    until(LIMIT, "the node notices the stall", async || {
        Ok((lab.metric(leader, STALLS).await? > before).then_some(()))
    })
    .await?;
    let next = stage.lab.leader_of(BOB).await?;
    ensure!(next != leader, "node {leader} leads without a disk");
    ensure!(
        stage.lab.cluster.node_mut(leader).is_running(),
        "a sync that hangs does not end the process"
    );
    fault.heal();
    stage.lab.fault("its syncs return");
    stage.lab.cluster.node_mut(leader).wait_ready().await?;
    let other = (1..=3)
        .find(|k| *k != leader && *k != next)
        .context("three nodes")?;
    stage.lab.kill(other).await?;
    within(
        LIMIT,
        "messages with the node that hung",
        stage.send(MESSAGES),
    )
    .await??;
    stage.lab.restart(other).await?;
    stage.listen().await
}
