//! Wall clocks that jump or run too fast on one node, while time goes on as it should.
//!
//! Every node runs under `libfaketime`, which reads what is to be added to the clock from a file, each time it is asked.
//! Time that only goes on (timeouts, heartbeats) is left alone, as a wrong wall clock leaves it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use rand::Rng as _;
use roost_local::Overrides;

use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::lab::{Lab, until};

const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];
/// The node's own reading: how far its clock is from that of a majority.
const OFFSET: &str = "roost_node_clock_offset_seconds";
/// The speed is named too: without it the library keeps the one it had.
const RIGHT: &str = "+0 x1.0";

/// Gives every node a clock that can be wrong.
///
/// # Errors
/// When the library is not there.
pub fn prepare(lab: &mut Lab, nodes: u16) -> Result<()> {
    let library = LIBRARIES
        .iter()
        .find(|file| fs::exists(file).unwrap_or(false));
    let Some(library) = library else {
        bail!("libfaketime is needed: apt-get install libfaketime");
    };
    for k in 1..=nodes {
        let file = file(lab, k);
        fs::write(&file, RIGHT)?;
        let overrides: &mut Overrides = lab.cluster.node_mut(k).overrides_mut();
        for (name, value) in [
            ("LD_PRELOAD", *library),
            ("FAKETIME_TIMESTAMP_FILE", &file.to_string_lossy()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ] {
            overrides.env.insert(name.into(), value.into());
        }
    }
    Ok(())
}

fn file(lab: &Lab, k: u16) -> PathBuf {
    lab.directory().join(format!("clock-{k}"))
}

/// A clock that is wrong by so much at once, ahead or behind.
#[derive(Debug)]
pub struct Jump {
    seconds: i64,
    node: u16,
    now: i64,
}

impl Jump {
    /// By so many seconds.
    #[must_use]
    pub fn by(seconds: i64) -> Self {
        Self {
            seconds,
            node: 0,
            now: 0,
        }
    }
}

impl Fault for Jump {
    fn name(&self) -> String {
        format!("clock wrong by {} s, ahead or behind", self.seconds)
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            self.now = if field.chance.random() {
                self.seconds
            } else {
                -self.seconds
            };
            field
                .lab
                .fault(format!("clock of node {} {:+} s", self.node, self.now));
            Ok(fs::write(
                file(&field.lab, self.node),
                format!("{:+}", self.now),
            )?)
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let near = |offset: f64| (offset - self.now as f64).abs() < 10.0;
            let read = wait_offset(field, self.node, near).await?;
            Ok(format!(
                "node {} reads that its clock is {read:+.0} s off",
                self.node
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { heal(field, self.node).await })
    }
}

/// A clock that runs a tenth too fast.
#[derive(Debug, Default)]
pub struct Drift {
    node: u16,
}

impl Fault for Drift {
    fn name(&self) -> String {
        "clock that runs a tenth too fast".to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            field
                .lab
                .fault(format!("clock of node {} too fast", self.node));
            Ok(fs::write(file(&field.lab, self.node), "+0 x1.1")?)
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let first = wait_offset(field, self.node, |offset| offset > 0.3).await?;
            let then = wait_offset(field, self.node, |offset| offset > first + 0.2).await?;
            Ok(format!(
                "node {} reads that its clock is {first:.1}, then {then:.1} s off",
                self.node
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { heal(field, self.node).await })
    }
}

async fn heal(field: &mut Field, k: u16) -> Result<()> {
    field.lab.fault(format!("clock of node {k} right"));
    fs::write(file(&field.lab, k), RIGHT)?;
    let read = wait_offset(field, k, |offset| offset.abs() < 1.0).await?;
    ensure!(
        read.abs() < 1.0,
        "the clock of node {k} is still {read} s off"
    );
    Ok(())
}

/// The node's own reading, once it is as wanted.
async fn wait_offset(field: &Field, k: u16, wanted: impl Fn(f64) -> bool) -> Result<f64> {
    let what = format!("node {k} reads its wrong clock");
    until(EFFECT_LIMIT, &what, async || {
        let offset = field.lab.metric(k, OFFSET).await?;
        Ok(offset.filter(|offset| wanted(*offset)))
    })
    .await
    .context("its own metric")
}
