//! A node that may take hardly any more memory: it goes on within what it has, or the kernel kills it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::hosts::cage;
use crate::lab::until;

/// What the node may take from now on, its part of the page cache included. What it has it keeps.
const MORE_BYTES: u64 = 8 << 20;

/// A control group with a limit, into which a node is moved.
#[derive(Debug, Default)]
pub struct MemoryLimit {
    node: u16,
    group: Option<PathBuf>,
}

impl MemoryLimit {
    /// Lets the node out, if it is still there, and takes the group away.
    fn lift(&mut self) -> Result<()> {
        let Some(group) = self.group.take() else {
            return Ok(());
        };
        let inside = fs::read_to_string(group.join("cgroup.procs"))?;
        for process in inside.lines() {
            // It may end at this very moment.
            let _ = fs::write(cage::memory_groups().join("cgroup.procs"), process);
        }
        fs::remove_dir(&group).with_context(|| format!("removing {}", group.display()))
    }

    fn count(&self, file: &str) -> Result<u64> {
        let group = self.group.as_ref().context("there is no limit")?;
        let text = fs::read_to_string(group.join(file))?;
        text.trim().parse().context("a count")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // After a failure; what cannot be removed here, the outer process removes.
        let _ = self.lift();
    }
}

impl Fault for MemoryLimit {
    fn name(&self) -> String {
        format!("memory limit: {} MiB more", MORE_BYTES >> 20)
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            let process = field.lab.cluster.node(self.node).pid();
            let process = process.context("no process")?;
            field
                .lab
                .fault(format!("memory limit on node {}", self.node));
            let group = cage::memory_groups().join(cage::group_name());
            fs::create_dir(&group).with_context(|| format!("making {}", group.display()))?;
            self.group = Some(group.clone());
            fs::write(group.join("memory.limit_in_bytes"), MORE_BYTES.to_string())?;
            fs::write(group.join("cgroup.procs"), process.to_string())?;
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let hit = until(EFFECT_LIMIT, "the node hits its limit", async || {
                let hits = self.count("memory.failcnt")?;
                Ok((hits > 0).then_some(hits))
            });
            let hits = hit.await?;
            let lives = field.lab.cluster.node_mut(self.node).is_running();
            let state = if lives {
                "it lives"
            } else {
                "the kernel killed it"
            };
            Ok(format!(
                "node {} has hit its limit {hits} times; {state}",
                self.node
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field
                .lab
                .fault(format!("no memory limit on node {}", self.node));
            self.lift()?;
            field.start(&[self.node])
        })
    }
}
