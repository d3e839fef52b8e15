//! A disk that fills: below the reserve the node leads nothing and takes no new messages; at the last page it ends.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use roost_chaos_tests::lab::{Lab, Setup, until, within};
use roost_chaos_tests::witness::{Pending, Witness, drained};
use roost_client::{Answer, Code, Credentials, Refusal, Trouble};

use crate::room::{Room, failure_mark};
use crate::{ANN, BOB, CAROL, INTERNAL, LIMIT};

const ROOM_MIB: u64 = 192;
const RESERVE_PERCENT: u64 = 20;
const MESSAGES: usize = 100;
/// Entries of the users whose acknowledgements and expiry are looked at while the disk is low.
const KEPT: usize = 20;
const TTL: Duration = Duration::from_secs(3);

struct Stage {
    lab: Lab,
    rooms: Vec<Room>,
    sender: Witness,
    bob: Credentials,
    carol: Credentials,
    sent: Cell<usize>,
}

impl Stage {
    async fn start(toml: &str) -> Result<Self> {
        let lab = Lab::prepare(Setup::nodes(3).toml(toml).alone(), |config| config)?;
        let rooms = lab
            .cluster
            .nodes()
            .iter()
            .map(|node| Room::create(node.data_dir(), ROOM_MIB))
            .collect::<Result<Vec<_>>>()?;
        let mut lab = lab;
        lab.cluster.start_all()?;
        lab.cluster.wait_ready().await?;
        let ann = lab.add_device(ANN, "phone").await?;
        Ok(Self {
            sender: Witness::connect(&lab.history, lab.anywhere(&ann))?,
            bob: lab.add_device(BOB, "phone").await?,
            carol: lab.add_device(CAROL, "phone").await?,
            rooms,
            lab,
            sent: Cell::new(0),
        })
    }

    fn room(&self, k: u16) -> &Room {
        &self.rooms[usize::from(k) - 1]
    }

    async fn begin(&self, bytes: usize) -> Result<Pending> {
        self.sent.set(self.sent.get() + 1);
        let id = format!("m-{}", self.sent.get());
        self.sender.send(BOB, &id, vec![b'm'; bytes], None).await
    }

    async fn send(&self, count: usize) -> Result<()> {
        let mut pending = Vec::with_capacity(count);
        for _ in 0..count {
            pending.push(self.begin(100).await?);
        }
        for pending in pending {
            let answer = self.sender.answer(pending, LIMIT).await?;
            ensure!(answer.is_accepted(), "{answer:?}");
        }
        Ok(())
    }

    /// Waits until node `k` leads nothing.
    async fn sheds(&self, k: u16) -> Result<()> {
        let name = self.lab.cluster.node(k).name();
        let admin = self.lab.admin()?;
        until(LIMIT, "the node leads nothing", async || {
            let status = admin.status().await?;
            let own = status.nodes.iter().find(|node| node.name == name);
            let own = own.context("the node is in the status")?.id.clone();
            let all = status.shards.iter().all(|shard| !shard.leader.is_empty());
            let leads = status.shards.iter().any(|shard| shard.leader == own);
            Ok((all && !leads).then_some(()))
        })
        .await
    }

    /// Bob gets everything that was accepted, once and in order.
    async fn listen(self) -> Result<()> {
        let listener = Witness::listen(&self.lab.history, self.lab.anywhere(&self.bob), None)?;
        let deliveries = listener.receive(self.sent.get(), LIMIT).await?;
        listener
            .ack(deliveries[self.sent.get() - 1].cursor(), LIMIT)
            .await?;
        drained(&self.lab.history, &self.bob);
        // A directory in use cannot be removed.
        drop(self.rooms);
        self.lab.pass().await
    }
}

/// Goal: below the reserve a node sheds its leaderships and the others serve; without room on a majority senders get the
/// retryable `DISK_LOW`, while acknowledgements and expiry go on; with room everything goes on by itself. Method: file
/// systems in memory filled from outside, first one, then a second; `df` says that they are below the reserve.
#[tokio::test]
async fn below_the_reserve_nothing_new_is_taken() -> Result<()> {
    let reserve = format!("[storage]\ndisk_reserve_percent = {RESERVE_PERCENT}\n");
    let stage = Stage::start(&reserve).await?;
    let first = stage.lab.leader_of(BOB).await?;
    stage.send(MESSAGES).await?;
    let bodies = vec![vec![b'k'; 100]; KEPT];
    stage.sender.send_all(CAROL, "kept", &bodies, LIMIT).await?;

    stage.room(first).fill_below(RESERVE_PERCENT)?;
    stage
        .lab
        .fault(format!("node {first} is below its reserve"));
    stage.sheds(first).await?;
    stage.send(MESSAGES).await?;

    for number in 0..KEPT {
        let id = format!("short-{number}");
        let pending = stage.sender.send(CAROL, &id, "short", Some(TTL)).await?;
        stage.sender.answer(pending, LIMIT).await?;
    }
    let second = first % 3 + 1;
    stage.room(second).fill_below(RESERVE_PERCENT)?;
    stage.lab.fault(format!("node {second} is, too"));
    let refused = refused_for_room(&stage).await?;

    // Within the reserve: what Carol has acknowledged goes, and so does what expires.
    let listener = Witness::listen(&stage.lab.history, stage.lab.anywhere(&stage.carol), None)?;
    let deliveries = listener.receive(KEPT, LIMIT).await?;
    listener.ack(deliveries[KEPT - 1].cursor(), LIMIT).await?;
    listener.close().await;
    stage.lab.wait_queued(CAROL, 0).await?;
    ensure!(
        refusal(&stage.sender).is_some(),
        "there was room again meanwhile"
    );

    for k in [first, second] {
        stage.room(k).free()?;
    }
    stage.lab.fault("there is room again");
    let answer = refused.await?;
    ensure!(answer.is_accepted(), "{answer:?}");
    stage.send(MESSAGES).await?;
    stage.listen().await
}

/// Sends one message after the other until one is refused with `DISK_LOW`, and gives the answer that it will have.
async fn refused_for_room(stage: &Stage) -> Result<LocalBoxFuture<'_, Result<Answer>>> {
    loop {
        let pending = stage.begin(100).await?;
        let mut answer = stage.sender.answer(pending, LIMIT).boxed_local();
        let refused = until(LIMIT, "a refusal", async || Ok(refusal(&stage.sender)));
        tokio::select! {
            answer = &mut answer => ensure!(answer?.is_accepted(), "refused for good"),
            refusal = refused => {
                let refusal = refusal?;
                ensure!(refusal.code == Code::DiskLow && refusal.retryable, "{refusal:?}");
                return Ok(answer);
            }
        }
    }
}

fn refusal(sender: &Witness) -> Option<Refusal> {
    match sender.client().trouble() {
        Some(Trouble::Refused(refusal)) => Some(refusal),
        _ => None,
    }
}

/// Goal: a disk that is full to the last page ends the node with a clear error and the mark; it does not start again
/// before there is room; then it comes back, and nothing accepted is lost. Method: no reserve; the file system of the
/// leader is filled, proved by a canary that does not fit, and messages go on until the node ends. Its end gives room back
/// (what the log had been promised, tables that were not finished), so it is filled again before the restart.
#[tokio::test]
async fn without_any_room_the_node_ends_and_comes_back() -> Result<()> {
    // What the log had been promised before the room ended is used up first.
    const BODY_BYTES: usize = 20_000;
    const BODIES_MAX: usize = 3_000;
    let mut stage = Stage::start("[storage]\ndisk_reserve_percent = 0\n").await?;
    stage.send(MESSAGES).await?;
    let full = stage.lab.leader_of(BOB).await?;
    stage.room(full).fill()?;
    stage.lab.fault(format!("node {full} has no room at all"));
    for _ in 0..BODIES_MAX {
        let pending = stage.begin(BODY_BYTES).await?;
        let answer = stage.sender.answer(pending, LIMIT).await?;
        ensure!(answer.is_accepted(), "{answer:?}");
        if !stage.lab.cluster.node_mut(full).is_running() {
            break;
        }
    }
    let node = stage.lab.cluster.node_mut(full);
    let status = within(LIMIT, "the end of the node", node.wait()).await??;
    let mark = failure_mark(&node.data_dir());
    let log = stage.lab.log(full)?;
    ensure!(status.code() == Some(INTERNAL), "{status}: {log}");
    ensure!(log.contains("No space left on device"), "{log}");
    ensure!(mark.exists(), "there is no {}", mark.display());

    println!("its end gave back {} bytes", stage.room(full).available()?);
    stage.room(full).fill()?;
    stage.send(MESSAGES).await?;
    let node = stage.lab.cluster.node_mut(full);
    node.start()?;
    let status = within(LIMIT, "the refusal", node.wait()).await??;
    let log = stage.lab.log(full)?;
    ensure!(!status.success(), "it started without room");
    ensure!(log.contains("still fails its test"), "{log}");

    stage.room(full).free()?;
    stage.lab.restart(full).await?;
    ensure!(!mark.exists(), "the mark is still there");
    // With one of the others gone it is needed for a majority.
    let other = full % 3 + 1;
    stage.lab.kill(other).await?;
    stage.send(MESSAGES).await?;
    stage.lab.restart(other).await?;
    stage.listen().await
}
