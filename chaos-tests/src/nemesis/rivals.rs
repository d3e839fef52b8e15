//! What loses acknowledged messages elsewhere: three experiments in which every message is accepted and a node dies.
//!
//! Other servers keep what a session has not confirmed in the memory of the session's node, or tell the sender before
//! anything is on a disk. Each experiment has a sender and a recipient of its own beside the load, in the same history.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use roost_client::{Credentials, Cursor, Incoming, Options};

use super::{Fault, Field, Step};
use crate::hosts::CLIENTS;
use crate::lab::within;
use crate::witness::{Witness, drained};

/// For everything of an experiment that is waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// What arrives before the link dies.
const BEFORE: usize = 100;
const BODY_BYTES: usize = 64;
/// Entries between two acknowledgements.
const ACK_EVERY: usize = 100;

/// What happens to the recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experiment {
    /// He is online, and his node is killed while he receives.
    ReceiverKilled,
    /// His link is dead and his session looks alive; then his node is killed.
    LinkDead,
    /// He is away, and all nodes are killed right after the last message is accepted.
    AllKilled,
}

impl Experiment {
    /// As many as the others were given.
    fn messages(self) -> usize {
        match self {
            Self::ReceiverKilled | Self::AllKilled => 6_000,
            Self::LinkDead => 2_000,
        }
    }
}

/// One experiment.
#[derive(Debug)]
pub struct Rival {
    experiment: Experiment,
    node: u16,
    servers: Vec<String>,
    recipient: Option<Credentials>,
    seen: BTreeSet<Cursor>,
}

impl Rival {
    /// This one.
    #[must_use]
    pub fn new(experiment: Experiment) -> Self {
        Self {
            experiment,
            node: 0,
            servers: Vec::new(),
            recipient: None,
            seen: BTreeSet::new(),
        }
    }

    /// Listens through the node that will die.
    fn listen(&self, field: &Field, recipient: &Credentials) -> Result<Witness> {
        let through = self.servers[usize::from(self.node - 1)].clone();
        let options = Options::new(vec![through], recipient.clone());
        Witness::listen(&field.lab.history, options, None)
    }

    /// Until so many different entries have come.
    async fn receive(&mut self, listener: &Witness, wanted: usize) -> Result<()> {
        let receive = async {
            while self.seen.len() < wanted {
                let incoming = listener.next().await.context("the client is over")?;
                if let Incoming::Delivery(_) = incoming {
                    self.seen.insert(incoming.cursor());
                }
                if self.seen.len().is_multiple_of(ACK_EVERY) {
                    listener.ack_soon(incoming.cursor());
                }
            }
            anyhow::Ok(())
        };
        let received = within(LIMIT, &format!("{wanted} entries"), receive).await;
        received.with_context(|| format!("{} came", self.seen.len()))?
    }

    async fn play(&mut self, field: &mut Field) -> Result<()> {
        let name: u32 = field.chance.random_range(0..1_000_000);
        let (from, to) = (format!("+1777{name:06}1"), format!("+1777{name:06}2"));
        let sender = field.lab.add_device(&from, "phone").await?;
        let recipient = field.lab.add_device(&to, "phone").await?;
        self.recipient = Some(recipient.clone());
        self.node = field.any_node();
        self.servers = field.hosts.client_urls(&field.lab.cluster);
        // The sender's node lives, so that it is told of every message.
        let mut others = self.servers.clone();
        others.remove(usize::from(self.node - 1));
        let sender = Witness::connect(&field.lab.history, Options::new(others, sender))?;
        let bodies = vec![vec![7; BODY_BYTES]; self.experiment.messages()];
        match self.experiment {
            Experiment::ReceiverKilled => {
                let listener = self.listen(field, &recipient)?;
                let sending = sender.send_all(&to, "killed", &bodies, LIMIT);
                let killing = async {
                    self.receive(&listener, bodies.len() / 3).await?;
                    field.lab.kill(self.node).await
                };
                futures::try_join!(sending, killing)?;
            }
            Experiment::LinkDead => {
                let listener = self.listen(field, &recipient)?;
                sender
                    .send_all(&to, "before", &bodies[..BEFORE], LIMIT)
                    .await?;
                self.receive(&listener, BEFORE).await?;
                field
                    .lab
                    .fault(format!("clients' links to node {} dead", self.node));
                field.hosts.part(&[CLIENTS], &[self.node]).await?;
                field.prove_cut(CLIENTS, self.node).await?;
                field.prove_cut(self.node, CLIENTS).await?;
                sender
                    .send_all(&to, "dead", &bodies[BEFORE..], LIMIT)
                    .await?;
                field.lab.kill(self.node).await?;
            }
            Experiment::AllKilled => {
                sender.send_all(&to, "all", &bodies, LIMIT).await?;
                field.lab.fault("kill -9 of all nodes");
                field.lab.cluster.kill_all().await?;
            }
        }
        Ok(())
    }

    fn dead(&self, field: &Field) -> Vec<u16> {
        match self.experiment {
            Experiment::AllKilled => field.others(&[]),
            Experiment::ReceiverKilled | Experiment::LinkDead => vec![self.node],
        }
    }
}

impl Fault for Rival {
    fn name(&self) -> String {
        match self.experiment {
            Experiment::ReceiverKilled => "the recipient's node killed while he receives",
            Experiment::LinkDead => "the recipient's link dead, then his node killed",
            Experiment::AllKilled => "all nodes killed after the last accepted",
        }
        .to_owned()
    }

    fn keeps_majority(&self) -> bool {
        self.experiment != Experiment::AllKilled
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { self.play(field).await })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let dead = self.dead(field);
            for k in &dead {
                let node = field.lab.cluster.node_mut(*k);
                ensure!(!node.is_running(), "node {k} lives");
            }
            let (came, all) = (self.seen.len(), self.experiment.messages());
            ensure!(came < all, "everything had come before");
            Ok(format!(
                "{all} messages accepted, {came} received when nodes {dead:?} were killed"
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.hosts.heal().await?;
            let dead = self.dead(field);
            field.start(&dead)?;
            let recipient = self.recipient.take().context("nobody receives")?;
            let options = Options::new(self.servers.clone(), recipient.clone());
            let listener = Witness::listen(&field.lab.history, options, None)?;
            self.receive(&listener, self.experiment.messages()).await?;
            if let Some(last) = self.seen.last() {
                listener.ack(*last, LIMIT).await?;
            }
            listener.close().await;
            drained(&field.lab.history, &recipient);
            Ok(())
        })
    }
}
