//! `roost chat`: lines go to one person, everything that comes is shown, ticks tell how far the own lines have come.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use roost_client::{
    Answer, AttachOptions, Client, Error, Event, Incoming, Kind, SendHandle, SendOptions, Status,
};
use tokio::time::timeout;

use super::exit::{Exit, Failure};
use super::format::printable;
use super::input::{self, Line};
use super::server::{ServerArgs, Who, parse_user};
use super::signals::Stop;
use crate::types::UserId;

/// Own lines that are followed beyond their first tick; more than these go the rest of their way unseen.
const TICKING_MAX: usize = 256;
/// How long the last answers and read marks may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Type a line and press Enter; /quit, the end of input or Ctrl-C leave. Ticks: ✓ accepted, ✓✓ delivered, ✓✓ read.
What is shown, from whomever, is acknowledged and marked as read. Leaving waits some seconds for that, and for lines
without a tick: exit code 4 or 69 if that is not enough.")]
pub(super) struct Args {
    /// Who talks; the device may be left out if there is only one.
    #[arg(long = "as", value_name = "PHONE[/DEVICE]")]
    user: Who,
    /// With whom.
    #[arg(value_name = "PHONE", value_parser = parse_user)]
    peer: UserId,
}

/// The number of an own line, and how far it has come.
type Tick = (usize, Result<Answer, Error>);

pub(super) async fn run(args: Args, server: &ServerArgs) -> Result<Exit, Failure> {
    let mut stop = Stop::listen()?;
    let options = server.client(&args.user)?;
    let client = Client::connect(options.attach(AttachOptions::default()).watch())?;
    let (mut entries, mut events) = (client.entries(), client.events());
    let mut lines = input::lines();
    let (mut answers, mut ticks) = (FuturesUnordered::new(), FuturesUnordered::new());
    let mut reads = FuturesUnordered::new();
    let (mut number, mut unsent) = (0, 0);
    show(&format!("Talking to {}. /quit leaves.", args.peer))?;
    loop {
        tokio::select! {
            () = stop.wait() => break,
            line = lines.recv() => match line {
                Some(Ok(Line::Whole(line))) => {
                    let Some(body) = body(line) else { break };
                    if body.is_empty() {
                        continue;
                    }
                    number += 1;
                    let send = client.send(args.peer.as_str(), body, SendOptions::default().kind(Kind::Text));
                    let handle = tokio::select! {
                        handle = send => handle?,
                        // Too much is unanswered, and may stay so.
                        () = stop.wait() => {
                            unsent = 1;
                            break;
                        }
                    };
                    show(&format!("  #{number}"))?;
                    answers.push(answer(number, handle));
                }
                Some(Ok(Line::TooLong)) => show("  that line is too long")?,
                Some(Err(error)) => return Err(Failure::internal(format!("cannot read standard input: {error}"))),
                None => break,
            },
            Some(incoming) = entries.next() => {
                show(&incoming_line(&incoming))?;
                client.ack(incoming.cursor());
                if let Incoming::Delivery(delivery) = incoming {
                    reads.push(client.mark_read(delivery.envelope.from.clone(), delivery.cursor()));
                }
            }
            Some(tick) = answers.next(), if !answers.is_empty() => {
                if let Some(next) = show_tick(tick)?
                    && ticks.len() < TICKING_MAX
                {
                    let (number, answer, status) = next;
                    ticks.push(self::tick(&client, number, answer, status));
                }
            }
            Some(tick) = ticks.next(), if !ticks.is_empty() => {
                if let Some(next) = show_tick(tick)? {
                    let (number, answer, status) = next;
                    ticks.push(self::tick(&client, number, answer, status));
                }
            }
            // A read mark that was refused is the peer's loss of a tick, not ours.
            Some(_) = reads.next(), if !reads.is_empty() => {}
            Some(Ok(event)) = events.next() => match event {
                Event::Disconnected { reason } => show(&format!("  (no connection: {reason})"))?,
                Event::Connected { node } => show(&format!("  (connected to {node})"))?,
                _ => {}
            },
            error = client.ended() => return Err(error.into()),
        }
    }
    drop(ticks);
    let flushed = timeout(FLUSH_TIMEOUT, flush(&client, &mut answers, &mut reads)).await;
    let (unanswered, unread) = (answers.len() + unsent, reads.len());
    let trouble = client.trouble();
    drop(reads);
    client.close().await;
    if let Ok(flushed) = flushed {
        flushed?;
    }
    let what = match (unanswered, unread) {
        (0, 0) => return Ok(Exit::Done),
        (0, unread) => format!("{unread} messages shown, and perhaps not marked as read"),
        (unanswered, _) => format!("{unanswered} of {number} lines unanswered, perhaps not sent"),
    };
    Err(Failure::timed_out(&what, trouble.as_ref()))
}

/// Shows the first ticks that are still to come, and waits until what was shown is marked as read.
async fn flush(
    client: &Client,
    answers: &mut FuturesUnordered<impl Future<Output = Tick>>,
    reads: &mut FuturesUnordered<impl Future>,
) -> Result<(), Failure> {
    while !(answers.is_empty() && reads.is_empty()) {
        tokio::select! {
            biased;
            error = client.ended() => return Err(error.into()),
            Some(tick) = answers.next(), if !answers.is_empty() => {
                show_tick(tick)?;
            }
            Some(_) = reads.next(), if !reads.is_empty() => {}
        }
    }
    Ok(())
}

async fn answer(number: usize, handle: SendHandle) -> Tick {
    (number, handle.await)
}

async fn tick(client: &Client, number: usize, answer: Answer, status: Status) -> Tick {
    (number, client.wait_status(&answer, status).await)
}

/// Shows it, and returns what to wait for next.
fn show_tick((number, result): Tick) -> std::io::Result<Option<(usize, Answer, Status)>> {
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => {
            show(&format!("  #{number} ? {error}"))?;
            return Ok(None);
        }
    };
    let (mark, next) = match answer.status {
        Status::Accepted => ("✓".to_owned(), Some(Status::Delivered)),
        Status::Delivered => ("✓✓".to_owned(), Some(Status::Read)),
        Status::Read => ("✓✓ read".to_owned(), None),
        Status::Expired => ("expired".to_owned(), None),
        Status::Refused | Status::Unspecified => {
            let why = answer.error.as_ref().map(ToString::to_string);
            (format!("refused: {}", why.unwrap_or_default()), None)
        }
    };
    show(&format!("  #{number} {mark}"))?;
    Ok(next.map(|status| (number, answer, status)))
}

fn incoming_line(incoming: &Incoming) -> String {
    match incoming {
        Incoming::Delivery(delivery) => {
            let envelope = &delivery.envelope;
            let body = String::from_utf8_lossy(&envelope.body);
            format!("{}: {}", printable(&envelope.from), printable(&body))
        }
        Incoming::Skipped { first, last, .. } => format!("  (expired: {first} to {last})"),
        Incoming::Missing { first, last, .. } => {
            format!("  (shown by another session: {first} to {last})")
        }
    }
}

/// `None` to leave.
fn body(line: Vec<u8>) -> Option<Bytes> {
    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
    (line != "/quit").then(|| line.into())
}

fn show(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        // To the start of the line, and what was there is wiped.
        write!(out, "\r\x1b[K")?;
    }
    writeln!(out, "{line}")?;
    out.flush()
}
