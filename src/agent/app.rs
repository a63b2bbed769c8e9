//! The one place where the agent is wired together, started and drained.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use jiff::Timestamp;
use kube::Client;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    access::{self, Access, Method},
    announce::{self, Announcement},
    audit::{self, Audit},
    capture::Captures,
    config::{BrokerLoss, Config, Limits, Listen},
    expiry,
    files::Files,
    listen::{Server, Socket, Streams},
    metrics::{Metrics, Snapshot},
    probes,
    rpc::{
        capture::CaptureService, debug::DebugService, files::FilesService, gate::Gate,
        namespaces::NamespacesService, node::NodeService,
    },
    sessions::{Sessions, seal::SealKey},
    tls::{Source, Tls},
    verify::Verifier,
};
use crate::{
    domain::{name, pod::ContainerState},
    kube::{agents::AGENT_NAMESPACE, events::Events, pods::Pods},
    proto::v1::{
        self, capture_server::CaptureServer, debug_server::DebugServer, files_server::FilesServer,
        namespaces_server::NamespacesServer, node_server::NodeServer,
    },
    sys::{
        broker::{Broker, NamespaceEntry},
        capture::compiler::Compiler,
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
    /// How to get inside namespaces.
    pub entry: Arc<NamespaceEntry>,
    /// What compiles filters of captures.
    pub compiler: Compiler,
    /// Whom to let in.
    pub access: access::AccessOptions,
    /// Where to write who did what.
    pub audit: audit::Sink,
    /// How it is known to clients.
    pub identity: AgentIdentity,
}

/// How an agent is known to clients on the network.
#[derive(Debug, Clone)]
pub struct AgentIdentity {
    /// Its key and certificate. Default: made at start.
    pub tls: Source,
    /// Authorities of client certificates, PEM. Default: those that the cluster publishes.
    pub client_ca: Option<PathBuf>,
    /// Address that it has outside of its pod. Default: the one that it listens on.
    pub advertise: Option<IpAddr>,
    /// Namespace of its Lease. Default: `podsonde`.
    pub namespace: String,
    /// UID of its pod. Default: it runs in none.
    pub pod_uid: Option<String>,
    /// File with the key of the sessions' seals. Default: a key is made at start.
    pub seal_key: Option<PathBuf>,
}

impl Default for AgentIdentity {
    fn default() -> Self {
        let namespace = AGENT_NAMESPACE.to_owned();
        Self {
            tls: Source::SelfMade,
            client_ca: None,
            advertise: None,
            namespace,
            pod_uid: None,
            seal_key: None,
        }
    }
}

/// An agent that serves.
#[derive(Debug)]
pub struct Agent {
    drain: CancellationToken,
    /// Ends the probes, which go on answering while the agent drains.
    closed: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    limits: Limits,
    addresses: Vec<SocketAddr>,
    metrics_address: Option<SocketAddr>,
}

/// Runs the agent until SIGTERM or SIGINT, and drains it. `entry` is what [`super::privileges::separate`] has returned.
///
/// # Errors
/// If it cannot start, if one of its servers fails, or if the broker ends and the agent is to end with it.
pub async fn run(config: Config, entry: NamespaceEntry) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let entry = Arc::new(entry);
    let client = client(&config).await?;
    let tls = match (config.tls_cert, config.tls_key) {
        (Some(certificate), Some(key)) => Source::Files { certificate, key },
        _ => Source::SelfMade,
    };
    let identity = AgentIdentity {
        tls,
        client_ca: config.client_ca,
        advertise: config.advertise,
        namespace: config.namespace,
        pod_uid: config.pod_uid,
        seal_key: config.seal_key,
    };
    let settings = Settings {
        access: config.access.options(),
        audit: config.access.audit_log,
        node: config.node_name,
        listen: config.listen,
        metrics_listen: config.metrics_listen,
        host_pid: config.host_pid,
        limits: config.limits,
        entry: Arc::clone(&entry),
        compiler: Compiler::default(),
        identity,
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut agent = Agent::start(client, settings).await?;
    let mut ended = Ok(());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        failed = agent.tasks.join_next() => {
            if let Some(result) = failed {
                result.context("a task of the agent has panicked")?.context("a server of the agent has failed")?;
            }
        }
        () = broker_end(entry.broker()), if config.broker_loss == BrokerLoss::Exit => {
            ended = Err(anyhow::anyhow!("the broker has ended, and --broker-loss is exit"));
        }
    }
    tracing::info!("draining");
    agent.stop().await;
    tracing::info!("stopped");
    ended
}

/// A client of the API server as the agent needs it.
///
/// # Errors
/// If it cannot be made of `settings`.
pub fn client_of(mut settings: kube::Config) -> anyhow::Result<Client> {
    // Callers wait for each request, so what is worth another try is decided by request, and not by up to 15 silent ones.
    settings.default_retry = false;
    Client::try_from(settings).context("cannot make a client of the API server")
}

/// Each container and sandbox of the node takes two descriptors, and runtimes start processes with 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = limit.current, "cannot raise the limit of open descriptors");
    }
}

async fn client(config: &Config) -> anyhow::Result<Client> {
    let settings = match &config.kubeconfig {
        Some(file) => {
            let kubeconfig = kube::config::Kubeconfig::read_from(file)
                .with_context(|| format!("cannot read the kubeconfig {}", file.display()))?;
            kube::Config::from_custom_kubeconfig(
                kubeconfig,
                &kube::config::KubeConfigOptions::default(),
            )
            .await?
        }
        None => kube::Config::infer()
            .await
            .context("no way to the API server: no service account, no kubeconfig")?,
    };
    client_of(settings)
}

impl Agent {
    /// Starts serving. Returns once all sockets are bound; requests are refused until the pods of the node are read.
    ///
    /// # Errors
    /// If something that it needs is not there, or a socket cannot be bound.
    pub async fn start(client: Client, settings: Settings) -> anyhow::Result<Self> {
        let Settings {
            node,
            listen,
            metrics_listen,
            host_pid,
            limits,
            entry,
            compiler,
            access,
            audit,
            identity,
        } = settings;
        name::subdomain("--node-name", &node)?;
        name::label("--namespace", &identity.namespace)?;
        let features: Arc<[Feature]> =
            preflight::check(host_pid, &entry).context("cannot look at this node")?.into();
        report(&features);
        let containers =
            Containers::open(host_pid).context("cannot look at the host's processes")?;
        let containers = Arc::new(containers.in_pod(identity.pod_uid.clone()));

        let (drain, closed) = (CancellationToken::new(), CancellationToken::new());
        let pods = Arc::new(Pods::new(client.clone(), &node));
        let verifier =
            Arc::new(Verifier::new(Arc::clone(&pods), Arc::clone(&containers), Arc::clone(&entry)));
        let access = Access::new(client.clone(), &node, access);
        let events = Events::new(client.clone(), &node);
        let key = match &identity.seal_key {
            Some(file) => SealKey::read(file),
            None => SealKey::random(),
        };
        let sessions = Sessions::new(
            client.clone(),
            Arc::clone(&pods),
            Arc::clone(&verifier),
            limits.clone(),
            key?,
            drain.clone(),
        );
        let sessions = Arc::new(sessions);
        let metrics = Arc::new(Metrics::new(&node));
        let audit = Audit::open(&audit, &node)?;
        let (of_node, counted) = (Arc::clone(&pods), Arc::clone(&metrics));
        let gate =
            Arc::new(Gate::new(&node, of_node, access, audit, counted, &limits, drain.clone()));

        let debug = DebugService {
            gate: Arc::clone(&gate),
            sessions: Arc::clone(&sessions),
            containers: Arc::clone(&containers),
            events: events.clone(),
            limits: limits.clone(),
            node: node.clone(),
        };
        let files = Files::new(Arc::clone(&pods), Arc::clone(&containers), limits.files.clone());
        let files = Arc::new(files);
        let read = FilesService {
            gate: Arc::clone(&gate),
            files: Arc::clone(&files),
            node: node.clone(),
            drain: drain.clone(),
        };
        let namespaces = NamespacesService {
            gate: Arc::clone(&gate),
            pods: Arc::clone(&pods),
            verifier: Arc::clone(&verifier),
            node: node.clone(),
        };
        let captures = Captures::new(
            &node,
            Arc::clone(&pods),
            Arc::clone(&containers),
            Arc::clone(&entry),
            compiler,
            limits.captures.clone(),
            Arc::clone(&metrics),
        );
        let capture = CaptureService {
            gate: Arc::clone(&gate),
            captures: Arc::new(captures),
            events: events.clone(),
            metrics: Arc::clone(&metrics),
            drain: drain.clone(),
            node: node.clone(),
        };
        let describe = NodeService {
            gate,
            pods: Arc::clone(&pods),
            features: Arc::clone(&features),
            entry: Arc::clone(&entry),
            started_at: Timestamp::now(),
            node: node.clone(),
        };
        let (health, health_service) = tonic_health::server::health_reporter();
        // Before the first caller: the reporter begins with a server that serves.
        set_health(&health, ServingStatus::NotServing).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let streams: Streams = Method::streams().collect();
        // The transport holds requests of one message to `max_request_bytes`.
        let largest =
            streams.values().copied().fold(limits.transport.max_request_bytes, usize::max);
        let routes = Routes::new(health_service)
            .add_service(reflection)
            .add_service(DebugServer::new(debug).max_decoding_message_size(largest))
            .add_service(FilesServer::new(read).max_decoding_message_size(largest))
            .add_service(NamespacesServer::new(namespaces).max_decoding_message_size(largest))
            .add_service(CaptureServer::new(capture).max_decoding_message_size(largest))
            .add_service(NodeServer::new(describe).max_decoding_message_size(largest));

        let mut sockets = Vec::new();
        for place in &listen {
            let socket = Socket::bind(place).await?;
            match socket.tcp_address() {
                Some(address) => tracing::info!(%address, "serving gRPC"),
                None => tracing::info!(?place, "serving gRPC"),
            }
            sockets.push(socket);
        }
        let addresses: Vec<_> = sockets.iter().filter_map(Socket::tcp_address).collect();
        let with_tls =
            sockets.iter().filter(|socket| socket.is_tls()).find_map(Socket::tcp_address);
        let mut names: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        names.extend(addresses.iter().map(SocketAddr::ip).chain(identity.advertise));
        names.retain(|address| !address.is_unspecified());
        names.sort_unstable();
        names.dedup();
        let tls = Arc::new(Tls::new(&node, &names, identity.tls, identity.client_ca)?);
        let mut tasks = JoinSet::new();
        if let Some(address) = with_tls {
            let reached = identity
                .advertise
                .or(Some(address.ip()))
                .filter(|address| !address.is_unspecified());
            let announcement = Announcement {
                client,
                namespace: identity.namespace,
                node: node.clone(),
                address: reached
                    .map(|reached| SocketAddr::new(reached, address.port()).to_string()),
                tls: Arc::clone(&tls),
            };
            let told = announce::run(announcement, drain.clone());
            tasks.spawn(async move {
                told.await;
                Ok(())
            });
        }
        let server = Server::new(routes, streams, limits.transport.clone(), tls, drain.clone());
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
            entry: Arc::clone(&entry),
            files,
            drain: drain.clone(),
        });
        let mut metrics_address = None;
        if let Some(address) = metrics_listen {
            let listener = probes::bind(address).await?;
            let address =
                listener.local_addr().context("cannot tell the port of probes and metrics")?;
            tracing::info!(%address, "serving probes and metrics");
            metrics_address = Some(address);
            let end = closed.clone().cancelled_owned();
            tasks.spawn(async move {
                probes::serve(listener, status, end).await;
                Ok(())
            });
        }
        tasks.spawn(until(drain.clone(), {
            let pods = Arc::clone(&pods);
            async move { pods.run().await }
        }));
        tasks.spawn(until(
            drain.clone(),
            expiry::run(sessions, Arc::clone(&pods), containers, events),
        ));
        tasks.spawn(tell_broker_loss(entry, drain.clone()));
        tasks.spawn(tell_health(health, pods, drain.clone()));
        tracing::info!(node, version = env!("CARGO_PKG_VERSION"), "podsonde-agent started");
        Ok(Self { drain, closed, tasks, limits, addresses, metrics_address })
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
        let probes = usize::from(self.metrics_address.is_some());
        let all =
            async { while self.tasks.len() > probes && self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.drain_timeout, all).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        self.closed.cancel();
        // A scrape that is being answered; what is left then ends with `self`.
        let last = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), last).await;
    }
}

/// One clear line for each thing that is missing.
fn report(features: &[Feature]) {
    for Feature { name, available, required, message } in features {
        match (available, required) {
            (true, _) => tracing::debug!(feature = name, "preflight: {message}"),
            (false, true) => {
                tracing::error!(feature = name, "preflight: missing {name}: {message}");
            }
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

/// Waits until the broker has ended: for ever if there is none.
async fn broker_end(broker: Option<&Broker>) {
    let ended = match broker {
        // A failure to wait for it is no end; the broker shows as missing nevertheless.
        Some(broker) => broker.ended().await.is_ok(),
        None => false,
    };
    if !ended {
        std::future::pending::<()>().await;
    }
}

/// Says so once. Verdicts go on without evidence.
async fn tell_broker_loss(
    entry: Arc<NamespaceEntry>,
    drain: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = broker_end(entry.broker()) => {
            tracing::error!("the broker has ended: no namespace can be entered until the agent is started again");
            drain.cancelled().await;
        }
        () = drain.cancelled() => {}
    }
    Ok(())
}

/// Serving once the pods are read, not serving once it drains. Then ends the streams of those who watch it, which would keep the
/// servers from ending.
async fn tell_health(
    mut health: HealthReporter,
    pods: Arc<Pods>,
    drain: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = pods.changes();
    let ready = async { changes.wait_for(|version| *version > 0).await.is_ok() };
    if drain.run_until_cancelled(ready).await == Some(true) {
        set_health(&health, ServingStatus::Serving).await;
        drain.cancelled().await;
    }
    set_health(&health, ServingStatus::NotServing).await;
    for service in health_names() {
        health.clear_service_status(&service).await;
    }
    Ok(())
}

/// Tells health the status of the agent as a whole, whose name is empty, and of each service.
async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in health_names() {
        health.set_service_status(service, status).await;
    }
}

fn health_names() -> impl Iterator<Item = String> {
    std::iter::once(String::new()).chain(Method::services())
}

/// What the probes answer from.
struct Status {
    pods: Arc<Pods>,
    verifier: Arc<Verifier>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    entry: Arc<NamespaceEntry>,
    files: Arc<Files>,
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
        let (pods, watch_errors) = (self.pods.all().len(), self.pods.watch_errors());
        let can_enter = self.entry.is_available();
        let file_threads = self.files.thread_counts();
        self.metrics.render(Snapshot {
            pods,
            sessions,
            watch_errors,
            verdicts,
            can_enter,
            file_threads,
        })
    }
}
