//! Damaged files: what was synced and is damaged is refused, what a crash tore is not.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup, within};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::Credentials;

use crate::files::{files, flip_bit, random_bodies};
use crate::{ANN, BOB, CAROL, LIMIT};

const BODY_BYTES: usize = 4 << 10;
const MESSAGES: usize = 30;
const DAMAGED: &str = "damaged";

/// A cluster whose users are offline and have messages.
struct Stage {
    lab: Lab,
    sender: Witness,
    offline: [Credentials; 2],
    bodies: Vec<Vec<u8>>,
    each: usize,
}

impl Stage {
    async fn start() -> Result<Self> {
        let lab = Lab::start(Setup::nodes(3).shards(4).alone()).await?;
        let ann = lab.add_device(ANN, "phone").await?;
        let offline = [
            lab.add_device(BOB, "phone").await?,
            lab.add_device(CAROL, "phone").await?,
        ];
        let mut stage = Self {
            sender: Witness::connect(&lab.history, lab.anywhere(&ann))?,
            lab,
            offline,
            bodies: random_bodies(MESSAGES, BODY_BYTES),
            each: 0,
        };
        stage.send("first").await?;
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
        for device in &self.offline {
            let listener = Witness::listen(&self.lab.history, self.lab.anywhere(device), None)?;
            let deliveries = listener.receive(self.each, LIMIT).await?;
            listener
                .ack(deliveries[self.each - 1].cursor(), LIMIT)
                .await?;
            drained(&self.lab.history, device);
        }
        self.lab.pass().await
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

/// The write-ahead log with the most in it.
fn wal(data_dir: &Path) -> Result<PathBuf> {
    let logs = files(data_dir)?.into_iter();
    let logs = logs.filter(|file| file.extension().is_some_and(|ext| ext == "log"));
    let largest = logs.max_by_key(|file| fs::metadata(file).map_or(0, |file| file.len()));
    largest.context("there is no write-ahead log")
}

/// Goal: damage to what was synced in the write-ahead log is never taken for a torn tail. Method: one bit in a message
/// body in the middle of the log of a dead node; it refuses to start and says why, also when asked again, while the
/// others serve; the bit flipped back, it starts, so the refusal has changed nothing.
#[tokio::test]
async fn a_flipped_bit_in_the_synced_write_ahead_log_is_refused() -> Result<()> {
    const VICTIM: u16 = 2;
    let mut stage = Stage::start().await?;
    stage.send("second").await?;
    stage.lab.kill(VICTIM).await?;
    let wal = wal(&stage.lab.cluster.node(VICTIM).data_dir())?;
    let middle = fs::metadata(&wal)?.len() / 2;
    stage
        .lab
        .fault(format!("one bit of {} flipped", wal.display()));
    flip_bit(&wal, middle)?;
    stage.start_refused(VICTIM).await?;
    stage.start_refused(VICTIM).await?;
    stage.send("without it").await?;
    flip_bit(&wal, middle)?;
    stage.lab.restart(VICTIM).await?;
    stage.listen().await
}

/// Goal: synced bytes that are missing at the end of the write-ahead log are damage too. Method: the last bytes of the
/// log of a dead node are cut off; it refuses to start, while the others serve.
#[tokio::test]
async fn a_write_ahead_log_that_lacks_synced_bytes_is_refused() -> Result<()> {
    const VICTIM: u16 = 2;
    let mut stage = Stage::start().await?;
    stage.lab.kill(VICTIM).await?;
    let wal = wal(&stage.lab.cluster.node(VICTIM).data_dir())?;
    let file = File::options().write(true).open(&wal)?;
    stage
        .lab
        .fault(format!("the end of {} cut off", wal.display()));
    file.set_len(file.metadata()?.len() - 5)?;
    stage.start_refused(VICTIM).await?;
    stage.send("without it").await?;
    stage.listen().await
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
