//! A pod on a node with an agent, and a veth pair out of the pod on which frames are sent.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Pod},
};
use kube::{Api, api::PostParams};
use podsonde::embedded::Cluster;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use serde_json::json;

use crate::{
    agent::AgentProcess,
    fixture::{self, NODE, SLEEP},
    support::{
        generator::Generator,
        netns::{Netns, inside},
    },
};

/// An agent process in front of a cluster, and a pod whose interface carries what is sent.
pub(crate) struct World {
    // Ends before the cluster.
    agent: AgentProcess,
    _cluster: Cluster,
    /// A process of the pod.
    pod: u32,
    generator: Generator,
    /// The other end of the pair.
    _peer: Netns,
    directory: tempfile::TempDir,
}

impl World {
    /// The pod's interface.
    pub(crate) const INTERFACE: &str = "gen0";

    pub(crate) async fn start() -> Self {
        let cluster =
            Cluster::builder().node(NODE, fixture::runtime(|_| {})).start().await.unwrap();
        let spec = json!({"nodeName": NODE, "containers": [{"name": "app", "image": SLEEP}]});
        cluster.create_pod(json!({"metadata": {"name": "web"}, "spec": spec})).await.unwrap();
        let runs =
            |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        cluster.wait_pod("default", "web", runs).await.unwrap();
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::write(directory.path().join("kubeconfig"), cluster.kubeconfig()).unwrap();
        fs::write(directory.path().join("client"), client_kubeconfig(&cluster).await).unwrap();
        let program = program("podsonde-agent", env!("CARGO_BIN_EXE_podsonde-agent"));
        let agent =
            AgentProcess::start(&program, &cluster, &directory.path().join("kubeconfig")).await;
        let pod = loop {
            // Until it has read its node's pods.
            if let Some(pid) = pid_of_pod(directory.path(), &agent.address) {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let peer = Netns::new();
        let generator = Generator::new(pod, pair(pod, &peer));
        Self { agent, _cluster: cluster, pod, generator, _peer: peer, directory }
    }

    /// `podsonde capture` of the pod's interface, with these arguments.
    pub(crate) fn client(&self, arguments: &[&str]) -> Command {
        let mut command = podsonde(self.directory.path(), &self.agent.address);
        command.args(["capture", "web", "-i", Self::INTERFACE]).args(arguments);
        command
    }

    /// A program in the pod's network namespace.
    pub(crate) fn in_pod(&self, words: &[&str]) -> Command {
        inside(self.pod, words)
    }

    /// A file that does not exist yet, in memory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The agent's pid.
    pub(crate) fn agent(&self) -> u32 {
        self.agent.pid()
    }

    /// Sends frames from the pod's interface: how many, of what size, and how many a second.
    pub(crate) fn send(&mut self, count: u64, size: usize, per_second: u64) {
        self.generator.send(count, size, per_second);
    }
}

/// The program that is measured: of the directory `PODSONDE_BENCH_PROGRAMS` if that is set, else
/// the one that was built with this.
fn program(name: &str, built: &str) -> PathBuf {
    std::env::var_os("PODSONDE_BENCH_PROGRAMS")
        .map_or_else(|| built.into(), |directory| Path::new(&directory).join(name))
}

/// A kubeconfig with a client certificate of the cluster's authority, which it publishes for agents
/// to know.
async fn client_kubeconfig(cluster: &Cluster) -> String {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let map = json!({
        "metadata": {"name": "extension-apiserver-authentication"},
        "data": {"client-ca-file": ca.pem()},
    });
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().unwrap(), "kube-system");
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();

    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, "admin");
    client.distinguished_name.push(DnType::OrganizationName, "system:masters");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let base64 = |pem: String| ByteString(pem.into_bytes());
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&cluster.kubeconfig()).unwrap();
    kubeconfig["users"][0]["user"] = json!({
        "client-certificate-data": base64(client.signed_by(&key, &ca).unwrap().pem()),
        "client-key-data": base64(key.serialize_pem()),
    });
    kubeconfig.to_string()
}

/// The client, asking the agent over TLS with its certificate.
fn podsonde(directory: &Path, address: &str) -> Command {
    let mut command = Command::new(program("podsonde", env!("CARGO_BIN_EXE_podsonde")));
    command.arg("--kubeconfig").arg(directory.join("client"));
    command.args(["-n", "default", "--agent", &format!("https://{address}")]);
    command
}

fn pid_of_pod(directory: &Path, address: &str) -> Option<u32> {
    let output =
        podsonde(directory, address).args(["verify", "web", "-o", "json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = text.split_once("\"hostPid\":")?;
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Makes the pair. Nothing is on it but what is sent: it has no addresses, and the kernel gives it
/// none. Returns the index of the pod's end.
fn pair(pod: u32, peer: &Netns) -> u32 {
    let run = |pid: u32, words: &[&str]| {
        let output = inside(pid, words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let (name, there) = (World::INTERFACE, peer.pid().to_string());
    run(pod, &["ip", "link", "add", name, "type", "veth", "peer", "name", "gen1", "netns", &there]);
    for (pid, name) in [(pod, name), (peer.pid(), "gen1")] {
        run(pid, &["ip", "link", "set", name, "addrgenmode", "none"]);
        run(pid, &["ip", "link", "set", name, "up"]);
    }
    let links: serde_json::Value =
        serde_json::from_str(&run(pod, &["ip", "-j", "link", "show", name])).unwrap();
    links[0]["ifindex"].as_u64().unwrap().try_into().unwrap()
}
