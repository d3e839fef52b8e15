//! Nodes killed with -9: one after the other under load, and all at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use roost_chaos_tests::cli::{self, Cli, Running};
use roost_chaos_tests::history::{ClientRun, Digest, Event, Place};
use roost_chaos_tests::lab::{Lab, Setup, device, within};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::{Credentials, Incoming};
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;
use tokio::sync::watch;

use crate::{ANN, BOB, CAROL, LIMIT, text};

/// Goal: any node serves any client. Method: every pair of nodes once.
#[tokio::test]
async fn any_node_serves_any_client() -> Result<()> {
    let lab = Lab::start(Setup::nodes(3).alone()).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let bob = lab.add_device(BOB, "phone").await?;
    for (sender, receiver) in [(1, 2), (2, 3), (3, 1)] {
        let client = Witness::connect(&lab.history, lab.through(sender, &ann))?;
        let pending = client
            .send(BOB, &format!("through-{sender}"), "hello", None)
            .await?;
        client.answer(pending, LIMIT).await?;
        let listener = Witness::listen(&lab.history, lab.through(receiver, &bob), None)?;
        let deliveries = listener.receive(1, LIMIT).await?;
        listener.ack(deliveries[0].cursor(), LIMIT).await?;
        listener.close().await;
    }
    drained(&lab.history, &bob);
    lab.pass().await
}

/// Goal: nothing accepted is lost when every node dies at once. Method: 500 messages in a pipeline to two users who are
/// offline, kill -9 of all three nodes as soon as the last is accepted, start over the same data, listen.
#[tokio::test]
async fn all_nodes_killed_right_after_the_last_accepted() -> Result<()> {
    const MESSAGES: usize = 500;
    let mut lab = Lab::start(Setup::nodes(3).alone()).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let bob = lab.add_device(BOB, "phone").await?;
    let carol = lab.add_device(CAROL, "phone").await?;
    let sender = Witness::connect(&lab.history, lab.anywhere(&ann))?;
    let mut pending = Vec::new();
    for number in 0..MESSAGES {
        for to in [BOB, CAROL] {
            pending.push(
                sender
                    .send(
                        to,
                        &format!("m-{number}"),
                        format!("message {number}"),
                        None,
                    )
                    .await?,
            );
        }
    }
    try_join_all(
        pending
            .into_iter()
            .map(|pending| sender.answer(pending, LIMIT)),
    )
    .await?;
    lab.fault("kill -9 all");
    lab.cluster.kill_all().await?;
    lab.cluster.start_all()?;
    lab.cluster.wait_ready().await?;
    for device in [&bob, &carol] {
        let listener = Witness::listen(&lab.history, lab.anywhere(device), None)?;
        listener.receive(MESSAGES, LIMIT).await?;
        drained(&lab.history, device);
    }
    lab.pass().await
}

/// Goal: without a majority nothing is accepted, and who asks is told that; with one again the same message goes. Method:
/// two of three nodes killed, `roost send` under one id, one node back, the same again.
#[tokio::test]
async fn no_majority_accepts_nothing() -> Result<()> {
    let mut lab = Lab::start(Setup::nodes(3).alone()).await?;
    let cli = Cli::new(&lab.cluster, lab.directory())?;
    for user in [ANN, BOB] {
        lab.add_device(user, "phone")
            .await?
            .save(cli.credentials())?;
    }
    let through_1 = cli.through(lab.cluster.node(1).client_url());
    lab.kill(2).await?;
    lab.kill(3).await?;
    let send = [
        "send",
        "--as",
        ANN,
        "--to",
        BOB,
        "hello",
        "--id",
        "a",
        "--timeout",
        "12s",
        "--json",
    ];
    let lines = through_1
        .run(&send)
        .await?
        .expect(cli::UNAVAILABLE)?
        .json()?;
    ensure!(lines[0]["status"] == "unknown", "{lines:?}");
    lab.restart(2).await?;
    let lines = through_1.run(&send).await?.expect(cli::OK)?.json()?;
    ensure!(lines[0]["seq"] == 1, "{lines:?}");
    lab.pass().await
}

/// Lines that each `roost send` reads from its standard input.
const LINES: usize = 2_600;
/// The load comes in so many portions, a kill in the middle of each but the last.
const PORTIONS: usize = 4;
/// For the senders, whose time counts from their start.
const SENDER_TIMEOUT: &str = "170s";
const LOAD_LIMIT: Duration = Duration::from_secs(170);

/// Goal: what each device receives is what was accepted: all of it, once, in order. Method: 10,400 lines of text through
/// four `roost send` at once, from three devices of two users to two users with three devices; each node in turn is
/// killed with -9 while a portion of the lines is under way, and started again while the next portion comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_killed_in_turn_under_load() -> Result<()> {
    let mut lab = Lab::start(Setup::nodes(3).alone()).await?;
    let cli = Cli::new(&lab.cluster, lab.directory())?;
    let dan = "+15550004";
    let senders = [
        (ANN, "phone", BOB),
        (ANN, "laptop", BOB),
        (dan, "phone", BOB),
        (dan, "phone", CAROL),
    ];
    let mut sending = Vec::new();
    for (user, name) in [(ANN, "phone"), (ANN, "laptop"), (dan, "phone")] {
        let credentials = lab.add_device(user, name).await?;
        credentials.save(cli.credentials())?;
        sending.push(credentials);
    }
    let mut listening = Vec::new();
    for (user, name) in [(BOB, "phone"), (BOB, "laptop"), (CAROL, "phone")] {
        listening.push(lab.add_device(user, name).await?);
    }
    let text = Arc::new(text::lines(LINES * senders.len()).await?);

    let allowed = watch::Sender::new(0);
    let received = watch::Sender::new(0);
    let witnesses = listening
        .iter()
        .map(|device| Witness::listen(&lab.history, lab.anywhere(device), None))
        .collect::<Result<Vec<_>>>()?;
    let listeners = witnesses
        .into_iter()
        .zip(&listening)
        .map(|(witness, device)| {
            let wanted = LINES
                * senders
                    .iter()
                    .filter(|(_, _, to)| *to == device.user)
                    .count();
            listen(witness, wanted, received.clone())
        });
    let mut loads = Vec::new();
    for (number, (user, name, to)) in senders.iter().enumerate() {
        let credentials = sending
            .iter()
            .find(|device| device.user == *user && device.device_name == *name)
            .context("every sender has an account")?;
        loads.push(Load {
            cli: cli.clone(),
            history: lab.history.clone(),
            credentials: credentials.clone(),
            to: (*to).to_owned(),
            id: format!("s{number}"),
            text: Arc::clone(&text),
            lines: number * LINES..(number + 1) * LINES,
            allowed: allowed.subscribe(),
        });
    }
    let total = LINES * senders.len() + 3 * LINES; // Bob's messages come to two devices.
    let load = async {
        let all = futures::try_join!(
            try_join_all(loads.into_iter().map(Load::run)),
            try_join_all(listeners)
        );
        all.map(drop)
    };
    let kills = kill_in_turn(&mut lab, &allowed, received.subscribe(), total);
    within(LOAD_LIMIT, "the load", async {
        futures::try_join!(load, kills)
    })
    .await??;
    for device in &listening {
        drained(&lab.history, device);
    }
    lab.pass().await
}

/// Lets portion after portion go; in the middle of each a node dies, and comes back while the next goes.
async fn kill_in_turn(
    lab: &mut Lab,
    allowed: &watch::Sender<usize>,
    mut received: watch::Receiver<usize>,
    total: usize,
) -> Result<()> {
    let portion = LINES / PORTIONS;
    for k in 1..=3 {
        let portions = usize::from(k);
        allowed.send_replace(portion * portions);
        let half = total / PORTIONS * portions - total / PORTIONS / 2;
        received.wait_for(|received| *received >= half).await?;
        let under_way = total / PORTIONS * portions - *received.borrow();
        ensure!(
            under_way > 0,
            "nothing was under way when node {k} was to be killed"
        );
        lab.kill(k).await?;
        allowed.send_replace(portion * portions + portion / 2);
        lab.restart(k).await?;
    }
    allowed.send_replace(LINES);
    Ok(())
}

/// Receives everything and acknowledges now and then.
async fn listen(witness: Witness, wanted: usize, received: watch::Sender<usize>) -> Result<()> {
    let mut count = 0;
    while count < wanted {
        let incoming = witness.next().await.context("the client is over")?;
        if let Incoming::Delivery(delivery) = &incoming {
            count += 1;
            received.send_modify(|received| *received += 1);
            if count % 50 == 0 {
                witness.ack_soon(delivery.cursor());
            }
            if count == wanted {
                witness.ack(delivery.cursor(), LIMIT).await?;
            }
        }
    }
    Ok(())
}

/// One `roost send` with lines on its standard input, as many at a time as it is allowed.
struct Load {
    cli: Cli,
    history: roost_chaos_tests::history::History,
    credentials: Credentials,
    to: String,
    id: String,
    text: Arc<Vec<String>>,
    lines: std::ops::Range<usize>,
    allowed: watch::Receiver<usize>,
}

impl Load {
    async fn run(self) -> Result<()> {
        let run = self.history.start_client(&device(&self.credentials), None);
        let lines = self.text[self.lines.clone()].to_vec();
        let name = format!("{}/{}", self.credentials.user, self.credentials.device_name);
        let words = [
            "send",
            "--as",
            &name,
            "--to",
            &self.to,
            "--id",
            &self.id,
            "--timeout",
            SENDER_TIMEOUT,
            "--json",
        ];
        let (stdin, mut call) = self.cli.start_with_input(&words)?;
        let allowed = self.allowed.clone();
        futures::try_join!(
            self.feed(run, &lines, stdin, allowed),
            self.answers(run, lines.len(), &mut call)
        )?;
        call.finish(LIMIT).await
    }

    async fn feed(
        &self,
        run: ClientRun,
        lines: &[String],
        mut stdin: ChildStdin,
        mut allowed: watch::Receiver<usize>,
    ) -> Result<()> {
        for (number, line) in (1..).zip(lines) {
            allowed.wait_for(|allowed| *allowed >= number).await?;
            self.history.record(Event::Sent {
                client: run,
                to: self.to.clone(),
                id: format!("{}-{number}", self.id),
                body: Digest::of(line.as_bytes()),
                ttl_ms: None,
            });
            stdin.write_all(format!("{line}\n").as_bytes()).await?;
        }
        Ok(())
    }

    async fn answers(&self, run: ClientRun, count: usize, call: &mut Running) -> Result<()> {
        for number in 1..=count {
            let answer = call.json(LOAD_LIMIT).await?;
            let id = format!("{}-{number}", self.id);
            // One that was sent again across a kill is answered with its status as it is by then.
            let status = &answer["status"];
            let accepted = status == "accepted" || status == "delivered";
            ensure!(answer["id"] == id.as_str() && accepted, "{answer}");
            self.accepted(run, id, answer["seq"].as_u64().context("no seq")?);
        }
        Ok(())
    }

    fn accepted(&self, client: ClientRun, id: String, seq: u64) {
        self.history.record(Event::Accepted {
            client,
            to: self.to.clone(),
            id,
            place: Place {
                incarnation: 0,
                seq,
            },
        });
    }
}
