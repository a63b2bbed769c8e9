//! ICMPv6: errors, echo, neighbour discovery, multicast listeners.
//! <https://www.rfc-editor.org/rfc/rfc4443>

use super::{
    Dissector, Result,
    ip::{Carrier, TCP, UDP},
    names::icmp6,
    text::{Flags, Link, Padded, V6, named},
};

/// The offset of the packet that an error quotes.
const QUOTE: usize = 8;

impl Dissector<'_> {
    pub(super) fn icmp6(&mut self, at: usize, length: usize, carrier: Carrier) -> Result {
        self.protocol = "icmp6";
        if length == 0 {
            self.put("ICMP6, length 0");
            self.invalid();
            return Ok(());
        }
        if self.verbose()
            && !carrier.fragmented
            && let Ok(message) = self.bytes(at, length)
        {
            let found = self.u16(at + 2)?;
            match self.pseudo_header(carrier, 58, length)?.add(message).should_be(found) {
                Some(right) => {
                    let (found, right) = (Padded::<4>(found.into()), Padded::<4>(right.into()));
                    self.put(("[bad icmp6 cksum 0x", found, " -> 0x", right, "!] "));
                }
                None => self.put("[icmp6 sum ok] "),
            }
        }
        let kind = self.u8(at)?;
        self.put(("ICMP6, ", named(icmp6(kind), ("unknown icmp6 type (", kind, ")"))));
        if self.verbose() && matches!(kind, 133..=137 | 145 | 147) {
            self.put((", length ", length));
        }
        let code = self.u8(at + 1)?;
        let whole = match kind {
            1 => match self.icmp6_unreachable(at, length, code)? {
                Some(whole) => whole,
                None => return Ok(()),
            },
            2 => {
                self.put((", mtu ", self.u32(at + 4)?));
                true
            }
            3 => {
                match code {
                    0 => self.put((" for ", self.v6(at + QUOTE + 24)?)),
                    1 => self.put(" (reassembly)"),
                    other => self.put((", unknown code (", other, ")")),
                }
                true
            }
            4 => self.icmp6_parameter(at, code)?,
            128 | 129 => {
                self.put((", id ", self.u16(at + 4)?, ", seq ", self.u16(at + 6)?));
                true
            }
            130 if length >= 28 => {
                self.put(" v2");
                self.mld2_query(at, length)?;
                true
            }
            130 if length != 24 => {
                self.put((" unknown-version (len ", length, ") "));
                true
            }
            130..=132 => self.mld(at)?,
            133..=137 => self.neighbour_discovery(kind, at, length)?,
            143 => {
                self.mld2_report(at, length)?;
                true
            }
            138..=142 | 155 => true,
            144 | 146 => {
                self.put((", id 0x", Padded::<4>(self.u16(at + 4)?.into())));
                true
            }
            145 | 147 if self.verbose() => self.mobility(kind, at, length)?,
            145 | 147 => true,
            _ => {
                self.put((", length ", length));
                if self.options.verbose <= 1 {
                    self.unknown_data("\n\t", at, length);
                }
                return Ok(());
            }
        };
        if !whole {
            self.truncated();
        } else if !self.verbose() {
            self.put((", length ", length));
        }
        Ok(())
    }

    /// Prints the message. Returns whether it was captured whole, or `None` if it was dumped
    /// instead.
    fn icmp6_unreachable(&mut self, at: usize, length: usize, code: u8) -> Result<Option<bool>> {
        let name = match code {
            0 => Some("unreachable route"),
            1 => Some(" unreachable prohibited"),
            2 => Some("beyond scope"),
            3 => Some("unreachable address"),
            4 => Some("unreachable port"),
            _ => None,
        };
        self.put((", ", named(name, ("unknown unreach code (", code, ")"))));
        let (source, destination) = (at + QUOTE + 8, at + QUOTE + 24);
        match code {
            0 | 1 | 3 => self.put((" ", self.v6(destination)?)),
            2 => self.put((" ", self.v6(destination)?, ", source address ", self.v6(source)?)),
            4 => {
                let Some((protocol, port)) = self.quoted_port(at + QUOTE) else {
                    return Ok(Some(false));
                };
                let name = if protocol == TCP { " tcp port " } else { " udp port " };
                self.put((", ", self.v6(destination)?, name, port));
            }
            _ if self.options.verbose <= 1 => {
                self.unknown_data("\n\t", at, length);
                return Ok(None);
            }
            _ => {}
        }
        Ok(Some(true))
    }

    /// The protocol and the destination port of a quoted packet, behind its extension headers.
    fn quoted_port(&self, at: usize) -> Option<(u8, u16)> {
        let mut next = self.u8(at + 6).ok()?;
        let mut header = at;
        let mut advance = 40;
        while header < self.data.len() {
            header += advance;
            match next {
                TCP | UDP => return Some((next, self.u16(header + 2).ok()?)),
                0 | 43 | 60 => {
                    advance = (usize::from(self.u8(header + 1).ok()?) + 1) * 8;
                    next = self.u8(header).ok()?;
                }
                44 => {
                    if self.u16(header + 2).ok()? & 0xfff8 != 0 {
                        return None;
                    }
                    advance = 8;
                    next = self.u8(header).ok()?;
                }
                51 => {
                    advance = (usize::from(self.u8(header + 1).ok()?) + 2) * 4;
                    next = self.u8(header).ok()?;
                }
                _ => return None,
            }
        }
        None
    }

    fn icmp6_parameter(&mut self, at: usize, code: u8) -> Result<bool> {
        if !self.has(at + QUOTE + 24, 16) {
            return Ok(false);
        }
        let what = match code {
            0 => ", erroneous - octet ",
            1 => ", next header - octet ",
            2 => ", option - octet ",
            3 => ", incomplete header chain - octet ",
            other => {
                self.put((", code-#", other));
                return Ok(true);
            }
        };
        self.put((what, self.u32(at + 4)?));
        Ok(true)
    }

    /// Prints a message of neighbour discovery. Returns whether it was captured whole.
    /// <https://www.rfc-editor.org/rfc/rfc4861>
    fn neighbour_discovery(&mut self, kind: u8, at: usize, length: usize) -> Result<bool> {
        let options = match kind {
            133 => 8,
            134 => {
                if self.verbose() {
                    self.router_advertisement(at)?;
                }
                16
            }
            135 => {
                self.put((", who has ", self.v6(at + 8)?));
                24
            }
            136 => {
                self.put((", tgt is ", self.v6(at + 8)?));
                if self.verbose() {
                    let names = [
                        (0x8000_0000, "router"),
                        (0x4000_0000, "solicited"),
                        (0x2000_0000, "override"),
                    ];
                    let flags = Flags { value: self.u32(at + 4)?, names: &names, between: ", " };
                    self.put((", Flags [", flags, "]"));
                }
                24
            }
            _ => {
                self.put((", ", self.v6(at + 24)?));
                self.put((" to ", self.v6(at + 8)?));
                40
            }
        };
        if !self.verbose() {
            return Ok(true);
        }
        self.discovery_options(at + options, length.checked_sub(options))
    }

    fn router_advertisement(&mut self, at: usize) -> Result {
        let flags = self.u8(at + 5)?;
        let names =
            [(0x80, "managed"), (0x40, "other stateful"), (0x20, "home agent"), (2, "ipv6 only")];
        let printed = Flags { value: flags.into(), names: &names, between: ", " };
        let (hops, lifetime) = (self.u8(at + 4)?, self.u16(at + 6)?);
        let (reachable, retransmit) = (self.u32(at + 8)?, self.u32(at + 12)?);
        self.put(("\n\thop limit ", hops, ", Flags [", printed, "], pref ", preference(flags)));
        self.put((
            ", router lifetime ",
            lifetime,
            "s, reachable time ",
            reachable,
            "ms, retrans timer ",
        ));
        self.put((retransmit, "ms"));
        Ok(())
    }

    /// Prints the options of neighbour discovery. Returns whether they are whole and well-formed.
    fn discovery_options(&mut self, begin: usize, left: Option<usize>) -> Result<bool> {
        let mut left = left.unwrap_or_default();
        let mut at = begin;
        while at < self.data.len() {
            if !self.has(at + 1, 1) {
                return Ok(false);
            }
            if left == 0 {
                return Ok(true);
            }
            let (kind, units) = (self.u8(at)?, self.u8(at + 1)?);
            let length = usize::from(units) * 8;
            if units == 0 || !self.has(at, length) {
                return Ok(false);
            }
            let name = match kind {
                1 => "source link-address",
                2 => "destination link-address",
                3 => "prefix info",
                4 => "redirected header",
                5 => "mtu",
                7 => "advertisement interval",
                8 => "homeagent information",
                24 => "route info",
                25 => "rdnss",
                31 => "dnssl",
                _ => "unknown",
            };
            self.put(("\n\t  ", name, " option (", kind, "), length ", length, " (", units, "): "));
            match kind {
                1 | 2 => self.put(Link(self.bytes(at + 2, length - 2)?)),
                3 => {
                    let names = [(0x80, "onlink"), (0x40, "auto"), (0x20, "router")];
                    let flags =
                        Flags { value: self.u8(at + 3)?.into(), names: &names, between: ", " };
                    let bad = if units == 4 { "" } else { "badlen" };
                    let (prefix, prefix_length) = (self.v6(at + 16)?, self.u8(at + 2)?);
                    let valid = self.u32(at + 4)?;
                    self.put((
                        prefix,
                        "/",
                        prefix_length,
                        bad,
                        ", Flags [",
                        flags,
                        "], valid time ",
                    ));
                    self.put(lifetime(valid));
                    self.put((", pref. time ", lifetime(self.u32(at + 8)?)));
                }
                4 => self.unknown_data("\n\t    ", begin, length),
                5 => {
                    let bad = if units == 1 { "" } else { "bad option length" };
                    self.put((" ", self.u32(at + 4)?, bad));
                }
                7 => self.put((" ", self.u32(at + 4)?, "ms")),
                8 => {
                    self.put((" preference ", self.u16(at + 4)?, ", lifetime ", self.u16(at + 6)?));
                }
                24 => {
                    let mut prefix = [0; 16];
                    let Some(there) = prefix.get_mut(..length - 8) else { return Ok(false) };
                    there.copy_from_slice(self.bytes(at + 8, length - 8)?);
                    self.put((" ", V6(prefix), "/", self.u8(at + 2)?));
                    self.put((", pref=", preference(self.u8(at + 3)?)));
                    self.put((", lifetime=", lifetime(self.u32(at + 4)?)));
                }
                25 => {
                    self.put((" lifetime ", self.u32(at + 4)?, "s,"));
                    for number in 0..usize::from((units - 1) / 2) {
                        self.put((" addr: ", self.v6(at + 8 + 16 * number)?));
                    }
                }
                31 => {
                    self.put((" lifetime ", self.u32(at + 4)?, "s, domain(s):"));
                    let mut domain = at + 8;
                    while domain < at + length && self.u8(domain)? != 0 {
                        self.put(" ");
                        match self.domain_name(domain, begin)? {
                            Some(after) => domain = after,
                            None => return Ok(false),
                        }
                    }
                }
                _ if self.options.verbose <= 1 => {
                    self.unknown_data("\n\t  ", at + 2, length - 2);
                    return Ok(true);
                }
                _ => {}
            }
            if self.options.verbose > 1 {
                self.unknown_data("\n\t    ", at + 2, length - 2);
            }
            at += length;
            left = left.saturating_sub(length);
        }
        Ok(true)
    }

    /// Prints home agents or their prefixes. Returns whether they were captured whole.
    /// <https://www.rfc-editor.org/rfc/rfc6275>
    fn mobility(&mut self, kind: u8, at: usize, length: usize) -> Result<bool> {
        self.put((", id 0x", Padded::<4>(self.u16(at + 4)?.into())));
        if kind == 145 {
            for offset in (8..length).step_by(16) {
                self.put((", ", self.v6(at + offset)?));
            }
            return Ok(true);
        }
        let flags = self.u16(at + 6)?;
        let names: [(u16, &str); 3] = [(0xc000, " "), (0x8000, "M"), (0x4000, "O")];
        for (bits, name) in names {
            if flags & bits != 0 {
                self.put(name);
            }
        }
        self.discovery_options(at + 8, length.checked_sub(8))
    }

    /// Multicast listener discovery, version 1. Prints nothing if it was not captured whole.
    fn mld(&mut self, at: usize) -> Result<bool> {
        if self.has(at, 24) {
            self.put(("max resp delay: ", self.u16(at + 4)?, " addr: ", self.v6(at + 8)?));
        }
        Ok(true)
    }

    /// Multicast listener discovery, version 2. <https://www.rfc-editor.org/rfc/rfc3810>
    fn mld2_query(&mut self, at: usize, length: usize) -> Result {
        let code = u32::from(self.u16(at + 4)?);
        if self.verbose() {
            let delay =
                if code < 32768 { code } else { (code & 0xfff | 0x1000) << ((code >> 12 & 7) + 3) };
            self.put((" [max resp delay=", delay, "]"));
        }
        self.put((" [gaddr ", self.v6(at + 8)?));
        if self.verbose() {
            let flags = self.u8(at + 24)?;
            if flags & 8 != 0 {
                self.put(" sflag");
            }
            if flags & 7 != 0 {
                self.put((" robustness=", flags & 7));
            }
            let code = u32::from(self.u8(at + 25)?);
            let interval =
                if code < 128 { code } else { (code & 0xf | 0x10) << ((code >> 4 & 7) + 3) };
            self.put((" qqi=", interval));
        }
        let sources = usize::from(self.u16(at + 26)?);
        if sources > 0 {
            if length < 28 + sources * 16 {
                self.put(" [invalid number of sources]");
            } else if self.options.verbose > 1 {
                self.group_sources(at + 28, sources, V6)?;
            } else {
                self.put((", ", sources, " source(s)"));
            }
        }
        self.put("]");
        Ok(())
    }

    fn mld2_report(&mut self, at: usize, length: usize) -> Result {
        if length < 8 {
            self.put((" [invalid len ", length, "]"));
            return Ok(());
        }
        self.group_records(at, length, V6, 2)
    }
}

/// The preference of a router or a route.
fn preference(flags: u8) -> &'static str {
    match flags >> 3 & 3 {
        0 => "medium",
        1 => "high",
        2 => "rsv",
        _ => "low",
    }
}

fn lifetime(seconds: u32) -> super::text::Named<(u32, &'static str)> {
    named((seconds == u32::MAX).then_some("infinity"), (seconds, "s"))
}
