//! The broker's own side: it gives up what it does not need, then answers one request after the
//! other until its socket closes.

use std::{
    io::{IoSlice, IoSliceMut, stdin},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::ExitCode,
    time::Duration,
};

use nix::sys::{
    resource::{Resource, setrlimit},
    signal::{SigSet, Signal},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::readlinkat,
    io::{Errno, FdFlags, fcntl_setfd},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, recvmsg, sendmsg,
        sockopt,
    },
    process::set_parent_process_death_signal,
    thread::CapabilitySet,
};

use super::{
    enter, evidence,
    wire::{Hello, Purpose, REQUEST, Reply, Request},
};
use crate::sys::{SysError, confine, ffi, socket};

/// What the broker keeps of what the agent has: entering namespaces, of other users' processes, and
/// packet sockets there.
const CAPABILITIES: CapabilitySet =
    CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_PTRACE).union(CapabilitySet::NET_RAW);

/// The socket, a few for an entry, and room for those that must not have come.
const MAX_DESCRIPTORS: u64 = 64;

/// How long the agent may leave a reply unread when there is no more room for it. After that the
/// reply is lost, to the agent's harm alone.
const SEND_DEADLINE: Duration = Duration::from_secs(1);

/// Serves the agent that is at the other end of stdin, until it closes that. The process must have
/// one thread and nothing open that it needs but its stdio.
pub fn serve() -> ExitCode {
    let stdin = stdin();
    let socket = stdin.as_fd();
    match prepare(socket).and_then(|hello| reply(socket, 0, &Reply::Hello(hello), None)) {
        Ok(()) => run(socket),
        Err(error) => {
            // The agent says it in its log; if this is no socket, the exit code must do.
            let _ = reply(socket, 0, &Reply::Failure(error), None);
            ExitCode::FAILURE
        }
    }
}

fn prepare(socket: BorrowedFd<'_>) -> Result<Hello, SysError> {
    let failed = |errno| SysError::new("confine", "the broker", errno);
    ffi::close_beyond_stdio().map_err(failed)?;
    let is_pair = sockopt::socket_type(socket).map_err(failed)? == SocketType::SEQPACKET
        && sockopt::socket_domain(socket).map_err(failed)? == AddressFamily::UNIX;
    if !is_pair {
        return Err(failed(Errno::PROTOTYPE));
    }
    fcntl_setfd(socket, FdFlags::CLOEXEC).map_err(failed)?;
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(SEND_DEADLINE))
        .map_err(failed)?;
    // If the agent is gone already its end of the socket is, too.
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(failed)?;
    let nix = |errno: nix::errno::Errno| failed(Errno::from_raw_os_error(errno as i32));
    // What ends a terminal's or a container's processes is for the agent to handle: it drains
    // first.
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    signals.into_iter().collect::<SigSet>().thread_block().map_err(nix)?;
    setrlimit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS).map_err(nix)?;
    let confined = confine::confine(CAPABILITIES, confine::Filter::Broker)
        .map_err(|error| SysError { op: "confine", ..error })?;
    Ok(Hello {
        capabilities: confined.capabilities.bits(),
        bounded: confined.bounded,
        filtered: confined.filtered,
    })
}

fn run(socket: BorrowedFd<'_>) -> ExitCode {
    loop {
        let (id, answer) = match receive(socket) {
            Ok(Some((request, pidfd))) => (request.id, answer(request.purpose, pidfd)),
            Ok(None) => return ExitCode::SUCCESS,
            Err(Refusal::Request(id, error)) => (id, Err(error)),
            Err(Refusal::Socket) => return ExitCode::FAILURE,
        };
        let (answer, opened) = answer.unwrap_or_else(|error| (Reply::Failure(error), None));
        // The broker's own descriptor of what it has opened ends with the round.
        match reply(socket, id, &answer, opened.as_ref()) {
            Err(error) if error.errno == Errno::PIPE => return ExitCode::SUCCESS,
            // Not read in time.
            _ => {}
        }
    }
}

fn answer(purpose: Purpose, pidfd: OwnedFd) -> Result<(Reply, Option<OwnedFd>), SysError> {
    match purpose {
        Purpose::Evidence => {
            let evidence = enter::inside(pidfd, evidence::KINDS, evidence::look)?;
            Ok((Reply::Evidence(evidence), None))
        }
        Purpose::Socket(kind) => Ok((Reply::Socket, Some(socket::open_inside(pidfd, kind)?))),
    }
}

fn reply(
    socket: BorrowedFd<'_>,
    id: u64,
    reply: &Reply,
    opened: Option<&OwnedFd>,
) -> Result<(), SysError> {
    let failed = SysError::of::<Errno>("sendmsg", "the agent");
    let rights: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(failed(Errno::MSGSIZE));
    }
    let message = reply.encode(id);
    sendmsg(socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(failed)
}

enum Refusal {
    /// This request.
    Request(u64, SysError),
    /// Nothing can be received any more.
    Socket,
}

/// Waits for the next request. None if there will be none. Every descriptor that came is either
/// returned or closed.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Request, OwnedFd)>, Refusal> {
    // A longer message is cut, and said to be.
    let mut bytes = [0; REQUEST];
    // One more than there may be, to see that there are too many; the kernel closes what finds no
    // room.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            done => break done.map_err(|_| Refusal::Socket)?,
        }
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // The end, or an empty message.
    if received.bytes == 0 && is_closed(socket) {
        return Ok(None);
    }
    let refuse = |id, op, errno| Err(Refusal::Request(id, SysError::new(op, "the agent", errno)));
    if received.flags.contains(ReturnFlags::TRUNC) {
        return refuse(0, "request", Errno::MSGSIZE);
    }
    let request = match Request::decode(bytes.get(..received.bytes).unwrap_or_default()) {
        Ok(request) => request,
        Err((id, errno)) => return refuse(id, "request", errno),
    };
    match fds.pop() {
        Some(pidfd) if fds.is_empty() && !received.flags.contains(ReturnFlags::CTRUNC) => {
            if is_pidfd(&pidfd) {
                Ok(Some((request, pidfd)))
            } else {
                refuse(request.id, "pidfd", Errno::BADF)
            }
        }
        _ => refuse(request.id, "pidfd", Errno::INVAL),
    }
}

fn is_closed(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::IN | PollFlags::RDHUP)];
    let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    ready.is_err()
        || fds.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::RDHUP))
}

/// `setns` takes namespace files too, which would let the agent name a namespace instead of a
/// process. The kernel gives a pidfd this name on every file system that pidfds have been on; no
/// path looks like it.
fn is_pidfd(fd: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    readlinkat(rustix::fs::CWD, link, Vec::new())
        .is_ok_and(|name| name.as_bytes() == b"anon_inode:[pidfd]")
}
