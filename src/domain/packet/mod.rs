//! Packets as text: byte for byte what tcpdump 4.99 prints for them with `-n`.
//!
//! ```
//! use podsonde::domain::packet::{PrintOptions, Packet, Printer};
//!
//! let mut printer = Printer::new(PrintOptions { timestamps: 1, ..PrintOptions::default() });
//! let mut line = Vec::new();
//! let udp = [
//!     0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
//!     0x30, 0x39, 0x04, 0xd2, 0, 12, 0, 0, 1, 2, 3, 4, // UDP
//! ];
//! let packet = Packet { linktype: 101, original_length: 32, data: &udp, ..Packet::default() };
//! printer.print(&packet, &mut line);
//! assert_eq!(line, b"IP 10.0.0.1.12345 > 10.0.0.2.1234: UDP, length 4\n");
//! ```
//!
//! The printer decodes Ethernet, VLAN tags, LLC/SNAP, both kinds of Linux cooked captures, raw IP
//! and BSD loopback; ARP, IPv4, IPv6 with its extension headers, TCP, UDP, ICMP, ICMPv6 with
//! neighbour discovery and MLD, IGMP, DNS, HTTP/1 and similar text protocols, Redis, VXLAN and
//! Geneve. For everything else it prints the length, as tcpdump does for what it does not know.
//! Addresses and ports are always numbers: nothing is looked up.
//!
//! The code is pure and cannot panic on any bytes: every read is checked. A packet that ends too
//! early is printed up to there and then as `[|protocol]`, and so is a packet nested in more than
//! two dozen others. A [`Printer`] remembers the first sequence numbers of a bounded number of TCP
//! connections.
//!
//! What tcpdump prints decides, also where it is odd: the order in which fields are checked shows
//! in what a short packet prints, and its 32-bit arithmetic shows in impossible lengths. A comment
//! says where code follows tcpdump rather than the protocol.

mod arp;
mod checksum;
mod dns;
mod dump;
mod flows;
mod icmp;
mod icmp6;
mod igmp;
mod ip;
mod ip6;
mod lines;
mod link;
mod llc;
mod names;
mod resp;
mod tcp;
mod text;
mod time;
mod tunnel;
mod udp;

use std::collections::BTreeMap;

use flows::Flows;
use text::{Show, V4, V6};
use time::Clock;

/// Longest packet, captured or on the wire, that is decoded, in bytes; as in tcpdump.
const MAX_LENGTH: u32 = 262_144;

/// How deeply packets may be nested, in tunnels and in the quotes of ICMP errors.
const MAX_DEPTH: u8 = 24;

/// What to print, named after tcpdump's flags. Numbers count how often a flag was given.
#[derive(Debug, Clone)]
pub struct PrintOptions {
    /// `-#`: number the packets.
    pub number: bool,
    /// `-t`: 0 prints the time of day, 1 nothing, 2 seconds since 1970, 3 the time since the
    /// previous packet, 4 date and time, 5 the time since the first packet.
    pub timestamps: u8,
    /// `--nano`: nanoseconds instead of microseconds.
    pub nanoseconds: bool,
    /// The zone of printed dates and times of day; UTC by default.
    pub time_zone: jiff::tz::TimeZone,
    /// `-e`: the link-layer header.
    pub link_layer: bool,
    /// `-v`: print more of each header; up to three times.
    pub verbose: u8,
    /// `-q`: print less.
    pub quiet: u8,
    /// `-S`: print absolute sequence numbers, not relative to the connection's first.
    pub absolute_sequence: bool,
    /// `-x`: dump in hex; twice includes the link-layer header.
    pub hex: u8,
    /// `-X`: dump in hex and ASCII; twice includes the link-layer header.
    pub hex_ascii: u8,
    /// `-A`: dump in ASCII; twice includes the link-layer header.
    pub ascii: u8,
}

impl Default for PrintOptions {
    fn default() -> Self {
        Self {
            number: false,
            timestamps: 0,
            nanoseconds: false,
            time_zone: jiff::tz::TimeZone::UTC,
            link_layer: false,
            verbose: 0,
            quiet: 0,
            absolute_sequence: false,
            hex: 0,
            hex_ascii: 0,
            ascii: 0,
        }
    }
}

/// A captured packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Link type ([`super::pcapng::linktype`]).
    pub linktype: u16,
    /// Nanoseconds since 1970.
    pub timestamp: u64,
    /// Length on the wire in bytes.
    pub original_length: u32,
    /// What was captured of it.
    pub data: &'a [u8],
    /// Names of interfaces by index, for link type LINUX_SLL2. An unknown one prints as `?`.
    pub interfaces: &'a BTreeMap<u32, String>,
}

impl Default for Packet<'_> {
    fn default() -> Self {
        static NONE: BTreeMap<u32, String> = BTreeMap::new();
        Self { linktype: 0, timestamp: 0, original_length: 0, data: &[], interfaces: &NONE }
    }
}

/// Prints packets one after the other, because some text depends on earlier packets.
#[derive(Debug)]
pub struct Printer {
    options: PrintOptions,
    flows: Flows,
    clock: Clock,
    printed: u64,
}

impl Printer {
    /// A printer that has printed nothing yet.
    pub fn new(options: PrintOptions) -> Self {
        Self { options, flows: Flows::default(), clock: Clock::default(), printed: 0 }
    }

    /// Appends the packet's text, which ends in a newline. Some options take more than one line.
    pub fn print(&mut self, packet: &Packet<'_>, out: &mut Vec<u8>) {
        self.printed += 1;
        if self.options.number {
            dump::number(self.printed, out);
        }
        if !dump::plausible(packet, out) {
            return;
        }
        self.clock.print(&self.options, packet.timestamp, out);
        let mut dissector = Dissector {
            data: packet.data,
            out,
            options: &self.options,
            flows: &mut self.flows,
            interfaces: packet.interfaces,
            protocol: "",
            depth: 0,
        };
        let header = dissector
            .link(packet.linktype, packet.original_length as usize)
            .unwrap_or_else(|Cut| {
                dissector.truncated();
                0
            });
        dump::print(&self.options, packet.data, header, out);
        out.push(b'\n');
    }
}

/// The packet ended before what was to be read.
struct Cut;

type Result<T = ()> = std::result::Result<T, Cut>;

/// One packet while it is printed. Positions are offsets into the captured bytes. They may lie
/// beyond the end, where every read fails.
struct Dissector<'a> {
    /// The captured bytes, up to the end of the innermost packet.
    data: &'a [u8],
    out: &'a mut Vec<u8>,
    options: &'a PrintOptions,
    flows: &'a mut Flows,
    interfaces: &'a BTreeMap<u32, String>,
    /// The protocol that `[|…]` names if the packet ends too early.
    protocol: &'static str,
    /// How many packets this one is nested in.
    depth: u8,
}

impl<'a> Dissector<'a> {
    #[inline]
    fn put(&mut self, item: impl Show) {
        item.show(self.out);
    }

    /// Prints that the packet ends too early, in the protocol that is being decoded.
    fn truncated(&mut self) {
        self.put((" [|", self.protocol, "]"));
    }

    /// Prints that a value is not possible.
    fn invalid(&mut self) {
        self.put(" (invalid)");
    }

    /// Whether `length` bytes were captured at `at`.
    #[inline]
    fn has(&self, at: usize, length: usize) -> bool {
        at.checked_add(length).is_some_and(|end| end <= self.data.len())
    }

    /// Fails unless `length` bytes were captured at `at`.
    #[inline]
    fn need(&self, at: usize, length: usize) -> Result {
        if self.has(at, length) { Ok(()) } else { Err(Cut) }
    }

    /// How many bytes were captured from `at` on.
    fn available(&self, at: usize) -> usize {
        self.data.len().saturating_sub(at)
    }

    #[inline]
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        self.data.get(at..).and_then(|bytes| bytes.first_chunk()).copied().ok_or(Cut)
    }

    fn bytes(&self, at: usize, length: usize) -> Result<&'a [u8]> {
        at.checked_add(length).and_then(|end| self.data.get(at..end)).ok_or(Cut)
    }

    /// Up to `length` bytes at `at`, fewer if the packet ends.
    fn up_to(&self, at: usize, length: usize) -> &'a [u8] {
        let bytes = self.data.get(at..).unwrap_or_default();
        bytes.get(..length).unwrap_or(bytes)
    }

    #[inline]
    fn u8(&self, at: usize) -> Result<u8> {
        self.data.get(at).copied().ok_or(Cut)
    }

    #[inline]
    fn u16(&self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn u24(&self, at: usize) -> Result<u32> {
        let [a, b, c] = self.array(at)?;
        Ok(u32::from_be_bytes([0, a, b, c]))
    }

    #[inline]
    fn u32(&self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    #[inline]
    fn v4(&self, at: usize) -> Result<V4> {
        self.array(at).map(V4)
    }

    #[inline]
    fn v6(&self, at: usize) -> Result<V6> {
        self.array(at).map(V6)
    }

    /// Ends the packet `length` bytes behind `at`, unless it ends before. Returns the bytes as they
    /// were, for the caller to restore.
    fn clip(&mut self, at: usize, length: usize) -> &'a [u8] {
        let whole = self.data;
        if let Some(shorter) = at.checked_add(length).and_then(|end| whole.get(..end)) {
            self.data = shorter;
        }
        whole
    }

    /// Prints a packet in a packet, unless it is nested too deeply.
    fn nested(&mut self, inner: impl FnOnce(&mut Self) -> Result) -> Result {
        if self.depth >= MAX_DEPTH {
            return Err(Cut);
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn verbose(&self) -> bool {
        self.options.verbose > 0
    }

    fn quiet(&self) -> bool {
        self.options.quiet > 0
    }

    fn link_layer(&self) -> bool {
        self.options.link_layer
    }

    /// Dumps a packet of an unknown protocol, unless an option dumps it anyway.
    fn unknown(&mut self, at: usize, length: usize) -> Result {
        let options = self.options;
        if options.quiet > 0 || options.hex > 0 || options.hex_ascii > 0 {
            return Ok(());
        }
        self.dump(at, length)
    }

    /// Dumps in hex and ASCII.
    fn dump(&mut self, at: usize, length: usize) -> Result {
        dump::hex_ascii("\n\t", self.up_to(at, length), self.out);
        self.need(at, length)
    }

    /// Dumps in hex what was captured, each line after the indentation.
    fn dump_hex(&mut self, indentation: &str, at: usize, length: usize) {
        dump::hex(indentation, self.up_to(at, length), self.out);
    }
}

#[cfg(test)]
mod tests;
