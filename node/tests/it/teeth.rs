//! Shows that the simulation bites: a node that breaks one promise on purpose is caught, by the violation that was named
//! beforehand, under the seeds of the simulation, which a node that breaks none passes.

use std::time::Instant;

use roost::sabotage::Break;

use crate::simulation::child;
use crate::simulation::plan;
use crate::simulation::run::{Plan, Told};

/// Seeds that a break may need: those which a node that breaks none passes every day.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=300;
/// Clients of a broken cluster wait in vain, so they give up earlier; seconds of virtual time.
const LIMIT_S: u64 = 100;

/// What a break must raise.
fn must_raise(which: Break) -> &'static str {
    match which {
        Break::NoSync => "Lost",
        Break::VoteNotSaved => "VoteForgotten",
        Break::CommitAlone => "Lost",
        Break::StaleReads => "CameBack",
        Break::SnapshotUnchecked => "Diverged",
        Break::RowUnchecked => "BodyChanged",
        Break::IdReused => "IdReused",
        Break::DeletedEarly => "RemovedEarly",
        Break::NoDedup => "Duplicated",
        Break::NoOrder => "OutOfOrder",
        Break::CursorUnchecked => "Lost",
        Break::OutboxTrimmed => "TickMissing",
        Break::AnyClock => "TickWithoutCause",
    }
}

/// Goal: the tests notice every kind of broken promise. Method: each break in turn, seed after seed until it raises what
/// it must; then the same seed without it.
#[test]
#[cfg_attr(
    not(feature = "sabotage"),
    ignore = "only a build with --features roost/sabotage can break a promise"
)]
fn every_break_is_noticed() {
    let mut unnoticed = Vec::new();
    for &which in chosen().iter() {
        let (name, kind, began) = (which.name(), must_raise(which), Instant::now());
        let plans: Vec<Plan> = SEEDS.map(limited).collect();
        let (mut runs, mut others, mut raised) = (0, Vec::new(), None);
        child::run_all(&plans, Some(name), |told| {
            runs += 1;
            match told {
                Ok(told) => {
                    others.extend(told.found.iter().map(|found| found.kind.clone()));
                    raised = raised.take().or_else(|| evidence(&told, kind));
                }
                Err(error) => others.push(error),
            }
            raised.is_none()
        });
        others.sort();
        others.dedup();
        let took = began.elapsed().as_secs_f64();
        match raised {
            Some((seed, what)) => {
                println!(
                    "{name}: {kind} under seed {seed}, {runs} runs, {took:.1} s ({})",
                    others.join(", ")
                );
                println!("    {what}");
                let sound = child::run_one(limited(seed), None).expect("it runs");
                assert!(
                    sound.found.is_empty(),
                    "{name}: without the break seed {seed} finds {:?}",
                    sound.found
                );
            }
            None => {
                println!(
                    "{name}: no {kind} in {runs} runs, {took:.1} s ({})",
                    others.join(", ")
                );
                unnoticed.push(name);
            }
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}

/// All, or the one that `ROOST_TEETH` names.
fn chosen() -> Vec<Break> {
    let name = std::env::var("ROOST_TEETH").ok();
    let wanted = |which: &&Break| name.as_deref().is_none_or(|name| which.name() == name);
    let chosen: Vec<Break> = Break::ALL.iter().filter(wanted).copied().collect();
    assert!(!chosen.is_empty(), "there is no break {name:?}");
    chosen
}

fn limited(seed: u64) -> Plan {
    Plan {
        limit_s: LIMIT_S,
        ..plan(seed)
    }
}

/// The seed and the first finding of this kind.
fn evidence(told: &Told, kind: &str) -> Option<(u64, String)> {
    let mut found = told.found.iter();
    let found = found.find(|found| found.kind == kind)?;
    Some((told.seed, found.what.clone()))
}
