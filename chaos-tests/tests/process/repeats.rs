//! The same message id again and again.

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::Answer;

use crate::{ANN, BOB, LIMIT};

/// Sends `once` so many times, each after the answer to the one before: the client library would let a second send wait
/// for the answer to the first instead of sending it.
async fn repeat(client: &Witness, times: usize) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for _ in 0..times {
        let pending = client.send(BOB, "once", "the same", None).await?;
        answers.push(client.answer(pending, LIMIT).await?);
    }
    Ok(answers)
}

/// Goal: one id is one entry with one answer. Method: 100 sends over two connections through different nodes, always one
/// under way on each, and a kill of the recipient's leader during the last fifty; then one message more, which must be
/// entry number two.
#[tokio::test]
async fn one_id_a_hundred_times_is_one_entry() -> Result<()> {
    let mut lab = Lab::start(Setup::nodes(3).alone()).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let bob = lab.add_device(BOB, "phone").await?;
    let leader = lab.leader_of(BOB).await?;
    let others = [1 + leader % 3, 1 + (leader + 1) % 3];
    let one = Witness::connect(&lab.history, lab.through(others[0], &ann))?;
    let two = Witness::connect(&lab.history, lab.through(others[1], &ann))?;

    let (first, second) = futures::try_join!(repeat(&one, 25), repeat(&two, 25))?;
    let sends = async { futures::try_join!(repeat(&one, 25), repeat(&two, 25)) };
    let ((third, fourth), ()) = futures::try_join!(sends, lab.kill(leader))?;
    let answers: Vec<Answer> = [first, second, third, fourth].concat();
    let place = answers[0].place.context("it is accepted")?;
    ensure!(answers.len() == 100, "{} answers", answers.len());
    ensure!(
        answers.iter().all(|answer| answer.place == Some(place)),
        "{answers:?}"
    );

    let last = one.send(BOB, "last", "another", None).await?;
    one.answer(last, LIMIT).await?;
    let listener = Witness::listen(&lab.history, lab.through(others[1], &bob), None)?;
    let deliveries = listener.receive(2, LIMIT).await?;
    let ids: Vec<&str> = deliveries
        .iter()
        .map(|entry| entry.envelope.id.as_str())
        .collect();
    ensure!(ids == ["once", "last"], "{ids:?}");
    drained(&lab.history, &bob);
    lab.pass().await
}
