//! What the runtime tells the processes that make a container, and what they answer.
//!
//! Everything is one frame: a length of four bytes, big endian, and JSON.

use std::{
    io::{self, Read, Write},
    net::Ipv4Addr,
    path::PathBuf,
};

use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::cgroup::Placement;

/// Longest frame in bytes: a container's whole plan, environment included.
const MAX_FRAME: usize = 1 << 20;

/// One container, or the pause process that holds a sandbox's namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Where its container id shows.
    pub placement: Placement,
    /// Namespaces to enter and to make.
    pub namespaces: NamespacePlan,
    /// Its file tree.
    pub root: RootPlan,
    /// Its program.
    pub process: ProcessPlan,
    /// Only for the pause process.
    pub sandbox: Option<SandboxPlan>,
}

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Namespace {
    Cgroup,
    Ipc,
    Net,
    Pid,
    User,
    Uts,
}

impl Namespace {
    fn flag(self) -> CloneFlags {
        match self {
            Self::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
            Self::Net => CloneFlags::CLONE_NEWNET,
            Self::Pid => CloneFlags::CLONE_NEWPID,
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
        }
    }

    /// The flags of `setns` and `unshare` for all of `kinds`.
    pub(super) fn flags(kinds: &[Self]) -> CloneFlags {
        kinds.iter().map(|kind| kind.flag()).collect()
    }
}

/// A process, named so that another one with the same pid is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRef {
    /// As the runtime sees it.
    pub pid: i32,
    /// In clock ticks since boot, as in `/proc/<pid>/stat`.
    pub start_time: u64,
}

/// Namespaces that a container gets; what is in neither list is the runtime's own.
/// The mount namespace is always new.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct NamespacePlan {
    /// Entered, those of the first process first.
    pub join: Vec<(ProcessRef, Vec<Namespace>)>,
    /// Made after that.
    pub create: Vec<Namespace>,
    /// Set if the pod has a user namespace.
    pub user: Option<UserRange>,
}

/// The users of a pod's user namespace: 0 to `size` inside are `base` to `base + size` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UserRange {
    pub base: u32,
    pub size: u32,
}

/// A container's file tree: a file system in memory with bind mounts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RootPlan {
    /// Where the podsonde binary is found in it.
    pub program: String,
    /// Whether the host's programs and libraries are bound into it.
    pub host_programs: bool,
    /// Directories to make.
    pub directories: Vec<String>,
    /// Text files to make: path and content.
    pub files: Vec<(String, String)>,
    /// Volumes.
    pub mounts: Vec<BindMount>,
    /// Whether the tree is read-only once made.
    pub read_only: bool,
    /// Whether `/proc` is the runtime's, because the pid namespace is.
    pub host_proc: bool,
    /// Whether `/proc/sys` is read-only.
    pub protect_proc: bool,
}

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BindMount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// A container's program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProcessPlan {
    /// Not empty.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The bounding set as in `/proc/<pid>/status`; none leaves the runtime's.
    pub capabilities: Option<u64>,
    pub no_new_privs: bool,
    /// Whether reading from stdin waits instead of ending.
    pub stdin: bool,
}

/// What only the sandbox's first process sets up.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxPlan {
    /// For a new uts namespace.
    pub hostname: Option<String>,
    /// For a new network namespace.
    pub network: Option<PodNetwork>,
}

/// A pod's address.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct PodNetwork {
    pub address: Ipv4Addr,
    /// The host's end of a pair of interfaces, with which the address shares a /31. Without it the address is a
    /// second one of `lo`: all that is possible without root, and out of reach from outside.
    pub host: Option<Ipv4Addr>,
}

/// What the launcher and the container's first process say to the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum LaunchReport {
    /// The user namespace is made and wants its range.
    MapUsers,
    /// The container's first process exists, with this pid outside. It waits for its plan.
    Forked(i32),
    /// The next thing is `execve`: the channel then closes, or a failure follows.
    Executing,
    /// The end.
    Failed(Failure),
}

/// What the shim says to the runtime.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ShimEvent {
    /// The container's program was executed.
    Started(ProcessRef),
    /// The container does not exist.
    Failed(Failure),
    /// The container's first process has ended, with this code, or 128 + n for signal n.
    Exited(i32),
}

/// Why a container was not started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    /// It could not be made: the failed operation and its error.
    Create(String),
    /// Its program could not be executed, in runc's words.
    Execute(String),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Create(format!("{error:#}"))
    }
}

/// `message` as a frame.
///
/// # Errors
/// If it is longer than a frame may be.
pub(super) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "plan exceeds 1 MiB"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The length of the frame's body that these four bytes announce.
///
/// # Errors
/// If it is longer than a frame may be.
pub(super) fn body_length(header: [u8; 4]) -> io::Result<usize> {
    usize::try_from(u32::from_be_bytes(header))
        .ok()
        .filter(|length| *length <= MAX_FRAME)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame exceeds 1 MiB"))
}

/// Writes one frame.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// Reads one frame, and nothing beyond it.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let mut body = vec![0; body_length(header)?];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
