//! `bench`: what Roost costs, measured by the binary of the same name, with everything optimised as it ships.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages;
use crate::workspace::{Workspace, run};

/// What is measured is what would be shipped.
const PROFILE: &str = "release";
/// The other systems, and what counts their sync calls: the file, and the Debian package that it comes with.
const PEERS: [(&str, &str); 3] = [
    ("/usr/sbin/nats-server", "nats-server"),
    ("/usr/sbin/mosquitto", "mosquitto"),
    ("/usr/bin/strace", "strace"),
];

/// Builds what is needed and measures; the options are those of `bench run`.
///
/// # Errors
///
/// When something does not build or cannot be installed, or a cluster or a generator fails.
pub(crate) fn run_with(workspace: &Workspace, options: &[&str]) -> Result<()> {
    if options.contains(&"--peers") {
        let absent = PEERS.iter().filter(|(file, _)| !Path::new(file).exists());
        let absent: Vec<&str> = absent.map(|(_, package)| *package).collect();
        packages::install(&absent)?;
    }
    // Not from the whole workspace, as everything else here: what only tests ask of shared dependencies is not shipped.
    let mut build = workspace.cargo();
    build.args(["build", "--locked", "--profile", PROFILE, "--bins"]);
    run(build.args(["--package", "roost", "--package", "roost-bench"]))?;
    let binaries = workspace.target.join(PROFILE);
    let mut bench = Command::new(binaries.join("bench"));
    bench
        .arg("run")
        .args(options)
        .env("ROOST_BIN", binaries.join("roost"));
    if !options.contains(&"--data") {
        bench.arg("--data").arg(workspace.target.join("bench-data"));
    }
    run(&mut bench).context("not everything was measured")
}
