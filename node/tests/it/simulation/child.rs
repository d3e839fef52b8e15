//! Runs in processes of their own, a few at a time: nothing of one seed reaches the next, what the system gives as random
//! follows from the seed ([`randomness.c`](randomness.c)), and a run that hangs is ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::run::{Plan, Told};

/// The test that plays one plan when it is told to.
const TEST: &str = "simulation::every_seed_keeps_every_promise";
const PLAN: &str = "ROOST_SIMULATION_PLAN";
const RESULT: &str = "ROOST_SIMULATION_RESULT";
/// What of the nodes' logs is kept beside the result, as `tracing`'s filters say it; nothing without it.
const LOG: &str = "ROOST_SIMULATION_LOG";
const RANDOMNESS: &str = "ROOST_SIMULATION_RANDOMNESS";
/// A run takes a second or two. What takes this long goes round in circles.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(5);

/// What nodes log is stamped with the time that they live in.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        thread_local!(static BEGAN: tokio::time::Instant = tokio::time::Instant::now());
        write!(
            line,
            "{:.3}s",
            BEGAN.with(tokio::time::Instant::elapsed).as_secs_f64()
        )
    }
}

/// Plays the plan that this process was started with, if it was.
pub(super) fn play() -> bool {
    let (Ok(plan), Some(result)) = (std::env::var(PLAN), std::env::var_os(RESULT)) else {
        return false;
    };
    let plan: Plan = serde_json::from_str(&plan).expect("the parent wrote it");
    if let Ok(filter) = std::env::var(LOG) {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(VirtualTime)
            .with_ansi(false)
            .init();
    }
    // A fresh thread has drawn nothing yet.
    let told = thread::spawn(move || super::run::run(plan)).join();
    let told = told.expect("the run ends, whatever it finds");
    let told = serde_json::to_vec(&told).expect("plain data");
    fs::write(result, told).expect("the parent reads it");
    true
}

/// Runs plans in as many processes as there are processors, and gives each result to `heard` as it comes; `false` from it
/// means that no more are wanted. `sabotage` is the promise to break, if one is.
pub(crate) fn run_all(
    plans: &[Plan],
    sabotage: Option<&str>,
    mut heard: impl FnMut(Result<Told, String>) -> bool + Send,
) {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let heard = Mutex::new(&mut heard);
    thread::scope(|scope| {
        for _ in 0..workers.min(plans.len()) {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed))
                    && !enough.load(Ordering::Relaxed)
                {
                    let told = run_one(*plan, sabotage);
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    if !heard(told) {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Runs a plan in a process of its own.
pub(crate) fn run_one(plan: Plan, sabotage: Option<&str>) -> Result<Told, String> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("run-{}-{number}", std::process::id());
    let path = |ending: &str| directory().join(format!("{name}.{ending}"));
    let output = fs::File::create(path("log")).expect("the target directory can be written");
    let errors = output.try_clone().expect("a file can be shared");
    let mut command = Command::new(std::env::current_exe().expect("a test knows its program"));
    command
        .args([TEST, "--exact", "--include-ignored", "--nocapture"])
        .env(PLAN, serde_json::to_string(&plan).expect("plain data"))
        .env(RESULT, path("json"))
        .env(RANDOMNESS, plan.seed.to_string())
        .env("LD_PRELOAD", randomness())
        .env_remove("ROOST_SABOTAGE")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    if let Some(sabotage) = sabotage {
        command.env("ROOST_SABOTAGE", sabotage);
    }
    let mut child = command.spawn().expect("this program can be started");
    let began = Instant::now();
    let ended = loop {
        match child.try_wait().expect("it is our own child") {
            Some(status) => break status.success(),
            None if began.elapsed() > LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
            None => thread::sleep(LOOK),
        }
    };
    let told = fs::read(path("json")).ok().filter(|_| ended);
    let told = told.and_then(|told| serde_json::from_slice::<Told>(&told).ok());
    let _ = fs::remove_file(path("json"));
    match told {
        Some(told) => {
            if told.found.is_empty() {
                let _ = fs::remove_file(path("log"));
            }
            Ok(told)
        }
        None => Err(format!(
            "seed {} gave no result after {:?}; what it said is in {}",
            plan.seed,
            began.elapsed(),
            path("log").display()
        )),
    }
}

fn directory() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The library that answers for the system, compiled once a process. Whoever can link Rust has a C compiler.
fn randomness() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = directory().join("randomness.so");
        let fresh = directory().join(format!("randomness-{}.so", std::process::id()));
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/simulation/randomness.c"
        );
        let compiled = Command::new("cc")
            .args(["-O2", "-Wall", "-shared", "-fPIC", "-o"])
            .arg(&fresh)
            .arg(source)
            .status();
        assert!(
            compiled.is_ok_and(|status| status.success()),
            "cc cannot compile {source}"
        );
        // Another process may be doing the same.
        fs::rename(&fresh, &library).expect("the target directory can be written");
        library
    })
}
