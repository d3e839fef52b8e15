//! `roost dev`: a cluster of real node processes on this host, run by this same executable, until Ctrl-C.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use roost_local::{Cluster, Config};
use serde::{Deserialize, Serialize};

use super::exit::{Exit, Failure};
use super::signals::Stop;

const DEFAULT_NODES: u16 = 3;
const DEFAULT_SHARDS: u32 = 32;
const DEFAULT_DATA_DIR: &str = ".roost";
const DEFAULT_BASE_PORT: u16 = 7400;
/// The record of what was created, which marks the directory as ours.
const RECORD: &str = "dev.toml";
/// Held while a cluster runs on the directory.
const LOCK: &str = "dev.lock";
const TOKEN: &str = "admin.token";
/// For nodes to hand over and stop.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// Before a dead node is started again, so that one that dies at once does not take the processor.
const RESPAWN_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many nodes; fixed when the data directory is created [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    nodes: Option<u16>,
    /// How many shards, a power of two; fixed when the data directory is created [default: 32].
    #[arg(long, value_parser = parse_shards)]
    shards: Option<u32>,
    /// Where everything is kept; the next run goes on with it.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Delete what an earlier run left in the data directory.
    #[arg(long)]
    fresh: bool,
    /// Node k serves clients on PORT+k, peers on PORT+100+k, health and metrics on PORT+200+k.
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_BASE_PORT)]
    base_port: u16,
    /// Start a node again when it dies.
    #[arg(long)]
    respawn: bool,
}

/// What cannot change over existing data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    nodes: u16,
    shards: u32,
}

fn parse_shards(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(shards) if u32::is_power_of_two(shards) && shards <= 4096 => Ok(shards),
        _ => Err("a power of two from 1 to 4096".to_owned()),
    }
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let mut stop = Stop::listen().map_err(file_error(Path::new("signals")))?;
    let dir = args.data_dir.as_path();
    let _lock = claim(dir)?;
    if args.fresh {
        clear(dir)?;
    }
    let record = settle(dir, args.nodes, args.shards)?;
    let binary = std::env::current_exe()
        .map_err(|error| Failure::internal(format!("cannot find the own executable: {error}")))?;
    let config = Config::new(binary, dir)
        .nodes(record.nodes)
        .shards(record.shards)
        .base_port(args.base_port);
    let mut cluster = Cluster::prepare(config)?;
    eprintln!("starting {} nodes in {} ...", record.nodes, dir.display());
    cluster.start_all()?;
    let ready = tokio::select! {
        ready = cluster.wait_ready() => Some(ready),
        () = stop.wait() => None,
    };
    if let Some(ready) = ready {
        ready?;
        write_token(&dir.join(TOKEN), &cluster.admin_token()?)?;
        introduce(&args, record, &cluster).map_err(file_error(Path::new("standard output")))?;
        watch(&args, &mut cluster, &mut stop).await?;
    }
    eprintln!("stopping ...");
    cluster.stop(STOP_GRACE).await?;
    Ok(Exit::Done)
}

/// Until it is told to stop, or no node is left.
async fn watch(args: &Args, cluster: &mut Cluster, stop: &mut Stop) -> Result<(), Failure> {
    loop {
        let (k, status) = tokio::select! {
            () = stop.wait() => return Ok(()),
            exit = cluster.next_exit() => exit?,
        };
        report(args, cluster, k, status);
        if args.respawn {
            tokio::select! {
                () = stop.wait() => return Ok(()),
                () = respawn(cluster, k) => {}
            }
        } else if !any_running(cluster) {
            return Err(Failure::internal(
                "no node is running any more; run `roost dev` again to go on with the same data",
            ));
        }
    }
}

/// Tries until it runs.
async fn respawn(cluster: &mut Cluster, k: u16) {
    loop {
        tokio::time::sleep(RESPAWN_PAUSE).await;
        match cluster.node_mut(k).start() {
            Ok(()) => return eprintln!("node-{k} is started again"),
            Err(error) => eprintln!("node-{k} cannot be started again: {error}"),
        }
    }
}

fn any_running(cluster: &mut Cluster) -> bool {
    let count = cluster.nodes().len() as u16;
    (1..=count).any(|k| cluster.node_mut(k).is_running())
}

fn report(args: &Args, cluster: &Cluster, k: u16, status: ExitStatus) {
    let log = cluster.node(k).log_file();
    let next = if args.respawn {
        "it will be started again"
    } else {
        "it is not started again (see --respawn)"
    };
    eprintln!(
        "node-{k} has ended ({status}); {next}; its log is {}",
        log.display()
    );
}

fn introduce(args: &Args, record: Record, cluster: &Cluster) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{} nodes with {} shards are ready.",
        record.nodes, record.shards
    )?;
    for node in cluster.nodes() {
        writeln!(
            out,
            "  {}  clients {}  health and metrics http://{}  log {}",
            node.name(),
            node.client_url(),
            node.http_address(),
            node.log_file().display(),
        )?;
    }
    let urls = cluster.client_urls();
    let first = urls.first().map(String::as_str).unwrap_or_default();
    let last = urls.last().map(String::as_str).unwrap_or_default();
    let mut admin = String::new();
    if args.data_dir != Path::new(DEFAULT_DATA_DIR) {
        let token = args.data_dir.join(TOKEN);
        admin = format!(" --admin-token {}", token.display());
    }
    let server = if args.base_port == DEFAULT_BASE_PORT {
        String::new()
    } else {
        format!(" --server {first}")
    };
    writeln!(
        out,
        "\nIn another terminal, in this directory:\n\
         \x20 roost account add +4915100000001 --device phone{admin}{server}\n\
         \x20 roost account add +4915100000002 --device phone{admin}{server}\n\
         \x20 roost send --as +4915100000001 --to +4915100000002 \"Good morning\"{server}\n\
         \x20 roost listen --as +4915100000002 --count 1 --server {last}\n\
         \x20 roost status{admin}{server}\n\
         Ctrl-C stops the cluster; the next run goes on with its data."
    )?;
    out.flush()
}

/// The directory, with the lock that says a cluster runs on it; released when the file is dropped.
fn claim(dir: &Path) -> Result<File, Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file_error(dir))?;
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(file_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Failure::usage(format!(
            "a cluster runs on {} already: stop it, or say another --data-dir",
            dir.display()
        ))),
        Err(fs::TryLockError::Error(error)) => Err(file_error(&path)(error)),
    }
}

/// Deletes what an earlier run made; a directory that is not ours is left alone.
fn clear(dir: &Path) -> Result<(), Failure> {
    let entries = fs::read_dir(dir).map_err(file_error(dir))?;
    let paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()
        .map_err(file_error(dir))?;
    let others: Vec<&PathBuf> = paths.iter().filter(|path| !path.ends_with(LOCK)).collect();
    if !others.is_empty() && !dir.join(RECORD).exists() {
        return Err(Failure::usage(format!(
            "{} was not made by `roost dev`, so --fresh does not delete it: say another --data-dir",
            dir.display()
        )));
    }
    // The record goes last: an interrupted run leaves a directory that can still be cleared.
    let (records, rest): (Vec<&PathBuf>, Vec<&PathBuf>) =
        others.into_iter().partition(|path| path.ends_with(RECORD));
    for path in rest.into_iter().chain(records) {
        let removed = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.map_err(file_error(path))?;
    }
    Ok(())
}

/// What the directory was created with; another wish is refused, and an empty directory takes it.
fn settle(dir: &Path, nodes: Option<u16>, shards: Option<u32>) -> Result<Record, Failure> {
    let path = dir.join(RECORD);
    let known: Option<Record> = match fs::read_to_string(&path) {
        Ok(text) => Some(
            toml::from_str(&text)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?,
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(file_error(&path)(error)),
    };
    let Some(known) = known else {
        let record = Record {
            nodes: nodes.unwrap_or(DEFAULT_NODES),
            shards: shards.unwrap_or(DEFAULT_SHARDS),
        };
        let text = toml::to_string(&record)
            .map_err(|error| Failure::internal(format!("cannot write {RECORD}: {error}")))?;
        write_new(&path, text.as_bytes(), 0o644)?;
        return Ok(record);
    };
    let refuse = |what: &str, has: u32, wanted: u32| {
        Err(Failure::usage(format!(
            "{} was created with {has} {what}, not {wanted}: leave out --{what}, or delete it with --fresh",
            dir.display()
        )))
    };
    match (nodes, shards) {
        (Some(nodes), _) if nodes != known.nodes => {
            refuse("nodes", known.nodes.into(), nodes.into())
        }
        (_, Some(shards)) if shards != known.shards => refuse("shards", known.shards, shards),
        _ => Ok(known),
    }
}

fn write_token(path: &Path, token: &str) -> Result<(), Failure> {
    write_new(path, format!("{token}\n").as_bytes(), 0o600)
}

/// Whole or not at all, also over an older file.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let draft = path.with_extension("draft");
    let write = || -> io::Result<()> {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(file_error(path))
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::internal(format!("{}: {error}", path.display()))
}

impl From<roost_local::Error> for Failure {
    fn from(error: roost_local::Error) -> Self {
        use roost_local::Error;
        match error {
            Error::Invalid(_) | Error::PortInUse { .. } | Error::NoFreePorts { .. } => {
                Self::usage(error.to_string())
            }
            // The end of the log keeps its lines, above the one that says what happened.
            Error::Exited {
                ref log, ref tail, ..
            }
            | Error::NotReady {
                ref log, ref tail, ..
            } => {
                eprintln!("the end of {}:\n{tail}", log.display());
                let text = error.to_string();
                let what = text.split("; the end of").next().unwrap_or(&text);
                Self::internal(what)
            }
            _ => Self::internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_created_stays() {
        let dir = tempfile::tempdir().unwrap();
        let made = settle(dir.path(), Some(1), None).unwrap();
        assert_eq!((made.nodes, made.shards), (1, DEFAULT_SHARDS));
        assert_eq!(settle(dir.path(), None, None).unwrap(), made);
        assert_eq!(settle(dir.path(), Some(1), Some(32)).unwrap(), made);
        for (nodes, shards) in [(Some(3), None), (None, Some(64))] {
            let refused = settle(dir.path(), nodes, shards).unwrap_err();
            assert_eq!(refused.exit(), Exit::Usage);
            assert!(refused.to_string().contains("--fresh"), "{refused}");
        }
    }

    #[test]
    fn fresh_deletes_only_what_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = claim(dir.path()).unwrap();
        clear(dir.path()).unwrap();
        fs::write(dir.path().join("thesis.txt"), "precious").unwrap();
        assert_eq!(clear(dir.path()).unwrap_err().exit(), Exit::Usage);
        settle(dir.path(), None, None).unwrap();
        fs::create_dir(dir.path().join("node-1")).unwrap();
        clear(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the lock: {left:?}");
    }

    #[test]
    fn one_cluster_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let lock = claim(dir.path()).unwrap();
        assert_eq!(claim(dir.path()).unwrap_err().exit(), Exit::Usage);
        drop(lock);
        assert!(claim(dir.path()).is_ok());
    }

    #[test]
    fn the_token_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKEN);
        fs::write(&path, "old").unwrap();
        write_token(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
