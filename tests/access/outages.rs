//! Where the API server or the audit log is missing, nothing new is done.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use podsonde::agent::access;
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    rpc::{self, ALL},
    world::{Setup, World, reason, right, within},
};

#[tokio::test(flavor = "multi_thread")]
async fn without_the_api_server_nobody_is_let_in() {
    let world = World::start().await;
    world.pod("default", "web", json!({})).await;
    for rpc in ALL {
        world.grant(rpc.name, rpc.needs).await;
    }
    // One who was here before: what only reads may be let in for some seconds more, what changes
    // something may not.
    let rights =
        [right("get", "pods", "default"), right("patch", "pods/ephemeralcontainers", "default")];
    world.grant("known", &rights).await;
    let known = Some(format!("Bearer {}", world.token("known")));
    rpc::verify(world.channel.clone(), known.clone(), "web").await.unwrap();
    let refused = async |world: &World| {
        for rpc in ALL {
            let header = format!("Bearer {}", world.token(rpc.name));
            let status = within((rpc.call)(world.channel.clone(), Some(header))).await.unwrap_err();
            let expected = (Code::Unavailable, "API_UNREACHABLE".to_owned());
            assert_eq!((status.code(), reason(&status)), expected, "{}: {status:?}", rpc.name);
        }
        let create =
            rpc::created(world.channel.clone(), known.clone(), rpc::create("web", "x")).await;
        assert_eq!(create.unwrap_err().code(), Code::Unavailable);
    };
    world.cluster.faults().refuse_connections().await;
    refused(&world).await;
    world.cluster.faults().up().await.unwrap();

    // An agent that may not ask says so, and lets nobody in either.
    let forbidden = podsonde::embedded::ApiStatus::new(403, "Forbidden", "no reviews for you");
    world.cluster.faults().fail_next(1, "create", "tokenreviews", forbidden.clone());
    let status =
        rpc::verify(world.channel.clone(), Some(format!("Bearer {}", world.token("new"))), "web");
    let status = status.await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "REVIEW_FAILED".into()));
    world.cluster.faults().fail_next(1, "create", "subjectaccessreviews", forbidden);
    let status =
        rpc::verify(world.channel.clone(), Some(format!("Bearer {}", world.token("new"))), "web");
    let status = status.await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "REVIEW_FAILED".into()));
    world.end().await;
}

/// An agent that lets everybody in and writes its audit log there.
async fn auditing(sink: &str) -> World {
    let access =
        access::AccessOptions { insecure_loopback: true, ..access::AccessOptions::default() };
    let world = World::with(Setup { access, audit: Some(sink.into()), ..Setup::default() }).await;
    world.pod("default", "web", json!({})).await;
    world
}

fn assert_refused(what: &str, result: Result<(), Status>) {
    let status = result.expect_err(what);
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unavailable, "AUDIT_FAILED".into()),
        "{what}: {status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_audit_log_stops_everything() {
    let world = auditing("/dev/full").await;
    for rpc in ALL {
        assert_refused(rpc.name, within((rpc.call)(world.channel.clone(), None)).await);
    }
    let pod = world.cluster.wait_pod("default", "web", |_| true).await.unwrap();
    assert_eq!(pod.spec.unwrap().ephemeral_containers, None, "refused, and done all the same");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_log_that_nobody_reads_stops_everything_until_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let mut options = OpenOptions::new();
    let mut reader: File =
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
    let world = auditing(path.to_str().unwrap()).await;
    let verify = || within(rpc::verify(world.channel.clone(), None, "web"));
    // A pipe holds 64 KiB.
    let mut written = 0;
    let refused = loop {
        match verify().await {
            Ok(()) => written += 1,
            Err(status) => break status,
        }
        assert!(written < 1000, "the pipe takes all of it");
    };
    assert_refused("a full pipe", Err(refused));
    assert!(written > 10, "{written}");
    assert_refused("it stays full", verify().await);

    // Read, it goes on, and nothing is missing.
    let mut text = Vec::new();
    let mut read = || {
        let mut buffer = vec![0; 65536];
        let n = reader.read(&mut buffer).unwrap_or_default();
        text.extend_from_slice(&buffer[..n]);
        let ends = text.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
        ends.filter(|line| line.contains("\"audit\":\"end\"")).count()
    };
    within(async {
        while verify().await.is_err() {
            read();
        }
        while read() < written {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    // Closed, it stops again.
    drop(reader);
    assert_refused("a closed pipe", verify().await);
    world.end().await;
}
