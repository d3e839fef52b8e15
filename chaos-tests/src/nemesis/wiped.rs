//! A disk that is another one: the node that starts on it must not take its own former place.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::lab::until;

/// What a node says of each of its replicas.
const ROLE: &str = "roost_raft_role_code";

/// A node that starts again over an empty disk. Its old disk is put back in the end.
#[derive(Debug, Default)]
pub struct Wiped {
    node: u16,
}

impl Wiped {
    fn aside(&self, field: &Field) -> PathBuf {
        field.lab.directory().join(format!("old-{}", self.node))
    }

    /// It is not ready, and has no replica: so it cannot vote.
    async fn stays_out(&self, field: &Field) -> Result<()> {
        let answer = field.lab.cluster.node(self.node).get("/readyz").await?;
        ensure!(answer.status != 200, "the wiped node calls itself ready");
        let role = field.lab.metric(self.node, ROLE).await?;
        ensure!(role.unwrap_or(0.0) == 0.0, "the wiped node has a replica");
        Ok(())
    }

    /// Moves everything from one directory to another.
    fn move_all(from: &Path, to: &Path) -> Result<()> {
        let moved = std::process::Command::new("cp")
            .arg("-a")
            .arg(from.join("."))
            .arg(to)
            .status()?;
        ensure!(moved.success(), "copying {} failed", from.display());
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            match path.is_dir() {
                true => fs::remove_dir_all(path)?,
                false => fs::remove_file(path)?,
            }
        }
        Ok(())
    }
}

impl Fault for Wiped {
    fn name(&self) -> String {
        "disk wiped, node started again".to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            // Not the one whose token the administrator reads.
            let mut nodes = field.any_nodes(field.nodes());
            nodes.retain(|k| *k != 1);
            self.node = nodes.pop().context("nobody is left to be wiped")?;
            field.lab.fault(format!("disk of node {} wiped", self.node));
            let aside = self.aside(field);
            let node = field.lab.cluster.node_mut(self.node);
            node.kill().await?;
            fs::create_dir_all(&aside)?;
            Self::move_all(&node.data_dir(), &aside)?;
            node.start()?;
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let node = field.lab.cluster.node(self.node);
            let why = until(
                EFFECT_LIMIT,
                "the wiped node says why it is not ready",
                async || {
                    let Ok(answer) = node.get("/readyz").await else {
                        return Ok(None);
                    };
                    ensure!(answer.status != 200, "the wiped node calls itself ready");
                    let why = answer.body.trim().to_owned();
                    // What it says in its first moment is true of every node.
                    Ok(Some(why).filter(|why| !why.is_empty() && !why.contains("is starting")))
                },
            );
            let why = why.await?;
            self.stays_out(field).await?;
            Ok(format!(
                "node {} is not ready and has no replica that could vote: {why}",
                self.node
            ))
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            self.stays_out(field).await?;
            Ok(true)
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            let aside = self.aside(field);
            let node = field.lab.cluster.node_mut(self.node);
            node.kill().await?;
            let directory = node.data_dir();
            let gone = field.lab.directory().join("gone");
            fs::create_dir_all(&gone)?;
            Self::move_all(&directory, &gone)?;
            Self::move_all(&aside, &directory)?;
            fs::remove_dir_all(gone)?;
            field.start(&[self.node])
        })
    }
}
