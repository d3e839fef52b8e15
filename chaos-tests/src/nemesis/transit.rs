//! Snapshots that change on their way to a node. They must be refused, and sent again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::hosts::Bits;
use crate::lab::until;

/// Bits that arrive wrong, each in a piece of a snapshot of its own.
const BITS: usize = 3;
/// How long a node is away at first; longer each time that it comes back without needing a snapshot.
const AWAY: Duration = Duration::from_secs(3);
const TRIES_MAX: u32 = 4;
/// A node is ready when it is hardly behind; what it needs by then has begun to come.
const SENT_WITHIN: Duration = Duration::from_secs(3);
const REFUSED: &str = "roost_raft_refused_snapshots_total";
const INSTALLED: &str = "roost_raft_installed_snapshots_total";

/// A node that was away for longer than the others' logs reach, and gets damaged snapshots when it comes back.
#[derive(Debug)]
pub struct Snapshots {
    node: u16,
    bits: Arc<Bits>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            node: 0,
            bits: Arc::new(Bits::new(BITS)),
        }
    }
}

impl Snapshots {
    /// Kills the node, waits, and starts it. Says whether it has been sent a snapshot.
    async fn send_away(&self, field: &mut Field, away: Duration) -> Result<bool> {
        field
            .lab
            .fault(format!("node {} is away for {away:?}", self.node));
        field.lab.cluster.node_mut(self.node).kill().await?;
        sleep(away).await;
        field.start(&[self.node])?;
        field.lab.cluster.wait_ready().await?;
        let deadline = Instant::now() + SENT_WITHIN;
        while self.bits.flipped() == 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(self.bits.flipped() > 0)
    }
}

impl Fault for Snapshots {
    fn name(&self) -> String {
        "bits flipped in snapshots on their way".to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_node();
            field.hosts.flip(self.node, Arc::clone(&self.bits)).await?;
            for times in 1..=TRIES_MAX {
                if self.send_away(field, AWAY * times).await? {
                    return Ok(());
                }
            }
            anyhow::bail!("node {} never needed a snapshot", self.node)
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let refused = until(EFFECT_LIMIT, "a snapshot is refused", async || {
                let refused = field.lab.metric(self.node, REFUSED).await;
                Ok(refused.ok().flatten().filter(|refused| *refused > 0.0))
            });
            let refused = refused.await?;
            let installed = until(EFFECT_LIMIT, "a snapshot is installed", async || {
                let installed = field.lab.metric(self.node, INSTALLED).await;
                Ok(installed.ok().flatten().filter(|count| *count > 0.0))
            });
            Ok(format!(
                "{} bits flipped; node {} has refused {refused} snapshots and installed {}",
                self.bits.flipped(),
                self.node,
                installed.await?
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault("snapshots arrive as they are sent");
            field.hosts.heal().await?;
            field.prove_all_whole().await
        })
    }
}
