//! Other systems under the same loads: started here on loopback with their Debian packages, measured like Roost.

mod strace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use roost_local::free_base_port;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::fleet::Fleet;
use crate::load::{Job, Nats, Order, Protocol, RivalPairs, RivalSends};
use crate::procfs;
use crate::results::Run;
use crate::rows::{Plan, Row, SENDERS_FROM};
use crate::users::Users;

/// Between two attempts while a rival starts.
const POLL: Duration = Duration::from_millis(100);
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long sync calls are counted.
const TRACED: Duration = Duration::from_secs(3);
const SENDERS: Users = Users::new(SENDERS_FROM, 50);
const RECIPIENTS: Users = Users::new(0, 20_000);
const RECEIVERS: Users = Users::new(0, 50);
const BODY_BYTES: usize = 256;

/// A system to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    /// Three nodes, one stream with three replicas in files.
    JetStream,
    /// One node: it does not replicate.
    Mosquitto,
}

impl Rival {
    pub(crate) const ALL: [Self; 2] = [Self::JetStream, Self::Mosquitto];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::JetStream => "nats-jetstream-r3",
            Self::Mosquitto => "mosquitto",
        }
    }

    /// Whether there is such a measurement.
    pub(crate) fn has(self, row: Row) -> bool {
        match self {
            Self::JetStream => row == Row::A,
            Self::Mosquitto => matches!(row, Row::A | Row::B),
        }
    }

    /// Measures a row once, with an empty system.
    ///
    /// # Errors
    /// When the system does not start, or a generator fails.
    pub(crate) async fn run(self, row: Row, plan: &Plan) -> Result<Run> {
        let system = self.start(&plan.directory.join(self.name())).await?;
        let syncs = self.count_syncs(&system).await?;
        let job = self.job(row, &system, plan);
        let mut run = measure(row, self.name(), &system, &job, plan).await?;
        run.add("sync calls, one message at a time", "per message", syncs);
        run.add("under way, a sender", "messages", plan.window as f64);
        Ok(run)
    }

    fn protocol(self) -> Protocol {
        match self {
            Self::JetStream => Protocol::Nats,
            Self::Mosquitto => Protocol::Mqtt,
        }
    }

    fn job(self, row: Row, system: &System, plan: &Plan) -> Job {
        let (protocol, servers) = (self.protocol(), system.servers.clone());
        match row {
            Row::B => Job::RivalPairs(RivalPairs {
                protocol,
                servers,
                senders: SENDERS,
                receivers: RECEIVERS,
                body_bytes: BODY_BYTES,
                window: plan.window,
            }),
            _ => Job::RivalSends(RivalSends {
                protocol,
                servers,
                senders: SENDERS,
                recipients: RECIPIENTS,
                body_bytes: BODY_BYTES,
                window: plan.window,
            }),
        }
    }

    /// One sender, one message under way: whoever syncs before answering makes a sync call for each.
    async fn count_syncs(self, system: &System) -> Result<f64> {
        let job = Job::RivalSends(RivalSends {
            protocol: self.protocol(),
            servers: system.servers.clone(),
            senders: Users::new(SENDERS_FROM + SENDERS.count, 1),
            recipients: Users::new(RECIPIENTS.count, 1),
            body_bytes: BODY_BYTES,
            window: 1,
        });
        let mut fleet = Fleet::start(&job, 1).await?;
        fleet.order(Order::Go).await?;
        fleet.run_for(POLL, |_, _| ()).await?;
        let trace = strace::Trace::of(&system.pids()).await?;
        fleet.order(Order::Measure).await?;
        fleet.run_for(TRACED, |_, _| ()).await?;
        let messages = fleet.stop().await?.done;
        Ok(trace.end().await? as f64 / messages.max(1) as f64)
    }

    async fn start(self, directory: &Path) -> Result<System> {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let mut system = System {
            directory: directory.to_owned(),
            children: Vec::new(),
            servers: Vec::new(),
        };
        match self {
            Self::JetStream => system.start_jetstream().await?,
            Self::Mosquitto => system.start_mosquitto().await?,
        }
        Ok(system)
    }
}

/// A rival that runs. Dropping it kills it and removes its data.
struct System {
    directory: PathBuf,
    children: Vec<Child>,
    servers: Vec<String>,
}

impl System {
    fn pids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }

    fn spawn(&mut self, program: &str, config: &Path) -> Result<()> {
        let log = fs::File::create(config.with_extension("log"))?;
        let child = Command::new(program)
            .arg("-c")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!("cannot start {program}; `cargo xtask bench --peers` installs it")
            })?;
        self.children.push(child);
        Ok(())
    }

    async fn start_jetstream(&mut self) -> Result<()> {
        const NODES: u16 = 3;
        let base = free_base_port(NODES)?;
        let routes: Vec<String> = (1..=NODES)
            .map(|k| format!("nats-route://127.0.0.1:{}", base + 100 + k))
            .collect();
        for k in 1..=NODES {
            let store = self.directory.join(format!("store-{k}"));
            let config = self.directory.join(format!("node-{k}.conf"));
            let text = format!(
                "server_name: node-{k}\nlisten: 127.0.0.1:{}\njetstream {{ store_dir: \"{}\" }}\n\
                 cluster {{ name: bench, listen: 127.0.0.1:{}, routes: [{}] }}\n",
                base + k,
                store.display(),
                base + 100 + k,
                routes.join(", ")
            );
            fs::write(&config, text)?;
            self.spawn("nats-server", &config)?;
            self.servers.push(format!("127.0.0.1:{}", base + k));
        }
        self.wait_open().await?;
        self.make_stream().await
    }

    /// JetStream says no until its nodes have found each other.
    async fn make_stream(&self) -> Result<()> {
        const STREAM: &[u8] =
            br#"{"name":"queues","subjects":["q.*"],"retention":"limits","storage":"file","num_replicas":3}"#;
        let deadline = Instant::now() + READY_WITHIN;
        let mut last = Vec::new();
        while Instant::now() < deadline {
            let mut nats = Nats::open(&self.servers[0], 0).await?;
            let asked = nats.ask("$JS.API.STREAM.CREATE.queues", STREAM);
            if let Ok(answer) = tokio::time::timeout(Duration::from_secs(2), asked).await {
                last = answer?;
                let text = String::from_utf8_lossy(&last);
                if !text.contains("\"error\"") {
                    return Ok(());
                }
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("no stream: {}", String::from_utf8_lossy(&last))
    }

    async fn start_mosquitto(&mut self) -> Result<()> {
        let port = free_base_port(1)? + 1;
        let config = self.directory.join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n\
             persistence_location {}/\nmax_inflight_messages 0\nmax_queued_messages 0\nlog_type error\n",
            self.directory.display()
        );
        fs::write(&config, text)?;
        self.spawn("mosquitto", &config)?;
        self.servers.push(format!("127.0.0.1:{port}"));
        self.wait_open().await
    }

    async fn wait_open(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        for server in &self.servers {
            while let Err(error) = TcpStream::connect(server).await {
                if Instant::now() > deadline {
                    bail!("nobody listens on {server}: {error}");
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // What is left is only disk space, and the next run in this directory removes it.
        drop(fs::remove_dir_all(&self.directory));
    }
}

async fn measure(row: Row, name: &str, system: &System, job: &Job, plan: &Plan) -> Result<Run> {
    let mut fleet = Fleet::start(job, plan.processes).await?;
    fleet.order(Order::Go).await?;
    fleet.run_for(plan.warm_up(), |_, _| ()).await?;
    let before = procfs::usage(&system.pids())?;
    let start = Instant::now();
    fleet.order(Order::Measure).await?;
    fleet
        .run_for(plan.measured(), |time, done| {
            let rate = done as f64 / time.as_secs_f64();
            let what = format!("{name} {:3.0} s: {rate:.0} msg/s", time.as_secs_f64());
            crate::rows::progress(row.name(), &what);
        })
        .await?;
    let after = procfs::usage(&system.pids())?;
    let took = start.elapsed().as_secs_f64();
    let total = fleet.stop().await?;
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    let mut run = Run::default();
    run.add("rate", "msg/s", total.done as f64 / took);
    run.add(
        "per server CPU-second",
        "msg/CPU-s",
        total.done as f64 / cpu,
    );
    run.add("server processor", "cores", cpu / took);
    crate::rows::latencies(&mut run, "accepted", &total.accepted);
    crate::rows::latencies(&mut run, "delivered", &total.delivered);
    Ok(run)
}
