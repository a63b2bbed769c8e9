//! The cgroups of containers: an agent finds a container's processes by the id in
//! `/proc/<pid>/cgroup`.
//!
//! Each container gets a cgroup directory of its own, named as on a real node, without limits. If
//! no hierarchy is writable, a file with that line is mounted over the process's `cgroup` file
//! instead; processes that the container forks are then not covered.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{Signal, kill},
        statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs},
    },
    unistd::{AccessFlags, Pid, access},
};
use serde::{Deserialize, Serialize};

/// How the node names its cgroups: the kubelet's `cgroupDriver`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// `kubepods/besteffort/pod<uid>/<id>`.
    #[default]
    Cgroupfs,
    /// `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid>.slice` and in it
    /// `cri-containerd-<id>.scope`, with underscores in the UID.
    Systemd,
}

impl CgroupDriver {
    fn pod(self, uid: &str) -> String {
        match self {
            Self::Cgroupfs => format!("kubepods/besteffort/pod{uid}"),
            Self::Systemd => format!(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice",
                uid.replace('-', "_")
            ),
        }
    }

    fn container(self, pod_uid: &str, id: &str) -> String {
        match self {
            Self::Cgroupfs => format!("{}/{id}", self.pod(pod_uid)),
            Self::Systemd => format!("{}/cri-containerd-{id}.scope", self.pod(pod_uid)),
        }
    }
}

/// The part of the cgroup tree that one runtime owns.
#[derive(Debug)]
pub(super) struct CgroupTree {
    /// The runtime's own directory, so that it leaves a real kubelet's `kubepods` alone; none if no
    /// hierarchy is writable.
    top: Option<PathBuf>,
    driver: CgroupDriver,
    /// Whether the node runs containers on cgroup v2.
    unified: bool,
}

impl CgroupTree {
    /// Finds a writable hierarchy, cgroup v2 before v1, or takes `hierarchy` if it is given. `name`
    /// must be unique on the machine.
    pub(super) fn find(hierarchy: Option<&Path>, driver: CgroupDriver, name: &str) -> Self {
        let mounts: Vec<PathBuf> = match hierarchy {
            Some(path) => vec![path.to_owned()],
            None => ["", "unified", "systemd", "pids", "memory", "freezer"]
                .iter()
                .map(|name| Path::new("/sys/fs/cgroup").join(name))
                .collect(),
        };
        Self {
            top: mounts
                .iter()
                .filter(|mount| {
                    is_type(mount, CGROUP2_SUPER_MAGIC) || is_type(mount, CGROUP_SUPER_MAGIC)
                })
                .flat_map(|mount| [mount.clone(), own_directory(mount)])
                .find(|directory| writable(directory))
                .map(|directory| directory.join(name)),
            driver,
            unified: is_type(Path::new("/sys/fs/cgroup"), CGROUP2_SUPER_MAGIC),
        }
    }

    pub(super) fn is_unified(&self) -> bool {
        self.unified
    }

    pub(super) fn container(&self, pod_uid: &str, id: &str) -> Placement {
        let path = self.driver.container(pod_uid, id);
        match &self.top {
            Some(top) => Placement::Directory { top: top.clone(), path: top.join(path) },
            None => Placement::ProcFile { line: format!("0::/{path}\n") },
        }
    }

    /// Kills the processes in the pod's cgroups and removes the cgroups. Blocks.
    pub(super) fn remove_pod(&self, pod_uid: &str) {
        if let Some(top) = &self.top {
            remove(top, &top.join(self.driver.pod(pod_uid)));
        }
    }
}

fn is_type(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == kind)
}

/// This process's directory in the hierarchy at that mount: it is writable if it was delegated.
fn own_directory(mount: &Path) -> PathBuf {
    let controller = mount.file_name().unwrap_or_default().to_string_lossy();
    let lines = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = lines.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let matches = if is_type(mount, CGROUP2_SUPER_MAGIC) {
            names.is_empty()
        } else {
            names.trim_start_matches("name=").split(',').any(|name| name == controller)
        };
        matches.then(|| path.trim_start_matches('/'))
    });
    mount.join(path.unwrap_or_default())
}

/// Whether directories can be made there, and processes moved from there into them. This only asks
/// for permissions: a runtime that is killed during an attempt would leave a directory that no shim
/// knows.
fn writable(directory: &Path) -> bool {
    [directory, &directory.join("cgroup.procs")]
        .iter()
        .all(|path| access(*path, AccessFlags::W_OK).is_ok())
}

/// Where the id of one container appears.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Placement {
    /// In a cgroup of its own. The runtime owns `top` and what is below it.
    Directory { top: PathBuf, path: PathBuf },
    /// In this line, mounted over the first process's `/proc/<pid>/cgroup`.
    ProcFile { line: String },
}

impl Placement {
    /// Moves a process into the cgroup.
    pub(super) fn add(&self, pid: i32) -> anyhow::Result<()> {
        match self {
            Self::Directory { path, .. } => {
                // The removal of another container can take an empty parent away in between.
                let mut made = fs::create_dir_all(path);
                for _ in 0..16 {
                    if made.is_ok() {
                        break;
                    }
                    made = fs::create_dir_all(path);
                }
                made.and_then(|()| fs::write(path.join("cgroup.procs"), pid.to_string()))
                    .with_context(|| format!("move process {pid} to the cgroup {}", path.display()))
            }
            Self::ProcFile { line } => {
                mount_over(pid, line).with_context(|| format!("mount over /proc/{pid}/cgroup"))
            }
        }
    }

    /// Kills the processes in the cgroup, then removes it and the directories above it that are
    /// empty.
    pub(super) fn remove(&self) {
        if let Self::Directory { top, path } = self {
            remove(top, path);
        }
    }
}

/// The kernel detaches the mount together with the process's entry in `/proc`.
fn mount_over(pid: i32, line: &str) -> anyhow::Result<()> {
    let file = std::env::temp_dir().join(format!(".podsonde-cgroup-{}-{pid}", std::process::id()));
    fs::File::options().write(true).create_new(true).open(&file)?.write_all(line.as_bytes())?;
    let target = format!("/proc/{pid}/cgroup");
    let mounted = mount(Some(&file), target.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(Into::into);
    fs::remove_file(&file)?;
    mounted
}

/// Kills the processes in `path` and removes it with everything below, then the empty directories
/// above, up to `top`.
fn remove(top: &Path, path: &Path) {
    kill_and_remove(path);
    for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(top)) {
        if fs::remove_dir(directory).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            break;
        }
    }
}

fn kill_and_remove(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        kill_and_remove(&entry.path());
    }
    // A killed process leaves its cgroup a moment later: this waits for it for about a second.
    for _ in 0..500 {
        for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Ok(pid) = pid.parse::<i32>()
                && pid > 0
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                thread::sleep(Duration::from_millis(2));
            }
            _ => return,
        }
    }
}
