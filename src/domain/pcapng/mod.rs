//! Capture files: pcapng written and read, classic pcap read.
//!
//! - [`write`](mod@write) appends blocks to a buffer and copies each packet once. The agent's
//!   capture thread uses it.
//! - [`Decoder`] takes bytes as they arrive and returns packets; [`Reader`] does so from a file or
//!   a pipe.
//! - [`merge`] turns the streams of many agents into one file.
//!
//! No input makes it panic, and [`MAX_BLOCK`] and [`MAX_INTERFACES`] bound its memory.
//! <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html>

mod block;
mod classic;
mod decode;
pub mod merge;
pub mod names;
pub mod write;

pub use block::{Block, Order};
pub use decode::{Decoder, Interface, Packet, Reader};

/// Link-layer header types. <https://www.tcpdump.org/linktypes.html>
pub mod linktype {
    /// BSD loopback: the address family in the byte order of the machine that captured.
    pub const NULL: u16 = 0;
    /// Ethernet.
    pub const ETHERNET: u16 = 1;
    /// IPv4 or IPv6 without a link-layer header.
    pub const RAW: u16 = 101;
    /// OpenBSD loopback: the address family in network byte order.
    pub const LOOP: u16 = 108;
    /// Linux "cooked" capture, first version.
    pub const LINUX_SLL: u16 = 113;
    /// IPv4 without a link-layer header.
    pub const IPV4: u16 = 228;
    /// IPv6 without a link-layer header.
    pub const IPV6: u16 = 229;
    /// Linux "cooked" capture, with the interface's index.
    pub const LINUX_SLL2: u16 = 276;
}

/// Longest block that is read: 16 MiB. A longer one is malformed.
pub const MAX_BLOCK: usize = 16 << 20;

/// Most interfaces that one stream may describe: 65536, as many as 16 bits can number.
pub const MAX_INTERFACES: usize = 1 << 16;

/// Which way a packet travelled, as seen from the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// The file does not say.
    #[default]
    Unknown,
    /// The interface received the packet.
    In,
    /// The interface sent the packet.
    Out,
}

impl Direction {
    /// Reads the direction from the two low bits of `epb_flags`.
    fn from_flags(flags: u32) -> Self {
        match flags & 3 {
            1 => Self::In,
            2 => Self::Out,
            _ => Self::Unknown,
        }
    }

    /// The two low bits of `epb_flags` that stand for the direction.
    fn flags(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::In => 1,
            Self::Out => 2,
        }
    }
}

/// Why a stream of bytes is no capture file, or no complete one. Offsets count bytes from its
/// start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream begins like no known format; the figure holds its first four bytes.
    #[error("not a capture file: it begins with {0:#010x}, which is neither pcapng nor pcap")]
    UnknownFormat(u32),
    /// The file is in a variant of pcap that is not read.
    #[error("{0} is not supported; convert the file with editcap")]
    Unsupported(&'static str),
    /// A block contradicts itself or the blocks before it.
    #[error("malformed capture file at byte {offset}: {what}")]
    Malformed {
        /// Where the block begins.
        offset: u64,
        /// What is wrong with the block.
        what: &'static str,
    },
    /// The stream ended inside a block. All blocks before it were complete.
    #[error(
        "truncated capture file: the last block begins at byte {offset} and only {got} bytes of it are there"
    )]
    Truncated {
        /// Where the block begins.
        offset: u64,
        /// Number of the block's bytes that are there.
        got: usize,
    },
    /// The source could not be read.
    #[error("cannot read the capture: {0}")]
    Read(#[from] std::io::Error),
}

#[cfg(test)]
mod tests;
