//! The service `Namespaces`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    convert,
    gate::{Answers, Call, Gate, hung_up},
    operation::{Operation, Subject},
};
use crate::{
    agent::{access::Method, verify::Verifier},
    domain::{Error, Reason, Result, name, pod::Pod, selector::LabelSelector},
    kube::pods::Pods,
    proto::v1::{self, namespaces_server::Namespaces},
};

impl Operation for v1::NamespacesVerifyRequest {
    const METHOD: Method = Method::NamespacesVerify;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pod(&mut self.pod)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("container", self.container.clone())]
    }
}

impl Operation for v1::NamespacesVerifyNodeRequest {
    const METHOD: Method = Method::NamespacesVerifyNode;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pods { namespace: &self.namespace, pod: "" }
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("label_selector", self.label_selector.clone())]
    }
}

/// Serves `Namespaces`.
#[derive(Debug)]
pub struct NamespacesService {
    /// Admits the calls.
    pub gate: Arc<Gate>,
    /// The pods of the node.
    pub pods: Arc<Pods>,
    /// The verifier.
    pub verifier: Arc<Verifier>,
    /// Name of the node.
    pub node: String,
}

#[tonic::async_trait]
impl Namespaces for NamespacesService {
    type VerifyNodeStream = Answers<v1::NamespacesVerifyNodeResponse>;

    async fn verify(
        &self,
        request: Request<v1::NamespacesVerifyRequest>,
    ) -> Result<Response<v1::NamespacesVerifyResponse>, Status> {
        let act = |call: Call<v1::NamespacesVerifyRequest>| async move {
            let (namespace, name, uid) = convert::pod_ref(call.message.pod.as_ref())?;
            let container = Some(call.message.container).filter(|c| !c.is_empty());
            if let Some(container) = &container {
                name::label("container", container)?;
            }
            let check = |pod: &Arc<Pod>| {
                pod.expect_uid(&uid)?;
                container.as_deref().map(|name| pod.require(name)).transpose().map(drop)
            };
            let (pod, ()) = self.pods.find(&namespace, &name, check).await?;
            let mut reports = self.verifier.verify(vec![pod], container).await?;
            let report =
                reports.pop().ok_or_else(|| Error::new(Reason::Bug, "no report on the pod"))?;
            Ok(v1::NamespacesVerifyResponse { pod: Some(convert::pod_report(&report, &self.node)) })
        };
        self.gate.unary(request, act).await
    }

    async fn verify_node(
        &self,
        request: Request<v1::NamespacesVerifyNodeRequest>,
    ) -> Result<Response<Self::VerifyNodeStream>, Status> {
        let (pods, verifier, node) =
            (Arc::clone(&self.pods), Arc::clone(&self.verifier), self.node.clone());
        self.gate
            .stream(
                request,
                move |call: Call<v1::NamespacesVerifyNodeRequest>, answers| async move {
                    let v1::NamespacesVerifyNodeRequest { namespace, label_selector } =
                        call.message;
                    let selector = LabelSelector::parse(&label_selector)
                        .map_err(|error| Error::invalid("label_selector", error.to_string()))?;
                    if !pods.is_ready() {
                        return Err(Error::new(
                            Reason::NotReady,
                            "the agent has not read the pods of its node yet",
                        ));
                    }
                    let mut wanted = pods.all();
                    wanted.retain(|pod| namespace.is_empty() || pod.namespace == namespace);
                    wanted.retain(|pod| {
                        selector.matches(|key| pod.labels.get(key).map(String::as_str))
                    });
                    for report in verifier.verify(wanted, None).await? {
                        let pod = Some(convert::pod_report(&report, &node));
                        if answers.send(v1::NamespacesVerifyNodeResponse { pod }).await.is_err() {
                            return Err(hung_up());
                        }
                    }
                    Ok(())
                },
            )
            .await
    }
}
