//! The files of a container without a shell, on containerd's overlay and on volumes, read by the
//! agent that `deploy/` ships.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use podsonde::{
    client::files::{ReadEvent, WalkEvent},
    proto::v1::{FileEntry, FileTarget, FileType, FilesReadRequest, PodRef, RootView},
};
use serde_json::json;

use crate::{
    fixture::{Fixture, running, with},
    support::node,
};

/// A container, by the host's tools.
struct Inside {
    id: String,
    root: PathBuf,
}

impl Inside {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What `find -printf` prints of a tree without what is mounted in it, by path.
    fn find(&self, path: &str) -> BTreeMap<String, String> {
        let top = format!("{}/", self.path(path).display());
        let listed =
            node::output("find", &[&top, "-xdev", "-printf", "%P\t%y %s %m %U %G %n %i %T@ %l\n"]);
        listed
            .lines()
            // How many processes there are.
            .filter(|line| !line.starts_with("proc\t"))
            .map(|line| line.split_once('\t').expect("a tab"))
            .map(|(p, l)| (p.to_owned(), l.to_owned()))
            .collect()
    }
}

fn printed(entry: &FileEntry) -> (String, String) {
    let letter = match entry.r#type() {
        FileType::Regular => 'f',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Unspecified => 'U',
    };
    let time = entry.modified_at.as_ref().expect("a time");
    let line = format!(
        "{letter} {} {:o} {} {} {} {} {}.{:09}0 {}",
        entry.size,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.links,
        entry.inode,
        time.seconds,
        time.nanos,
        String::from_utf8_lossy(&entry.link_target)
    );
    (String::from_utf8_lossy(&entry.path).into_owned(), line)
}

fn sha256sum(path: &Path) -> String {
    let path = path.to_str().expect("UTF-8");
    node::output("sha256sum", &[path]).split(' ').next().expect("a sum").to_owned()
}

fn target(pod: &str, container: &str) -> FileTarget {
    let pod = PodRef { namespace: "default".into(), name: pod.into(), uid: String::new() };
    FileTarget { pod: Some(pod), container: container.into(), view: 0, as_root: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distroless_container_is_read_like_any_other() {
    let Some(fixture) = Fixture::start().await else { return };
    let spec = json!({
        "containers": [{
            "name": "app", "image": "registry.test/distroless:1",
            "volumeMounts": [
                {"name": "scratch", "mountPath": "/scratch"},
                {"name": "config", "mountPath": "/config"},
            ],
            "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false},
        }],
        "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "config", "emptyDir": {}}],
    });
    let pod = fixture.pod("distroless", spec).await;
    let id = running(&pod, "app").expect("runs");
    let pid = node::pid(&id).expect("runs");
    let inside = Inside { id, root: format!("/proc/{pid}/root").into() };
    assert!(
        Command::new("ctr")
            .args(["tasks", "exec", "--exec-id", "x", &inside.id, "sh"])
            .output()
            .unwrap()
            .status
            .code()
            != Some(0)
    );

    // As the kubelet lays out a ConfigMap.
    let version = inside.path("/config/..2026_01_01");
    fs::create_dir(&version).unwrap();
    fs::write(version.join("app.conf"), "listen 8080\n").unwrap();
    symlink("..2026_01_01", inside.path("/config/..data")).unwrap();
    symlink("..data/app.conf", inside.path("/config/app.conf")).unwrap();
    let large: Vec<u8> = (0..1_000_003_u32).flat_map(u32::to_be_bytes).collect();
    fs::write(inside.path("/scratch/large"), &large).unwrap();
    fs::write(inside.path("/dev/shm/shared"), "in memory\n").unwrap();
    for (name, owner) in [("own", 65532), ("other", 65533)] {
        let path = inside.path(&format!("/scratch/{name}"));
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
    }

    let agent = fixture.agent_client().await;
    let files = agent.files(target("distroless", ""));
    let read = async |files: &podsonde::client::Files, path: &str| {
        let request = FilesReadRequest { path: path.into(), ..Default::default() };
        let mut reading = files.read(request).await?;
        let mut data = Vec::new();
        loop {
            match reading.next().await? {
                ReadEvent::Data(more) => data.extend_from_slice(&more),
                ReadEvent::Change(change) => panic!("{change:?}"),
                ReadEvent::End(_) => return Ok::<_, podsonde::client::Error>(data),
            }
        }
    };
    // Layers of the image, emptyDir, ConfigMap, tmpfs.
    for path in [
        "/www/index.html",
        "/httpd",
        "/scratch/large",
        "/config/app.conf",
        "/config/..data/app.conf",
        "/dev/shm/shared",
        "/etc/hostname",
    ] {
        let theirs = sha256sum(
            &inside.path(
                &path
                    .replace("/config/app.conf", "/config/..2026_01_01/app.conf")
                    .replace("..data", "..2026_01_01"),
            ),
        );
        let sum = files.checksum(path.as_bytes(), 0).await.unwrap();
        let ours: String = sum.sha256.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(ours, theirs, "{path}");
        let copy = fixture.node.dir.join("copy");
        fs::write(&copy, read(&files, path).await.unwrap()).unwrap();
        assert_eq!(sha256sum(&copy), theirs, "{path}");
    }
    // As its own user: what exec would not read either.
    assert_eq!(read(&files, "/scratch/own").await.unwrap(), b"own");
    let refused = read(&files, "/scratch/other").await.unwrap_err();
    assert_eq!(refused.reason, "FILE_PERMISSION", "{refused:?}");
    let root = agent.files(FileTarget { as_root: true, ..target("distroless", "app") });
    assert_eq!(read(&root, "/scratch/other").await.unwrap(), b"other");
    for refused in
        ["/proc/1/environ", "/proc/self/environ", "/proc/1/root/etc/passwd", "/sys/kernel/notes"]
    {
        for files in [&files, &root] {
            let error = read(files, refused).await.unwrap_err();
            assert!(
                ["PATH_REFUSED", "PATH_NOT_FOUND", "FILE_PERMISSION"]
                    .contains(&error.reason.as_str()),
                "{refused}: {error:?}"
            );
        }
    }

    // Every tree is what find prints, of the file system that it begins in.
    for path in ["/", "/scratch", "/config", "/dev/shm", "/www"] {
        let mut walking = root.walk(path.as_bytes(), None, false).await.unwrap();
        let mut ours = BTreeMap::new();
        while let WalkEvent::Entries(entries) = walking.next().await.unwrap() {
            ours.extend(entries.iter().filter(|entry| entry.path != b"proc").map(printed));
        }
        assert_eq!(ours, inside.find(path), "{path}");
        println!("{path}: {} entries as find -printf has them", ours.len());
    }
    let (found, entry) = root.stat(b"/scratch", true).await.unwrap();
    assert!(entry.mount_point);
    assert_eq!(
        (found.uid, found.container.unwrap().container_id),
        (0, format!("containerd://{}", inside.id))
    );
    let (_, entry) = root.stat(b"/", true).await.unwrap();
    assert_eq!(entry.file_system, "overlay");

    // What /proc/1/root is to a debug container, that is the target's root with its volumes.
    let args = [
        "debug",
        "distroless",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--target=app",
        "-c",
        "debugger",
        "--",
        "sleep",
        "infinity",
    ];
    fixture.podsonde(&args).await.expect(0);
    let debugger = fixture.wait("distroless", |pod| running(pod, "debugger").is_some()).await;
    let debugger = running(&debugger, "debugger").unwrap();
    let seen = FileTarget { view: RootView::Proc1Root.into(), ..target("distroless", "debugger") };
    let seen = agent.files(seen);
    assert_eq!(
        read(&seen, "/config/app.conf").await.unwrap(),
        node::exec(&debugger, &["cat", "/proc/1/root/config/app.conf"]).into_bytes()
    );
    let (whose, entries, _) = seen.list(b"/", Vec::new()).await.unwrap();
    assert_eq!(whose.owner_container.unwrap().container, "app");
    let names = entries
        .iter()
        .map(|e| String::from_utf8_lossy(&e.path).into_owned())
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(names.trim(), node::exec(&debugger, &["ls", "/proc/1/root/"]).trim());
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exec_reads_is_what_is_read() {
    let Some(fixture) = Fixture::start().await else { return };
    let agent = fixture.agent_client().await;
    // Security contexts that decide what a process of the container may read.
    let contexts = [
        ("root", json!({})),
        ("bare-root", json!({"capabilities": {"drop": ["ALL"]}})),
        ("user", json!({"runAsUser": 1000, "runAsGroup": 1000})),
        ("user-in-group", json!({"runAsUser": 1000, "runAsGroup": 2000})),
    ];
    for (name, context) in contexts {
        let spec = json!({"containers": [
            {"name": "app", "image": "busybox", "command": ["sleep", "infinity"], "securityContext": context},
        ]});
        let pod = fixture
            .pod(name, with(spec, json!({"securityContext": {"supplementalGroups": [3000]}})))
            .await;
        let id = running(&pod, "app").expect("runs");
        let pid = node::pid(&id).expect("runs");
        let files = agent.files(target(name, "app"));
        let mut read = Vec::new();
        for (owner, group, mode) in [
            (0, 0, 0o600),
            (1000, 1000, 0o600),
            (1001, 2000, 0o640),
            (1001, 3000, 0o640),
            (1001, 1001, 0o600),
            (1001, 1001, 0o644),
        ] {
            let file = format!("/tmp/{owner}-{group}-{mode:o}");
            let path = PathBuf::from(format!("/proc/{pid}/root{file}"));
            fs::write(&path, "content").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            chown(&path, Some(owner), Some(group)).unwrap();
            let exec_id = uuid::Uuid::new_v4().to_string();
            let exec = Command::new("ctr")
                .args(["tasks", "exec", "--exec-id", &exec_id, &id, "cat", &file])
                .output()
                .unwrap();
            let reading = files
                .read(FilesReadRequest { path: file.clone().into(), ..Default::default() })
                .await;
            assert_eq!(
                reading.is_ok(),
                exec.status.success(),
                "{name} {file}: {reading:?} {exec:?}"
            );
            if let Err(error) = &reading {
                assert_eq!(error.reason, "FILE_PERMISSION");
            }
            read.push(reading.is_ok());
        }
        println!("{name}: {read:?}, as ctr tasks exec cat");
    }
    fixture.end().await;
}
