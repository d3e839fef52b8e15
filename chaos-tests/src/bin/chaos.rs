//! Breaks a cluster under load and says whether it kept its promises: what `cargo xtask chaos` runs.
//!
//! The last line of standard output is one JSON object for each scenario that was run; progress goes to standard error.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use roost_chaos_tests::hosts::{Kind, cage};
use roost_chaos_tests::runner::matrix::{self, Run};
use roost_chaos_tests::runner::{self, Options, scenario};

/// Breaks a cluster under load and says whether it kept its promises.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    /// What to run; see --list. Several, with commas between them, are run one after the other.
    #[arg(long, default_value = "processes,partitions", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Goes on for at least so long, over and over.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// How long each fault lasts, at least.
    #[arg(long, default_value_t = 6)]
    hold: u64,
    /// Everything that is left to chance follows from it; drawn when not said.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the nodes run.
    #[arg(long, value_enum, default_value = "netns")]
    hosts: Where,
    /// How many nodes; as many as the scenario needs when not said.
    #[arg(long)]
    nodes: Option<u16>,
    /// Messages a second of all clients together; 0: as many as the cluster takes.
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
    /// Where reports go.
    #[arg(long, default_value = "chaos-reports")]
    out: PathBuf,
    /// Names every scenario, and runs none.
    #[arg(long)]
    list: bool,
    /// Runs what the matrix lacks most, for about --seconds, or until nothing lacks; each run is added to this file.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = MATRIX)]
    matrix: Option<PathBuf>,
    /// Writes the matrix as a table into this document, and runs nothing.
    #[arg(long, value_name = "DOCUMENT", num_args = 0..=1, default_missing_value = "docs/CHAOS.md")]
    table: Option<PathBuf>,
    /// What is under test, for the matrix to remember.
    #[arg(long, default_value = "unknown")]
    commit: String,
}

/// Where the runs of the matrix are kept, seen from the root of the checkout.
const MATRIX: &str = "chaos-tests/matrix.jsonl";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Where {
    /// Network namespaces; needs root.
    Netns,
    /// Loopback with a relay on every link; needs nothing, and can do less.
    Proxy,
}

impl Where {
    fn kind(self) -> Kind {
        match self {
            Self::Netns => Kind::Netns,
            Self::Proxy => Kind::Proxy,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for (name, about) in scenario::list() {
            println!("{name:16} {about}");
        }
        return ExitCode::SUCCESS;
    }
    let done = match (&arguments.table, &arguments.matrix) {
        (Some(document), file) => table(file.as_deref(), document),
        (None, Some(file)) if !cage::is_inside() => fill(&arguments, file),
        _ => run_all(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn table(file: Option<&Path>, document: &Path) -> Result<bool> {
    let runs = matrix::read(file.unwrap_or(Path::new(MATRIX)))?;
    matrix::publish(&runs, document)?;
    Ok(true)
}

/// Run after run of what the matrix lacks.
fn fill(arguments: &Arguments, file: &Path) -> Result<bool> {
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut passed = true;
    while Instant::now() < end
        && let Some(scenario) = matrix::next(&matrix::read(file)?)
    {
        let mut inner = inner(arguments, &scenario.faults_named());
        inner.extend(["--matrix".into(), file.into()]);
        inner.extend(["--commit".into(), arguments.commit.clone().into()]);
        passed &= cage::enter(&inner)?;
    }
    Ok(passed)
}

/// Every scenario, in a world of its own where it needs one; says whether all passed.
fn run_all(arguments: &Arguments) -> Result<bool> {
    if cage::is_inside() {
        cage::end_with_the_outer();
        return run(arguments, &arguments.scenario[0]);
    }
    let mut passed = true;
    for name in &arguments.scenario {
        // Whatever else is wrong is told before anything starts.
        find(name)?;
        passed &= match arguments.hosts {
            Where::Netns => cage::enter(&inner(arguments, name))?,
            Where::Proxy => run(arguments, name)?,
        };
    }
    Ok(passed)
}

fn find(name: &str) -> Result<scenario::Scenario> {
    scenario::named(name).with_context(|| format!("there is no scenario {name}; --list names them"))
}

/// The arguments of the process that runs one scenario.
fn inner(arguments: &Arguments, name: &str) -> Vec<OsString> {
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let mut all: Vec<OsString> = [
        ("--scenario", name.to_owned()),
        ("--seed", seed.to_string()),
        // Of the matrix they are for all runs together.
        (
            "--seconds",
            match arguments.matrix {
                Some(_) => "0".to_owned(),
                None => arguments.seconds.to_string(),
            },
        ),
        ("--hold", arguments.hold.to_string()),
        ("--rate", arguments.rate.to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.into(), value.into()])
    .collect();
    all.extend(["--out".into(), arguments.out.clone().into_os_string()]);
    if let Some(nodes) = arguments.nodes {
        all.extend(["--nodes".into(), nodes.to_string().into()]);
    }
    all
}

fn run(arguments: &Arguments, name: &str) -> Result<bool> {
    let options = Options {
        scenario: find(name)?,
        least: Duration::from_secs(arguments.seconds),
        hold: Duration::from_secs(arguments.hold),
        seed: arguments.seed.unwrap_or_else(rand::random),
        hosts: arguments.hosts.kind(),
        nodes: arguments.nodes,
        rate: (arguments.rate > 0.0).then_some(arguments.rate),
        out: arguments.out.clone(),
    };
    eprintln!("== {name}, seed {}", options.seed);
    let runtime = tokio::runtime::Runtime::new().context("no runtime")?;
    let verdict = runtime.block_on(async {
        tokio::select! {
            verdict = runner::run(&options) => verdict,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })?;
    for trouble in verdict.troubles() {
        eprintln!("{trouble}");
    }
    if let Some(file) = &arguments.matrix {
        matrix::add(file, &Run::of(&verdict, &arguments.commit))?;
    }
    println!("{}", verdict.json()?);
    Ok(verdict.passed())
}
