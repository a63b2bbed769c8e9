//! Many pcapng streams into one file.
//!
//! ```
//! use podsonde::domain::pcapng::{merge::{Merged, Source}, write};
//!
//! // A stream of each agent, whole blocks at a time.
//! let stream = |name| {
//!     let mut bytes = Vec::new();
//!     write::section_header(&mut bytes, &write::Section::default());
//!     write::interface(&mut bytes, &write::Interface { name, linktype: 1, ..Default::default() });
//!     bytes
//! };
//!
//! let mut file = Vec::new();
//! write::section_header(&mut file, &write::Section { application: "podsonde", ..Default::default() });
//! let mut merged = Merged::default();
//! let (mut a, mut b) = (Source::default(), Source::default());
//! merged.append(&mut a, &stream("default/a/eth0"), &mut file)?;
//! merged.append(&mut b, &stream("default/b/eth0"), &mut file)?;
//! assert_eq!(merged.interfaces(), 2);
//! assert_eq!(b.interface(0), Some(1));
//! # Ok::<(), podsonde::domain::pcapng::Error>(())
//! ```

use super::{Block, Error, MAX_INTERFACES, Order, block};

/// The file that streams are merged into: one section, little-endian, whose header the caller wrote.
#[derive(Debug, Default)]
pub struct Merged {
    interfaces: u32,
}

/// One of the streams.
#[derive(Debug, Default)]
pub struct Source {
    order: Option<Order>,
    /// What the interfaces of its section are numbered in the file.
    interfaces: Vec<u32>,
    /// Bytes that were merged.
    offset: u64,
}

impl Source {
    /// The number in the file of the interface that the stream's section knows by `number`.
    pub fn interface(&self, number: u32) -> Option<u32> {
        self.interfaces.get(usize::try_from(number).ok()?).copied()
    }
}

impl Merged {
    /// How many interfaces the file has.
    pub fn interfaces(&self) -> u32 {
        self.interfaces
    }

    /// Takes the next number, for an interface that the caller describes himself.
    pub fn add_interface(&mut self) -> u32 {
        let number = self.interfaces;
        self.interfaces = number.saturating_add(1);
        number
    }

    /// Appends whole blocks of `source` to `out`, options and all, with the interfaces re-numbered. Section headers are left out,
    /// and blocks of unknown type, for they may name interfaces.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`], also where the byte order is not little-endian or a packet names no interface; [`Error::Truncated`]
    /// where the last block is cut off. `out` then holds the blocks before it.
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
                let number = block.order.u32(body, 0).ok_or("the block is too short")?;
                let number = source
                    .interface(number)
                    .ok_or("it names an interface that was not described")?;
                renumber(block, &number.to_le_bytes(), out);
            }
            block::PACKET => {
                let number =
                    block.order.u16(body, 0).map(u32::from).ok_or("the block is too short")?;
                let number = source
                    .interface(number)
                    .ok_or("it names an interface that was not described")?;
                let number = u16::try_from(number)
                    .map_err(|_| "obsolete packet blocks know 65536 interfaces only")?;
                renumber(block, &number.to_le_bytes(), out);
            }
            block::SIMPLE_PACKET => {
                return Err("simple packet blocks name no interface and cannot be merged");
            }
            block::NAME_RESOLUTION | block::DECRYPTION_SECRETS => {
                out.extend_from_slice(block.bytes)
            }
            _ => {}
        }
        Ok(())
    }
}

/// Appends a block with another number at the beginning of its body.
fn renumber(block: &Block<'_>, number: &[u8], out: &mut Vec<u8>) {
    let at = out.len() + 8;
    out.extend_from_slice(block.bytes);
    if let Some(field) = out.get_mut(at..at + number.len()) {
        field.copy_from_slice(number);
    }
}
