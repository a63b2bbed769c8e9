//! A root that anything can be done to, with the host's secrets beside it.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use podsonde::{
    domain::{Error, Reason},
    sys::{
        identity::FileIdentity,
        rooted::{RootedDir, content::Content, entry::DirEntry},
    },
};
use tempfile::TempDir;

/// What must never be seen.
pub(crate) const CANARY: &[u8] = b"CANARY: this is the host's";
pub(crate) const CANARY_NAME: &str = "canary-of-the-host";
pub(crate) const INSIDE: &[u8] = b"this is the container's";

/// `root` is the root; everything else is the host's.
pub(crate) struct Lab {
    pub(crate) directory: TempDir,
    pub(crate) root: PathBuf,
    pub(crate) rooted: Arc<RootedDir>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("jail/root");
        fs::create_dir_all(&root).unwrap();
        for host in ["", "jail", "outside", "outside/deeper"] {
            let host = directory.path().join(host);
            fs::create_dir_all(&host).unwrap();
            fs::write(host.join(CANARY_NAME), CANARY).unwrap();
            // Names that are inside, too.
            fs::write(host.join("file"), CANARY).unwrap();
        }
        for directory in ["etc", "d", "d/e", "proc", "dev", "tmp"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        for file in ["file", "etc/file", "d/file", "d/e/file"] {
            fs::write(root.join(file), INSIDE).unwrap();
        }
        let rooted = Arc::new(RootedDir::new(open(&root)).unwrap());
        Self { directory, root, rooted }
    }

    pub(crate) fn host(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Reads a whole file, as the service does.
    pub(crate) fn read(&self, path: &[u8]) -> Result<Vec<u8>, Error> {
        self.open(path)?.read(0, 1 << 16, never()).map(|part| part.data)
    }

    pub(crate) fn open(&self, path: &[u8]) -> Result<Content, Error> {
        self.rooted.resolve(path, true)?.open(&self.rooted)
    }

    pub(crate) fn stat(&self, path: &[u8], follow: bool) -> Result<DirEntry, Error> {
        self.rooted.resolve(path, follow).map(|node| node.entry().clone())
    }

    pub(crate) fn list(&self, path: &[u8]) -> Result<Vec<DirEntry>, Error> {
        let directory = self.rooted.resolve(path, true)?.open_directory(&self.rooted)?;
        directory.page(b"", 10_000, usize::MAX, never()).map(|page| page.entries)
    }

    pub(crate) fn walk(&self, path: &[u8], cross_mounts: bool) -> Result<Vec<DirEntry>, Error> {
        let directory = self.rooted.resolve(path, true)?.open_directory(&self.rooted)?;
        let mut walk = directory.walk(64, cross_mounts);
        let mut entries = Vec::new();
        while let Some(more) = walk.next(1000, 1 << 20, never()) {
            entries.extend(more);
        }
        Ok(entries)
    }

    /// How many descriptors of this process lead anywhere in it.
    pub(crate) fn descriptors(&self) -> usize {
        let links = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| link.starts_with(self.directory.path())).count()
    }
}

/// A time that no test lives to see.
pub(crate) fn never() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap()
}

/// Runs on a thread in a mount namespace of its own, which goes with it.
pub(crate) fn with_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs as somebody else, as the service does.
pub(crate) fn run_as<T: Send + 'static>(
    identity: FileIdentity,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, result) = std::sync::mpsc::channel();
    identity.run(work, move |result| sender.send(result).unwrap()).unwrap();
    result.recv().unwrap().unwrap()
}

pub(crate) fn user(uid: u32, groups: &[u32]) -> FileIdentity {
    FileIdentity { uid, gid: uid, groups: groups.to_vec(), reads_any: false }
}

/// What came of it, and that it is none of the host's.
pub(crate) fn checked(what: &str, result: Result<Vec<u8>, Error>) -> Result<Vec<u8>, Reason> {
    match result {
        Ok(data) => {
            assert!(!data.windows(6).any(|w| w == b"CANARY"), "{what}: the host's content");
            Ok(data)
        }
        Err(error) => {
            assert_ne!(error.reason, Reason::SystemCall, "{what}: {error}");
            Err(error.reason)
        }
    }
}
