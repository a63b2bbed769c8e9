//! Any bytes as a request of the service Files: decoded, checked, written to the audit log, and its
//! path resolved in a small root full of links that lead out. Nothing of the host's may be seen.
#![no_main]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::OnceLock,
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use podsonde::{
    agent::rpc::operation::Operation,
    proto::v1,
    sys::rooted::{RootedDir, show},
};
use prost::Message;

const CANARY: &[u8] = b"CANARY of the host";
const NAME: &[u8] = b"canary-of-the-host";

/// Beside the root, and to where its links would lead, lie files of the host.
fn root() -> &'static RootedDir {
    static ROOT: OnceLock<RootedDir> = OnceLock::new();
    ROOT.get_or_init(|| {
        let base = std::env::temp_dir().join(format!("podsonde-fuzz-{}", std::process::id()));
        let root = base.join("root");
        fs::create_dir_all(root.join("d/e")).expect("a root");
        for directory in [base.as_path(), Path::new("/tmp")] {
            fs::write(directory.join("canary-of-the-host"), CANARY).expect("a canary");
        }
        fs::write(root.join("f"), "inside").expect("a file");
        for (number, target) in
            ["/", "..", "../../..", "/tmp", "/proc/self/root", "/d/e", "l0", "f"].iter().enumerate()
        {
            symlink(target, root.join(format!("l{number}"))).expect("a link");
            symlink(target, root.join(format!("d/l{number}"))).expect("a link");
        }
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let opened = rustix::fs::open(&root, flags, rustix::fs::Mode::empty()).expect("the root");
        RootedDir::new(opened).expect("procfs")
    })
}

fn look(path: &[u8]) {
    let root = root();
    assert!(!show(path).chars().any(char::is_control));
    for follow in [false, true] {
        if let Ok(node) = root.resolve(path, follow) {
            assert_ne!(node.entry().size, CANARY.len() as u64);
        }
    }
    if let Ok(content) = root.resolve(path, true).and_then(|node| node.open(root)) {
        let part = content.read(0, 1 << 16, soon());
        assert!(!part.is_ok_and(|part| part.data.starts_with(b"CANARY")));
    }
    if let Ok(directory) = root.resolve(path, true).and_then(|node| node.open_directory(root)) {
        let page = directory.page(path, 100, 1 << 16, soon()).expect("a page");
        assert!(page.entries.iter().all(|entry| entry.path != NAME));
        let mut walk = directory.walk(8, true);
        while let Some(entries) = walk.next(100, 1 << 16, soon()) {
            assert!(entries.iter().all(|entry| !entry.path.ends_with(NAME)));
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

fn ask<Q: Operation + Message + Default>(data: &[u8], path: impl Fn(&Q) -> &[u8]) {
    let Ok(mut request) = Q::decode(data) else { return };
    let _ = request.subject().as_root();
    let _ = request.subject().object();
    for (_, value) in request.parameters() {
        assert!(value.len() <= 5 * data.len() + 64);
    }
    let _ = request.subject().bind("uid");
    look(path(&request));
}

fuzz_target!(|data: &[u8]| {
    look(data);
    ask::<v1::FilesStatRequest>(data, |q| &q.path);
    ask::<v1::FilesListRequest>(data, |q| &q.path);
    ask::<v1::FilesReadRequest>(data, |q| &q.path);
    ask::<v1::FilesWalkRequest>(data, |q| &q.path);
    ask::<v1::FilesChecksumRequest>(data, |q| &q.path);
    ask::<v1::FilesWriteStart>(data, |q| &q.path);
});
