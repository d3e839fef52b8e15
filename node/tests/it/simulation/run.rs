//! One run under one seed, in this thread, and what it found.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

use roost_chaos_tests::checker;
use serde::{Deserialize, Serialize};

use super::counters::Counters;
use super::recorder;
use super::stage::Stage;

/// What a run is to be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Disks say that they have synced, and have not.
    pub(crate) disks_lie: bool,
    /// Virtual time after which clients give up, seconds; a good run takes a fraction of it.
    pub(crate) limit_s: u64,
}

/// What it found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) seed: u64,
    pub(crate) accepted: u64,
    /// How often what happened.
    pub(crate) seen: BTreeMap<String, u64>,
    pub(crate) found: Vec<Found>,
    /// Of the history and of every byte on every disk.
    pub(crate) digest: String,
    pub(crate) virtual_time: Duration,
    pub(crate) real_time: Duration,
    /// The history, if anything was found.
    pub(crate) history: Option<PathBuf>,
    /// The lines of it that are about what was found.
    pub(crate) about: Vec<String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    /// The checker's name for it; or `Diverged`, `VoteForgotten`, `IdReused` or `Mistreated`, which only a look inside shows.
    pub(crate) kind: String,
    pub(crate) what: String,
}

/// Lines of the history shown with what was found.
const SHOWN_MAX: usize = 60;

/// Runs a plan. A task of the cluster that panics is a finding, though tokio would go on.
pub(crate) fn run(plan: Plan) -> Told {
    thread_local!(static PANICS: Cell<usize> = const { Cell::new(0) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            default(info);
        }));
    });
    let (before, began) = (PANICS.get(), Instant::now());
    let counters = Counters::default();
    let mut played = metrics::with_local_recorder(&counters, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime of one thread needs nothing");
        runtime.block_on(async { Stage::set(plan).await.play().await })
    });
    let retries = counters.get(roost::metrics::OUTBOX_RETRIES.name());
    played.seen.insert("outbox retry", retries);
    if PANICS.get() > before {
        let panicked = "a task panicked; see above".to_owned();
        played.complaints.push(panicked);
    }
    let violations = checker::check(&played.records);
    let violations = violations.iter().map(|violation| Found {
        kind: kind(violation),
        what: violation.to_string(),
    });
    let inside = |kind: &'static str, all: Vec<String>| {
        all.into_iter().map(move |what| Found {
            kind: kind.to_owned(),
            what,
        })
    };
    let found: Vec<Found> = violations
        .chain(inside("Diverged", played.diverged))
        .chain(inside("VoteForgotten", played.forgetful))
        .chain(inside("IdReused", played.reused))
        .chain(inside("Mistreated", played.complaints))
        .collect();
    let (mut history, mut about) = (None, Vec::new());
    if !found.is_empty() {
        let name = format!("{}-{}", plan.seed, std::process::id());
        history = Some(recorder::keep(&name, &played.records));
        let texts: Vec<String> = found.iter().map(|found| found.what.clone()).collect();
        about = recorder::about(&played.records, &texts, SHOWN_MAX);
    }
    Told {
        seed: plan.seed,
        accepted: played.accepted as u64,
        seen: played
            .seen
            .into_iter()
            .map(|(what, times)| (what.to_owned(), times))
            .collect(),
        found,
        digest: format!("{:032x}", played.digest),
        virtual_time: played.virtual_time,
        real_time: began.elapsed(),
        history,
        about,
    }
}

/// The name of the checker's variant.
fn kind(violation: &checker::Violation) -> String {
    let debug = format!("{violation:?}");
    let name = debug.split([' ', '{', '(']).next();
    name.unwrap_or_default().to_owned()
}
