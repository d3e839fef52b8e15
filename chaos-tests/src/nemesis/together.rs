//! Several faults at the same time, drawn from the seed.
//!
//! Each keeps the nodes that it strikes to itself, and no more are struck, damaged or cut off at a time than a minority of
//! every shard's replicas, so that a majority goes on serving. Every part proves itself while those before it last.

use rand::Rng as _;

use super::{Fault, Field, Step};

/// A fault that can be a part.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What it is called on the command line.
    pub name: &'static str,
    /// How many nodes it takes away from their shards at a time.
    pub takes: u16,
    /// What it needs for itself: two parts with the same are never drawn together.
    pub uses: Uses,
    /// Makes it.
    pub make: fn() -> Box<dyn Fault>,
}

/// What only one fault at a time can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// Nothing but the nodes it strikes.
    Nodes,
    /// The links.
    Links,
    /// The group that limits memory.
    Memory,
}

/// So many at the same time.
pub struct Together {
    count: usize,
    choice: &'static [Part],
    parts: Vec<(&'static str, Box<dyn Fault>)>,
    proofs: Vec<String>,
}

impl Together {
    /// Of these.
    #[must_use]
    pub fn new(count: usize, choice: &'static [Part]) -> Self {
        Self {
            count,
            choice,
            parts: Vec::new(),
            proofs: Vec::new(),
        }
    }

    fn draw(&mut self, field: &mut Field) -> Vec<Part> {
        let minority = (field.replicas as u16 - 1) / 2;
        let mut drawn: Vec<Part> = Vec::new();
        while drawn.len() < self.count {
            let fits = |part: &&Part| {
                let takes: u16 = drawn.iter().map(|other| other.takes).sum();
                takes + part.takes <= minority
                    && drawn.iter().all(|other| {
                        other.name != part.name
                            && (part.uses == Uses::Nodes || part.uses != other.uses)
                    })
            };
            let left: Vec<&Part> = self.choice.iter().filter(fits).collect();
            let Some(last) = left.len().checked_sub(1) else {
                break;
            };
            drawn.push(*left[field.chance.random_range(0..=last)]);
        }
        drawn
    }
}

impl std::fmt::Debug for Together {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.parts.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

impl Fault for Together {
    fn name(&self) -> String {
        format!("{} faults at the same time", self.count)
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            for part in self.draw(field) {
                let mut fault = (part.make)();
                let injected = async {
                    fault.inject(field).await?;
                    fault.prove(field).await
                };
                let proved = injected.await;
                field.struck.extend(fault.victims());
                self.parts.push((part.name, fault));
                let proof = proved.map_err(|error| error.context(part.name))?;
                self.proofs.push(format!("{}: {proof}", part.name));
            }
            anyhow::ensure!(self.parts.len() == self.count, "no so many go together");
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move { Ok(self.proofs.join("; ")) })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            let mut done = true;
            for (name, part) in &mut self.parts {
                let went = part.go_on(field).await;
                done &= went.map_err(|error| error.context(*name))?;
            }
            Ok(done)
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            // All are healed, also after one that cannot be.
            let mut healed = Ok(());
            while let Some((name, mut part)) = self.parts.pop() {
                let now = part.heal(field).await;
                healed = healed.and(now.map_err(|error| error.context(name)));
            }
            field.struck.clear();
            healed
        })
    }
}
