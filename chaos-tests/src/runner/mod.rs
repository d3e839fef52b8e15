//! One run: a cluster under load, faults one after the other, the history held against the contract, and a verdict.
//!
//! A fault lasts for its time and until there was life under it, where a majority was up: a quiet run proves nothing
//! and fails. After each the cluster must recover before the next comes, so that never more than a minority of any
//! shard is damaged. At the end everybody must have everything and every queue be empty.

pub mod account;
pub mod kinds;
pub mod matrix;
pub mod report;
pub mod scenario;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use roost_client::Credentials;
use tokio::time::{Instant, sleep};

use crate::checker;
use crate::history::Event;
use crate::hosts::{Hosts, Kind as HostKind};
use crate::lab::{Lab, Setup, until, within};
use crate::nemesis::{self, Fault, Field};
use crate::workload::{Absent, Load, Plan};
use account::Row;
use kinds::{Kind, Needs};
pub use report::Verdict;
use scenario::Scenario;

/// Messages that must be accepted, and entries delivered, while a fault lasts.
pub const LIFE_ACCEPTED: u64 = 1_000;
/// See [`LIFE_ACCEPTED`].
pub const LIFE_DELIVERED: u64 = 100;
/// How long a fault goes on waiting for life.
const LIFE_LIMIT: Duration = Duration::from_secs(90);
/// For nodes to be ready again, also with a shard to copy.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);
/// For everybody to have everything, once nobody sends any more.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);
/// No shard with a majority may be silent for longer; usually it is far less.
const UNAVAILABLE_MAX_MS: u64 = 30_000;
/// Between two looks at a fault that lasts.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Accepted before the first fault, and between two.
const QUIET_ACCEPTED: u64 = 500;
/// Characters of a scenario's name in that of its report.
const NAME_MAX: usize = 60;

const SHARDS: u32 = 8;
const USERS: u32 = 10;
const PIPELINE: usize = 48;
/// A bound that a queue reaches in a run.
const QUEUE_ENTRIES: usize = 10_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Faults.
    pub scenario: Scenario,
    /// At least so long; the faults start over until it is reached.
    pub least: Duration,
    /// How long each fault lasts, at least.
    pub hold: Duration,
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Where the nodes run.
    pub hosts: HostKind,
    /// How many nodes; the scenario's need when not said.
    pub nodes: Option<u16>,
    /// Messages a second; `None`: as many as the cluster takes.
    pub rate: Option<f64>,
    /// Where the report goes.
    pub out: PathBuf,
}

/// Runs it; the verdict says whether it passed.
///
/// # Errors
/// When there is nothing to judge, because the cluster did not come up.
pub async fn run(options: &Options) -> Result<Verdict> {
    let needs = options.scenario.needs();
    let nodes = options.nodes.unwrap_or(needs.nodes);
    ensure!(
        nodes >= needs.nodes,
        "{} needs {} nodes",
        options.scenario.name,
        needs.nodes
    );
    ensure!(
        options.hosts.is_root() || !needs.root,
        "{} needs root and --hosts netns: the other hosts cannot do {}",
        options.scenario.name,
        rooted(&options.scenario)
    );
    let mut hosts = Hosts::create(options.hosts, nodes).await?;
    let setup = Setup::nodes(nodes).shards(SHARDS).toml(settings(needs));
    let replicas = if nodes < 5 { 3 } else { 5 };
    let mut lab = Lab::prepare(setup, |config| {
        let config = config.replication_factor(replicas);
        hosts.adapt(config.ready_timeout(RECOVERY_LIMIT), nodes)
    })?;
    if needs.disks {
        nemesis::disk::prepare(&lab).await?;
    }
    if needs.clocks {
        nemesis::clock::prepare(&mut lab, nodes)?;
    }
    hosts.open(&lab.cluster);
    lab.cluster.start_all()?;
    lab.cluster.wait_ready().await?;
    let cast = cast(&lab).await?;
    let mut users: Vec<String> = cast
        .people
        .iter()
        .map(|device| device.user.clone())
        .collect();
    users.dedup();
    let mut field = Field {
        lab,
        hosts,
        chance: StdRng::seed_from_u64(options.seed),
        users,
        struck: Vec::new(),
        replicas: replicas as usize,
    };
    let failure = perform(options, &mut field, &cast).await.err();
    judge(options, field, failure).await
}

/// The faults of a scenario that only root can make.
fn rooted(scenario: &Scenario) -> String {
    let rooted = scenario.faults.iter().filter(|kind| kind.needs.root);
    rooted.map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

/// What differs from the defaults: a queue that can be filled in a run, on a wide network Raft's times, and where it is
/// asked for logs and tables that are rewritten within seconds.
fn settings(needs: Needs) -> String {
    let mut toml = format!("[queue]\nentries_max = {QUEUE_ENTRIES}\n[raft]\n");
    if needs.wide {
        toml += "heartbeat_ms = 300\nelection_min_ms = 1500\nelection_max_ms = 2500\n";
    }
    if needs.short {
        toml +=
            "log_age_max_ms = 2000\nsnapshot_life_max_ms = 3000\n[storage]\nreclaim_ms = 5000\n";
    }
    toml
}

/// Everybody.
struct Cast {
    people: Vec<Credentials>,
    writer: Credentials,
    forgetful: Credentials,
    hoarder: Credentials,
}

async fn cast(lab: &Lab) -> Result<Cast> {
    let mut people = Vec::new();
    for number in 0..USERS {
        let user = format!("+1555{number:04}");
        people.push(lab.add_device(&user, "phone").await?);
        if number % 3 == 0 {
            people.push(lab.add_device(&user, "laptop").await?);
        }
    }
    Ok(Cast {
        people,
        writer: lab.add_device("+15559001", "phone").await?,
        forgetful: lab.add_device("+15559002", "phone").await?,
        hoarder: lab.add_device("+15559003", "phone").await?,
    })
}

async fn perform(options: &Options, field: &mut Field, cast: &Cast) -> Result<()> {
    let history = field.lab.history.clone();
    let servers = field.hosts.client_urls(&field.lab.cluster);
    let rounds = options.scenario.faults.len() as u32;
    let each = options.hold + LIFE_LIMIT + RECOVERY_LIMIT;
    let limit = options.least + each * rounds + DRAIN_LIMIT;
    let plan = Plan {
        seed: options.seed,
        messages: usize::MAX,
        pipeline: PIPELINE,
        clients: usize::MAX,
        limit,
    };
    let load = Load::start(&history, &servers, &cast.people, plan, options.rate);
    let absent = Absent {
        history: &history,
        servers: &servers,
        writer: &cast.writer,
        forgetful: &cast.forgetful,
        hoarder: &cast.hoarder,
        entries_max: QUEUE_ENTRIES,
        limit,
    };
    let faults = schedule(options, field, &load);
    let done = futures::try_join!(absent.play(), faults);
    if load.has_failed() {
        load.finish().await.context("the load")?;
        bail!("the load ended before its time");
    }
    done?;
    say("nobody sends any more; waiting until everybody has everything");
    let totals = within(DRAIN_LIMIT, "the end of the load", load.finish()).await??;
    say(&format!(
        "{} messages accepted, {} entries received",
        totals.accepted, totals.received
    ));
    drain(field, cast).await
}

/// Every queue is empty.
async fn drain(field: &Field, cast: &Cast) -> Result<()> {
    let everybody = cast.people.iter().chain([&cast.hoarder, &cast.forgetful]);
    for device in everybody {
        until(
            DRAIN_LIMIT,
            &format!("the queue of {} is empty", device.user),
            async || {
                let entries = field.lab.queued_entries(&device.user).await?;
                Ok((entries == 0).then_some(()))
            },
        )
        .await?;
    }
    Ok(())
}

async fn schedule(options: &Options, field: &mut Field, load: &Load) -> Result<()> {
    let end = Instant::now() + options.least;
    quiet(load).await?;
    loop {
        for kind in &options.scenario.faults {
            one(options, field, load, *kind)
                .await
                .with_context(|| kind.name)?;
            quiet(load).await?;
        }
        if Instant::now() >= end {
            return Ok(());
        }
    }
}

/// Ordinary life between two faults.
async fn quiet(load: &Load) -> Result<()> {
    let before = load.progress().accepted();
    until(LIFE_LIMIT, "ordinary life", async || {
        ensure!(!load.has_failed(), "the load has ended before its time");
        Ok((load.progress().accepted() >= before + QUIET_ACCEPTED).then_some(()))
    })
    .await
}

async fn one(options: &Options, field: &mut Field, load: &Load, kind: Kind) -> Result<()> {
    let mut fault = kind.fault();
    if !fault.keeps_majority() {
        // What is at risk is what was accepted before it.
        sleep(options.hold).await;
    }
    let record = |event| field.lab.history.record(event);
    record(Event::FaultBegins {
        fault: kind.name.to_owned(),
        majority: fault.keeps_majority(),
    });
    say(&format!("{}: {}", kind.name, fault.name()));
    fault.inject(field).await.context("injecting it")?;
    let proof = fault.prove(field).await.context("proving it")?;
    say(&format!("  proved: {proof}"));
    field.lab.history.record(Event::FaultProved { proof });
    let lasting = last(options, field, load, fault.as_mut()).await;
    field.lab.history.record(Event::FaultEnds);
    // Healed also after a failure, so that what follows is about that failure alone.
    fault.heal(field).await.context("healing it")?;
    lasting.context("while it lasted")?;
    let start = Instant::now();
    within(
        RECOVERY_LIMIT,
        "every node is ready again and every shard whole",
        field.wait_whole(),
    )
    .await??;
    field.lab.history.record(Event::Recovered);
    say(&format!(
        "  healed; whole after {} ms",
        start.elapsed().as_millis()
    ));
    Ok(())
}

/// Keeps the fault for its time, until it has done all it wants and there was life under it.
async fn last(
    options: &Options,
    field: &mut Field,
    load: &Load,
    fault: &mut dyn Fault,
) -> Result<()> {
    let start = Instant::now();
    let (accepted, delivered) = (load.progress().accepted(), load.progress().delivered());
    loop {
        let done = fault.go_on(field).await?;
        let alive = !fault.keeps_majority()
            || load.progress().accepted() - accepted >= LIFE_ACCEPTED
                && load.progress().delivered() - delivered >= LIFE_DELIVERED;
        if done && alive && start.elapsed() >= options.hold {
            return Ok(());
        }
        if load.has_failed() {
            bail!("the load has ended before its time");
        }
        ensure!(
            start.elapsed() < options.hold + LIFE_LIMIT,
            "no life: {} accepted and {} delivered in {:?}, of {LIFE_ACCEPTED} and {LIFE_DELIVERED}",
            load.progress().accepted() - accepted,
            load.progress().delivered() - delivered,
            start.elapsed()
        );
        sleep(LOOK_INTERVAL).await;
    }
}

async fn judge(
    options: &Options,
    mut field: Field,
    failure: Option<anyhow::Error>,
) -> Result<Verdict> {
    field.lab.cluster.kill_all().await?;
    let history = field.lab.history.records()?;
    let violations = checker::check(&history);
    let gaps = account::gaps(&history, SHARDS);
    let rows = account::rows(&history, &gaps);
    let mut failures: Vec<String> = failure
        .map(|error| format!("{error:#}"))
        .into_iter()
        .collect();
    failures.extend(lifeless(&rows));
    let verdict = Verdict::new(options, &history, violations, rows, &gaps, failures);
    // Several faults joined make a name that no file system takes.
    let name: String = options.scenario.name.chars().take(NAME_MAX).collect();
    let directory = options.out.join(format!("{name}-{}", options.seed));
    std::fs::create_dir_all(&directory)?;
    report::write(&directory, options, &field.hosts, &history, &verdict)?;
    say(&format!(
        "report: {}",
        directory.join("report.html").display()
    ));
    if verdict.passed() {
        if options.scenario.needs().disks {
            nemesis::disk::take_off(&field.lab).await?;
        }
        field.lab.forget().await?;
    }
    Ok(verdict)
}

/// The history's own word on life, whatever was seen on the way.
fn lifeless(rows: &[Row]) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows {
        let name = &row.fault;
        if row.proof.is_empty() {
            found.push(format!("{name} was never proved"));
        } else if row.majority && (row.accepted < LIFE_ACCEPTED || row.delivered < LIFE_DELIVERED) {
            found.push(format!(
                "no life under {name}: {} accepted, {} delivered",
                row.accepted, row.delivered
            ));
        }
        if row.longest_unavailable_ms > UNAVAILABLE_MAX_MS {
            found.push(format!(
                "a shard with a majority served nobody for {} ms around {name}",
                row.longest_unavailable_ms
            ));
        }
    }
    found
}

fn say(text: &str) {
    eprintln!("{text}");
}
