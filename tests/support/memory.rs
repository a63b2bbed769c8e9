//! A memory cgroup with a limit, as the kubelet makes one for a container.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A cgroup of the root, removed when dropped. Processes in it that still run then keep it.
pub struct MemoryLimit {
    directory: PathBuf,
    files: &'static Files,
}

/// The names that cgroup v1 and v2 have for the same things.
struct Files {
    limit: &'static str,
    peak: &'static str,
    events: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};
const V2: Files = Files { limit: "memory.max", peak: "memory.peak", events: "memory.events" };

/// The memory limit of the agent's container, in bytes, as `deploy/base/daemonset.yaml` ships it.
pub fn shipped_limit() -> u64 {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/base/daemonset.yaml");
    let text = fs::read_to_string(manifest).unwrap();
    let limits = text.split_once(" limits:").expect("the manifest has limits").1;
    let memory = limits.split_once("memory: ").unwrap().1.lines().next().unwrap();
    memory.strip_suffix("Mi").expect("the limit is in MiB").parse::<u64>().unwrap() << 20
}

impl MemoryLimit {
    /// Makes a cgroup with a limit of `bytes`, or says why there is none: a container without a
    /// writable cgroup file system cannot have it. That is a failure in CI.
    pub fn new(bytes: u64) -> Option<Self> {
        match Self::make(bytes) {
            Ok(limit) => Some(limit),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no memory cgroup: {error}");
                println!("no memory cgroup here ({error}): the limit is not enforced");
                None
            }
        }
    }

    fn make(bytes: u64) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = Path::new("/sys/fs/cgroup");
        let (parent, files) = if root.join("cgroup.controllers").exists() {
            // The root may have processes of its own and still hand controllers down.
            fs::write(root.join("cgroup.subtree_control"), "+memory")?;
            (root.to_owned(), &V2)
        } else {
            (root.join("memory"), &V1)
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = parent.join(format!("podsonde-test-{}-{number}", std::process::id()));
        fs::create_dir(&directory)?;
        let limit = Self { directory, files };
        fs::write(limit.directory.join(files.limit), bytes.to_string())?;
        Ok(limit)
    }

    /// A command that joins the cgroup and becomes the command that follows it.
    pub fn wrapper(&self) -> [&str; 4] {
        let join = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        ["sh", "-c", join, self.directory.to_str().unwrap()]
    }

    /// The most bytes that its processes had together, the kernel's memory on their behalf
    /// included.
    pub fn peak(&self) -> u64 {
        self.read(self.files.peak).trim().parse().unwrap()
    }

    /// How many of its processes the kernel killed for want of memory.
    pub fn kills(&self) -> u64 {
        let events = self.read(self.files.events);
        let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("the kernel counts its kills").parse().unwrap()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap()
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.directory).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }
}
