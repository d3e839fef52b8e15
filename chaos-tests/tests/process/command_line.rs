//! The command line against one node: accounts, messages, ticks, exit codes.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::cli::{self, Cli};
use roost_chaos_tests::lab::{Lab, Setup, until};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::{ANN, BOB, LIMIT};

pub(crate) async fn stage() -> Result<(Lab, Cli)> {
    let lab = Lab::start(Setup::nodes(1)).await?;
    let cli = Cli::new(&lab.cluster, lab.directory())?;
    for user in [ANN, BOB] {
        cli.run(&["account", "add", user, "--device", "phone"])
            .await?
            .expect(cli::OK)?;
    }
    Ok((lab, cli))
}

pub(crate) fn column<'a>(lines: &'a [Value], name: &str) -> Vec<&'a Value> {
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

    one_clear_line(&cli.run(&["send", "--as", ANN]).await?.expect(cli::USAGE)?)?;
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

pub(crate) fn one_clear_line(output: &cli::Output) -> Result<()> {
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

/// Goal: an interrupted `account add` leaves no device that nobody can speak for. Method: the node's answers are lost on
/// their way: once the command is killed -9 after the device was made, then the same command again finishes it; once the
/// connection breaks instead, and the command finishes by itself on another.
#[tokio::test]
async fn account_add_survives_a_kill_and_a_lost_answer() -> Result<()> {
    let lab = Lab::start(Setup::nodes(1)).await?;
    let cli = Cli::new(&lab.cluster, lab.directory())?;
    let node = lab.cluster.node(1);

    let deaf = Deaf::before(node.client_address()).await?;
    let add = ["account", "add", ANN, "--device", "phone"];
    let killed = cli.through(deaf.url()).start(&add)?;
    wait_devices(&lab, ANN, 1).await?;
    killed.kill().await?;
    ensure!(
        !cli.credentials_file(ANN, "phone").exists(),
        "it got an answer"
    );
    cli.run(&add).await?.expect(cli::OK)?;

    let add = ["account", "add", BOB, "--device", "phone"];
    let cut = cli.through(deaf.url()).start(&add)?;
    wait_devices(&lab, BOB, 1).await?;
    deaf.cut();
    cut.finish(LIMIT).await?;

    for user in [ANN, BOB] {
        ensure!(devices(&lab, user).await? == 1, "{user} has another device");
        let send = ["send", "--as", user, "--to", user, "mine"];
        cli.run(&send).await?.expect(cli::OK)?;
        let left = fs::read_dir(cli.credentials().join(user))?.count();
        ensure!(left == 1, "{left} files are left for {user}");
    }
    // Finished is finished: a repeat says so, and changes nothing.
    one_clear_line(&cli.run(&add).await?.expect(cli::USAGE)?)?;

    // Removed, also again; then the name is free, under another key.
    let remove = ["account", "remove", BOB, "--device", "phone"];
    let key = fs::read(cli.credentials_file(BOB, "phone"))?;
    for _ in 0..2 {
        cli.run(&remove).await?.expect(cli::OK)?;
    }
    cli.run(&add).await?.expect(cli::OK)?;
    ensure!(
        fs::read(cli.credentials_file(BOB, "phone"))? != key,
        "the removed device is back"
    );
    lab.pass().await
}

async fn devices(lab: &Lab, user: &str) -> Result<usize> {
    let mut devices = 0;
    lab.admin()?
        .list_accounts(|account| {
            if account.user == user {
                devices = account.devices.len();
            }
        })
        .await?;
    Ok(devices)
}

async fn wait_devices(lab: &Lab, user: &str, wanted: usize) -> Result<()> {
    until(LIMIT, "a new device", async || {
        Ok((devices(lab, user).await? == wanted).then_some(()))
    })
    .await
}

/// Takes what it is told to a node, and brings no answer back; once cut, it brings them on new connections.
struct Deaf {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Deaf {
    async fn before(node: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, node, is_cut.clone()));
            }
        });
        Ok(Self { address, cut })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All connections break.
    fn cut(&self) {
        self.cut.send_replace(true);
    }
}

async fn carry(
    mut client: TcpStream,
    node: SocketAddr,
    mut is_cut: watch::Receiver<bool>,
) -> Result<()> {
    let mut node = TcpStream::connect(node).await?;
    if *is_cut.borrow() {
        tokio::io::copy_bidirectional(&mut client, &mut node).await?;
        return Ok(());
    }
    let (mut answers, mut questions) = node.split();
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        _ = tokio::io::copy(&mut client, &mut questions) => {}
        _ = tokio::io::copy(&mut answers, &mut nowhere) => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
    Ok(())
}

/// Goal: every line is one message, whatever is in it, and the others are not disturbed. Method: lines that are empty, end
/// with a carriage return, are no UTF-8, are too long for the server and for the reader, and a last one without its end.
#[tokio::test]
async fn every_line_is_a_message() -> Result<()> {
    let (lab, cli) = stage().await?;
    let long = [b"x".repeat(64 * 1024 + 1), b"y".repeat((4 << 20) + 1)];
    let lines: [&[u8]; 6] = [
        b"",
        b"dos\r",
        b"\xff\xfe",
        &long[0],
        &long[1],
        "last, hé".as_bytes(),
    ];
    let words = ["send", "--as", ANN, "--to", BOB, "--id", "w", "--json"];
    let output = cli.run_with_input(&words, &lines.join(&b'\n')).await?;
    let sent = output.expect(cli::REFUSED)?.json()?;
    let (ok, no) = ("accepted", "refused");
    ensure!(
        column(&sent, "status") == [ok, ok, ok, no, no, ok],
        "{sent:?}"
    );
    ensure!(
        sent[3..5]
            .iter()
            .all(|line| line["code"] == "TOO_LARGE" && line["retryable"] == false),
        "{sent:?}"
    );
    let keys = |line: &Value| -> Vec<String> {
        line.as_object()
            .into_iter()
            .flat_map(|fields| fields.keys().cloned())
            .collect()
    };
    let fields = ["code", "id", "retryable", "seq", "status", "to"];
    ensure!(sent.iter().all(|line| keys(line) == fields), "{sent:?}");

    let listen = ["listen", "--as", BOB, "--count", "4", "--json"];
    let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    ensure!(
        came[0]["body"] == "" && came[1]["body"] == "dos\r",
        "{came:?}"
    );
    ensure!(
        came[2]["kind"] == "data" && came[2]["body_base64"] == "//4=" && came[2]["body"].is_null(),
        "{came:?}"
    );
    ensure!(came[3]["body"] == "last, hé", "{came:?}");
    let fields = ["body", "device", "from", "id", "kind", "sent_at_ms", "seq"];
    ensure!(keys(&came[3]) == fields, "{came:?}");
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
    for word in ["commit", "feature level", "wire format", "storage format"] {
        ensure!(version.contains(word), "no {word} in {version}");
    }
    let completions = cli.run(&["completions", "bash"]).await?.expect(cli::OK)?;
    ensure!(completions.stdout.contains("complete "), "{completions:?}");
    lab.pass().await
}
