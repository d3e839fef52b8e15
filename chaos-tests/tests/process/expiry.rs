//! Messages that nobody takes in time.

use std::time::Duration;

use anyhow::{Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::{Incoming, Status};

use crate::{ANN, BOB, LIMIT};

/// Goal: an expired message is gone, its sender and its receiver are told, and the conversation goes on around it.
/// Method: three messages to a user who is offline, the middle one with a time to live of one second; wait for its
/// *expired* receipt, then listen.
#[tokio::test]
async fn an_expired_message_is_told_to_both_sides() -> Result<()> {
    let lab = Lab::start(Setup::nodes(1)).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let bob = lab.add_device(BOB, "phone").await?;
    let sender = Witness::connect(&lab.history, lab.anywhere(&ann).watch())?;
    let mut answers = Vec::new();
    for (id, ttl) in [
        ("a", None),
        ("short", Some(Duration::from_secs(1))),
        ("b", None),
    ] {
        let pending = sender.send(BOB, id, id, ttl).await?;
        answers.push(sender.answer(pending, LIMIT).await?);
    }
    let expired = sender
        .wait_status(&answers[1], Status::Delivered, LIMIT)
        .await?;
    ensure!(expired.status == Status::Expired, "{expired:?}");
    lab.wait_queued(BOB, 2).await?;

    let listener = Witness::listen(&lab.history, lab.anywhere(&bob), None)?;
    let (mut ids, mut skipped) = (Vec::new(), Vec::new());
    while ids.len() < 2 {
        match roost_chaos_tests::lab::within(LIMIT, "an entry", listener.next()).await? {
            Some(Incoming::Delivery(delivery)) => ids.push(delivery.envelope.id),
            Some(Incoming::Skipped { first, last, .. }) => skipped.push((first, last)),
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!(
        ids == ["a", "b"] && skipped == [(2, 2)],
        "{ids:?}, skipped {skipped:?}"
    );
    drained(&lab.history, &bob);
    lab.pass().await
}
