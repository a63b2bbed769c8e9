//! The shim: one process for each container, between it and the runtime, as with containerd.
//!
//! The shim starts the container, reports the result, waits for the container's end and cleans up.
//! Its stdin ties it to the runtime: once that is closed, by the runtime or by the runtime's death,
//! the shim kills the container and ends. It stays in the runtime's namespaces and keeps its
//! rights. If the shim is killed, the container dies with it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::set_child_subreaper,
};

use super::{
    launch::start_time,
    netlink::Netlink,
    plan::{Failure, LaunchReport, Plan, ProcessRef, ShimEvent, UserRange, receive, send},
};

/// The time limit of each step of making a container.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The entry point. Stdin carries the plan and then ties the shim to the runtime; events go to
/// stdout.
pub(super) fn run() -> ExitCode {
    close_inherited();
    let Ok((mut control, mut events)) = inherited() else { return ExitCode::FAILURE };
    let Ok(mut plan) = receive::<Plan>(&mut control) else { return ExitCode::FAILURE };
    let outcome = supervise(&mut plan, &control, &mut events);
    end_children();
    plan.placement.remove();
    // A failure is reported last: nothing of the container is left when the runtime learns of it.
    if let Err(failure) = outcome {
        let _ = send(&mut events, &ShimEvent::Failed(failure));
    }
    ExitCode::SUCCESS
}

/// Closes descriptors that the runtime inherited itself, as containers must not have them. This
/// process has opened nothing but the standard streams yet.
fn close_inherited() {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The descriptor of the listing itself is closed already.
        let _ = nix::unistd::close(fd);
    }
}

fn inherited() -> io::Result<(File, File)> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let events = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((File::from(control), File::from(events)))
}

fn supervise(plan: &mut Plan, control: &File, events: &mut File) -> Result<(), Failure> {
    // When the launcher ends, the container's first process becomes a child of the shim, and so do
    // orphans of the container in the runtime's pid namespace.
    set_child_subreaper(rustix::process::Pid::from_raw(1)).context("become a subreaper")?;
    let signals = SigSet::from(Signal::SIGCHLD);
    signals.thread_block().context("block SIGCHLD")?;
    let children = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("make a signalfd")?;
    let container = start(plan)?;
    // If the runtime has ended, the other end of stdin shows it, too.
    let _ = send(events, &ShimEvent::Started(container));
    let code = wait(container, control, &children).context("wait for the container")?;
    let _ = send(events, &ShimEvent::Exited(code));
    Ok(())
}

/// Makes the container and executes its program.
fn start(plan: &mut Plan) -> Result<ProcessRef, Failure> {
    let (mut channel, theirs) = UnixStream::pair().context("make a socket pair")?;
    channel.set_read_timeout(Some(STEP_TIMEOUT)).context("set a timeout")?;
    let mut launcher = Command::new("/proc/self/exe")
        .args([super::HIDDEN, "launch"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .context("start the launcher")?;
    send(&mut channel, &plan).context("send the plan to the launcher")?;
    let pid = loop {
        match receive(&mut channel).context("the launcher ended unexpectedly")? {
            LaunchReport::MapUsers => {
                let range = plan.namespaces.user.context("no user range in the plan")?;
                map_users(&launcher, range).context("map the users of the pod")?;
                send(&mut channel, &()).context("answer the launcher")?;
            }
            LaunchReport::Forked(pid) => break pid,
            LaunchReport::Failed(failure) => return Err(failure),
            LaunchReport::Executing => {
                return Err(anyhow!("unexpected report of the launcher").into());
            }
        }
    };
    launcher.wait().context("wait for the launcher")?;

    // The first process waits for its plan and nobody else can reap it, so that its pid stays its
    // own.
    let container = ProcessRef { pid, start_time: start_time(pid)? };
    plan.placement.add(pid)?;
    if let Some(network) = plan.sandbox.as_mut().and_then(|sandbox| sandbox.network.as_mut()) {
        // Without veth in the kernel, the pod still has its address, on `lo`.
        network.host = network.host.filter(|host| connect_pod(pid, *host).is_ok());
    }
    send(&mut channel, &plan).context("send the plan to the container")?;
    match receive(&mut channel).context("the container's first process ended unexpectedly")? {
        LaunchReport::Executing => {}
        LaunchReport::Failed(failure) => return Err(failure),
        LaunchReport::MapUsers | LaunchReport::Forked(_) => {
            return Err(anyhow!("unexpected report of the container").into());
        }
    }
    // A successful execve closes the channel.
    match receive(&mut channel) {
        Ok(LaunchReport::Failed(failure)) => Err(failure),
        Ok(_) => Err(anyhow!("unexpected report of the container").into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(container),
        Err(error) => Err(anyhow!(error).context("wait for the program's execution").into()),
    }
}

fn map_users(launcher: &Child, range: UserRange) -> io::Result<()> {
    let map = format!("0 {} {}", range.base, range.size);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", launcher.id()), &map)?;
    }
    Ok(())
}

/// Makes `eth0` in the pod and its peer on the host. Both go with the pod's network namespace.
fn connect_pod(pid: i32, host: std::net::Ipv4Addr) -> io::Result<()> {
    let pid = u32::try_from(pid).map_err(io::Error::other)?;
    // An interface name has at most 15 bytes. The address is unique to the pod, and so is this
    // name.
    let interface = format!("pods{:08x}", host.to_bits());
    let mut netlink = Netlink::open()?;
    netlink.veth(&interface, "eth0", pid)?;
    netlink.address(&interface, host, 31)?;
    netlink.up(&interface)
}

/// Waits until the container's first process has ended, by itself or because the runtime closed
/// `control`, and returns its exit code. Reaps orphans meanwhile.
fn wait(container: ProcessRef, control: &File, children: &SignalFd) -> anyhow::Result<i32> {
    let pid = Pid::from_raw(container.pid);
    let mut tied = true;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(ended, code)) if ended == pid => return Ok(code),
                Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => {
                    return Ok(128 + signal as i32);
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut fds = vec![PollFd::new(children, PollFlags::IN)];
        // A closed stream is always ready and would make this loop spin.
        if tied {
            fds.push(PollFd::new(control, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        tied = tied && fds.iter().skip(1).all(|fd| fd.revents().is_empty());
        while children.read_signal()?.is_some() {}
        if !tied {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Kills and reaps all children, and the orphans that become children meanwhile.
fn end_children() {
    loop {
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
