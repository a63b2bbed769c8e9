//! TCP. <https://www.rfc-editor.org/rfc/rfc9293>

use super::{
    Cut, Dissector, Result,
    flows::{Base, Flow},
    ip::{Carrier, TCP},
    text::{Bytes, Escaped, Flags, Hex, Padded, named},
};

const HEADER: usize = 20;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

/// How many bytes of a reset's reason are printed, as in tcpdump.
const MAX_REASON: usize = 30;

/// Why the options could not be printed to their end.
enum BadOptions {
    /// A length contradicts the header or the option's kind.
    Malformed,
    /// The capture ends in an option.
    NotCaptured,
}

impl Dissector<'_> {
    /// Prints `a.port > b.port: `. The addresses are left out if an extension header stands
    /// between, which has printed them.
    pub(super) fn ends(
        &mut self,
        carrier: Carrier,
        protocol: u8,
        ports: Option<(u16, u16)>,
    ) -> Result {
        let ip = carrier.at;
        let direct = self.u8(ip + if carrier.is_v6 { 6 } else { 9 })? == protocol;
        match (ports, carrier.is_v6) {
            (Some((source, destination)), _) if !direct => {
                self.put((source, " > ", destination, ": "));
            }
            (Some((source, destination)), true) => {
                self.put((
                    self.v6(ip + 8)?,
                    ".",
                    source,
                    " > ",
                    self.v6(ip + 24)?,
                    ".",
                    destination,
                    ": ",
                ));
            }
            (Some((source, destination)), false) => {
                self.put((
                    self.v4(ip + 12)?,
                    ".",
                    source,
                    " > ",
                    self.v4(ip + 16)?,
                    ".",
                    destination,
                    ": ",
                ));
            }
            (None, true) => self.put((self.v6(ip + 8)?, " > ", self.v6(ip + 24)?, ":")),
            (None, false) => self.put((self.v4(ip + 12)?, " > ", self.v4(ip + 16)?, ":")),
        }
        Ok(())
    }

    pub(super) fn tcp(&mut self, at: usize, length: usize, carrier: Carrier) -> Result {
        self.protocol = "tcp";
        if !self.has(at + 2, 2) {
            self.ends(carrier, TCP, None)?;
            self.truncated();
            return Ok(());
        }
        let ports = (self.u16(at)?, self.u16(at + 2)?);
        self.ends(carrier, TCP, Some(ports))?;
        if !self.has(at, HEADER) {
            self.truncated();
            return Ok(());
        }
        let header = usize::from(self.u8(at + 12)? >> 4) * 4;
        // tcpdump computes in 32 bits, so a header longer than the packet leaves a huge rest.
        let rest = wrapped(length.wrapping_sub(header));
        if header < HEADER {
            self.put((" tcp ", rest, " [bad hdr length ", header, " - too short, < 20]"));
            return Ok(());
        }
        if self.quiet() {
            self.put(("tcp ", rest));
            if header > length {
                self.put((" [bad hdr length ", header, " - too long, > ", length, "]"));
            }
            return Ok(());
        }
        let (mut sequence, mut acknowledged) = (self.u32(at + 4)?, self.u32(at + 8)?);
        let flags = self.u8(at + 13)?;
        let names = [
            (1, "F"),
            (2, "S"),
            (4, "R"),
            (8, "P"),
            (0x10, "."),
            (0x20, "U"),
            (0x40, "E"),
            (0x80, "W"),
        ];
        self.put(("Flags [", Flags { value: flags.into(), names: &names, between: "" }, "]"));
        // The base of the numbers in SACK blocks.
        let mut origin = 0;
        if !self.options.absolute_sequence && flags & ACK != 0 {
            origin =
                self.relative(carrier, ports, flags & SYN != 0, &mut sequence, &mut acknowledged)?;
        }
        if header > length {
            self.put((" [bad hdr length ", header, " - too long, > ", length, "]"));
            return Ok(());
        }
        if self.verbose()
            && !carrier.fragmented
            && let Ok(segment) = self.bytes(at, length)
        {
            let found = self.u16(at + 16)?;
            let right = self.pseudo_header(carrier, TCP, length)?.add(segment).should_be(found);
            self.put((", cksum 0x", Padded::<4>(found.into())));
            match right {
                Some(right) => self.put((" (incorrect -> 0x", Padded::<4>(right.into()), ")")),
                None => self.put(" (correct)"),
            }
        }
        let payload = length - header;
        if self.options.verbose > 1 || payload > 0 || flags & (SYN | FIN | RST) != 0 {
            self.put((", seq ", sequence));
            if payload > 0 {
                self.put((":", sequence.wrapping_add(wrapped(payload))));
            }
        }
        if flags & ACK != 0 {
            self.put((", ack ", acknowledged));
        }
        self.put((", win ", self.u16(at + 14)?));
        if flags & URG != 0 {
            self.put((", urg ", self.u16(at + 18)?));
        }
        if header > HEADER {
            self.put(", options [");
            let mut printed = false;
            match self.tcp_options(at, header, length - header, origin, &mut printed)? {
                Ok(()) => self.put("]"),
                Err(BadOptions::Malformed) => {
                    self.put("[bad opt]");
                    if printed {
                        self.put("]");
                    }
                    return Ok(());
                }
                Err(BadOptions::NotCaptured) => {
                    self.truncated();
                    if printed {
                        self.put(">");
                    }
                    return Ok(());
                }
            }
        }
        self.put((", length ", payload));
        if payload == 0 {
            return Ok(());
        }
        if !self.has(at, header) {
            let available = self.available(at);
            self.put((" [remaining caplen(", available, ") < header length(", header, ")]"));
            return Err(Cut);
        }
        if flags & RST != 0 && self.verbose() {
            self.tcp_reason(at + header, payload);
            return Ok(());
        }
        self.tcp_payload(at + header, payload, ports)
    }

    /// Makes the numbers relative to the first ones of the connection, or learns these from this
    /// segment. Returns the base of the numbers in SACK blocks, which count bytes of the other
    /// direction. `begins` is set for a SYN-ACK, which starts a new connection even on known ports.
    fn relative(
        &mut self,
        carrier: Carrier,
        ports: (u16, u16),
        begins: bool,
        sequence: &mut u32,
        acknowledged: &mut u32,
    ) -> Result<u32> {
        let wide = |short: [u8; 4]| {
            let mut address = [0; 16];
            let [a, b, c, d, ..] = &mut address;
            [*a, *b, *c, *d] = short;
            address
        };
        let ip = carrier.at;
        let (source, destination) = if carrier.is_v6 {
            (self.v6(ip + 8)?.0, self.v6(ip + 24)?.0)
        } else {
            (wide(self.v4(ip + 12)?.0), wide(self.v4(ip + 16)?.0))
        };
        let (flow, reverse) =
            Flow::between((source, ports.0), (destination, ports.1), carrier.is_v6);
        let known = if begins { None } else { self.flows.get(&flow) };
        let base = match known {
            Some(base) => {
                let (from, to) =
                    if reverse { (base.second, base.first) } else { (base.first, base.second) };
                *sequence = sequence.wrapping_sub(from);
                *acknowledged = acknowledged.wrapping_sub(to);
                base
            }
            None => {
                let (from, to) = (*sequence, acknowledged.wrapping_sub(1));
                let (first, second) = if reverse { (to, from) } else { (from, to) };
                let base = Base { first, second };
                self.flows.insert(flow, base);
                base
            }
        };
        Ok(if reverse { base.first } else { base.second })
    }

    /// Prints the options, up to the end of the header.
    ///
    /// An option is a kind, except for kinds 0 and 1 a length that counts itself and the kind, and
    /// a value. Two lengths matter: the one that the option states, `length`, and the one that its
    /// kind requires, `expected`. tcpdump decodes and steps over the required one, and prints the
    /// stated one as `[len N]` where they differ; kinds that it does not know, and those of
    /// variable length, require what they state.
    ///
    /// Whether a value fits into the header and was captured is checked for most options before the
    /// value is printed. The exceptions are the options that tcpdump prints piece by piece (SACK,
    /// TCP-AO and unknown ones), where everything before the missing piece has to be printed. The
    /// caller closes the bracket differently if no option was printed whole, which `printed` tells
    /// it also when this fails.
    fn tcp_options(
        &mut self,
        segment: usize,
        header: usize,
        payload: usize,
        origin: u32,
        printed: &mut bool,
    ) -> Result<std::result::Result<(), BadOptions>> {
        let mut at = segment + HEADER;
        let mut left = header - HEADER;
        while left > 0 {
            if *printed {
                self.put(",");
            }
            let kind = self.u8(at)?;
            at += 1;
            let mut length = 1;
            let has_length = kind > 1;
            if has_length {
                length = usize::from(self.u8(at)?);
                at += 1;
                if length < 2 || length > left {
                    return Ok(Err(BadOptions::Malformed));
                }
                left -= 1;
            }
            left -= 1;
            self.put(named(option_name(kind), ("unknown-", kind)));
            let value = length.saturating_sub(2);
            // How long a value of this kind has to be.
            let expected = match kind {
                2 | 20 | 28 => 2,
                3 => 1,
                6 | 7 | 11..=13 => 4,
                8 => 8,
                19 => 16,
                0 | 1 | 4 => 0,
                _ => value,
            };
            // The others are printed piece by piece and check each piece themselves.
            let whole = !matches!(kind, 0 | 1 | 4 | 5 | 29) && option_name(kind).is_some();
            if whole {
                if expected > left {
                    return Ok(Err(BadOptions::Malformed));
                }
                if !self.has(at, expected) {
                    return Ok(Err(BadOptions::NotCaptured));
                }
            }
            match kind {
                2 => self.put((" ", self.u16(at)?)),
                3 => self.put((" ", self.u8(at)?)),
                5 => {
                    if let Err(bad) = self.tcp_blocks(at, value, left, origin)? {
                        return Ok(Err(bad));
                    }
                }
                6 | 7 | 11..=13 => self.put((" ", self.u32(at)?)),
                8 => self.put((" val ", self.u32(at)?, " ecr ", self.u32(at + 4)?)),
                19 => {
                    // Only tcpdump's -M could verify the signature.
                    let why = if self.has(segment + header, payload) {
                        "shared secret not supplied with -M, "
                    } else {
                        "snaplen too short, "
                    };
                    self.put((" ", why, "can't check - ", Bytes(self.bytes(at, 16)?)));
                }
                20 => {
                    self.put((" cap ", Padded::<2>(self.u8(at)?.into()), " id ", self.u8(at + 1)?));
                }
                28 => {
                    let timeout = self.u16(at)?;
                    let seconds = u32::from(timeout >> 1) * if timeout & 1 == 0 { 1 } else { 60 };
                    self.put((" 0x", Hex(timeout.into()), " ", seconds));
                }
                29 if value < 2 => self.invalid(),
                29 => {
                    if !self.has(at, 1) {
                        return Ok(Err(BadOptions::NotCaptured));
                    }
                    self.put((" keyid ", self.u8(at)?));
                    if !self.has(at, 2) {
                        return Ok(Err(BadOptions::NotCaptured));
                    }
                    self.put((" rnextkeyid ", self.u8(at + 1)?));
                    if value > 2 {
                        self.put((" mac 0x", Bytes(self.up_to(at + 2, value - 2))));
                        if !self.has(at, value) {
                            return Ok(Err(BadOptions::NotCaptured));
                        }
                    }
                }
                34 => {
                    self.put(" ");
                    self.tcp_fast_open(at, value)?;
                }
                254 if value < 2 => return Ok(Err(BadOptions::Malformed)),
                254 => {
                    let magic = self.u16(at)?;
                    self.put("-");
                    if magic == 0xf989 {
                        self.put("tfo");
                        self.tcp_fast_open(at + 2, value - 2)?;
                    } else {
                        self.put(Padded::<4>(magic.into()));
                    }
                }
                0 | 1 | 4 => {}
                _ => {
                    if value > 0 {
                        self.put((" 0x", Bytes(self.up_to(at, value))));
                    }
                    if !self.has(at, value) {
                        return Ok(Err(BadOptions::NotCaptured));
                    }
                }
            }
            at += expected;
            left = left.saturating_sub(expected);
            if expected + 1 + usize::from(has_length) != length {
                self.put(("[len ", length, "]"));
            }
            *printed = true;
            if kind == 0 {
                break;
            }
        }
        Ok(Ok(()))
    }

    fn tcp_blocks(
        &mut self,
        at: usize,
        length: usize,
        left: usize,
        origin: u32,
    ) -> Result<std::result::Result<(), BadOptions>> {
        if !length.is_multiple_of(8) {
            self.put(" invalid sack");
            return Ok(Ok(()));
        }
        self.put((" ", length / 8, " "));
        for offset in (0..length).step_by(8) {
            for end in [offset + 4, offset + 8] {
                if end > left {
                    return Ok(Err(BadOptions::Malformed));
                }
                if !self.has(at, end) {
                    return Ok(Err(BadOptions::NotCaptured));
                }
            }
            let (begin, end) = (self.u32(at + offset)?, self.u32(at + offset + 4)?);
            self.put(("{", begin.wrapping_sub(origin), ":", end.wrapping_sub(origin), "}"));
        }
        Ok(Ok(()))
    }

    fn tcp_fast_open(&mut self, at: usize, length: usize) -> Result {
        if length == 0 {
            self.put(" cookiereq");
        } else if !length.is_multiple_of(2) || !(4..=16).contains(&length) {
            self.invalid();
        } else {
            self.put((" cookie ", Bytes(self.bytes(at, length)?)));
        }
        Ok(())
    }

    /// Prints the payload of a reset, which may hold a reason (RFC 9293, section 3.5.3).
    fn tcp_reason(&mut self, at: usize, length: usize) {
        self.put(if self.has(at, length) { " [RST" } else { " [!RST" });
        if length > MAX_REASON {
            self.put("+");
        }
        self.put((" ", Escaped(self.up_to(at, length.min(MAX_REASON))), "]"));
    }

    fn tcp_payload(
        &mut self,
        at: usize,
        length: usize,
        (source, destination): (u16, u16),
    ) -> Result {
        let is = |port| source == port || destination == port;
        if let Some(protocol) = super::lines::of_tcp(is) {
            self.put(protocol.before);
            return self.text_protocol(at, length, protocol);
        }
        if is(53) {
            return self.dns_over_tcp(at, length);
        }
        if is(6379) {
            return self.resp(at, length);
        }
        if is(22) {
            self.ssh(at, length)?;
        }
        Ok(())
    }
}

/// A length in 32 bits, which overflows as tcpdump's unsigned lengths do.
#[expect(clippy::cast_possible_truncation, reason = "the overflow is printed")]
pub(super) fn wrapped(length: usize) -> u32 {
    length as u32
}

fn option_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0 => "eol",
        1 => "nop",
        2 => "mss",
        3 => "wscale",
        4 => "sackOK",
        5 => "sack",
        6 => "echo",
        7 => "echoreply",
        8 => "TS",
        11 => "cc",
        12 => "ccnew",
        13 => "",
        19 => "md5",
        20 => "scps",
        28 => "uto",
        29 => "tcp-ao",
        30 => "mptcp",
        34 => "tfo",
        254 => "exp",
        _ => return None,
    })
}
