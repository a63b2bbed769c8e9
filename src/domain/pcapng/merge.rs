//! Merges many pcapng streams into one file.
//!
//! ```
//! use podsonde::domain::pcapng::{merge::{Merged, Source}, write};
//!
//! // One stream from each agent, which arrives in complete blocks.
//! let stream = |name| {
//!     let mut bytes = Vec::new();
//!     write::section_header(&mut bytes, &write::Section::default());
//!     write::interface(&mut bytes, &write::Interface { name, linktype: 1, ..Default::default() });
//!     bytes
//! };
//!
//! let mut file = Vec::new();
//! let section = write::Section { application: "podsonde", ..Default::default() };
//! write::section_header(&mut file, &section);
//! let mut merged = Merged::default();
//! let (mut a, mut b) = (Source::default(), Source::default());
//! merged.append(&mut a, &stream("default/a/eth0"), &mut file)?;
//! merged.append(&mut b, &stream("default/b/eth0"), &mut file)?;
//! assert_eq!(merged.interfaces(), 2);
//! assert_eq!(b.interface(0), Some(1));
//! # Ok::<(), podsonde::domain::pcapng::Error>(())
//! ```

use super::{Block, Error, MAX_INTERFACES, Order, block};

/// The file that streams are merged into: one little-endian section. The caller writes its header.
#[derive(Debug, Default)]
pub struct Merged {
    interfaces: u32,
}

/// The state of one stream.
#[derive(Debug, Default)]
pub struct Source {
    order: Option<Order>,
    /// The number in the file of each interface of the stream's section.
    interfaces: Vec<u32>,
    /// Bytes that were merged up to now.
    offset: u64,
}

impl Source {
    /// The number in the file of the interface that has `number` in the stream's section.
    pub fn interface(&self, number: u32) -> Option<u32> {
        self.interfaces.get(usize::try_from(number).ok()?).copied()
    }

    /// The number in the file of the interface that a block names; None is a block without room for
    /// the number.
    fn renumbered(&self, number: Option<u32>) -> Result<u32, &'static str> {
        let number = number.ok_or("the block is too short")?;
        self.interface(number).ok_or("it names an interface that was not described")
    }
}

impl Merged {
    /// Number of interfaces in the file.
    pub fn interfaces(&self) -> u32 {
        self.interfaces
    }

    /// Reserves the next number, for an interface that the caller describes itself.
    pub fn add_interface(&mut self) -> u32 {
        let number = self.interfaces;
        self.interfaces = number.saturating_add(1);
        number
    }

    /// Appends complete blocks of `source` to `out` with all of their options and with their
    /// interfaces renumbered. Section headers are left out, and so are blocks of unknown types,
    /// because these may name interfaces.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`], also for a big-endian section and for a packet that names no
    /// interface; [`Error::Truncated`] if the last block is incomplete. `out` then holds the blocks
    /// before it.
    pub fn append(
        &mut self,
        source: &mut Source,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        out.reserve(bytes.len());
        while !bytes.is_empty() {
            let offset = source.offset;
            let malformed = |what| Error::Malformed { offset, what };
            let Some(block) = Block::first(bytes, &mut source.order).map_err(malformed)? else {
                return Err(Error::Truncated { offset, got: bytes.len() });
            };
            self.block(source, &block, out).map_err(malformed)?;
            let length = block.bytes.len();
            source.offset += length as u64;
            bytes = bytes.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    fn block(
        &mut self,
        source: &mut Source,
        block: &Block<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        if block.order != Order::Little {
            return Err("big-endian sections cannot be merged");
        }
        let body = block.body();
        match block.kind {
            block::SECTION_HEADER => source.interfaces.clear(),
            block::INTERFACE_DESCRIPTION => {
                if source.interfaces.len() >= MAX_INTERFACES {
                    return Err("more interfaces than 65536");
                }
                source.interfaces.push(self.add_interface());
                out.extend_from_slice(block.bytes);
            }
            block::ENHANCED_PACKET | block::INTERFACE_STATISTICS => {
                let number = source.renumbered(block.order.u32(body, 0))?;
                renumber(block, &number.to_le_bytes(), out);
            }
            block::PACKET => {
                let number = source.renumbered(block.order.u16(body, 0).map(u32::from))?;
                let number = u16::try_from(number)
                    .map_err(|_| "obsolete packet blocks know 65536 interfaces only")?;
                renumber(block, &number.to_le_bytes(), out);
            }
            block::SIMPLE_PACKET => {
                return Err("simple packet blocks name no interface and cannot be merged");
            }
            block::NAME_RESOLUTION | block::DECRYPTION_SECRETS => {
                out.extend_from_slice(block.bytes);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Appends a block in which `number` replaces the first bytes of the body.
fn renumber(block: &Block<'_>, number: &[u8], out: &mut Vec<u8>) {
    let at = out.len() + 8;
    out.extend_from_slice(block.bytes);
    if let Some(field) = out.get_mut(at..at + number.len()) {
        field.copy_from_slice(number);
    }
}
