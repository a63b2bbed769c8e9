//! DNS and multicast DNS. <https://www.rfc-editor.org/rfc/rfc1035>

mod edns;
mod name;

use super::{
    Dissector, Result,
    names::{dns_class, dns_type},
    text::{Escaped, Hex, Span, V6, named},
};

const HEADER: usize = 12;

const OPT: u16 = 41;

/// A message while it is printed.
#[derive(Clone, Copy)]
struct Message {
    at: usize,
    is_multicast: bool,
}

/// The position of the next item, or `None` if this one is malformed or was not captured whole.
type Next = Option<usize>;

const OPERATIONS: [&str; 16] = [
    "",
    " inv_q",
    " stat",
    " op3",
    " notify",
    " update",
    " op6",
    " op7",
    " op8",
    " updateA",
    " updateD",
    " updateDA",
    " updateM",
    " updateMA",
    " zoneInit",
    " zoneRef",
];

const RESULTS: [&str; 24] = [
    "",
    " FormErr",
    " ServFail",
    " NXDomain",
    " NotImp",
    " Refused",
    " YXDomain",
    " YXRRSet",
    " NXRRSet",
    " NotAuth",
    " NotZone",
    " Resp11",
    " Resp12",
    " Resp13",
    " Resp14",
    " NoChange",
    " BadVers",
    "Resp17",
    " Resp18",
    " Resp19",
    " Resp20",
    "Resp21",
    " Resp22",
    " BadCookie",
];

impl Dissector<'_> {
    /// Prints a message over TCP, which has its length in front.
    pub(super) fn dns_over_tcp(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "domain";
        let Some(length) = length.checked_sub(2) else {
            self.put((" [DNS over TCP: length ", length, " < 2]"));
            self.invalid();
            return Ok(());
        };
        let stated = self.u16(at)?;
        if usize::from(stated) != length {
            self.put((" [prefix length(", stated, ") != length(", length, ")]"));
            self.invalid();
            return Ok(());
        }
        self.put(" ");
        self.dns(at + 2, length, false)
    }

    pub(super) fn dns(&mut self, at: usize, length: usize, is_multicast: bool) -> Result {
        self.protocol = "domain";
        if length < HEADER {
            self.put(("domain [length ", length, " < 12]"));
            self.invalid();
            return Ok(());
        }
        if !self.has(at, HEADER) {
            self.truncated();
            return Ok(());
        }
        let flags = self.u16(at + 2)?;
        let message = Message { at, is_multicast };
        let counts = [self.u16(at + 4)?, self.u16(at + 6)?, self.u16(at + 8)?, self.u16(at + 10)?];
        let whole = if flags & 0x8000 == 0 {
            self.dns_query(message, flags, counts)?
        } else {
            self.dns_response(message, flags, counts)?
        };
        if whole {
            self.put((" (", length, ")"));
        } else {
            self.truncated();
        }
        Ok(())
    }

    /// Returns whether it was captured whole.
    fn dns_response(&mut self, message: Message, flags: u16, counts: [u16; 4]) -> Result<bool> {
        let [questions, answers, authorities, additional] = counts;
        let result = self.dns_result(message, flags, counts)?;
        let set = |bit: u16, text: &'static str| if flags & bit == 0 { "" } else { text };
        self.put((self.u16(message.at)?, operation(flags)));
        match RESULTS.get(usize::from(result)) {
            Some(name) => self.put(*name),
            None => self.put((" Resp", result)),
        }
        let recursion = if flags & 0x80 == 0 { "-" } else { "" };
        self.put((set(0x400, "*"), recursion, set(0x200, "|"), set(0x20, "$")));
        if questions != 1 {
            self.put((" [", questions, "q]"));
        }
        let mut at = message.at + HEADER;
        for number in 0..questions {
            if number != 0 {
                self.put(",");
            }
            let next = if self.options.verbose > 1 {
                self.put(" q:");
                self.dns_question(at, message)?
            } else {
                self.skip_name(at)?.map(|at| at + 4)
            };
            let Some(next) = next else { return Ok(false) };
            at = next;
        }
        self.put((" ", answers, "/", authorities, "/", additional));
        if answers > 0 {
            // tcpdump tries the first item even if the section is empty.
            let Some(next) = self.dns_records(at, answers, message, true)? else {
                return Ok(false);
            };
            at = next;
        }
        if self.options.verbose > 1 {
            return self.dns_rest(at, authorities, additional, message);
        }
        Ok(true)
    }

    /// Returns whether it was captured whole.
    fn dns_query(&mut self, message: Message, flags: u16, counts: [u16; 4]) -> Result<bool> {
        let [questions, answers, authorities, additional] = counts;
        let recursion = if flags & 0x100 == 0 { "" } else { "+" };
        let unchecked = if flags & 0x10 == 0 { "" } else { "%" };
        self.put((self.u16(message.at)?, operation(flags), recursion, unchecked));
        // Flags that a query should not have.
        if flags & 0x6cf != 0 {
            self.put((" [b2&3=0x", Hex(flags.into()), "]"));
        }
        if flags >> 11 & 0xf == 1 {
            if questions > 0 {
                self.put((" [", questions, "q]"));
            }
            if answers != 1 {
                self.put((" [", answers, "a]"));
            }
        } else {
            if answers > 0 {
                self.put((" [", answers, "a]"));
            }
            if questions != 1 {
                self.put((" [", questions, "q]"));
            }
        }
        if authorities > 0 {
            self.put((" [", authorities, "n]"));
        }
        if additional > 0 {
            self.put((" [", additional, "au]"));
        }
        let mut at = message.at + HEADER;
        for number in 0..questions {
            if number > 0 && at >= self.data.len() {
                return Ok(false);
            }
            let Some(next) = self.dns_question(at, message)? else { return Ok(false) };
            at = next;
        }
        if self.options.verbose > 1 {
            if answers > 0 {
                let Some(next) = self.dns_records(at, answers, message, true)? else {
                    return Ok(false);
                };
                at = next;
            }
            return self.dns_rest(at, authorities, additional, message);
        }
        Ok(true)
    }

    /// Prints the last two sections. Returns whether they were captured whole.
    fn dns_rest(
        &mut self,
        mut at: usize,
        authorities: u16,
        additional: u16,
        message: Message,
    ) -> Result<bool> {
        for (count, name) in [(authorities, " ns:"), (additional, " ar:")] {
            if count > 0 {
                if at >= self.data.len() {
                    return Ok(false);
                }
                self.put(name);
                let Some(next) = self.dns_records(at, count, message, false)? else {
                    return Ok(false);
                };
                at = next;
            }
        }
        Ok(true)
    }

    fn dns_records(
        &mut self,
        mut at: usize,
        count: u16,
        message: Message,
        first: bool,
    ) -> Result<Next> {
        for number in 0..count {
            if number > 0 || !first {
                if at >= self.data.len() {
                    return Ok(None);
                }
                if number > 0 {
                    self.put(",");
                }
            }
            let Some(next) = self.dns_record(at, message)? else { return Ok(None) };
            at = next;
        }
        Ok(Some(at))
    }

    /// Prints the result code. Its upper bits are in the OPT record.
    fn dns_result(&self, message: Message, flags: u16, counts: [u16; 4]) -> Result<u16> {
        let result = flags & 0xf;
        let [questions, answers, authorities, additional] = counts;
        let end = self.data.len();
        let mut at = message.at + HEADER;
        for _ in 0..questions {
            match self.skip_name(at)? {
                Some(next) => at = next + 4,
                None => return Ok(result),
            }
            if at >= end {
                return Ok(result);
            }
        }
        for _ in 0..u32::from(answers) + u32::from(authorities) {
            match self.skip_name(at)? {
                Some(next) => at = next + 8,
                None => return Ok(result),
            }
            let Ok(length) = self.u16(at) else { return Ok(result) };
            at += 2 + usize::from(length);
            if at >= end {
                return Ok(result);
            }
        }
        for _ in 0..additional {
            match self.skip_name(at)? {
                Some(next) => at = next,
                None => return Ok(result),
            }
            let Ok(kind) = self.u16(at) else { return Ok(result) };
            at += 4;
            if kind == OPT {
                return Ok(self.u8(at).map_or(result, |upper| result | u16::from(upper) << 4));
            }
            at += 4;
            let Ok(length) = self.u16(at) else { return Ok(result) };
            at += 2 + usize::from(length);
            if at >= end {
                return Ok(result);
            }
        }
        Ok(result)
    }

    fn dns_question(&mut self, at: usize, message: Message) -> Result<Next> {
        let Some(fields) = self.skip_name(at)? else { return Ok(None) };
        if !self.has(fields, 4) {
            return Ok(None);
        }
        let (kind, class) = (self.u16(fields)?, self.u16(fields + 2)?);
        self.put((" ", named(dns_type(kind), ("Type", kind))));
        let plain = if message.is_multicast { class & 0x7fff } else { class };
        if plain != 1 {
            self.put((" ", named(dns_class(plain), ("(Class ", plain, ")"))));
        }
        if message.is_multicast {
            self.put(if class & 0x8000 == 0 { " (QM)" } else { " (QU)" });
        }
        self.put("? ");
        Ok(self.domain_name(at, message.at)?.map(|at| at + 4))
    }

    fn dns_record(&mut self, at: usize, message: Message) -> Result<Next> {
        let fields = if self.verbose() {
            self.put(" ");
            match self.domain_name(at, message.at)? {
                Some(fields) => fields,
                None => return Ok(None),
            }
        } else {
            match self.skip_name(at)? {
                Some(fields) => fields,
                None => return Ok(Some(self.data.len())),
            }
        };
        if !self.has(fields, 10) {
            return Ok(Some(self.data.len()));
        }
        let (kind, class) = (self.u16(fields)?, self.u16(fields + 2)?);
        let plain = if message.is_multicast { class & 0x7fff } else { class };
        if plain != 1 && kind != OPT {
            self.put((" ", named(dns_class(plain), ("(Class ", plain, ")"))));
        }
        if message.is_multicast && class & 0x8000 != 0 {
            self.put(" (Cache flush)");
        }
        if kind != OPT && self.options.verbose > 2 {
            self.put((" [", Span(self.u32(fields + 4)?), "]"));
        }
        let extended_flags = self.u16(fields + 6)?;
        let length = usize::from(self.u16(fields + 8)?);
        let value = fields + 10;
        let end = value + length;
        self.put((" ", named(dns_type(kind), ("Type", kind))));
        if end > self.data.len() {
            return Ok(None);
        }
        let whole = if kind == OPT {
            self.put((" UDPsize=", plain, if extended_flags & 0x8000 == 0 { "" } else { " DO" }));
            self.edns(value, end)?
        } else {
            self.dns_value(kind, value, length, message)?
        };
        Ok(whole.then_some(end))
    }

    /// Prints the data of a record. Returns whether it was captured whole.
    fn dns_value(&mut self, kind: u16, at: usize, length: usize, message: Message) -> Result<bool> {
        let end = at + length;
        match kind {
            // A
            1 => match self.v4(at) {
                Ok(address) => self.put((" ", address)),
                Err(_) => return Ok(false),
            },
            // NS, CNAME, PTR, DNAME
            2 | 5 | 12 | 39 => {
                self.put(" ");
                return Ok(self.domain_name(at, message.at)?.is_some());
            }
            // SOA
            6 if self.verbose() => {
                let mut at = at;
                for _ in 0..2 {
                    self.put(" ");
                    match self.domain_name(at, message.at)? {
                        Some(next) => at = next,
                        None => return Ok(false),
                    }
                }
                if !self.has(at, 20) {
                    return Ok(false);
                }
                for number in 0..5 {
                    self.put((" ", self.u32(at + 4 * number)?));
                }
            }
            // MX
            15 => {
                self.put(" ");
                if !self.has(at, 2) || self.domain_name(at + 2, message.at)?.is_none() {
                    return Ok(false);
                }
                self.put((" ", self.u16(at)?));
            }
            // TXT
            16 => {
                let mut at = at;
                while at < end {
                    self.put(" \"");
                    let Ok(length) = self.u8(at).map(usize::from) else { return Ok(false) };
                    self.put(Escaped(self.up_to(at + 1, length)));
                    if !self.has(at + 1, length) {
                        return Ok(false);
                    }
                    self.put("\"");
                    at += 1 + length;
                }
            }
            // SRV
            33 => {
                self.put(" ");
                if !self.has(at, 6) || self.domain_name(at + 6, message.at)?.is_none() {
                    return Ok(false);
                }
                self.put((":", self.u16(at + 4)?, " ", self.u16(at)?, " ", self.u16(at + 2)?));
            }
            // AAAA
            28 => match self.v6(at) {
                Ok(address) => self.put((" ", address)),
                Err(_) => return Ok(false),
            },
            // A6
            38 => return self.dns_a6(at, message),
            // URI
            256 => {
                if !self.has(at, length) {
                    return Ok(false);
                }
                self.put((" ", self.u16(at)?, " ", self.u16(at + 2)?, " "));
                // The record is shorter than its numbers; everything is printed as cut off.
                let text = length.checked_sub(4).unwrap_or(usize::MAX - at - 4);
                self.put(Escaped(self.up_to(at + 4, text)));
                return Ok(self.has(at + 4, text));
            }
            // UNSPECA
            104 => self.put(Escaped(self.up_to(at, length))),
            // TSIG
            250 if self.verbose() => return self.dns_signature(at, message),
            _ => {}
        }
        Ok(true)
    }

    /// Prints an A6 record: an IPv6 address that takes its first bits from another name's.
    fn dns_a6(&mut self, at: usize, message: Message) -> Result<bool> {
        let Ok(prefix) = self.u8(at) else { return Ok(false) };
        let there = usize::from(prefix / 8);
        if prefix > 128 {
            self.put((" ", prefix, "(bad plen)"));
            return Ok(true);
        }
        if prefix < 128 {
            let mut address = [0; 16];
            if let Some(own) = address.get_mut(there..) {
                own.copy_from_slice(self.bytes(at + 1, 16 - there)?);
            }
            self.put((" ", prefix, " ", V6(address)));
        }
        if prefix > 0 {
            self.put(" ");
            return Ok(self.domain_name(at + 17 - there, message.at)?.is_some());
        }
        Ok(true)
    }

    /// Prints a TSIG record. <https://www.rfc-editor.org/rfc/rfc8945>
    fn dns_signature(&mut self, at: usize, message: Message) -> Result<bool> {
        self.put(" ");
        let Some(mut at) = self.domain_name(at, message.at)? else { return Ok(false) };
        at += 6;
        for name in [" fudge=", " maclen=", " origid=", " error=", " otherlen="] {
            let Ok(value) = self.u16(at) else { return Ok(false) };
            self.put((name, value));
            at += 2;
            if name == " maclen=" {
                at += usize::from(value);
            }
        }
        Ok(true)
    }
}

fn operation(flags: u16) -> &'static str {
    OPERATIONS.get(usize::from(flags >> 11 & 0xf)).copied().unwrap_or_default()
}
