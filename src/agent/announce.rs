//! Tells the cluster where the agent is and what certificate it serves, and learns whose client
//! certificates to believe.
//!
//! One task, which wakes up every five minutes and when the certificate changes. What it cannot do
//! it logs and tries again: the agent serves on meanwhile.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::tls::Tls;
use crate::kube::leases::{self, Published};

/// How often the Lease is renewed and the authorities of client certificates are read.
const RENEWAL: Duration = Duration::from_secs(300);
/// For how long the Lease is good, in seconds: one renewal may fail.
const DURATION: i32 = 900;
/// The first pause after a failure; it doubles up to `RENEWAL`.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an agent that drains tries to say so.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is told.
pub struct Announcement {
    /// The way to the API server.
    pub client: Client,
    /// Namespace of the Lease.
    pub namespace: String,
    /// The agent's node.
    pub node: String,
    /// Where the agent serves TLS, `ADDRESS:PORT`.
    pub address: Option<String>,
    /// Its certificate.
    pub tls: Arc<Tls>,
}

/// Tells it until the agent drains, and then that it is gone.
pub async fn run(announcement: Announcement, drain: CancellationToken) {
    let Announcement { client, namespace, node, address, tls } = announcement;
    let holder = format!("{node}_{}", Uuid::new_v4());
    let mut certificate = tls.certificate();
    let mut pause = PAUSE;
    // Each failure is logged once, however often it repeats itself.
    let (mut authorities, mut failure) = (Authorities::default(), String::new());
    loop {
        let published = Published {
            address: address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            certificate: certificate.borrow_and_update().clone(),
        };
        let work = async {
            tls.refresh();
            // The certificate first: the API server may be a slow one.
            let publish =
                leases::publish(&client, &namespace, &node, &holder, DURATION, &published);
            let written = within(publish).await;
            let read = authorities.learn(&client, &tls).await;
            written.and(read)
        };
        let done = tokio::select! {
            done = work => done,
            () = drain.cancelled() => break,
        };
        let wait = match done {
            Ok(()) => {
                if !failure.is_empty() {
                    tracing::info!(namespace, "the agent's Lease is published again");
                    failure.clear();
                }
                pause = PAUSE;
                RENEWAL
            }
            Err(error) => {
                if failure != error {
                    tracing::warn!(
                        error,
                        namespace,
                        lease = leases::name(&node),
                        "cannot publish the agent's Lease: clients cannot verify this agent; trying again"
                    );
                    failure = error;
                }
                let next = (pause * 2).min(RENEWAL);
                std::mem::replace(&mut pause, next)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = certificate.changed() => {}
            () = drain.cancelled() => break,
        }
    }
    let release = leases::release(&client, &namespace, &node, &holder);
    match tokio::time::timeout(FAREWELL, release).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(%error, "cannot release the agent's Lease"),
        Err(_) => tracing::info!("cannot release the agent's Lease: no answer in time"),
    }
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// What is known of the cluster's authorities of client certificates.
#[derive(Default)]
struct Authorities {
    told: String,
}

impl Authorities {
    /// Reads them. Errors: the API server could not be asked, so that it is worth another try soon.
    async fn learn(&mut self, client: &Client, tls: &Tls) -> Result<(), String> {
        if tls.has_client_ca_file() {
            return Ok(());
        }
        let (told, result) = match tokio::time::timeout(
            PATIENCE,
            leases::client_authorities(client),
        )
        .await
        {
            Ok(Ok(found)) => {
                let told = match (tls.set_client_authorities(found.as_deref()), &found) {
                    (Ok(()), Some(_)) => {
                        "client certificates of the cluster are believed".to_owned()
                    }
                    (Ok(()), None) => {
                        "no client certificates: the cluster publishes no authority for them"
                            .to_owned()
                    }
                    (Err(error), _) => {
                        format!(
                            "the cluster's authorities of client certificates cannot be used: {error:#}"
                        )
                    }
                };
                (told, Ok(()))
            }
            // Not allowed: that will not change soon, and a right that is gone must not leave trust
            // behind.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                let cleared = tls.set_client_authorities(None);
                let told = format!("no client certificates: {}", status.message);
                (told, cleared.map_err(|error| error.to_string()))
            }
            Ok(Err(error)) => (String::new(), Err(error.to_string())),
            Err(_) => (String::new(), Err(format!("no answer within {PATIENCE:?}"))),
        };
        if !told.is_empty() && told != self.told {
            tracing::info!("{told}");
            self.told = told;
        }
        result
    }
}
