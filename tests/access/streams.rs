//! Requests that go on end when their caller may not have them any more.

use std::time::Duration;

use podsonde::{
    agent::config::Limits,
    proto::v1::{
        self, capture_client::CaptureClient, debug_client::DebugClient,
        debug_create_response::Event, files_client::FilesClient,
        namespaces_client::NamespacesClient,
    },
};
use serde_json::json;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    rpc,
    world::{self, HOUR, NO_IMAGE, Setup, World, reason, right, within},
};

const DEBUGGER: [world::Right; 2] =
    [right("patch", "pods/ephemeralcontainers", "default"), right("get", "pods", "default")];

async fn world_with_pod(setup: Setup) -> World {
    let world = World::with(setup).await;
    world.pod("default", "web", json!({})).await;
    world
}

/// A Create that waits for an image that never comes, read up to where it waits.
async fn waiting(world: &World, token: &str, name: &str) -> Streaming<v1::DebugCreateResponse> {
    let message = v1::DebugCreateRequest {
        image: NO_IMAGE.into(),
        wait_for_image: true,
        start_timeout: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..rpc::create("web", name)
    };
    let header = format!("Bearer {token}");
    let call =
        DebugClient::new(world.channel.clone()).create(rpc::request(message, Some(&header))).await;
    let mut stream = call.unwrap().into_inner();
    loop {
        let event = within(stream.message()).await.unwrap().unwrap().event.unwrap();
        if matches!(event, Event::Progress(progress) if !progress.reason.is_empty()) {
            return stream;
        }
    }
}

async fn ended<T>(mut stream: Streaming<T>) -> (Code, String) {
    within(async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => return (status.code(), reason(&status)),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_ends_with_the_right_to_it() {
    let world = world_with_pod(Setup::default()).await;
    let rights =
        [right("create", "podsonde.dev:captures", "default"), right("get", "pods", "default")];
    world.grant("jane", &rights).await;
    let header = format!("Bearer {}", world.token("jane"));
    let message =
        v1::CaptureStartRequest { pod: rpc::pod_ref("web"), ..v1::CaptureStartRequest::default() };
    let mut client = CaptureClient::new(world.channel.clone());
    let mut stream = client.start(rpc::request(message, Some(&header))).await.unwrap().into_inner();
    let first = within(stream.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(first, v1::capture_start_response::Event::Started(_)), "{first:?}");
    world.revoke("jane", "default").await;
    assert_eq!(ended(stream).await, (Code::PermissionDenied, "FORBIDDEN".into()));
    // What it had come to is written down all the same.
    let end = world.audited().into_iter().find(|line| line["audit"] == "end").unwrap();
    assert_eq!((&end["operation"], &end["reason"]), (&json!("Capture/Start"), &json!("FORBIDDEN")));
    assert_eq!(end["results"]["dropped_by_kernel"], "0", "{end}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_file_ends_with_the_right_to_it() {
    let world = world_with_pod(Setup::default()).await;
    let rights = [right("create", "pods/exec", "default"), right("get", "pods", "default")];
    world.grant("jane", &rights).await;
    let target = v1::FileTarget { pod: rpc::pod_ref("web"), ..Default::default() };
    let path = b"/etc/hostname".to_vec();
    let message =
        v1::FilesReadRequest { target: Some(target), path, follow: true, ..Default::default() };
    let header = format!("Bearer {}", world.token("jane"));
    let call =
        FilesClient::new(world.channel.clone()).read(rpc::request(message, Some(&header))).await;
    let mut stream = call.unwrap().into_inner();
    let started = within(stream.message()).await.unwrap().unwrap().event;
    assert!(matches!(started, Some(v1::files_read_response::Event::Start(_))), "{started:?}");
    world.revoke("jane", "default").await;
    assert_eq!(ended(stream).await, (Code::PermissionDenied, "FORBIDDEN".into()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_create_ends_with_the_right_to_it() {
    let world = world_with_pod(Setup::default()).await;
    world.grant("jane", &DEBUGGER).await;
    let token = world.token("jane");
    let stream = waiting(&world, &token, "first").await;
    world.revoke("jane", "default").await;
    assert_eq!(ended(stream).await, (Code::PermissionDenied, "FORBIDDEN".into()));
    // What changes something is asked about anew each time.
    let again = rpc::created(
        world.channel.clone(),
        Some(format!("Bearer {token}")),
        rpc::create("web", "x"),
    );
    assert_eq!(reason(&again.await.unwrap_err()), "FORBIDDEN");

    world.grant("john", &DEBUGGER).await;
    let token = world.token("john");
    let stream = waiting(&world, &token, "second").await;
    world.cluster.revoke_token(&token);
    assert_eq!(ended(stream).await, (Code::Unauthenticated, "BAD_TOKEN".into()));

    let token = world.token_for("john", &["podsonde"], Duration::from_secs(4));
    let stream = waiting(&world, &token, "third").await;
    assert_eq!(ended(stream).await, (Code::Unauthenticated, "TOKEN_EXPIRED".into()));

    let stream = waiting(&world, &world.token("john"), "fourth").await;
    world.cluster.faults().refuse_connections().await;
    assert_eq!(ended(stream).await, (Code::Unavailable, "API_UNREACHABLE".into()));
    world.cluster.faults().up().await.unwrap();

    let lines = world.audited();
    let ends = |reason: &str| {
        lines.iter().filter(|l| l["audit"] == "end" && l["reason"] == reason).count()
    };
    let reasons = ["FORBIDDEN", "BAD_TOKEN", "TOKEN_EXPIRED", "API_UNREACHABLE"];
    assert_eq!(reasons.map(ends), [2, 1, 1, 1]);
    world.end().await;
}

/// At the token's end even if it is not yet time to ask again.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_s_end_does_not_wait_for_the_interval() {
    let mut setup = Setup::default();
    setup.access.reauthorize_interval = HOUR;
    let world = world_with_pod(setup).await;
    world.grant("john", &DEBUGGER).await;
    let token = world.token_for("john", &["podsonde"], Duration::from_secs(4));
    let stream = waiting(&world, &token, "first").await;
    assert_eq!(ended(stream).await, (Code::Unauthenticated, "TOKEN_EXPIRED".into()));
    world.end().await;
}

/// A caller that reads slowly does not read for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_of_the_node_ends_with_the_right_to_it() {
    let world = World::with(Setup { runs: false, ..Setup::default() }).await;
    // More than the queue and the smallest windows hold.
    for n in 0..1000 {
        let name = format!("{}{n}", "a-long-name-".repeat(20));
        let spec =
            json!({"nodeName": world::NODE, "containers": [{"name": "web", "image": NO_IMAGE}]});
        world.cluster.create_pod(json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
    }
    let address = world.address();
    let narrow = Channel::from_shared(format!("http://{address}")).unwrap();
    let narrow = narrow.initial_stream_window_size(1024).initial_connection_window_size(1024);
    let channel = narrow.connect().await.unwrap();
    world.grant("jane", &[right("list", "pods", "default")]).await;
    let header = format!("Bearer {}", world.token("jane"));
    let message = v1::NamespacesVerifyNodeRequest {
        namespace: "default".into(),
        label_selector: String::new(),
    };
    let mut client = NamespacesClient::new(channel);
    let stream = within(client.verify_node(rpc::request(message, Some(&header))))
        .await
        .unwrap()
        .into_inner();
    world.revoke("jane", "default").await;
    // The agent ends it although nobody reads: it is in the audit log.
    within(async {
        while world.audited().iter().all(|line| line["reason"] != "FORBIDDEN") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(ended(stream).await, (Code::PermissionDenied, "FORBIDDEN".into()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_only_so_many_requests() {
    let setup = Setup {
        limits: Limits { max_requests_per_user: 2, ..Limits::default() },
        ..Setup::default()
    };
    let world = world_with_pod(setup).await;
    for user in ["jane", "john"] {
        world.grant(user, &DEBUGGER).await;
    }
    let (jane, john) = (world.token("jane"), world.token("john"));
    let first = waiting(&world, &jane, "first").await;
    let _second = waiting(&world, &jane, "second").await;
    let verify = async |token: &str| -> Result<(), Status> {
        rpc::verify(world.channel.clone(), Some(format!("Bearer {token}")), "web").await
    };
    let refused = verify(&jane).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused)),
        (Code::ResourceExhausted, "TOO_MANY_REQUESTS".into())
    );
    verify(&john).await.unwrap();
    // One that has ended makes room.
    drop(first);
    within(async {
        while verify(&jane).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    world.end().await;
}

/// Hanging up while the API server is asked hides nothing: who created the container stands in the
/// audit log and on the pod.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_up_hides_nothing() {
    let world = world_with_pod(Setup::default()).await;
    world.grant("debugger", &DEBUGGER).await;
    let header = format!("Bearer {}", world.token("debugger"));
    // Each answer of the API server takes so long that the patch is under way when the caller goes.
    world.cluster.faults().delay(Duration::from_millis(300));
    let message = rpc::create("web", "left-behind");
    let call =
        DebugClient::new(world.channel.clone()).create(rpc::request(message, Some(&header))).await;
    drop(call.unwrap());
    let events: kube::Api<k8s_openapi::api::core::v1::Event> =
        kube::Api::namespaced(world.admin.clone(), "default");
    let by =
        "debugger created debug container left-behind for web from image podsonde.dev/demo/sleep:1";
    within(async {
        loop {
            let told = events.list(&Default::default()).await.unwrap().items;
            let line = world
                .audited()
                .into_iter()
                .find(|line| line["audit"] == "end" && line["user"] == "debugger");
            if let Some(line) = line
                && told.iter().any(|event| event.message.as_deref() == Some(by))
            {
                assert_eq!(line["results"]["container"], "left-behind", "{line}");
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    world.end().await;
}

/// Nobody watches a quiet file that is followed: whoever stops reading it gets the place back.
#[tokio::test(flavor = "multi_thread")]
async fn a_followed_file_that_nobody_reads_ends() {
    let limits = Limits { max_requests_per_user: 1, ..Limits::default() };
    let world = world_with_pod(Setup { limits, ..Setup::default() }).await;
    let rights = [right("create", "pods/exec", "default"), right("get", "pods", "default")];
    world.grant("jane", &rights).await;
    let header = format!("Bearer {}", world.token("jane"));
    for _ in 0..3 {
        let mut stream = within(async {
            loop {
                let target = v1::FileTarget { pod: rpc::pod_ref("web"), ..Default::default() };
                let message = v1::FilesReadRequest {
                    target: Some(target),
                    path: b"/etc/hostname".to_vec(),
                    follow: true,
                    ..Default::default()
                };
                let mut client = FilesClient::new(world.channel.clone());
                match client.read(rpc::request(message, Some(&header))).await {
                    Ok(answer) => break answer.into_inner(),
                    Err(busy) => assert_eq!(reason(&busy), "TOO_MANY_REQUESTS"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let started = within(stream.message()).await.unwrap().unwrap().event;
        assert!(matches!(started, Some(v1::files_read_response::Event::Start(_))), "{started:?}");
    }
    world.end().await;
}

/// A file that is being written, by somebody who has lost the right to.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_ends_with_the_right_to_it() {
    let world = world_with_pod(Setup::default()).await;
    let rights = [
        right("update", "podsonde.dev:files", "default"),
        right("create", "pods/exec", "default"),
        right("get", "pods", "default"),
    ];
    world.grant("jane", &rights).await;
    let header = format!("Bearer {}", world.token("jane"));
    let (parts, sent) = tokio::sync::mpsc::channel(4);
    let event = |event| v1::FilesWriteRequest { event: Some(event) };
    let start = v1::FilesWriteStart {
        target: Some(v1::FileTarget { pod: rpc::pod_ref("web"), ..Default::default() }),
        path: b"/tmp/revoked".to_vec(),
        ..Default::default()
    };
    parts.send(event(v1::files_write_request::Event::Start(start))).await.unwrap();
    let mut client = FilesClient::new(world.channel.clone());
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let message = rpc::request(sent, Some(&header));
    let upload = tokio::spawn(async move { client.write(message).await });
    // Admitted: it stands in the audit log, and takes what comes.
    within(async {
        while world.audited().iter().all(|line| line["decision"] != "allow") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    world.revoke("jane", "default").await;
    let refused = within(async {
        while !upload.is_finished() {
            let part = v1::files_write_request::Event::Data(vec![7; 1000].into());
            let _ = parts.send(event(part)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        upload.await.unwrap().unwrap_err()
    })
    .await;
    assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, "FORBIDDEN".into()));
    world.end().await;
}
