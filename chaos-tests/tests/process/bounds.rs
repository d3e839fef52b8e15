//! Bounds: what is refused at one, and that the conversation goes on behind it.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use roost_chaos_tests::lab::{Lab, Setup};
use roost_chaos_tests::witness::{Pending, Witness, drained};
use roost_client::{Answer, Code};

use crate::{ANN, BOB, LIMIT};

const QUEUE_ENTRIES_MAX: usize = 50;

async fn pipeline(sender: &Witness, ids: std::ops::Range<usize>) -> Result<Vec<Answer>> {
    let mut pending: Vec<Pending> = Vec::new();
    for id in ids {
        pending.push(sender.send(BOB, &format!("m-{id}"), "hello", None).await?);
    }
    try_join_all(
        pending
            .into_iter()
            .map(|pending| sender.answer(pending, LIMIT)),
    )
    .await
}

fn seqs(answers: &[Answer]) -> Vec<u64> {
    let places = answers.iter().filter_map(|answer| answer.place);
    places.map(|place| place.seq).collect()
}

/// Goal: a queue that fills in the middle of a pipeline refuses the rest, each message with its own final answer, and
/// the same client's next messages go on in order once there is room. Method: a bound of 50, a pipeline of 80, an
/// acknowledgement, 30 more, and one of the refused again, which gets the same answer.
#[tokio::test]
async fn a_queue_that_fills_in_the_middle_of_a_pipeline() -> Result<()> {
    let toml = format!("[queue]\nentries_max = {QUEUE_ENTRIES_MAX}\n");
    let lab = Lab::start(Setup::nodes(1).toml(toml)).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let bob = lab.add_device(BOB, "phone").await?;
    let sender = Witness::connect(&lab.history, lab.anywhere(&ann))?;

    let answers = pipeline(&sender, 0..80).await?;
    let (accepted, refused) = answers.split_at(QUEUE_ENTRIES_MAX);
    ensure!(
        seqs(accepted) == (1..=50).collect::<Vec<u64>>(),
        "{:?}",
        seqs(accepted)
    );
    for answer in refused {
        let error = answer.error.as_ref();
        let full = error.is_some_and(|error| error.code == Code::QueueFull && !error.retryable);
        ensure!(full && answer.place.is_none(), "{answer:?}");
    }

    let listener = Witness::listen(&lab.history, lab.anywhere(&bob), None)?;
    let deliveries = listener.receive(QUEUE_ENTRIES_MAX, LIMIT).await?;
    listener
        .ack(deliveries[QUEUE_ENTRIES_MAX - 1].cursor(), LIMIT)
        .await?;
    let answers = pipeline(&sender, 80..110).await?;
    ensure!(
        seqs(&answers) == (51..=80).collect::<Vec<u64>>(),
        "{:?}",
        seqs(&answers)
    );
    let again = pipeline(&sender, 60..61).await?;
    let code = again[0].error.as_ref().map(|error| error.code);
    ensure!(code == Some(Code::QueueFull), "{again:?}");
    listener.receive(30, LIMIT).await?;
    drained(&lab.history, &bob);
    lab.pass().await
}
