//! Links that are bad without being cut: packets are lost, come late and out of order, or find no room.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::Rng as _;

use super::{Fault, Field, Step};
use crate::hosts::{CLIENTS, Delay, PACKET_BYTES};

/// Probe packets for a share of one in a hundred to show.
const LOSS_PACKETS: usize = 2_000;
const LOSS_PATIENCE: Duration = Duration::from_millis(500);
/// To find out how much room there is.
const LARGE_BYTES: usize = 1_000;
/// For packets to overtake each other.
const DELAY_PACKETS: usize = 100;
/// A probe may take longer than its delay, on a busy machine.
const DELAY_PATIENCE: Duration = Duration::from_secs(2);

/// Packets that come to every node are lost at random.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// So many of a hundred.
    pub percent: u8,
}

impl Fault for Loss {
    fn name(&self) -> String {
        format!("{}% of all packets to nodes lost", self.percent)
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault(self.name());
            for k in 1..=field.nodes() {
                field.hosts.lose(k, self.percent).await?;
            }
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let stated = f64::from(self.percent);
            let mut seen = Vec::new();
            for to in 1..=field.nodes() {
                let from = if to == 1 { 2 } else { 1 };
                let arrivals = field
                    .hosts
                    .probe(from, to, LOSS_PACKETS, PACKET_BYTES, LOSS_PATIENCE)
                    .await?;
                let lost = arrivals.lost_percent();
                ensure!(
                    lost > stated / 3.0 && lost < stated * 2.0 + 2.0,
                    "host {to} loses {lost:.1}%, not {stated}%"
                );
                seen.push(format!("{lost:.1}%"));
            }
            Ok(format!("probe packets lost: {}", seen.join(", ")))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { heal_links(field).await })
    }
}

/// What comes to every node comes late; where hosts have packets, these overtake each other.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// How late.
    pub delay: Delay,
}

impl Fault for Late {
    fn name(&self) -> String {
        let Delay { least, most } = self.delay;
        format!("what comes to nodes is {least:?} to {most:?} late")
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault(self.name());
            for k in 1..=field.nodes() {
                let seed = field.chance.random();
                field.hosts.delay(k, self.delay, seed).await?;
            }
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let mut seen = Vec::new();
            for to in 1..=field.nodes() {
                let from = if to == 1 { 2 } else { 1 };
                let arrivals = field
                    .hosts
                    .probe(from, to, DELAY_PACKETS, PACKET_BYTES, DELAY_PATIENCE)
                    .await?;
                let (Some(fastest), Some(slowest)) = (arrivals.fastest(), arrivals.slowest())
                else {
                    anyhow::bail!("no probe packet came to host {to}");
                };
                ensure!(
                    fastest >= self.delay.least,
                    "a packet came to host {to} after {fastest:?} already"
                );
                let spread = self.delay.most - self.delay.least;
                ensure!(
                    slowest >= self.delay.least + spread / 2,
                    "no packet to host {to} took longer than {slowest:?}"
                );
                ensure!(
                    spread.is_zero() || !field.hosts.reorders() || arrivals.overtaken() > 0,
                    "no packet to host {to} overtook another"
                );
                seen.push(format!(
                    "{fastest:?} to {slowest:?}, {} of {} overtaken",
                    arrivals.overtaken(),
                    arrivals.sent
                ));
            }
            Ok(format!("probe packets took {}", seen.join("; ")))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { heal_links(field).await })
    }
}

/// Every node can receive only so much.
#[derive(Clone, Copy, Debug)]
pub struct Squeeze {
    /// Bits a second to each node.
    pub bits_per_second: u64,
}

impl Fault for Squeeze {
    fn name(&self) -> String {
        format!("{} kbit/s to each node", self.bits_per_second / 1000)
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault(self.name());
            for k in 1..=field.nodes() {
                field.hosts.squeeze(k, self.bits_per_second).await?;
            }
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let mut seen = Vec::new();
            for to in 1..=field.nodes() {
                // Far more than can pass in the time: the rest finds no room.
                let arrivals = field
                    .hosts
                    .probe(CLIENTS, to, LOSS_PACKETS, LARGE_BYTES, LOSS_PATIENCE)
                    .await?;
                ensure!(
                    !arrivals.all(),
                    "all {} probe packets found room on the link to host {to}",
                    arrivals.sent
                );
                seen.push(format!("{:.0}%", arrivals.lost_percent()));
            }
            Ok(format!(
                "of a burst of probe packets found no room: {}",
                seen.join(", ")
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { heal_links(field).await })
    }
}

async fn heal_links(field: &mut Field) -> Result<()> {
    field.lab.fault("all links whole");
    field.hosts.heal().await?;
    field.prove_all_whole().await
}
