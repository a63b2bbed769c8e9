//! IPv6 and its extension headers. <https://www.rfc-editor.org/rfc/rfc8200>

use super::{
    Dissector, Result,
    ip::{Carrier, TCP, UDP},
    names::ip_protocol,
    text::{Hex, Padded, V6},
};

const HEADER: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Lengths, which extension headers can change while they are read.
struct Lengths {
    /// The length that the header states, or the option of a jumbo payload.
    payload: u32,
    is_jumbo: bool,
}

impl Dissector<'_> {
    pub(super) fn ip6(&mut self, at: usize, length: usize) -> Result {
        self.nested(|this| this.ip6_header(at, length))
    }

    fn ip6_header(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "ip6";
        if !self.has(at, HEADER) {
            self.truncated();
            return Ok(());
        }
        if length < HEADER {
            self.put(("truncated-ip6 ", length));
            return Ok(());
        }
        if !self.link_layer() {
            self.put("IP6 ");
        }
        let first = self.u32(at)?;
        if first >> 28 != 6 {
            self.put(("version error: ", first >> 28, " != 6"));
            return Ok(());
        }
        let payload = self.u16(at + 4)?;
        // A length of 0 means a jumbo payload, whose option has the length, or no payload at all.
        let total = if payload == 0 { length + HEADER } else { usize::from(payload) + HEADER };
        if payload != 0 && length < total {
            self.put(("truncated-ip6 - ", total - length, " bytes missing!"));
        }
        let next = self.u8(at + 6)?;
        if self.verbose() {
            self.put("(");
            if first & 0x0ff0_0000 != 0 {
                self.put(("class 0x", Padded::<2>(first >> 20 & 0xff), ", "));
            }
            if first & 0xf_ffff != 0 {
                self.put(("flowlabel 0x", Padded::<5>(first & 0xf_ffff), ", "));
            }
            self.put(("hlim ", self.u8(at + 7)?, ", next-header ", ip_protocol(next), " (", next));
            self.put((") payload length: ", payload, ") "));
        }
        let saved = self.clip(at, total);
        let lengths = Lengths { payload: payload.into(), is_jumbo: false };
        let result = self.ip6_chain(at, (length, total), next, lengths, saved.len());
        if result.is_ok() {
            self.data = saved;
        }
        result
    }

    /// Prints the extension headers and the payload. `length` is what there is room for and `total`
    /// what the header states; `captured` is where the packet would end without a stated length.
    fn ip6_chain(
        &mut self,
        at: usize,
        (length, total): (usize, usize),
        mut next: u8,
        mut lengths: Lengths,
        captured: usize,
    ) -> Result {
        let (mut header, mut left) = (at, total);
        let mut advance = HEADER;
        let mut fragmented = false;
        let (mut extended, mut found_hop_by_hop) = (false, false);
        while header < self.data.len() && advance > 0 {
            if left < advance {
                self.truncated();
                return Ok(());
            }
            header += advance;
            left -= advance;
            if header == at + HEADER && !matches!(next, TCP | UDP) {
                self.put((self.v6(at + 8)?, " > ", self.v6(at + 24)?, ": "));
            }
            let found = match next {
                HOP_BY_HOP => {
                    if extended {
                        let what = if found_hop_by_hop {
                            "[The Hop-by-Hop Options header was already found]"
                        } else {
                            "[The Hop-by-Hop Options header don't follow the IPv6 header]"
                        };
                        self.put(what);
                        self.invalid();
                        return Ok(());
                    }
                    let found = self.ip6_hop_by_hop(header, &mut lengths)?;
                    if lengths.payload == 0 && !lengths.is_jumbo {
                        self.put("[No valid Jumbo Payload Hop-by-Hop option found]");
                        self.invalid();
                        return Ok(());
                    }
                    found
                }
                DESTINATION => self.ip6_destination(header)?,
                ROUTING => {
                    if !self.has(header, 1) {
                        self.truncated();
                        return Ok(());
                    }
                    self.ip6_routing(header)?
                }
                FRAGMENT => {
                    fragmented = true;
                    self.ip6_fragment(header, at)?
                        .filter(|advance| header + advance < self.data.len())
                }
                protocol => {
                    let carrier = Carrier { at, is_v6: true, fragmented };
                    return self.ip6_payload(
                        header,
                        (length, left),
                        &lengths,
                        extended,
                        captured,
                        protocol,
                        carrier,
                    );
                }
            };
            let Some(found) = found else { return Ok(()) };
            advance = found;
            extended = true;
            found_hop_by_hop |= next == HOP_BY_HOP;
            next = self.u8(header)?;
            self.protocol = "ip6";
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what the chain of headers has found out")]
    fn ip6_payload(
        &mut self,
        at: usize,
        (length, mut left): (usize, usize),
        lengths: &Lengths,
        extended: bool,
        captured: usize,
        protocol: u8,
        carrier: Carrier,
    ) -> Result {
        let headers = at - carrier.at;
        if lengths.is_jumbo {
            let total = lengths.payload as usize + HEADER;
            if total < headers {
                self.truncated();
                return Ok(());
            }
            if length < total {
                self.put(("truncated-ip6 - ", total - length, " bytes missing!"));
            }
            self.data = self.data.get(..captured.min(carrier.at + total)).unwrap_or(self.data);
            left = total - headers;
        } else if lengths.payload == 0 {
            if extended {
                self.truncated();
                return Ok(());
            }
            self.clip(carrier.at, HEADER);
            left = 0;
        }
        self.ip_payload(at, left, protocol, carrier)
    }

    fn ip6_hop_by_hop(&mut self, at: usize, lengths: &mut Lengths) -> Result<Option<usize>> {
        self.protocol = "hbhopt";
        let length = (usize::from(self.u8(at + 1)?) + 1) * 8;
        if !self.has(at, length) {
            self.truncated();
            return Ok(None);
        }
        self.put("HBH ");
        if !self.ip6_options(at + 2, length - 2, Some(lengths))? {
            self.truncated();
            return Ok(None);
        }
        Ok(Some(length))
    }

    fn ip6_destination(&mut self, at: usize) -> Result<Option<usize>> {
        self.protocol = "dstopt";
        let length = (usize::from(self.u8(at + 1)?) + 1) * 8;
        if !self.has(at, length) {
            self.truncated();
            return Ok(None);
        }
        self.put("DSTOPT ");
        if self.verbose() && !self.ip6_options(at + 2, length - 2, None)? {
            self.truncated();
            return Ok(None);
        }
        Ok(Some(length))
    }

    /// Prints the options of a hop-by-hop header, which has `lengths` to set, or of a destination
    /// header. Returns whether they are well-formed.
    fn ip6_options(
        &mut self,
        at: usize,
        length: usize,
        mut lengths: Option<&mut Lengths>,
    ) -> Result<bool> {
        let verbose = self.verbose();
        let mut seen_jumbo = false;
        let mut offset = 0;
        while offset < length {
            let option = at + offset;
            let kind = self.u8(option)?;
            if kind == 0 {
                if verbose {
                    self.put("(pad1)");
                }
                offset += 1;
                continue;
            }
            if offset + 1 >= length {
                return Ok(false);
            }
            let value_length = self.u8(option + 1)?;
            let whole = usize::from(value_length) + 2;
            let left = length - offset;
            if whole > left {
                return Ok(false);
            }
            match kind {
                1 if verbose => self.put("(padn)"),
                1 => {}
                5 => {
                    if left < 4 {
                        self.put("(rtalert: trunc)");
                        return Ok(false);
                    }
                    if value_length != 2 {
                        self.put(("(rtalert: invalid len ", value_length, ")"));
                        return Ok(false);
                    }
                    if verbose {
                        self.put(("(rtalert: 0x", Padded::<4>(self.u16(option + 2)?.into()), ") "));
                    }
                }
                0xc2 => {
                    if left < 6 {
                        self.put("(jumbo: trunc)");
                        return Ok(false);
                    }
                    if value_length != 4 {
                        self.put(("(jumbo: invalid len ", value_length, ")"));
                        return Ok(false);
                    }
                    let jumbo = self.u32(option + 2)?;
                    let wrong = match lengths.as_deref_mut() {
                        _ if seen_jumbo => " - already seen",
                        None => " - not a hop-by-hop option",
                        Some(lengths) if lengths.payload != 0 => " - payload len != 0",
                        Some(_) if jumbo < 65536 => " - < 65536",
                        Some(lengths) => {
                            *lengths = Lengths { payload: jumbo, is_jumbo: true };
                            ""
                        }
                    };
                    seen_jumbo = true;
                    if verbose {
                        self.put(("(jumbo: ", jumbo, wrong, ") "));
                    }
                }
                0xc9 => {
                    if left < 18 {
                        self.put("(homeaddr: trunc)");
                        return Ok(false);
                    }
                    if value_length < 16 {
                        self.put(("(homeaddr: invalid len ", value_length, ")"));
                        return Ok(false);
                    }
                    if verbose {
                        self.put(("(homeaddr: ", self.v6(option + 2)?));
                        if !self.ip6_sub_options(option + 18, whole - 18)? {
                            return Ok(false);
                        }
                        self.put(")");
                    }
                }
                _ if verbose => {
                    self.put((
                        "(opt_type 0x",
                        Padded::<2>(kind.into()),
                        ": len=",
                        value_length,
                        ")",
                    ));
                }
                _ => {}
            }
            offset += whole;
        }
        if verbose {
            self.put(" ");
        }
        Ok(true)
    }

    fn ip6_sub_options(&mut self, at: usize, length: usize) -> Result<bool> {
        let mut offset = 0;
        while offset < length {
            let kind = self.u8(at + offset)?;
            if kind == 0 {
                self.put(", pad1");
                offset += 1;
                continue;
            }
            if offset + 1 >= length {
                return Ok(false);
            }
            let value_length = self.u8(at + offset + 1)?;
            if offset + usize::from(value_length) + 2 > length {
                return Ok(false);
            }
            if kind == 1 {
                self.put(", padn");
            } else {
                self.put((", sopt_type 0x", Padded::<2>(kind.into()), ": len=", value_length));
            }
            offset += usize::from(value_length) + 2;
        }
        Ok(true)
    }

    /// Prints a fragment header. Returns `None` for a later fragment, which has no more headers.
    fn ip6_fragment(&mut self, at: usize, ip: usize) -> Result<Option<usize>> {
        self.protocol = "frag6";
        // What is left behind this header; as nonsensical as the stated length, as in tcpdump.
        let left = |this: &Self| {
            let stated = HEADER as u64 + u64::from(this.u16(ip + 4)?);
            Ok(stated.wrapping_sub((at - ip) as u64).wrapping_sub(8))
        };
        if self.verbose() {
            let id = Padded::<8>(self.u32(at + 4)?);
            self.put(("frag (0x", id, ":", self.u16(at + 2)? & 0xfff8, "|", left(self)?, ")"));
        } else {
            self.put(("frag (", self.u16(at + 2)? & 0xfff8, "|", left(self)?, ")"));
        }
        if self.u16(at + 2)? & 0xfff8 != 0 {
            return Ok(None);
        }
        self.put(" ");
        Ok(Some(8))
    }

    fn ip6_routing(&mut self, at: usize) -> Result<Option<usize>> {
        self.protocol = "rt6";
        self.put("RT6");
        let length = self.u8(at + 1)?;
        self.put((" (len=", length));
        let kind = self.u8(at + 2)?;
        self.put((", type=", kind));
        if kind == 0 {
            self.put(" [Deprecated]");
        }
        self.put((", segleft=", self.u8(at + 3)?));
        match kind {
            0 | 2 => {
                let reserved = self.u32(at + 4)?;
                if reserved != 0 || self.verbose() {
                    self.put((", rsv=0x", Hex(reserved)));
                }
            }
            4 => {
                self.put((", last-entry=", self.u8(at + 4)?));
                let flags = self.u8(at + 5)?;
                if flags != 0 || self.verbose() {
                    self.put((", flags=0x", Hex(flags.into())));
                }
                self.put((", tag=", Hex(self.u16(at + 6)?.into())));
            }
            _ => {
                self.put(" (unknown type)");
                self.invalid();
                return Ok(None);
            }
        }
        if length % 2 == 1 {
            self.put((" (invalid length ", length, ")"));
            self.invalid();
            return Ok(None);
        }
        for number in 0..usize::from(length / 2) {
            self.put((", [", number, "]", self.v6(at + 8 + 16 * number)?));
        }
        self.put(") ");
        Ok(Some((usize::from(length) + 1) * 8))
    }

    /// The final destination, which a routing header changes.
    pub(super) fn ip6_final_destination(&self, at: usize) -> Result<V6> {
        let stated = self.v6(at + 24)?;
        let mut next = self.u8(at + 6)?;
        let mut header = at + HEADER;
        loop {
            match next {
                HOP_BY_HOP | DESTINATION | 62 | 135 => {
                    next = self.u8(header)?;
                    header += (usize::from(self.u8(header + 1)?) + 1) * 8;
                }
                FRAGMENT => {
                    next = self.u8(header)?;
                    header += 8;
                }
                ROUTING => {
                    let length = usize::from(self.u8(header + 1)?);
                    let segment = match self.u8(header + 2)? {
                        _ if length % 2 == 1 => return Ok(stated),
                        0 | 2 => (length / 2).checked_sub(1),
                        4 => Some(0),
                        _ => None,
                    };
                    // The last address that was captured.
                    let mut segments = (0..=segment.unwrap_or_default()).rev();
                    let there = segments.find_map(|number| self.v6(header + 8 + 16 * number).ok());
                    return Ok(there.filter(|_| segment.is_some()).unwrap_or(stated));
                }
                _ => return Ok(stated),
            }
        }
    }
}
