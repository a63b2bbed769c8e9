//! Whose root it is, as whom it is read, and when it is over.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, chown, symlink},
    process::Command,
    time::Duration,
};

use podsonde::{
    agent::config::{FileLimits, Limits},
    proto::v1::{self, FileTarget, RootOwner, RootView, files_read_response::Event},
};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    fixture::{Fixture, SLEEP, WEB, pod_ref, reason, request, within},
    fuse,
    support::{Inside, cat, client, read, sleep},
};

async fn stat(
    f: &Fixture,
    target: FileTarget,
    path: &str,
) -> Result<v1::FilesStatResponse, Status> {
    let request = v1::FilesStatRequest { target: Some(target), path: path.into(), follow: true };
    client(f).stat(request).await.map(tonic::Response::into_inner)
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, why: &str) -> String {
    let status = result.unwrap_err();
    assert_eq!((status.code(), reason(&status).0.as_str()), (code, why), "{status:?}");
    status.message().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_containers_user_and_as_root() {
    let f = Fixture::start().await;
    let spec = sleep(json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1000}}));
    let mut spec = spec;
    spec["securityContext"] = json!({"supplementalGroups": [2000]});
    let inside = Inside::start(&f, "user", spec).await;
    let root = Inside::start(&f, "root", sleep(json!({}))).await;
    let bare = sleep(json!({"securityContext": {"capabilities": {"drop": ["ALL"]}}}));
    let bare = Inside::start(&f, "bare", bare).await;
    for container in [&inside, &root, &bare] {
        for (name, owner, group, mode) in [
            ("own", 1000, 1000, 0o600),
            ("other", 1001, 1001, 0o600),
            ("group", 1001, 2000, 0o640),
            ("roots", 0, 0, 0o600),
        ] {
            let path = container.path(&format!("/tmp/{name}"));
            fs::write(&path, name).unwrap();
            chown(&path, Some(owner), Some(group)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    // As the kernel lets a process of the container: found out by entering it as that user with its
    // capabilities.
    let exec = |container: &Inside, name: &str| {
        let status = fs::read_to_string(format!("/proc/{}/status", container.pid)).unwrap();
        let field =
            |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).unwrap().trim().to_owned();
        let first = |key: &str| field(key).split_ascii_whitespace().next().unwrap().to_owned();
        let effective = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
        let groups = field("Groups:").split_ascii_whitespace().collect::<Vec<_>>().join(",");
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", first("Uid:"))).arg(format!("--regid={}", first("Gid:")));
        command.arg(if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={groups}")
        });
        if effective == 0 {
            command.args(["--bounding-set=-all", "--inh-caps=-all"]);
        }
        command.args(["sha256sum"]).arg(container.path(&format!("/tmp/{name}")));
        command.output().unwrap().status.success()
    };
    let mut count = 0;
    for container in [&inside, &root, &bare] {
        for name in ["own", "other", "group", "roots"] {
            let path = format!("/tmp/{name}");
            // The way to /proc/PID/root itself is closed to others, so the oracle counts only for
            // what is below it.
            let expected = matches!(
                (container.pod.as_str(), name),
                ("user", "own" | "group") | ("root", _) | ("bare", "roots")
            );
            if container.pod != "user" {
                assert_eq!(exec(container, name), expected, "{} {name}", container.pod);
            }
            match cat(&f, container, &path).await {
                Ok(data) => {
                    assert!(expected && data == name.as_bytes(), "{} {name}", container.pod);
                }
                Err(status) => {
                    assert!(!expected, "{} {name}: {status:?}", container.pod);
                    refused(Err::<(), _>(status), Code::PermissionDenied, "FILE_PERMISSION");
                }
            }
            let target = FileTarget { as_root: true, ..container.target().unwrap() };
            let request = v1::FilesReadRequest {
                target: Some(target),
                path: path.into(),
                ..Default::default()
            };
            assert_eq!(read(&f, request).await.unwrap().data, name.as_bytes());
            count += 2;
        }
    }
    println!("{count} reads as container users and as root");
    let answer = stat(&f, inside.target().unwrap(), "/tmp").await.unwrap();
    let root = answer.root.unwrap();
    assert_eq!((root.uid, root.gid), (1000, 1000));
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_namespaced_pod() {
    let f = Fixture::start().await;
    let mut spec = sleep(json!({}));
    spec["hostUsers"] = json!(false);
    let inside = Inside::start(&f, "mapped", spec).await;
    let map = fs::read_to_string(format!("/proc/{}/uid_map", inside.pid)).unwrap();
    let base: u32 = map.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert_ne!(base, 0);
    let own = |name: &str, owner: u32| {
        inside.write(&format!("/tmp/{name}"), name);
        chown(inside.path(&format!("/tmp/{name}")), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(
            inside.path(&format!("/tmp/{name}")),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
    };
    own("own", base);
    own("seven", base + 7);
    own("hosts", 0);
    for (name, uid) in [("own", 0), ("seven", 7), ("hosts", 65534)] {
        let entry = stat(&f, inside.target().unwrap(), &format!("/tmp/{name}"))
            .await
            .unwrap()
            .entry
            .unwrap();
        assert_eq!((entry.uid, entry.gid), (uid, uid), "{name}");
    }
    assert_eq!(cat(&f, &inside, "/tmp/own").await.unwrap(), b"own");
    // Its root is no root here: what its capabilities open in its own user namespace takes as_root.
    for name in ["/tmp/seven", "/tmp/hosts"] {
        refused(cat(&f, &inside, name).await, Code::PermissionDenied, "FILE_PERMISSION");
    }
    let root = stat(&f, inside.target().unwrap(), "/").await.unwrap().root.unwrap();
    assert_eq!(root.uid, base);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proc_1_root_is_whose_it_is() {
    let f = Fixture::start().await;
    let web = json!({"containers": [{"name": "app", "image": WEB}]});
    let with = |key: &str| {
        let mut spec = web.clone();
        spec[key] = json!(true);
        spec
    };
    for (pod, spec) in [
        ("plain", web.clone()),
        ("share", with("shareProcessNamespace")),
        ("host", with("hostPID")),
    ] {
        f.pod(pod, spec).await;
    }
    // Pod, target, whose it is, which container's.
    for (pod, target, owner, container) in [
        ("plain", "app", RootOwner::Container, "app"),
        ("plain", "", RootOwner::Container, "debug"),
        ("share", "app", RootOwner::Sandbox, ""),
        ("host", "app", RootOwner::Host, ""),
    ] {
        let name = if target.is_empty() { "debug" } else { "target" };
        let mut debug = request(pod, target);
        debug.name = name.into();
        debug.profile = v1::Profile::General.into();
        f.created(debug).await;
        let inside = Inside::of(&f, pod, name).await;
        let view = RootView::Proc1Root.into();
        let asked = FileTarget { pod: pod_ref(pod), container: name.into(), view, as_root: false };
        let answer = stat(&f, asked.clone(), "/").await.unwrap();
        let root = answer.root.unwrap();
        let owned = root.owner_container.clone().map(|c| c.container).unwrap_or_default();
        assert_eq!((root.owner(), owned.as_str()), (owner, container), "{pod} {target}");
        assert_eq!(root.container.unwrap().container, name);
        // Whoever has pid 1 in its pid namespace, as /proc has it.
        let pid1 = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .find(|pid| {
                let same = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
                    == fs::read_link(format!("/proc/{}/ns/pid", inside.pid)).ok();
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let nspid = status
                    .lines()
                    .find_map(|l| l.strip_prefix("NSpid:"))
                    .unwrap_or_default()
                    .to_owned();
                same && nspid.split_ascii_whitespace().last() == Some("1")
            });
        if let (Some(pid), true) = (pid1, owner != RootOwner::Host) {
            let theirs = Command::new("stat")
                .args(["-c", "%d %i"])
                .arg(format!("/proc/{pid}/root/"))
                .output()
                .unwrap();
            let entry = answer.entry.unwrap();
            let ours = format!("{} {}\n", entry.device, entry.inode);
            assert_eq!(ours, String::from_utf8(theirs.stdout).unwrap(), "{pod} {target}");
        }
    }
    // Another user without capabilities may not look into it, as the kernel has it.
    let mut other = request("plain", "app");
    other.name = "other".into();
    other.custom_json = r#"{"securityContext": {"runAsUser": 1234}}"#.into();
    f.created(other).await;
    let view = RootView::Proc1Root.into();
    let asked =
        FileTarget { pod: pod_ref("plain"), container: "other".into(), view, as_root: false };
    refused(stat(&f, asked.clone(), "/").await, Code::PermissionDenied, "FILE_PERMISSION");
    assert!(stat(&f, FileTarget { as_root: true, ..asked }, "/").await.is_ok());
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_over_when_the_container_is() {
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "mortal", sleep(json!({}))).await;
    File::create(inside.path("/tmp/large")).unwrap().set_len(1 << 40).unwrap();
    let request = v1::FilesReadRequest {
        target: inside.target(),
        path: b"/tmp/large".into(),
        ..Default::default()
    };
    let mut stream = client(&f).read(request.clone()).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert!(matches!(first.event, Some(Event::Start(_))));
    let kill = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    kill(inside.pid);
    let ended = within("a read of a container that ends", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => return status,
            }
        }
    })
    .await;
    let why = reason(&ended).0;
    assert!(
        ended.code() == Code::Aborted
            && ["PROCESS_GONE", "CONTAINER_RESTARTED"].contains(&why.as_str()),
        "{ended:?}"
    );
    // It is started again, is another container, and its files are others.
    f.wait("mortal", |pod| {
        let status =
            pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()).and_then(|s| s.first());
        status.is_some_and(|s| {
            s.restart_count > 0 && s.state.as_ref().is_some_and(|s| s.running.is_some())
        })
    })
    .await;
    let again = Inside::of(&f, "mortal", "app").await;
    assert_ne!(again.pid, inside.pid);
    refused(cat(&f, &again, "/tmp/large").await, Code::NotFound, "PATH_NOT_FOUND");
    // A pod of which nothing runs.
    f.submit("never", json!({"containers": [{"name": "app", "image": "no.such.registry/x:1"}]}))
        .await;
    let target = FileTarget { pod: pod_ref("never"), ..Default::default() };
    let code =
        refused(stat(&f, target, "/").await, Code::FailedPrecondition, "CONTAINER_NOT_RUNNING");
    assert!(code.contains("so it has no files"), "{code}");
    let target = FileTarget { pod: pod_ref("none"), ..Default::default() };
    refused(stat(&f, target, "/").await, Code::NotFound, "POD_NOT_FOUND");
    let target = FileTarget { container: "none".into(), ..again.target().unwrap() };
    refused(stat(&f, target, "/").await, Code::NotFound, "CONTAINER_NOT_FOUND");
    let mut target = again.target().unwrap();
    target.pod.as_mut().unwrap().uid = "other".into();
    refused(stat(&f, target, "/").await, Code::FailedPrecondition, "POD_REPLACED");
    f.submit(
        "vm",
        json!({"runtimeClassName": "kata-qemu", "containers": [{"name": "app", "image": SLEEP}]}),
    )
    .await;
    let target = FileTarget { pod: pod_ref("vm"), ..Default::default() };
    refused(stat(&f, target, "/").await, Code::FailedPrecondition, "VM_ISOLATED");
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_fuse_costs_its_container_a_slot_and_nobody_else_anything() {
    let files = FileLimits {
        file_threads: 8,
        file_timeout: Duration::from_millis(500),
        ..FileLimits::default()
    };
    let f = Fixture::with(|_| {}, Limits { files, ..Limits::default() }).await;
    let inside = Inside::start(&f, "stuck", sleep(json!({}))).await;
    let healthy = Inside::start(&f, "healthy", sleep(json!({}))).await;
    healthy.write("/tmp/file", "healthy");
    inside.write("/tmp/file", "still readable");
    let fuse = fuse::silent(inside.pid, "/mnt-silent");
    symlink("/mnt-silent/x", inside.path("/tmp/innocent")).unwrap();
    let metrics = || async {
        let text = crate::support::http_get(f.metrics_address(), "/metrics").await;
        let line = text
            .lines()
            .find(|l| l.starts_with("podsonde_file_threads{state=\"stuck\""))
            .unwrap()
            .to_owned();
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
    };
    within("a stuck stat", async {
        refused(
            cat(&f, &inside, "/tmp/innocent").await,
            Code::DeadlineExceeded,
            "FILE_SYSTEM_STUCK",
        );
    })
    .await;
    assert_eq!(metrics().await, 1);
    // One of the two that the container may have is left, and the rest to everybody else.
    assert_eq!(cat(&f, &inside, "/tmp/file").await.unwrap(), b"still readable");
    within("another one", async {
        refused(
            cat(&f, &inside, "/mnt-silent/y").await,
            Code::DeadlineExceeded,
            "FILE_SYSTEM_STUCK",
        );
        refused(
            cat(&f, &inside, "/tmp/file").await,
            Code::ResourceExhausted,
            "TOO_MANY_FILE_REQUESTS",
        );
        for _ in 0..20 {
            assert_eq!(cat(&f, &healthy, "/tmp/file").await.unwrap(), b"healthy");
        }
    })
    .await;
    assert_eq!(metrics().await, 2);
    // Once it is gone the threads come back.
    drop(fuse);
    within("the threads come back", async {
        while metrics().await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(cat(&f, &inside, "/tmp/file").await.unwrap(), b"still readable");
    refused(
        cat(&f, &inside, "/mnt-silent/y").await,
        Code::FailedPrecondition,
        "FILE_SYSTEM_FAILED",
    );
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_by_field() {
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    let target = || inside.target();
    let field = |result: Result<(), Status>| {
        let status = result.unwrap_err();
        let (why, metadata) = reason(&status);
        assert_eq!(
            (status.code(), why.as_str()),
            (Code::InvalidArgument, "INVALID_FIELD"),
            "{status:?}"
        );
        metadata.get("field").cloned().unwrap_or_default()
    };
    for path in [&b""[..], b"\0", b"/etc/\0passwd", &[b'a'; 4096], &[b'/'; 100_000]] {
        let path = || path.to_vec();
        let stat = v1::FilesStatRequest { target: target(), path: path(), follow: true };
        let list = v1::FilesListRequest { target: target(), path: path(), ..Default::default() };
        let request = v1::FilesReadRequest { target: target(), path: path(), ..Default::default() };
        let walk = v1::FilesWalkRequest { target: target(), path: path(), ..Default::default() };
        let sum = v1::FilesChecksumRequest { target: target(), path: path(), ..Default::default() };
        assert_eq!(field(client(&f).stat(stat).await.map(drop)), "path");
        assert_eq!(field(client(&f).list(list).await.map(drop)), "path");
        assert_eq!(field(read(&f, request).await.map(drop)), "path");
        assert_eq!(field(crate::support::walk(&f, walk).await.map(drop)), "path");
        let mut stream = client(&f).checksum(sum).await.unwrap().into_inner();
        assert_eq!(field(stream.message().await.map(drop)), "path");
    }
    let base =
        v1::FilesReadRequest { target: target(), path: b"/etc".into(), ..Default::default() };
    let reads = [
        ("length", v1::FilesReadRequest { length: -1, ..base.clone() }),
        ("length", v1::FilesReadRequest { length: i64::MIN, ..base.clone() }),
        ("offset", v1::FilesReadRequest { offset: 1, tail_lines: Some(1), ..base.clone() }),
        ("tail_lines", v1::FilesReadRequest { tail_lines: Some(u32::MAX), ..base.clone() }),
        ("target", v1::FilesReadRequest { target: None, ..base.clone() }),
        (
            "target.view",
            v1::FilesReadRequest {
                target: Some(FileTarget { view: 99, ..target().unwrap() }),
                ..base.clone()
            },
        ),
        (
            "target.container",
            v1::FilesReadRequest {
                target: Some(FileTarget { container: "../x".into(), ..target().unwrap() }),
                ..base.clone()
            },
        ),
        (
            "pod",
            v1::FilesReadRequest {
                target: Some(FileTarget { pod: None, ..target().unwrap() }),
                ..base.clone()
            },
        ),
    ];
    for (expected, request) in reads {
        assert_eq!(field(read(&f, request).await.map(drop)), expected);
    }
    for sum in [
        v1::FilesChecksumRequest { target: target(), path: b"/x".into(), offset: -1, length: 0 },
        v1::FilesChecksumRequest { target: target(), path: b"/x".into(), offset: 0, length: -1 },
    ] {
        let mut stream = client(&f).checksum(sum).await.unwrap().into_inner();
        assert!(["offset", "length"].contains(&field(stream.message().await.map(drop)).as_str()));
    }
    let list = v1::FilesListRequest {
        target: target(),
        path: b"/".into(),
        page_size: 10_001,
        after: vec![],
    };
    assert_eq!(field(client(&f).list(list).await.map(drop)), "page_size");
    for follow in [false, true] {
        refused(
            read(&f, v1::FilesReadRequest { follow, ..base.clone() }).await,
            Code::FailedPrecondition,
            "NOT_A_FILE",
        );
    }
    // The agent is in no pid namespace of the container's, so there `self` is nobody.
    refused(cat(&f, &inside, "/proc/self/environ").await, Code::NotFound, "PATH_NOT_FOUND");
    refused(cat(&f, &inside, "/proc/1/environ").await, Code::PermissionDenied, "PATH_REFUSED");
    // Whom it is read as is not let into another process either.
    refused(
        cat(&f, &inside, "/proc/1/root/etc/hostname").await,
        Code::PermissionDenied,
        "FILE_PERMISSION",
    );
    refused(cat(&f, &inside, "/dev/zero").await, Code::FailedPrecondition, "NOT_A_FILE");
    f.end().await;
}
