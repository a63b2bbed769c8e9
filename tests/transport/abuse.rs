//! What nobody has been asked their name for yet: floods, and clients that break or stretch HTTP/2.
//!
//! Honest clients ask all along, each time by a new connection and once more by one that they keep;
//! none may go unserved. The agent runs in a memory cgroup with the shipped limit. Its peak is
//! printed, and the kernel must not have killed it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::body::{Bytes, Frame, SizeHint};
use podsonde::proto::v1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Interval, interval},
};
use tonic::body::Body;
use tonic_health::pb::health_client::HealthClient;

use crate::{
    agent::{Agent, tcp, within},
    frames::{
        self, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, call, flood, frame, greet, header, open,
    },
};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const HONEST: [u8; 4] = [127, 0, 0, 1];
const ATTACKER: [u8; 4] = [127, 0, 0, 66];

/// Runs an attack while honest clients ask, from an address of their own and from the attacker's.
async fn under<T>(name: &str, agent: &Agent, attack: impl Future<Output = T>) -> T {
    let before = agent.peak();
    let mut kept = HealthClient::new(agent.channel(HONEST, None).await.unwrap());
    let over = AtomicBool::new(false);
    let (served, slowest) = (AtomicUsize::new(0), std::sync::Mutex::new(Duration::ZERO));
    let honest = async {
        loop {
            // Once more after the end.
            let last = over.load(Ordering::Relaxed);
            let began = Instant::now();
            agent.is_served(HONEST).await.unwrap_or_else(|e| panic!("{name}: a new client: {e}"));
            agent
                .is_served(ATTACKER)
                .await
                .unwrap_or_else(|e| panic!("{name}: a neighbour of the attacker's: {e}"));
            agent
                .ask(&mut kept)
                .await
                .unwrap_or_else(|e| panic!("{name}: a client that stays: {e}"));
            served.fetch_add(3, Ordering::Relaxed);
            let mut slowest = slowest.lock().unwrap();
            *slowest = (*slowest).max(began.elapsed() / 3);
            drop(slowest);
            if last {
                return;
            }
        }
    };
    let attack = async {
        let result = attack.await;
        over.store(true, Ordering::Relaxed);
        result
    };
    let (result, ()) =
        within(name, async { tokio::join!(Box::pin(attack), Box::pin(honest)) }).await;
    println!(
        "{name}: peak {} KiB (before: {} KiB), {} open files, {} honest requests served, \
         slowest round {:?}",
        agent.peak().unwrap_or_default() / 1024,
        before.unwrap_or_default() / 1024,
        agent.files(),
        served.load(Ordering::Relaxed),
        slowest.lock().unwrap(),
    );
    agent.was_not_killed(name);
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_handshakes() {
    let agent = Agent::start(&["--max-handshakes=32"]).await;
    let idle = agent.files();
    under("stalled handshakes", &agent, async {
        let mut held = Vec::new();
        for n in 0..600_u32 {
            let mut stream = tcp(agent.address, ATTACKER).await.unwrap();
            // The first bytes of a ClientHello, of every second one.
            if n % 2 == 0 {
                let _ = stream.write_all(&[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc]).await;
            }
            held.push(stream);
        }
        // The accept queue may still hold some: those that are over the limit have been closed when
        // only it is left open.
        let mut open = JoinSet::new();
        for mut stream in held {
            open.spawn(async move {
                let mut byte = [0];
                matches!(stream.read(&mut byte).await, Ok(0) | Err(_))
            });
        }
        for _ in 0..600 - 32 {
            assert!(open.join_next().await.unwrap().unwrap(), "nothing was to be read");
        }
        assert!(agent.files() <= idle + 32 + 4, "{} files, {idle} before", agent.files());
        // And these end by themselves.
        while let Some(ended) = open.join_next().await {
            assert!(ended.unwrap());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_by_the_hundred() {
    let agent = Agent::start(&["--max-connections=64", "--max-connections-per-peer=24"]).await;
    let idle = agent.files();
    under("idle connections of 20 addresses", &agent, async {
        let mut held = Vec::new();
        for n in 0..400_u16 {
            let from = [127, 0, 1, u8::try_from(n % 20).unwrap()];
            if let Ok(mut stream) = agent.tls(from).await {
                let _ = stream.write_all(&[frames::PREFACE, &frames::settings(&[])].concat()).await;
                held.push(stream);
            }
            assert!(agent.files() <= idle + 64 + 4, "{} files, {idle} before", agent.files());
        }
        assert!(held.len() > 300, "{} of 400 handshakes", held.len());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_files_left() {
    let cluster = Arc::new(podsonde::embedded::Cluster::builder().start().await.unwrap());
    let wrapper = ["prlimit", "--nofile=64:64"];
    let agent = Agent::start_in(cluster, &wrapper, &[]).await;
    under("64 files", &agent, async {
        let mut held = Vec::new();
        for n in 0..300_u16 {
            let from = [127, 0, 2, u8::try_from(n % 50).unwrap()];
            held.extend(tcp(agent.address, from).await);
            assert!(agent.files() <= 64);
        }
        assert!(held.len() > 200, "{} connections", held.len());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_and_stretched_http2() {
    let agent = Agent::start(&[]).await;
    let connect = async || {
        let mut stream = agent.tls(ATTACKER).await.unwrap();
        greet(&mut stream, &[]).await;
        stream
    };
    let id = |n: u32| 2 * n + 1;

    let (written, ended) = under("rapid reset", &agent, async {
        let both =
            |n| [call(id(n), WATCH), frame(RST_STREAM, 0, id(n), &8_u32.to_be_bytes())].concat();
        flood(connect().await, 200_000, both).await
    })
    .await;
    println!("  ended after {written} requests");
    assert!(ended && written < 100_000);

    let (written, ended) = under("CONTINUATION flood", &agent, async {
        let piece = header("x-filler", &"a".repeat(120)).repeat(100);
        let next = |n| match n {
            0 => frame(HEADERS, 0, 1, &frames::request(CHECK)),
            _ => frame(frames::CONTINUATION, 0, 1, &piece),
        };
        flood(connect().await, 20_000, next).await
    })
    .await;
    println!("  ended after {written} frames");
    assert!(ended && written < 1000);

    let (written, ended) = under("empty CONTINUATION flood", &agent, async {
        let next = |n| match n {
            0 => frame(HEADERS, 0, 1, &frames::request(CHECK)),
            _ => frame(frames::CONTINUATION, 0, 1, &[]),
        };
        flood(connect().await, 200_000, next).await
    })
    .await;
    println!("  ended after {written} frames");
    assert!(ended && written < 100_000);

    under("header bombs", &agent, async {
        // One header in the table, 3.9 KB, named by one byte from then on: 40 MB by the frame.
        let mut first = frames::request(CHECK);
        first.extend([0x40, 1, b'x', 0x7f]);
        let mut rest = 3900 - 127;
        while rest >= 128 {
            first.push(u8::try_from(rest % 128).unwrap() | 0x80);
            rest /= 128;
        }
        first.push(u8::try_from(rest).unwrap());
        first.extend([b'a'; 3900]);
        let next = |n| {
            let headers = if n == 0 { first.clone() } else { frames::request(CHECK) };
            let bomb = [headers, vec![0xbe; 10_000]].concat();
            frame(HEADERS, END_HEADERS, id(n), &bomb)
        };
        flood(connect().await, 300, next).await
    })
    .await;

    let (written, ended) = under("tiny DATA frames", &agent, async {
        let next = |n| match n {
            0 => open(1, CHECK),
            _ => frame(DATA, 0, 1, &[0; 1]).repeat(100),
        };
        flood(connect().await, 20_000, next).await
    })
    .await;
    println!("  ended after {written}00 frames: {ended}");

    let (_, ended) = under("empty DATA frames", &agent, async {
        let next = |n| match n {
            0 => open(1, CHECK),
            _ => frame(DATA, 0, 1, &[]).repeat(100),
        };
        flood(connect().await, 20_000, next).await
    })
    .await;
    assert!(ended);

    under("PING flood", &agent, async {
        flood(connect().await, 2000, |_| frame(PING, 0, 0, &[0; 8]).repeat(100)).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_streams() {
    let agent = Agent::start(&["--request-timeout=3s"]).await;
    under("thousands of streams that never say what they want", &agent, async {
        let mut held = Vec::new();
        for n in 0..100_u8 {
            let mut stream = agent.tls([127, 0, 3, n % 4]).await.unwrap();
            greet(&mut stream, &[]).await;
            // More at a time than are allowed, and of each the beginning of a large message.
            let half = [&[0_u8, 0, 3, 0, 0][..], &[7; 1000]].concat();
            let opened: Vec<u8> = (0..100_u32)
                .flat_map(|n| [open(2 * n + 1, CHECK), frame(DATA, 0, 2 * n + 1, &half)].concat())
                .collect();
            let _ = stream.write_all(&opened).await;
            let _ = stream.flush().await;
            held.push(stream);
        }
        // Each is answered in the end: by a status, as it did not arrive in time.
        for mut stream in held {
            let mut first = [0; 9];
            let _ = stream.read_exact(&mut first).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read() {
    let agent = Agent::start(&["--stall-timeout=2s", "--keepalive=2s"]).await;
    under("windows of nothing", &agent, async {
        let mut held = Vec::new();
        for n in 0..40_u8 {
            let mut stream = agent.tls([127, 0, 4, n]).await.unwrap();
            // The agent may send headers, and not one byte of an answer.
            greet(&mut stream, &[(4, 0)]).await;
            let calls: Vec<u8> = (0..60_u32).flat_map(|n| call(2 * n + 1, WATCH)).collect();
            stream.write_all(&calls).await.unwrap();
            stream.flush().await.unwrap();
            held.push(stream);
        }
        for mut stream in held {
            // Acknowledges what it is asked, so that only the stalled answers count against it.
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(1..) = stream.read(&mut buffer).await {
                let pong = frame(PING, 1, 0, buffer.get(9..17).unwrap());
                if stream.write_all(&pong).await.is_err() {
                    break;
                }
            }
        }
    })
    .await;
    under("TCP that is not read", &agent, async {
        let mut held = JoinSet::new();
        for n in 0..20_u8 {
            let mut stream = agent.tls([127, 0, 5, n]).await.unwrap();
            greet(&mut stream, &[]).await;
            held.spawn(async move {
                // Each ping is to be answered; nobody takes the answers, until the agent takes no
                // more pings.
                let pings = frame(PING, 0, 0, &[1; 8]).repeat(1000);
                while stream.write_all(&pings).await.is_ok() {}
            });
        }
        while held.join_next().await.is_some() {}
    })
    .await;
}

/// Every pod reaches the port of probes and metrics, without saying who it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_of_probes() {
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let agent = Agent::start(&[&format!("--metrics-listen={port}")]).await;
    let idle = agent.files();
    under("the port of probes", &agent, async {
        let mut held = Vec::new();
        for _ in 0..400 {
            let mut stream = tcp(port, ATTACKER).await.unwrap();
            let mut endless = b"GET /healthz HTTP/1.1\r\nHost: a\r\nx: ".to_vec();
            endless.resize(500_000, b'a');
            let taken =
                tokio::time::timeout(Duration::from_millis(20), stream.write_all(&endless)).await;
            held.push((stream, taken.is_ok()));
            let mut honest = tcp(port, HONEST).await.unwrap();
            honest.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            honest.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");
        }
        assert!(agent.files() < idle + 64 + 16, "{} files, {idle} before", agent.files());
    })
    .await;
}

/// Two bytes on the wire that are fifty in memory, from callers who are nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_swell() {
    let agent = Agent::start(&[]).await;
    under("messages that swell", &agent, async {
        for n in 0..60 {
            let channel = agent.channel([127, 0, 0, 60 + n % 4], None).await.unwrap();
            let mut debug = v1::debug_client::DebugClient::new(channel);
            for entries in [4000, 131_000] {
                let message = v1::DebugCreateRequest {
                    env: vec![v1::EnvVar::default(); entries],
                    ..Default::default()
                };
                let mut request = tonic::Request::new(message);
                request.metadata_mut().insert("authorization", "Bearer nobody".parse().unwrap());
                let refused = debug.create(request).await.unwrap_err();
                let expected = if entries == 4000 {
                    tonic::Code::Unauthenticated
                } else {
                    tonic::Code::InvalidArgument
                };
                assert_eq!(refused.code(), expected, "{refused:?}");
            }
        }
    })
    .await;
}

/// A message that announces more than it ever sends: `burst` bytes at once, then one at a time.
struct Unfinished {
    prefix: Option<Bytes>,
    burst: usize,
    drip: Interval,
}

impl Unfinished {
    fn new(announced: u32, burst: usize) -> Self {
        let prefix = Bytes::from([&[0][..], &announced.to_be_bytes()].concat());
        Self { prefix: Some(prefix), burst, drip: interval(Duration::from_millis(200)) }
    }
}

impl hyper::body::Body for Unfinished {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let length = if self.burst > 0 {
            self.burst.min(16 * 1024)
        } else {
            ready!(self.drip.poll_tick(context));
            1
        };
        self.burst = self.burst.saturating_sub(length);
        let data = self.prefix.take().unwrap_or_else(|| Bytes::from(vec![0x0a; length]));
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Messages of streams that never end, from callers who are nobody. Each byte that is sent would be
/// kept until the message is whole, and each frame would be a reason to wait for one more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_whose_messages_never_end() {
    let agent = Agent::start(&["--request-timeout=3s"]).await;
    for (name, announced, burst) in [
        ("unfinished large messages", 1 << 20, (1 << 20) - 1),
        ("unfinished messages as large as may be, byte by byte", 250_000, 200_000),
        ("unfinished small messages, byte by byte", 60_000, 1),
    ] {
        under(name, &agent, async {
            let mut open = JoinSet::new();
            for _ in 0..6 {
                let mut channel = agent.channel(ATTACKER, None).await.unwrap();
                for _ in 0..60 {
                    let request = http::Request::post("http://localhost/podsonde.v1.Files/Write")
                        .header("content-type", "application/grpc")
                        .header("te", "trailers")
                        .body(Body::new(Unfinished::new(announced, burst)))
                        .unwrap();
                    std::future::poll_fn(|context| {
                        tower::Service::<http::Request<Body>>::poll_ready(&mut channel, context)
                    })
                    .await
                    .unwrap();
                    open.spawn(tower::Service::call(&mut channel, request));
                }
            }
            // Every one of them is answered, or its connection ends; none may drip for ever.
            while open.join_next().await.is_some() {}
        })
        .await;
    }
}

/// What a connection costs that has been greeted and asks for nothing, for the sum of all limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_connections_as_there_may_be() {
    let agent = Agent::start(&[]).await;
    let before = agent.peak().unwrap_or_default();
    let mut held = Vec::new();
    for n in 0..500_u16 {
        let mut stream = agent.tls([127, 0, 6, u8::try_from(n % 50).unwrap()]).await.unwrap();
        greet(&mut stream, &[]).await;
        held.push(stream);
    }
    let each = agent.peak().unwrap_or_default().saturating_sub(before) / 500;
    println!("{each} bytes for each connection");
    assert!(each <= podsonde::agent::config::CONNECTION_BYTES, "{each} bytes");
    agent.was_not_killed("500 connections");
}
