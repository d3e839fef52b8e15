//! The generator processes of one measurement, as the coordinator sees them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::latency::Latencies;
use crate::load::{Event, Job, Order, Outcome};

/// Until all sessions of a job are open.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Until all have said what they counted.
const OUTCOME_WITHIN: Duration = Duration::from_secs(30);

/// Generators that do one job together. Dropping it kills them.
pub(crate) struct Fleet {
    generators: Vec<Generator>,
    events: mpsc::UnboundedReceiver<(usize, Result<Event>)>,
    /// Messages done, by generator.
    progress: Vec<u64>,
}

struct Generator {
    child: Child,
    stdin: ChildStdin,
}

/// What all generators counted together.
pub(crate) struct Total {
    pub(crate) done: u64,
    pub(crate) refused: u64,
    pub(crate) accepted: Latencies,
    pub(crate) delivered: Latencies,
    pub(crate) told: Latencies,
    pub(crate) worst: Latencies,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
}

impl Fleet {
    /// Starts the job in so many processes, and returns when all its sessions are open.
    ///
    /// # Errors
    /// When a generator fails or takes too long.
    pub(crate) async fn start(job: &Job, processes: u32) -> Result<Self> {
        let (sink, events) = mpsc::unbounded_channel();
        let mut generators = Vec::new();
        for (n, part) in job.split(processes).iter().enumerate() {
            generators.push(Generator::start(n, part, sink.clone()).await?);
        }
        let mut fleet = Self {
            progress: vec![0; generators.len()],
            generators,
            events,
        };
        let opened = fleet.each(|event| matches!(event, Event::Ready).then_some(()));
        tokio::time::timeout(READY_WITHIN, opened)
            .await
            .context("the sessions took too long to open")??;
        Ok(fleet)
    }

    /// The processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.generators
            .iter()
            .filter_map(|generator| generator.child.id())
            .collect()
    }

    /// # Errors
    /// When a generator is gone.
    pub(crate) async fn order(&mut self, order: Order) -> Result<()> {
        let line = serde_json::to_string(&order)? + "\n";
        for generator in &mut self.generators {
            generator.stdin.write_all(line.as_bytes()).await?;
        }
        Ok(())
    }

    /// Lets it run for a while, with a word to `each` every second: messages done so far.
    ///
    /// # Errors
    /// When a generator fails.
    pub(crate) async fn run_for(
        &mut self,
        time: Duration,
        mut each: impl FnMut(Duration, u64),
    ) -> Result<()> {
        let start = Instant::now();
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.tick().await;
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                _ = second.tick() => each(start.elapsed(), self.progress.iter().sum()),
                event = self.next() => { event?; }
            }
        }
    }

    /// Waits until the job has ended by itself.
    ///
    /// # Errors
    /// When a generator fails, or it takes longer than `within`.
    pub(crate) async fn finished(
        &mut self,
        within: Duration,
        mut each: impl FnMut(Duration, u64),
    ) -> Result<()> {
        let start = Instant::now();
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.tick().await;
        let mut left = self.generators.len();
        while left > 0 {
            tokio::select! {
                _ = second.tick() => each(start.elapsed(), self.progress.iter().sum()),
                event = self.next() => left -= usize::from(matches!(event?, Event::Finished)),
            }
            ensure!(start.elapsed() < within, "not finished within {within:?}");
        }
        Ok(())
    }

    /// Ends it and adds up what was counted.
    ///
    /// # Errors
    /// When a generator fails.
    pub(crate) async fn stop(mut self) -> Result<Total> {
        self.order(Order::Stop).await?;
        let outcomes = self.each(|event| match event {
            Event::Outcome(outcome) => Some(outcome),
            _ => None,
        });
        let outcomes = tokio::time::timeout(OUTCOME_WITHIN, outcomes)
            .await
            .context("a generator did not say what it counted")??;
        total(&outcomes)
    }

    /// What each generator says that `wanted` takes.
    async fn each<T>(&mut self, wanted: impl Fn(Event) -> Option<T>) -> Result<Vec<T>> {
        let mut found = Vec::new();
        while found.len() < self.generators.len() {
            found.extend(wanted(self.next().await?));
        }
        Ok(found)
    }

    async fn next(&mut self) -> Result<Event> {
        let Some((n, event)) = self.events.recv().await else {
            bail!("all generators have ended");
        };
        let event = event.with_context(|| format!("generator {n}"))?;
        if let Event::Progress(done) = event {
            self.progress[n] = done;
        }
        Ok(event)
    }
}

impl Generator {
    async fn start(
        n: usize,
        job: &Job,
        events: mpsc::UnboundedSender<(usize, Result<Event>)>,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut child = Command::new(program)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a generator")?;
        let mut stdin = child.stdin.take().context("its input is piped")?;
        let stdout = child.stdout.take().context("its output is piped")?;
        stdin
            .write_all((serde_json::to_string(job)? + "\n").as_bytes())
            .await?;
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            loop {
                let event = match lines.next_line().await {
                    Ok(Some(line)) => serde_json::from_str(&line).map_err(Into::into),
                    Ok(None) => Err(anyhow::anyhow!("ended; its standard error says why")),
                    Err(error) => Err(error.into()),
                };
                let over = event.is_err();
                if events.send((n, event)).is_err() || over {
                    return;
                }
            }
        });
        Ok(Self { child, stdin })
    }
}

fn total(outcomes: &[Outcome]) -> Result<Total> {
    let mut total = Total {
        done: 0,
        refused: 0,
        accepted: Latencies::new(),
        delivered: Latencies::new(),
        told: Latencies::new(),
        worst: Latencies::new(),
        lost: 0,
        twice: 0,
    };
    for outcome in outcomes {
        total.done += outcome.done;
        total.refused += outcome.refused;
        total.accepted.add(&outcome.accepted)?;
        total.delivered.add(&outcome.delivered)?;
        total.told.add(&outcome.told)?;
        total.worst.add(&outcome.worst)?;
        total.lost += outcome.lost;
        total.twice += outcome.twice;
    }
    Ok(total)
}
