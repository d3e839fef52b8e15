//! `roost send`: one message, or one per line of standard input, pipelined; results in the order of the input.
//!
//! At most a fixed number of messages is in progress, so memory is bounded whatever the input; a line waits for room. A
//! refused line does not stop the rest. After the first message that runs out of time no more lines are read.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt as _};
use roost_client::{Client, Code, Error, Kind, SendOptions, Status, Trouble};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::exit::{Exit, Failure};
use super::format::{Sent, TIMED_OUT};
use super::input::{self, Line};
use super::server::{ServerArgs, Who, parse_duration, parse_user};
use crate::types::{UserId, check_message_id};

/// How long it may take to learn why there is no answer: a server gives up on a shard without a majority after as long as
/// we wait by default.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages handed to the client whose result is not printed.
const IN_PROGRESS_MAX: usize = 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without TEXT each line of standard input is one message: all bytes before the newline, a carriage return too. What is no
UTF-8 goes as data. An empty line is an empty message. After the first message that runs out of time no more are read.")]
pub(super) struct Args {
    /// Who sends; the device may be left out if there is only one.
    #[arg(long = "as", value_name = "PHONE[/DEVICE]")]
    sender: Who,
    /// The recipient.
    #[arg(long, value_name = "PHONE", value_parser = parse_user)]
    to: UserId,
    /// The message; without it each line of standard input is one.
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// The message's id, 1 to 64 bytes: sent again under the same id it stays one message, and gets the same answer.
    /// Lines get ID-1, ID-2 and so on.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Time to live, for example 30d [default: the server's].
    #[arg(long, value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// What to wait for.
    #[arg(long, value_enum, default_value_t = Until::Accepted)]
    until: Until,
    /// How long to wait for each message, from when it was read.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,
    /// One JSON object per message: id, to, status, seq, code, retryable.
    #[arg(long)]
    json: bool,
}

/// How far a message has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Until {
    /// Fsynced on a majority of the recipient's shard.
    Accepted,
    /// Acknowledged by one of the recipient's devices.
    Delivered,
    /// Marked read by the recipient.
    Read,
}

impl Until {
    fn status(self) -> Status {
        match self {
            Self::Accepted => Status::Accepted,
            Self::Delivered => Status::Delivered,
            Self::Read => Status::Read,
        }
    }
}

/// What became of one message.
struct Outcome {
    sent: Sent,
    end: End,
}

enum End {
    Reached,
    Refused,
    TimedOut(Option<Trouble>),
    /// The session is over, and so is the run.
    Over(Error),
}

/// What became of all.
#[derive(Default)]
struct Tally {
    printed: usize,
    refused: usize,
    timed_out: usize,
    /// Of those, some without any answer.
    unanswered: bool,
    trouble: Option<Trouble>,
    over: Option<Failure>,
}

pub(super) async fn run(args: Args, server: &ServerArgs) -> Result<Exit, Failure> {
    if args.id.is_some() {
        check_message_id(&id(&args, 1))
            .map_err(|error| Failure::usage(format!("--id: {error}")))?;
    }
    let mut options = server.client(&args.sender)?;
    // A watch sees receipts, displaces no listener and takes nothing from the queue.
    options.watch = args.until != Until::Accepted;
    // All are of one conversation.
    options.pending_max = IN_PROGRESS_MAX;
    options.conversation_pending_max = IN_PROGRESS_MAX;
    let client = Client::connect(options)?;
    let mut tally = pipeline(&client, &args, source(&args)).await?;
    if tally.unanswered && tally.trouble.is_none() {
        let reason = timeout(REASON_TIMEOUT, client.troubled()).await;
        tally.trouble = reason.unwrap_or_default();
    }
    client.close().await;
    tally.finish(&args)
}

/// The text as the only line, or standard input.
fn source(args: &Args) -> mpsc::Receiver<std::io::Result<Line>> {
    let Some(text) = &args.text else {
        return input::lines();
    };
    let (sender, lines) = mpsc::channel(1);
    // There is room for the one.
    let _ = sender.try_send(Ok(Line::Whole(text.clone().into_bytes())));
    lines
}

async fn pipeline(
    client: &Client,
    args: &Args,
    mut lines: mpsc::Receiver<std::io::Result<Line>>,
) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let mut in_progress = FuturesOrdered::new();
    let mut number = 0u64;
    let mut reading = true;
    while reading || !in_progress.is_empty() {
        let room = reading && in_progress.len() < IN_PROGRESS_MAX;
        tokio::select! {
            biased;
            Some(outcome) = in_progress.next(), if !in_progress.is_empty() => {
                print(&outcome, args)?;
                reading &= tally.count(outcome);
            }
            line = lines.recv(), if room => match line {
                None => reading = false,
                Some(Err(error)) => {
                    tally.over = Some(Failure::internal(format!("cannot read standard input: {error}")));
                    reading = false;
                }
                Some(Ok(line)) => {
                    number += 1;
                    in_progress.push_back(start(client, args, line, number).await);
                }
            },
        }
    }
    Ok(tally)
}

/// Hands the message over, so that the order is that of the lines; the future is its outcome.
async fn start<'a>(
    client: &'a Client,
    args: &'a Args,
    line: Line,
    number: u64,
) -> BoxFuture<'a, Outcome> {
    let deadline = Instant::now() + args.timeout;
    let id = id(args, number);
    let Line::Whole(body) = line else {
        let sent = Sent {
            status: "refused",
            ..Sent::unknown(&id, args.to.as_str(), Code::TooLarge.as_str_name(), false)
        };
        let end = End::Refused;
        return Box::pin(async { Outcome { sent, end } });
    };
    let options = SendOptions {
        kind: match std::str::from_utf8(&body) {
            Ok(_) => Kind::Text,
            Err(_) => Kind::Data,
        },
        ttl: args.ttl,
        ..SendOptions::default()
    };
    let handed = client.send(args.to.as_str(), Bytes::from(body), options.id(id.clone()));
    let handed = timeout_at(deadline, handed).await;
    Box::pin(async move {
        match handed {
            Ok(Ok(handle)) => follow(client, args, &id, handle, deadline).await,
            Ok(Err(error)) => over(&id, args, error),
            Err(_) => timed_out(
                client,
                Sent::unknown(&id, args.to.as_str(), TIMED_OUT, true),
            ),
        }
    })
}

async fn follow(
    client: &Client,
    args: &Args,
    id: &str,
    handle: roost_client::SendHandle,
    deadline: Instant,
) -> Outcome {
    let answer = match timeout_at(deadline, handle).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return over(id, args, error),
        Err(_) => {
            return timed_out(client, Sent::unknown(id, args.to.as_str(), TIMED_OUT, true));
        }
    };
    let settled = client.wait_status(&answer, args.until.status());
    match timeout_at(deadline, settled).await {
        Ok(Ok(answer)) => {
            let end = match answer.status {
                Status::Refused => End::Refused,
                Status::Expired if args.until != Until::Accepted => End::Refused,
                _ => End::Reached,
            };
            let sent = Sent::of(&answer);
            Outcome { sent, end }
        }
        // The server has forgotten what became of it: that it was accepted stands.
        Ok(Err(Error::Refused(refusal))) => Outcome {
            sent: Sent {
                code: Some(refusal.code.as_str_name().to_owned()),
                ..Sent::of(&answer)
            },
            end: End::Refused,
        },
        Ok(Err(error)) => over(id, args, error),
        Err(_) => timed_out(
            client,
            Sent {
                code: Some(TIMED_OUT.to_owned()),
                retryable: true,
                ..Sent::of(&answer)
            },
        ),
    }
}

fn over(id: &str, args: &Args, error: Error) -> Outcome {
    let code = match &error {
        Error::Unauthenticated(_) => Code::Unauthenticated,
        Error::Displaced => Code::Displaced,
        Error::Ended(refusal) | Error::Refused(refusal) => refusal.code,
        _ => Code::Internal,
    };
    Outcome {
        sent: Sent::unknown(id, args.to.as_str(), code.as_str_name(), false),
        end: End::Over(error),
    }
}

fn timed_out(client: &Client, sent: Sent) -> Outcome {
    Outcome {
        sent,
        end: End::TimedOut(client.trouble()),
    }
}

fn id(args: &Args, number: u64) -> String {
    match (&args.id, &args.text) {
        (None, _) => Uuid::new_v4().to_string(),
        (Some(id), Some(_)) => id.clone(),
        (Some(id), None) => format!("{id}-{number}"),
    }
}

fn print(outcome: &Outcome, args: &Args) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", outcome.sent.line(args.json))?;
    out.flush()
}

impl Tally {
    /// Whether to read on.
    fn count(&mut self, outcome: Outcome) -> bool {
        self.printed += 1;
        match outcome.end {
            End::Reached => true,
            End::Refused => {
                self.refused += 1;
                true
            }
            End::TimedOut(trouble) => {
                self.timed_out += 1;
                self.unanswered |= outcome.sent.seq.is_none();
                self.trouble = trouble.or(self.trouble.take());
                false
            }
            End::Over(error) => {
                self.over.get_or_insert(error.into());
                false
            }
        }
    }

    /// An end for good outweighs a lack of time, which outweighs refusals.
    fn finish(self, args: &Args) -> Result<Exit, Failure> {
        if let Some(failure) = self.over {
            return Err(failure);
        }
        let limit = humantime::format_duration(args.timeout);
        if self.timed_out > 0 {
            let what = format!(
                "{} of {} messages not {} within {limit}, try again under the same --id",
                self.timed_out,
                self.printed,
                super::format::status(args.until.status()),
            );
            return Err(Failure::timed_out(&what, self.trouble.as_ref()));
        }
        if self.refused > 0 {
            let what = format!(
                "{} of {} messages refused or expired",
                self.refused, self.printed
            );
            return Err(Failure::new(Exit::Refused, what));
        }
        Ok(Exit::Done)
    }
}
