//! The headers of classic pcap files.
//! <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html>

use super::{Error, Order};

/// Length of the file's header in bytes.
pub(super) const FILE_HEADER: usize = 24;
/// Length of a packet's header in bytes.
pub(super) const PACKET_HEADER: usize = 16;

/// The fields of the file's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) order: Order,
    /// Nanoseconds in one unit of the fraction of a timestamp: 1 or 1000.
    pub(super) nanoseconds: u32,
    pub(super) linktype: u16,
    pub(super) snaplen: u32,
}

impl Header {
    /// Reads the header that `bytes` begin with; None if it is incomplete.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let Some(magic) = Order::Little.u32(bytes, 0) else { return Ok(None) };
        let (order, magic) = match magic {
            0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34 => (Order::Little, magic),
            _ => (Order::Big, magic.swap_bytes()),
        };
        let nanoseconds = match magic {
            0xa1b2_c3d4 => 1000,
            0xa1b2_3c4d => 1,
            0xa1b2_cd34 => return Err(Error::Unsupported("modified (Kuznetzov's) pcap")),
            _ => return Err(Error::UnknownFormat(magic)),
        };
        let Some(header) = bytes.get(..FILE_HEADER) else { return Ok(None) };
        let (Some(2), Some(4), Some(snaplen), Some(linktype)) = (
            order.u16(header, 4),
            order.u16(header, 6),
            order.u32(header, 16),
            order.u32(header, 20),
        ) else {
            return Err(Error::Unsupported("a version of pcap other than 2.4"));
        };
        // The upper half holds the length of the frame check sequences, which nothing here needs.
        let linktype = u16::try_from(linktype & 0xffff).unwrap_or_default();
        Ok(Some(Self { order, nanoseconds, linktype, snaplen }))
    }
}
