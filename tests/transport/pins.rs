//! The client's trust in an agent: the Lease's certificate, fingerprints, authorities; restarts and
//! impostors.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use k8s_openapi::api::authentication::v1::UserInfo;
use podsonde::{
    client::{self, ConnectOptions, Credentials, Endpoint, Error, Fleet, Reason, Trust},
    embedded::Cluster,
    kube::leases,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::agent::{Agent, NODE, annotation, fingerprint, lease, within};

/// A token that allows everything, and the file that it is read from.
fn administrator(cluster: &Cluster) -> (Credentials, tempfile::NamedTempFile) {
    let user = UserInfo {
        username: Some("admin".into()),
        groups: Some(vec!["system:masters".into()]),
        ..UserInfo::default()
    };
    let token = cluster.issue_token(user, &["podsonde"], Duration::from_secs(3600));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), token).unwrap();
    (Credentials::token_file(file.path()), file)
}

async fn through(cluster: &Cluster, options: ConnectOptions) -> Result<String, Error> {
    let (credentials, _file) = administrator(cluster);
    let fleet =
        Fleet::cluster(cluster.client().unwrap(), None, ConnectOptions { credentials, ..options });
    let place = fleet.place_of_node(NODE).await?;
    Ok(fleet.connect(&place).await?.node().await?.node)
}

/// Somebody else's listener, with this certificate and key, PEM.
async fn impostor(certificate: &str, key: &str) -> SocketAddr {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    // Not checked whether the key fits the certificate.
    let certified = CertifiedKey::new(chain, provider.key_provider.load_private_key(key).unwrap());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_is_believed_through_a_port_forward_and_directly() {
    let agent = Agent::start(&[]).await;
    agent.cluster.register_agent(NODE, agent.address).await.unwrap();
    assert_eq!(through(&agent.cluster, ConnectOptions::default()).await.unwrap(), NODE);
    // Directly: also where no port-forward leads anywhere.
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(agent.cluster.client().unwrap(), "podsonde");
    for pod in pods.list(&Default::default()).await.unwrap() {
        let name = pod.metadata.name.unwrap();
        let now = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        pods.delete(&name, &now).await.unwrap();
        agent.cluster.wait_deleted("podsonde", &name).await;
    }
    agent.cluster.register_agent(NODE, nowhere).await.unwrap();
    let forwarded = through(&agent.cluster, ConnectOptions::default()).await.unwrap_err();
    assert_eq!(forwarded.reason, Reason::PortForwardFailed, "{forwarded}");
    let direct = ConnectOptions { direct: true, ..ConnectOptions::default() };
    assert_eq!(through(&agent.cluster, direct).await.unwrap(), NODE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_in_between_is_found_out() {
    let agent = Agent::start(&[]).await;
    let key = KeyPair::generate().unwrap();
    let own =
        CertificateParams::new([leases::server_name(NODE)]).unwrap().self_signed(&key).unwrap();
    let with_own_certificate = impostor(&own.pem(), &key.serialize_pem()).await;
    let with_the_agent_s = impostor(&agent.certificate, &key.serialize_pem()).await;
    agent.cluster.register_agent(NODE, with_own_certificate).await.unwrap();
    let error = through(&agent.cluster, ConnectOptions::default()).await.unwrap_err();
    assert_eq!(error.reason, Reason::CertificateMismatch, "{error}");
    assert_eq!(error.fact("node"), Some(NODE));
    // Nor does the certificate help without its key.
    let endpoint: Endpoint = format!("https://{with_the_agent_s}").parse().unwrap();
    let pin = Trust::Fingerprint(fingerprint(&agent.certificate).parse().unwrap());
    let options = ConnectOptions { trust: Some(pin), ..ConnectOptions::default() };
    let error = client::connect(&endpoint, &options).await.map(drop).unwrap_err();
    assert_eq!(error.reason, Reason::CertificateUntrusted, "{error}");
    assert!(error.message.contains("BadSignature"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_believed_by_what_was_given() {
    let agent = Agent::start(&[]).await;
    let endpoint: Endpoint = format!("https://{}", agent.address).parse().unwrap();
    let ask = async |trust: Option<Trust>| {
        let options = ConnectOptions { trust, ..ConnectOptions::default() };
        client::connect(&endpoint, &options)
            .await
            .map(drop)
            .map_err(|error| error.reason.to_string())
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &agent.certificate).unwrap();
    assert_eq!(ask(Some(Trust::authorities(file.path()).unwrap())).await, Ok(()));
    let right = fingerprint(&agent.certificate);
    assert_eq!(ask(Some(Trust::Fingerprint(right.parse().unwrap()))).await, Ok(()));
    let wrong = Trust::Fingerprint("00".repeat(32).parse().unwrap());
    assert_eq!(ask(Some(wrong)).await, Err(Reason::CertificateMismatch.to_string()));
    assert_eq!(
        ask(None).await,
        Err(Reason::CertificateUntrusted.to_string()),
        "the system's authorities"
    );
    // The Lease of that address.
    let (cluster, options) = (agent.cluster.client().unwrap(), ConnectOptions::default());
    let found =
        client::published_trust(&cluster, "podsonde", &agent.address.to_string(), &options).await;
    assert_eq!(ask(found.unwrap()).await, Ok(()));
    let none =
        client::published_trust(&cluster, "podsonde", "192.0.2.1:7463", &options).await.unwrap();
    assert!(none.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_is_believed_by_its_new_lease() {
    let first = Agent::start(&[]).await;
    let (cluster, address) = (Arc::clone(&first.cluster), first.address);
    cluster.register_agent(NODE, address).await.unwrap();
    let (credentials, _file) = administrator(&cluster);
    let options = ConnectOptions { credentials, ..ConnectOptions::default() };
    let fleet = Fleet::cluster(cluster.client().unwrap(), None, options);
    let place = fleet.place_of_node(NODE).await.unwrap();
    let connected = fleet.connect(&place).await.unwrap();
    connected.node().await.unwrap();
    let old = first.certificate.clone();
    first.terminate().await;
    // It said that it is gone, and left what it was.
    let gone = lease(&cluster, |lease| {
        lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some("")
    });
    let gone = within("the farewell", gone).await;
    assert_eq!(annotation(&gone, leases::CERTIFICATE), Some(old.clone()));
    assert_eq!(annotation(&gone, leases::VERSION).as_deref(), Some(env!("CARGO_PKG_VERSION")));

    let listen = format!("--listen=tls://{address}");
    let second = Agent::start_in(Arc::clone(&cluster), &[], &[&listen]).await;
    assert_ne!(second.certificate, old);
    // The same connected agent, which knew the old one: the first call finds the connection broken,
    // or opens a new one.
    let answers = async {
        loop {
            match connected.node().await {
                Ok(answer) => return answer.node,
                Err(error) => assert_eq!(error.reason, Reason::ConnectionLost, "{error}"),
            }
        }
    };
    assert_eq!(within("the new agent", answers).await, NODE);
    second.terminate().await;
}
