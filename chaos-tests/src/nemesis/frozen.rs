//! Disks that answer nothing, for ever or for a moment again and again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::disk::{CANARY, run};
use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::lab::within;

/// A sync that takes longer stands still.
const STANDSTILL: Duration = Duration::from_secs(1);
/// One stall of a disk that stalls.
const STALL: Duration = Duration::from_millis(500);
/// A slow disk answers nothing for so long, then for a moment, and so on.
const SLOW_PAUSE: Duration = Duration::from_millis(60);
const SLOW_MOMENT: Duration = Duration::from_millis(10);
/// `FIFREEZE` and `FITHAW` in turn, until its input ends, which it also does when the test dies: nothing stays frozen. In
/// one process, because to start one for each takes longer than the moment on a busy machine.
const SLOW: &str = r#"
    my ($directory, $pause, $moment) = @ARGV;
    open(my $d, "<", $directory) or die "$directory: $!";
    my $over = 0;
    until ($over) {
        ioctl($d, 0xc0045877, 0) or die "freeze: $!";
        select(undef, undef, undef, $pause);
        ioctl($d, 0xc0045878, 0) or die "thaw: $!";
        my $input = "";
        vec($input, fileno(STDIN), 1) = 1;
        $over = select($input, undef, undef, $moment);
    }
"#;
/// Synced writes by which it shows, and what the one in the middle takes at least.
const SLOW_PROBES: usize = 15;
const SLOW_MIDDLE: Duration = Duration::from_millis(10);
/// Between two of them, so that they do not all meet the same moment.
const SLOW_STEP: Duration = Duration::from_millis(23);

/// How a disk fails to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Not at all, until it is healed.
    Hangs,
    /// Half a second late, again and again.
    Stalls,
    /// Always late.
    Slow,
}

/// A disk that answers nothing: all the time, or for a moment again and again.
#[derive(Debug)]
pub struct Frozen {
    pace: Pace,
    node: u16,
    probe: Option<Child>,
    slowly: Option<Child>,
}

impl Frozen {
    /// In this way.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            node: 0,
            probe: None,
            slowly: None,
        }
    }

    fn canary(&self, field: &Field) -> PathBuf {
        field.lab.cluster.node(self.node).data_dir().join(CANARY)
    }

    async fn freeze(&self, field: &Field, flag: &str) -> Result<()> {
        freeze(&field.lab.cluster.node(self.node).data_dir(), flag).await
    }

    fn write(&self, field: &Field) -> Result<Child> {
        let mut write = Command::new("dd");
        let target = format!("of={}", self.canary(field).display());
        write.args(["if=/dev/zero", "bs=4k", "count=1", "conv=fsync", &target]);
        write.stdin(Stdio::null()).stderr(Stdio::null());
        Ok(write.spawn()?)
    }

    /// One stall; a write begun in it does not end before it.
    async fn stall(&self, field: &Field) -> Result<()> {
        self.freeze(field, "--freeze").await?;
        let start = Instant::now();
        let written = self.write(field);
        sleep(STALL).await;
        self.freeze(field, "--unfreeze").await?;
        let mut written = written?;
        within(EFFECT_LIMIT, "the end of a stall", written.wait()).await??;
        ensure!(start.elapsed() >= STALL, "a write went through a stall");
        Ok(())
    }

    async fn prove_slow(&self, field: &Field) -> Result<String> {
        let canary = self.canary(field);
        let measured = tokio::task::spawn_blocking(move || -> Result<Vec<Duration>> {
            let mut took = Vec::new();
            for _ in 0..SLOW_PROBES {
                let start = std::time::Instant::now();
                let mut file = File::create(&canary)?;
                file.write_all(&[b'c'; 4096])?;
                file.sync_all()?;
                took.push(start.elapsed());
                std::thread::sleep(SLOW_STEP);
            }
            Ok(took)
        });
        let mut took = measured.await??;
        took.sort_unstable();
        let middle = took[took.len() / 2];
        ensure!(
            middle >= SLOW_MIDDLE,
            "a synced write on node {} takes {middle:?}",
            self.node
        );
        Ok(format!(
            "a synced write on node {} takes {middle:?} in the middle, {:?} at worst",
            self.node,
            took[took.len() - 1]
        ))
    }
}

impl Fault for Frozen {
    fn name(&self) -> String {
        match self.pace {
            Pace::Hangs => "disk that hangs".to_owned(),
            Pace::Stalls => format!("disk that stalls for {STALL:?} again and again"),
            Pace::Slow => format!("disk that answers only every {SLOW_PAUSE:?}"),
        }
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            let words = format!("{} of node {}", self.name(), self.node);
            field.lab.fault(words);
            match self.pace {
                Pace::Stalls => self.stall(field).await?,
                Pace::Hangs => {
                    self.freeze(field, "--freeze").await?;
                    self.probe = Some(self.write(field)?);
                }
                Pace::Slow => {
                    let mut slow = Command::new("perl");
                    slow.args(["-e", SLOW])
                        .arg(field.lab.cluster.node(self.node).data_dir())
                        .args([SLOW_PAUSE, SLOW_MOMENT].map(|time| time.as_secs_f64().to_string()));
                    self.slowly = Some(slow.stdin(Stdio::piped()).spawn()?);
                }
            }
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let node = self.node;
            let Some(probe) = &mut self.probe else {
                return match self.pace {
                    Pace::Slow => self.prove_slow(field).await,
                    Pace::Stalls | Pace::Hangs => {
                        Ok(format!("a write on node {node} waited {STALL:?}"))
                    }
                };
            };
            ensure!(
                timeout(STANDSTILL, probe.wait()).await.is_err(),
                "a write on node {node} went through"
            );
            Ok(format!(
                "a write on node {node} stands still for {STANDSTILL:?} and more"
            ))
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            if self.pace == Pace::Stalls {
                self.stall(field).await?;
            }
            Ok(true)
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault(format!("disk of node {} moves", self.node));
            if let Some(mut slow) = self.slowly.take() {
                drop(slow.stdin.take());
                let ended = within(EFFECT_LIMIT, "the end of slowness", slow.wait()).await??;
                ensure!(ended.success(), "what slows the disk: {ended}");
            }
            if let Some(mut probe) = self.probe.take() {
                self.freeze(field, "--unfreeze").await?;
                within(EFFECT_LIMIT, "the end of the probe", probe.wait()).await??;
            }
            field.start(&[self.node])
        })
    }
}

async fn freeze(directory: &Path, flag: &str) -> Result<()> {
    run(Command::new("fsfreeze").arg(flag).arg(directory)).await
}
