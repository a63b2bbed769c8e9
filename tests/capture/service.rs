//! Captures over gRPC.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use podsonde::{
    agent::{capture::COMPILERS, config::CaptureLimits},
    proto::v1::{self, CaptureEnd, capture_start_response::Event},
    sys::capture::compiler::Compiler,
};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::{
    engine::{gaps, sequences},
    fixture::{Fixture, Stream, generated, pod_ref, reason, run, within},
    possible,
    support::{
        generator::{Generator, SEQUENCE},
        netns::inside,
        pcap, wait_until,
    },
};

fn millis(millis: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: (millis / 1000).into(),
        nanos: millis % 1000 * 1_000_000,
    })
}

/// A process that a failing test does not leave behind.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Packet sockets in the network namespace of a process.
fn sockets(pid: u32) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/net/packet")).unwrap().lines().count() - 1
}

/// The most of what `count` counts that is there at a time until `work` is done.
async fn most_at_a_time<T>(
    count: impl Fn() -> usize + Send + 'static,
    work: impl Future<Output = T>,
) -> usize {
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&done);
    let counter = std::thread::spawn(move || {
        let mut most = 0;
        while !seen.load(Ordering::Relaxed) {
            most = most.max(count());
            std::thread::yield_now();
        }
        most
    });
    work.await;
    done.store(true, Ordering::Relaxed);
    counter.join().unwrap()
}

/// Processes of a program.
fn processes_of(program: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let executes = |process: std::fs::DirEntry| {
        std::fs::read_link(process.path().join("exe")).is_ok_and(|found| found == program)
    };
    processes.map(executes).filter(|is| *is).count()
}

/// A request that is given up soon after it was sent, when `after` says.
fn impatient<Q>(message: Q, after: Duration) -> Request<Q> {
    let mut request = Request::new(message);
    request.set_timeout(after);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_give_up_start_no_more_compilers_than_there_may_be() {
    if !possible() {
        return;
    }
    // The compiler is a program of this test's own, so that its processes can be told from others.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = directory.path().canonicalize().unwrap().join("compiler");
    std::fs::hard_link(env!("CARGO_BIN_EXE_podsonde-agent"), &program).unwrap();
    let compiler = Compiler::by(program.clone());
    let fixture = Fixture::start_with(CaptureLimits::default(), compiler).await;
    fixture.pod("web", json!({})).await;
    // Takes libpcap a second.
    let filter = (0..200).map(|i| format!("port {}", 1000 + i)).collect::<Vec<_>>().join(" or ");
    let request = v1::CaptureCompileRequest {
        pod: pod_ref("web"),
        filter,
        ..v1::CaptureCompileRequest::default()
    };
    let client = fixture.client().await;
    let attack = async {
        for _ in 0..20 {
            let calls = (0..8).map(|_| {
                let mut client = client.clone();
                let request = impatient(request.clone(), Duration::from_millis(100));
                async move { client.compile(request).await.is_err() }
            });
            assert!(futures::future::join_all(calls).await.into_iter().all(|refused| refused));
        }
    };
    let most = most_at_a_time(move || processes_of(&program), attack).await;
    assert_eq!(most, COMPILERS);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_give_up_get_no_more_rings_than_there_is_memory_for() {
    if !possible() {
        return;
    }
    const RINGS: usize = 2;
    let limits = CaptureLimits {
        capture_memory: RINGS * (64 << 20),
        max_captures: 100,
        max_captures_per_user: 100,
        ..CaptureLimits::default()
    };
    let fixture = Fixture::start(limits).await;
    let pid = fixture.pod("web", json!({})).await;
    let request = v1::CaptureStartRequest {
        pod: pod_ref("web"),
        ring_bytes: 64 << 20,
        ..v1::CaptureStartRequest::default()
    };
    let client = fixture.client().await;
    let attack = async {
        for round in 0..40 {
            let calls = (0..16).map(|call| {
                let mut client = client.clone();
                let after = Duration::from_millis(10 + (round * 7 + call * 5) % 60);
                let request = impatient(request.clone(), after);
                async move {
                    if let Ok(answers) = client.start(request).await {
                        let mut answers = answers.into_inner();
                        while let Ok(Some(_)) = answers.message().await {}
                    }
                }
            });
            futures::future::join_all(calls).await;
        }
    };
    let most = most_at_a_time(move || sockets(pid), attack).await;
    assert_eq!(most, RINGS);
    wait_until("the rings are gone", || sockets(pid) == 0);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_and_giving_up_again_and_again_makes_few_events() {
    use k8s_openapi::api::core::v1::Event as PodEvent;
    if !possible() {
        return;
    }
    let fixture = Fixture::start(CaptureLimits::default()).await;
    fixture.pod("web", json!({})).await;
    let mut client = fixture.client().await;
    const CAPTURES: i32 = 60;
    for _ in 0..CAPTURES {
        let request = v1::CaptureStartRequest {
            pod: pod_ref("web"),
            ring_bytes: 1 << 20,
            ..v1::CaptureStartRequest::default()
        };
        // Dropped as soon as it has started.
        Stream::start(&mut client, request).await.unwrap();
    }
    wait_until("the captures have ended", || fixture.metric("podsonde_captures") == "0");
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&fixture.cluster.kubeconfig()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let api: kube::Api<PodEvent> =
        kube::Api::namespaced(kube::Client::try_from(config).unwrap(), "default");
    let captures = async || -> Vec<(String, i32)> {
        let events = api.list(&Default::default()).await.unwrap().items;
        let told = events.into_iter().map(|e| (e.reason.unwrap(), e.count.unwrap_or_default()));
        told.filter(|(reason, _)| reason.starts_with("Capture")).collect()
    };
    // Ends are told as starts are, so the last of either shows that those before were written.
    within(async {
        while captures().await.iter().map(|(_, count)| count).sum::<i32>() < 25 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let captures = captures().await;
    let counts = |of: &str| captures.iter().filter(|(reason, _)| reason == of).count();
    assert_eq!(counts("CaptureStarted"), 1, "{captures:?}");
    assert!(counts("CaptureEnded") <= 11, "{captures:?}");
    assert!(captures.iter().any(|(reason, count)| reason == "CaptureStarted" && *count > 1));
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_arrives() {
    if !possible() {
        return;
    }
    let fixture = Fixture::start(CaptureLimits::default()).await;
    let (pid, index) = fixture.pod_with_generator("web").await;
    let request = v1::CaptureStartRequest {
        max_packets: 20_000,
        statistics_interval: millis(100),
        ..generated("web")
    };
    let stream = fixture.start_capture(request).await.unwrap();
    let v1::CaptureStarted {
        linktype,
        snaplen,
        filter,
        filter_note,
        ring_bytes,
        max_duration,
        container,
        ..
    } = stream.started.clone();
    assert_eq!((linktype, snaplen, ring_bytes), (1, 262_144, 64 << 20));
    assert_eq!((filter.as_str(), filter_note.as_str()), ("udp dst port 40404", ""));
    assert_eq!(max_duration.unwrap().seconds, 3600);
    let container = container.unwrap();
    assert_eq!(
        (container.container.as_str(), container.pod.as_str(), container.host_pid),
        ("web", "web", pid)
    );

    let sender = std::thread::spawn(move || Generator::new(pid, index).send(20_000, 300, 40_000));
    let (file, ended) = stream.end().await.unwrap();
    sender.join().unwrap();
    assert_eq!(ended.reason(), CaptureEnd::Packets);
    assert_eq!(ended.statistics.unwrap().captured, 20_000);
    assert_eq!(gaps(&sequences(&file, SEQUENCE), 20_000), []);
    // Who it was, for whoever has the file alone.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file.pcapng");
    std::fs::write(&path, &file).unwrap();
    let about = std::process::Command::new("capinfos").arg(&path).output().unwrap();
    let about = String::from_utf8(about.stdout).unwrap();
    for line in [
        "Name = default/web/gen0",
        "Filter string = udp dst port 40404",
        "Time precision = nanoseconds (9)",
        "Capture application: podsonde-agent",
    ] {
        let found = about
            .lines()
            .any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ").contains(line));
        assert!(found, "{line} in {about}");
    }
    // What is counted, and what is written down.
    assert_eq!(fixture.metric("podsonde_captured_packets_total"), "20000");
    wait_until("the place is free", || fixture.metric("podsonde_captures") == "0");
    let audit = std::fs::read_to_string(&fixture.audit).unwrap();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |what: &str| {
        lines.iter().find(|l| l["operation"] == "Capture/Start" && l["audit"] == what).unwrap()
    };
    assert_eq!(of("start")["parameters"]["filter"], "udp dst port 40404");
    assert_eq!(of("start")["parameters"]["interface"], "gen0");
    assert_eq!(
        (&of("end")["results"]["packets"], &of("end")["results"]["end"]),
        (&json!("20000"), &json!("PACKETS"))
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_packets_as_tcpdump() {
    if !possible() {
        return;
    }
    let fixture = Fixture::start(CaptureLimits::default()).await;
    let pid = fixture.pod("web", json!({})).await;
    let directory = tempfile::tempdir().unwrap();
    for (interface, filter) in [
        ("any", "tcp port 80"),
        ("lo", "tcp port 80"),
        ("any", "tcp[tcpflags] & tcp-syn != 0"),
        ("lo", "vlan or tcp"),
    ] {
        let theirs = directory.path().join(format!("{}.pcap", filter.len()));
        let linktype: &[&str] = if interface == "any" { &["-y", "LINUX_SLL2"] } else { &[] };
        let tcpdump = inside(pid, &["tcpdump", "-i", interface, "-U", "--nano", "-w"])
            .arg(&theirs)
            .args(linktype)
            .arg(filter)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut tcpdump = Ended(tcpdump);
        wait_until("tcpdump listens", || sockets(pid) == 1);
        let request = v1::CaptureStartRequest {
            pod: pod_ref("web"),
            interface: interface.into(),
            filter: filter.into(),
            max_duration: millis(1500),
            ..v1::CaptureStartRequest::default()
        };
        let stream = fixture.start_capture(request).await.unwrap();
        // A conversation on the pod's loopback.
        run(
            pid,
            &[
                "bash",
                "-c",
                "exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
            ],
        );
        let (file, ended) = stream.end().await.unwrap();
        assert_eq!(ended.reason(), CaptureEnd::Duration);
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&tcpdump.0),
            rustix::process::Signal::INT,
        )
        .unwrap();
        tcpdump.0.wait().unwrap();
        // Each socket has timestamps of its own.
        let content = |(linktype, packets): (u32, Vec<pcap::Packet>)| {
            (linktype, packets.into_iter().map(|p| (p.original_length, p.data)).collect::<Vec<_>>())
        };
        let (our_type, ours) = content(pcap::read(&file));
        let (their_type, theirs) = content(pcap::parse(&std::fs::read(&theirs).unwrap()));
        assert_eq!(our_type, their_type, "{interface} {filter}");
        assert_eq!(ours, theirs, "{interface} {filter}");
        assert!(filter.starts_with("vlan") || !ours.is_empty(), "{interface} {filter}");
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_client_costs_packets_and_not_memory() {
    if !possible() {
        return;
    }
    let limits = CaptureLimits { capture_queue: 2 << 20, ..CaptureLimits::default() };
    let fixture = Fixture::start(limits).await;
    let (pid, index) = fixture.pod_with_generator("web").await;
    // With HTTP/2's own small windows, so that not all of it is on its way to a client that does
    // not read.
    let endpoint = format!("http://{}", fixture.agent.addresses()[0]);
    let channel =
        tonic::transport::Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    let mut client = podsonde::proto::v1::capture_client::CaptureClient::new(channel);
    let stalled = v1::CaptureStartRequest {
        ring_bytes: 2 << 20,
        max_duration: millis(6000),
        ..generated("web")
    };
    let stalled = Stream::start(&mut client, stalled).await.unwrap();
    let other = v1::CaptureStartRequest { max_packets: 40_000, ..generated("web") };
    let other = tokio::spawn(fixture.start_capture(other).await.unwrap().end());
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
    };
    let before = resident();
    let sender = std::thread::spawn(move || Generator::new(pid, index).send(40_000, 1000, 20_000));
    sender.join().unwrap();
    println!("anonymous memory: {before} kB, {} kB with 40 MB not read", resident());
    // The other one, which does read, has everything, and its file in this process' memory.
    let (file, ended) = other.await.unwrap().unwrap();
    assert_eq!(ended.statistics.unwrap().captured, 40_000, "{ended:?}");
    assert_eq!(gaps(&sequences(&file, SEQUENCE), 40_000), []);
    let (file, ended) = stalled.end().await.unwrap();
    assert_eq!(ended.reason(), CaptureEnd::Duration);
    let v1::CaptureStatistics { received, dropped_by_kernel, dropped_by_agent, .. } =
        ended.statistics.unwrap();
    assert_eq!(received, 40_000, "{ended:?}");
    assert!(dropped_by_kernel > 0, "{ended:?}");
    let got = sequences(&file, SEQUENCE).len() as u64;
    assert_eq!(got + dropped_by_kernel + dropped_by_agent, 40_000, "{ended:?}");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once() {
    if !possible() {
        return;
    }
    let limits =
        CaptureLimits { max_captures: 100, max_captures_per_user: 100, ..CaptureLimits::default() };
    let fixture = Fixture::start(limits).await;
    let (pid, index) = fixture.pod_with_generator("web").await;
    let mut captures = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(fixture.client().await);
    }
    for number in 0..100 {
        let request = v1::CaptureStartRequest {
            ring_bytes: 4 << 20,
            max_duration: millis(6000),
            ..generated("web")
        };
        captures.push(Stream::start(&mut clients[number % 4], request).await.unwrap());
    }
    assert_eq!(sockets(pid), 100);
    let one_more = fixture.start_capture(generated("web")).await.err().unwrap();
    assert_eq!(
        (one_more.code(), reason(&one_more).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_CAPTURES")
    );
    let sender = std::thread::spawn(move || Generator::new(pid, index).send(1000, 200, 5_000));
    for capture in captures {
        let mut stream = capture.stream;
        let mut file = Vec::new();
        let ended = loop {
            match within(stream.message()).await.unwrap().unwrap().event.unwrap() {
                Event::Pcapng(bytes) => file.extend_from_slice(&bytes),
                Event::Ended(ended) => break ended,
                _ => {}
            }
        };
        let counted = ended.statistics.unwrap();
        assert_eq!(
            counted.captured + counted.dropped_by_kernel + counted.dropped_by_agent,
            1000,
            "{ended:?}"
        );
        assert_eq!(sequences(&file, SEQUENCE).len() as u64, counted.captured);
    }
    sender.join().unwrap();
    wait_until("all sockets are closed", || sockets(pid) == 0);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ends_it_frees_it_and_is_told() {
    if !possible() {
        return;
    }
    let fixture = Fixture::start(CaptureLimits::default()).await;
    let (pid, index) = fixture.pod_with_generator("web").await;

    // The client hangs up.
    let stream = fixture.start_capture(generated("web")).await.unwrap();
    assert_eq!(sockets(pid), 1);
    drop(stream);
    let began = Instant::now();
    wait_until("the socket is closed", || sockets(pid) == 0);
    println!("a client gone, its socket closed after {:?}", began.elapsed());

    // Its interface goes.
    let stream = fixture.start_capture(generated("web")).await.unwrap();
    let any = v1::CaptureStartRequest { interface: String::new(), ..generated("web") };
    let any = fixture.start_capture(any).await.unwrap();
    Generator::new(pid, index).send(50, 100, 0);
    run(pid, &["ip", "link", "del", "gen0"]);
    let (file, ended) = stream.end().await.unwrap();
    assert_eq!(ended.reason(), CaptureEnd::InterfaceGone);
    assert_eq!(gaps(&sequences(&file, SEQUENCE), 50), []);

    // The pod goes, and what was captured on all interfaces is there.
    fixture.cluster.delete_pod("default", "web", 0).await.unwrap();
    let (file, ended) = any.end().await.unwrap();
    assert_eq!(ended.reason(), CaptureEnd::ContainerEnded);
    // Once as they leave gen0, once as they come in by gen1.
    assert_eq!(sequences(&file, SEQUENCE + 6).len(), 100);

    // The agent goes.
    let (pid, index) = fixture.pod_with_generator("other").await;
    let stream = fixture.start_capture(generated("other")).await.unwrap();
    Generator::new(pid, index).send(50, 100, 0);
    let reading = tokio::spawn(stream.end());
    let Fixture { cluster, agent, .. } = fixture;
    agent.stop().await;
    let (file, ended) = reading.await.unwrap().unwrap();
    assert_eq!(ended.reason(), CaptureEnd::Draining);
    assert_eq!(gaps(&sequences(&file, SEQUENCE), 50), []);
    assert_eq!(sockets(pid), 0);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused() {
    if !possible() {
        return;
    }
    let limits = CaptureLimits {
        max_captures: 3,
        max_captures_per_user: 2,
        capture_memory: 8 << 20,
        max_ring: 8 << 20,
        default_ring: 4 << 20,
        max_snaplen: 65_536,
        max_capture_duration: Duration::from_secs(60),
        ..CaptureLimits::default()
    };
    let fixture = Fixture::start(limits).await;
    let (pid, _) = fixture.pod_with_generator("web").await;
    let base = generated("web");
    let mut table: Vec<(&str, v1::CaptureStartRequest, Code, &str, &str)> = Vec::new();
    let mut case = |name, change: &dyn Fn(&mut v1::CaptureStartRequest), code, reason, says| {
        let mut request = base.clone();
        change(&mut request);
        table.push((name, request, code, reason, says));
    };
    let invalid = Code::InvalidArgument;
    case("no pod", &|r| r.pod = None, invalid, "INVALID_FIELD", "pod");
    case("an unknown pod", &|r| r.pod = pod_ref("none"), Code::NotFound, "POD_NOT_FOUND", "none");
    case(
        "an unknown container",
        &|r| r.container = "none".into(),
        Code::NotFound,
        "CONTAINER_NOT_FOUND",
        "web",
    );
    case(
        "an unknown interface",
        &|r| r.interface = "eth9".into(),
        Code::NotFound,
        "INTERFACE_NOT_FOUND",
        "gen0",
    );
    case(
        "a long interface",
        &|r| r.interface = "x".repeat(16),
        invalid,
        "INVALID_FIELD",
        "interface",
    );
    case(
        "no filter",
        &|r| r.filter = "tcp prot 80".into(),
        invalid,
        "INVALID_FIELD",
        "can't parse filter expression: syntax error",
    );
    case(
        "a host's name",
        &|r| r.filter = "host localhost".into(),
        invalid,
        "INVALID_FIELD",
        "unknown host 'localhost'",
    );
    case("a huge filter", &|r| r.filter = "ip or ".repeat(4000), invalid, "INVALID_FIELD", "16384");
    case("a huge snaplen", &|r| r.snaplen = u32::MAX, invalid, "INVALID_FIELD", "65536");
    case("a huge ring", &|r| r.ring_bytes = u64::MAX, invalid, "INVALID_FIELD", "8388608");
    case("no duration", &|r| r.max_duration = millis(0), invalid, "INVALID_FIELD", "max_duration");
    case(
        "a long duration",
        &|r| r.max_duration = millis(61_000),
        invalid,
        "INVALID_FIELD",
        "max_duration",
    );
    case("no delay", &|r| r.max_delay = millis(0), invalid, "INVALID_FIELD", "max_delay");
    case("a long delay", &|r| r.max_delay = millis(1001), invalid, "INVALID_FIELD", "max_delay");
    case(
        "frequent statistics",
        &|r| r.statistics_interval = millis(99),
        invalid,
        "INVALID_FIELD",
        "statistics_interval",
    );
    case("an unknown direction", &|r| r.direction = 7, invalid, "INVALID_FIELD", "direction");
    for (name, request, code, why, says) in table {
        let status = fixture
            .start_capture(request)
            .await
            .err()
            .unwrap_or_else(|| panic!("{name} is accepted"));
        assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{name}: {status:?}");
        assert!(status.message().contains(says), "{name}: {}", status.message());
    }
    // Nothing of these is left.
    assert_eq!(sockets(pid), 0);
    assert_eq!(fixture.metric("podsonde_captures"), "0");

    // Defaults and the least there is.
    let least = v1::CaptureStartRequest {
        snaplen: 1,
        ring_bytes: 1,
        max_delay: millis(1),
        max_packets: 1,
        ..generated("web")
    };
    let least = fixture.start_capture(least).await.unwrap();
    assert_eq!(
        (
            least.started.snaplen,
            least.started.ring_bytes,
            least.started.max_duration.unwrap().seconds
        ),
        (1, 1 << 20, 60)
    );
    let second = fixture.start_capture(generated("web")).await.unwrap();
    assert_eq!((second.started.snaplen, second.started.ring_bytes), (65_536, 4 << 20));
    let third = fixture.start_capture(generated("web")).await.err().unwrap();
    assert_eq!(
        (third.code(), reason(&third).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_CAPTURES")
    );
    drop(least);
    wait_until("its place is free", || fixture.metric("podsonde_captures") == "1");
    let large = v1::CaptureStartRequest { ring_bytes: 8 << 20, ..generated("web") };
    let large = fixture.start_capture(large).await.err().unwrap();
    assert_eq!(
        (large.code(), reason(&large).as_str()),
        (Code::ResourceExhausted, "CAPTURE_MEMORY")
    );
    drop(second);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_are_those_of_ip() {
    if !possible() {
        return;
    }
    let fixture = Fixture::start(CaptureLimits::default()).await;
    let (pid, _) = fixture.pod_with_generator("web").await;
    run(pid, &["ip", "link", "set", "gen1", "down"]);
    run(pid, &["ip", "addr", "add", "192.0.2.9/28", "dev", "gen0"]);
    let request =
        v1::CaptureListInterfacesRequest { pod: pod_ref("web"), container: String::new() };
    let reply = fixture.client().await.list_interfaces(request).await.unwrap().into_inner();
    assert_eq!(reply.container.unwrap().host_pid, pid);
    let mut interfaces = reply.interfaces.into_iter();
    let any = interfaces.next().unwrap();
    assert_eq!((any.name.as_slice(), any.index, any.linktype, any.up), (&b"any"[..], 0, 276, true));
    let ours: Vec<_> = interfaces
        .map(|i| {
            (
                String::from_utf8(i.name).unwrap(),
                u64::from(i.index),
                u64::from(i.mtu),
                i.up,
                i.loopback,
                i.addresses,
            )
        })
        .collect();
    let theirs: Value = serde_json::from_str(&run(pid, &["ip", "-j", "addr"])).unwrap();
    let theirs: Vec<_> = theirs
        .as_array()
        .unwrap()
        .iter()
        .map(|link| {
            let flags = link["flags"].as_array().unwrap();
            let addresses = link["addr_info"].as_array().unwrap().iter();
            (
                link["ifname"].as_str().unwrap().to_owned(),
                link["ifindex"].as_u64().unwrap(),
                link["mtu"].as_u64().unwrap(),
                flags.contains(&json!("UP")),
                flags.contains(&json!("LOOPBACK")),
                addresses
                    .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(ours, theirs);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_does_not_capture_itself() {
    if !possible() {
        return;
    }
    let fixture = Fixture::start(CaptureLimits::default()).await;
    // The agent of these tests is on the host's network, and so is this pod.
    fixture.pod("host", json!({"hostNetwork": true})).await;
    let port = fixture.agent.addresses()[0].port();
    let request = v1::CaptureStartRequest {
        pod: pod_ref("host"),
        interface: "lo".into(),
        filter: format!("tcp port {port} or icmp"),
        max_duration: millis(800),
        max_delay: millis(1),
        statistics_interval: millis(100),
        ..v1::CaptureStartRequest::default()
    };
    let stream = fixture.start_capture(request).await.unwrap();
    let (filter, note) = (stream.started.filter.clone(), stream.started.filter_note.clone());
    assert!(
        note.contains(&format!("port {port}")) && filter.starts_with("not (tcp and host 127.0.0.1"),
        "{filter}: {note}"
    );
    // Another connection to the agent is another's.
    drop(std::net::TcpStream::connect(fixture.agent.addresses()[0]).unwrap());
    let (_, ended) = stream.end().await.unwrap();
    let captured = ended.statistics.unwrap().captured;
    // Its handshake and its end; not each statistics message of the capture, and the packets that
    // carry these.
    assert!((3..=9).contains(&captured), "{captured}");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compile_answers_what_tcpdump_prints() {
    if !possible() {
        return;
    }
    let fixture = Fixture::start(CaptureLimits::default()).await;
    fixture.pod("web", json!({})).await;
    for (interface, name, linktype) in
        [("", "LINUX_SLL2", 276), ("any", "LINUX_SLL2", 276), ("lo", "EN10MB", 1)]
    {
        let request = v1::CaptureCompileRequest {
            pod: pod_ref("web"),
            interface: interface.into(),
            filter: "tcp port 80".into(),
            snaplen: 96,
        };
        let reply = fixture.client().await.compile(request).await.unwrap().into_inner();
        let tcpdump = std::process::Command::new("tcpdump")
            .args(["-y", name, "-s", "96", "-d", "tcp port 80"])
            .output()
            .unwrap();
        assert_eq!(reply.program.as_bytes(), tcpdump.stdout);
        assert_eq!(
            (reply.instructions as usize, reply.linktype),
            (reply.program.lines().count(), linktype)
        );
    }
    fixture.end().await;
}
