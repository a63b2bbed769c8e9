//! The ring of a packet socket (TPACKET_V3): memory that the kernel writes packets into and this
//! process reads them from.
//!
//! The ring is a row of blocks. The kernel fills one block after the other and hands each over,
//! once it is full or some time after its first packet; the reader gives it back. While a block is
//! the reader's the kernel does not touch it, which is what makes a slice of it sound. Everything
//! inside a block is read like input: by offsets that are checked.
//!
//! <https://docs.kernel.org/networking/packet_mmap.html>
#![allow(unsafe_code)]

use std::{
    ffi::c_int,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::libc;
use rustix::io::Errno;

use crate::{
    domain::filter::{Instruction, Program},
    sys::SysError,
};

/// Size of a block. Larger than the largest frame (64 KiB of GSO) with its headers. No larger than
/// that takes: a block is handed over after its time, however little is in it, so a ring lasts for
/// as many of these as it has blocks.
pub(super) const BLOCK: usize = 128 * 1024;
/// Fewest blocks of a ring.
pub(super) const MIN_BLOCKS: usize = 8;

/// Where a block says whose it is: `tpacket_block_desc.hdr.bh1.block_status`.
const STATUS: usize = 8;
/// Size of a packet's header, `tpacket3_hdr`, which its address (`sockaddr_ll`) follows.
const HEADER: usize = 48;
const ADDRESS: usize = 20;

/// A packet socket with its ring.
#[derive(Debug)]
pub(super) struct Ring {
    socket: OwnedFd,
    memory: Memory,
    blocks: usize,
    next: usize,
    statistics: Statistics,
}

/// What the kernel has counted since the ring was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Statistics {
    /// Packets that passed the filter, those included that found no room.
    pub(super) received: u64,
    /// Packets that found no room.
    pub(super) dropped: u64,
}

/// A packet in a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'b> {
    /// Nanoseconds since 1970.
    pub(super) timestamp: u64,
    /// Length on the wire, without a VLAN tag that was taken out.
    pub(super) original_length: u32,
    /// Its bytes, from where the socket's kind has them begin.
    pub(super) data: &'b [u8],
    /// The VLAN tag that was taken out: protocol and control information.
    pub(super) vlan: Option<(u16, u16)>,
    /// Where it came from, or went to.
    pub(super) address: LinkAddress,
}

/// `struct sockaddr_ll`, as far as it says something of a packet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LinkAddress {
    /// The protocol of what follows the link layer's header.
    pub(super) protocol: u16,
    /// Index of the interface.
    pub(super) interface: u32,
    /// `ARPHRD_…` of the interface.
    pub(super) hardware: u16,
    /// For this host, for everybody, from this host.
    pub(super) packet_type: u8,
    /// Length of the link layer's address.
    pub(super) length: u8,
    /// That address.
    pub(super) address: [u8; 8],
}

impl Ring {
    /// Makes the ring of a packet socket that is bound to nothing yet, of `bytes` or, where the
    /// kernel has not so much memory, of a half, a quarter and so on. A block is handed over at the
    /// latest `retire` after its first packet.
    ///
    /// # Errors
    /// ENOMEM if the kernel has no memory at all; what the kernel says of the socket.
    pub(super) fn new(socket: OwnedFd, bytes: usize, retire: Duration) -> Result<Self, SysError> {
        set(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V3)
            .map_err(SysError::of("setsockopt", "PACKET_VERSION"))?;
        let mut blocks = bytes.div_ceil(BLOCK).max(MIN_BLOCKS);
        loop {
            match Self::allocate(&socket, blocks, retire) {
                Ok(()) => break,
                Err(Errno::NOMEM) if blocks > MIN_BLOCKS => blocks = (blocks / 2).max(MIN_BLOCKS),
                Err(errno) => return Err(SysError::new("setsockopt", "PACKET_RX_RING", errno)),
            }
        }
        let memory =
            Memory::map(&socket, blocks * BLOCK).map_err(SysError::of("mmap", "the ring"))?;
        Ok(Self { socket, memory, blocks, next: 0, statistics: Statistics::default() })
    }

    fn allocate(socket: &OwnedFd, blocks: usize, retire: Duration) -> Result<(), Errno> {
        let number = |n: usize| libc::c_uint::try_from(n).map_err(|_| Errno::INVAL);
        // The kernel checks frames' sizes for every version of the ring; this one packs packets of
        // any size.
        let frame = 4096;
        let request = libc::tpacket_req3 {
            tp_block_size: number(BLOCK)?,
            tp_block_nr: number(blocks)?,
            tp_frame_size: number(frame)?,
            tp_frame_nr: number(BLOCK / frame * blocks)?,
            tp_retire_blk_tov: libc::c_uint::try_from(retire.as_millis())
                .unwrap_or(1000)
                .clamp(1, 1000),
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)
    }

    /// Size of the ring in bytes.
    pub(super) fn size(&self) -> usize {
        self.blocks * BLOCK
    }

    /// Has the kernel run this program on every packet. It replaces the one before in one step.
    ///
    /// # Errors
    /// EINVAL if the kernel does not take it.
    pub(super) fn filter(&self, program: &Program) -> Result<(), SysError> {
        let convert =
            |i: &Instruction| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
        let mut instructions: Vec<_> = program.instructions().iter().map(convert).collect();
        let failed = SysError::of::<Errno>("setsockopt", "SO_ATTACH_FILTER");
        let Ok(len) = u16::try_from(instructions.len()) else { return Err(failed(Errno::INVAL)) };
        let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
        // The kernel copies what the pointer points to, which lives until the end of the function.
        set(&self.socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program).map_err(failed)
    }

    /// Lets packets in: of all protocols, of the interface with this index, 0 for all there are and
    /// will be.
    ///
    /// # Errors
    /// ENODEV if there is no such interface.
    pub(super) fn bind(&self, interface: u32) -> Result<(), SysError> {
        let failed = |errno| SysError::new("bind", format!("interface {interface}"), errno);
        let address = libc::sockaddr_ll {
            sll_family: libc::c_ushort::try_from(libc::AF_PACKET)
                .map_err(|_| failed(Errno::INVAL))?,
            sll_protocol: libc::c_ushort::try_from(libc::ETH_P_ALL)
                .map_err(|_| failed(Errno::INVAL))?
                .to_be(),
            sll_ifindex: c_int::try_from(interface).map_err(|_| failed(Errno::NODEV))?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = length_of::<libc::sockaddr_ll>();
        // SAFETY: the address is a live local of that length.
        let done =
            unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) };
        if done == 0 { Ok(()) } else { Err(failed(last_errno())) }
    }

    /// Whether the socket's interface is gone: the kernel then has unbound it.
    pub(super) fn is_interface_gone(&self) -> bool {
        let mut address = libc::sockaddr_ll {
            sll_family: 0,
            sll_protocol: 0,
            sll_ifindex: 0,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let mut length = length_of::<libc::sockaddr_ll>();
        // SAFETY: the pointers are to live locals, and `length` says how large the first is.
        let done = unsafe {
            libc::getsockname(self.socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length)
        };
        done == 0 && address.sll_ifindex < 0
    }

    /// The next block, if the kernel has handed it over.
    pub(super) fn block(&mut self) -> Option<Block<'_>> {
        let start = self.next.checked_mul(BLOCK)?;
        // Not `then_some`, which would make a block, and give it back, that is not the reader's.
        self.is_ours(start).then(|| Block { ring: self, start })
    }

    /// Whether the kernel has handed over `count` blocks.
    pub(super) fn has_blocks(&self, count: u32) -> bool {
        // It hands them over in turn, so the last of them is enough to look at.
        let last = usize::try_from(count)
            .ok()
            .and_then(|count| self.next.checked_add(count.checked_sub(1)?));
        let start = last.and_then(|last| (last % self.blocks).checked_mul(BLOCK));
        start.is_none_or(|start| self.is_ours(start))
    }

    fn is_ours(&self, start: usize) -> bool {
        // What the kernel wrote into the block before it said so is seen after this.
        let status = self.memory.status(start).map(|status| status.load(Ordering::Acquire));
        status.is_some_and(|status| status & libc::TP_STATUS_USER != 0)
    }

    /// What the kernel has counted so far. Reading clears the kernel's own figures, so nobody else
    /// may read them.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn statistics(&mut self) -> Result<Statistics, SysError> {
        let mut read = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = length_of::<libc::tpacket_stats_v3>();
        // SAFETY: the pointers are to live locals, and `length` says how large the first is.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut read).cast(),
                &raw mut length,
            )
        };
        if done != 0 {
            return Err(SysError::new("getsockopt", "PACKET_STATISTICS", last_errno()));
        }
        self.statistics.received += u64::from(read.tp_packets);
        self.statistics.dropped += u64::from(read.tp_drops);
        Ok(self.statistics)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A block that is the reader's. The kernel gets it back when this is dropped.
#[derive(Debug)]
pub(super) struct Block<'r> {
    ring: &'r mut Ring,
    start: usize,
}

impl Block<'_> {
    /// Its packets.
    pub(super) fn packets(&self) -> Packets<'_> {
        let block = self.ring.memory.block(self.start);
        let field =
            |at: usize| block.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let (count, first) = (field(12).unwrap_or_default(), field(16).unwrap_or_default());
        Packets { block, left: count, at: usize::try_from(first).unwrap_or(usize::MAX) }
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        if let Some(status) = self.ring.memory.status(self.start) {
            // The kernel writes only after it has seen this, and so after all that was read.
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
        self.ring.next = (self.ring.next + 1) % self.ring.blocks;
    }
}

/// The packets of a block.
#[derive(Debug)]
pub(super) struct Packets<'b> {
    block: &'b [u8],
    left: u32,
    at: usize,
}

impl<'b> Iterator for Packets<'b> {
    type Item = Packet<'b>;

    #[inline]
    fn next(&mut self) -> Option<Packet<'b>> {
        self.left = self.left.checked_sub(1)?;
        let packet = self.block.get(self.at..)?;
        let header: &[u8; HEADER + ADDRESS] = packet.first_chunk()?;
        let [
            n0,
            n1,
            n2,
            n3,
            s0,
            s1,
            s2,
            s3,
            ns0,
            ns1,
            ns2,
            ns3,
            c0,
            c1,
            c2,
            c3,
            l0,
            l1,
            l2,
            l3,
            rest @ ..,
        ] = *header;
        let [
            st0,
            st1,
            st2,
            st3,
            m0,
            m1,
            _,
            _,
            _,
            _,
            _,
            _,
            t0,
            t1,
            t2,
            t3,
            p0,
            p1,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            sll @ ..,
        ] = rest;
        let [_, _, pr0, pr1, i0, i1, i2, i3, h0, h1, packet_type, length, address @ ..] = sll;
        let size = |bytes| usize::try_from(u32::from_ne_bytes(bytes)).unwrap_or(usize::MAX);
        self.at = self.at.checked_add(size([n0, n1, n2, n3]))?;
        let begin = usize::from(u16::from_ne_bytes([m0, m1]));
        let data = packet.get(begin..begin.checked_add(size([c0, c1, c2, c3]))?)?;
        let status = u32::from_ne_bytes([st0, st1, st2, st3]);
        let vlan = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let protocol = match status & libc::TP_STATUS_VLAN_TPID_VALID {
                0 => 0x8100,
                _ => u16::from_ne_bytes([p0, p1]),
            };
            // The kernel's field has 32 bits for 16.
            (
                protocol,
                u16::try_from(u32::from_ne_bytes([t0, t1, t2, t3]) & 0xffff).unwrap_or_default(),
            )
        });
        let seconds = u64::from(u32::from_ne_bytes([s0, s1, s2, s3]));
        Some(Packet {
            timestamp: seconds * 1_000_000_000
                + u64::from(u32::from_ne_bytes([ns0, ns1, ns2, ns3])),
            original_length: u32::from_ne_bytes([l0, l1, l2, l3]),
            data,
            vlan,
            address: LinkAddress {
                protocol: u16::from_be_bytes([pr0, pr1]),
                interface: u32::from_ne_bytes([i0, i1, i2, i3]),
                hardware: u16::from_ne_bytes([h0, h1]),
                packet_type,
                length,
                address,
            },
        })
    }
}

/// The ring's memory.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is the process', not a thread's, and whoever has the value has it alone.
unsafe impl Send for Memory {}

impl Memory {
    fn map(socket: &OwnedFd, length: usize) -> Result<Self, Errno> {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        NonNull::new(start.cast()).map(|start| Self { start, length }).ok_or(Errno::NOMEM)
    }

    /// Whether the kernel or the agent owns the block that begins at `start`, a multiple of
    /// [`BLOCK`].
    fn status(&self, start: usize) -> Option<&AtomicU32> {
        if start.checked_add(BLOCK)? > self.length {
            return None;
        }
        // SAFETY: inside the mapping, as was just checked.
        let status = unsafe { self.start.add(start + STATUS) };
        // SAFETY: aligned, since the mapping and blocks are by pages; mapped for as long as `self`
        // lives; the kernel, too, accesses it as one word.
        Some(unsafe { AtomicU32::from_ptr(status.cast().as_ptr()) })
    }

    /// The block that begins at `start`. To be called only while it is the reader's: [`Block`] is
    /// the proof.
    fn block(&self, start: usize) -> &[u8] {
        if start.checked_add(BLOCK).is_none_or(|end| end > self.length) {
            return &[];
        }
        // SAFETY: inside the mapping, as was just checked.
        let block = unsafe { self.start.add(start) };
        // SAFETY: mapped and initialised for BLOCK bytes for as long as `self` lives, and written
        // by nobody until the `Block` that the slice is borrowed from is dropped.
        unsafe { slice::from_raw_parts(block.as_ptr(), BLOCK) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// `setsockopt` with a value that the kernel copies.
fn set<T>(socket: &OwnedFd, level: c_int, option: c_int, value: &T) -> Result<(), Errno> {
    // SAFETY: the pointer is to a live value, of the length that is said.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(value).cast(),
            length_of::<T>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

fn length_of<T>() -> libc::socklen_t {
    // No option is longer than a few words.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(nix::errno::Errno::last_raw())
}
