//! The one place where the agent is wired together, started and shut down.

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
use tonic_health::ServingStatus;

use super::{
    access::{self, Access, Method},
    announce::{self, Announcement},
    audit::{self, Audit},
    capture::Captures,
    config::{BrokerLoss, Config, Limits, Listen},
    expiry,
    files::Files,
    health,
    listen::{Server, Socket, Streams},
    metrics::Metrics,
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
    domain::name,
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

/// The path of reflection, whose clients stream requests.
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Everything that an agent is started with.
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
    /// How much clients may ask of it.
    pub limits: Limits,
    /// How namespaces are entered.
    pub entry: Arc<NamespaceEntry>,
    /// What compiles the filters of captures.
    pub compiler: Compiler,
    /// How callers are authenticated and authorised.
    pub access: access::AccessOptions,
    /// Where the audit log goes.
    pub audit: audit::Sink,
    /// How clients find and authenticate it.
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
    /// Ends everything but the probes.
    shutdown: CancellationToken,
    /// Ends the probes, which go on answering while the agent shuts down.
    closed: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    limits: Limits,
    addresses: Vec<SocketAddr>,
    metrics_address: Option<SocketAddr>,
}

/// Runs the agent until SIGTERM or SIGINT, then shuts it down. `entry` is what
/// [`super::privileges::separate`] returned.
///
/// # Errors
/// If the agent cannot start, if one of its servers fails, or if the broker ends under
/// `--broker-loss=exit`.
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

/// A client of the API server that does not retry by itself.
///
/// # Errors
/// If no client can be made of `settings`.
pub fn client_of(mut settings: kube::Config) -> anyhow::Result<Client> {
    // Callers wait for each request, so the code behind it decides what is worth another try. The
    // client's own default is up to 15 silent ones.
    settings.default_retry = false;
    Client::try_from(settings).context("cannot make a client of the API server")
}

/// Each container and sandbox of the node takes two descriptors, and runtimes start processes with
/// 1024.
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

/// What the services work with.
struct Parts {
    pods: Arc<Pods>,
    containers: Arc<Containers>,
    verifier: Arc<Verifier>,
    sessions: Arc<Sessions>,
    files: Arc<Files>,
    captures: Arc<Captures>,
    events: Events,
    metrics: Arc<Metrics>,
    features: Arc<[Feature]>,
    gate: Arc<Gate>,
    shutdown: CancellationToken,
}

impl Parts {
    fn new(client: &Client, settings: &Settings) -> anyhow::Result<Self> {
        let Settings { node, host_pid, limits, entry, identity, .. } = settings;
        let features: Arc<[Feature]> =
            preflight::check(*host_pid, entry).context("cannot look at this node")?.into();
        log_features(&features);
        let containers =
            Containers::open(*host_pid).context("cannot look at the host's processes")?;
        let containers = Arc::new(containers.in_pod(identity.pod_uid.clone()));
        let shutdown = CancellationToken::new();
        let pods = Arc::new(Pods::new(client.clone(), node));
        let verifier =
            Arc::new(Verifier::new(Arc::clone(&pods), Arc::clone(&containers), Arc::clone(entry)));
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
            shutdown.clone(),
        );
        let metrics = Arc::new(Metrics::new(node));
        let files = Files::new(Arc::clone(&pods), Arc::clone(&containers), limits.files.clone());
        let captures = Captures::new(
            node,
            Arc::clone(&pods),
            Arc::clone(&containers),
            Arc::clone(entry),
            settings.compiler.clone(),
            limits.captures.clone(),
            Arc::clone(&metrics),
        );
        let gate = Gate::new(
            node,
            Arc::clone(&pods),
            Access::new(client.clone(), node, settings.access.clone()),
            Audit::open(&settings.audit, node)?,
            Arc::clone(&metrics),
            limits,
            shutdown.clone(),
        );
        Ok(Self {
            pods,
            containers,
            verifier,
            sessions: Arc::new(sessions),
            files: Arc::new(files),
            captures: Arc::new(captures),
            events: Events::new(client.clone(), node),
            metrics,
            features,
            gate: Arc::new(gate),
            shutdown,
        })
    }

    /// Adds the services of `podsonde.v1` to those that are there.
    fn add_services(&self, routes: Routes, settings: &Settings, largest: usize) -> Routes {
        let node = || settings.node.clone();
        let gate = || Arc::clone(&self.gate);
        let debug = DebugService {
            gate: gate(),
            sessions: Arc::clone(&self.sessions),
            containers: Arc::clone(&self.containers),
            events: self.events.clone(),
            limits: settings.limits.clone(),
            node: node(),
        };
        let files = FilesService {
            gate: gate(),
            files: Arc::clone(&self.files),
            node: node(),
            drain: self.shutdown.clone(),
        };
        let namespaces = NamespacesService {
            gate: gate(),
            pods: Arc::clone(&self.pods),
            verifier: Arc::clone(&self.verifier),
            node: node(),
        };
        let capture = CaptureService {
            gate: gate(),
            captures: Arc::clone(&self.captures),
            events: self.events.clone(),
            metrics: Arc::clone(&self.metrics),
            drain: self.shutdown.clone(),
            node: node(),
        };
        let describe = NodeService {
            gate: gate(),
            pods: Arc::clone(&self.pods),
            features: Arc::clone(&self.features),
            entry: Arc::clone(&settings.entry),
            started_at: Timestamp::now(),
            node: node(),
        };
        routes
            .add_service(DebugServer::new(debug).max_decoding_message_size(largest))
            .add_service(FilesServer::new(files).max_decoding_message_size(largest))
            .add_service(NamespacesServer::new(namespaces).max_decoding_message_size(largest))
            .add_service(CaptureServer::new(capture).max_decoding_message_size(largest))
            .add_service(NodeServer::new(describe).max_decoding_message_size(largest))
    }

    /// What probes and metrics answer from.
    fn status(&self, entry: Arc<NamespaceEntry>) -> Arc<health::Status> {
        Arc::new(health::Status {
            pods: Arc::clone(&self.pods),
            verifier: Arc::clone(&self.verifier),
            sessions: Arc::clone(&self.sessions),
            metrics: Arc::clone(&self.metrics),
            entry,
            files: Arc::clone(&self.files),
            shutdown: self.shutdown.clone(),
        })
    }
}

impl Agent {
    /// Starts serving. Returns once all sockets are bound. Requests are refused until the pods of
    /// the node are known.
    ///
    /// # Errors
    /// If the settings are malformed, the node lacks what the agent needs, or a socket cannot be
    /// bound.
    pub async fn start(client: Client, settings: Settings) -> anyhow::Result<Self> {
        name::subdomain("--node-name", &settings.node)?;
        name::label("--namespace", &settings.identity.namespace)?;
        let parts = Parts::new(&client, &settings)?;
        let (reporter, health_service) = tonic_health::server::health_reporter();
        // Before the first caller, because the reporter begins with a server that serves.
        health::set(&reporter, ServingStatus::NotServing).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let transport = settings.limits.transport.clone();
        let mut streams: Streams = Method::streams().collect();
        streams.insert(REFLECTION.to_owned(), transport.max_request_bytes);
        // The transport holds each method to its own limit.
        let largest = streams.values().copied().fold(transport.max_request_bytes, usize::max);
        let routes = Routes::new(health_service).add_service(reflection);
        let routes = parts.add_services(routes, &settings, largest);

        let sockets = bind(&settings.listen).await?;
        let addresses: Vec<_> = sockets.iter().filter_map(Socket::tcp_address).collect();
        let identity = settings.identity;
        let names = certificate_names(&addresses, identity.advertise);
        let tls = Arc::new(Tls::new(&settings.node, &names, identity.tls, identity.client_ca)?);
        let mut tasks = Tasks { set: JoinSet::new(), shutdown: parts.shutdown.clone() };
        let with_tls = sockets.iter().filter(|socket| socket.is_tls());
        if let Some(address) = with_tls.filter_map(Socket::tcp_address).next() {
            let announcement = Announcement {
                client,
                namespace: identity.namespace,
                node: settings.node.clone(),
                address: reached_at(address, identity.advertise),
                tls: Arc::clone(&tls),
            };
            tasks.serve(announce::run(announcement, parts.shutdown.clone()));
        }
        let server = Server::new(routes, streams, transport, tls, parts.shutdown.clone());
        for socket in sockets {
            tasks.serve(server.clone().serve(socket));
        }
        let closed = CancellationToken::new();
        let metrics_address = match settings.metrics_listen {
            None => None,
            Some(address) => {
                let listener = probes::bind(address).await?;
                let address =
                    listener.local_addr().context("cannot tell the port of probes and metrics")?;
                tracing::info!(%address, "serving probes and metrics");
                let status = parts.status(Arc::clone(&settings.entry));
                tasks.serve(probes::serve(listener, status, closed.clone().cancelled_owned()));
                Some(address)
            }
        };
        let Parts { pods, containers, sessions, events, shutdown, .. } = parts;
        let watched = Arc::clone(&pods);
        tasks.run(async move { watched.run().await });
        tasks.run(expiry::run(sessions, Arc::clone(&pods), containers, events));
        tasks.serve(log_broker_loss(settings.entry, shutdown.clone()));
        tasks.serve(health::report(reporter, pods, shutdown.clone()));
        tracing::info!(
            node = settings.node,
            version = env!("CARGO_PKG_VERSION"),
            "podsonde-agent started"
        );
        let (tasks, limits) = (tasks.set, settings.limits);
        Ok(Self { shutdown, closed, tasks, limits, addresses, metrics_address })
    }

    /// The TCP addresses that gRPC is served on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The address that probes and metrics are served on.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Takes no new requests and gives running ones `--drain-timeout` to end.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
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

/// The tasks of an agent. The end of one of them with an error ends the agent.
struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    shutdown: CancellationToken,
}

impl Tasks {
    /// Runs `work`, which ends by itself at shutdown.
    fn serve(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            work.await;
            Ok(())
        });
    }

    /// Runs `work`, which must not end, until shutdown.
    fn run(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.set.spawn(async move {
            tokio::select! {
                () = work => anyhow::bail!("a watch of the agent has ended"),
                () = shutdown.cancelled() => Ok(()),
            }
        });
    }
}

async fn bind(listen: &[Listen]) -> anyhow::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for place in listen {
        let socket = Socket::bind(place).await?;
        match socket.tcp_address() {
            Some(address) => tracing::info!(%address, "serving gRPC"),
            None => tracing::info!(?place, "serving gRPC"),
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

/// The addresses in the agent's own certificate: loopback, those that it listens on, and the one
/// that it has outside of its pod.
fn certificate_names(addresses: &[SocketAddr], advertise: Option<IpAddr>) -> Vec<IpAddr> {
    let mut names: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    names.extend(addresses.iter().map(SocketAddr::ip).chain(advertise));
    names.retain(|address| !address.is_unspecified());
    names.sort_unstable();
    names.dedup();
    names
}

/// Where clients reach a socket. None if it listens on all addresses and nobody says which of them
/// clients reach.
fn reached_at(socket: SocketAddr, advertise: Option<IpAddr>) -> Option<String> {
    let ip = advertise.unwrap_or_else(|| socket.ip());
    (!ip.is_unspecified()).then(|| SocketAddr::new(ip, socket.port()).to_string())
}

/// Logs one line for each feature of the node; louder for those that the agent cannot do without.
fn log_features(features: &[Feature]) {
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

/// Logs the end of the broker. Verification goes on without evidence from inside of namespaces.
async fn log_broker_loss(entry: Arc<NamespaceEntry>, shutdown: CancellationToken) {
    if shutdown.run_until_cancelled(broker_end(entry.broker())).await.is_some() {
        tracing::error!(
            "the broker has ended: no namespace can be entered until the agent is started again"
        );
        shutdown.cancelled().await;
    }
}
