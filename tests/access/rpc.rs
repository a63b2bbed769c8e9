//! Every RPC, as the table and the other tests call it.

use futures::future::BoxFuture;
use podsonde::proto::v1::{
    self, capture_client::CaptureClient, capture_start_response::Event as CaptureEvent,
    debug_client::DebugClient, debug_create_response::Event, files_client::FilesClient,
    namespaces_client::NamespacesClient, node_client::NodeClient,
};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use crate::world::{Right, SLEEP, right};

/// A value of the environment that may be in no log.
pub(crate) const ENV_SECRET: &str = "hunter2-in-the-environment";

tokio::task_local! {
    /// The header `grpc-timeout` of requests, where it is set.
    pub(crate) static TIMEOUT: std::time::Duration;
}

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
    if let Ok(timeout) = TIMEOUT.try_with(|timeout| *timeout) {
        request.set_timeout(timeout);
    }
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
    let mut stream = DebugClient::new(channel)
        .create(request(message, authorization.as_deref()))
        .await?
        .into_inner();
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
    let message = v1::NamespacesVerifyNodeRequest {
        namespace: namespace.into(),
        label_selector: String::new(),
    };
    let mut client = NamespacesClient::new(channel);
    let mut stream =
        client.verify_node(request(message, authorization.as_deref())).await?.into_inner();
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
    let mut pods: Vec<_> = answer
        .into_inner()
        .sessions
        .into_iter()
        .map(|s| format!("{}/{}", s.namespace, s.pod))
        .collect();
    pods.sort();
    pods.dedup();
    Ok(pods)
}

pub(crate) async fn verify(
    channel: Channel,
    authorization: Option<String>,
    pod: &str,
) -> Result<(), Status> {
    let message = v1::NamespacesVerifyRequest { pod: pod_ref(pod), container: "web".into() };
    let mut client = NamespacesClient::new(channel);
    let answer = client.verify(request(message, authorization.as_deref())).await?;
    assert_eq!(answer.into_inner().pod.unwrap().name, pod);
    Ok(())
}

/// A capture that ends by itself at once.
pub(crate) async fn capture(
    channel: Channel,
    authorization: Option<String>,
    pod: &str,
) -> Result<(), Status> {
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

/// What is done with a file of a pod.
#[derive(Clone, Copy)]
enum File {
    Stat,
    List,
    Read,
    Walk,
    Checksum,
    Write,
}

/// Does it to `/etc/hostname`, or beside it.
async fn file(
    channel: Channel,
    authorization: Option<String>,
    what: File,
    pod: &str,
    as_root: bool,
) -> Result<(), Status> {
    let target =
        Some(v1::FileTarget { pod: pod_ref(pod), container: "web".into(), view: 0, as_root });
    let path = || b"/etc/hostname".to_vec();
    let header = authorization.as_deref();
    let mut client = FilesClient::new(channel);
    match what {
        File::Stat => {
            let message = v1::FilesStatRequest { target, path: path(), follow: true };
            let answer = client.stat(request(message, header)).await?.into_inner();
            assert_eq!(answer.root.unwrap().container.unwrap().pod, pod);
        }
        File::List => {
            let message =
                v1::FilesListRequest { target, path: b"/etc".into(), ..Default::default() };
            let answer = client.list(request(message, header)).await?.into_inner();
            assert!(answer.entries.iter().any(|entry| entry.path == b"hostname"));
        }
        File::Read => {
            let message = v1::FilesReadRequest { target, path: path(), ..Default::default() };
            let mut stream = client.read(request(message, header)).await?.into_inner();
            let mut bytes = None;
            while let Some(answer) = stream.message().await? {
                if let Some(v1::files_read_response::Event::End(end)) = answer.event {
                    bytes = Some(end.bytes);
                }
            }
            assert!(bytes.unwrap() > 0);
        }
        File::Walk => {
            let message =
                v1::FilesWalkRequest { target, path: b"/etc".into(), ..Default::default() };
            let mut stream = client.walk(request(message, header)).await?.into_inner();
            while stream.message().await?.is_some() {}
        }
        File::Checksum => {
            let message = v1::FilesChecksumRequest { target, path: path(), ..Default::default() };
            let mut stream = client.checksum(request(message, header)).await?.into_inner();
            while stream.message().await?.is_some() {}
        }
        File::Write => {
            let (path, overwrite) = (b"/tmp/written".into(), true);
            let start = v1::FilesWriteStart { target, path, overwrite, ..Default::default() };
            let event = |event| v1::FilesWriteRequest { event: Some(event) };
            let messages = [
                event(v1::files_write_request::Event::Start(start)),
                event(v1::files_write_request::Event::Data(ENV_SECRET.into())),
            ];
            client.write(request(tokio_stream::iter(messages), header)).await?;
        }
    }
    Ok(())
}

const EXEC: Right = right("create", "pods/exec", "default");
const WRITE: Right = right("update", "podsonde.dev:files", "default");

/// A row of [`ALL`] for each of these.
macro_rules! files {
    ($($name:literal, $method:literal, $what:ident, $pod:literal, $as_root:literal, [$($need:expr),+];)+) => {
        &[$(Rpc {
            name: $name,
            method: concat!("podsonde.v1.Files/", $method),
            needs: &[$($need),+],
            call: |channel, header| Box::pin(file(channel, header, File::$what, $pod, $as_root)),
        },)+]
    };
}

/// The service Files.
pub(crate) const FILES: &[Rpc] = files! {
    "stat", "Stat", Stat, "web", false, [GET, EXEC];
    "stat-root", "Stat", Stat, "web", true, [GET, EXEC, PATCH];
    "stat-powerful", "Stat", Stat, "powerful", false, [GET, EXEC, PROXY];
    "stat-host-path", "Stat", Stat, "host-path", false, [GET, EXEC, PROXY];
    "list", "List", List, "web", false, [GET, EXEC];
    "list-root", "List", List, "web", true, [GET, EXEC, PATCH];
    "list-host-path", "List", List, "host-path", false, [GET, EXEC, PROXY];
    "read", "Read", Read, "web", false, [GET, EXEC];
    "read-root", "Read", Read, "web", true, [GET, EXEC, PATCH];
    "read-powerful", "Read", Read, "powerful", false, [GET, EXEC, PROXY];
    "read-own-right", "Read", Read, "powerful", false, [GET, EXEC, NODE];
    "read-host-path", "Read", Read, "host-path", true, [GET, EXEC, PATCH, PROXY];
    "walk", "Walk", Walk, "web", false, [GET, EXEC];
    "walk-root", "Walk", Walk, "web", true, [GET, EXEC, PATCH];
    "walk-host-path", "Walk", Walk, "host-path", false, [GET, EXEC, PROXY];
    "checksum", "Checksum", Checksum, "web", false, [GET, EXEC];
    "checksum-root", "Checksum", Checksum, "web", true, [GET, EXEC, PATCH];
    "checksum-host-path", "Checksum", Checksum, "host-path", false, [GET, EXEC, PROXY];
    "write", "Write", Write, "web", false, [GET, EXEC, WRITE];
    "write-root", "Write", Write, "web", true, [GET, EXEC, WRITE, PATCH];
    "write-host-path", "Write", Write, "host-path", false, [GET, EXEC, WRITE, PROXY];
};

const GET: Right = right("get", "pods", "default");
const PATCH: Right = right("patch", "pods/ephemeralcontainers", "default");
const CAPTURE: Right = right("create", "podsonde.dev:captures", "default");
const PROXY: Right = right("create", "nodes/proxy", "");
/// As good as [`PROXY`].
const NODE: Right = right("create", "podsonde.dev:nodes", "");

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
        name: "create-powerful-own-right",
        method: "podsonde.v1.Debug/Create",
        needs: &[GET, PATCH, NODE],
        call: |channel, header| Box::pin(created(channel, header, create("powerful", "made-too"))),
    },
    Rpc {
        name: "get",
        method: "podsonde.v1.Debug/Get",
        needs: &[GET],
        call: |channel, header| {
            Box::pin(async move {
                let message =
                    v1::DebugGetRequest { pod: pod_ref("web"), session: "session".into() };
                let answer =
                    DebugClient::new(channel).get(request(message, header.as_deref())).await?;
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
                assert_eq!(
                    pods,
                    ["default/host", "default/host-path", "default/powerful", "default/web"]
                );
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
                assert_eq!(
                    pods,
                    [
                        "default/host",
                        "default/host-path",
                        "default/powerful",
                        "default/web",
                        "other/db"
                    ]
                );
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
                let answer = CaptureClient::new(channel)
                    .compile(request(message, header.as_deref()))
                    .await?;
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
                let message = v1::CaptureListInterfacesRequest {
                    pod: pod_ref("web"),
                    container: String::new(),
                };
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
                let message = v1::CaptureListInterfacesRequest {
                    pod: pod_ref("host"),
                    container: String::new(),
                };
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
                NodeClient::new(channel)
                    .get(request(v1::NodeGetRequest {}, header.as_deref()))
                    .await?;
                Ok(())
            })
        },
    },
    // Last, so that the lists above have no session of it.
    Rpc {
        name: "create-host-path",
        method: "podsonde.v1.Debug/Create",
        needs: &[GET, PATCH, PROXY],
        call: |channel, header| Box::pin(created(channel, header, create("host-path", "made"))),
    },
];

/// Reads a file of a pod.
pub(crate) async fn read(
    channel: Channel,
    authorization: Option<String>,
    pod: &str,
) -> Result<(), Status> {
    file(channel, authorization, File::Read, pod, false).await
}
