//! The examples and the list of codes in `docs`, held against a node and the schema.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup, within};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{ANN, BOB, LIMIT};

const INSTALL_LIMIT: Duration = Duration::from_secs(180);
const PACKAGES: [&str; 3] = ["grpcio", "grpcio-tools", "grpcio-reflection"];
/// In the schema, before each code.
const CODES: &str = "enum Code {";

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Goal: what the protocol's documentation shows works. Method: the Python example sends two messages and receives them
/// on the other side; the second, which needs no stubs, does each of the calls that the documentation shows.
#[tokio::test]
async fn the_python_examples_send_listen_and_call() -> Result<()> {
    let python = Python::prepare().await?;
    let lab = Lab::start(Setup::nodes(1)).await?;
    let server = lab.cluster.node(1).client_address().to_string();
    let mut files = Vec::new();
    for user in [ANN, BOB] {
        files.push(lab.add_device(user, "phone").await?.save(lab.directory())?);
    }
    let [ann, bob] = &files[..] else {
        anyhow::bail!("two files were saved");
    };

    let send = ["--to", BOB, "--id", "m", "Good morning", "How are you?"];
    let sent = python.example(&server, ann, &send).await?;
    let accepted = |id, seq| json!({"accepted": id, "seq": seq});
    ensure!(sent == [accepted("m-1", 1), accepted("m-2", 2)], "{sent:?}");
    let came = python.example(&server, bob, &["--count", "2"]).await?;
    let entry = |seq, id, body| json!({"seq": seq, "id": id, "from": ANN, "body": body});
    let wanted = [
        entry(1, "m-1", "Good morning"),
        entry(2, "m-2", "How are you?"),
    ];
    ensure!(came == wanted, "{came:?}");
    lab.wait_queued(BOB, 0).await?;

    let listed = python.run("docs/examples/call.py", &[&server]).await?;
    ensure!(listed.contains("roost.v1.Messaging/Session"), "{listed}");
    let health = [&server, "grpc.health.v1.Health/Check"];
    let health = python.run("docs/examples/call.py", &health).await?;
    ensure!(health.contains("SERVING"), "{health}");
    let header = format!("authorization: Bearer {}", lab.cluster.admin_token()?);
    let status = [&server, "roost.admin.v1.Admin/Status", "{}", "-H", &header];
    let status = python.run("docs/examples/call.py", &status).await?;
    ensure!(status.contains("cluster_id"), "{status}");
    let session = session_by_hand(ann)?;
    let session = [
        &server,
        "roost.v1.Messaging/Session",
        &session[0],
        &session[1],
    ];
    let session = python.run("docs/examples/call.py", &session).await?;
    ensure!(
        session.contains("welcome") && session.contains("STATUS_ACCEPTED"),
        "{session}"
    );
    lab.wait_queued(BOB, 1).await?;
    lab.pass().await
}

/// The frames of a session that sends one message, as JSON.
fn session_by_hand(credentials: &Path) -> Result<[String; 2]> {
    let credentials: Value = serde_json::from_slice(&fs::read(credentials)?)?;
    let hello = json!({
        "user": credentials["user"], "device": credentials["device"], "key": credentials["key"],
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let send = json!({
        "id": "try-1", "to": BOB, "chain": 7, "position": 1, "kind": "KIND_TEXT", "body": "aGVsbG8=",
        "sent_at_ms": u64::try_from(now)?,
    });
    Ok([
        json!({ "hello": hello }).to_string(),
        json!({ "send": send }).to_string(),
    ])
}

/// Goal: every code that a client can meet is documented with its number and whether to retry, and nothing else. Method:
/// the enum in the schema against the first three cells of the table in `docs/PROTOCOL.md`; the number says the class.
#[test]
fn the_table_of_codes_is_the_schemas_enum() -> Result<()> {
    let schema = fs::read_to_string(project().join("proto/proto/roost/v1/messaging.proto"))?;
    let (_, codes) = schema
        .split_once(CODES)
        .context("there is no enum of codes")?;
    let (codes, _) = codes.split_once('}').context("the enum has no end")?;
    let codes = codes.lines().filter_map(|line| {
        let (name, number) = line.trim().strip_suffix(';')?.split_once(" = ")?;
        let class = match number.parse().ok()? {
            0u32 => "-",
            1..=31 => "final",
            32..=63 => "retryable",
            _ => "see `retryable`",
        };
        Some([format!("`{name}`"), number.to_owned(), class.to_owned()])
    });
    let codes: BTreeSet<[String; 3]> = codes.collect();
    ensure!(codes.len() > 10, "only {codes:?} were found");
    let text = fs::read_to_string(project().join("docs/PROTOCOL.md"))?;
    let (_, table) = text
        .split_once("| code | number |")
        .context("there is no table of codes")?;
    let (table, _) = table.split_once("\n\n").context("the table has no end")?;
    let rows = table.lines().skip(2).filter_map(|row| {
        let mut cells = row.split('|').skip(1).map(|cell| cell.trim().to_owned());
        Some([cells.next()?, cells.next()?, cells.next()?])
    });
    let rows: BTreeSet<[String; 3]> = rows.collect();
    let differing: Vec<&[String; 3]> = codes.symmetric_difference(&rows).collect();
    ensure!(
        differing.is_empty(),
        "the schema and docs/PROTOCOL.md differ in {differing:?}"
    );
    Ok(())
}

/// A Python with the packages that the examples name, and the stubs that they have one generate.
struct Python {
    binary: PathBuf,
    stubs: PathBuf,
}

impl Python {
    /// Made once, and kept beside the build.
    async fn prepare() -> Result<Self> {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
        let python = Self {
            binary: home.join("bin/python"),
            stubs: home.join("stubs"),
        };
        let imports = ["-c", "import grpc_tools, grpc_reflection"];
        if run(Command::new(&python.binary).args(imports))
            .await
            .is_err()
        {
            run(Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&home))
            .await
            .context("this test needs python3 with venv: apt-get install python3-venv")?;
            let install = ["-m", "pip", "install", "-q", "--disable-pip-version-check"];
            run(Command::new(&python.binary).args(install).args(PACKAGES))
                .await
                .context("this test needs a package registry that pip can reach")?;
        }
        fs::create_dir_all(&python.stubs)?;
        let protoc = ["-m", "grpc_tools.protoc", "-I", "proto/proto"];
        run(Command::new(&python.binary)
            .args(protoc)
            .arg(format!("--python_out={}", python.stubs.display()))
            .arg(format!("--grpc_python_out={}", python.stubs.display()))
            .arg("proto/proto/roost/v1/messaging.proto"))
        .await?;
        Ok(python)
    }

    async fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command
            .env("PYTHONPATH", &self.stubs)
            .arg(program)
            .args(words);
        run(&mut command).await
    }

    /// What the first example prints, line by line.
    async fn example(
        &self,
        server: &str,
        credentials: &Path,
        words: &[&str],
    ) -> Result<Vec<Value>> {
        let credentials = credentials.to_str().context("the path is text")?;
        let begin = ["--server", server, "--credentials", credentials];
        let words = [&begin, words].concat();
        let printed = self.run("docs/examples/send_and_listen.py", &words).await?;
        let lines = printed.lines().map(serde_json::from_str);
        Ok(lines.collect::<serde_json::Result<_>>()?)
    }
}

/// Standard output of a command run in the project's directory; an error with all that it said when it does not succeed.
async fn run(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    command
        .current_dir(project())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = within(INSTALL_LIMIT.max(LIMIT), &what, command.output()).await?;
    let output = output.with_context(|| what.clone())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    ensure!(
        output.status.success(),
        "{what} ended with {}: {out}{errors}",
        output.status
    );
    Ok(out)
}
