//! Captures the packets of a network namespace into pcapng.
//!
//! Nothing here needs a privilege: the sockets come from whoever may enter the namespace
//! ([`super::socket`]).
//!
//! - [`links`]: what interfaces there are;
//! - [`compiler`]: filters, compiled by libpcap in a process that can do nothing else (`libpcap`);
//! - [`Tap`]: a packet socket with its ring (`ring`) and its filter, packets coming in;
//! - [`Pump`]: a thread that moves packets from the ring into buffers (`frame`), and counts;
//! - [`pool`]: those buffers, whose number is bounded.
//!
//! # What always holds
//!
//! - No packet is in the ring that did not pass the filter: it is there before the socket is bound.
//! - The thread waits for nothing while it has a block of the ring, so a slow reader of the buffers
//!   makes the kernel drop packets, and count them, and costs no memory.
//! - Packets received = in the buffers + dropped by the kernel + dropped by the agent, at the end
//!   of a capture.

pub mod compiler;
mod frame;
mod libpcap;
pub mod links;
pub mod pool;
mod pump;
mod ring;

use std::{os::fd::OwnedFd, time::Duration};

pub use self::pump::{End, Event, Limits, Pump, Stop, Totals};
use self::{frame::Layer, links::Link, ring::Ring};
use super::{SysError, socket::SocketKind};
use crate::domain::{
    filter::{MAX_SNAPLEN, Program, Ways},
    pcapng::linktype,
};

/// Smallest ring in bytes, whatever size is asked for.
pub const MIN_RING: usize = ring::MIN_BLOCKS * ring::BLOCK;
/// Ring sizes are multiples of this.
pub const RING_UNIT: usize = ring::BLOCK;

// From linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_TUNNEL: u16 = 768;
const ARPHRD_TUNNEL6: u16 = 769;
const ARPHRD_LOOPBACK: u16 = 772;
const ARPHRD_SIT: u16 = 776;
const ARPHRD_NONE: u16 = 0xfffe;

/// Where packets are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    interface: u32,
    layer: Layer,
    loopback: bool,
}

impl Source {
    /// All interfaces there are and will be.
    pub const ANY: Self = Self { interface: 0, layer: Layer::Sll2, loopback: true };

    /// One interface.
    pub fn of(link: &Link) -> Self {
        let layer = match link.hardware {
            ARPHRD_ETHER | ARPHRD_LOOPBACK => Layer::Ethernet,
            ARPHRD_NONE | ARPHRD_RAWIP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6 | ARPHRD_SIT => Layer::Ip,
            _ => Layer::Sll2,
        };
        Self { interface: link.index, layer, loopback: link.loopback }
    }

    /// The socket it takes.
    pub fn socket(&self) -> SocketKind {
        match self.layer {
            Layer::Ethernet => SocketKind::Packets,
            Layer::Ip | Layer::Sll2 => SocketKind::CookedPackets,
        }
    }

    /// The link type of its packets, as in files.
    pub fn linktype(&self) -> u16 {
        match self.layer {
            Layer::Ethernet => linktype::ETHERNET,
            Layer::Ip => linktype::RAW,
            Layer::Sll2 => linktype::LINUX_SLL2,
        }
    }

    /// The same as libpcap has it (`DLT_…`), which has a number of its own for raw IP.
    pub fn dlt(&self) -> u32 {
        match self.layer {
            Layer::Ip => 12,
            _ => self.linktype().into(),
        }
    }
}

/// What packets are wanted.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Program of a filter that was compiled for the source's link type. None: every packet.
    pub filter: Option<Program>,
    /// Whether the program wants VLAN tags, and so cannot be run by the kernel.
    pub on_tags: bool,
    /// The directions that are captured.
    pub ways: Ways,
    /// Bytes of each packet that are captured, at most.
    pub snaplen: u32,
}

impl Selection {
    /// What the kernel runs, and what is left to be run on its packets.
    fn split(&self, source: &Source) -> (Program, Option<Program>) {
        let everything = Program::everything(MAX_SNAPLEN);
        let (kernel, own) = match &self.filter {
            None => (Program::everything(self.snaplen), None),
            Some(program) if self.on_tags => (everything, Some(program.clone())),
            Some(program) => match source.layer {
                Layer::Ethernet | Layer::Ip => (program.clone(), None),
                Layer::Sll2 => match program.without_sll2_header() {
                    Some(fixed) => (fixed, None),
                    None => (everything, Some(program.clone())),
                },
            },
        };
        // Other interfaces do not see a packet twice.
        let kernel = match self.ways {
            Ways::Both if !source.loopback => kernel,
            ways => kernel.of(ways),
        };
        (kernel, own)
    }
}

/// A packet socket that packets come in by.
#[derive(Debug)]
pub struct Tap {
    ring: Ring,
    source: Source,
    filter: Option<Program>,
    snaplen: u32,
    max_delay: Duration,
}

impl Tap {
    /// Makes a tap of a socket of the source's kind. From its return on, every packet is in the
    /// ring or counted. `ring_bytes` may come out smaller. A packet waits for others at most
    /// `max_delay`.
    ///
    /// # Errors
    /// `bind` ENODEV if the interface is gone; `setsockopt` EINVAL if the kernel does not take the
    /// filter, ENOMEM.
    pub fn open(
        socket: OwnedFd,
        source: Source,
        selection: &Selection,
        ring_bytes: usize,
        max_delay: Duration,
    ) -> Result<Self, SysError> {
        // The other half it may lie in the ring, in a block that was handed over.
        let ring = Ring::new(socket, ring_bytes, max_delay / 2)?;
        let (kernel, filter) = selection.split(&source);
        ring.filter(&kernel)?;
        ring.bind(source.interface)?;
        Ok(Self { ring, source, filter, snaplen: selection.snaplen, max_delay })
    }

    /// Size of the ring in bytes, as granted.
    pub fn ring_bytes(&self) -> usize {
        self.ring.size()
    }
}
