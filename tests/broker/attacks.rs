//! The broker, alone, against an agent that has been taken over: every byte and descriptor is the
//! attacker's choice.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg,
        socketpair, sockopt,
    },
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    agent::possible,
    proc::{PATIENCE, descriptors, threads, until},
};

/// A broker, and the other end of its socket.
struct Broker {
    child: Child,
    socket: OwnedFd,
}

/// The request for evidence, by its description.
fn request(id: u64) -> Vec<u8> {
    [&[1, 1, 0, 0, 0, 0, 0, 0], &id.to_le_bytes()[..]].concat()
}

/// The request for a socket of a kind.
fn socket(id: u64, kind: u8) -> Vec<u8> {
    [&[1, 2, kind, 0, 0, 0, 0, 0], &id.to_le_bytes()[..]].concat()
}

/// Kind, operation, errno and id of a reply.
fn parse(reply: &[u8]) -> (u8, u8, i32, u64) {
    assert_eq!((reply[0], reply[3]), (1, 0), "{reply:?}");
    let errno = i32::from_le_bytes(reply[4..8].try_into().unwrap());
    (reply[1], reply[2], errno, u64::from_le_bytes(reply[8..16].try_into().unwrap()))
}

const EVIDENCE: u8 = 1;
const FAILURE: u8 = 2;
const SOCKET: u8 = 3;
const REQUEST: u8 = 0;
const PIDFD: u8 = 1;

impl Broker {
    fn start() -> Self {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_podsonde-agent"))
            .arg("namespace-broker")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE)).unwrap();
        let broker = Self { child, socket };
        let hello = broker.receive();
        assert_eq!((parse(&hello), hello.len()), ((0, 0, 0, 0), 26), "{hello:?}");
        broker
    }

    fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        sendmsg(&self.socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 128 * 1024];
        let (length, _) =
            recv(self.socket.as_fd(), buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        assert_ne!(length, 0, "the broker has ended");
        buffer[..length].to_vec()
    }

    /// A reply, and the descriptors that came with it.
    fn receive_with_descriptors(&self) -> ((u8, u8, i32, u64), Vec<OwnedFd>) {
        let mut buffer = vec![0; 128 * 1024];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        let received =
            recvmsg(&self.socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        (parse(&buffer[..received.bytes]), fds)
    }

    fn ask(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> (u8, u8, i32, u64) {
        self.send(message, fds);
        parse(&self.receive())
    }

    /// That it serves, and has neither a descriptor nor a thread more than at its start.
    fn assert_sound(&self) {
        assert_eq!(self.ask(&request(99), &[me().as_fd()]), (EVIDENCE, 0, 0, 99));
        let open = descriptors(self.child.id());
        assert_eq!(open.iter().map(|d| d.number).collect::<Vec<_>>(), [0, 1, 2], "{open:?}");
        until("its threads end", || threads(self.child.id()).len() == 1);
    }

    /// That it ends as it should when the agent is gone, and has never panicked.
    fn end(mut self) {
        drop(self.socket);
        let end = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(end.success() && stderr.is_empty(), "{end}: {stderr}");
    }
}

fn me() -> OwnedFd {
    pidfd_open(
        Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap(),
        PidfdFlags::NONBLOCK,
    )
    .unwrap()
}

#[test]
fn malformed_messages_are_refused() {
    if !possible() {
        return;
    }
    let broker = Broker::start();
    let me = me();
    let with = |at: usize, byte: u8| {
        let mut message = request(5);
        message[at] = byte;
        message
    };
    let size = Errno::MSGSIZE.raw_os_error();
    let table: [(&str, Vec<u8>, i32, u64); 16] = [
        ("empty", vec![], size, 0),
        ("one byte", vec![1], size, 0),
        ("one byte short", request(5)[..15].to_vec(), size, 0),
        ("one byte long", [request(5), vec![0]].concat(), size, 0),
        ("100 kB", vec![1; 100_000], size, 0),
        ("of another version", with(0, 2), Errno::PROTO.raw_os_error(), 0),
        ("of version 0", vec![0; 16], Errno::PROTO.raw_os_error(), 0),
        ("for no purpose", with(1, 0), Errno::OPNOTSUPP.raw_os_error(), 5),
        ("for an unknown purpose", with(1, 3), Errno::OPNOTSUPP.raw_os_error(), 5),
        ("for the last purpose", with(1, 255), Errno::OPNOTSUPP.raw_os_error(), 5),
        ("for no socket", socket(5, 0), Errno::INVAL.raw_os_error(), 5),
        ("for an unknown socket", socket(5, 4), Errno::INVAL.raw_os_error(), 5),
        ("for the last socket", socket(5, 255), Errno::INVAL.raw_os_error(), 5),
        ("for evidence of a socket", with(2, 1), Errno::INVAL.raw_os_error(), 5),
        ("with an argument", with(4, 1), Errno::INVAL.raw_os_error(), 5),
        ("with another argument", with(7, 255), Errno::INVAL.raw_os_error(), 5),
    ];
    for (name, message, errno, id) in &table {
        // What came along is closed all the same.
        for fds in [&[][..], &[me.as_fd()], &[me.as_fd(); 253]] {
            assert_eq!(broker.ask(message, fds), (FAILURE, REQUEST, *errno, *id), "{name}");
        }
    }
    broker.assert_sound();
    broker.end();
}

#[test]
fn sockets_are_of_the_namespace_and_bound_to_nothing() {
    if !possible() {
        return;
    }
    let broker = Broker::start();
    let mut other = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    until("it is in a namespace of its own", || {
        namespace(other.id()).is_some_and(|found| found != namespace(std::process::id()).unwrap())
    });
    let pidfd = pidfd_open(Pid::from_child(&other), PidfdFlags::empty()).unwrap();
    let of_packets =
        || std::fs::read_to_string(format!("/proc/{}/net/packet", other.id())).unwrap();
    let kinds = [
        (1, AddressFamily::PACKET, SocketType::RAW),
        (2, AddressFamily::PACKET, SocketType::DGRAM),
        (3, AddressFamily::NETLINK, SocketType::RAW),
    ];
    for (kind, family, of) in kinds {
        broker.send(&socket(6, kind), &[pidfd.as_fd()]);
        let (reply, sockets) = broker.receive_with_descriptors();
        assert_eq!((reply, sockets.len()), ((SOCKET, 0, 0, 6), 1), "{kind}");
        assert_eq!(sockopt::socket_domain(&sockets[0]).unwrap(), family);
        assert_eq!(sockopt::socket_type(&sockets[0]).unwrap(), of);
        // The kernel lists it there, and not here, with protocol and interface 0, and nothing in
        // it.
        let listed = of_packets().lines().count() - 1;
        assert_eq!(listed, usize::from(family == AddressFamily::PACKET));
        if listed == 1 {
            let fields: Vec<String> = of_packets()
                .lines()
                .nth(1)
                .unwrap()
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            assert_eq!(
                fields[3..7],
                ["0000", "0", "0", "0"],
                "protocol, interface, running, memory: {fields:?}"
            );
        }
    }
    // With evidence comes none.
    broker.send(&request(7), &[pidfd.as_fd()]);
    let (reply, sockets) = broker.receive_with_descriptors();
    assert_eq!((reply, sockets.len()), ((EVIDENCE, 0, 0, 7), 0));
    other.kill().unwrap();
    other.wait().unwrap();
    broker.assert_sound();
    broker.end();
}

#[test]
fn noise_is_refused() {
    if !possible() {
        return;
    }
    let broker = Broker::start();
    let mut noise = File::open("/dev/urandom").unwrap();
    for round in 0..2_000_usize {
        let mut message = vec![0; round % 40];
        noise.read_exact(&mut message).unwrap();
        // Half of them pass for this version, without a descriptor none does any more.
        if let (0, Some(version)) = (round % 2, message.first_mut()) {
            *version = 1;
        }
        assert_eq!(broker.ask(&message, &[]).0, FAILURE, "{message:?}");
    }
    broker.assert_sound();
    broker.end();
}

#[test]
fn only_one_pidfd_is_taken() {
    if !possible() {
        return;
    }
    let broker = Broker::start();
    let me = me();
    let (pair, _other) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let file = tempfile::tempdir().unwrap();
    // A name that a pidfd's link has.
    let named = file.path().join("anon_inode:[pidfd]");
    let others: [(&str, OwnedFd); 8] = [
        ("a file", File::create(named).unwrap().into()),
        ("a network namespace", File::open("/proc/self/ns/net").unwrap().into()),
        ("a mount namespace", File::open("/proc/self/ns/mnt").unwrap().into()),
        ("a process' directory", File::open("/proc/self").unwrap().into()),
        ("the root", File::open("/").unwrap().into()),
        ("a socket", pair),
        ("a terminal's end of nothing", File::open("/dev/null").unwrap().into()),
        ("an eventfd", rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()),
    ];
    for (name, fd) in &others {
        let refused = (FAILURE, PIDFD, Errno::BADF.raw_os_error(), 8);
        assert_eq!(broker.ask(&request(8), &[fd.as_fd()]), refused, "{name}");
    }
    let refused = (FAILURE, PIDFD, Errno::INVAL.raw_os_error(), 8);
    assert_eq!(broker.ask(&request(8), &[]), refused);
    for many in [2, 3, 64, 253] {
        assert_eq!(broker.ask(&request(8), &vec![me.as_fd(); many]), refused, "{many}");
    }
    let mut gone = Command::new("true").spawn().unwrap();
    let pidfd = pidfd_open(Pid::from_child(&gone), PidfdFlags::empty()).unwrap();
    gone.wait().unwrap();
    // setns says that there is none.
    assert_eq!(
        broker.ask(&request(8), &[pidfd.as_fd()]),
        (FAILURE, 3, Errno::SRCH.raw_os_error(), 8)
    );
    broker.assert_sound();
    broker.end();
}

#[test]
fn replies_that_nobody_reads_are_lost_to_nobody_else() {
    if !possible() {
        return;
    }
    let mut broker = Broker::start();
    let me = me();
    // Until there is no room for a request, since the broker waits for room for a reply.
    sockopt::set_socket_timeout(
        &broker.socket,
        sockopt::Timeout::Send,
        Some(Duration::from_millis(200)),
    )
    .unwrap();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let fds = vec![me.as_fd(); 64];
    let mut sent = 0_u64;
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        match sendmsg(
            &broker.socket,
            &[IoSlice::new(&request(sent))],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => sent += 1,
            // Also when this process has as many descriptors under way as it may.
            Err(Errno::AGAIN | Errno::TOOMANYREFS) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 1_000_000, "there is no end to it");
    }
    assert!(sent > 0);
    assert!(broker.child.try_wait().unwrap().is_none(), "it has ended");
    let open = descriptors(broker.child.id()).len();
    assert!(open < 8, "{open} descriptors");
    // Once it reads, the agent is served as ever.
    sockopt::set_socket_timeout(&broker.socket, sockopt::Timeout::Send, Some(PATIENCE)).unwrap();
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            loop {
                let reply = parse(&broker.receive());
                if reply.3 == u64::MAX {
                    return reply;
                }
            }
        });
        broker.send(&request(u64::MAX), &[me.as_fd()]);
        reader.join().unwrap()
    });
    assert_eq!(reader, (EVIDENCE, 0, 0, u64::MAX));
    broker.assert_sound();
    broker.end();
}

#[test]
fn it_serves_nothing_but_its_socket() {
    if !possible() {
        return;
    }
    let start = |stdin: Stdio| {
        let output = Command::new(env!("CARGO_BIN_EXE_podsonde-agent"))
            .arg("namespace-broker")
            .stdin(stdin)
            .output()
            .unwrap();
        (output.status.code(), output.stdout, output.stderr)
    };
    let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    for stdin in [Stdio::null(), Stdio::piped(), OwnedFd::from(stream).into()] {
        assert_eq!(start(stdin), (Some(1), vec![], vec![]));
    }
}
