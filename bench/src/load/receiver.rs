//! One receiver: takes entries, checks that none is missing or doubled, acknowledges each frame.

use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};
use roost_client::wire::v1::{
    Ack, Cursor, Entries, client_frame::Frame as Out, server_frame::Frame as In,
};

use super::recorder::Recorder;
use super::session::Session;

/// An attached session whose queue began empty, or holds what nobody has taken yet.
pub(super) struct Receiver {
    session: Session,
    recorder: Rc<Recorder>,
    last_seq: u64,
    acked_seq: u64,
}

impl Receiver {
    pub(super) fn new(session: Session, recorder: Rc<Recorder>) -> Self {
        Self {
            session,
            recorder,
            last_seq: 0,
            acked_seq: 0,
        }
    }

    /// Receives for ever.
    ///
    /// # Errors
    /// When the session breaks, or an entry is missing or comes twice.
    pub(super) async fn run(mut self) -> Result<()> {
        loop {
            self.step().await?;
        }
    }

    /// Receives until so many entries are acknowledged.
    ///
    /// # Errors
    /// As [`Receiver::run`].
    pub(super) async fn take(mut self, messages: u64) -> Result<Session> {
        while self.acked_seq < messages {
            self.step().await?;
        }
        Ok(self.session)
    }

    async fn step(&mut self) -> Result<()> {
        match self.session.next().await? {
            In::Entries(entries) => self.on_entries(&entries),
            In::Ack(ack) => {
                ensure!(ack.error.is_none(), "an ack was refused: {:?}", ack.error);
                self.acked_seq = ack.cursor.context("an ack without cursor")?.seq;
                Ok(())
            }
            In::Receipts(_) => Ok(()),
            other => bail!("a receiver was sent {other:?}"),
        }
    }

    fn on_entries(&mut self, entries: &Entries) -> Result<()> {
        ensure!(entries.skipped.is_empty(), "entries expired");
        for entry in &entries.entries {
            ensure!(
                entry.seq == self.last_seq + 1,
                "entry {} came after {}",
                entry.seq,
                self.last_seq
            );
            self.last_seq = entry.seq;
            let envelope = entry
                .envelope
                .as_ref()
                .context("an entry without envelope")?;
            self.recorder.delivered(&envelope.body)?;
        }
        self.session.send(Out::Ack(Ack {
            cursor: Some(Cursor {
                incarnation: entries.incarnation,
                seq: self.last_seq,
            }),
        }))
    }
}
