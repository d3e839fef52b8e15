//! `roost listen`: the own queue, one line per entry. What is printed and flushed is acknowledged, nothing else.

use std::io::Write as _;
use std::time::Duration;

use futures::future::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use roost_client::{
    AttachOptions, Client, Cursor, Entries, Error, Incoming, Lagged, Receipt, Trouble,
};
use tokio::time::{Instant, sleep_until, timeout};

use super::exit::{Exit, Failure};
use super::format;
use super::server::{ServerArgs, Who, parse_duration};
use super::signals::Stop;

/// Entries printed before they are flushed and acknowledged, at most.
const BATCH_MAX: usize = 256;
/// How long the last acknowledgement and read marks may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// More than any server grants: without acknowledgements nothing comes behind the window.
const PEEK_ENTRIES_MAX: u32 = 65_536;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --count it runs until Ctrl-C or the timeout, and both are success. With --count it is exit code 4 when fewer
messages came in time. Expired ranges are told on standard error and are no messages. With --no-ack no more comes than the
server has on its way unacknowledged: 1,024 messages or 4 MiB by default.")]
pub(super) struct Args {
    /// Who listens; the device may be left out if there is only one. A newer listener displaces an older one.
    #[arg(long = "as", value_name = "PHONE[/DEVICE]")]
    receiver: Who,
    /// End after this many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, for the whole run.
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Do not acknowledge: everything comes again the next time.
    #[arg(long)]
    no_ack: bool,
    /// Mark what is printed as read.
    #[arg(long, conflicts_with = "no_ack")]
    read: bool,
    /// Also print what became of messages that this user sent.
    #[arg(long)]
    receipts: bool,
    /// One JSON object per entry: seq, id, from, device, kind, body or body_base64, sent_at_ms; per receipt: receipt,
    /// peer, incarnation, up_to_seq, expired.
    #[arg(long)]
    json: bool,
}

/// What has been printed.
#[derive(Default)]
struct Printed {
    messages: u64,
    /// Everything up to here may be deleted.
    up_to: Option<Cursor>,
    /// The last message of each sender in this batch.
    senders: Vec<(String, Cursor)>,
}

pub(super) async fn run(args: Args, server: &ServerArgs) -> Result<Exit, Failure> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut stop = Stop::listen()?;
    let mut attach = AttachOptions::default();
    if args.no_ack {
        attach.window_entries = PEEK_ENTRIES_MAX;
    }
    let mut options = server.client(&args.receiver)?.attach(attach);
    options.watch = args.receipts;
    let client = Client::connect(options)?;
    let (mut entries, mut receipts) = (client.entries(), client.receipts());
    let mut reads = FuturesUnordered::new();
    let mut printed = Printed::default();
    let mut late = false;
    while args.count.is_none_or(|count| printed.messages < count) {
        tokio::select! {
            biased;
            () = stop.wait() => break,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                late = true;
                break;
            }
            Some(incoming) = entries.next() => {
                batch(&args, &mut entries, incoming, &mut printed)?;
                if let Some(cursor) = printed.up_to.filter(|_| !args.no_ack) {
                    client.ack(cursor);
                }
                for (from, cursor) in printed.senders.drain(..).filter(|_| args.read) {
                    reads.push(client.mark_read(from, cursor));
                }
            }
            Some(marked) = reads.next(), if !reads.is_empty() => marked.map(drop)?,
            Some(receipt) = receipts.next(), if args.receipts => print_receipt(&args, &client, receipt)?,
            error = client.ended() => return Err(error.into()),
        }
    }
    let flush = async {
        if let Some(cursor) = printed.up_to.filter(|_| !args.no_ack) {
            client.acked(cursor).await?;
        }
        while let Some(marked) = reads.next().await {
            marked?;
        }
        Ok::<(), Error>(())
    };
    match timeout(FLUSH_TIMEOUT, flush).await {
        Ok(flushed) => flushed?,
        Err(_) => {
            let what = "what was printed is not acknowledged and will come again";
            return Err(Failure::timed_out(what, client.trouble().as_ref()));
        }
    }
    drop(reads);
    let trouble = client.trouble();
    client.close().await;
    finish(&args, late, printed.messages, trouble)
}

fn finish(
    args: &Args,
    late: bool,
    messages: u64,
    trouble: Option<Trouble>,
) -> Result<Exit, Failure> {
    let disconnected = matches!(trouble, Some(Trouble::Disconnected(_)));
    match args.count {
        Some(count) if late => {
            let what = format!("{messages} of {count} messages came in time");
            Err(Failure::timed_out(&what, trouble.as_ref()))
        }
        None if late && disconnected => Err(Failure::timed_out("cannot listen", trouble.as_ref())),
        _ => Ok(Exit::Done),
    }
}

/// Prints what is there already, flushes, and leaves in `printed` what may be acknowledged.
fn batch(
    args: &Args,
    entries: &mut Entries,
    first: Incoming,
    printed: &mut Printed,
) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut next = Some(first);
    for _ in 0..BATCH_MAX {
        let Some(incoming) = next.take() else {
            break;
        };
        printed.print(args, &incoming, &mut out)?;
        if args.count.is_some_and(|count| printed.messages >= count) {
            break;
        }
        next = entries.next().now_or_never().flatten();
    }
    if let Some(incoming) = next {
        // Taken out of the stream, so it has to be printed, whatever the bound.
        printed.print(args, &incoming, &mut out)?;
    }
    out.flush()
}

impl Printed {
    fn print(
        &mut self,
        args: &Args,
        incoming: &Incoming,
        out: &mut impl std::io::Write,
    ) -> std::io::Result<()> {
        let cursor = incoming.cursor();
        match incoming {
            Incoming::Delivery(delivery) => {
                writeln!(out, "{}", format::delivery(delivery, args.json))?;
                self.messages += 1;
                let from = &delivery.envelope.from;
                match self.senders.iter_mut().find(|(sender, _)| sender == from) {
                    Some((_, up_to)) => *up_to = cursor,
                    None => self.senders.push((from.clone(), cursor)),
                }
            }
            Incoming::Skipped { first, .. } => {
                eprintln!("{}", format::range("expired", *first, cursor));
            }
            Incoming::Missing { first, .. } => {
                eprintln!(
                    "{}",
                    format::range("acknowledged by another session", *first, cursor)
                );
            }
        }
        self.up_to = Some(cursor);
        Ok(())
    }
}

fn print_receipt(
    args: &Args,
    client: &Client,
    receipt: Result<Receipt, Lagged>,
) -> std::io::Result<()> {
    let receipt = match receipt {
        Ok(receipt) => receipt,
        Err(lagged) => {
            eprintln!("receipts: {lagged}");
            return Ok(());
        }
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", format::receipt(&receipt, args.json))?;
    out.flush()?;
    if !args.no_ack {
        client.ack_receipts(receipt.revision);
    }
    Ok(())
}
