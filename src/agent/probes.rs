//! `/healthz`, `/readyz` and `/metrics`, on a port of their own for the kubelet and for Prometheus: no secrets, no actions.

use std::{future::Future, net::SocketAddr, sync::Arc};

use anyhow::Context;
use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use tokio::net::TcpListener;

/// What the probes answer from.
pub trait Status: Send + Sync + 'static {
    /// Whether the agent can serve requests; if not, why not.
    fn ready(&self) -> Result<(), &'static str>;
    /// The metrics as text.
    fn metrics(&self) -> String;
}

/// Binds the port.
///
/// # Errors
/// If the address is in use.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for probes and metrics"))
}

/// Serves until `end`.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    status: Arc<dyn Status>,
    end: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (for_ready, for_metrics) = (Arc::clone(&status), status);
    let ready = move || async move {
        match for_ready.ready() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    };
    let metrics = move || async move {
        (
            [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            for_metrics.metrics(),
        )
    };
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    axum::serve(listener, routes).with_graceful_shutdown(end).await
}
