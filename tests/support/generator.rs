//! Packets with sequence numbers, sent from inside a namespace at a pace.
//!
//! They leave by the namespace's own interface: what goes out is seen by every tap before anything
//! can lose it, so the number sent is exactly what a capture must account for.

use std::{
    io::IoSlice,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, bind, sendmmsg};
use podsonde::sys::{broker::NamespaceEntry, socket::SocketKind};

/// Where the sequence number is: behind the headers of Ethernet, IPv4 and UDP.
pub const SEQUENCE: usize = 42;
/// The port that frames go to.
pub const PORT: u16 = 40_404;

/// A socket that sends frames.
pub struct Generator {
    socket: OwnedFd,
    next: u64,
}

impl Generator {
    /// Sends from the interface of this name and index, in the network namespace of a process.
    pub fn new(pid: u32, index: u32) -> Self {
        let socket = NamespaceEntry::InProcess
            .socket(std::os::fd::AsFd::as_fd(&super::netns::pidfd_of(pid)), SocketKind::Packets);
        let socket = socket.expect("a packet socket");
        bind(socket.as_raw_fd(), &address(index)).expect("bind");
        Self { socket, next: 0 }
    }

    /// Sends `count` frames of `size` bytes, Ethernet's header included, at `per_second`; 0: as
    /// fast as it goes.
    pub fn send(&mut self, count: u64, size: usize, per_second: u64) {
        const BATCH: u64 = 64;
        let began = Instant::now();
        let mut frames: Vec<Vec<u8>> = (0..BATCH).map(|_| udp(size, PORT)).collect();
        let mut sent = 0;
        while sent < count {
            let batch = usize::try_from(BATCH.min(count - sent)).unwrap();
            for frame in &mut frames[..batch] {
                frame[SEQUENCE..SEQUENCE + 8].copy_from_slice(&self.next.to_be_bytes());
                self.next += 1;
            }
            self.send_frames(&frames[..batch]);
            sent += batch as u64;
            if let Some(due) = (sent * 1_000_000_000).checked_div(per_second) {
                let early = Duration::from_nanos(due).saturating_sub(began.elapsed());
                if !early.is_zero() {
                    std::thread::sleep(early);
                }
            }
        }
    }

    /// Sends these frames as they are.
    pub fn send_frames(&self, frames: &[Vec<u8>]) {
        let mut at = 0;
        while at < frames.len() {
            let slices: Vec<[IoSlice<'_>; 1]> =
                frames[at..].iter().map(|frame| [IoSlice::new(frame)]).collect();
            let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(slices.len(), None);
            let none: Vec<Option<SockaddrStorage>> = vec![None; slices.len()];
            let sent = sendmmsg(
                self.socket.as_raw_fd(),
                &mut headers,
                &slices,
                none,
                [],
                MsgFlags::empty(),
            );
            match sent {
                Ok(sent) => at += sent.count(),
                Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
                Err(error) => panic!("sendmmsg: {error}"),
            }
        }
    }
}

fn address(index: u32) -> SockaddrStorage {
    use nix::{libc, sys::socket::SockaddrLike};
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        // Nothing is to be received.
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index).expect("an index"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    #[allow(unsafe_code)]
    // SAFETY: a live sockaddr of that length.
    unsafe { SockaddrStorage::from_raw((&raw const address).cast(), Some(length)) }
        .expect("an address")
}

/// An Ethernet frame of `size` bytes with a UDP datagram to that port.
pub fn udp(size: usize, port: u16) -> Vec<u8> {
    assert!(size >= SEQUENCE + 8);
    let number = |n: usize| u16::try_from(n).expect("fits").to_be_bytes();
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 8, 0];
    let mut ip = vec![0x45, 0];
    ip.extend(number(size - 14));
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    frame.extend(ip);
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(number(size - 34));
    frame.extend([0, 0]);
    frame.resize(size, 0x55);
    frame
}

/// The frame with an 802.1Q tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &0x8100_u16.to_be_bytes(), &vlan.to_be_bytes(), &frame[12..]].concat()
}
