//! The one place where the agent is wired together, started and drained.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use jiff::Timestamp;
use kube::Client;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    access::{self, Access},
    audit::{self, Audit},
    config::{Config, Limits, Listen},
    expiry,
    listen::Socket,
    metrics::{Metrics, Snapshot},
    probes,
    rpc::{debug::DebugService, gate::Gate, namespaces::NamespacesService, node::NodeService},
    sessions::Sessions,
    verify::Verifier,
};
use crate::{
    domain::{name, pod::ContainerState},
    kube::{events::Events, pods::Pods},
    proto::v1::{
        self, debug_server::DebugServer, namespaces_server::NamespacesServer, node_server::NodeServer,
    },
    sys::{
        containers::Containers,
        preflight::{self, Feature},
    },
};

/// No request of this API is larger.
const MAX_REQUEST: usize = 256 * 1024;

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
    /// Whom to let in.
    pub access: access::Options,
    /// Where to write who did what.
    pub audit: audit::Sink,
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
    let settings = Settings {
        access: config.access.options(),
        audit: config.access.audit_log,
        node: config.node_name,
        listen: config.listen,
        metrics_listen: config.metrics_listen,
        host_pid: config.host_pid,
        limits: config.limits,
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
        let Settings { node, listen, metrics_listen, host_pid, limits, access, audit } = settings;
        name::subdomain("--node-name", &node)?;
        let features: Arc<[Feature]> = preflight::check(host_pid).context("cannot look at this node")?.into();
        report(&features);
        let containers = Arc::new(Containers::open(host_pid).context("cannot look at the host's processes")?);

        let drain = CancellationToken::new();
        let pods = Arc::new(Pods::new(client.clone(), &node));
        let verifier = Arc::new(Verifier::new(Arc::clone(&pods), Arc::clone(&containers)));
        let access = Access::new(client.clone(), &node, access);
        let events = Events::new(client.clone(), &node);
        let sessions =
            Sessions::new(client, Arc::clone(&pods), Arc::clone(&verifier), limits.clone(), drain.clone());
        let sessions = Arc::new(sessions);
        let metrics = Arc::new(Metrics::new(&node));
        let audit = Audit::open(&audit, &node)?;
        let (of_node, counted) = (Arc::clone(&pods), Arc::clone(&metrics));
        let gate = Arc::new(Gate::new(&node, of_node, access, audit, counted, &limits, drain.clone()));

        let debug = DebugService {
            gate: Arc::clone(&gate),
            sessions: Arc::clone(&sessions),
            containers: Arc::clone(&containers),
            events: events.clone(),
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
        let routes = Routes::new(health_service)
            .add_service(reflection)
            .add_service(DebugServer::new(debug).max_decoding_message_size(MAX_REQUEST))
            .add_service(NamespacesServer::new(namespaces).max_decoding_message_size(MAX_REQUEST))
            .add_service(NodeServer::new(describe).max_decoding_message_size(MAX_REQUEST));

        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        for place in &listen {
            let socket = Socket::bind(place).await?;
            addresses.extend(socket.tcp_address());
            tracing::info!(?place, "serving gRPC");
            tasks.spawn(serve(socket, routes.clone(), drain.clone()));
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
        tasks.spawn(until(drain.clone(), expiry::run(sessions, Arc::clone(&pods), containers, events)));
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

async fn serve(socket: Socket, routes: Routes, drain: CancellationToken) -> anyhow::Result<()> {
    let keepalive = Some(Duration::from_secs(20));
    let mut server = Server::builder()
        .http2_keepalive_interval(keepalive)
        .http2_keepalive_timeout(keepalive)
        .max_concurrent_streams(128)
        .http2_max_header_list_size(16 * 1024)
        .tcp_nodelay(true);
    let router = server.add_routes(routes);
    let end = drain.cancelled_owned();
    match socket {
        Socket::Tcp(listener) => {
            router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), end).await?;
        }
        Socket::Unix(listener) => {
            router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), end).await?;
        }
    }
    Ok(())
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
