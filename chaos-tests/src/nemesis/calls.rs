//! System calls of a node that fail: `strace` answers them in the kernel's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tokio::process::{Child, Command};

use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::lab::{files, within};

/// Which calls, and how they fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Every sync, with `EIO`.
    Syncs,
    /// Every write to a file that the node has at this moment, with `EIO`.
    Writes,
}

/// A node whose calls fail. It must end rather than go on as if all were well.
#[derive(Debug)]
pub struct Failing {
    calls: Calls,
    node: u16,
    strace: Option<Child>,
}

impl Failing {
    /// These calls.
    #[must_use]
    pub fn new(calls: Calls) -> Self {
        Self {
            calls,
            node: 0,
            strace: None,
        }
    }

    fn trace(&self, field: &Field) -> PathBuf {
        field
            .lab
            .directory()
            .join(format!("failing-calls-{}", self.node))
    }

    fn strace(&self, field: &Field, process: u32) -> Result<Command> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-p", &process.to_string()]);
        match self.calls {
            Calls::Syncs => {
                let syncs = "fsync,fdatasync";
                strace.args(["-e", &format!("trace={syncs}")]);
                strace.args(["-e", &format!("inject={syncs}:error=EIO")]);
            }
            Calls::Writes => {
                let writes = "write,writev,pwrite64,pwritev,pwritev2";
                strace.args(["-e", &format!("trace={writes}")]);
                strace.args(["-e", &format!("inject={writes}:error=EIO")]);
                // Sockets and pipes are written to by the same calls.
                for file in files(&field.lab.cluster.node(self.node).data_dir())? {
                    strace.arg("-P").arg(file);
                }
            }
        }
        strace.arg("-o").arg(self.trace(field));
        Ok(strace)
    }
}

impl Fault for Failing {
    fn name(&self) -> String {
        match self.calls {
            Calls::Syncs => "syncs that fail",
            Calls::Writes => "writes that fail",
        }
        .to_owned()
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
                .fault(format!("{:?} of node {} fail", self.calls, self.node));
            let strace = self
                .strace(field, process)?
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn();
            self.strace = Some(strace.context("starting strace")?);
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let trace = self.trace(field);
            let node = field.lab.cluster.node_mut(self.node);
            let ended = within(
                EFFECT_LIMIT,
                "the end of a node whose calls fail",
                node.wait(),
            );
            let status = ended.await??;
            let failed = injected(&trace)?;
            ensure!(failed > 0, "no call has failed");
            ensure!(
                !status.success(),
                "node {} ended as if all were well",
                self.node
            );
            Ok(format!(
                "{failed} calls of node {} failed, and it ended: {status}",
                self.node
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            if let Some(mut strace) = self.strace.take() {
                // It ends with the process it watches.
                within(EFFECT_LIMIT, "the end of strace", strace.wait()).await??;
            }
            fs::remove_file(self.trace(field))?;
            field.start(&[self.node])
        })
    }
}

/// How many calls strace says that it has answered itself.
fn injected(trace: &Path) -> Result<usize> {
    let calls = fs::read_to_string(trace)?;
    let mut lines = calls.lines();
    Ok(lines
        .by_ref()
        .filter(|call| call.contains("INJECTED"))
        .count())
}
