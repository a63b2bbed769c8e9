//! The link layer: Ethernet, VLAN tags, Linux cooked captures, BSD loopback, and none (raw IP).

use super::{
    Dissector, Result,
    names::ethertype,
    text::{Link, Padded, named},
};
use crate::domain::{pcapng::linktype, text};

const VLAN: u16 = 0x8100;
/// Up to this value, the field behind an Ethernet address is a length, not a type.
const MAX_LENGTH_FIELD: u16 = 1500;

/// The offsets of the fields of the two kinds of cooked headers.
struct Cooked {
    length: usize,
    protocol: usize,
    hardware: usize,
    address_length: usize,
    address: usize,
}

const SLL: Cooked = Cooked { length: 16, protocol: 14, hardware: 2, address_length: 5, address: 6 };
const SLL2: Cooked =
    Cooked { length: 20, protocol: 0, hardware: 8, address_length: 11, address: 12 };

impl Dissector<'_> {
    /// Prints a packet. Returns the length of its link-layer header, which dumps can leave out.
    pub(super) fn link(&mut self, linktype: u16, length: usize) -> Result<usize> {
        match linktype {
            linktype::ETHERNET => {
                self.protocol = "ether";
                self.ethernet(0, length)
            }
            linktype::LINUX_SLL2 => self.sll2(length),
            linktype::LINUX_SLL => self.sll(length),
            linktype::RAW | linktype::IPV4 | linktype::IPV6 => {
                self.protocol = "raw";
                if self.link_layer() {
                    self.put("ip: ");
                }
                self.ip_of_any_version(0, length)?;
                Ok(0)
            }
            linktype::NULL | linktype::LOOP => self.null(length),
            other => {
                self.put(("[unsupported link type ", other, "]"));
                self.unknown(0, self.data.len())?;
                Ok(0)
            }
        }
    }

    /// Prints an Ethernet frame. Returns the length of its headers.
    pub(super) fn ethernet(&mut self, at: usize, length: usize) -> Result<usize> {
        let captured = self.available(at);
        if length < captured {
            self.put(("[length ", length, " < caplen ", captured, "]"));
            self.invalid();
            return Ok(length);
        }
        if captured < 14 {
            self.truncated();
            return Ok(captured);
        }
        let whole = length;
        if self.link_layer() {
            self.addresses(at)?;
        }
        let mut length = length.saturating_sub(14);
        let mut kind = self.u16(at + 12)?;
        let mut header = 14;
        let mut printed_length = false;
        while matches!(kind, VLAN | 0x9100 | 0x9200 | 0x88a8) {
            let available = self.available(at + header);
            if available < 4 || length < 4 {
                self.protocol = "vlan";
                self.truncated();
                return Ok(header + available.min(length));
            }
            if self.link_layer() {
                self.ethertype(kind);
                if printed_length {
                    self.put(", ");
                } else {
                    self.put((", length ", whole, ": "));
                    printed_length = true;
                }
                self.vlan(at + header)?;
            }
            kind = self.u16(at + header + 2)?;
            header += 4;
            length -= 4;
        }
        let payload = at + header;
        if kind <= MAX_LENGTH_FIELD {
            length = length.min(kind.into());
            let saved = self.clip(payload, length);
            if self.link_layer() {
                self.put("802.3");
                if !printed_length {
                    self.put((", length ", length, ": "));
                }
            }
            let (llc, known) = self.llc(payload, length, Some(at))?;
            if !known {
                self.unknown(payload, self.available(payload))?;
            }
            self.data = saved;
            return Ok(header + llc);
        }
        if self.link_layer() {
            self.ethertype(kind);
            if printed_length {
                self.put(", ");
            } else {
                self.put((", length ", whole, ": "));
            }
        }
        if !self.by_ethertype(kind, payload, length)? {
            if !self.link_layer() {
                self.addresses(at)?;
                self.ethertype(kind);
                self.put((", length ", whole, ": "));
            }
            self.unknown(payload, self.available(payload))?;
        }
        Ok(header)
    }

    fn addresses(&mut self, at: usize) -> Result {
        let (source, destination) = (self.bytes(at + 6, 6)?, self.bytes(at, 6)?);
        self.put((Link(source), " > ", Link(destination), ", "));
        Ok(())
    }

    fn ethertype(&mut self, kind: u16) {
        let number = Padded::<4>(kind.into());
        if self.quiet() {
            self.put(named(ethertype(kind), ("Unknown Ethertype (0x", number, ")")));
        } else {
            self.put(("ethertype ", ethertype(kind).unwrap_or("Unknown"), " (0x", number, ")"));
        }
    }

    fn vlan(&mut self, at: usize) -> Result {
        let tag = self.u16(at)?;
        let dropped = if tag & 0x1000 == 0 { "" } else { ", DEI" };
        self.put(("vlan ", tag & 0xfff, ", p ", tag >> 13, dropped, ", "));
        Ok(())
    }

    /// Prints a payload by its EtherType. Returns whether that is a known one.
    pub(super) fn by_ethertype(&mut self, kind: u16, at: usize, length: usize) -> Result<bool> {
        match kind {
            0x0800 => self.ip(at, length)?,
            0x86dd => self.ip6(at, length)?,
            0x0806 | 0x8035 => self.arp(at, length)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn sll(&mut self, length: usize) -> Result<usize> {
        self.protocol = "sll";
        self.need(0, SLL.length)?;
        if self.link_layer() {
            self.sll_header(length)?;
        }
        self.cooked(&SLL, length)
    }

    fn sll_header(&mut self, length: usize) -> Result {
        self.protocol = "sll";
        let direction = packet_type(self.u16(0)?);
        self.put(("   ".get(direction.len()..), direction, " "));
        self.cooked_header(&SLL, length)
    }

    fn sll2(&mut self, length: usize) -> Result<usize> {
        self.protocol = "sll2";
        self.need(0, SLL2.length)?;
        // A pod may call its interfaces what it likes, and the author of a file even more so.
        let name = text::escape(self.interfaces.get(&self.u32(4)?).map_or("?", String::as_str));
        let direction = packet_type(self.u8(10)?.into());
        self.put((
            &*name,
            "     ".get(name.len()..),
            " ",
            direction,
            "   ".get(direction.len()..),
            " ",
        ));
        if self.link_layer() {
            self.sll2_header(length)?;
        }
        self.cooked(&SLL2, length)
    }

    fn sll2_header(&mut self, length: usize) -> Result {
        self.protocol = "sll2";
        self.put(("ifindex ", self.u32(4)?, " "));
        self.cooked_header(&SLL2, length)
    }

    /// Prints the fields that both kinds of cooked headers have.
    fn cooked_header(&mut self, layout: &Cooked, length: usize) -> Result {
        let is_long = layout.length == SLL.length && self.u8(layout.address_length - 1)? != 0;
        if self.u8(layout.address_length)? == 6 && !is_long {
            self.put((Link(self.bytes(layout.address, 6)?), " "));
        }
        if !self.quiet() {
            match self.u16(layout.protocol)? {
                1 => self.put("802.3"),
                4 => self.put("802.2"),
                kind => {
                    let name =
                        ethertype(kind).filter(|_| kind > MAX_LENGTH_FIELD).unwrap_or("Unknown");
                    self.put(("ethertype ", name, " (0x", Padded::<4>(kind.into()), ")"));
                }
            }
            self.put((", length ", length, ": "));
        }
        Ok(())
    }

    /// Prints the payload of a cooked header.
    fn cooked(&mut self, layout: &Cooked, whole: usize) -> Result<usize> {
        let mut header = layout.length;
        let mut length = whole.saturating_sub(header);
        let mut kind = self.u16(layout.protocol)?;
        // Hardware type 803 has a radiotap header, which is not decoded.
        let is_radio = self.u16(layout.hardware)? == 803;
        while kind == VLAN && !is_radio {
            if self.available(header) < 4 {
                self.protocol = "vlan";
                self.truncated();
                return Ok(header + self.available(header));
            }
            if self.link_layer() {
                self.vlan(header)?;
            }
            kind = self.u16(header + 2)?;
            if kind <= MAX_LENGTH_FIELD {
                kind = 4;
            }
            if !self.quiet() {
                self.put(("ethertype ", ethertype(kind).unwrap_or("Unknown"), ", "));
            }
            header += 4;
            length = length.saturating_sub(4);
        }
        if kind <= MAX_LENGTH_FIELD || is_radio {
            let (llc, known) = if kind == 4 { self.llc(header, length, None)? } else { (0, false) };
            if !known {
                self.unknown(header, self.available(header))?;
                return Ok(header);
            }
            return Ok(header + llc);
        }
        if !self.by_ethertype(kind, header, length)? {
            if !self.link_layer() {
                let length = length + layout.length;
                if layout.length == SLL.length {
                    self.sll_header(length)?;
                } else {
                    self.sll2_header(length)?;
                }
            }
            self.unknown(header, self.available(header))?;
        }
        Ok(header)
    }

    fn null(&mut self, length: usize) -> Result<usize> {
        self.protocol = "null";
        self.need(0, 4)?;
        let family = self.u32(0)?.swap_bytes();
        // The field is in the byte order of the capturing machine, or of the network.
        let family = if family & 0xffff_0000 == 0 { family } else { family.swap_bytes() };
        if self.link_layer() {
            self.family(family, length);
        }
        match family {
            2 => self.ip(4, length.saturating_sub(4))?,
            24 | 28 | 30 => self.ip6(4, length.saturating_sub(4))?,
            _ => {
                if !self.link_layer() {
                    self.family(family, length);
                }
                self.unknown(4, self.available(4))?;
            }
        }
        Ok(4)
    }

    fn family(&mut self, family: u32, length: usize) {
        let name = match family {
            2 => Some("IPv4"),
            6 => Some("NS"),
            7 => Some("ISO"),
            16 => Some("Appletalk"),
            23 => Some("IPX"),
            24 | 28 | 30 => Some("IPv6"),
            _ => None,
        };
        if self.quiet() {
            self.put(named(name, ("Unknown AF ", family)));
        } else {
            self.put(("AF ", name.unwrap_or("Unknown"), " (", family, ")"));
        }
        self.put((", length ", length, ": "));
    }

    /// Prints a packet of IPv4 or IPv6, by the version in its header.
    fn ip_of_any_version(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "ipn";
        if length < 1 {
            self.put(("truncated-ip ", length));
            return Ok(());
        }
        match self.u8(at)? >> 4 {
            4 => self.ip(at, length),
            6 => self.ip6(at, length),
            other => {
                self.put(("unknown ip ", other));
                Ok(())
            }
        }
    }
}

/// The direction of a packet in a cooked capture.
fn packet_type(value: u16) -> &'static str {
    match value {
        0 => "In",
        1 => "B",
        2 => "M",
        3 => "P",
        4 => "Out",
        _ => "?",
    }
}
