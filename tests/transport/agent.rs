//! A `podsonde-agent` process in front of an embedded API server, and honest clients.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, runtime::wait::await_condition};
use podsonde::{embedded::Cluster, kube::leases};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::memory::{MemoryLimit, shipped_limit};

pub(crate) const NODE: &str = "node-a";

/// An agent that runs.
pub(crate) struct Agent {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
    /// What its Lease says, PEM.
    pub(crate) certificate: String,
    pub(crate) cluster: Arc<Cluster>,
    _directory: TempDir,
    /// The limit of the shipped DaemonSet, where cgroups can be made.
    memory: Option<MemoryLimit>,
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .unwrap_or_else(|_| panic!("{what}: timed out"))
}

impl Agent {
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let cluster = Arc::new(Cluster::builder().start().await.unwrap());
        Self::start_in(cluster, &[], arguments).await
    }

    /// `wrapper`: a command that executes another one.
    pub(crate) async fn start_in(
        cluster: Arc<Cluster>,
        wrapper: &[&str],
        arguments: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        let memory = MemoryLimit::new(shipped_limit());
        let joining = memory.as_ref().map(MemoryLimit::wrapper);
        let joining = joining.as_ref().map_or(&[][..], |words| &words[..]);
        let program = [joining, wrapper, &[env!("CARGO_BIN_EXE_podsonde-agent")]].concat();
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args(["--node-name", NODE, "--kubeconfig"]).arg(&kubeconfig);
        if !arguments.iter().any(|argument| argument.starts_with("--listen")) {
            command.arg("--listen=tls://127.0.0.1:0");
        }
        for variable in ["POD_IP", "POD_NAMESPACE", "PODSONDE_LOG"] {
            command.env_remove(variable);
        }
        let log = fs::File::create(directory.path().join("log")).unwrap();
        command.args(arguments).stdin(Stdio::null()).stderr(log).kill_on_drop(true);
        let before = published(&cluster).await.map(|published| published.certificate);
        let mut child = command.spawn().unwrap();
        let pid = child.id().unwrap();
        let lease = tokio::select! {
            lease = within("the Lease", lease(&cluster, move |lease| {
                let certificate = annotation(lease, leases::CERTIFICATE);
                certificate.is_some() && certificate != before
            })) => lease,
            status = child.wait() => {
                let log = fs::read_to_string(directory.path().join("log")).unwrap();
                panic!("the agent ended with {status:?}: {log}");
            }
        };
        let address = annotation(&lease, leases::ADDRESS).unwrap().parse().unwrap();
        let certificate = annotation(&lease, leases::CERTIFICATE).unwrap();
        Self { child, pid, address, certificate, cluster, _directory: directory, memory }
    }

    /// Ends it as the kubelet does.
    pub(crate) async fn terminate(mut self) {
        std::process::Command::new("kill").arg(self.pid.to_string()).status().unwrap();
        assert!(within("SIGTERM", self.child.wait()).await.unwrap().success());
    }

    /// The most memory that the agent's processes had together, in bytes, as the kernel counts it
    /// against the limit; `None` where no cgroup can be made.
    pub(crate) fn peak(&self) -> Option<u64> {
        self.memory.as_ref().map(MemoryLimit::peak)
    }

    /// Fails if the kernel has killed one of the agent's processes for want of memory.
    pub(crate) fn was_not_killed(&self, during: &str) {
        let kills = self.memory.as_ref().map_or(0, MemoryLimit::kills);
        assert_eq!(kills, 0, "{during}: killed for want of memory");
    }

    /// How many files it has open.
    pub(crate) fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// What an honest client makes of it: a new connection, the certificate verified by its name,
    /// one request.
    pub(crate) async fn is_served(&self, from: [u8; 4]) -> Result<(), String> {
        let mut health = HealthClient::new(self.channel(from, None).await?);
        self.ask(&mut health).await
    }

    pub(crate) async fn ask(&self, health: &mut HealthClient<Channel>) -> Result<(), String> {
        let asked = health.check(HealthCheckRequest::default());
        let answer = tokio::time::timeout(Duration::from_secs(10), asked).await;
        answer
            .map_err(|_| "no answer in 10 s".to_owned())?
            .map(drop)
            .map_err(|status| format!("{status:?}"))
    }

    /// A connection from this address, with this client certificate and key, PEM.
    pub(crate) async fn channel(
        &self,
        from: [u8; 4],
        identity: Option<(&str, &str)>,
    ) -> Result<Channel, String> {
        let (address, config) = (self.address, client_config(&[&self.certificate], identity));
        let connector = tower::service_fn(move |_: Uri| {
            let config = config.clone();
            async move { secure(address, from, config).await.map(TokioIo::new) }
        });
        let endpoint =
            Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(10));
        endpoint.connect_with_connector(connector).await.map_err(|error| format!("{error:?}"))
    }

    /// A TLS connection, for those who speak HTTP/2 by hand.
    pub(crate) async fn tls(&self, from: [u8; 4]) -> std::io::Result<TlsStream<TcpStream>> {
        secure(self.address, from, client_config(&[&self.certificate], None)).await
    }
}

pub(crate) fn annotation(lease: &Lease, name: &str) -> Option<String> {
    lease.metadata.annotations.as_ref()?.get(name).cloned()
}

pub(crate) async fn published(cluster: &Cluster) -> Option<leases::Published> {
    leases::of_node(&cluster.client().unwrap(), "podsonde", NODE).await.unwrap()
}

/// The Lease, once it is as wanted.
pub(crate) async fn lease(cluster: &Cluster, wanted: impl Fn(&Lease) -> bool) -> Lease {
    let leases: Api<Lease> = Api::namespaced(cluster.client().unwrap(), "podsonde");
    let condition = |lease: Option<&Lease>| lease.is_some_and(&wanted);
    await_condition(leases, &leases::name(NODE), condition).await.unwrap().unwrap()
}

pub(crate) fn client_config(
    authorities: &[&str],
    identity: Option<(&str, &str)>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for pem in authorities {
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
                .map(Result::unwrap)
                .collect();
            builder
                .with_client_auth_cert(
                    chain,
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

pub(crate) async fn tcp(address: SocketAddr, from: [u8; 4]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(from)), 0))?;
    socket.connect(address).await
}

async fn secure(
    address: SocketAddr,
    from: [u8; 4],
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(leases::server_name(NODE)).unwrap();
    TlsConnector::from(config).connect(name, tcp(address, from).await?).await
}

/// What `openssl s_client` says with these arguments, and whether it had a connection.
pub(crate) fn openssl(address: SocketAddr, arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new("timeout")
        .args(["20", "openssl", "s_client", "-connect", &address.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    (output.status.success(), said)
}

/// The SHA-256 of a certificate, PEM, by openssl: hexadecimal with colons.
pub(crate) fn fingerprint(pem: &str) -> String {
    let mut child = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(pem.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().rsplit_once('=').unwrap().1.to_owned()
}
