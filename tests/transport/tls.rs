//! Versions and protocols, as openssl sees them; certificates from files; client certificates.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use podsonde::{
    agent::{
        config::TransportLimits,
        listen::{Server, Socket},
        tls::{Source, Tls},
    },
    client,
    embedded::Cluster,
    kube::leases,
    proto::v1::{
        NodeGetRequest, NodeGetResponse,
        node_server::{Node, NodeServer},
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tonic_health::pb::health_client::HealthClient;

use crate::agent::{Agent, NODE, annotation, fingerprint, lease, openssl, within};

const HERE: [u8; 4] = [127, 0, 0, 1];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_gets_tls_1_3_with_h2_and_nothing_else() {
    let agent = Agent::start(&[]).await;
    let ask = |arguments: &[&str]| openssl(agent.address, arguments);
    let (connected, said) = ask(&["-alpn", "h2", "-tls1_3"]);
    assert!(connected && said.contains("ALPN protocol: h2") && said.contains("TLSv1.3"), "{said}");
    for version in ["-tls1_2", "-tls1_1", "-tls1"] {
        let (connected, said) = ask(&["-alpn", "h2", version]);
        assert!(!connected && !said.contains("ALPN protocol: h2"), "{version}: {said}");
    }
    let (connected, said) = ask(&["-alpn", "h2", "-tls1_2"]);
    assert!(!connected && said.contains("alert protocol version"), "{said}");
    let (connected, said) = ask(&["-alpn", "http/1.1"]);
    assert!(!connected && said.contains("no application protocol"), "{said}");
    // Nobody asks for a client certificate where the cluster publishes no authority.
    assert!(ask(&["-alpn", "h2"]).1.contains("No client certificate CA names sent"));
    // What is served is what the Lease says, made out to the node and the address.
    let served = ask(&["-alpn", "h2"]).1;
    assert_eq!(fingerprint(&served), fingerprint(&agent.certificate));
    let trusted = tempfile::NamedTempFile::new().unwrap();
    fs::write(trusted.path(), &agent.certificate).unwrap();
    let file = trusted.path().to_str().unwrap();
    for (flag, name, good) in [
        ("-verify_hostname", leases::server_name(NODE).as_str(), true),
        ("-verify_ip", "127.0.0.1", true),
        ("-verify_hostname", "node-b.agent.podsonde.dev", false),
    ] {
        let (connected, said) =
            ask(&["-CAfile", file, "-verify_return_error", flag, name, "-alpn", "h2"]);
        assert_eq!(connected, good, "{name}: {said}");
    }
    // No session to resume, which would carry a client's certificate over.
    assert!(!ask(&["-alpn", "h2"]).1.contains("New Session Ticket arrived"));
    agent.is_served(HERE).await.unwrap();
}

/// A directory as the kubelet makes it of a Secret: files are links into a directory that a link
/// names.
struct Secret(tempfile::TempDir);

impl Secret {
    fn new() -> Self {
        let secret = Self(tempfile::tempdir().unwrap());
        secret.swap("v1", &self_signed());
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), secret.0.path().join(name)).unwrap();
        }
        secret
    }

    /// Puts another version in place in one step.
    fn swap(&self, version: &str, (certificate, key): &(String, String)) {
        let directory = self.0.path();
        fs::create_dir(directory.join(version)).unwrap();
        fs::write(directory.join(version).join("tls.crt"), certificate).unwrap();
        fs::write(directory.join(version).join("tls.key"), key).unwrap();
        symlink(version, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    }

    fn arguments(&self) -> [String; 2] {
        let path = |name| self.0.path().join(name).display().to_string();
        [format!("--tls-cert={}", path("tls.crt")), format!("--tls-key={}", path("tls.key"))]
    }
}

fn self_signed() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names = [leases::server_name(NODE), "127.0.0.1".into()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_taken_up_when_they_change() {
    let secret = Secret::new();
    let arguments = secret.arguments();
    let agent = Agent::start(&[arguments[0].as_str(), &arguments[1]]).await;
    let served = || fingerprint(&openssl(agent.address, &["-alpn", "h2"]).1);
    let first = fs::read_to_string(secret.0.path().join("tls.crt")).unwrap();
    assert_eq!(served(), fingerprint(&first));
    let mut kept = HealthClient::new(agent.channel(HERE, None).await.unwrap());
    agent.ask(&mut kept).await.unwrap();

    let second = self_signed();
    secret.swap("v2", &second);
    let began = Instant::now();
    while served() != fingerprint(&second.0) {
        assert!(began.elapsed() < Duration::from_secs(30), "the new certificate is not served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    agent.ask(&mut kept).await.expect("a connection that was open");
    let is_second = |lease: &k8s_openapi::api::coordination::v1::Lease| {
        annotation(lease, leases::CERTIFICATE)
            .is_some_and(|pem| fingerprint(&pem) == fingerprint(&second.0))
    };
    within("the Lease", lease(&agent.cluster, is_second)).await;

    // A key that belongs to another certificate, files that are none, files that are gone: the old
    // ones stay.
    let (mixed, garbage) = (self_signed(), ("not a certificate".to_owned(), second.1.clone()));
    for (version, files) in
        [("v3", (mixed.0, second.1.clone())), ("v4", garbage), ("v5", Default::default())]
    {
        secret.swap(version, &files);
        // Longer than the pause between two looks.
        let until = Instant::now() + Duration::from_millis(1200);
        while Instant::now() < until {
            assert_eq!(served(), fingerprint(&second.0), "{version}");
        }
    }
    let last = self_signed();
    secret.swap("v6", &last);
    let began = Instant::now();
    while served() != fingerprint(&last.0) {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "a good certificate after broken ones is not served"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    agent.ask(&mut kept).await.expect("a connection that was open all along");
}

/// A certificate authority of clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, name);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap())
    }

    fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, "alice");
        client.distinguished_name.push(DnType::OrganizationName, "on-call");
        client.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut client);
        let key = KeyPair::generate().unwrap();
        (client.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    async fn publish(&self, cluster: &Cluster) {
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client().unwrap(), "kube-system");
        let map = json!({
            "metadata": {"name": "extension-apiserver-authentication"},
            "data": {"client-ca-file": self.0.pem(), "requestheader-client-ca-file": Self::new("front proxy").0.pem()},
        });
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_are_the_cluster_s_or_none() {
    let cluster = Arc::new(Cluster::builder().start().await.unwrap());
    let (right, wrong) = (Authority::new("the cluster"), Authority::new("the cluster"));
    right.publish(&cluster).await;
    let agent = Agent::start_in(cluster, &[], &[]).await;
    let began = Instant::now();
    // Read just after the Lease is written.
    while openssl(agent.address, &["-alpn", "h2"]).1.contains("No client certificate CA names sent")
    {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "the agent asks for no client certificate"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let endpoint: client::Endpoint = format!("https://{}", agent.address).parse().unwrap();
    let ask = async |identity: Option<(String, String)>| {
        let identity = identity.map(|(certificate, key)| {
            client::ClientIdentity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
        });
        let trust = client::Trust::Fingerprint(fingerprint(&agent.certificate).parse().unwrap());
        let options = client::ConnectOptions {
            identity,
            trust: Some(trust),
            ..client::ConnectOptions::default()
        };
        let answer = match client::connect(&endpoint, &options).await {
            Ok(agent) => agent.node().await,
            Err(error) => Err(error),
        };
        answer.map(drop).map_err(|error| error.reason.to_string())
    };
    let refused = Err("CLIENT_CERTIFICATE_REFUSED".to_owned());
    // Certificates are not required, as tokens are none; one of them is.
    assert_eq!(ask(None).await, Err("NO_CREDENTIALS".to_owned()));
    // The common name is the user, the organisations are the groups, and both have the rights that
    // RBAC gives them.
    assert_eq!(ask(Some(right.client(|_| {}))).await, Err("FORBIDDEN".to_owned()));
    let masters = |client: &mut CertificateParams| {
        client.distinguished_name.push(DnType::OrganizationName, "system:masters");
    };
    assert_eq!(ask(Some(right.client(masters))).await, Ok(()));
    let expired = |client: &mut CertificateParams| {
        client.not_before = rcgen::date_time_ymd(2020, 1, 1);
        client.not_after = rcgen::date_time_ymd(2021, 1, 1);
    };
    let for_servers = |client: &mut CertificateParams| {
        client.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    };
    assert_eq!(
        ask(Some(wrong.client(|_| {}))).await,
        refused,
        "another authority of the same name"
    );
    assert_eq!(ask(Some(right.client(expired))).await, refused, "expired");
    assert_eq!(ask(Some(right.client(for_servers))).await, refused, "not for clients");
    assert_eq!(ask(Some(self_signed())).await, refused, "signed by itself");
    agent.is_served(HERE).await.unwrap();
}

/// Answers with who it is told that the caller is.
struct Mirror;

#[tonic::async_trait]
impl Node for Mirror {
    async fn get(
        &self,
        request: Request<NodeGetRequest>,
    ) -> Result<Response<NodeGetResponse>, Status> {
        let extensions = request.extensions();
        let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().expect("TLS");
        let tcp = extensions.get::<TcpConnectInfo>().expect("TCP");
        assert_eq!(tcp.remote_addr.unwrap().ip().to_string(), "127.0.0.1");
        let shown = tls.peer_certs().map_or("none".to_owned(), |chain| {
            chain.iter().map(|certificate| format!("{:?};", certificate.as_ref())).collect()
        });
        Ok(Response::new(NodeGetResponse { node: shown, ..NodeGetResponse::default() }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verified_chain_reaches_the_services() {
    let authority = Authority::new("the cluster");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), authority.0.pem()).unwrap();
    let address = [127, 0, 0, 1].into();
    let tls = Tls::new(NODE, &[address], Source::SelfMade, Some(file.path().to_owned())).unwrap();
    let pem = tls.certificate().borrow().clone();
    let drain = CancellationToken::new();
    let routes = Routes::new(NodeServer::new(Mirror));
    let server = Server::new(
        routes,
        HashMap::new(),
        TransportLimits::default(),
        Arc::new(tls),
        drain.clone(),
    );
    let socket = Socket::bind(&"tls://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let endpoint = format!("https://{}", socket.tcp_address().unwrap()).parse().unwrap();
    let serving = tokio::spawn(server.serve(socket));
    let ask = async |identity| {
        let trust = Some(client::Trust::Fingerprint(fingerprint(&pem).parse().unwrap()));
        let options =
            client::ConnectOptions { identity, trust, ..client::ConnectOptions::default() };
        client::connect(&endpoint, &options).await.unwrap().node().await.unwrap().node
    };
    assert_eq!(ask(None).await, "none");
    let (certificate, key) = authority.client(|_| {});
    let identity =
        client::ClientIdentity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    assert_eq!(ask(Some(identity)).await, format!("{:?};", der.as_ref()));
    drain.cancel();
    within("the drain", serving).await.unwrap();
}
