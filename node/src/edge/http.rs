//! Health and metrics over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::metrics::Exposition;

/// What the probes ask.
pub trait Probes: Send + Sync + 'static {
    /// Whether the process makes progress.
    ///
    /// # Errors
    /// What is stuck, in words for an operator.
    fn alive(&self) -> Result<(), String>;
    /// Whether the node may get clients.
    ///
    /// # Errors
    /// What it waits for, in words for an operator.
    fn ready(&self) -> Result<(), String>;
}

#[derive(Clone)]
struct Shared {
    probes: Arc<dyn Probes>,
    exposition: Arc<Exposition>,
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn routes(probes: Arc<dyn Probes>, exposition: Arc<Exposition>) -> Router {
    Router::new()
        .route(
            "/healthz",
            get(async |State(shared): State<Shared>| answer(shared.probes.alive())),
        )
        .route(
            "/readyz",
            get(async |State(shared): State<Shared>| answer(shared.probes.ready())),
        )
        .route(
            "/metrics",
            get(async |State(shared): State<Shared>| shared.exposition.render()),
        )
        .with_state(Shared { probes, exposition })
}

fn answer(probe: Result<(), String>) -> (StatusCode, String) {
    match probe {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
