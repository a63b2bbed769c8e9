//! A gRPC server that speaks the agent's API with canned answers, chosen by the names in the
//! request.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use podsonde::proto::v1::{
    self, debug_create_response::Event, debug_server, namespaces_server, node_server, *,
};
use tokio::{net::TcpListener, sync::Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

/// The answers, the last request to create a container, and those for captures.
#[derive(Clone, Default)]
pub(crate) struct FakeAgent {
    pub(crate) created: Arc<Mutex<Option<DebugCreateRequest>>>,
    #[cfg(target_os = "linux")]
    pub(crate) files: super::fake_files::FakeFiles,
    pub(crate) captures: Arc<Mutex<Vec<CaptureStartRequest>>>,
    /// Whether it is of a version that has no captures yet.
    pub(crate) is_old: bool,
}

pub(crate) fn failure(code: Code, reason: &str, message: &str, facts: &[(&str, &str)]) -> Status {
    let facts = facts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let details = ErrorDetails::with_error_info(
        reason,
        "podsonde.dev",
        facts.collect::<std::collections::HashMap<_, _>>(),
    );
    Status::with_error_details(code, message, details)
}

fn time(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// The verdicts on a container that has the sandbox's ipc, net and uts and the target's pid
/// namespace; `pid`: it has not.
pub(crate) fn container(
    namespace: &str,
    pod: &str,
    name: &str,
    outcome: Outcome,
) -> ContainerVerification {
    let identity = ContainerIdentity {
        node: "n1".into(),
        namespace: namespace.into(),
        pod: pod.into(),
        pod_uid: "u1".into(),
        container: name.into(),
        kind: if name == "app" { ContainerKind::Regular } else { ContainerKind::Ephemeral }.into(),
        container_id: format!("containerd://{}", "ab".repeat(32)),
        host_pid: 4711,
        ns_pid: 7,
        started_at: time(1_700_000_000),
    };
    if outcome == Outcome::Unknown {
        let identity = ContainerIdentity {
            container_id: String::new(),
            host_pid: 0,
            ns_pid: 0,
            started_at: None,
            ..identity
        };
        return ContainerVerification {
            container: Some(identity),
            outcome: outcome.into(),
            reason: "PROCESS_NOT_FOUND".into(),
            message: "no process of the container was found".into(),
            ..ContainerVerification::default()
        };
    }
    let id = |inode| Some(NamespaceId { dev: 4, inode });
    let drifts = outcome == Outcome::Drift;
    let verdict = |kind: NamespaceKind,
                   actual: Sharing,
                   expected: &[Sharing],
                   inode,
                   because: &str| NamespaceVerdict {
        kind: kind.into(),
        actual: actual.into(),
        expected: expected.iter().map(|sharing| i32::from(*sharing)).collect(),
        outcome: if expected.contains(&actual) { Outcome::Ok } else { Outcome::Drift }.into(),
        id: id(inode),
        reference_id: id(4_026_532_400),
        host_id: id(4_026_531_800),
        because: because.into(),
        foreign_containers: 0,
        evidence: None,
    };
    use Sharing::{Host, Private, Shared};
    let mut namespaces = vec![
        verdict(NamespaceKind::Ipc, Shared, &[Shared], 4_026_532_401, "the pod's sandbox"),
        verdict(NamespaceKind::Net, Shared, &[Shared], 4_026_532_402, "the pod's sandbox"),
        verdict(NamespaceKind::Uts, Shared, &[Shared], 4_026_532_403, "the pod's sandbox"),
        verdict(
            NamespaceKind::Pid,
            if drifts { Private } else { Shared },
            &[Shared],
            4_026_532_404,
            "targetContainerName: app",
        ),
        verdict(NamespaceKind::Mnt, Private, &[Private], 4_026_532_405, "always its own"),
        verdict(NamespaceKind::Cgroup, Private, &[Private, Host], 4_026_532_406, ""),
        verdict(NamespaceKind::User, Host, &[Host], 4_026_531_837, "hostUsers: true"),
        verdict(NamespaceKind::Time, Host, &[Host], 4_026_531_834, ""),
    ];
    // A container may call itself what it likes.
    let hostname = b"web\x1b]0;owned\x07\xff".to_vec();
    namespaces[2].evidence =
        Some(Evidence { kind: Some(evidence::Kind::Uts(UtsEvidence { hostname })) });
    let eth0 = NetInterface { name: b"eth0".to_vec(), addresses: vec!["10.244.0.7/24".into()] };
    let net = NetEvidence { cookie: u64::MAX, interfaces: vec![eth0], interface_count: 1 };
    namespaces[1].evidence = Some(Evidence { kind: Some(evidence::Kind::Net(net)) });
    ContainerVerification {
        container: Some(identity.clone()),
        reference: Some(Reference {
            kind: ReferenceKind::Target.into(),
            container: Some(ContainerIdentity { container: "app".into(), ..identity }),
        }),
        outcome: outcome.into(),
        reason: String::new(),
        message: if drifts {
            "pid is private, the spec asks for shared".into()
        } else {
            String::new()
        },
        namespaces,
    }
}

fn pod(namespace: &str, name: &str, containers: Vec<ContainerVerification>) -> PodVerification {
    let worst = [Outcome::Drift, Outcome::Unknown, Outcome::Ok]
        .into_iter()
        .find(|outcome| containers.iter().any(|container| container.outcome() == *outcome));
    PodVerification {
        node: "n1".into(),
        namespace: namespace.into(),
        name: name.into(),
        uid: "u1".into(),
        outcome: worst.unwrap_or_default().into(),
        containers,
    }
}

/// What is known of the pod that has this name.
fn verification(namespace: &str, name: &str) -> Result<PodVerification, Status> {
    let one = |outcome| vec![container(namespace, name, "app", outcome)];
    Ok(match name {
        "web" => pod(namespace, name, one(Outcome::Ok)),
        "drift" => pod(
            namespace,
            name,
            vec![
                container(namespace, name, "app", Outcome::Ok),
                container(namespace, name, "dbg", Outcome::Drift),
            ],
        ),
        "doubt" => pod(namespace, name, one(Outcome::Unknown)),
        "done" => pod(namespace, name, Vec::new()),
        "other" => {
            let message = "pod default/other runs on node n2, this is the agent of node n1";
            return Err(failure(
                Code::FailedPrecondition,
                "POD_ON_OTHER_NODE",
                message,
                &[("node", "n2")],
            ));
        }
        "plain" => return Err(Status::unavailable("something broke")),
        "stall" => unreachable!("answered by the caller"),
        _ => {
            let message = format!("there is no pod {namespace}/{name} on node n1");
            return Err(failure(Code::NotFound, "POD_NOT_FOUND", &message, &[("node", "n1")]));
        }
    })
}

pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl namespaces_server::Namespaces for FakeAgent {
    async fn verify(
        &self,
        request: Request<NamespacesVerifyRequest>,
    ) -> Result<Response<NamespacesVerifyResponse>, Status> {
        let request = request.into_inner();
        let pod = request.pod.unwrap();
        if pod.name == "stall" {
            std::future::pending::<()>().await;
        }
        let mut found = verification(&pod.namespace, &pod.name)?;
        if !request.container.is_empty() {
            found
                .containers
                .retain(|c| c.container.as_ref().unwrap().container == request.container);
        }
        Ok(Response::new(NamespacesVerifyResponse { pod: Some(found) }))
    }

    type VerifyNodeStream = Answers<NamespacesVerifyNodeResponse>;

    async fn verify_node(
        &self,
        request: Request<NamespacesVerifyNodeRequest>,
    ) -> Result<Response<Self::VerifyNodeStream>, Status> {
        let request = request.into_inner();
        let names: &[&str] = match request.label_selector.as_str() {
            "" => &["doubt", "done", "drift", "web"],
            "app=web" => &["web"],
            "app=nothing" => &[],
            other => return Err(failure(Code::InvalidArgument, "SELECTOR_INVALID", other, &[])),
        };
        let namespace =
            if request.namespace.is_empty() { "default".to_owned() } else { request.namespace };
        let pods = names.iter().map(|name| verification(&namespace, name));
        let answers: Vec<_> = pods
            .map(|pod| pod.map(|pod| NamespacesVerifyNodeResponse { pod: Some(pod) }))
            .collect();
        Ok(Response::new(stream::iter(answers).boxed()))
    }
}

fn session(namespace: &str, pod: &str, container: &str, state: SessionState) -> Session {
    Session {
        id: format!("00000000-0000-4000-8000-{:012}", container.len()),
        node: "n1".into(),
        namespace: namespace.into(),
        pod: pod.into(),
        pod_uid: "u1".into(),
        container: container.into(),
        target_container: "app".into(),
        image: "busybox:1.36".into(),
        requested_by: "alice".into(),
        requester_verified: true,
        created_at: time(now() - 20 * 3600 - 1800),
        expires_at: time(now() + 40 * 3600 + 1800),
        state: state.into(),
        ..Session::default()
    }
}

#[tonic::async_trait]
impl debug_server::Debug for FakeAgent {
    type CreateStream = Answers<DebugCreateResponse>;

    async fn create(
        &self,
        request: Request<DebugCreateRequest>,
    ) -> Result<Response<Self::CreateStream>, Status> {
        let request = request.into_inner();
        *self.created.lock().await = Some(request.clone());
        let PodRef { namespace, name: pod, .. } = request.pod.clone().unwrap();
        let name = if request.name.is_empty() {
            "podsonde-x7k2p".to_owned()
        } else {
            request.name.clone()
        };
        let answer = |event| Ok(DebugCreateResponse { event: Some(event) });
        let accepted = answer(Event::Accepted(DebugAccepted {
            session: Some(session(&namespace, &pod, &name, SessionState::Waiting)),
        }));
        let creating = answer(Event::Progress(DebugProgress {
            reason: "ContainerCreating".into(),
            message: String::new(),
        }));
        let done = |outcome, state: SessionState, exit_code| {
            let mut verification = container(&namespace, &pod, &name, outcome);
            if state == SessionState::Terminated {
                verification.reason = "CONTAINER_EXITED".into();
                verification.message = "the container has already exited".into();
            }
            answer(Event::Done(DebugDone {
                session: Some(Session { exit_code, ..session(&namespace, &pod, &name, state) }),
                verification: Some(verification),
                agent_time: prost_types::Duration::try_from(Duration::from_micros(8_300)).ok(),
            }))
        };
        let stream: Answers<DebugCreateResponse> = match pod.as_str() {
            "web" => {
                stream::iter([accepted, creating, done(Outcome::Ok, SessionState::Running, None)])
                    .boxed()
            }
            "drift" => stream::iter([
                accepted,
                creating,
                done(Outcome::Drift, SessionState::Running, None),
            ])
            .boxed(),
            "brief" => {
                stream::iter([accepted, done(Outcome::Unknown, SessionState::Terminated, Some(3))])
                    .boxed()
            }
            "stall" => stream::iter([accepted, creating]).chain(stream::pending()).boxed(),
            "cut" => stream::iter([accepted]).boxed(),
            "pull" => {
                let facts = [
                    ("namespace", "default"),
                    ("pod", "pull"),
                    ("container", name.as_str()),
                    ("spec_entry", "permanent"),
                ];
                let error = failure(
                    Code::FailedPrecondition,
                    "IMAGE_PULL_FAILED",
                    "the image nope:1 cannot be pulled: \u{1b}[2Jnot found",
                    &facts,
                );
                stream::iter([accepted, Err(error)]).boxed()
            }
            "taken" => {
                let message = format!("pod {namespace}/{pod} already has a container {name}");
                return Err(failure(Code::AlreadyExists, "NAME_TAKEN", &message, &[]));
            }
            _ => return Err(verification(&namespace, &pod).unwrap_err()),
        };
        Ok(Response::new(stream))
    }

    async fn get(&self, _: Request<DebugGetRequest>) -> Result<Response<DebugGetResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(
        &self,
        request: Request<DebugListRequest>,
    ) -> Result<Response<DebugListResponse>, Status> {
        let request = request.into_inner();
        if request.namespace == "empty" {
            return Ok(Response::new(DebugListResponse::default()));
        }
        // Two pages.
        let (sessions, next_page_token) = match request.page_token.as_str() {
            "" => (
                vec![session("default", "web", "podsonde-x7k2p", SessionState::Running)],
                "2".to_owned(),
            ),
            _ => {
                let ended = Session {
                    exit_code: Some(137),
                    // Older than the other one, also where a second passes between the two.
                    created_at: time(now() - 20 * 3600 - 1860),
                    ..session("default", "web", "old", SessionState::Terminated)
                };
                (
                    if request.include_ended {
                        vec![ended]
                    } else {
                        vec![session("default", "web", "two", SessionState::Running)]
                    },
                    String::new(),
                )
            }
        };
        Ok(Response::new(DebugListResponse { sessions, next_page_token }))
    }

    async fn end(
        &self,
        request: Request<DebugEndRequest>,
    ) -> Result<Response<DebugEndResponse>, Status> {
        let request = request.into_inner();
        let answer = match request.session.as_str() {
            "gone" => DebugEndResponse {
                outcome: EndOutcome::AlreadyEnded.into(),
                ..DebugEndResponse::default()
            },
            "stuck" => DebugEndResponse {
                outcome: EndOutcome::Partial.into(),
                signalled: 3,
                killed: 2,
                survivors: 1,
            },
            "none" => {
                return Err(failure(
                    Code::NotFound,
                    "SESSION_NOT_FOUND",
                    "there is no session none on pod default/web",
                    &[],
                ));
            }
            _ => DebugEndResponse {
                outcome: EndOutcome::Ended.into(),
                signalled: 1,
                killed: 0,
                survivors: 0,
            },
        };
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl node_server::Node for FakeAgent {
    async fn get(&self, _: Request<NodeGetRequest>) -> Result<Response<NodeGetResponse>, Status> {
        let feature = |name: &str, available, message: &str| Feature {
            name: name.into(),
            available,
            message: message.into(),
        };
        Ok(Response::new(NodeGetResponse {
            node: "n1".into(),
            version: "0.1.0".into(),
            kernel: "6.18.0".into(),
            architecture: "x86_64".into(),
            runtimes: vec!["containerd".into()],
            started_at: time(now() - 20 * 3600 - 1800),
            features: vec![
                feature("host-pid", true, "sees the node's processes"),
                feature(
                    "cap-sys-ptrace",
                    false,
                    "namespaces of other users cannot be read; add SYS_PTRACE",
                ),
            ],
            pods: 4,
        }))
    }
}

impl FakeAgent {
    fn router(&self) -> tonic::transport::server::Router {
        let router = Server::builder()
            .add_service(v1::namespaces_server::NamespacesServer::new(self.clone()))
            .add_service(v1::debug_server::DebugServer::new(self.clone()))
            .add_service(v1::node_server::NodeServer::new(self.clone()));
        #[cfg(target_os = "linux")]
        let router = router.add_service(v1::files_server::FilesServer::new(self.clone()));
        match self.is_old {
            true => router,
            false => router.add_service(v1::capture_server::CaptureServer::new(self.clone())),
        }
    }

    /// Serves on a loopback port, which is returned.
    pub(crate) async fn serve_tcp(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(self.router().serve_with_incoming(TcpListenerStream::new(listener)));
        port
    }

    /// Serves on a unix socket.
    #[cfg(unix)]
    pub(crate) async fn serve_unix(&self, path: &std::path::Path) {
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        tokio::spawn(self.router().serve_with_incoming(incoming));
    }
}
