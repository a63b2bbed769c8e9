//! ICMP, <https://www.rfc-editor.org/rfc/rfc792>, and its extensions,
//! <https://www.rfc-editor.org/rfc/rfc4884>.

use super::{
    Dissector, Result,
    checksum::Sum,
    ip::{Carrier, TCP, UDP},
    text::{Digits, Hex, Padded, V4},
};

/// The offset of the packet that an error quotes.
const QUOTE: usize = 8;
/// The offset of the extensions, if there are any and the message does not state a length.
const EXTENSIONS: usize = 136;
/// Longest description of a message in bytes, as in tcpdump's buffer.
const MAX_TEXT: usize = 163;

impl Dissector<'_> {
    pub(super) fn icmp(&mut self, at: usize, length: usize, carrier: Carrier) -> Result {
        self.protocol = "icmp";
        // tcpdump prints nothing at all if a field was not captured.
        let before = self.out.len();
        self.put("ICMP ");
        let begin = self.out.len();
        match self.icmp_message(at) {
            Ok(true) => {}
            Ok(false) => {
                self.out.truncate(before);
                self.truncated();
                return Ok(());
            }
            Err(cut) => {
                self.out.truncate(before);
                return Err(cut);
            }
        }
        self.out.truncate(begin + MAX_TEXT);
        self.put((", length ", length));
        if !self.verbose() {
            return Ok(());
        }
        if !carrier.fragmented
            && let Ok(message) = self.bytes(at, length)
        {
            let found = self.u16(at + 2)?;
            if let Some(right) = Sum::default().add(message).should_be(found) {
                self.put((
                    " (wrong icmp cksum ",
                    Hex(found.into()),
                    " (->",
                    Hex(right.into()),
                    ")!)",
                ));
            }
        }
        let kind = self.u8(at)?;
        if matches!(kind, 3 | 4 | 5 | 11 | 12) {
            self.put("\n\t");
            let quoted = usize::from(self.u16(at + QUOTE + 2)?);
            let saved = self.clip(at + QUOTE, quoted);
            self.need(at + QUOTE + 2, 2)?;
            self.ip(at + QUOTE, quoted)?;
            self.data = saved;
        }
        self.protocol = "icmp";
        if matches!(kind, 3 | 11 | 12) && length > EXTENSIONS {
            self.icmp_extensions(at, length)?;
        }
        Ok(())
    }

    /// Describes the message. Returns whether it was captured whole.
    fn icmp_message(&mut self, at: usize) -> Result<bool> {
        let (kind, code) = (self.u8(at)?, self.u8(at + 1)?);
        // The destination address in the quoted packet's header.
        let about = |this: &Self| this.v4(at + QUOTE + 16);
        match kind {
            0 | 8 => {
                let what = if kind == 8 { "request" } else { "reply" };
                self.put(("echo ", what, ", id ", self.u16(at + 4)?, ", seq ", self.u16(at + 6)?));
            }
            3 => return self.icmp_unreachable(at, code, about),
            5 => {
                let (about, to) = (about(self)?, self.v4(at + 4)?);
                match code {
                    0 => self.put(("redirect ", about, " to net ", to)),
                    1 => self.put(("redirect ", about, " to host ", to)),
                    2 => self.put(("redirect-tos ", about, " to net ", to)),
                    3 => self.put(("redirect-tos ", about, " to host ", to)),
                    other => self.put(("redirect-#", other, " ", about, " to ", to)),
                }
            }
            9 => return self.icmp_routers(at),
            11 => {
                if !self.has(at + QUOTE + 16, 4) {
                    return Ok(false);
                }
                match code {
                    0 => self.put("time exceeded in-transit"),
                    1 => self.put("ip reassembly time exceeded"),
                    other => self.put(("time exceeded-#", other)),
                }
            }
            12 if code != 0 => self.put(("parameter problem - code ", code)),
            12 => self.put(("parameter problem - octet ", self.u8(at + 4)?)),
            18 => self.put(("address mask is 0x", Padded::<8>(self.u32(at + 8)?))),
            13 => self.put(("time stamp query id ", self.u16(at + 4)?, " seq ", self.u16(at + 6)?)),
            14 => {
                if !self.has(at + 16, 4) {
                    return Ok(false);
                }
                self.put(("time stamp reply id ", self.u16(at + 4)?, " seq ", self.u16(at + 6)?));
                for (field, name) in [(8, ": org "), (12, ", recv "), (16, ", xmit ")] {
                    let time = self.u32(at + field)?;
                    let (second, minute) = (time / 1000 % 60, time / 60_000 % 60);
                    let (hour, milli) = (time / 3_600_000, Digits::<3>(time % 1000));
                    // The field can state more than 99 hours, although a day has 24.
                    if hour < 100 {
                        self.put((name, Digits::<2>(hour)));
                    } else {
                        self.put((name, hour));
                    }
                    self.put((":", Digits::<2>(minute), ":", Digits::<2>(second), ".", milli));
                }
            }
            4 => self.put("source quench"),
            10 => self.put("router solicitation"),
            15 => self.put("information request"),
            16 => self.put("information reply"),
            17 => self.put("address mask request"),
            other => self.put(("type-#", other)),
        }
        Ok(true)
    }

    fn icmp_unreachable(
        &mut self,
        at: usize,
        code: u8,
        about: impl Fn(&Self) -> Result<V4>,
    ) -> Result<bool> {
        let quote = at + QUOTE;
        if code == 3 {
            if !self.has(quote + 9, 1) {
                return Ok(false);
            }
            let port = self.u16(quote + usize::from(self.u8(quote)? & 0xf) * 4 + 2)?;
            let about = about(self)?;
            match self.u8(quote + 9)? {
                TCP => self.put((about, " tcp port ", port, " unreachable")),
                UDP => self.put((about, " udp port ", port, " unreachable")),
                other => self.put((about, " protocol ", other, " port ", port, " unreachable")),
            }
            return Ok(true);
        }
        // tcpdump checks the fields in this order, which shows in what a short packet prints.
        let mtu = if code == 4 { self.u16(at + 6)? } else { 0 };
        let about = about(self)?;
        match code {
            0 => self.put(("net ", about, " unreachable")),
            1 => self.put(("host ", about, " unreachable")),
            2 => self.put((about, " protocol ", self.u8(quote + 9)?, " unreachable")),
            4 if mtu == 0 => self.put((about, " unreachable - need to frag")),
            4 => self.put((about, " unreachable - need to frag (mtu ", mtu, ")")),
            5 => self.put((about, " unreachable - source route failed")),
            6 => self.put(("net ", about, " unreachable - unknown")),
            7 => self.put(("host ", about, " unreachable - unknown")),
            8 => self.put((about, " unreachable - source host isolated")),
            9 => self.put(("net ", about, " unreachable - admin prohibited")),
            10 => self.put(("host ", about, " unreachable - admin prohibited")),
            11 => self.put(("net ", about, " unreachable - tos prohibited")),
            12 => self.put(("host ", about, " unreachable - tos prohibited")),
            13 => self.put(("host ", about, " unreachable - admin prohibited filter")),
            14 => self.put(("host ", about, " unreachable - host precedence violation")),
            15 => self.put(("host ", about, " unreachable - precedence cutoff")),
            other => self.put((about, " unreachable - #", other)),
        }
        Ok(true)
    }

    fn icmp_routers(&mut self, at: usize) -> Result<bool> {
        self.put("router advertisement");
        if !self.has(at + 4, 4) {
            return Ok(false);
        }
        let lifetime = u32::from(self.u16(at + 6)?);
        let (minutes, seconds) = (lifetime / 60 % 60, Digits::<2>(lifetime % 60));
        self.put(" lifetime ");
        match lifetime {
            0..60 => self.put(lifetime),
            60..3600 => self.put((minutes, ":", seconds)),
            _ => self.put((lifetime / 3600, ":", Digits::<2>(minutes), ":", seconds)),
        }
        let (routers, size) = (self.u8(at + 4)?, self.u8(at + 5)?);
        self.put((" ", routers, ":"));
        if size != 2 {
            self.put((" [size ", size, "]"));
            return Ok(true);
        }
        for number in 0..usize::from(routers) {
            let router = at + 8 + 8 * number;
            if !self.has(router, 8) {
                return Ok(false);
            }
            self.put((" {", self.v4(router)?, " ", self.u32(router + 4)?, "}"));
        }
        Ok(true)
    }

    fn icmp_extensions(&mut self, at: usize, length: usize) -> Result {
        if !self.has(at, EXTENSIONS + 5) {
            self.truncated();
            return Ok(());
        }
        let header = at + EXTENSIONS;
        let sum = self.bytes(header, length - EXTENSIONS).ok();
        let is_wrong = sum.map(|bytes| Sum::default().add(bytes).should_be(0).is_some());
        // Without a stated length, only a correct checksum shows that there are extensions.
        if self.u8(at + 5)? == 0 && is_wrong == Some(true) {
            return Ok(());
        }
        let version = self.u8(header)? >> 4;
        self.put(("\n\tICMP Multi-Part extension v", version));
        if version != 2 {
            self.put(" packet not supported");
            return Ok(());
        }
        let mut left = length - EXTENSIONS;
        if let Some(is_wrong) = is_wrong {
            let found = Padded::<4>(self.u16(header + 2)?.into());
            self.put((
                ", checksum 0x",
                found,
                if is_wrong { " (incorrect), length " } else { " (correct), length " },
                left,
            ));
        }
        // tcpdump computes with 32 bits.
        left = super::tcp::wrapped(left.wrapping_sub(4)) as usize;
        let mut object = header + 4;
        while left > 4 {
            if !self.has(object, 4) {
                self.truncated();
                return Ok(());
            }
            let (class, kind) = (self.u8(object + 2)?, self.u8(object + 3)?);
            let stated = usize::from(self.u16(object)?);
            let name = match class {
                1 => "MPLS Stack Entry",
                2 => "Interface Identification",
                _ => "unknown",
            };
            self.put((
                "\n\t  ",
                name,
                " Object (",
                class,
                "), Class-Type: ",
                kind,
                ", length ",
                stated,
            ));
            left -= 4;
            if class == 0 || stated < 4 {
                return Ok(());
            }
            let (value, value_length) = (object + 4, stated - 4);
            if (class, kind) == (1, 1) {
                let label = self.u32(value)?;
                let bottom = if label & 0x100 == 0 { "" } else { ", [S]" };
                self.put((
                    "\n\t    label ",
                    label >> 12,
                    ", tc ",
                    label >> 9 & 7,
                    bottom,
                    ", ttl ",
                    label & 0xff,
                ));
            } else {
                self.unknown_data("\n\t    ", value, value_length);
            }
            if left < value_length {
                break;
            }
            left -= value_length;
            object = value + value_length;
        }
        Ok(())
    }

    /// Dumps a message that is not decoded.
    pub(super) fn unknown_data(&mut self, indentation: &str, at: usize, length: usize) {
        if at > self.data.len() {
            self.put((
                indentation,
                "Dissector error: print_unknown_data called with pointer past end of packet",
            ));
        } else {
            self.dump_hex(indentation, at, length);
        }
    }
}
