//! The command line against one node: accounts, messages, ticks, exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::cli::{self, Cli};
use roost_chaos_tests::lab::{Lab, Setup};
use serde_json::{Value, json};

use crate::{ANN, BOB, LIMIT};

async fn stage() -> Result<(Lab, Cli)> {
    let lab = Lab::start(Setup::nodes(1)).await?;
    let cli = Cli::new(&lab.cluster, lab.directory())?;
    for user in [ANN, BOB] {
        cli.run(&["account", "add", user, "--device", "phone"])
            .await?
            .expect(cli::OK)?;
    }
    Ok((lab, cli))
}

fn column<'a>(lines: &'a [Value], name: &str) -> Vec<&'a Value> {
    lines.iter().map(|line| &line[name]).collect()
}

/// Goal: what is sent to somebody who is offline waits, and comes in order. Method: one message as an argument and four
/// from standard input under one `--id`, then `listen`; the second `listen` finds nothing left and runs out of time.
#[tokio::test]
async fn messages_wait_for_an_offline_recipient() -> Result<()> {
    let (lab, cli) = stage().await?;
    let sent = cli
        .run(&["send", "--as", ANN, "--to", BOB, "hello", "--json"])
        .await?
        .expect(cli::OK)?
        .json()?;
    ensure!(column(&sent, "status") == ["accepted"], "{sent:?}");
    ensure!(
        column(&sent, "to") == [BOB] && column(&sent, "seq") == [1],
        "{sent:?}"
    );

    let words = ["send", "--as", ANN, "--to", BOB, "--id", "x", "--json"];
    let piped = cli
        .run_with_input(&words, "one\ntwo\nthree\nfour\n".as_bytes())
        .await?
        .expect(cli::OK)?
        .json()?;
    ensure!(
        column(&piped, "id") == ["x-1", "x-2", "x-3", "x-4"],
        "{piped:?}"
    );
    ensure!(column(&piped, "seq") == [2, 3, 4, 5], "{piped:?}");

    let listen = ["listen", "--as", BOB, "--count", "5", "--json"];
    let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    let bodies = ["hello", "one", "two", "three", "four"];
    ensure!(column(&came, "body") == bodies, "{came:?}");
    ensure!(column(&came, "seq") == [1, 2, 3, 4, 5], "{came:?}");
    ensure!(column(&came, "from") == [ANN; 5], "{came:?}");
    ensure!(column(&came, "kind") == ["text"; 5], "{came:?}");
    ensure!(
        came[0]["sent_at_ms"].is_u64() && !came[0]["device"].is_null(),
        "{came:?}"
    );

    lab.wait_queued(BOB, 0).await?;
    let words = [
        "listen",
        "--as",
        BOB,
        "--count",
        "1",
        "--timeout",
        "1s",
        "--json",
    ];
    let nothing = cli.run(&words).await?.expect(cli::TIMED_OUT)?;
    ensure!(nothing.stdout.is_empty(), "{nothing:?}");
    lab.pass().await
}

/// Goal: `--no-ack` takes nothing away. Method: listen twice, and count what the queue holds.
#[tokio::test]
async fn listening_without_ack_leaves_everything() -> Result<()> {
    let (lab, cli) = stage().await?;
    cli.run(&["send", "--as", ANN, "--to", BOB, "hello"])
        .await?
        .expect(cli::OK)?;
    for _ in 0..2 {
        let words = ["listen", "--as", BOB, "--count", "1", "--no-ack", "--json"];
        let came = cli.run(&words).await?.expect(cli::OK)?.json()?;
        ensure!(column(&came, "body") == ["hello"], "{came:?}");
    }
    ensure!(lab.queued_entries(BOB).await? == 1, "the entry is gone");
    lab.pass().await
}

/// Goal: ticks turn, and waiting for them disturbs nothing. Method: Ann's phone listens for the whole test; beside it the
/// same phone sends and waits for *delivered*, then *read*; her listening session must live on and get, and print once,
/// what Bob answers. The same id again is answered from stored state, without a second entry.
#[tokio::test]
async fn ticks_beside_a_running_listen_of_the_same_device() -> Result<()> {
    let (lab, cli) = stage().await?;
    let mut anns = cli.start(&["listen", "--as", ANN, "--timeout", "60s", "--json"])?;
    let mut bobs = cli.start(&[
        "listen",
        "--as",
        BOB,
        "--read",
        "--timeout",
        "60s",
        "--json",
    ])?;
    let send = |until: &'static str| {
        let cli = cli.clone();
        async move {
            let words = [
                "send", "--as", ANN, "--to", BOB, "hello", "--id", "a", "--until", until, "--json",
            ];
            let lines = cli.run(&words).await?.expect(cli::OK)?.json()?;
            lines.into_iter().next().context("one line a message")
        }
    };
    let first = send("delivered").await?;
    ensure!(
        ["delivered", "read"]
            .map(Value::from)
            .contains(&first["status"]),
        "{first}"
    );
    let read = send("read").await?;
    ensure!(read["status"] == "read", "{read}");
    let again = send("delivered").await?;
    ensure!(
        again["status"] == "read" && again["seq"] == first["seq"],
        "{again} after {first}"
    );
    ensure!(bobs.json(LIMIT).await?["id"] == "a", "Bob's first entry");

    cli.run(&["send", "--as", BOB, "--to", ANN, "and you?"])
        .await?
        .expect(cli::OK)?;
    let answer = anns.json(LIMIT).await?;
    ensure!(answer["body"] == "and you?", "{answer}");
    cli.run(&["send", "--as", ANN, "--to", BOB, "bye", "--id", "b"])
        .await?
        .expect(cli::OK)?;
    let next = bobs.json(LIMIT).await?;
    ensure!(
        next["id"] == "b" && next["seq"] == 2,
        "a second entry of the same id: {next}"
    );
    ensure!(!anns.ended()?, "the listening session was displaced");
    anns.kill().await?;
    bobs.kill().await?;
    lab.pass().await
}

/// Goal: one bad line does not stop the others, and is reported in its place. Method: three lines, the middle one over
/// the limit of a body.
#[tokio::test]
async fn a_refused_line_does_not_stop_the_rest() -> Result<()> {
    let (lab, cli) = stage().await?;
    let input = format!("first\n{}\nlast\n", "x".repeat(64 * 1024 + 1));
    let words = ["send", "--as", ANN, "--to", BOB, "--id", "m", "--json"];
    let output = cli.run_with_input(&words, input.as_bytes()).await?;
    let lines = output.expect(cli::REFUSED)?.json()?;
    ensure!(column(&lines, "id") == ["m-1", "m-2", "m-3"], "{lines:?}");
    ensure!(
        column(&lines, "status") == ["accepted", "refused", "accepted"],
        "{lines:?}"
    );
    ensure!(
        lines[1]["code"] == "TOO_LARGE" && lines[1]["retryable"] == false,
        "{lines:?}"
    );
    let listen = ["listen", "--as", BOB, "--count", "2", "--json"];
    let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    ensure!(column(&came, "body") == ["first", "last"], "{came:?}");
    lab.pass().await
}

/// Goal: each exit code means what it says, with one clear line on standard error. Method: each way to fail once.
#[tokio::test]
async fn exit_codes() -> Result<()> {
    let (lab, cli) = stage().await?;
    let send = ["send", "--as", ANN, "--to", BOB, "hello", "--timeout", "3s"];

    let unknown = ["send", "--as", ANN, "--to", "+15559999", "hello", "--json"];
    let lines = cli.run(&unknown).await?.expect(cli::REFUSED)?.json()?;
    ensure!(
        lines[0]["status"] == "refused" && lines[0]["code"] == "NOT_FOUND",
        "{lines:?}"
    );

    let stranger = ["send", "--as", "+15558888", "--to", BOB, "hello"];
    cli.run(&stranger).await?.expect(cli::CREDENTIALS)?;

    let nowhere = cli.through("http://127.0.0.1:9");
    one_clear_line(&nowhere.run(&send).await?.expect(cli::UNAVAILABLE)?)?;

    cli.run(&["send", "--as", ANN]).await?.expect(cli::USAGE)?;
    cli.run(&["send", "--no-such-flag"])
        .await?
        .expect(cli::USAGE)?;

    let add = ["account", "add", "+15550009", "--device", "phone"];
    let no_token = cli.token(None);
    one_clear_line(&no_token.run(&add).await?.expect(cli::CREDENTIALS)?)?;
    let wrong_token = lab.directory().join("wrong.token");
    fs::write(&wrong_token, "not the token")?;
    let wrong_token = cli.token(Some(wrong_token));
    wrong_token.run(&add).await?.expect(cli::CREDENTIALS)?;

    give_wrong_key(&cli)?;
    one_clear_line(&cli.run(&send).await?.expect(cli::CREDENTIALS)?)?;
    ensure!(
        lab.queued_entries(BOB).await? == 0,
        "a refused send left an entry"
    );
    lab.pass().await
}

fn one_clear_line(output: &cli::Output) -> Result<()> {
    ensure!(
        output.stderr.trim().lines().count() == 1,
        "not one line: {}",
        output.stderr
    );
    Ok(())
}

/// Ann's key, with its first byte changed.
fn give_wrong_key(cli: &Cli) -> Result<()> {
    let file = cli.credentials_file(ANN, "phone");
    let mut credentials: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let key = credentials["key"].as_str().context("the key is text")?;
    let first = if key.starts_with('A') { "B" } else { "A" };
    credentials["key"] = json!(format!("{first}{}", &key[1..]));
    fs::write(&file, serde_json::to_vec(&credentials)?)?;
    Ok(())
}

/// Goal: accounts come, are listed, and go; secrets are for their owner only. Method: modes of the files, `list` before
/// and after `remove`, and a message to the removed account.
#[tokio::test]
async fn accounts_come_and_go() -> Result<()> {
    let (lab, cli) = stage().await?;
    for file in [
        cli.credentials_file(ANN, "phone"),
        lab.cluster.node(1).admin_token_file(),
    ] {
        let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{} has mode {mode:o}", file.display());
    }
    cli.run(&["account", "add", ANN, "--device", "laptop"])
        .await?
        .expect(cli::OK)?;
    let listed = cli.run(&["account", "list"]).await?.expect(cli::OK)?.stdout;
    for word in [ANN, BOB, "phone", "laptop"] {
        ensure!(listed.contains(word), "{word} is not in {listed}");
    }
    // Two devices, and none named: which one is meant?
    let ambiguous = cli.run(&["send", "--as", ANN, "--to", BOB, "x"]).await?;
    ensure!(ambiguous.code != cli::OK, "{ambiguous:?}");
    let laptop = format!("{ANN}/laptop");
    cli.run(&["send", "--as", &laptop, "--to", BOB, "x"])
        .await?
        .expect(cli::OK)?;

    cli.run(&["account", "remove", BOB])
        .await?
        .expect(cli::OK)?;
    let listed = cli.run(&["account", "list"]).await?.expect(cli::OK)?.stdout;
    ensure!(!listed.contains(BOB), "{BOB} is still in {listed}");
    let gone = ["send", "--as", &laptop, "--to", BOB, "x", "--json"];
    let lines = cli.run(&gone).await?.expect(cli::REFUSED)?.json()?;
    ensure!(lines[0]["code"] == "NOT_FOUND", "{lines:?}");
    lab.pass().await
}

/// Goal: `status --json` has the promised shape. Method: the fields that scripts read, on one node.
#[tokio::test]
async fn status_for_scripts() -> Result<()> {
    let (lab, cli) = stage().await?;
    cli.run(&["send", "--as", ANN, "--to", BOB, "hello"])
        .await?
        .expect(cli::OK)?;
    let output = cli.run(&["status", "--json"]).await?.expect(cli::OK)?;
    let status: Value = serde_json::from_str(&output.stdout).context("one JSON object")?;
    ensure!(
        status["cluster_id"].is_string() && status["epoch"].is_u64(),
        "{status}"
    );
    let node = &status["nodes"][0];
    ensure!(
        node["name"] == "node-1" && node["ready"] == true,
        "{status}"
    );
    ensure!(
        node["id"].is_string() && node["address"].is_string(),
        "{status}"
    );
    let shard = &status["shards"][0];
    ensure!(
        shard["leader"] == node["id"] && shard["term"].is_u64(),
        "{status}"
    );
    let replica = &shard["replicas"][0];
    ensure!(
        replica["role"] == "leader" && replica["lag_entries"] == 0,
        "{status}"
    );
    ensure!(
        status["queues"]["entries"] == 1 && status["queues"]["bytes"].is_u64(),
        "{status}"
    );
    ensure!(status["queues"]["oldest_ms"].is_u64(), "{status}");

    let version = cli.run(&["--version"]).await?.expect(cli::OK)?.stdout;
    ensure!(version.starts_with("roost "), "{version}");
    lab.pass().await
}
