//! The blocks of a pcapng stream: their types, their options, and their fields in both byte orders.

use super::MAX_BLOCK;

pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
/// Obsolete, superseded by [`ENHANCED_PACKET`].
pub(super) const PACKET: u32 = 2;
pub(super) const SIMPLE_PACKET: u32 = 3;
pub(super) const NAME_RESOLUTION: u32 = 4;
pub(super) const INTERFACE_STATISTICS: u32 = 5;
pub(super) const ENHANCED_PACKET: u32 = 6;
pub(super) const DECRYPTION_SECRETS: u32 = 10;

/// First field of a section header, which tells the byte order of the section.
pub(super) const ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// Codes of options. The same code means different things in different blocks.
pub(super) mod option {
    pub(crate) const END: u16 = 0;
    pub(crate) const COMMENT: u16 = 1;
    pub(crate) const SHB_HARDWARE: u16 = 2;
    pub(crate) const SHB_OS: u16 = 3;
    pub(crate) const SHB_USERAPPL: u16 = 4;
    pub(crate) const IF_NAME: u16 = 2;
    pub(crate) const IF_DESCRIPTION: u16 = 3;
    pub(crate) const IF_TSRESOL: u16 = 9;
    pub(crate) const IF_FILTER: u16 = 11;
    pub(crate) const IF_OS: u16 = 12;
    pub(crate) const IF_TSOFFSET: u16 = 14;
    pub(crate) const EPB_FLAGS: u16 = 2;
    pub(crate) const ISB_STARTTIME: u16 = 2;
    pub(crate) const ISB_ENDTIME: u16 = 3;
    pub(crate) const ISB_IFRECV: u16 = 4;
    pub(crate) const ISB_IFDROP: u16 = 5;
    pub(crate) const ISB_FILTERACCEPT: u16 = 6;
    pub(crate) const ISB_OSDROP: u16 = 7;
    pub(crate) const ISB_USRDELIV: u16 = 8;
}

/// The longest beginning of a text that ends between characters and fits into `most` bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = text.len().min(most);
    let end = (0..=end).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// The byte order of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl Order {
    /// The two bytes at `at`.
    pub(super) fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        })
    }

    /// The four bytes at `at`.
    pub(super) fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        })
    }

    /// The eight bytes at `at`.
    pub(super) fn u64(self, bytes: &[u8], at: usize) -> Option<u64> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        })
    }

    /// The eight bytes at `at` as two halves, the upper half first, as in timestamps.
    pub(super) fn halves(self, bytes: &[u8], at: usize) -> Option<u64> {
        Some(u64::from(self.u32(bytes, at)?) << 32 | u64::from(self.u32(bytes, at + 4)?))
    }
}

/// One complete block of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Type of the block, such as 6 for an enhanced packet.
    pub kind: u32,
    /// Byte order of the section that the block belongs to.
    pub order: Order,
    /// All bytes of the block, from its type to the second copy of its length.
    pub bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Returns the block that `bytes` begins with, or None if it is incomplete. `order` is the byte
    /// order of the section: a section header sets it, and every other block needs it to be set.
    ///
    /// # Errors
    ///
    /// What is wrong with the block.
    pub fn first(bytes: &'a [u8], order: &mut Option<Order>) -> Result<Option<Self>, &'static str> {
        let Some(kind) = Order::Little.u32(bytes, 0) else { return Ok(None) };
        if kind == SECTION_HEADER {
            // The type of a section header reads the same in both byte orders; the magic tells
            // which.
            let Some(magic) = Order::Little.u32(bytes, 8) else { return Ok(None) };
            *order = Some(match magic {
                ORDER_MAGIC => Order::Little,
                m if m == ORDER_MAGIC.swap_bytes() => Order::Big,
                _ => return Err("the section header has no byte-order magic"),
            });
        }
        let Some(order) = *order else { return Err("it does not begin with a section header") };
        let (Some(kind), Some(length)) = (order.u32(bytes, 0), order.u32(bytes, 4)) else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < 12 || !length.is_multiple_of(4) {
            return Err("the length of the block is impossible");
        }
        if length > MAX_BLOCK {
            return Err("the block is longer than 16 MiB");
        }
        let Some(bytes) = bytes.get(..length) else { return Ok(None) };
        if order.u32(bytes, length - 4) != u32::try_from(length).ok() {
            return Err("the two lengths of the block differ");
        }
        Ok(Some(Self { kind, order, bytes }))
    }

    /// Whether the block is a section header, which forgets the interfaces described before it.
    pub fn begins_section(&self) -> bool {
        self.kind == SECTION_HEADER
    }

    /// Whether the block describes an interface.
    pub fn is_interface(&self) -> bool {
        self.kind == INTERFACE_DESCRIPTION
    }

    /// Whether the block is an enhanced packet, the only kind of packet that agents write.
    pub fn is_packet(&self) -> bool {
        self.kind == ENHANCED_PACKET
    }

    /// The bytes between the two copies of the length.
    pub fn body(&self) -> &'a [u8] {
        self.bytes.get(8..self.bytes.len().saturating_sub(4)).unwrap_or_default()
    }

    /// Codes and values of the block's options, which begin at `at` in the body. Ends at the first
    /// option that does not fit into the block.
    pub(super) fn options(&self, at: usize) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let order = self.order;
        let mut rest = self.body().get(at..).unwrap_or_default();
        std::iter::from_fn(move || {
            let code = order.u16(rest, 0)?;
            let length = usize::from(order.u16(rest, 2)?);
            let value = rest.get(4..4 + length)?;
            if code == option::END {
                return None;
            }
            rest = rest.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
            Some((code, value))
        })
    }
}
