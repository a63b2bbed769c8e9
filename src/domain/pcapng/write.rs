//! Writes pcapng: every function appends one complete block to the caller's buffer.
//!
//! Blocks are little-endian and timestamps count nanoseconds. The caller numbers the interfaces:
//! the first [`interface`] after a [`section_header`] is 0, the next is 1.

use super::{
    Direction,
    block::{
        ENHANCED_PACKET, INTERFACE_DESCRIPTION, INTERFACE_STATISTICS, ORDER_MAGIC, SECTION_HEADER,
        cut, option,
    },
};

/// The options of a section header. Empty texts are left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Section<'a> {
    /// `shb_hardware`: the machine.
    pub hardware: &'a str,
    /// `shb_os`: the operating system.
    pub os: &'a str,
    /// `shb_userappl`: the program that wrote it.
    pub application: &'a str,
    /// `opt_comment`: a remark for people.
    pub comment: &'a str,
}

/// The fields and options of an interface description. Empty texts are left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Interface<'a> {
    /// Link type of its packets ([`super::linktype`]).
    pub linktype: u16,
    /// Most bytes that are captured of each packet. 0 means no limit.
    pub snaplen: u32,
    /// `if_name`: the interface's name in the system that has it.
    pub name: &'a str,
    /// `if_description`: a text for people.
    pub description: &'a str,
    /// `if_filter`, in the language of pcap-filter(7).
    pub filter: &'a str,
    /// `if_os`: the operating system of the machine that has it.
    pub os: &'a str,
}

/// The fields of an enhanced packet block other than the packet's bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packet {
    /// Number of the interface in this section.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub timestamp: u64,
    /// Length on the wire in bytes.
    pub original_length: u32,
    /// `epb_flags`, left out if the direction is unknown.
    pub direction: Direction,
}

/// Figures of an interface. Those that are None are left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Statistics {
    /// Number of the interface in this section.
    pub interface: u32,
    /// When the figures were taken, in nanoseconds since 1970.
    pub timestamp: u64,
    /// `isb_starttime`: when the capture began, in nanoseconds since 1970.
    pub started: Option<u64>,
    /// `isb_endtime`: when the capture ended, in nanoseconds since 1970.
    pub ended: Option<u64>,
    /// `isb_ifrecv`: packets that reached the interface.
    pub received: Option<u64>,
    /// `isb_ifdrop`: packets that the interface lost for want of room.
    pub dropped: Option<u64>,
    /// `isb_filteraccept`: packets that passed the filter.
    pub accepted: Option<u64>,
    /// `isb_osdrop`: packets that passed the filter and were lost by the operating system.
    pub dropped_by_os: Option<u64>,
    /// `isb_usrdeliv`: packets that reached the file.
    pub delivered: Option<u64>,
}

/// Appends a section header. The length of the section stays open, so that the file can grow.
pub fn section_header(out: &mut Vec<u8>, section: &Section<'_>) {
    let block = begin(out, SECTION_HEADER);
    out.extend_from_slice(&ORDER_MAGIC.to_le_bytes());
    // Version 1.0; the length of the section is unknown.
    out.extend_from_slice(&[1, 0, 0, 0]);
    out.extend_from_slice(&[0xff; 8]);
    let texts = [
        (option::SHB_HARDWARE, section.hardware),
        (option::SHB_OS, section.os),
        (option::SHB_USERAPPL, section.application),
        (option::COMMENT, section.comment),
    ];
    for (code, value) in texts {
        text(out, code, value);
    }
    end(out, block);
}

/// Appends an interface description, with timestamps in nanoseconds.
pub fn interface(out: &mut Vec<u8>, interface: &Interface<'_>) {
    let block = begin(out, INTERFACE_DESCRIPTION);
    out.extend_from_slice(&interface.linktype.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&interface.snaplen.to_le_bytes());
    text(out, option::IF_NAME, interface.name);
    text(out, option::IF_DESCRIPTION, interface.description);
    raw_option(out, option::IF_TSRESOL, &[&[9]]);
    if !interface.filter.is_empty() {
        // The first byte names the language of the filter: 0 is libpcap's.
        raw_option(
            out,
            option::IF_FILTER,
            &[&[0], cut(interface.filter, MAX_OPTION - 1).as_bytes()],
        );
    }
    text(out, option::IF_OS, interface.os);
    end(out, block);
}

/// Appends a packet whose bytes are the `parts`, one after the other. Most packets have one part;
/// three parts insert a VLAN tag, and two put a link-layer header before the packet. A packet that
/// makes the block longer than [`super::MAX_BLOCK`] cannot be read again.
#[inline]
pub fn enhanced_packet<const PARTS: usize>(
    out: &mut Vec<u8>,
    packet: &Packet,
    parts: [&[u8]; PARTS],
) {
    const HEADER: usize = 28;
    let captured: usize = parts.iter().map(|part| part.len()).sum();
    let padding = padding(captured);
    let options = if packet.direction == Direction::Unknown { 0 } else { 12 };
    let length = clamp(HEADER + captured + padding.len() + options + 4);
    let header: [u32; HEADER / 4] = [
        ENHANCED_PACKET,
        length,
        packet.interface,
        high(packet.timestamp),
        low(packet.timestamp),
        clamp(captured),
        packet.original_length,
    ];
    // The option `epb_flags`, of four bytes; the end of the options; the second length.
    let options_and_end =
        [u32::from(option::EPB_FLAGS) | 4 << 16, packet.direction.flags(), 0, length];
    out.reserve(HEADER + captured + 20);
    out.extend_from_slice(bytes_of(&header).as_flattened());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(padding);
    match options {
        0 => out.extend_from_slice(&length.to_le_bytes()),
        _ => out.extend_from_slice(bytes_of(&options_and_end).as_flattened()),
    }
}

#[inline]
fn bytes_of<const N: usize>(words: &[u32; N]) -> [[u8; 4]; N] {
    words.map(u32::to_le_bytes)
}

/// Appends the figures of an interface.
pub fn interface_statistics(out: &mut Vec<u8>, statistics: &Statistics) {
    let block = begin(out, INTERFACE_STATISTICS);
    out.extend_from_slice(&statistics.interface.to_le_bytes());
    timestamp(out, statistics.timestamp);
    for (code, value) in
        [(option::ISB_STARTTIME, statistics.started), (option::ISB_ENDTIME, statistics.ended)]
    {
        if let Some(value) = value {
            raw_option(out, code, &[&high(value).to_le_bytes(), &low(value).to_le_bytes()]);
        }
    }
    let counts = [
        (option::ISB_IFRECV, statistics.received),
        (option::ISB_IFDROP, statistics.dropped),
        (option::ISB_FILTERACCEPT, statistics.accepted),
        (option::ISB_OSDROP, statistics.dropped_by_os),
        (option::ISB_USRDELIV, statistics.delivered),
    ];
    for (code, value) in counts {
        if let Some(value) = value {
            raw_option(out, code, &[&value.to_le_bytes()]);
        }
    }
    end(out, block);
}

/// Longest value of an option: padded to a multiple of four, its length still fits into 16 bits.
const MAX_OPTION: usize = 0xfffc;

/// Begins a block and returns its position. [`end`] fills in the length.
fn begin(out: &mut Vec<u8>, kind: u32) -> usize {
    let block = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    block
}

/// Ends the options, and the block that begins at `block`.
fn end(out: &mut Vec<u8>, block: usize) {
    out.extend_from_slice(&[0; 4]);
    let length = clamp(out.len() - block + 4).to_le_bytes();
    out.extend_from_slice(&length);
    if let Some(field) = out.get_mut(block + 4..block + 8) {
        field.copy_from_slice(&length);
    }
}

fn text(out: &mut Vec<u8>, code: u16, value: &str) {
    if !value.is_empty() {
        raw_option(out, code, &[cut(value, MAX_OPTION).as_bytes()]);
    }
}

/// Appends an option whose value is the `parts`, together at most [`MAX_OPTION`] bytes.
fn raw_option(out: &mut Vec<u8>, code: u16, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(padding(length));
}

/// The zeros that fill `length` bytes up to a multiple of four.
#[inline]
fn padding(length: usize) -> &'static [u8] {
    [0; 3].get(..length.wrapping_neg() % 4).unwrap_or_default()
}

fn timestamp(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&high(value).to_le_bytes());
    out.extend_from_slice(&low(value).to_le_bytes());
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
fn low(value: u64) -> u32 {
    value as u32
}

fn clamp(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
