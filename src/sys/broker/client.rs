//! The agent's side of the broker.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use super::{
    ARGUMENT, enter,
    wire::{Hello, MAX_REPLY, Purpose, Reply, Request},
};
use crate::{
    domain::evidence::Evidence,
    sys::{SysError, ffi, process::Pidfd, socket::SocketKind},
};

/// How long to wait for a reply: longer than the broker waits for an entry.
const REPLY_DEADLINE: Duration = Duration::from_secs(enter::DEADLINE.as_secs() + 1);
/// How long the broker may take to get ready.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// The broker, as the agent sees it. It ends when this is dropped.
#[derive(Debug)]
pub struct Broker {
    /// One request at a time.
    socket: Mutex<Socket>,
    child: Mutex<Child>,
    pidfd: Pidfd,
    hello: Hello,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    last_id: u64,
}

impl Broker {
    /// Starts the broker from this program and waits until it is ready. To be called while the
    /// process still has what the broker needs.
    ///
    /// # Errors
    /// If it cannot be executed, or cannot confine itself.
    pub fn start() -> Result<Self, SysError> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(SysError::of("socketpair", "the broker"))?;
        // What the container runtime may have left open is not for a child; the broker closes it
        // also by itself.
        ffi::inherit_only_stdio().map_err(SysError::of("close_range", "CLOSE_RANGE_CLOEXEC"))?;
        // A group of its own, so that a terminal's Ctrl-C reaches only the agent, which drains.
        let child = Command::new("/proc/self/exe")
            .arg0("podsonde-agent")
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| failed("execve", Errno::from_io_error(&e).unwrap_or(Errno::NOEXEC)))?;
        let pidfd = Pidfd::open(child.id())?;
        let socket = Socket { fd: ours, last_id: 0 };
        let hello = match socket.reply(0, Instant::now() + START_DEADLINE)? {
            (Reply::Hello(hello), _) => hello,
            (Reply::Failure(error), _) => return Err(error),
            _ => return Err(failed("broker", Errno::PROTO)),
        };
        Ok(Self { socket: Mutex::new(socket), child: Mutex::new(child), pidfd, hello })
    }

    /// What it said of itself.
    pub fn hello(&self) -> Hello {
        self.hello
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        self.pidfd.is_alive()
    }

    /// Waits until it has ended, and takes leave of its process.
    ///
    /// # Errors
    /// If the runtime cannot wait for it.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.try_clone()?.ended().await?;
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().map(drop)
    }

    pub(super) fn evidence(&self, pidfd: BorrowedFd<'_>) -> Result<Evidence, SysError> {
        match self.ask(Purpose::Evidence, pidfd)? {
            (Reply::Evidence(evidence), _) => Ok(evidence),
            (Reply::Failure(error), _) => Err(error),
            _ => Err(failed("broker", Errno::PROTO)),
        }
    }

    pub(super) fn socket(
        &self,
        pidfd: BorrowedFd<'_>,
        kind: SocketKind,
    ) -> Result<OwnedFd, SysError> {
        match self.ask(Purpose::Socket(kind), pidfd)? {
            (Reply::Socket, Some(socket)) => Ok(socket),
            (Reply::Failure(error), _) => Err(error),
            // Also where this process may have no more descriptors: the kernel then leaves the
            // socket out.
            (Reply::Socket, None) => Err(failed("broker", Errno::MFILE)),
            _ => Err(failed("broker", Errno::PROTO)),
        }
    }

    fn ask(
        &self,
        purpose: Purpose,
        pidfd: BorrowedFd<'_>,
    ) -> Result<(Reply, Option<OwnedFd>), SysError> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + REPLY_DEADLINE;
        let id = socket.last_id.wrapping_add(1);
        socket.last_id = id;
        socket.request(Request { id, purpose }, pidfd)?;
        socket.reply(id, deadline)
    }
}

impl Socket {
    fn request(&self, request: Request, pidfd: BorrowedFd<'_>) -> Result<(), SysError> {
        let message = request.encode();
        let rights = [pidfd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&rights)) {
            return Err(failed("broker", Errno::MSGSIZE));
        }
        // Every earlier request was read or given up after seconds: a full socket means that the
        // broker hangs.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.fd, &[io::IoSlice::new(&message)], &mut control, flags) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(failed("broker", Errno::TIMEDOUT)),
            Err(errno) => Err(failed("broker", errno)),
        }
    }

    /// The reply to the request of this id, and the descriptor that came with it. Older ones, whose
    /// deadline had passed, are skipped.
    fn reply(&self, id: u64, deadline: Instant) -> Result<(Reply, Option<OwnedFd>), SysError> {
        let mut buffer = vec![0; MAX_REPLY];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| failed("broker", Errno::INVAL))?;
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Err(failed("broker", Errno::TIMEDOUT)),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed("poll", errno)),
            }
            // Room for one descriptor; the kernel closes what finds none.
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received =
                recvmsg(&self.fd, &mut [io::IoSliceMut::new(&mut buffer)], &mut control, flags);
            let length = match received.map(|received| received.bytes) {
                Ok(0) => return Err(failed("broker", Errno::PIPE)),
                Ok(length) => length,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(errno) => return Err(failed("broker", errno)),
            };
            let mut opened = None;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    opened = rights.last();
                }
            }
            let message = buffer.get(..length).unwrap_or_default();
            let (of, reply) = Reply::decode(message).map_err(|errno| failed("broker", errno))?;
            if of == id {
                return Ok((reply, opened));
            }
        }
    }
}

fn failed(op: &'static str, errno: Errno) -> SysError {
    SysError::new(op, "the broker", errno)
}
