//! Every RPC, as the table and the other tests call it.

use futures::future::BoxFuture;
use podsonde::proto::v1::{
    self, capture_client::CaptureClient, capture_start_response::Event as CaptureEvent,
    debug_client::DebugClient, debug_create_response::Event, namespaces_client::NamespacesClient,
    node_client::NodeClient,
};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use crate::world::{Right, SLEEP, right};

/// A value of the environment that may be in no log.
pub(crate) const ENV_SECRET: &str = "hunter2-in-the-environment";

/// Calls with the header `authorization`, if any, and reads the answer to its end.
type Call = fn(Channel, Option<String>) -> BoxFuture<'static, Result<(), Status>>;

/// One RPC in one form.
pub(crate) struct Rpc {
    pub(crate) name: &'static str,
    /// As the proto files name it.
    pub(crate) method: &'static str,
    /// What security.md asks for it.
    pub(crate) needs: &'static [Right],
    pub(crate) call: Call,
}

pub(crate) fn request<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(header) = authorization {
        request.metadata_mut().insert("authorization", MetadataValue::try_from(header).unwrap());
    }
    request
}

pub(crate) fn pod_ref(name: &str) -> Option<v1::PodRef> {
    Some(v1::PodRef { namespace: "default".into(), name: name.into(), uid: String::new() })
}

pub(crate) fn create(pod: &str, name: &str) -> v1::DebugCreateRequest {
    let secret = v1::EnvVar { name: "PASSWORD".into(), value: ENV_SECRET.into() };
    v1::DebugCreateRequest {
        pod: pod_ref(pod),
        target_container: "web".into(),
        name: name.into(),
        image: SLEEP.into(),
        env: vec![secret],
        ..v1::DebugCreateRequest::default()
    }
}

pub(crate) async fn created(
    channel: Channel,
    authorization: Option<String>,
    message: v1::DebugCreateRequest,
) -> Result<(), Status> {
    let mut stream =
        DebugClient::new(channel).create(request(message, authorization.as_deref())).await?.into_inner();
    let mut done = false;
    while let Some(answer) = stream.message().await? {
        done |= matches!(answer.event, Some(Event::Done(_)));
    }
    assert!(done, "the stream ended without a result");
    Ok(())
}

async fn end(
    channel: Channel,
    authorization: Option<String>,
    pod: &str,
    session: &str,
) -> Result<(), Status> {
    let message = v1::DebugEndRequest {
        pod: pod_ref(pod),
        session: session.into(),
        grace_period: Some(prost_types::Duration::default()),
    };
    let answer = DebugClient::new(channel).end(request(message, authorization.as_deref())).await?;
    assert_eq!(answer.into_inner().outcome(), v1::EndOutcome::Ended);
    Ok(())
}

/// The pods that a VerifyNode answers with: of each, namespace and name.
pub(crate) async fn verify_node(
    channel: Channel,
    authorization: Option<String>,
    namespace: &str,
) -> Result<Vec<String>, Status> {
    let message =
        v1::NamespacesVerifyNodeRequest { namespace: namespace.into(), label_selector: String::new() };
    let mut client = NamespacesClient::new(channel);
    let mut stream = client.verify_node(request(message, authorization.as_deref())).await?.into_inner();
    let mut pods = Vec::new();
    while let Some(answer) = stream.message().await? {
        let pod = answer.pod.unwrap();
        pods.push(format!("{}/{}", pod.namespace, pod.name));
    }
    Ok(pods)
}

/// The pods that have the sessions which List answers with.
async fn list(
    channel: Channel,
    authorization: Option<String>,
    namespace: &str,
    pod: &str,
) -> Result<Vec<String>, Status> {
    let message = v1::DebugListRequest {
        namespace: namespace.into(),
        pod: pod.into(),
        include_ended: true,
        ..v1::DebugListRequest::default()
    };
    let answer = DebugClient::new(channel).list(request(message, authorization.as_deref())).await?;
    let mut pods: Vec<_> =
        answer.into_inner().sessions.into_iter().map(|s| format!("{}/{}", s.namespace, s.pod)).collect();
    pods.sort();
    pods.dedup();
    Ok(pods)
}

pub(crate) async fn verify(channel: Channel, authorization: Option<String>, pod: &str) -> Result<(), Status> {
    let message = v1::NamespacesVerifyRequest { pod: pod_ref(pod), container: "web".into() };
    let mut client = NamespacesClient::new(channel);
    let answer = client.verify(request(message, authorization.as_deref())).await?;
    assert_eq!(answer.into_inner().pod.unwrap().name, pod);
    Ok(())
}

/// A capture that ends by itself at once.
async fn capture(channel: Channel, authorization: Option<String>, pod: &str) -> Result<(), Status> {
    let message = v1::CaptureStartRequest {
        pod: pod_ref(pod),
        max_duration: Some(prost_types::Duration { seconds: 0, nanos: 10_000_000 }),
        ring_bytes: 1 << 20,
        ..v1::CaptureStartRequest::default()
    };
    let mut client = CaptureClient::new(channel);
    let mut stream = client.start(request(message, authorization.as_deref())).await?.into_inner();
    let mut ended = false;
    while let Some(answer) = stream.message().await? {
        ended |= matches!(answer.event, Some(CaptureEvent::Ended(_)));
    }
    assert!(ended, "the stream ended without a result");
    Ok(())
}

const GET: Right = right("get", "pods", "default");
const PATCH: Right = right("patch", "pods/ephemeralcontainers", "default");
const CAPTURE: Right = right("create", "podsonde.dev:captures", "default");
const PROXY: Right = right("create", "nodes/proxy", "");

/// Every RPC there is, in every form that needs other rights.
pub(crate) const ALL: &[Rpc] = &[
    Rpc {
        name: "create",
        method: "podsonde.v1.Debug/Create",
        needs: &[GET, PATCH],
        call: |channel, header| Box::pin(created(channel, header, create("web", "made"))),
    },
    Rpc {
        name: "create-powerful",
        method: "podsonde.v1.Debug/Create",
        needs: &[GET, PATCH, PROXY],
        call: |channel, header| Box::pin(created(channel, header, create("powerful", "made"))),
    },
    Rpc {
        name: "get",
        method: "podsonde.v1.Debug/Get",
        needs: &[GET],
        call: |channel, header| {
            Box::pin(async move {
                let message = v1::DebugGetRequest { pod: pod_ref("web"), session: "session".into() };
                let answer = DebugClient::new(channel).get(request(message, header.as_deref())).await?;
                assert_eq!(answer.into_inner().session.unwrap().container, "session");
                Ok(())
            })
        },
    },
    Rpc {
        name: "list-pod",
        method: "podsonde.v1.Debug/List",
        needs: &[GET],
        call: |channel, header| {
            Box::pin(async move {
                let pods = list(channel, header, "default", "web").await?;
                assert_eq!(pods, ["default/web"]);
                Ok(())
            })
        },
    },
    Rpc {
        name: "list-namespace",
        method: "podsonde.v1.Debug/List",
        needs: &[right("list", "pods", "default")],
        call: |channel, header| {
            Box::pin(async move {
                let pods = list(channel, header, "default", "").await?;
                assert_eq!(pods, ["default/powerful", "default/web"]);
                Ok(())
            })
        },
    },
    Rpc {
        name: "list-all",
        method: "podsonde.v1.Debug/List",
        needs: &[right("list", "pods", "")],
        call: |channel, header| {
            Box::pin(async move {
                let pods = list(channel, header, "", "").await?;
                assert_eq!(pods, ["default/powerful", "default/web", "other/db"]);
                Ok(())
            })
        },
    },
    Rpc {
        name: "end",
        method: "podsonde.v1.Debug/End",
        needs: &[GET, PATCH],
        call: |channel, header| Box::pin(end(channel, header, "web", "session")),
    },
    Rpc {
        name: "end-powerful",
        method: "podsonde.v1.Debug/End",
        needs: &[GET, PATCH, PROXY],
        call: |channel, header| Box::pin(end(channel, header, "powerful", "session")),
    },
    Rpc {
        name: "verify",
        method: "podsonde.v1.Namespaces/Verify",
        needs: &[GET],
        call: |channel, header| Box::pin(verify(channel, header, "web")),
    },
    Rpc {
        name: "verify-powerful",
        method: "podsonde.v1.Namespaces/Verify",
        needs: &[GET],
        call: |channel, header| Box::pin(verify(channel, header, "powerful")),
    },
    Rpc {
        name: "verify-namespace",
        method: "podsonde.v1.Namespaces/VerifyNode",
        needs: &[right("list", "pods", "default")],
        call: |channel, header| {
            Box::pin(async move {
                let pods = verify_node(channel, header, "default").await?;
                assert_eq!(pods, ["default/host", "default/powerful", "default/web"]);
                Ok(())
            })
        },
    },
    Rpc {
        name: "verify-all",
        method: "podsonde.v1.Namespaces/VerifyNode",
        needs: &[right("list", "pods", "")],
        call: |channel, header| {
            Box::pin(async move {
                let pods = verify_node(channel, header, "").await?;
                assert_eq!(pods, ["default/host", "default/powerful", "default/web", "other/db"]);
                Ok(())
            })
        },
    },
    Rpc {
        name: "capture",
        method: "podsonde.v1.Capture/Start",
        needs: &[GET, CAPTURE],
        call: |channel, header| Box::pin(capture(channel, header, "web")),
    },
    Rpc {
        name: "capture-powerful",
        method: "podsonde.v1.Capture/Start",
        needs: &[GET, CAPTURE, PROXY],
        call: |channel, header| Box::pin(capture(channel, header, "powerful")),
    },
    Rpc {
        name: "capture-host-network",
        method: "podsonde.v1.Capture/Start",
        needs: &[GET, CAPTURE, PROXY],
        call: |channel, header| Box::pin(capture(channel, header, "host")),
    },
    Rpc {
        name: "compile",
        method: "podsonde.v1.Capture/Compile",
        needs: &[GET, CAPTURE],
        call: |channel, header| {
            Box::pin(async move {
                let message = v1::CaptureCompileRequest {
                    pod: pod_ref("web"),
                    filter: "ip".into(),
                    ..v1::CaptureCompileRequest::default()
                };
                let answer = CaptureClient::new(channel).compile(request(message, header.as_deref())).await?;
                assert_eq!(answer.into_inner().instructions, 4);
                Ok(())
            })
        },
    },
    Rpc {
        name: "interfaces",
        method: "podsonde.v1.Capture/ListInterfaces",
        needs: &[GET, CAPTURE],
        call: |channel, header| {
            Box::pin(async move {
                let message =
                    v1::CaptureListInterfacesRequest { pod: pod_ref("web"), container: String::new() };
                let mut client = CaptureClient::new(channel);
                let answer = client.list_interfaces(request(message, header.as_deref())).await?;
                assert_eq!(answer.into_inner().interfaces[0].name, b"any");
                Ok(())
            })
        },
    },
    Rpc {
        name: "interfaces-host-network",
        method: "podsonde.v1.Capture/ListInterfaces",
        needs: &[GET, CAPTURE, PROXY],
        call: |channel, header| {
            Box::pin(async move {
                let message =
                    v1::CaptureListInterfacesRequest { pod: pod_ref("host"), container: String::new() };
                let mut client = CaptureClient::new(channel);
                client.list_interfaces(request(message, header.as_deref())).await.map(drop)
            })
        },
    },
    Rpc {
        name: "node",
        method: "podsonde.v1.Node/Get",
        needs: &[right("get", "nodes", "")],
        call: |channel, header| {
            Box::pin(async move {
                NodeClient::new(channel).get(request(v1::NodeGetRequest {}, header.as_deref())).await?;
                Ok(())
            })
        },
    },
];
