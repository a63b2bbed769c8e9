//! The daemon itself: its probes and metrics, its end by SIGTERM, and what SIGKILL leaves behind.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use podsonde::{
    agent::config::Limits,
    proto::v1::{self, SessionState, debug_client::DebugClient, debug_create_response::Event},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::fixture::{Failure, Fixture, NODE, WEB, request, rest, within};

/// A running `podsonde-agent`.
struct Daemon {
    child: Child,
    probes: SocketAddr,
    channel: Channel,
    log: mpsc::Receiver<Value>,
}

/// A directory for a kubeconfig and a socket.
struct Place(tempfile::TempDir);

impl Place {
    fn of(f: &Fixture) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kubeconfig"), f.cluster.kubeconfig()).unwrap();
        Self(dir)
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("agent.sock")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podsonde-agent"));
        let host_pid = std::process::id().to_string();
        command
            .args([
                "--node-name",
                NODE,
                "--host-pid",
                &host_pid,
                "--log-format",
                "json",
                "--drain-timeout",
                "20s",
            ])
            .args([
                "--listen",
                "127.0.0.1:0",
                "--insecure-loopback",
                "--metrics-listen",
                "127.0.0.1:0",
            ])
            .arg("--listen")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--seal-key")
            .arg(crate::fixture::seal_key())
            .arg("--kubeconfig")
            .arg(self.0.path().join("kubeconfig"))
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped());
        command
    }

    async fn start(&self) -> Daemon {
        let mut child = self.command().spawn().unwrap();
        let (sender, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // Every line is JSON, a crash's too, or this says which is not.
                let line: Value =
                    serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                let _ = sender.send(line);
            }
        });
        let address = |message: &str| -> SocketAddr {
            loop {
                let line = log.recv_timeout(Duration::from_secs(30)).unwrap();
                if line["message"] == message && line["address"].is_string() {
                    return line["address"].as_str().unwrap().parse().unwrap();
                }
            }
        };
        let (grpc, probes) = (address("serving gRPC"), address("serving probes and metrics"));
        let channel =
            Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
        Daemon { child, probes, channel, log }
    }
}

impl Daemon {
    /// Asks its probe port for a path: status and body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.probes).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn ready(&self) {
        within("ready", async {
            while self.get("/readyz").await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    async fn exit(mut self) -> (Option<i32>, Vec<Value>) {
        let wait =
            tokio::task::spawn_blocking(move || (self.child.wait().unwrap().code(), self.log));
        let (code, log) = within("the process ends", wait).await.unwrap();
        (code, log.iter().collect())
    }
}

/// A cluster without an agent, whose containers take so long to start.
async fn cluster(start: Duration) -> (Fixture, Place) {
    let mut f = Fixture::with(|o| o.start_delay = start, Limits::default()).await;
    f.stop_agent().await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    let place = Place::of(&f);
    (f, place)
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let (f, place) = cluster(Duration::from_secs(3)).await;
    f.cluster.faults().hang();
    let daemon = place.start().await;
    // Alive, but without the pods not ready.
    assert_eq!(daemon.get("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(
        daemon.get("/readyz").await,
        (503, "the pods of the node are not read yet\n".to_owned())
    );
    let mut health = HealthClient::new(daemon.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
    let early =
        DebugClient::new(daemon.channel.clone()).create(request("web", "")).await.unwrap_err();
    let not_ready = Failure {
        code: Code::Unavailable,
        reason: "NOT_READY",
        entry: "",
        says: "has not read the pods",
    };
    not_ready.check(&early, "web");
    f.cluster.faults().up().await.unwrap();
    daemon.ready().await;
    assert_eq!(within("serving", watch.message()).await.unwrap().unwrap().status, 1);

    let mut stream = DebugClient::new(daemon.channel.clone())
        .create(request("web", "web"))
        .await
        .unwrap()
        .into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert!(matches!(first.event, Some(Event::Accepted(_))));
    // A stream that nothing ends keeps the agent draining.
    let (held, messages) = tokio::sync::mpsc::channel(1);
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut reflection = ServerReflectionClient::new(daemon.channel.clone());
    let open = reflection.server_reflection_info(messages).await.unwrap().into_inner();

    daemon.signal("-TERM");
    let draining = Failure {
        code: Code::Unavailable,
        reason: "DRAINING",
        entry: "permanent",
        says: "shutting down",
    };
    draining.check(&within("DRAINING", rest(stream)).await.1.unwrap_err(), "web");
    assert_eq!(within("not serving", watch.message()).await.unwrap().unwrap().status, 2);
    assert!(within("the health watch ends", watch.message()).await.unwrap().is_none());
    assert_eq!(daemon.get("/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(daemon.get("/healthz").await.0, 200);
    let metrics = daemon.get("/metrics").await.1;
    assert!(metrics.contains("podsonde_request_errors_total{reason=\"DRAINING\"} 1"), "{metrics}");
    drop((held, open));
    let (code, log) = daemon.exit().await;
    assert_eq!(code, Some(0), "{log:#?}");
    let said = |message: &str| log.iter().any(|line| line["message"] == message);
    assert!(
        said("draining") && said("stopped") && !said("some requests did not end in time"),
        "{log:#?}"
    );
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_leaves_nothing_in_the_way() {
    let (f, place) = cluster(Duration::ZERO).await;
    let daemon = place.start().await;
    daemon.ready().await;
    let stream = DebugClient::new(daemon.channel.clone())
        .create(request("web", "web"))
        .await
        .unwrap()
        .into_inner();
    let session = within("create", rest(stream)).await.1.unwrap().session.unwrap();
    // A second agent does not take the first one's socket.
    let second = place.command().output().unwrap();
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && told.contains("another process listens on"), "{told}");

    let pid = daemon.child.id();
    daemon.signal("-KILL");
    assert_eq!(daemon.exit().await.0, None);
    assert!(place.socket().exists(), "it had no chance to remove it");
    let children =
        Command::new("ps").args(["-o", "pid=", "--ppid", &pid.to_string()]).output().unwrap();
    assert_eq!(String::from_utf8(children.stdout).unwrap(), "");
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());

    let daemon = place.start().await;
    daemon.ready().await;
    let list = v1::DebugListRequest::default();
    let sessions =
        DebugClient::new(daemon.channel.clone()).list(list).await.unwrap().into_inner().sessions;
    assert_eq!(sessions, std::slice::from_ref(&session));
    assert_eq!(sessions[0].state(), SessionState::Running);
    let end = v1::DebugEndRequest {
        pod: crate::fixture::pod_ref("web"),
        session: session.id,
        grace_period: None,
    };
    let end = DebugClient::new(daemon.channel.clone()).end(end).await.unwrap().into_inner();
    assert_eq!((end.outcome(), end.signalled), (v1::EndOutcome::Ended, 1));
    daemon.signal("-TERM");
    assert_eq!(daemon.exit().await.0, Some(0));
    f.end().await;
}

/// Samples by name and labels, and the type of each family, of text in the OpenMetrics format.
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
fn parse(text: &str) -> (BTreeMap<&str, f64>, BTreeMap<&str, &str>) {
    let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
    let lines: Vec<_> = text.strip_suffix("# EOF\n").expect("ends with EOF").lines().collect();
    for line in lines {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<_> = comment.splitn(3, ' ').collect();
            match words.as_slice() {
                ["TYPE", family, kind] => {
                    assert!(types.insert(*family, *kind).is_none(), "twice: {line}");
                }
                ["HELP" | "UNIT", _, text] => assert!(!text.is_empty(), "{line}"),
                _ => panic!("no comment of the format: {line}"),
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        let name = sample.split('{').next().unwrap();
        assert!(types.keys().any(|family| name.starts_with(family)), "of no family: {line}");
        let value = value.parse().unwrap_or_else(|_| panic!("no figure: {line}"));
        assert!(samples.insert(sample, value).is_none(), "twice: {line}");
    }
    (samples, types)
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_what_happened() {
    let f = Fixture::start().await;
    f.pod("web", json!({"containers": [{"name": "web", "image": WEB}]})).await;
    f.created(request("web", "web")).await;
    f.create(request("web", "absent")).await.1.unwrap_err();
    f.verify("web").await;
    let daemon = f.metrics_address();
    let mut stream = tokio::net::TcpStream::connect(daemon).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/openmetrics-text"), "{head}");
    let (samples, types) = parse(body);
    let families = [
        ("podsonde_request_duration_seconds", "histogram"),
        ("podsonde_request_errors", "counter"),
        ("podsonde_verdicts", "counter"),
        ("podsonde_sessions", "gauge"),
        ("podsonde_pods", "gauge"),
        ("podsonde_build", "info"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_cpu_seconds", "counter"),
        ("process_open_fds", "gauge"),
    ];
    for (family, kind) in families {
        assert_eq!(types.get(family), Some(&kind), "{family}: {body}");
    }
    let expected = [
        ("podsonde_request_duration_seconds_count{method=\"Debug/Create\",code=\"OK\"}", 1.0),
        (
            "podsonde_request_duration_seconds_count{method=\"Debug/Create\",code=\"NOT_FOUND\"}",
            1.0,
        ),
        ("podsonde_request_errors_total{reason=\"CONTAINER_NOT_FOUND\"}", 1.0),
        ("podsonde_verdicts_total{outcome=\"ok\"}", 3.0),
        ("podsonde_verdicts_total{outcome=\"drift\"}", 0.0),
        ("podsonde_sessions{state=\"running\"}", 1.0),
        ("podsonde_sessions{state=\"waiting\"}", 0.0),
        ("podsonde_pods", 1.0),
    ];
    for (sample, value) in expected {
        assert_eq!(samples.get(sample), Some(&value), "{sample}: {body}");
    }
    assert!(
        samples["process_resident_memory_bytes"] > 1e6 && samples["process_open_fds"] > 5.0,
        "{body}"
    );
    f.end().await;
}
