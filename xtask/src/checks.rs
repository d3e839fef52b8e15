//! Everything that continuous integration runs, in the order in which it is cheapest to fail.
//!
//! There is no check that only another machine makes. All compile in one profile and with the whole workspace chosen,
//! so that they share what they compile. A failed check does not stop the ones after it, except that nothing is
//! tested that does not build.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::chaos;
use crate::dependencies;
use crate::once;
use crate::packages::{ensure_strace, is_root};
use crate::progress::minutes;
use crate::workspace::{PROFILE, Workspace, output, run, shown};

/// The package whose tests start processes; it lies in a directory of this name.
const PROCESS_TESTS: &str = "chaos-tests";
/// Of these, what takes too long for every day.
const FULL_TESTS: &str = "full";
/// And what mounts file systems and takes hold of other processes.
const ROOT_TESTS: &str = "root";

/// Promises broken on purpose (node/src/sabotage.rs), for the teeth. Everything here is built with them, because a second
/// set of features would compile the node twice, and they do nothing until `ROOST_SABOTAGE` names one. Only the lints see
/// the node as it is released, and so show that it compiles.
const FEATURES: [&str; 2] = ["--features", "roost/sabotage"];
/// Tests of the node that are checks of their own here, by the beginning of their names.
const SIMULATION: &str = "simulation::";
const TEETH: &str = "teeth::";
/// Where they are.
const NODE_TESTS: &str = "it";

struct Done {
    name: &'static str,
    took: Duration,
    passed: bool,
}

/// Runs all checks and prints a summary; says whether all passed.
///
/// # Errors
///
/// When the checkout cannot be read; a failed check is no error but an answer.
pub(crate) fn run_all(workspace: &Workspace, full: bool) -> Result<bool> {
    let mut done = vec![
        check("format", || {
            run(workspace.cargo().args(["fmt", "--all", "--check"]))
        }),
        check("dependencies", || dependencies::review(workspace)),
        check("lints", || lints(workspace)),
    ];
    let build = check("build", || build(workspace));
    let built = build.passed;
    done.push(build);
    if built {
        let processes = integration_tests(&workspace.root.join(PROCESS_TESTS))?;
        let others = other_integration_tests(workspace)?;
        done.push(check("unit and property tests", || {
            unit_tests(workspace, &others)
        }));
        done.push(check("documentation tests", || {
            documentation_tests(workspace)
        }));
        done.push(check("simulation", || simulation(workspace, full)));
        done.push(check("teeth", || node_tests(workspace, TEETH, &[])));
        done.push(check("process tests", || {
            process_tests(workspace, processes, full)
        }));
        done.push(check("chaos", || attacks(workspace, full)));
    }
    if full {
        done.push(check("RocksDB compiled once", || once::prove(workspace)));
    }
    summarise(&done);
    Ok(done.iter().all(|check| check.passed))
}

fn check(name: &'static str, body: impl FnOnce() -> Result<()>) -> Done {
    println!("\n== {name}");
    let start = Instant::now();
    let result = body();
    let took = start.elapsed();
    if let Err(error) = &result {
        println!("{error:#}");
    }
    let passed = result.is_ok();
    println!("== {name}: {} in {}", verdict(passed), minutes(took));
    Done { name, took, passed }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

fn summarise(done: &[Done]) {
    println!("\n== summary");
    for Done { name, took, passed } in done {
        println!("{}  {name}, {}", verdict(*passed), minutes(*took));
    }
    let total = done.iter().map(|check| check.took).sum();
    println!("{} checks in {}", done.len(), minutes(total));
}

fn lints(workspace: &Workspace) -> Result<()> {
    let mut clippy = in_workspace(workspace, "clippy");
    run(clippy.args([
        "--profile",
        PROFILE,
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}

/// All targets, tests too: so the binary is built with the very dependencies that the tests are.
fn build(workspace: &Workspace) -> Result<()> {
    let mut build = in_workspace(workspace, "build");
    build.args(FEATURES);
    run(build.args(["--profile", PROFILE, "--all-targets"]))
}

fn unit_tests(workspace: &Workspace, integration: &[String]) -> Result<()> {
    let mut tests = tests(workspace);
    choose(tests.args(["--lib", "--bins"]), integration);
    run(tests.args(["--", "--skip", SIMULATION, "--skip", TEETH]))
}

fn documentation_tests(workspace: &Workspace) -> Result<()> {
    let mut tests = in_workspace(workspace, "test");
    tests.args(FEATURES);
    run(tests.args(["--profile", PROFILE, "--doc"]))
}

/// A few hundred seeds; in full more.
fn simulation(workspace: &Workspace, full: bool) -> Result<()> {
    let seeds = if full { "1-1000" } else { "1-300" };
    let seeds = ("ROOST_SIMULATION_SEEDS", seeds);
    node_tests(workspace, SIMULATION, &[seeds])
}

/// Tests of the node with such names, one after the other, with what they print: they start processes of their own and
/// count. None at all is a failure, or a name that has changed would look like tests that passed.
fn node_tests(workspace: &Workspace, names: &str, variables: &[(&str, &str)]) -> Result<()> {
    let tests = || {
        let mut tests = in_workspace(workspace, "test");
        tests.args(FEATURES);
        tests.args(["--profile", PROFILE, "--test", NODE_TESTS, "--", names]);
        tests
    };
    let there = output(tests().arg("--list"))?;
    anyhow::ensure!(there.contains(": test"), "there are no tests {names}");
    let mut tests = tests();
    tests
        .args(["--include-ignored", "--nocapture", "--test-threads=1"])
        .envs(variables.iter().copied());
    run(&mut tests)
}

/// Without any such test this is a failure: a suite that is not found must not look like one that passed.
fn process_tests(workspace: &Workspace, mut integration: Vec<String>, full: bool) -> Result<()> {
    integration.retain(|name| fits(name, full, is_root()));
    if integration.iter().any(|name| name == ROOT_TESTS) {
        ensure_strace()?;
    }
    anyhow::ensure!(
        !integration.is_empty(),
        "there are no tests in {PROCESS_TESTS}/tests"
    );
    let mut tests = tests(workspace);
    tests.env("ROOST_BIN", workspace.binaries().join("roost"));
    run(choose(&mut tests, &integration))
}

/// Two sets with a fixed seed; in full every fault, and all once more for longer under another seed.
fn attacks(workspace: &Workspace, full: bool) -> Result<()> {
    if !is_root() {
        println!("not run: chaos, which makes network namespaces and mounts; be root");
        return Ok(());
    }
    let attack = |scenarios, seed, hold| {
        let words = ["--scenario", scenarios, "--seed", seed, "--hold", hold];
        chaos::run_with(workspace, &words, &FEATURES)
    };
    // `smoke` goes in here once it passes every time (docs/CHAOS.md).
    attack("wide,kill-minority", "1", "2")?;
    if full {
        attack("smoke", "1", "2")?;
        attack("smoke,wide,kill-minority", "2", "6")?;
    }
    Ok(())
}

/// Whether a suite can be run; what is left out is named, and counts nowhere as passed.
fn fits(name: &str, full: bool, root: bool) -> bool {
    match name {
        FULL_TESTS if !full => println!("not run: {name}, which takes long; add --full"),
        ROOT_TESTS if !root => println!("not run: {name}, which mounts file systems; be root"),
        _ => return true,
    }
    false
}

fn choose<'a>(tests: &'a mut Command, integration: &[String]) -> &'a mut Command {
    for name in integration {
        tests.args(["--test", name]);
    }
    println!("{}", shown(tests));
    tests
}

/// The test runner: nextest where it is installed, else cargo's own.
fn tests(workspace: &Workspace) -> Command {
    if has_nextest(workspace) {
        let mut nextest = workspace.cargo();
        nextest.args([
            "nextest",
            "run",
            "--locked",
            "--workspace",
            "--no-fail-fast",
            "--cargo-profile",
            PROFILE,
        ]);
        nextest.args(FEATURES);
        return nextest;
    }
    let mut test = in_workspace(workspace, "test");
    test.args(FEATURES);
    test.args(["--no-fail-fast", "--profile", PROFILE]);
    test
}

fn has_nextest(workspace: &Workspace) -> bool {
    let mut version = workspace.cargo();
    version
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

fn in_workspace(workspace: &Workspace, command: &str) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args([command, "--locked", "--workspace"]);
    cargo
}

/// Integration tests of every other package.
fn other_integration_tests(workspace: &Workspace) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for package in directories(&workspace.root)? {
        if package != PROCESS_TESTS && workspace.root.join(&package).join("Cargo.toml").exists() {
            names.extend(integration_tests(&workspace.root.join(package))?);
        }
    }
    Ok(names)
}

/// What cargo takes for integration tests of a package: `tests/NAME.rs` and `tests/NAME/main.rs`.
fn integration_tests(package: &Path) -> Result<Vec<String>> {
    let tests = package.join("tests");
    if !tests.exists() {
        return Ok(Vec::new());
    }
    let mut names: Vec<String> = entries(&tests)?
        .into_iter()
        .filter_map(|name| test_name(&tests, &name))
        .collect();
    names.sort();
    Ok(names)
}

fn test_name(tests: &Path, entry: &str) -> Option<String> {
    match entry.strip_suffix(".rs") {
        Some(name) => Some(name.to_owned()),
        None => tests
            .join(entry)
            .join("main.rs")
            .exists()
            .then(|| entry.to_owned()),
    }
}

fn directories(root: &Path) -> Result<Vec<String>> {
    Ok(entries(root)?
        .into_iter()
        .filter(|name| root.join(name).is_dir())
        .collect())
}

fn entries(directory: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    Ok(entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out() {
        let suites = |full, root| ["full", "process", "root"].map(|name| fits(name, full, root));
        assert_eq!(suites(false, false), [false, true, false]);
        assert_eq!(suites(false, true), [false, true, true]);
        assert_eq!(suites(true, true), [true, true, true]);
    }

    #[test]
    fn integration_tests_are_found_as_cargo_finds_them() -> Result<()> {
        let package = std::env::temp_dir().join(format!("xtask-tests-{}", std::process::id()));
        fs::create_dir_all(package.join("tests/simulation"))?;
        fs::create_dir_all(package.join("tests/support"))?;
        for file in ["kill.rs", "simulation/main.rs", "support/mod.rs"] {
            fs::write(package.join("tests").join(file), "")?;
        }
        assert_eq!(integration_tests(&package)?, ["kill", "simulation"]);
        assert!(integration_tests(&package.join("tests"))?.is_empty());
        fs::remove_dir_all(package)?;
        Ok(())
    }
}
