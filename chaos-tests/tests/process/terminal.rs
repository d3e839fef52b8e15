//! The command line as people use it at a terminal: a look at what waits, and a conversation.

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::cli::{self, Cli};
use roost_chaos_tests::lab::until;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::command_line::{column, one_clear_line, stage};
use crate::{ANN, BOB, LIMIT};

/// How many entries wait in the whole cluster, by `status --json`.
async fn waiting(cli: &Cli) -> Result<u64> {
    let output = cli.run(&["status", "--json"]).await?.expect(cli::OK)?;
    let status: Value = serde_json::from_str(&output.stdout)?;
    let entries = status["queues"]["entries"].as_u64();
    entries.with_context(|| format!("no number of entries in {status}"))
}

/// Goal: `--no-ack` takes nothing away, and what it left is there for whoever listens without it. Method: three messages;
/// a look with `--count` and one until Ctrl-C show the same entries and leave them; then a plain `listen` gets them once
/// more, and nothing waits any longer.
#[tokio::test]
async fn listening_without_ack_leaves_everything() -> Result<()> {
    let (lab, cli) = stage().await?;
    let send = ["send", "--as", ANN, "--to", BOB];
    cli.run_with_input(&send, b"one\ntwo\nthree\n")
        .await?
        .expect(cli::OK)?;
    let look = ["listen", "--as", BOB, "--no-ack", "--json", "--count", "3"];
    let first = cli.run(&look).await?.expect(cli::OK)?.json()?;
    ensure!(
        column(&first, "body") == ["one", "two", "three"],
        "{first:?}"
    );

    let mut looking = cli.start(&["listen", "--as", BOB, "--no-ack", "--json"])?;
    let mut second = Vec::new();
    for _ in &first {
        second.push(looking.json(LIMIT).await?);
    }
    looking.interrupt()?;
    looking.finish(LIMIT).await?;
    ensure!(second == first, "{second:?} after {first:?}");
    ensure!(lab.queued_entries(BOB).await? == 3, "an entry is gone");
    let entries = waiting(&cli).await?;
    ensure!(entries == 3, "{entries} entries in the status");

    let listen = ["listen", "--as", BOB, "--json", "--count", "3"];
    let third = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    ensure!(third == first, "{third:?} after {first:?}");
    lab.wait_queued(BOB, 0).await?;
    until(LIMIT, "a status without entries", async || {
        Ok((waiting(&cli).await? == 0).then_some(()))
    })
    .await?;
    lab.pass().await
}

/// Goal: in a conversation what is typed arrives and its ticks turn, what comes is shown, and Ctrl-C ends it well at any
/// moment: what was shown is acknowledged and its sender told that it is read. Method: two lines of Ann's to Bob, who is
/// away, then listens, then marks as read; a line of Bob's, whose `send` waits for *read*, and SIGINT to Ann's `chat` as
/// soon as it is shown.
#[tokio::test]
async fn a_conversation_until_ctrl_c() -> Result<()> {
    let (lab, cli) = stage().await?;
    let (mut keys, mut chat) = cli.start_with_input(&["chat", "--as", ANN, BOB])?;
    keys.write_all(b"are you there?\n").await?;
    chat.shows("  #1 ✓", LIMIT).await?;
    let listen = ["listen", "--as", BOB, "--count", "1", "--json"];
    let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    ensure!(
        came[0]["body"] == "are you there?" && came[0]["from"] == ANN,
        "{came:?}"
    );
    chat.shows("  #1 ✓✓", LIMIT).await?;
    keys.write_all(b"hello?\n").await?;
    chat.shows("  #2 ✓", LIMIT).await?;
    let read = ["listen", "--as", BOB, "--count", "1", "--json", "--read"];
    let came = cli.run(&read).await?.expect(cli::OK)?.json()?;
    ensure!(came[0]["body"] == "hello?", "{came:?}");
    chat.shows("  #2 ✓✓ read", LIMIT).await?;

    let mut bobs = cli.start(&[
        "send",
        "--as",
        BOB,
        "--to",
        ANN,
        "yes",
        "--until",
        "read",
        "--timeout",
        "60s",
        "--json",
    ])?;
    chat.shows(&format!("{BOB}: yes"), LIMIT).await?;
    chat.interrupt()?;
    chat.finish(LIMIT).await?;
    // Not the end of its input has ended it.
    drop(keys);
    let told = bobs.json(LIMIT).await?;
    ensure!(told["status"] == "read", "{told}");
    bobs.finish(LIMIT).await?;
    lab.wait_queued(ANN, 0).await?;
    lab.pass().await
}

/// Goal: a line that was typed before leaving is sent, or its loss is told. Method: lines from a pipe, up to its end and
/// up to `/quit`, all of which Bob gets, and none behind it; then a line without any server, which has its exit code.
#[tokio::test]
async fn a_conversation_leaves_no_line_behind() -> Result<()> {
    let (lab, cli) = stage().await?;
    let chat = ["chat", "--as", ANN, BOB];
    for lines in ["one\ntwo\n", "three\nfour\n/quit\nunsaid\n"] {
        let output = cli.run_with_input(&chat, lines.as_bytes()).await?;
        let shown = output.expect(cli::OK)?.stdout;
        for tick in ["  #1 ✓", "  #2 ✓"] {
            ensure!(
                shown.lines().any(|line| line == tick),
                "no {tick:?} in {shown}"
            );
        }
    }
    let listen = ["listen", "--as", BOB, "--count", "4", "--json"];
    let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    ensure!(
        column(&came, "body") == ["one", "two", "three", "four"],
        "{came:?}"
    );
    lab.wait_queued(BOB, 0).await?;

    let nowhere = cli.through("http://127.0.0.1:9");
    let lost = nowhere.run_with_input(&chat, b"five\n").await?;
    one_clear_line(&lost.expect(cli::UNAVAILABLE)?)?;
    lab.pass().await
}
