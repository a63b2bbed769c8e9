//! The service `Node`.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::{
    convert,
    gate::{Call, Gate},
    operation::{Operation, Subject},
};
use crate::{
    agent::access::Method,
    domain::Result,
    kube::pods::Pods,
    proto::v1::{self, node_server::Node},
    sys::{
        broker::NamespaceEntry,
        preflight::{self, Feature},
    },
};

impl Operation for v1::NodeGetRequest {
    const METHOD: Method = Method::NodeGet;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Node
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Serves `Node`.
#[derive(Debug)]
pub struct NodeService {
    /// Admits the calls.
    pub gate: Arc<Gate>,
    /// The pods of the node.
    pub pods: Arc<Pods>,
    /// What the node can do, as found at start.
    pub features: Arc<[Feature]>,
    /// How namespaces are entered; the broker can be lost at any time.
    pub entry: Arc<NamespaceEntry>,
    /// When the agent started.
    pub started_at: Timestamp,
    /// Name of the node.
    pub node: String,
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn get(
        &self,
        request: Request<v1::NodeGetRequest>,
    ) -> Result<Response<v1::NodeGetResponse>, Status> {
        let act = |_: Call<v1::NodeGetRequest>| async move { Ok(self.describe()) };
        self.gate.unary(request, act).await
    }
}

impl NodeService {
    fn describe(&self) -> v1::NodeGetResponse {
        let pods = self.pods.all();
        let ids = pods.iter().flat_map(|pod| &pod.containers).filter_map(|c| c.id.as_ref());
        let runtimes: BTreeSet<_> = ids.map(|id| id.runtime.clone()).collect();
        let uname = rustix::system::uname();
        let feature = |f: &Feature| v1::Feature {
            name: f.name.to_owned(),
            available: f.available,
            message: f.message.clone(),
        };
        v1::NodeGetResponse {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            runtimes: runtimes.into_iter().collect(),
            started_at: Some(convert::timestamp(self.started_at)),
            features: self
                .features
                .iter()
                .chain(&preflight::broker(&self.entry))
                .map(feature)
                .collect(),
            pods: u32::try_from(pods.len()).unwrap_or(u32::MAX),
        }
    }
}
