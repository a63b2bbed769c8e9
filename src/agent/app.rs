//! The one place where the agent is wired together, started and drained.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context;
use jiff::Timestamp;
use kube::Client;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    access::Access,
    announce::{self, Announcement},
    config::{Config, Limits, Listen},
    expiry,
    listen::{Server, Socket},
    metrics::{Metrics, Snapshot},
    probes,
    rpc::{debug::DebugService, gate::Gate, namespaces::NamespacesService, node::NodeService},
    sessions::Sessions,
    tls::{Source, Tls},
    verify::Verifier,
};
use crate::{
    domain::{name, pod::ContainerState},
    kube::{agents::AGENT_NAMESPACE, pods::Pods},
    proto::v1::{
        self, debug_server::DebugServer, namespaces_server::NamespacesServer, node_server::NodeServer,
    },
    sys::{
        containers::Containers,
        preflight::{self, Feature},
    },
};

/// What an agent is made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the node.
    pub node: String,
    /// Where to serve gRPC.
    pub listen: Vec<Listen>,
    /// Where to serve probes and metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Pid of the process whose namespaces are the host's.
    pub host_pid: u32,
    /// How much of everything.
    pub limits: Limits,
    /// How it is known to clients.
    pub identity: Identity,
}

/// How an agent is known to clients on the network.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its key and certificate. Default: made at start.
    pub tls: Source,
    /// Authorities of client certificates, PEM. Default: those that the cluster publishes.
    pub client_ca: Option<PathBuf>,
    /// Address that it has outside of its pod. Default: the one that it listens on.
    pub advertise: Option<IpAddr>,
    /// Namespace of its Lease. Default: `podsonde`.
    pub namespace: String,
}

impl Default for Identity {
    fn default() -> Self {
        let namespace = AGENT_NAMESPACE.to_owned();
        Self { tls: Source::SelfMade, client_ca: None, advertise: None, namespace }
    }
}

/// An agent that serves.
#[derive(Debug)]
pub struct Agent {
    drain: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    limits: Limits,
    addresses: Vec<SocketAddr>,
    metrics_address: Option<SocketAddr>,
}

/// Runs the agent until SIGTERM or SIGINT, and drains it.
///
/// # Errors
/// If it cannot start, or if one of its servers fails.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let client = client(&config).await?;
    let tls = match (config.tls_cert, config.tls_key) {
        (Some(certificate), Some(key)) => Source::Files { certificate, key },
        _ => Source::SelfMade,
    };
    let identity = Identity {
        tls,
        client_ca: config.client_ca,
        advertise: config.advertise,
        namespace: config.namespace,
    };
    let settings = Settings {
        node: config.node_name,
        listen: config.listen,
        metrics_listen: config.metrics_listen,
        host_pid: config.host_pid,
        limits: config.limits,
        identity,
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut agent = Agent::start(client, settings).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        failed = agent.tasks.join_next() => {
            if let Some(result) = failed {
                result.context("a task of the agent has panicked")?.context("a server of the agent has failed")?;
            }
        }
    }
    tracing::info!("draining");
    agent.stop().await;
    tracing::info!("stopped");
    Ok(())
}

async fn client(config: &Config) -> anyhow::Result<Client> {
    let settings = match &config.kubeconfig {
        Some(file) => {
            let kubeconfig = kube::config::Kubeconfig::read_from(file)
                .with_context(|| format!("cannot read the kubeconfig {}", file.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
                .await?
        }
        None => kube::Config::infer()
            .await
            .context("no way to the API server: no service account, no kubeconfig")?,
    };
    Client::try_from(settings).context("cannot make a client of the API server")
}

impl Agent {
    /// Starts serving. Returns once all sockets are bound; requests are refused until the pods of the node are read.
    ///
    /// # Errors
    /// If something that it needs is not there, or a socket cannot be bound.
    pub async fn start(client: Client, settings: Settings) -> anyhow::Result<Self> {
        let Settings { node, listen, metrics_listen, host_pid, limits, identity } = settings;
        name::subdomain("--node-name", &node)?;
        name::label("--namespace", &identity.namespace)?;
        let features: Arc<[Feature]> = preflight::check(host_pid).context("cannot look at this node")?.into();
        report(&features);
        let containers = Arc::new(Containers::open(host_pid).context("cannot look at the host's processes")?);

        let drain = CancellationToken::new();
        let pods = Arc::new(Pods::new(client.clone(), &node));
        let verifier = Arc::new(Verifier::new(Arc::clone(&pods), Arc::clone(&containers)));
        let sessions = Sessions::new(
            client.clone(),
            Arc::clone(&pods),
            Arc::clone(&verifier),
            limits.clone(),
            drain.clone(),
        );
        let sessions = Arc::new(sessions);
        let metrics = Arc::new(Metrics::new(&node));
        let gate = Gate::new(&node, Access::new(), Arc::clone(&metrics), limits.max_requests, drain.clone());
        let gate = Arc::new(gate);

        let debug = DebugService {
            gate: Arc::clone(&gate),
            sessions: Arc::clone(&sessions),
            containers: Arc::clone(&containers),
            limits: limits.clone(),
            node: node.clone(),
        };
        let namespaces = NamespacesService {
            gate: Arc::clone(&gate),
            pods: Arc::clone(&pods),
            verifier: Arc::clone(&verifier),
            node: node.clone(),
        };
        let describe = NodeService {
            gate,
            pods: Arc::clone(&pods),
            features: Arc::clone(&features),
            started_at: Timestamp::now(),
            node: node.clone(),
        };
        let (health, health_service) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let largest = limits.transport.max_request_bytes;
        let routes = Routes::new(health_service)
            .add_service(reflection)
            .add_service(DebugServer::new(debug).max_decoding_message_size(largest))
            .add_service(NamespacesServer::new(namespaces).max_decoding_message_size(largest))
            .add_service(NodeServer::new(describe).max_decoding_message_size(largest));

        let mut sockets = Vec::new();
        for place in &listen {
            sockets.push(Socket::bind(place).await?);
            tracing::info!(?place, "serving gRPC");
        }
        let addresses: Vec<_> = sockets.iter().filter_map(Socket::tcp_address).collect();
        let with_tls = sockets.iter().filter(|socket| socket.is_tls()).find_map(Socket::tcp_address);
        let mut names: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        names.extend(addresses.iter().map(SocketAddr::ip).chain(identity.advertise));
        names.retain(|address| !address.is_unspecified());
        names.sort_unstable();
        names.dedup();
        let tls = Arc::new(Tls::new(&node, &names, identity.tls, identity.client_ca)?);
        let mut tasks = JoinSet::new();
        if let Some(address) = with_tls {
            let reached =
                identity.advertise.or(Some(address.ip())).filter(|address| !address.is_unspecified());
            let announcement = Announcement {
                client,
                namespace: identity.namespace,
                node: node.clone(),
                address: reached.map(|reached| SocketAddr::new(reached, address.port()).to_string()),
                tls: Arc::clone(&tls),
            };
            let told = announce::run(announcement, drain.clone());
            tasks.spawn(async move {
                told.await;
                Ok(())
            });
        }
        let server = Server::new(routes, limits.transport.clone(), tls, drain.clone());
        for socket in sockets {
            let served = server.clone().serve(socket);
            tasks.spawn(async move {
                served.await;
                Ok(())
            });
        }
        let status = Arc::new(Status {
            pods: Arc::clone(&pods),
            verifier,
            sessions: Arc::clone(&sessions),
            metrics,
            drain: drain.clone(),
        });
        let mut metrics_address = None;
        if let Some(address) = metrics_listen {
            let listener = probes::bind(address).await?;
            metrics_address = listener.local_addr().ok();
            let end = drain.clone().cancelled_owned();
            tasks.spawn(async move { Ok(probes::serve(listener, status, end).await?) });
        }
        tasks.spawn(until(drain.clone(), {
            let pods = Arc::clone(&pods);
            async move { pods.run().await }
        }));
        tasks.spawn(until(drain.clone(), expiry::run(sessions, Arc::clone(&pods), containers)));
        tasks.spawn(tell_health(health, pods, drain.clone()));
        tracing::info!(node, version = env!("CARGO_PKG_VERSION"), "podsonde-agent started");
        Ok(Self { drain, tasks, limits, addresses, metrics_address })
    }

    /// The TCP addresses that gRPC is served on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The address that probes and metrics are served on.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Takes no new requests, lets running ones end, at most so long as the limits say.
    pub async fn stop(mut self) {
        self.drain.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.drain_timeout, all).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
    }
}

/// One clear line for each thing that is missing.
fn report(features: &[Feature]) {
    for Feature { name, available, required, message } in features {
        match (available, required) {
            (true, _) => tracing::debug!(feature = name, "preflight: {message}"),
            (false, true) => tracing::error!(feature = name, "preflight: missing {name}: {message}"),
            (false, false) => tracing::info!(feature = name, "preflight: no {name}: {message}"),
        }
    }
}

/// Runs `work`, which has no end of its own, until the agent drains.
async fn until(drain: CancellationToken, work: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        () = work => anyhow::bail!("a watch of the agent has ended"),
        () = drain.cancelled() => Ok(()),
    }
}

/// Serving once the pods are read, not serving once it drains.
async fn tell_health(
    health: HealthReporter,
    pods: Arc<Pods>,
    drain: CancellationToken,
) -> anyhow::Result<()> {
    let services = ["", "podsonde.v1.Debug", "podsonde.v1.Namespaces", "podsonde.v1.Node"];
    let mut changes = pods.changes();
    let steps = [ServingStatus::NotServing, ServingStatus::Serving, ServingStatus::NotServing];
    for (step, status) in steps.into_iter().enumerate() {
        match step {
            1 => tokio::select! {
                _ = changes.wait_for(|version| *version > 0) => {}
                () = drain.cancelled() => {}
            },
            2 => drain.cancelled().await,
            _ => {}
        }
        for service in services {
            health.set_service_status(service, status).await;
        }
    }
    Ok(())
}

/// What the probes answer from.
struct Status {
    pods: Arc<Pods>,
    verifier: Arc<Verifier>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
}

impl probes::Status for Status {
    fn ready(&self) -> Result<(), &'static str> {
        match (self.drain.is_cancelled(), self.pods.is_ready()) {
            (true, _) => Err("draining"),
            (_, false) => Err("the pods of the node are not read yet"),
            _ => Ok(()),
        }
    }

    fn metrics(&self) -> String {
        let mut sessions = [0; 3];
        for session in self.sessions.all() {
            let [waiting, running, ended] = &mut sessions;
            *match session.container.state {
                _ if session.has_ended() => ended,
                ContainerState::Running => running,
                _ => waiting,
            } += 1;
        }
        let verdicts = self.verifier.counts();
        self.metrics.render(Snapshot { pods: self.pods.all().len(), sessions, verdicts })
    }
}
