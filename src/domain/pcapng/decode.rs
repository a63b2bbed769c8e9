//! Decodes packets from a stream of bytes, pcapng or classic pcap.

use std::{io::Read, ops::Range};

use super::{
    Block, Direction, Error, MAX_BLOCK, MAX_INTERFACES, Order,
    block::{self, cut, option},
    classic::{self, Header},
};

/// Most bytes of an interface's name, and of its description, that are kept.
const MAX_NAME: usize = 512;

/// Bytes that [`Reader`] asks its source for at once.
const CHUNK: usize = 256 << 10;

/// An interface as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name of the interface, at most 512 bytes. Empty if the file gives none.
    pub name: String,
    /// Description of the interface, at most 512 bytes. Empty if the file gives none.
    pub description: String,
    /// Link type of its packets ([`super::linktype`]).
    pub linktype: u16,
    /// Most bytes that were captured of each packet. 0 means no limit.
    pub snaplen: u32,
    /// Unit and origin of the interface's timestamps.
    clock: Clock,
}

/// A captured packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Interface of the packet, as an index into [`Decoder::interfaces`].
    pub interface: usize,
    /// Link type ([`super::linktype`]).
    pub linktype: u16,
    /// Nanoseconds since 1970.
    pub timestamp: u64,
    /// Length on the wire in bytes.
    pub original_length: u32,
    /// Which way the packet travelled.
    pub direction: Direction,
    /// The bytes that were captured, at most the interface's snaplen.
    pub data: &'a [u8],
}

/// The unit and the origin of timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clock {
    /// Units per second.
    resolution: u64,
    /// Seconds to add.
    offset: i64,
}

impl Clock {
    /// Converts a timestamp to nanoseconds since 1970, saturating at the bounds of 64 bits.
    fn nanoseconds(self, timestamp: u64) -> u64 {
        const SECOND: u128 = 1_000_000_000;
        let scaled = if self.resolution == 1_000_000_000 {
            timestamp
        } else {
            u64::try_from(u128::from(timestamp) * SECOND / u128::from(self.resolution))
                .unwrap_or(u64::MAX)
        };
        if self.offset == 0 {
            return scaled;
        }
        let offset = self.offset.unsigned_abs().saturating_mul(1_000_000_000);
        if self.offset < 0 { scaled.saturating_sub(offset) } else { scaled.saturating_add(offset) }
    }
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Unknown,
    Pcapng(Option<Order>),
    Pcap(Header),
}

/// A decoded packet. Its bytes lie in the decoder's buffer, in the range `data`.
struct Found {
    interface: usize,
    timestamp: u64,
    original_length: u32,
    direction: Direction,
    data: Range<usize>,
}

/// Takes the bytes of a capture file, pcapng or pcap, as they arrive, and returns its packets.
///
/// The decoder keeps at most one block and the bytes that were pushed last. It skips blocks other
/// than packets and interface descriptions.
#[derive(Debug)]
pub struct Decoder {
    /// The bytes in `start..end` are not decoded yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Position of `start` in the stream.
    offset: u64,
    format: Format,
    interfaces: Vec<Interface>,
    /// Index of the section's first interface.
    section: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder for a new stream.
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            format: Format::Unknown,
            interfaces: Vec::new(),
            section: 0,
        }
    }

    /// Appends bytes of the stream. Call [`Decoder::next`] until it returns None before pushing
    /// more.
    pub fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.room(bytes.len()).get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            self.end += bytes.len();
        }
    }

    /// Returns the next packet, or None until more bytes are pushed.
    ///
    /// # Errors
    ///
    /// What is wrong with the stream, and where. Further calls fail in the same way.
    #[expect(clippy::should_implement_trait, reason = "it lends")]
    pub fn next(&mut self) -> Result<Option<Packet<'_>>, Error> {
        Ok(self.advance()?.map(|found| self.lend(found)))
    }

    fn lend(&self, found: Found) -> Packet<'_> {
        Packet {
            interface: found.interface,
            linktype: self
                .interfaces
                .get(found.interface)
                .map_or(0, |interface| interface.linktype),
            timestamp: found.timestamp,
            original_length: found.original_length,
            direction: found.direction,
            data: self.buffer.get(found.data).unwrap_or_default(),
        }
    }

    /// The interfaces that the stream has described up to now, in all sections. The list only
    /// grows.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] if the stream ends inside a block or is empty.
    pub fn finish(&self) -> Result<(), Error> {
        let got = self.end - self.start;
        if got > 0 || matches!(self.format, Format::Unknown) {
            return Err(Error::Truncated { offset: self.offset, got });
        }
        Ok(())
    }

    /// Makes room for `wanted` more bytes behind those that are not decoded yet.
    fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.end + wanted {
            self.buffer.resize(self.end + wanted, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
        self.offset += length as u64;
    }

    /// Decodes blocks up to the next packet; None until more bytes are pushed.
    fn advance(&mut self) -> Result<Option<Found>, Error> {
        loop {
            let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
            match self.format {
                Format::Unknown => {
                    if waiting.len() < 4 {
                        return Ok(None);
                    }
                    if waiting.starts_with(&block::SECTION_HEADER.to_le_bytes()) {
                        self.format = Format::Pcapng(None);
                        continue;
                    }
                    let Some(header) = Header::read(waiting)? else { return Ok(None) };
                    self.format = Format::Pcap(header);
                    self.interfaces.push(Interface {
                        name: String::new(),
                        description: String::new(),
                        linktype: header.linktype,
                        snaplen: header.snaplen,
                        clock: Clock { resolution: 1_000_000_000, offset: 0 },
                    });
                    self.consume(classic::FILE_HEADER);
                }
                Format::Pcap(header) => return self.classic(header),
                Format::Pcapng(mut order) => {
                    let offset = self.offset;
                    let malformed = |what| Error::Malformed { offset, what };
                    let Some(block) = Block::first(waiting, &mut order).map_err(malformed)? else {
                        return Ok(None);
                    };
                    self.format = Format::Pcapng(order);
                    let length = block.bytes.len();
                    let mut found = None;
                    match block.kind {
                        block::SECTION_HEADER => {
                            if block.order.u16(block.body(), 4) != Some(1) {
                                return Err(malformed("a version of pcapng other than 1"));
                            }
                            self.section = self.interfaces.len();
                        }
                        block::INTERFACE_DESCRIPTION => {
                            if self.interfaces.len() >= MAX_INTERFACES {
                                return Err(malformed("more interfaces than 65536"));
                            }
                            let interface = describe(&block).map_err(malformed)?;
                            self.interfaces.push(interface);
                        }
                        block::ENHANCED_PACKET | block::PACKET => {
                            found = Some(self.packet(&block).map_err(malformed)?);
                        }
                        block::SIMPLE_PACKET => {
                            found = Some(self.simple_packet(&block).map_err(malformed)?);
                        }
                        _ => {}
                    }
                    self.consume(length);
                    if found.is_some() {
                        return Ok(found);
                    }
                }
            }
        }
    }

    /// Decodes an enhanced packet, or an obsolete one, which names its interface in 16 bits.
    fn packet(&self, block: &Block<'_>) -> Result<Found, &'static str> {
        const HEADER: usize = 20;
        let (body, order) = (block.body(), block.order);
        let interface = match block.kind {
            block::PACKET => order.u16(body, 0).map(u32::from),
            _ => order.u32(body, 0),
        };
        let (Some(interface), Some(timestamp), Some(captured), Some(original_length)) =
            (interface, order.halves(body, 4), order.u32(body, 12), order.u32(body, 16))
        else {
            return Err("the packet block is too short");
        };
        let (interface, clock) = self.interface(interface)?;
        let captured = usize::try_from(captured).unwrap_or(usize::MAX);
        if captured > body.len() - HEADER {
            return Err("the packet is longer than its block");
        }
        let direction = block
            .options(HEADER + captured.next_multiple_of(4))
            .find(|(code, _)| *code == option::EPB_FLAGS)
            .and_then(|(_, value)| order.u32(value, 0))
            .map_or(Direction::Unknown, Direction::from_flags);
        let data = self.start + 8 + HEADER;
        let timestamp = clock.nanoseconds(timestamp);
        Ok(Found { interface, timestamp, original_length, direction, data: data..data + captured })
    }

    /// Decodes a simple packet, which belongs to the first interface and has no timestamp.
    fn simple_packet(&self, block: &Block<'_>) -> Result<Found, &'static str> {
        let body = block.body();
        let original_length = block.order.u32(body, 0).ok_or("the packet block is too short")?;
        let (interface, _) = self.interface(0)?;
        let snaplen =
            self.interfaces.get(interface).map(|i| i.snaplen).filter(|snaplen| *snaplen > 0);
        let captured = original_length.min(snaplen.unwrap_or(u32::MAX));
        let captured = usize::try_from(captured).unwrap_or(usize::MAX);
        if captured > body.len() - 4 {
            return Err("the packet is longer than its block");
        }
        let data = self.start + 12;
        let data = data..data + captured;
        Ok(Found { interface, timestamp: 0, original_length, direction: Direction::Unknown, data })
    }

    /// The index and the clock of the interface that has this number in the section.
    fn interface(&self, number: u32) -> Result<(usize, Clock), &'static str> {
        let interface =
            usize::try_from(number).ok().and_then(|number| self.section.checked_add(number));
        let interface = interface.unwrap_or(usize::MAX);
        let clock = self.interfaces.get(interface).map(|interface| interface.clock);
        Ok((interface, clock.ok_or("the packet is of an interface that was not described")?))
    }

    /// Decodes the next packet of a classic file.
    fn classic(&mut self, header: Header) -> Result<Option<Found>, Error> {
        let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
        let field = |at| header.order.u32(waiting, at);
        let (Some(seconds), Some(fraction), Some(captured), Some(original_length)) =
            (field(0), field(4), field(8), field(12))
        else {
            return Ok(None);
        };
        let captured = usize::try_from(captured).unwrap_or(usize::MAX);
        if captured > MAX_BLOCK {
            return Err(Error::Malformed {
                offset: self.offset,
                what: "the packet is longer than 16 MiB",
            });
        }
        let length = classic::PACKET_HEADER + captured;
        if waiting.len() < length {
            return Ok(None);
        }
        let data = self.start + classic::PACKET_HEADER;
        self.consume(length);
        Ok(Some(Found {
            interface: 0,
            timestamp: u64::from(seconds) * 1_000_000_000
                + u64::from(fraction) * u64::from(header.nanoseconds),
            original_length,
            direction: Direction::Unknown,
            data: data..data + captured,
        }))
    }
}

/// Reads an interface description.
fn describe(block: &Block<'_>) -> Result<Interface, &'static str> {
    let (body, order) = (block.body(), block.order);
    let (Some(linktype), Some(snaplen)) = (order.u16(body, 0), order.u32(body, 4)) else {
        return Err("the interface description is too short");
    };
    let mut interface = Interface {
        name: String::new(),
        description: String::new(),
        linktype,
        snaplen,
        clock: Clock { resolution: 1_000_000, offset: 0 },
    };
    for (code, value) in block.options(8) {
        match (code, value) {
            (option::IF_NAME, name) => interface.name = text(name),
            (option::IF_DESCRIPTION, description) => interface.description = text(description),
            (option::IF_TSRESOL, [exponent, ..]) => {
                let base = if exponent & 0x80 == 0 { 10_u64 } else { 2 };
                interface.clock.resolution = base
                    .checked_pow(u32::from(exponent & 0x7f))
                    .ok_or("timestamps are finer than 64 bits can tell")?;
            }
            (option::IF_TSOFFSET, offset) => {
                interface.clock.offset =
                    order.u64(offset, 0).ok_or("if_tsoffset is too short")?.cast_signed();
            }
            _ => {}
        }
    }
    Ok(interface)
}

/// A text of at most [`MAX_NAME`] bytes. It ends at a zero byte, which some writers append.
fn text(value: &[u8]) -> String {
    let value = value.split(|b| *b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value.get(..MAX_NAME).unwrap_or(value));
    cut(&text, MAX_NAME).to_owned()
}

/// Reads the packets of a capture file from a file or a pipe.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    decoder: Decoder,
}

impl<R: Read> Reader<R> {
    /// A reader at the start of `source`, which needs no buffering of its own. Reads nothing yet.
    pub fn new(source: R) -> Self {
        Self { source, decoder: Decoder::new() }
    }

    /// Returns the next packet, or None at the end of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] if the file ends inside a block, after all packets before it; otherwise
    /// as [`Decoder::next`].
    #[expect(clippy::should_implement_trait, reason = "it lends")]
    pub fn next(&mut self) -> Result<Option<Packet<'_>>, Error> {
        let found = loop {
            if let Some(found) = self.decoder.advance()? {
                break found;
            }
            match self.source.read(self.decoder.room(CHUNK)) {
                Ok(0) => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
                Ok(read) => self.decoder.end += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Some(self.decoder.lend(found)))
    }

    /// The interfaces that were described up to now, as in [`Decoder::interfaces`].
    pub fn interfaces(&self) -> &[Interface] {
        self.decoder.interfaces()
    }
}
