//! The load generator: what Roost costs, measured from outside.
//!
//! `bench run` is the coordinator: for each row ([`rows`]) it starts an empty cluster of real node processes ([`roost`]),
//! has generator processes ([`fleet`], [`load`]) load it, and reads what the operating system counts for the nodes
//! ([`procfs`]). [`rivals`] are other systems under the same loads. What comes out are figures ([`results`]): medians that keep their runs.
//!
//! It never links the node, and uses the machine for nothing else meanwhile: its own share of the processor is among
//! the figures, because it shares the machine with what it measures.

mod fleet;
mod latency;
mod load;
mod procfs;
mod report;
mod results;
mod rivals;
mod roost;
mod rows;
mod users;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use results::Run;
use rivals::Rival;
use rows::{Plan, Row};

#[derive(Parser)]
#[command(name = "bench", about = "Measures Roost under load")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure rows, one after the other.
    Run(RunArgs),
    /// Be a generator: read a job from standard input. What `run` starts.
    #[command(hide = true)]
    Worker,
}

#[derive(clap::Args)]
struct RunArgs {
    /// Which rows; all, if not said.
    #[arg(long = "row", value_delimiter = ',', ignore_case = true)]
    rows: Vec<Row>,
    /// Add the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// And write all figures of that file as a page with plots.
    #[arg(long, requires = "json")]
    html: Option<PathBuf>,
    /// Also measure other systems, in turn with Roost, where their packages are installed.
    #[arg(long)]
    peers: bool,
    /// Shorter and smaller: one run of each row, rough figures.
    #[arg(long)]
    quick: bool,
    /// How often each row is measured, each time with an empty cluster; the figure is the median.
    #[arg(long)]
    runs: Option<usize>,
    /// Generator processes.
    #[arg(long, default_value_t = 1)]
    processes: u32,
    /// Messages under way for each sender in closed loop.
    #[arg(long, default_value_t = 50)]
    window: usize,
    /// Shards of the cluster.
    #[arg(long, default_value_t = 32)]
    shards: u32,
    /// Where clusters keep their data; emptied before and after.
    #[arg(long, default_value = "target/bench")]
    data: PathBuf,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(args) => coordinator().and_then(|runtime| runtime.block_on(run(&args))),
        Command::Worker => generator().and_then(|runtime| runtime.block_on(load::worker())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn coordinator() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

fn generator() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

async fn run(args: &RunArgs) -> Result<()> {
    let plan = Plan {
        quick: args.quick,
        processes: args.processes,
        window: args.window,
        shards: args.shards,
        directory: args.data.clone(),
    };
    let runs = args.runs.unwrap_or(if args.quick { 1 } else { 3 });
    let mut rows = args.rows.clone();
    if rows.is_empty() {
        rows = <Row as clap::ValueEnum>::value_variants().to_vec();
    }
    for row in rows {
        for (system, runs) in measure(row, &plan, runs, args.peers).await? {
            let figures = results::figures(row.name(), system, &runs);
            results::print(&figures);
            if let Some(file) = &args.json {
                let all = results::merge(file, &figures)?;
                let page = args.html.as_deref();
                page.map_or(Ok(()), |page| report::write(page, &all))?;
            }
        }
    }
    Ok(())
}

/// Runs of each system, one system after the other and then again, so that a machine that drifts harms none.
async fn measure(
    row: Row,
    plan: &Plan,
    runs: usize,
    peers: bool,
) -> Result<Vec<(&'static str, Vec<Run>)>> {
    let rivals = Rival::ALL.into_iter();
    let rivals: Vec<Rival> = rivals.filter(|rival| peers && rival.has(row)).collect();
    let mut measured = vec![("roost", Vec::new())];
    measured.extend(rivals.iter().map(|rival| (rival.name(), Vec::new())));
    for _ in 0..runs.max(1) {
        measured[0].1.push(row.run(plan).await?);
        for (rival, (_, runs)) in rivals.iter().zip(&mut measured[1..]) {
            runs.push(rival.run(row, plan).await?);
        }
    }
    Ok(measured)
}

#[allow(clippy::print_stderr, reason = "a program's last words")]
fn complain(error: &anyhow::Error) {
    eprintln!("bench: {error:#}");
}
