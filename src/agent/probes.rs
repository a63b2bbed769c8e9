//! `/healthz`, `/readyz` and `/metrics`, on a port of their own for the kubelet and for Prometheus:
//! no secrets, no actions.
//!
//! Every pod may reach that port and nobody is asked who they are, so a connection gets one answer,
//! little memory and little time, and the oldest gives way when there are too many.

use std::{collections::VecDeque, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at a time.
const CONNECTIONS: usize = 64;
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a connection may take in all: a scrape over a slow link included.
const CONNECTION: Duration = Duration::from_secs(20);
/// The largest request, and what is buffered of one, in bytes.
const BUFFER: usize = 16 * 1024;
/// The pause after a failed accept: mostly that there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

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
pub async fn serve(listener: TcpListener, status: Arc<dyn Status>, end: impl Future<Output = ()>) {
    let routes = routes(status);
    let mut connections = JoinSet::new();
    let mut by_age = VecDeque::new();
    tokio::pin!(end);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = &mut end => break,
        };
        let Ok((stream, _)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        by_age.retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
        if by_age.len() >= CONNECTIONS
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        by_age.push_back(connections.spawn(timeout(CONNECTION, answer(stream, routes.clone()))));
    }
    // What is asked already is answered: a probe must not fail because the agent drains.
    let _ = timeout(REQUEST, connections.join_all()).await;
}

async fn answer(stream: TcpStream, routes: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(BUFFER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "probe or scrape");
    }
}

fn routes(status: Arc<dyn Status>) -> Router {
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
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}
