//! Requests that are wrong in themselves, and what a stranger is told about them.

use std::time::Duration;

use podsonde::proto::v1::{self, debug_client::DebugClient};
use prost::bytes::{Buf, BufMut, Bytes};
use serde_json::json;
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tonic_types::StatusExt;

use crate::fixture::{Fixture, SLEEP, WEB, pod_ref, reason, request};

/// It is INVALID_FIELD of this field, and says this.
fn assert_invalid(status: &Status, field: &str, says: &str) {
    println!("{field:22} {}", status.message());
    let (why, metadata) = reason(status);
    assert_eq!(
        (status.code(), why.as_str()),
        (Code::InvalidArgument, "INVALID_FIELD"),
        "{status:?}"
    );
    assert_eq!(metadata.get("field").map(String::as_str), Some(field), "{status:?}");
    assert_eq!(metadata.get("spec_entry"), None);
    assert!(
        status.message().contains(field) && status.message().contains(says),
        "{says}: {}",
        status.message()
    );
    let details = status.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
}

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn pod(namespace: &str, name: &str) -> Option<v1::PodRef> {
    Some(v1::PodRef { namespace: namespace.into(), name: name.into(), uid: String::new() })
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_a_debug_container() {
    let f = Fixture::start().await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    let long = |n: usize| "a".repeat(n);
    let with = |change: &dyn Fn(&mut v1::DebugCreateRequest)| {
        let mut request = request("web", "");
        change(&mut request);
        request
    };
    let variable = |name: &str| v1::EnvVar { name: name.into(), value: String::new() };
    let custom = |json: &str| with(&|r| r.custom_json = json.into());
    let whole = |json: &str| with(&|r| (r.image, r.container_json) = (String::new(), json.into()));
    let bare = r#"{"name":"d","image":"i"}"#;
    let mut table = vec![
        (with(&|r| r.pod = None), "pod", "is required"),
        (with(&|r| r.pod = pod("", "")), "pod.name", "is required"),
        (with(&|r| r.pod = pod("", &long(254))), "pod.name", "254 bytes long; at most 253"),
        (with(&|r| r.pod = pod("", "Web")), "pod.name", "lower case"),
        (with(&|r| r.pod = pod("", "../web")), "pod.name", "lower case"),
        (with(&|r| r.pod = pod("a.b", "web")), "pod.namespace", "lower case"),
        (with(&|r| r.pod = pod(&long(64), "web")), "pod.namespace", "at most 63"),
        (with(&|r| r.pod.as_mut().unwrap().uid = long(65)), "pod.uid", "a UID has 36"),
        (with(&|r| r.target_container = "Web".into()), "target_container", "lower case"),
        (with(&|r| r.target_container = long(64)), "target_container", "at most 63"),
        (with(&|r| r.name = "-d".into()), "name", "begin and end with a letter or digit"),
        (with(&|r| r.name = long(64)), "name", "64 bytes long; at most 63"),
        (with(&|r| r.image = String::new()), "image", "is required"),
        (with(&|r| r.image = long(1025)), "image", "1025 bytes long; at most 1024"),
        (
            with(&|r| r.image_pull_policy = 9),
            "image_pull_policy",
            "Always 1, IfNotPresent 2, Never 3",
        ),
        (with(&|r| r.profile = -1), "profile", "general 1, baseline 2"),
        (with(&|r| r.command = vec!["x".into(); 1025]), "command", "1025 words; at most 1024"),
        (with(&|r| r.env = vec![variable("A"); 65]), "env", "65 variables; at most 64"),
        (
            with(&|r| r.env = vec![variable("A"), variable("")]),
            "env[1].name",
            "no name of a variable",
        ),
        (with(&|r| r.env = vec![variable("A=B")]), "env[0].name", "no name of a variable"),
        (with(&|r| r.env = vec![variable("PODSONDE_SESSION_ID")]), "env[0].name", "reserved"),
        (with(&|r| r.tty = true), "tty", "needs stdin"),
        (with(&|r| r.ttl = duration(-1, 0)), "ttl", "negative or out of range"),
        (with(&|r| r.ttl = duration(0, 0)), "ttl", "more than 0 s"),
        (with(&|r| r.ttl = duration(86_401, 0)), "ttl", "at most 86400 s"),
        (with(&|r| r.ttl = duration(i64::MAX, 999_999_999)), "ttl", "at most 86400 s"),
        (with(&|r| r.ttl = duration(1, i32::MAX)), "ttl", "negative or out of range"),
        (with(&|r| r.ttl = duration(i64::MIN, i32::MIN)), "ttl", "negative or out of range"),
        (with(&|r| r.start_timeout = duration(601, 0)), "start_timeout", "at most 600 s"),
        (with(&|r| r.start_timeout = duration(0, -1)), "start_timeout", "negative or out of range"),
        (custom("{"), "custom_json", "is not JSON"),
        (custom("[]"), "custom_json", "is not an object"),
        (custom(r#"{"tty":"yes"}"#), "custom_json", "invalid type"),
        (custom(r#"{"$patch":"delete"}"#), "custom_json.$patch", "may not be set"),
        (custom(&" ".repeat(65_537)), "custom_json", "65537 bytes long; at most 65536"),
        (custom(r#"{"env":[{"name":"PODSONDE_X","value":"y"}]}"#), "custom_json.env", "reserved"),
        (custom(r#"{"ports":[],"lifecycle":{}}"#), "custom_json", "lifecycle, ports"),
        (
            custom(r#"{"volumeMounts":[{"name":"v","mountPath":"/v","subPath":"s"}]}"#),
            "custom_json.volumeMounts[0].subPath",
            "may not be set",
        ),
        (
            custom(r#"{"volumeMounts":[{"name":"v","mountPath":"/v","subPathExpr":"s"}]}"#),
            "custom_json.volumeMounts[0].subPathExpr",
            "may not be set",
        ),
        (whole("{"), "container_json", "is not JSON"),
        (whole("7"), "container_json", "neither a container nor a list of one"),
        (whole("{}"), "container_json", "image is required"),
        (whole("[]"), "container_json", "exactly one"),
        (whole(&format!("[{bare},{bare}]")), "container_json", "holds 2 containers"),
        (whole("[1]"), "container_json", "not an object"),
        (whole(r#"{"ephemeralContainers":7}"#), "container_json", "not a list"),
        (whole(r#"{"image":"i","name":"Bad"}"#), "name", "lower case"),
        (whole(r#"{"image":"i","env":7}"#), "container_json", "invalid type"),
        (
            whole(&format!("{{\"image\":\"i\",\"name\":\"{}\"}}", long(65_536))),
            "container_json",
            "at most 65536",
        ),
    ];
    for key in FORBIDDEN {
        table.push((custom(&format!("{{\"{key}\":{{}}}}")), "custom_json.", key));
        table.push((whole(&format!("{{\"image\":\"i\",\"{key}\":{{}}}}")), "container_json.", key));
    }
    for key in ["name", "command", "image", "volumeDevices"] {
        table.push((custom(&format!("{{\"{key}\":[]}}")), "custom_json.", key));
    }
    for (field, set) in BESIDES {
        let mut both = whole(bare);
        set(&mut both);
        table.push((both, field, "together with container_json"));
    }
    for (request, field, says) in table {
        let status = f.create(request).await.1.unwrap_err();
        if field.ends_with('.') {
            assert_invalid(
                &status,
                &format!("{field}{says}"),
                "may not be set in an ephemeral container",
            );
        } else {
            assert_invalid(&status, field, says);
        }
    }
    // However long a name that stands in the message is, the message arrives.
    let status =
        f.create(custom(&format!("{{\"{}\":1}}", "é".repeat(30_000)))).await.1.unwrap_err();
    let (why, metadata) = reason(&status);
    assert_eq!(
        (status.code(), why.as_str()),
        (Code::InvalidArgument, "INVALID_FIELD"),
        "{status:?}"
    );
    assert!(metadata["field"].starts_with("custom_json.é") && status.message().len() < 2048);
    assert!(f.entries("web").await.is_empty(), "nothing of all that came into the spec");
    f.end().await;
}

/// Of `kubernetes.md`, each is named when refused.
const FORBIDDEN: [&str; 10] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "noSuchField",
];

type Set = fn(&mut v1::DebugCreateRequest);
/// What may not be given besides a whole container.
const BESIDES: [(&str, Set); 6] = [
    ("image", |r| r.image = SLEEP.into()),
    ("command", |r| r.command = vec!["x".into()]),
    ("args", |r| r.args = vec!["x".into()]),
    ("env", |r| r.env = vec![v1::EnvVar { name: "A".into(), value: "1".into() }]),
    ("profile", |r| r.profile = 1),
    ("custom_json", |r| r.custom_json = "{}".into()),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_container_in_all_its_shapes() {
    let f = Fixture::start().await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    let shapes: [fn(serde_json::Value) -> serde_json::Value; 4] = [
        |c| c,
        |c| json!([c]),
        |c| json!({"ephemeralContainers": [c]}),
        |c| json!({"kind": "EphemeralContainers", "apiVersion": "v1", "metadata": {"name": "web"}, "ephemeralContainers": [c]}),
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        let name = format!("d{n}");
        let container = shape(json!({"name": name, "image": SLEEP, "targetContainerName": "web"}));
        let request = v1::DebugCreateRequest {
            pod: pod_ref("web"),
            container_json: container.to_string(),
            ..Default::default()
        };
        let session = f.created(request).await.session.unwrap();
        assert_eq!((session.container, session.target_container.as_str()), (name, "web"));
        assert_eq!(session.image, SLEEP);
    }
    let mut entries = f.entries("web").await;
    entries.sort();
    assert_eq!(entries, ["d0", "d1", "d2", "d3"]);
    assert!(f.sessions().await.iter().all(|s| s.image == SLEEP));
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_other_requests() {
    let f = Fixture::start().await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    let (mut debug, mut namespaces) = (f.debug(), f.namespaces());
    let bad = "Bad_Name";
    let get = v1::DebugGetRequest { pod: pod_ref("web"), session: bad.into() };
    assert_invalid(&debug.get(get).await.unwrap_err(), "session", "lower case");
    let get = v1::DebugGetRequest { pod: None, session: "d".into() };
    assert_invalid(&debug.get(get).await.unwrap_err(), "pod", "is required");
    let list = |namespace: &str, pod: &str, page_token: &str| v1::DebugListRequest {
        namespace: namespace.into(),
        pod: pod.into(),
        page_token: page_token.into(),
        ..Default::default()
    };
    assert_invalid(&debug.list(list(bad, "", "")).await.unwrap_err(), "namespace", "lower case");
    assert_invalid(&debug.list(list("", "web", "")).await.unwrap_err(), "namespace", "is required");
    assert_invalid(&debug.list(list("default", bad, "")).await.unwrap_err(), "pod", "lower case");
    assert_invalid(
        &debug.list(list("", "", "nonsense")).await.unwrap_err(),
        "page_token",
        "none of this agent's",
    );
    let end = |session: &str, grace_period| v1::DebugEndRequest {
        pod: pod_ref("web"),
        session: session.into(),
        grace_period,
    };
    assert_invalid(&debug.end(end("", None)).await.unwrap_err(), "session", "is required");
    assert_invalid(
        &debug.end(end("d", duration(301, 0))).await.unwrap_err(),
        "grace_period",
        "at most 300 s",
    );
    assert_invalid(
        &debug.end(end("d", duration(-5, 0))).await.unwrap_err(),
        "grace_period",
        "negative",
    );
    let verify = v1::NamespacesVerifyRequest { pod: pod("", "web"), container: bad.into() };
    assert_invalid(&namespaces.verify(verify).await.unwrap_err(), "container", "lower case");
    let node = |namespace: &str, label_selector: &str| v1::NamespacesVerifyNodeRequest {
        namespace: namespace.into(),
        label_selector: label_selector.into(),
    };
    for selector in ["a=b=c", "env in (", "=", "a b", "!", ",", "a in b", "a=ü"] {
        let mut answers = namespaces.verify_node(node("", selector)).await.unwrap().into_inner();
        assert_invalid(&answers.message().await.unwrap_err(), "label_selector", "write app=web");
    }
    let status = namespaces.verify_node(node(bad, "")).await.unwrap_err();
    assert_invalid(&status, "namespace", "lower case");

    let mut request = Request::new(v1::DebugListRequest::default());
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_invalid(&debug.list(request).await.unwrap_err(), "grpc-timeout", "not a gRPC timeout");
    f.end().await;
}

/// Sends bytes as they are.
#[derive(Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn raw(channel: &Channel, path: &'static str, message: &[u8]) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let message = Request::new(Bytes::copy_from_slice(message));
    let answer = client.unary(message, PathAndQuery::from_static(path), Raw).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_none() {
    let f = Fixture::start().await;
    let channel = f.channel();
    let list = "/podsonde.v1.Debug/List";
    assert!(raw(&channel, list, b"").await.is_ok());
    // Field 1, a string, which is not UTF-8; a length beyond the end; an unfinished tag; a wrong
    // wire type.
    let malformed: [&[u8]; 4] = [b"\x0a\x02\xff\xfe", b"\x0a\x7f\x61", b"\xff", b"\x08\x01"];
    for message in malformed {
        let status = raw(&channel, list, message).await.unwrap_err();
        println!("{status:?}");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("malformed message"), "{}", status.message());
    }
    assert!(raw(&channel, list, b"\xfa\x7f\x01x").await.is_ok(), "unknown fields are skipped");
    for path in ["/podsonde.v1.Debug/Nothing", "/podsonde.v9.Debug/List", "/"] {
        let status = raw(&channel, path, b"").await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    }
    let mut huge = request("web", "");
    huge.args = vec!["x".repeat(300 * 1024)];
    let status = DebugClient::new(channel.clone()).create(huge).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(
        status.message().contains("too large") && status.message().contains("262144"),
        "{}",
        status.message()
    );
    // The connection and the agent have survived all that.
    assert!(raw(&channel, list, b"").await.is_ok());
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_finds_out_what_there_is() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let f = Fixture::start().await;
    let mut reflection = ServerReflectionClient::new(f.channel());
    let mut ask = async |message: MessageRequest| {
        let request =
            ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let mut answers = reflection
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap()
            .into_inner();
        answers.message().await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) =
        ask(MessageRequest::ListServices("*".into())).await
    else {
        panic!("no list")
    };
    let mut services: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    services.sort();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "podsonde.v1.Capture",
        "podsonde.v1.Debug",
        "podsonde.v1.Files",
        "podsonde.v1.Namespaces",
        "podsonde.v1.Node",
    ];
    assert_eq!(services, expected);
    for symbol in ["podsonde.v1.Debug", "podsonde.v1.DebugCreateRequest", "grpc.health.v1.Health"] {
        let answer = ask(MessageRequest::FileContainingSymbol(symbol.into())).await;
        assert!(
            matches!(answer, MessageResponse::FileDescriptorResponse(_)),
            "{symbol}: {answer:?}"
        );
    }
    let mut health = HealthClient::new(f.channel());
    for service in std::iter::once("")
        .chain(services.iter().map(String::as_str).filter(|s| s.starts_with("podsonde")))
    {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service}");
    }
    let unknown =
        health.check(HealthCheckRequest { service: "no.such.Service".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let node = f.node().get(v1::NodeGetRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (node.node.as_str(), node.version.as_str()),
        (crate::fixture::NODE, env!("CARGO_PKG_VERSION"))
    );
    let uname = std::process::Command::new("uname").arg("-r").output().unwrap();
    assert_eq!(node.kernel.as_bytes(), uname.stdout.trim_ascii());
    tokio::time::timeout(Duration::from_secs(30), f.end()).await.unwrap();
}
