//! Several devices of one user: an entry stays until each has acknowledged it.

use anyhow::{Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::{Credentials, Status};

use crate::{ANN, BOB, LIMIT};

async fn take(lab: &Lab, device: &Credentials, count: usize) -> Result<()> {
    let witness = Witness::listen(&lab.history, lab.anywhere(device), None)?;
    let deliveries = witness.receive(count, LIMIT).await?;
    if let Some(last) = deliveries.last() {
        witness.ack(last.cursor(), LIMIT).await?;
    }
    witness.close().await;
    Ok(())
}

/// Goal: one device away holds its entries and nobody else; the sender's second tick comes with the first device; a
/// device that is removed holds nothing any more; one that is added later gets only what comes later. Method: the
/// queue's length after each step.
#[tokio::test]
async fn entries_stay_until_every_device_has_them() -> Result<()> {
    let lab = Lab::start(Setup::nodes(1)).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let phone = lab.add_device(BOB, "phone").await?;
    let laptop = lab.add_device(BOB, "laptop").await?;
    let sender = Witness::connect(&lab.history, lab.anywhere(&ann).watch())?;

    let mut answers = Vec::new();
    for number in 1..=3 {
        let pending = sender
            .send(BOB, &format!("m-{number}"), "hello", None)
            .await?;
        answers.push(sender.answer(pending, LIMIT).await?);
    }
    take(&lab, &phone, 3).await?;
    for answer in &answers {
        let answer = sender.wait_status(answer, Status::Delivered, LIMIT).await?;
        ensure!(answer.status == Status::Delivered, "{answer:?}");
    }
    ensure!(
        lab.queued_entries(BOB).await? == 3,
        "the laptop's entries are gone"
    );
    take(&lab, &laptop, 3).await?;
    lab.wait_queued(BOB, 0).await?;

    let tablet = lab.add_device(BOB, "tablet").await?;
    let pending = sender.send(BOB, "m-4", "hello", None).await?;
    sender.answer(pending, LIMIT).await?;
    take(&lab, &phone, 1).await?;
    take(&lab, &laptop, 1).await?;
    ensure!(
        lab.queued_entries(BOB).await? == 1,
        "the tablet's entry is gone"
    );
    lab.remove_device(&tablet).await?;
    lab.wait_queued(BOB, 0).await?;
    let late = Witness::listen(&lab.history, lab.anywhere(&tablet), None)?;
    let refused = late.client().ended().await;
    ensure!(
        matches!(refused, roost_client::Error::Unauthenticated(_)),
        "{refused}"
    );

    for device in [&phone, &laptop] {
        drained(&lab.history, device);
    }
    lab.pass().await
}
