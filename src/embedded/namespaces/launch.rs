//! The launcher enters and makes a container's namespaces, forks the container's first process into
//! them, and ends.
//!
//! It is a process of its own between the shim and the container: the shim must keep the runtime's
//! namespaces and rights, and only a forked process enters a pid namespace.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, anyhow, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};

use super::{
    plan::{LaunchReport, Namespace, Plan, ProcessRef, receive, send},
    rootfs,
};

/// The entry point. Stdin is the channel to the shim.
pub(super) fn run() -> ExitCode {
    let Ok(mut channel) = inherited_channel() else { return ExitCode::FAILURE };
    let report = match launch(&mut channel) {
        Ok(pid) => LaunchReport::Forked(pid),
        Err(error) => LaunchReport::Failed(error.into()),
    };
    // An error means that the shim has ended.
    let sent = send(&mut channel, &report);
    if sent.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The channel that the parent process passed as stdin.
pub(super) fn inherited_channel() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

fn launch(channel: &mut UnixStream) -> anyhow::Result<i32> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to end with the shim")?;
    let plan: Plan = receive(channel).context("read the plan")?;

    umask(Mode::from_bits_truncate(0o022));
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
    rootfs::uncover_proc()?;
    rootfs::stage(&plan.root, plan.namespaces.user)?;

    for (process, kinds) in &plan.namespaces.join {
        let pidfd = open(*process)?;
        setns(&pidfd, Namespace::flags(kinds))
            .with_context(|| format!("enter {kinds:?} of process {}", process.pid))?;
        if kinds.contains(&Namespace::User) {
            become_root()?;
        }
    }
    let mut create = plan.namespaces.create;
    if create.contains(&Namespace::User) {
        unshare(CloneFlags::CLONE_NEWUSER).context("make a user namespace")?;
        send(channel, &LaunchReport::MapUsers).context("ask for the user mapping")?;
        receive::<()>(channel).context("wait for the user mapping")?;
        become_root()?;
    }
    // The container's first process makes the cgroup namespace, whose root is its maker's cgroup.
    create.retain(|kind| !matches!(kind, Namespace::User | Namespace::Cgroup));
    unshare(Namespace::flags(&create)).with_context(|| format!("make {create:?}"))?;

    let child = Command::new("/proc/self/exe")
        .args([super::HIDDEN, "init"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(channel.try_clone()?)))
        .stdout(Stdio::null())
        .spawn()
        .context("fork the container's first process")?;
    i32::try_from(child.id()).map_err(|_| anyhow!("pid {} is out of range", child.id()))
}

/// A pidfd of this process, and of no other with its pid.
fn open(process: ProcessRef) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(process.pid).context("pid 0")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("open process {}", process.pid))?;
    if start_time(process.pid)? != process.start_time {
        bail!("process {} has ended", process.pid);
    }
    Ok(pidfd)
}

/// The start time of a process, in clock ticks since boot.
pub(super) fn start_time(pid: i32) -> anyhow::Result<u64> {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    Ok(stat.with_context(|| format!("read /proc/{pid}/stat"))?.starttime)
}

/// Becomes user 0 of the user namespace that was just entered.
fn become_root() -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    // A namespace that denies setgroups cannot name any group to drop.
    let _ = setgroups(&[]);
    setresgid(gid, gid, gid).context("become group 0 of the user namespace")?;
    setresuid(uid, uid, uid).context("become user 0 of the user namespace")
}
