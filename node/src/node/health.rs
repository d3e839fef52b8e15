//! Whether the node lives, whether it is ready, and what an operator should know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::Config;
use crate::edge::{http, peer};
use crate::metrics;
use crate::replica::Replicas;
use crate::storage::syncer::Syncer;

/// A sync outstanding for longer than this means that the process makes no progress, whatever else it does.
const SYNC_STUCK: Duration = Duration::from_secs(60);

/// What the probes and the other nodes are told of this one.
pub struct NodeHealth {
    name: String,
    syncer: Arc<Syncer>,
    disk_low: Arc<AtomicBool>,
    warnings: Vec<String>,
    phase: Mutex<Phase>,
    /// The phase is another one.
    changed: Notify,
    /// Set and taken back by whoever watches over something.
    noted: Mutex<BTreeMap<&'static str, String>>,
    /// How far the rebuild of the node is, while there is one.
    rebuild: Mutex<Option<String>>,
}

enum Phase {
    Waiting(String),
    Joined(Arc<Replicas>),
    Stopping,
}

impl NodeHealth {
    /// It waits for its cluster.
    #[must_use]
    pub fn new(config: &Config, syncer: Arc<Syncer>) -> Arc<Self> {
        let warnings = config
            .insecure_listeners()
            .into_iter()
            .map(|(key, address)| {
                format!(
                    "{}: {key} listens on {address} without encryption",
                    config.name
                )
            })
            .collect();
        Arc::new(Self {
            name: config.name.clone(),
            syncer,
            disk_low: Arc::default(),
            warnings,
            phase: Mutex::new(Phase::Waiting("the node is starting".to_owned())),
            changed: Notify::new(),
            noted: Mutex::default(),
            rebuild: Mutex::default(),
        })
    }

    /// The flag that tells whether the disk is below its reserve; its keeper sets it.
    pub(crate) fn disk_low_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.disk_low)
    }

    /// The same, to read.
    pub(crate) fn disk_low_handle(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let flag = self.disk_low_flag();
        Arc::new(move || flag.load(Ordering::Relaxed))
    }

    /// Notes what an operator should know about a subject, or that there is nothing more to know.
    pub(crate) fn note(&self, subject: &'static str, warning: Option<String>) {
        let mut noted = self.noted.lock();
        match warning {
            Some(warning) => drop(noted.insert(subject, warning)),
            None => drop(noted.remove(subject)),
        }
    }

    /// Until its replicas are back, a node that lost its store is not ready: nobody should stop another one now.
    pub(crate) fn rebuilds(&self, progress: Option<String>) {
        *self.rebuild.lock() = progress;
    }

    pub(crate) fn waits_for(&self, what: String) {
        self.enter(Phase::Waiting(what));
    }

    /// It takes part, and serves as soon as its replicas do.
    pub fn joined(&self, replicas: &Arc<Replicas>) {
        self.enter(Phase::Joined(Arc::clone(replicas)));
    }

    pub(crate) fn stopping(&self) {
        self.enter(Phase::Stopping);
    }

    /// Returns when the node enters another phase of its life. For one listener.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn enter(&self, phase: Phase) {
        *self.phase.lock() = phase;
        self.changed.notify_one();
    }

    fn readiness(&self) -> Result<(), String> {
        let ready = match &*self.phase.lock() {
            Phase::Waiting(what) => Err(what.clone()),
            Phase::Stopping => Err("the node is stopping".to_owned()),
            Phase::Joined(replicas) => match self.rebuild.lock().clone() {
                Some(progress) => Err(progress),
                None => replicas.readiness(),
            },
        };
        metrics::READY
            .handle()
            .set(f64::from(u8::from(ready.is_ok())));
        ready
    }
}

impl http::Probes for NodeHealth {
    fn alive(&self) -> Result<(), String> {
        match self.syncer.outstanding_since() {
            Some(since) if since.elapsed() > SYNC_STUCK => Err(format!(
                "a sync has been outstanding for {} s",
                since.elapsed().as_secs()
            )),
            _ => Ok(()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.readiness()
    }
}

impl peer::Health for NodeHealth {
    fn ready(&self) -> bool {
        self.readiness().is_ok()
    }

    fn disk_low(&self) -> bool {
        self.disk_low.load(Ordering::Relaxed)
    }

    fn leaving(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Stopping)
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        if self.disk_low() {
            let disk = "the disk is below its reserve: new messages are refused";
            warnings.push(format!("{}: {disk}", self.name));
        }
        let (noted, rebuild) = (self.noted.lock(), self.rebuild.lock());
        warnings.extend(
            noted
                .values()
                .chain(rebuild.as_ref())
                .map(|warning| format!("{}: {warning}", self.name)),
        );
        warnings
    }
}
