//! The messages between the runtime and the processes that make a container.
//!
//! Each message is one frame: its length in four bytes, big endian, then JSON.

use std::{
    io::{self, Read, Write},
    net::Ipv4Addr,
    path::PathBuf,
};

use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::cgroup::Placement;

/// The longest frame in bytes: it holds a container's whole plan with its environment.
const MAX_FRAME: usize = 1 << 20;

/// The plan of one container, or of the pause process that holds a sandbox's namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Where the container's id appears.
    pub placement: Placement,
    /// The namespaces to enter and to make.
    pub namespaces: NamespacePlan,
    /// The container's file tree.
    pub root: RootPlan,
    /// The container's program.
    pub process: ProcessPlan,
    /// Set for the pause process only.
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

/// A process by pid and start time, which no other process with the same pid has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRef {
    /// The pid in the runtime's pid namespace.
    pub pid: i32,
    /// The start time in clock ticks since boot, from `/proc/<pid>/stat`.
    pub start_time: u64,
}

/// The namespaces of a container. A kind in neither list is the runtime's own. The mount namespace
/// is always new.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct NamespacePlan {
    /// The namespaces to enter, those of the first process first.
    pub join: Vec<(ProcessRef, Vec<Namespace>)>,
    /// The namespaces to make after that.
    pub create: Vec<Namespace>,
    /// The users of the user namespace, if the pod has one.
    pub user: Option<UserRange>,
}

/// The users of a pod's user namespace: 0 to `size` inside are `base` to `base + size` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UserRange {
    pub base: u32,
    pub size: u32,
}

/// A container's file tree: a tmpfs with bind mounts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RootPlan {
    /// The path of the podsonde binary in the tree.
    pub program: String,
    /// Whether the host's programs and libraries are bound into the tree.
    pub host_programs: bool,
    /// Directories to make.
    pub directories: Vec<String>,
    /// The text files to make: paths and contents.
    pub files: Vec<(String, String)>,
    /// Volumes.
    pub mounts: Vec<BindMount>,
    /// Whether the tree is read-only once made.
    pub read_only: bool,
    /// Whether `/proc` is the runtime's, as the pid namespace is.
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
    /// The bounding set, as `/proc/<pid>/status` shows it; none leaves the runtime's.
    pub capabilities: Option<u64>,
    pub no_new_privs: bool,
    /// Whether a read from stdin waits; otherwise it ends at once.
    pub stdin: bool,
}

/// The settings of a sandbox, which only its first process applies.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxPlan {
    /// The host name of a new uts namespace.
    pub hostname: Option<String>,
    /// The address of a new network namespace.
    pub network: Option<PodNetwork>,
}

/// A pod's address.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct PodNetwork {
    pub address: Ipv4Addr,
    /// The address of the host's end of the veth pair, which shares a /31 with the pod's address.
    /// Without it the pod's address is a second one of `lo`, which needs no root but cannot be
    /// reached from outside.
    pub host: Option<Ipv4Addr>,
}

/// The messages of the launcher and of the container's first process to the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum LaunchReport {
    /// The user namespace exists and waits for its range of users.
    MapUsers,
    /// The container's first process exists, with this pid outside, and waits for its plan.
    Forked(i32),
    /// `execve` comes next: the channel then closes, or a failure follows.
    Executing,
    /// The container was not made.
    Failed(Failure),
}

/// The shim's messages to the runtime.
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
    /// The container could not be made: the failed operation and its error.
    Create(String),
    /// The program could not be executed: runc's message.
    Execute(String),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Create(format!("{error:#}"))
    }
}

/// Encodes a message as a frame.
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

/// The length of the body that a frame's first four bytes announce.
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
