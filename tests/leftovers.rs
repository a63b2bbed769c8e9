//! Nothing is left of a request, wherever its client goes away: every method of the API, through a
//! proxy that cuts the connection after some bytes of the request or of the answer, or stops
//! reading; by a client that takes the request back; and with deadlines that pass in the middle.
//!
//! The agent works on one request at a time, so that any slot that stays taken fails the next
//! round. Descriptors and threads are counted in `/proc`. Needs root, no packages.
#![cfg(all(target_os = "linux", feature = "embedded"))]
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and shares modules with the tests of access"
)]

#[path = "access/rpc.rs"]
mod rpc;
#[path = "access/world.rs"]
mod world;

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use podsonde::{
    agent::{
        access::Method,
        config::{Limits, TransportLimits},
    },
    proto::v1::{NodeGetRequest, node_client::NodeClient},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::transport::Channel;

use rpc::Rpc;
use world::{Setup, World, right, within};

/// Where a connection is cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Nowhere.
    None,
    /// After this many bytes from the client.
    Request(usize),
    /// After this many bytes from the agent.
    Answer(usize),
    /// Nobody reads on after this many bytes from the agent, until it ends the connection.
    Stall(usize),
}

/// How many bytes went through a proxy, each way.
#[derive(Debug, Default)]
struct Passed {
    request: AtomicUsize,
    answer: AtomicUsize,
}

/// A proxy for one connection to the agent.
async fn proxy(agent: SocketAddr, cut: Cut) -> (Channel, Arc<Passed>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let passed = Arc::new(Passed::default());
    let counted = Arc::clone(&passed);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let agent = TcpStream::connect(agent).await.unwrap();
        let ((mut from_client, mut to_client), (mut from_agent, mut to_agent)) =
            (client.into_split(), agent.into_split());
        let request = async {
            let most = if let Cut::Request(most) = cut { most } else { usize::MAX };
            copy(&mut from_client, &mut to_agent, &counted.request, most).await;
        };
        let answer = async {
            let most = match cut {
                Cut::Answer(most) | Cut::Stall(most) => most,
                Cut::None | Cut::Request(_) => usize::MAX,
            };
            copy(&mut from_agent, &mut to_client, &counted.answer, most).await;
            if let Cut::Stall(_) = cut {
                tokio::time::sleep(Duration::from_millis(1500)).await;
            }
        };
        // Both sides are closed as soon as one is.
        tokio::select! {
            () = request => {}
            () = answer => {}
        }
    });
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    (channel.connect_lazy(), passed)
}

/// Copies until either side ends, or `most` bytes were copied.
async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    passed: &AtomicUsize,
    most: usize,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let room = (most - passed.load(Ordering::Relaxed)).min(buffer.len());
        if room == 0 {
            return;
        }
        let Ok(read @ 1..) = from.read(&mut buffer[..room]).await else { return };
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        passed.fetch_add(read, Ordering::Relaxed);
    }
}

/// What this process holds, but for its sockets, which HTTP clients keep: descriptors, and threads
/// of its own.
fn held() -> (usize, usize) {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let descriptors = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets = |link: &std::path::PathBuf| link.to_string_lossy().starts_with("socket:");
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = threads.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    (
        descriptors.filter(|link| !sockets(link)).count(),
        names.filter(|name| !name.starts_with("tokio")).count(),
    )
}

/// Waits until the agent takes a request, and this process holds no more than `before`.
async fn settled(world: &World, header: &str, before: (usize, usize), what: &str) {
    let settled = async {
        loop {
            let request = rpc::request(NodeGetRequest {}, Some(header));
            let taken = NodeClient::new(world.channel.clone()).get(request).await;
            let now = held();
            match taken {
                Ok(_) if now.0 <= before.0 && now.1 <= before.1 => return,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), settled).await;
    assert!(in_time.is_ok(), "{what}: {:?} held, {before:?} before", held());
}

/// Calls in a task of its own: a call that is cut may fail any assertion on its answer.
async fn call(rpc: &Rpc, channel: Channel, header: &str, timeout: Option<Duration>) {
    let call = (rpc.call)(channel, Some(header.to_owned()));
    let task = match timeout {
        None => tokio::spawn(call),
        Some(timeout) => tokio::spawn(rpc::TIMEOUT.scope(timeout, call)),
    };
    let _ = within(task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_request() {
    let mut setup = Setup::default();
    let stall_timeout = Duration::from_secs(1);
    setup.limits = Limits {
        max_requests: 1,
        max_requests_per_user: 1,
        transport: TransportLimits { stall_timeout, ..TransportLimits::default() },
        ..setup.limits
    };
    let world = World::with(setup).await;
    world.pod("default", "web", json!({})).await;
    let rights = [
        right("get", "pods", ""),
        right("list", "pods", ""),
        right("get", "nodes", ""),
        right("patch", "pods/ephemeralcontainers", ""),
        right("create", "pods/exec", ""),
        right("create", "podsonde.dev:captures", ""),
        right("update", "podsonde.dev:files", ""),
    ];
    world.grant("jane", &rights).await;
    let header = format!("Bearer {}", world.token("jane"));
    rpc::created(world.channel.clone(), Some(header.clone()), rpc::create("web", "session"))
        .await
        .unwrap();

    for method in Method::ALL {
        let name = format!("podsonde.v1.{}", method.as_str());
        let row = rpc::ALL.iter().chain(rpc::FILES).find(|rpc| rpc.method == name);
        let row = row.unwrap_or_else(|| panic!("tests/access/rpc.rs has no row for {name}"));
        // Twice, so that what the agent keeps after a first request does not count.
        let mut passed = Arc::default();
        for _ in 0..2 {
            let channel;
            (channel, passed) = proxy(world.address(), Cut::None).await;
            call(row, channel, &header, None).await;
            settled(&world, &header, (usize::MAX, usize::MAX), &name).await;
        }
        let (sent, got) =
            (passed.request.load(Ordering::Relaxed), passed.answer.load(Ordering::Relaxed));
        assert!(sent > 100 && got > 20, "{name}: {passed:?}");
        let before = held();

        let mut cuts: Vec<_> = (1..8).map(|eighth| Cut::Request(sent * eighth / 8)).collect();
        cuts.extend([1, got / 4, got / 2, got - 1].map(Cut::Answer));
        cuts.extend([1, got / 2].map(Cut::Stall));
        for cut in cuts {
            let (channel, _) = proxy(world.address(), cut).await;
            call(row, channel, &header, None).await;
            settled(&world, &header, before, &format!("{name}: {cut:?} of {sent}, {got}")).await;
        }
        for micros in [0, 500, 2_000, 10_000, 50_000] {
            let after = Duration::from_micros(micros);
            call(row, world.channel.clone(), &header, Some(after)).await;
            settled(&world, &header, before, &format!("{name}: a deadline of {after:?}")).await;
            let taken_back = tokio::spawn((row.call)(world.channel.clone(), Some(header.clone())));
            tokio::time::sleep(after).await;
            taken_back.abort();
            let _ = taken_back.await;
            settled(&world, &header, before, &format!("{name}: taken back after {after:?}")).await;
        }
    }
    world.end().await;
}
