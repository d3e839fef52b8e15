//! Nodes that have moved: name and addresses are attributes of a node, its identity lies in its data directory.

use std::path::Path;

use anyhow::{Result, ensure};
use roost_chaos_tests::cli::{self, Cli};
use roost_chaos_tests::lab::{Lab, Setup, until};
use roost_local::free_base_port;
use serde_json::Value;

use crate::dev::{nodes_are_gone, start};
use crate::{ANN, BOB, LIMIT};

fn urls(base_port: u16) -> Vec<String> {
    let ports = (1..=3).map(|k| base_port + k);
    ports
        .map(|port| format!("http://127.0.0.1:{port}"))
        .collect()
}

async fn status(cli: &Cli) -> Result<Value> {
    let printed = cli.run(&["status", "--json"]).await?.expect(cli::OK)?;
    Ok(printed.json()?[0].clone())
}

/// Waits until the cluster's own record gives these client ports, and everybody talks to everybody.
async fn wait_for_ports(cli: &Cli, ports: [u16; 3]) -> Result<Value> {
    let wanted = ports.map(|port| format!("127.0.0.1:{port}"));
    until(LIMIT, "the new addresses in the status", async || {
        let status = status(cli).await?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let mut addresses: Vec<&str> = nodes
            .iter()
            .filter_map(|node| node["address"].as_str())
            .collect();
        addresses.sort_unstable();
        let settled = addresses == wanted && nodes.iter().all(|node| node["ready"] == true);
        Ok(settled.then_some(status))
    })
    .await
}

/// Goal: a cluster goes on when all of its nodes have moved at once, also when each now listens where another did.
/// Method: `roost dev`, a message for somebody offline, then `roost dev` over the same data with every port one higher,
/// so that only introductions at `cluster.initial_nodes` tell who is where; the message comes, the cluster's record
/// follows, each node says what it understands; and the same again with ports that nobody had.
#[tokio::test]
async fn all_nodes_move_at_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data_dir = directory.path().join("dev");
    let token = data_dir.join("admin.token");
    // Room for a fourth node is room for all three, one higher.
    let first = free_base_port(4)?;
    let mut running = start(&data_dir, first, &["--shards", "4"]).await?;
    let cli = Cli::at(&urls(first), directory.path(), token.clone())?;
    for user in [ANN, BOB] {
        let add = ["account", "add", user, "--device", "phone"];
        cli.run(&add).await?.expect(cli::OK)?;
    }
    let mut epoch = wait_for_ports(&cli, [1, 2, 3].map(|k| first + k)).await?["epoch"].as_u64();
    running.kill().await?;
    nodes_are_gone(first).await?;

    for (round, base_port) in [first + 1, free_base_port(3)?].into_iter().enumerate() {
        let mut running = start(&data_dir, base_port, &[]).await?;
        let cli = Cli::at(&urls(base_port), directory.path(), token.clone())?;
        send_and_listen(&cli, &format!("round {round}")).await?;
        let status = wait_for_ports(&cli, [1, 2, 3].map(|k| base_port + k)).await?;
        ensure!(status["epoch"].as_u64() > epoch, "{status}");
        epoch = status["epoch"].as_u64();
        let version = &status["nodes"][0]["version"];
        ensure!(
            version["feature_level"] == 1 && version["feature_level_min"] == 1,
            "{status}"
        );
        running.kill().await?;
        nodes_are_gone(base_port).await?;
    }
    Ok(())
}

async fn send_and_listen(cli: &Cli, text: &str) -> Result<()> {
    cli.run(&["send", "--as", ANN, "--to", BOB, text])
        .await?
        .expect(cli::OK)?;
    let listen = ["listen", "--as", BOB, "--count", "1", "--json"];
    let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    ensure!(came[0]["body"] == text, "{came:?}");
    Ok(())
}

/// Goal: one node moves, and the others, whose settings name its old address, find it. Method: kill node 2, start it with
/// other ports; the record follows and its replicas have caught up, which they cannot unless their leaders reach it.
#[tokio::test]
async fn one_node_moves() -> Result<()> {
    let mut lab = Lab::start(Setup::nodes(3).shards(4).alone()).await?;
    let cli = Cli::new(&lab.cluster, lab.directory())?;
    lab.kill(2).await?;
    let elsewhere = free_base_port(2)? + 2;
    move_node(&mut lab, elsewhere);
    lab.cluster.node_mut(2).start()?;
    let home = |k: u16| lab.cluster.node(k).client_address().port();
    let mut ports = [home(1), elsewhere, home(3)];
    ports.sort_unstable();
    wait_for_ports(&cli.through(lab.cluster.node(1).client_url()), ports).await?;
    until(LIMIT, "node 2's replicas to follow", async || {
        let status = status(&cli.through(lab.cluster.node(3).client_url())).await?;
        let moved = format!("127.0.0.1:{elsewhere}");
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let id = nodes
            .iter()
            .find(|node| node["address"] == moved.as_str())
            .map(|node| node["id"].clone());
        let shards = status["shards"].as_array().cloned().unwrap_or_default();
        let replicas = shards
            .iter()
            .filter_map(|shard| shard["replicas"].as_array())
            .flatten();
        let mut moved = replicas.filter(|replica| Some(&replica["node"]) == id.as_ref());
        let follow =
            moved.all(|replica| replica["role"] != "unreachable" && replica["lag_entries"] == 0);
        Ok((id.is_some() && follow).then_some(()))
    })
    .await?;
    lab.pass().await
}

/// Its settings name its own new address, and the others' as they are.
fn move_node(lab: &mut Lab, client_port: u16) {
    let peer = format!("127.0.0.1:{}", client_port + 100);
    let others = [1, 3].map(|k| lab.cluster.node(k).peer_address());
    let toml = format!(
        "[listen]\nclient = \"127.0.0.1:{client_port}\"\npeer = \"{peer}\"\n\
         [cluster]\ninitial_nodes = [\"{}\", \"{peer}\", \"{}\"]\n",
        others[0], others[1]
    );
    lab.cluster.node_mut(2).overrides_mut().toml = toml;
}

/// Goal: a copied data directory never runs beside its original: it would vote twice. Method: copy a stopped node's
/// directory, start the original again, then the copy with ports of its own; the copy ends and says why.
#[tokio::test]
async fn a_copied_data_directory_refuses_to_start() -> Result<()> {
    let mut lab = Lab::start(Setup::nodes(3).shards(4).alone()).await?;
    lab.kill(2).await?;
    let copy = lab.directory().join("copy");
    copy_tree(&lab.cluster.node(2).data_dir(), &copy)?;
    let config = std::fs::read_to_string(lab.cluster.node(2).config_file())?;
    lab.restart(2).await?;
    let base = free_base_port(1)?;
    let node = lab.cluster.node(2);
    let ports = [
        (node.client_address(), base + 1),
        (node.peer_address(), base + 101),
        (node.http_address(), base + 201),
    ];
    let (from, to) = (node.data_dir(), copy.to_string_lossy().into_owned());
    let mut config = config.replace(&*from.to_string_lossy(), &to);
    for (original, port) in ports {
        config = config.replace(&original.to_string(), &format!("127.0.0.1:{port}"));
    }
    let file = lab.directory().join("copy.toml");
    std::fs::write(&file, config)?;
    let ended = refused(&file).await?;
    ensure!(ended.contains("copy of this data directory"), "{ended}");
    lab.pass().await
}

async fn refused(config: &Path) -> Result<String> {
    use roost_chaos_tests::lab::{binary, within};
    let mut node = tokio::process::Command::new(binary()?);
    node.arg("node")
        .arg("--config")
        .arg(config)
        .kill_on_drop(true);
    // An open standard input: nodes of a test end with it.
    node.stdin(std::process::Stdio::piped());
    node.stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped());
    let mut node = node.spawn()?;
    let _stdin = node.stdin.take();
    let output = within(LIMIT, "the end of the copy", node.wait_with_output()).await??;
    ensure!(!output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_tree(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
