//! An agent that serves TLS.

use std::{
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use podsonde::{embedded::Cluster, kube::leases};

use crate::fixture::NODE;

/// The process of the node's agent, serving TLS. It ends when this is dropped.
pub(crate) struct AgentProcess {
    child: Child,
    /// Where it serves.
    pub(crate) address: String,
}

impl AgentProcess {
    pub(crate) async fn start(program: &Path, cluster: &Cluster, kubeconfig: &Path) -> Self {
        let child = Command::new(program)
            .args(["--node-name", NODE, "--listen=tls://127.0.0.1:0", "--audit-log=/dev/null"])
            .args(["--host-pid", &std::process::id().to_string(), "--kubeconfig"])
            .arg(kubeconfig)
            .env_remove("POD_IP")
            .spawn()
            .unwrap();
        // Whatever fails from here on, it ends.
        let mut this = Self { child, address: String::new() };
        let client = cluster.client().unwrap();
        while this.address.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let published = leases::of_node(&client, "podsonde", NODE).await.unwrap();
            this.address = published.and_then(|published| published.address).unwrap_or_default();
        }
        this
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
