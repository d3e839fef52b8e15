//! Users who do not come for their messages: until these have expired, or until their queue is full.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use roost_client::{Code, Credentials, Cursor, Incoming, Status};
use tokio::time::timeout;

use crate::history::History;
use crate::witness::{Witness, drained};

/// Messages with a short life, and how short.
const EXPIRING: usize = 20;
const EXPIRING_TTL: Duration = Duration::from_secs(2);
/// Messages beyond a queue's bound.
const BEYOND: usize = 50;
/// Nothing more comes after such a silence, once the last has been seen.
const SILENCE: Duration = Duration::from_secs(2);

/// Two users who are away, and one who writes to them all the same.
#[derive(Debug)]
pub struct Absent<'a> {
    /// Where it is written down.
    pub history: &'a History,
    /// Where the nodes are.
    pub servers: &'a [String],
    /// Who writes.
    pub writer: &'a Credentials,
    /// Whose messages expire.
    pub forgetful: &'a Credentials,
    /// Whose queue runs full.
    pub hoarder: &'a Credentials,
    /// Entries that a queue takes.
    pub entries_max: usize,
    /// For everything.
    pub limit: Duration,
}

impl Absent<'_> {
    /// Writes until one queue is full and the messages in the other have expired, as their sender is told; then both
    /// come and take what is left. Gives how many were accepted.
    ///
    /// # Errors
    /// When an answer is another than it should be, or does not come in time.
    pub async fn play(&self) -> Result<u64> {
        let options = roost_client::Options::new(self.servers.to_vec(), self.writer.clone());
        let writer = Witness::connect(self.history, options.watch())?;
        let (full, expired) = futures::join!(self.fill(&writer), self.expire(&writer));
        let accepted = full.context("a queue that fills")?;
        expired.context("messages that expire")?;
        writer.close().await;
        self.collect(self.hoarder, accepted).await?;
        self.collect(self.forgetful, 0).await?;
        Ok(accepted as u64)
    }

    async fn fill(&self, writer: &Witness) -> Result<usize> {
        let mut pending = Vec::new();
        for number in 0..self.entries_max + BEYOND {
            let id = format!("full-{number}");
            let sent = writer.send(&self.hoarder.user, &id, vec![1; 32], None);
            pending.push(sent.await?);
        }
        let answers = pending
            .into_iter()
            .map(|sent| writer.answer(sent, self.limit));
        let answers = join_all(answers)
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let accepted = answers.iter().filter(|answer| answer.is_accepted()).count();
        let full = answers.iter().filter(|answer| {
            answer
                .error
                .as_ref()
                .is_some_and(|error| error.code == Code::QueueFull)
        });
        ensure!(
            accepted == self.entries_max && full.count() == BEYOND,
            "a queue for {} entries took {accepted} of {}",
            self.entries_max,
            answers.len()
        );
        Ok(accepted)
    }

    async fn expire(&self, writer: &Witness) -> Result<()> {
        let mut answers = Vec::new();
        for number in 0..EXPIRING {
            let id = format!("expiring-{number}");
            let ttl = Some(EXPIRING_TTL);
            let sent = writer
                .send(&self.forgetful.user, &id, vec![2; 32], ttl)
                .await?;
            answers.push(writer.answer(sent, self.limit).await?);
        }
        for answer in &answers {
            let told = writer
                .wait_status(answer, Status::Expired, self.limit)
                .await?;
            ensure!(
                told.status == Status::Expired,
                "{} is {:?}, not expired",
                told.id,
                told.status
            );
        }
        Ok(())
    }

    /// Takes everything there is, and acknowledges it.
    async fn collect(&self, device: &Credentials, wanted: usize) -> Result<()> {
        let options = roost_client::Options::new(self.servers.to_vec(), device.clone());
        let listener = Witness::listen(self.history, options, None)?;
        let (mut came, mut last) = (0, None::<Cursor>);
        let all = async {
            // A range that has expired is told in any number of pieces: then only silence says that it was the last.
            while let Ok(Some(incoming)) = match came < wanted {
                true => Ok(listener.next().await),
                false => timeout(SILENCE, listener.next()).await,
            } {
                came += usize::from(matches!(incoming, Incoming::Delivery(_)));
                last = Some(incoming.cursor());
                listener.ack_soon(incoming.cursor());
            }
        };
        let ended = timeout(self.limit, all).await;
        ensure!(ended.is_ok(), "{came} of {wanted} entries came in time");
        if let Some(last) = last {
            listener.ack(last, self.limit).await?;
        }
        listener.close().await;
        drained(self.history, device);
        Ok(())
    }
}
