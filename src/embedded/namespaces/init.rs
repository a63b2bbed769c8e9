//! The container's first process, until it executes the container's program. It starts in all
//! namespaces but the mount and the cgroup namespace, which it makes itself, and then drops the
//! privileges that the container must not have.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{
        AccessFlags, Gid, Uid, chdir, eaccess, pivot_root, setgroups, sethostname, setresgid,
        setresuid, setsid,
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, set_parent_process_death_signal},
    thread::{
        CapabilitySet, capabilities, capability_is_in_bounding_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

use super::{
    launch::inherited_channel,
    netlink::Netlink,
    plan::{Failure, LaunchReport, Namespace, Plan, ProcessPlan, SandboxPlan, receive, send},
    rootfs::{STAGE, make_read_only},
};

/// The entry point. Stdin is the channel to the shim. Returns only if the program was not executed.
pub(super) fn run() -> ExitCode {
    let Ok(mut channel) = inherited_channel() else { return ExitCode::FAILURE };
    let failure = match prepare(&mut channel) {
        Ok(Some(plan)) => match execute(&plan.process, &mut channel) {
            Ok(never) => match never {},
            Err(failure) => failure,
        },
        // The shim has ended.
        Ok(None) => return ExitCode::FAILURE,
        Err(error) => error.into(),
    };
    let _ = send(&mut channel, &LaunchReport::Failed(failure));
    ExitCode::FAILURE
}

/// Waits for the plan and sets up the container. None if the shim ended meanwhile.
fn prepare(channel: &mut UnixStream) -> anyhow::Result<Option<Plan>> {
    // The plan arrives once the launcher has ended and this process is the shim's child.
    let plan: Plan = receive(channel).context("read the plan")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to end with the shim")?;
    if is_closed(channel)? {
        return Ok(None);
    }
    setsid().context("make a session")?;
    let mut flags = CloneFlags::CLONE_NEWNS;
    if plan.namespaces.create.contains(&Namespace::Cgroup) {
        flags |= CloneFlags::CLONE_NEWCGROUP;
    }
    unshare(flags).context("make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
    // A mount that came from a less privileged namespace is locked and cannot become the root; a
    // bind mount of it can.
    let copy = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(STAGE), STAGE, None::<&str>, copy, None::<&str>).context("copy the root mount")?;
    mount_kernel_files(&plan)?;
    if let Some(sandbox) = &plan.sandbox {
        set_up_sandbox(sandbox)?;
    }
    if plan.root.protect_proc {
        protect_proc()?;
    }
    chdir(STAGE).context("change to the root")?;
    pivot_root(".", ".").context("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leave the host's root")?;
    if plan.root.read_only {
        make_read_only(Path::new("/")).context("make the root read-only")?;
    }
    Ok(Some(plan))
}

/// Whether the shim has ended: no signal tells of a death before the death signal was requested.
fn is_closed(channel: &UnixStream) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(channel, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).context("look for the shim")?;
    Ok(fds.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)))
}

fn mount_kernel_files(plan: &Plan) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    if !plan.root.host_proc {
        mount(
            Some("proc"),
            &staged("/proc"),
            Some("proc"),
            flags | MsFlags::MS_NODEV,
            None::<&str>,
        )
        .context("mount proc")?;
    }
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    mount(Some("devpts"), &staged("/dev/pts"), Some("devpts"), flags, options)
        .context("mount devpts")
}

fn staged(path: &str) -> PathBuf {
    PathBuf::from(format!("{STAGE}{path}"))
}

fn set_up_sandbox(sandbox: &SandboxPlan) -> anyhow::Result<()> {
    if let Some(hostname) = &sandbox.hostname {
        sethostname(hostname).context("set the hostname")?;
    }
    let Some(network) = sandbox.network else { return Ok(()) };
    let mut netlink = Netlink::open().context("open a netlink socket")?;
    netlink.up("lo").context("take lo up")?;
    match network.host {
        None => netlink.address("lo", network.address, 32).context("address of lo")?,
        Some(host) => {
            netlink.address("eth0", network.address, 31).context("address of eth0")?;
            netlink.up("eth0").context("take eth0 up")?;
            netlink.default_route(host).context("default route")?;
        }
    }
    // containerd does the same: ports below 1024 need no privilege in a pod.
    fs::write(staged("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "0")
        .context("unprivileged ports")
}

fn protect_proc() -> anyhow::Result<()> {
    for path in ["/proc/sys", "/proc/sysrq-trigger"].map(staged) {
        // A kernel without CONFIG_MAGIC_SYSRQ does not have the file.
        if path.exists() {
            mount(Some(&path), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .and_then(|()| make_read_only(&path))
                .with_context(|| format!("make {} read-only", path.display()))?;
        }
    }
    Ok(())
}

enum Never {}

fn execute(process: &ProcessPlan, channel: &mut UnixStream) -> Result<Never, Failure> {
    // runc creates a missing working directory.
    let _ = fs::create_dir_all(&process.working_dir);
    chdir(process.working_dir.as_str())
        .with_context(|| format!("change to the working directory {}", process.working_dir))?;
    let stdin = stdin(process.stdin).context("open stdin")?;
    drop_privileges(process)?;
    let [name, arguments @ ..] = process.argv.as_slice() else {
        return Err(Failure::Execute("no command specified".to_owned()));
    };
    let program = find_program(name, &process.env).map_err(Failure::Execute)?;
    send(channel, &LaunchReport::Executing).context("report to the shim")?;
    let error = Command::new(&program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(process.env.iter().map(|(name, value)| (name, value)))
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .exec();
    Err(Failure::Execute(format!("exec {}: {}", program.display(), describe(&error))))
}

/// An open stdin is a pipe whose other end the container itself holds: a read waits until the
/// container ends.
fn stdin(open: bool) -> io::Result<Stdio> {
    if !open {
        return Ok(Stdio::null());
    }
    let (reader, _writer) = io::pipe()?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    Ok(Stdio::from(OwnedFd::from(OpenOptions::new().read(true).write(true).open(path)?)))
}

fn drop_privileges(process: &ProcessPlan) -> anyhow::Result<()> {
    if let Some(kept) = process.capabilities {
        let kept = CapabilitySet::from_bits_retain(kept);
        // The kernel answers a question about an unknown capability with an error.
        for bit in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            if !kept.contains(bit) && capability_is_in_bounding_set(bit).unwrap_or(false) {
                remove_capability_from_bounding_set(bit).context("drop a capability")?;
            }
        }
        let mut sets = capabilities(None).context("read the capabilities")?;
        sets.inheritable = CapabilitySet::empty();
        set_capabilities(None, sets).context("set the capabilities")?;
    }
    let groups: Vec<Gid> = process.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match setgroups(&groups) {
        // An ordinary user cannot change the groups.
        Err(Errno::EPERM) if groups.is_empty() => {}
        set => set.context("set the supplementary groups")?,
    }
    if (process.uid, process.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
        setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid)).with_context(|| {
            format!(
                "become user {uid}, group {gid} (without root, a pod has only user and group 0)"
            )
        })?;
        // The kernel drops the death signal when the user changes.
        set_parent_process_death_signal(Some(Signal::KILL)).context("ask to end with the shim")?;
    }
    if process.no_new_privs {
        set_no_new_privs(true).context("set no_new_privs")?;
    }
    Ok(())
}

/// Finds the program as runc does, with its error messages.
fn find_program(name: &str, env: &[(String, String)]) -> Result<PathBuf, String> {
    let fail = |what: &str| format!("exec: {name:?}: {what}");
    let path = if name.contains('/') {
        let path = PathBuf::from(name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Err(fail("is a directory")),
            Ok(_) if eaccess(&path, AccessFlags::X_OK).is_err() => {
                return Err(fail("permission denied"));
            }
            Ok(_) => path,
            Err(error) => return Err(fail(&format!("stat {name}: {}", describe(&error)))),
        }
    } else {
        let search = env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value);
        search
            .split(':')
            .map(|directory| Path::new(directory).join(name))
            .find(|path| path.is_file() && eaccess(path, AccessFlags::X_OK).is_ok())
            .ok_or_else(|| fail("executable file not found in $PATH"))?
    };
    // The C library would give a file of an unknown format to a shell; runc does not.
    let mut magic = [0; 4];
    let known = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .and_then(|mut file: File| file.read(&mut magic))
        .map_or(true, |_| magic == *b"\x7fELF" || magic.starts_with(b"#!"));
    if known { Ok(path) } else { Err(format!("exec {}: exec format error", path.display())) }
}

fn describe(error: &io::Error) -> String {
    // The messages of Go's errno, which runc shows.
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |errno| Errno::from_raw(errno).desc().to_lowercase())
}
