//! Processes that die, stand still, or are restarted one after the other.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Fault, Field, Step};
use crate::lab::until;
use crate::nemesis::EFFECT_LIMIT;

/// For a node to drain and stop after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Whom a kill strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// Any node.
    One,
    /// A node that leads a shard.
    Leader,
    /// As many as leave a majority.
    Minority,
    /// Every node.
    All,
}

/// kill -9; the dead are started again at the end.
#[derive(Debug)]
pub struct Kill {
    victims: Victims,
    dead: Vec<u16>,
    processes: Vec<u32>,
}

impl Kill {
    /// Of these.
    #[must_use]
    pub fn of(victims: Victims) -> Self {
        Self {
            victims,
            dead: Vec::new(),
            processes: Vec::new(),
        }
    }
}

impl Fault for Kill {
    fn name(&self) -> String {
        match self.victims {
            Victims::One => "kill -9 of a node",
            Victims::Leader => "kill -9 of a leader",
            Victims::Minority => "kill -9 of a minority",
            Victims::All => "kill -9 of all nodes",
        }
        .to_owned()
    }

    fn keeps_majority(&self) -> bool {
        self.victims != Victims::All
    }

    fn victims(&self) -> Vec<u16> {
        self.dead.clone()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.dead = match self.victims {
                Victims::One => field.any_nodes(1),
                Victims::Leader => vec![field.any_leader().await?.0],
                Victims::Minority => field.any_nodes((field.nodes() - 1) / 2),
                Victims::All => field.any_nodes(field.nodes()),
            };
            self.processes = self
                .dead
                .iter()
                .filter_map(|k| field.lab.cluster.node(*k).pid())
                .collect();
            field.lab.fault(format!("kill -9 of nodes {:?}", self.dead));
            if self.victims == Victims::All {
                field.lab.cluster.kill_all().await?;
            } else {
                for k in &self.dead {
                    field.lab.cluster.node_mut(*k).kill().await?;
                }
            }
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            ensure!(
                self.processes.len() == self.dead.len(),
                "not every victim had a process"
            );
            for (k, process) in self.dead.iter().zip(&self.processes) {
                ensure!(
                    state(*process)?.is_none(),
                    "process {process} of node {k} is still there"
                );
                let answer = field.lab.cluster.node(*k).get("/healthz").await;
                ensure!(answer.is_err(), "node {k} still answers");
            }
            Ok(format!("processes {:?} are gone", self.processes))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { field.start(&self.dead) })
    }
}

/// SIGSTOP to a node that leads a shard, until another one leads it; then SIGCONT, so that it wakes up with leaderships
/// that are no longer its own.
#[derive(Debug, Default)]
pub struct PauseLeader {
    node: Option<u16>,
}

impl Fault for PauseLeader {
    fn name(&self) -> String {
        "pause of a leader beyond the election time".to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        self.node.into_iter().collect()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            let (leader, _) = field.any_leader().await?;
            field.lab.fault(format!("SIGSTOP to node {leader}"));
            field.lab.cluster.node(leader).pause()?;
            self.node = Some(leader);
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let k = self.node.context("nobody is paused")?;
            let process = field.lab.cluster.node(k).pid().context("no process")?;
            let stopped = until(EFFECT_LIMIT, "the process stands still", async || {
                Ok((state(process)? == Some('T')).then_some(()))
            });
            stopped.await?;
            let mut seen = Vec::new();
            for user in distinct_shards(field) {
                seen.push(field.wait_other_leader(&user, &[k]).await?);
            }
            Ok(format!(
                "node {k} is in state T, and its shards are led by nodes {seen:?}"
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            let k = self.node.take().context("nobody is paused")?;
            field.lab.fault(format!("SIGCONT to node {k}"));
            field.lab.cluster.node(k).resume()?;
            Ok(())
        })
    }
}

/// One user of each shard that has any.
pub(super) fn distinct_shards(field: &Field) -> Vec<String> {
    let mut shards = std::collections::BTreeMap::new();
    for user in &field.users {
        shards.insert(field.lab.shard_of(user), user.clone());
    }
    shards.into_values().collect()
}

/// Every node in turn is asked to stop, stops, and is started again: the way an upgrade goes.
#[derive(Debug, Default)]
pub struct RollingRestart {
    left: Vec<u16>,
    restarted: Vec<String>,
}

impl RollingRestart {
    async fn next(&mut self, field: &mut Field) -> Result<()> {
        let Some(k) = self.left.pop() else {
            return Ok(());
        };
        field.lab.fault(format!("SIGTERM to node {k}"));
        let node = field.lab.cluster.node_mut(k);
        let before = node.pid();
        let status = node.terminate(DRAIN_LIMIT).await?;
        if !status.success() {
            bail!("node {k} did not stop in peace when asked: {status}");
        }
        field.lab.restart(k).await?;
        let after = field.lab.cluster.node(k).pid();
        ensure!(before != after, "node {k} was not restarted");
        self.restarted
            .push(format!("node {k} {before:?} -> {after:?}"));
        Ok(())
    }
}

impl Fault for RollingRestart {
    fn name(&self) -> String {
        "rolling restart of all nodes".to_owned()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.left = field.any_nodes(field.nodes());
            self.next(field).await
        })
    }

    fn prove<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            ensure!(!self.restarted.is_empty(), "nobody was restarted");
            Ok(format!("processes changed: {}", self.restarted.join(", ")))
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            self.next(field).await?;
            Ok(self.left.is_empty())
        })
    }

    fn heal<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            ensure!(self.left.is_empty(), "nodes {:?} were left out", self.left);
            Ok(())
        })
    }
}

/// The letter that the system gives for a process; `None` when it is gone.
fn state(process: u32) -> Result<Option<char>> {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => {
            let state = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.chars().next());
            state.map(Some).context("a process without a state")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
