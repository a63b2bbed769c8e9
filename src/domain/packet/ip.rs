//! IPv4, and what both versions have in common. <https://www.rfc-editor.org/rfc/rfc791>

use super::{
    Cut, Dissector, Result,
    checksum::Sum,
    names::ip_protocol,
    text::{Flags, Hex, V4, named},
};

const HEADER: usize = 20;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

const MORE_FRAGMENTS: u16 = 0x2000;

/// The IP packet that a payload is in.
#[derive(Clone, Copy)]
pub(super) struct Carrier {
    /// The position of its IP header.
    pub(super) at: usize,
    pub(super) is_v6: bool,
    /// Whether the payload is the first of several fragments.
    pub(super) fragmented: bool,
}

impl Dissector<'_> {
    pub(super) fn ip(&mut self, at: usize, length: usize) -> Result {
        self.nested(|this| this.ip4(at, length))
    }

    fn ip4(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "ip";
        let first = self.u8(at)?;
        match first >> 4 {
            4 => {}
            6 => {
                self.put("IP6, wrong link-layer encapsulation");
                self.invalid();
                return Ok(());
            }
            version => {
                self.put(("IP", version));
                self.invalid();
                return Ok(());
            }
        }
        if !self.link_layer() {
            self.put("IP ");
        }
        if !self.has(at, HEADER) {
            self.truncated();
            return Ok(());
        }
        if length < HEADER {
            self.put(("truncated-ip ", length));
            return Ok(());
        }
        let header = usize::from(first & 0xf) * 4;
        if header < HEADER {
            self.put(("bad-hlen ", header));
            return Ok(());
        }
        let stated = usize::from(self.u16(at + 2)?);
        if length < stated {
            self.put(("truncated-ip - ", stated - length, " bytes missing! "));
        }
        if stated < header {
            self.put(("bad-len ", stated));
            return Ok(());
        }
        let saved = self.clip(at, stated);
        let result = self.ip4_in(at, header, stated - header);
        if result.is_ok() {
            self.data = saved;
        }
        result
    }

    /// Prints an IPv4 packet whose lengths are consistent.
    fn ip4_in(&mut self, at: usize, header: usize, payload_length: usize) -> Result {
        let fragment = self.u16(at + 6)?;
        let protocol = self.u8(at + 9)?;
        let (source, destination) = (self.v4(at + 12)?, self.v4(at + 16)?);
        if self.verbose() && !self.ip4_header(at, header, fragment, protocol)? {
            self.put((source, " > ", destination, ": "));
            self.truncated();
            return Ok(());
        }
        if fragment & 0x1fff != 0 {
            if self.options.quiet > 1 {
                return Ok(());
            }
            self.put((source, " > ", destination, ": ip-proto-", protocol));
            return Ok(());
        }
        if !matches!(protocol, TCP | UDP) {
            self.put((source, " > ", destination, ": "));
        }
        if !self.has(at, header) {
            let available = self.available(at);
            self.put((" [remaining caplen(", available, ") < header length(", header, ")]"));
            return Err(Cut);
        }
        let carrier = Carrier { at, is_v6: false, fragmented: fragment & MORE_FRAGMENTS != 0 };
        self.ip_payload(at + header, payload_length, protocol, carrier)
    }

    /// Prints the header's fields for `-v`. Returns whether all options were captured.
    fn ip4_header(
        &mut self,
        at: usize,
        header: usize,
        fragment: u16,
        protocol: u8,
    ) -> Result<bool> {
        let service = self.u8(at + 1)?;
        let congestion = match service & 3 {
            0 => "",
            1 => ",ECT(1)",
            2 => ",ECT(0)",
            _ => ",CE",
        };
        self.put(("(tos 0x", Hex(service.into()), congestion));
        let ttl = self.u8(at + 8)?;
        if ttl >= 1 {
            self.put((", ttl ", ttl));
        }
        let names = [(0x2000, "+"), (0x4000, "DF"), (0x8000, "rsvd")];
        let flags = Flags { value: u32::from(fragment) & 0xe000, names: &names, between: ", " };
        let offset = u32::from(fragment & 0x1fff) * 8;
        self.put((
            ", id ",
            self.u16(at + 4)?,
            ", offset ",
            offset,
            ", flags [",
            flags,
            "], proto ",
        ));
        self.put((ip_protocol(protocol), " (", protocol, "), length ", self.u16(at + 2)?));
        let mut whole = true;
        if header > HEADER {
            self.put(", options (");
            whole = self.ip4_options(at + HEADER, header - HEADER)?;
            if !whole {
                self.put(" [truncated-option]");
            }
            self.put(")");
        }
        if let Ok(bytes) = self.bytes(at, header) {
            let found = self.u16(at + 10)?;
            if let Some(right) = Sum::default().add(bytes).should_be(found) {
                self.put((", bad cksum ", Hex(found.into()), " (->", Hex(right.into()), ")!"));
            }
        }
        self.put(")\n    ");
        Ok(whole)
    }

    /// Prints the options. Returns whether all of them were captured.
    fn ip4_options(&mut self, mut at: usize, mut left: usize) -> Result<bool> {
        let mut between = "";
        while left > 0 {
            self.put(between);
            between = ",";
            let code = self.u8(at)?;
            let name = match code {
                0 => Some("EOL"),
                1 => Some("NOP"),
                7 => Some("RR"),
                68 => Some("timestamp"),
                82 => Some("traceroute"),
                130 => Some("security"),
                131 => Some("LSRR"),
                137 => Some("SSRR"),
                148 => Some("RA"),
                _ => None,
            };
            self.put(named(name, ("unknown ", code)));
            let mut length = 1;
            if code > 1 {
                length = usize::from(self.u8(at + 1)?);
            }
            if code > 1 && length < 2 || length > left {
                self.put((" [bad length ", length, "]"));
                return Ok(true);
            }
            if !self.has(at, length) {
                return Ok(false);
            }
            match code {
                0 => return Ok(true),
                68 | 7 | 131 | 137 => {
                    let whole = if code == 68 {
                        self.ip4_timestamps(at, length)?
                    } else {
                        self.ip4_route(at, length)?
                    };
                    if !whole {
                        return Ok(false);
                    }
                }
                148 if length < 4 => self.put((" [bad length ", length, "]")),
                148 => {
                    let value = self.u16(at + 2)?;
                    if value != 0 {
                        self.put((" value ", value));
                    }
                }
                _ => {}
            }
            at += length;
            left -= length;
        }
        Ok(true)
    }

    /// Prints a recorded or a source route. Returns whether it was captured whole.
    fn ip4_route(&mut self, at: usize, length: usize) -> Result<bool> {
        if length < 3 {
            self.put((" [bad length ", length, "]"));
            return Ok(true);
        }
        if (length + 1) & 3 != 0 {
            self.put((" [bad length ", length, "]"));
        }
        let stated = self.u8(at + 2)?;
        let pointer = u32::from(stated).wrapping_sub(1) as usize;
        if pointer < 3 || (pointer + 1) & 3 != 0 || pointer > length + 1 {
            self.put((" [bad ptr ", stated, "]"));
        }
        for offset in (3..length).step_by(4) {
            let Ok(address) = self.v4(at + offset) else { return Ok(false) };
            self.put((" ", address));
            if pointer > offset {
                self.put(",");
            }
        }
        Ok(true)
    }

    /// Prints the timestamp option. Returns whether it was captured whole.
    fn ip4_timestamps(&mut self, at: usize, length: usize) -> Result<bool> {
        if length < 4 {
            self.put(("[bad length ", length, "]"));
            return Ok(true);
        }
        self.put(" TS{");
        let kind = self.u8(at + 3)?;
        let with_addresses = kind & 0xf != 0;
        let hop = if with_addresses { 8 } else { 4 };
        if (length - 4) & (hop - 1) != 0 {
            self.put(("[bad length ", length, "]"));
        }
        let stated = self.u8(at + 2)?;
        let pointer = u32::from(stated).wrapping_sub(1) as usize;
        if pointer < 4 || (pointer - 4) & (hop - 1) != 0 || pointer > length + 1 {
            self.put(("[bad ptr ", stated, "]"));
        }
        let mut offset = 0;
        match kind & 0xf {
            0 => self.put("TSONLY"),
            1 => self.put("TS+ADDR"),
            3 => self.put("PRESPEC"),
            other => self.put(("[bad ts type ", other, "]")),
        }
        if matches!(kind & 0xf, 0 | 1 | 3) {
            offset = 4;
            while offset < length {
                if !self.has(at + offset, hop) {
                    return Ok(false);
                }
                let before = if pointer == offset { " ^ " } else { " " };
                let time = self.u32(at + offset + hop - 4)?;
                let address = if with_addresses { Some(self.v4(at + offset)?) } else { None };
                self.put((before, time, "@", address));
                offset += hop;
            }
        }
        if pointer == offset {
            self.put(" ^ ");
        }
        if kind >> 4 == 0 {
            self.put("}");
        } else {
            self.put((" [", kind >> 4, " hops not recorded]} "));
        }
        Ok(true)
    }

    /// Prints the payload of an IP packet of either version.
    pub(super) fn ip_payload(
        &mut self,
        at: usize,
        length: usize,
        protocol: u8,
        carrier: Carrier,
    ) -> Result {
        let wrong_version = |this: &mut Self, needed: &str| {
            this.put(("[", ip_protocol(protocol), " requires ", needed, "]"));
            this.invalid();
            Ok(())
        };
        match protocol {
            TCP => self.tcp(at, length, carrier),
            UDP => self.udp(at, length, carrier),
            1 if carrier.is_v6 => wrong_version(self, "IPv4"),
            1 => self.icmp(at, length, carrier),
            58 if carrier.is_v6 => self.icmp6(at, length, carrier),
            58 => wrong_version(self, "IPv6"),
            2 if carrier.is_v6 => wrong_version(self, "IPv4"),
            2 => self.igmp(at, length),
            4 => self.ip(at, length),
            41 => self.ip6(at, length),
            59 => {
                self.put("no next header");
                Ok(())
            }
            77 => {
                self.put((" nd ", length));
                Ok(())
            }
            143 if !carrier.is_v6 => wrong_version(self, "IPv6"),
            143 => self.inner_ethernet(at, length),
            other => {
                self.put((" ip-proto-", other, " ", length));
                Ok(())
            }
        }
    }

    /// The sum of the pseudo-header that the checksum of a payload includes.
    pub(super) fn pseudo_header(
        &self,
        carrier: Carrier,
        protocol: u8,
        length: usize,
    ) -> Result<Sum> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if carrier.is_v6 {
            let source = self.v6(carrier.at + 8)?;
            let destination = self.ip6_final_destination(carrier.at)?;
            let sum = Sum::default().add(&source.0).add(&destination.0).add(&length.to_be_bytes());
            return Ok(sum.add(&[0, protocol]));
        }
        let source = self.v4(carrier.at + 12)?;
        let destination = self.ip4_final_destination(carrier.at)?;
        let [.., high, low] = length.to_be_bytes();
        Ok(Sum::default().add(&source.0).add(&destination.0).add(&[0, protocol, high, low]))
    }

    /// The final destination, which a source route changes.
    fn ip4_final_destination(&self, at: usize) -> Result<V4> {
        let stated = self.v4(at + 16)?;
        let header = usize::from(self.u8(at)? & 0xf) * 4;
        let mut offset = HEADER;
        while offset < header {
            let code = self.u8(at + offset)?;
            let length = match code {
                0 => break,
                1 => 1,
                _ => usize::from(self.u8(at + offset + 1)?),
            };
            if length == 0
                || code > 1 && length < 2
                || offset + length > header
                || !self.has(at + offset, length)
            {
                break;
            }
            if matches!(code, 131 | 137) && length >= 7 {
                return self.v4(at + offset + length - 4);
            }
            offset += length;
        }
        Ok(stated)
    }
}
