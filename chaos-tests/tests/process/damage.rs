//! Damaged files: what was synced and is damaged is refused, what a crash tore is not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup, until, within};
use roost_chaos_tests::witness::{Witness, drained};
use roost_chaos_tests::workload::{self, Plan};
use roost_client::Credentials;

use crate::files::{Marks, Place, files, flip_bit, random_bodies};
use crate::{ANN, BOB, CAROL, LIMIT};

const BODY_BYTES: usize = 4 << 10;
const MESSAGES: usize = 30;
const DAMAGED: &str = "damaged";
const SHARDS: u32 = 4;
const META: u32 = u32::MAX;
/// What is in memory goes to table files, and deleted messages leave them, within seconds.
const TABLES_SOON: &str =
    "[raft]\nlog_age_max_ms = 1000\nsnapshot_life_max_ms = 1500\n[storage]\nreclaim_ms = 3000\n";
/// A user who reads what the others leave.
const READER: &str = "+15550004";
/// Other users, who go on sending and receiving meanwhile.
const BUSY: [&str; 3] = ["+15551001", "+15551002", "+15551003"];
const LOAD: Plan = Plan {
    seed: 11,
    messages: 600,
    pipeline: 8,
    clients: 3,
    limit: Duration::from_secs(120),
};

/// A cluster whose users are offline and have messages.
struct Stage {
    lab: Lab,
    sender: Witness,
    offline: Vec<Credentials>,
    bodies: Vec<Vec<u8>>,
    each: usize,
    /// Of each node the write-ahead log, and how many of its bytes are synced for sure.
    synced: Vec<(PathBuf, u64)>,
}

impl Stage {
    async fn start() -> Result<Self> {
        Self::start_for(&[BOB, CAROL]).await
    }

    async fn start_for(users: &[&str]) -> Result<Self> {
        Self::start_with(Setup::nodes(3), users).await
    }

    async fn start_with(setup: Setup, users: &[&str]) -> Result<Self> {
        let lab = Lab::start(setup.shards(SHARDS).alone()).await?;
        let ann = lab.add_device(ANN, "phone").await?;
        let mut offline = Vec::new();
        for user in users {
            offline.push(lab.add_device(user, "phone").await?);
        }
        let mut stage = Self {
            sender: Witness::connect(&lab.history, lab.anywhere(&ann))?,
            lab,
            offline,
            bodies: random_bodies(MESSAGES, BODY_BYTES),
            each: 0,
            synced: Vec::new(),
        };
        stage.send("first").await?;
        for node in stage.lab.cluster.nodes() {
            stage.synced.push(synced(&node.data_dir()).await?);
        }
        Ok(stage)
    }

    async fn send(&mut self, name: &str) -> Result<()> {
        for device in &self.offline {
            let sent = self
                .sender
                .send_all(&device.user, name, &self.bodies, LIMIT);
            sent.await?;
        }
        self.each += self.bodies.len();
        Ok(())
    }

    /// Everything must come to everybody.
    async fn listen(self) -> Result<()> {
        self.receive().await?;
        self.lab.pass().await
    }

    async fn receive(&self) -> Result<()> {
        for device in &self.offline {
            let listener = Witness::listen(&self.lab.history, self.lab.anywhere(device), None)?;
            let deliveries = listener.receive(self.each, LIMIT).await?;
            listener
                .ack(deliveries[self.each - 1].cursor(), LIMIT)
                .await?;
            drained(&self.lab.history, device);
        }
        Ok(())
    }

    /// Users whom nothing that happens to a node may disturb.
    async fn load(&self) -> Result<impl Future<Output = Result<workload::Totals>> + use<>> {
        let mut cast = Vec::new();
        for user in BUSY {
            cast.push(self.lab.add_device(user, "phone").await?);
        }
        let (history, urls) = (self.lab.history.clone(), self.lab.cluster.client_urls());
        Ok(async move { workload::run(&history, &urls, &cast, LOAD).await })
    }

    /// Damages the middle of what is synced of a dead node's write-ahead log, and says where.
    fn flip_in_wal(&self, k: u16) -> Result<(PathBuf, u64)> {
        let (wal, synced) = self.synced[usize::from(k) - 1].clone();
        let middle = synced / 2;
        let what = format!("one bit of {} flipped", wal.display());
        self.lab.fault(what);
        flip_bit(&wal, middle)?;
        Ok((wal, middle))
    }

    /// Starts a node that must refuse to run, and say that something is damaged.
    async fn start_refused(&mut self, k: u16) -> Result<()> {
        let before = self.lab.log(k)?.len();
        let node = self.lab.cluster.node_mut(k);
        node.start()?;
        let status = within(LIMIT, "the end of the node", node.wait()).await??;
        let said = self.lab.log(k)?.split_off(before);
        ensure!(
            !status.success() && said.contains(DAMAGED),
            "{status}: {said}"
        );
        println!("{}", said.trim());
        Ok(())
    }
}

/// All files of a directory with their bytes.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let name = |file: &Path| file.strip_prefix(directory).map(Path::to_owned);
    let files = files(directory)?.into_iter();
    files
        .map(|file| Ok((name(&file)?, fs::read(&file)?)))
        .collect()
}

/// The write-ahead log with the most in it.
fn wal(data_dir: &Path) -> Result<PathBuf> {
    let logs = files(data_dir)?.into_iter();
    let logs = logs.filter(|file| file.extension().is_some_and(|ext| ext == "log"));
    let largest = logs.max_by_key(|file| fs::metadata(file).map_or(0, |file| file.len()));
    largest.context("there is no write-ahead log")
}

/// Waits until a running node has synced all of its write-ahead log, and says how much that is. One tick needs a majority
/// only: right after it the third node's log may end in what nobody has promised, and damage there is a torn tail.
async fn synced(data_dir: &Path) -> Result<(PathBuf, u64)> {
    const QUIET: Duration = Duration::from_millis(100);
    let look = || {
        let wal = wal(data_dir)?;
        let log = fs::metadata(&wal)?;
        // Written after every sync that succeeded.
        let mark = fs::metadata(data_dir.join("store/SYNCED"))?.modified()?;
        anyhow::Ok((wal, log.len(), log.modified()?, mark))
    };
    until(LIMIT, "a synced write-ahead log", async || {
        let before = look()?;
        tokio::time::sleep(QUIET).await;
        let (wal, len, written, mark) = look()?;
        let is_quiet = before == (wal.clone(), len, written, mark);
        Ok((is_quiet && written <= mark).then_some((wal, len)))
    })
    .await
}

/// Goal: with one copy of everything there is nobody to rebuild a node from: damage to what was synced in its write-ahead
/// log is refused, not taken for a torn tail and not cleaned up. Method: one bit in the middle of the log of a dead node
/// that is its whole cluster; it refuses to start and says why, also when asked again; the bit flipped back, it starts,
/// so the refusal has changed nothing.
#[tokio::test]
async fn a_cluster_of_one_node_refuses_a_damaged_write_ahead_log() -> Result<()> {
    const VICTIM: u16 = 1;
    let mut stage = Stage::start_with(Setup::nodes(1), &[BOB, CAROL]).await?;
    stage.send("second").await?;
    stage.lab.kill(VICTIM).await?;
    let (wal, middle) = stage.flip_in_wal(VICTIM)?;
    stage.start_refused(VICTIM).await?;
    stage.start_refused(VICTIM).await?;
    flip_bit(&wal, middle)?;
    stage.lab.restart(VICTIM).await?;
    stage.listen().await
}

/// Goal: damage to what was synced in the write-ahead log is never taken for a torn tail, and the node comes back by
/// itself, under other replica ids. Method: see [`rebuild`]; one bit in the middle of the log of a dead node.
#[tokio::test]
async fn a_damaged_write_ahead_log_has_its_node_rebuilt() -> Result<()> {
    rebuild(Stage::start().await?, async |stage, victim| {
        stage.lab.kill(victim).await?;
        stage.flip_in_wal(victim).map(drop)
    })
    .await
}

/// Goal: synced bytes that are missing at the end of the write-ahead log are damage too. Method: see [`rebuild`]; the
/// last synced bytes of the log of a dead node are cut off, with what comes behind them.
#[tokio::test]
async fn a_write_ahead_log_that_lacks_synced_bytes_has_its_node_rebuilt() -> Result<()> {
    rebuild(Stage::start().await?, async |stage, victim| {
        stage.lab.kill(victim).await?;
        let (wal, synced) = &stage.synced[usize::from(victim) - 1];
        let file = File::options().write(true).open(wal)?;
        let what = format!("the end of {} cut off", wal.display());
        stage.lab.fault(what);
        file.set_len(synced - 5)?;
        Ok(())
    })
    .await
}

/// Goal: a node whose store is gone and whose identity is not never passes for its former replicas. Method: see
/// [`rebuild`]; the store of a dead node is removed.
#[tokio::test]
async fn a_lost_store_has_its_node_rebuilt() -> Result<()> {
    rebuild(Stage::start().await?, async |stage, victim| {
        stage.lab.kill(victim).await?;
        stage.lab.fault("its store is removed");
        let data_dir = stage.lab.cluster.node(victim).data_dir();
        fs::remove_dir_all(data_dir.join("store")).context("the store")
    })
    .await
}

/// Goal: damage that a compaction meets, and that is no single replica's, ends the node, which then comes back by itself.
/// Method: see [`rebuild`]; bits of a table file of a dead node, in rows that nobody reads; another user's rows in it are
/// acknowledged meanwhile, and the node runs until the removal of those meets the bits.
#[tokio::test]
async fn damage_met_by_a_compaction_has_its_node_rebuilt() -> Result<()> {
    let setup = Setup::nodes(3).toml(TABLES_SOON);
    let stage = Stage::start_with(setup, &[BOB, CAROL]).await?;
    let marks = Marks::of(&stage.bodies);
    let reader = stage.lab.add_device(READER, "phone").await?;
    let read = random_bodies(MESSAGES, BODY_BYTES);
    stage.sender.send_all(READER, "read", &read, LIMIT).await?;
    let read = Marks::of(&read);
    rebuild(stage, async |stage, victim| {
        let data_dir = stage.lab.cluster.node(victim).data_dir();
        until(LIMIT, "queued rows in table files", async || {
            let holds = |marks: &Marks| {
                let (rows, _) = marks.find(&data_dir)?;
                anyhow::Ok(rows.iter().any(|place| holds_states(&place.file)))
            };
            Ok((holds(&marks)? && holds(&read)?).then_some(()))
        })
        .await?;
        stage.lab.kill(victim).await?;
        let (rows, _) = marks.find(&data_dir)?;
        stage.lab.fault("bits of its table files flipped");
        for row in rows.iter().filter(|place| holds_states(&place.file)) {
            flip_bit(&row.file, row.offset)?;
        }
        let listener = Witness::listen(&stage.lab.history, stage.lab.anywhere(&reader), None)?;
        let deliveries = listener.receive(MESSAGES, LIMIT).await?;
        let last = deliveries[MESSAGES - 1].cursor();
        listener.ack(last, LIMIT).await?;
        listener.close().await;
        drained(&stage.lab.history, &reader);
        stage.start_refused(victim).await
    })
    .await
}

/// Goal: when every store is damaged at once nobody can bring anybody up to date: no node serves, each says what to do,
/// and nothing is deleted; mended and put back, everything is there. Method: one bit in the log of every dead node; all
/// start, twice, and every store set aside stays as it was, byte for byte; then what docs/OPERATIONS.md says is done.
#[tokio::test]
async fn all_nodes_damaged_at_once_keep_everything() -> Result<()> {
    let mut stage = Stage::start().await?;
    stage.lab.fault("kill -9 of all");
    stage.lab.cluster.kill_all().await?;
    let data_dirs: Vec<_> = (1..=3)
        .map(|k| stage.lab.cluster.node(k).data_dir())
        .collect();
    let (mut bits, mut stores) = (Vec::new(), Vec::new());
    for (k, data_dir) in (1..=3).zip(&data_dirs) {
        bits.push(stage.flip_in_wal(k)?);
        stores.push(contents(&data_dir.join("store"))?);
    }
    for _ in 0..2 {
        stage.lab.cluster.start_all()?;
        for k in 1..=3 {
            until(LIMIT, "the words of a node without a cluster", async || {
                let answer = stage.lab.cluster.node(k).get("/readyz").await;
                let says =
                    |body: &str| body.contains("damaged at once") && body.contains("OPERATIONS");
                Ok(answer
                    .is_ok_and(|a| a.status == 503 && says(&a.body))
                    .then_some(()))
            })
            .await?;
        }
        stage.lab.cluster.kill_all().await?;
        for (data_dir, before) in data_dirs.iter().zip(&stores) {
            let aside = contents(&data_dir.join("store.damaged"))?;
            ensure!(aside == *before, "{} has changed", data_dir.display());
        }
    }
    for (data_dir, (wal, middle)) in data_dirs.iter().zip(&bits) {
        let store = data_dir.join("store");
        fs::remove_dir_all(&store)?;
        fs::rename(data_dir.join("store.damaged"), &store)?;
        flip_bit(wal, *middle)?;
    }
    stage.lab.cluster.start_all()?;
    stage.lab.cluster.wait_ready().await?;
    stage.send("after").await?;
    stage.listen().await
}

/// Goal: a node whose whole data directory is gone is a new node, and takes nobody's place. Method: a dead node's
/// directory is removed; it waits, unready, and says why, while the others serve.
#[tokio::test]
async fn a_wiped_node_is_a_new_node() -> Result<()> {
    const VICTIM: u16 = 2;
    let mut stage = Stage::start().await?;
    stage.lab.kill(VICTIM).await?;
    fs::remove_dir_all(stage.lab.cluster.node(VICTIM).data_dir())?;
    stage.lab.cluster.node_mut(VICTIM).start()?;
    until(LIMIT, "the words of a new node", async || {
        let answer = stage.lab.cluster.node(VICTIM).get("/readyz").await;
        let waits = answer.is_ok_and(|a| a.status == 503 && a.body.contains("new node"));
        Ok(waits.then_some(()))
    })
    .await?;
    stage.send("without it").await?;
    stage.listen().await
}

/// Damages a node while users are served, starts it, and waits until every shard has a replica there that votes, each
/// under a new id, and nothing of the old store is left. Then everything comes to everybody.
async fn rebuild(
    mut stage: Stage,
    damage: impl AsyncFnOnce(&mut Stage, u16) -> Result<()>,
) -> Result<()> {
    const VICTIM: u16 = 2;
    let mut before = Vec::new();
    for shard in (0..SHARDS).chain([META]) {
        before.push((shard, replica_of(&stage.lab, shard, VICTIM).await?.0));
    }
    let load = stage.load().await?;
    let work = async {
        damage(&mut stage, VICTIM).await?;
        stage.send("without it").await?;
        stage.lab.restart(VICTIM).await?;
        for (shard, old) in before {
            until(LIMIT, "a new replica that votes", async || {
                let (new, all_vote) = replica_of(&stage.lab, shard, VICTIM).await?;
                Ok((all_vote && new != old).then_some(()))
            })
            .await
            .with_context(|| format!("shard {shard}, replica {old}"))?;
        }
        let aside = stage
            .lab
            .cluster
            .node(VICTIM)
            .data_dir()
            .join("store.damaged");
        until(LIMIT, "the end of the store set aside", async || {
            Ok((!aside.exists()).then_some(()))
        })
        .await?;
        let said = stage.lab.log(VICTIM)?;
        ensure!(
            said.contains("the store is lost; the node is rebuilt"),
            "{said}"
        );
        stage.send("with it again").await?;
        stage.receive().await?;
        Ok(stage)
    };
    let (total, stage) = futures::try_join!(load, work)?;
    println!("beside it: {total:?}");
    stage.lab.pass().await
}

/// Goal: a record that a crash tore, and that nobody had synced, is cut off, and nothing is lost. Method: kill -9 of every
/// node; the beginning of one more record behind the log of each; all start, and everything is there.
#[tokio::test]
async fn a_torn_record_behind_the_synced_ones_is_cut_off() -> Result<()> {
    let mut stage = Stage::start().await?;
    stage.lab.fault("kill -9 of all, and torn records");
    stage.lab.cluster.kill_all().await?;
    for node in stage.lab.cluster.nodes() {
        let mut wal = File::options().append(true).open(wal(&node.data_dir())?)?;
        // A checksum, a length of which there is not as much, and the type of a whole record.
        wal.write_all(&[1, 2, 3, 4, 0xe8, 0x03, 1])?;
        wal.write_all(&[5; 100])?;
    }
    stage.lab.cluster.start_all()?;
    stage.lab.cluster.wait_ready().await?;
    stage.send("after").await?;
    stage.listen().await
}

/// Goal: a damaged row of a table file is never served and never lost: the replica that reads it stops, says so, and is
/// replaced by a new one, while everybody is served. Method: see [`renewal`], at the running leader, which reads the
/// rows for their user.
#[tokio::test]
async fn a_damaged_row_at_the_leader_has_its_replica_renewed() -> Result<()> {
    renewal(true).await
}

/// Goal: as above, of a replica that reads nothing for anybody. Method: see [`renewal`], at a running follower, which
/// reads the rows when it applies their acknowledgement.
#[tokio::test]
async fn a_damaged_row_at_a_follower_has_its_replica_renewed() -> Result<()> {
    renewal(false).await
}

/// All nodes are killed and started, which moves the queue of an offline user into table files. While others send and
/// receive, one bit in each piece of each queued row is flipped in those of one running node, and the user listens.
/// Whoever leads by then: the leader reads the rows to deliver them, and all replicas to apply their acknowledgement.
async fn renewal(at_leader: bool) -> Result<()> {
    let mut stage = Stage::start_for(&[BOB]).await?;
    let marks = Marks::of(&stage.bodies);
    // Applied rows are synced with later log entries; a start then finds them and need not apply them again.
    stage.bodies = random_bodies(MESSAGES, BODY_BYTES);
    stage.send("later").await?;
    stage.lab.fault("kill -9 of all");
    stage.lab.cluster.kill_all().await?;
    stage.lab.cluster.start_all()?;
    stage.lab.cluster.wait_ready().await?;
    let load = stage.load().await?;
    let damage = async {
        let shard = stage.lab.shard_of(BOB);
        let leader = stage.lab.leader_of(BOB).await?;
        let victim = if at_leader { leader } else { leader % 3 + 1 };
        let (old, _) = replica_of(&stage.lab, shard, victim).await?;
        let data_dir = stage.lab.cluster.node(victim).data_dir();
        let rows = until(LIMIT, "queued rows in table files", async || {
            let (mut rows, _) = marks.find(&data_dir)?;
            rows.retain(|place| holds_states(&place.file));
            Ok((!rows.is_empty()).then_some(rows))
        });
        let rows: Vec<Place> = rows.await?;
        let what = format!("node {victim}: a bit in each of {} places", rows.len());
        stage.lab.fault(what);
        for row in &rows {
            flip_bit(&row.file, row.offset)?;
        }
        stage.receive().await?;
        let new = until(LIMIT, "a new replica that votes", async || {
            let (new, all_vote) = replica_of(&stage.lab, shard, victim).await?;
            Ok((all_vote && new != old).then_some(new))
        });
        println!(
            "node {victim}: replica {old} of shard {shard} became {}",
            new.await?
        );
        let said = stage.lab.log(victim)?;
        ensure!(said.contains("a replica is damaged; it stops"), "{said}");
        until(LIMIT, "nothing damaged is left", async || {
            let waiting = stage.lab.metric(victim, "roost_replica_corrupt_replicas");
            Ok((waiting.await? == Some(0.0)).then_some(()))
        })
        .await
    };
    let (total, ()) = futures::try_join!(load, damage)?;
    println!("beside it: {total:?}");
    stage.lab.pass().await
}

/// Whether it is a table file of applied states: its properties name the column.
fn holds_states(file: &Path) -> bool {
    const NAME: &[u8] = b"namestate";
    let is_table = file.extension().is_some_and(|ext| ext == "sst");
    is_table && fs::read(file).is_ok_and(|bytes| bytes.windows(NAME.len()).any(|at| at == NAME))
}

/// The id of a node's replica of a shard, and whether all replicas of the shard vote.
async fn replica_of(lab: &Lab, shard: u32, k: u16) -> Result<(u64, bool)> {
    let status = lab.admin()?.status().await?;
    let name = lab.cluster.node(k).name();
    let node = status.nodes.iter().find(|node| node.name == name);
    let node = node.context("the node is known")?;
    let shard = status.shards.iter().find(|known| known.id == shard);
    let replicas = &shard.context("the shard is known")?.replicas;
    let replica = replicas.iter().find(|replica| replica.node == node.id);
    let replica = replica.context("the node has a replica")?.replica;
    let votes = |role: &str| matches!(role, "leader" | "follower" | "candidate");
    Ok((replica, replicas.iter().all(|replica| votes(&replica.role))))
}
