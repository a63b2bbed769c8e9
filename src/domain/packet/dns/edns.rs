//! The OPT record of EDNS. <https://www.rfc-editor.org/rfc/rfc6891>

use crate::domain::packet::{
    Dissector, Result,
    names::{dnssec_algorithm, dnssec_hash, edns_option},
    text::{Bytes, Show, V4, V6, named},
};

impl Dissector<'_> {
    /// Returns whether it was captured whole.
    pub(super) fn edns(&mut self, mut at: usize, end: usize) -> Result<bool> {
        if at >= end {
            return Ok(true);
        }
        self.put(" [");
        while at < end {
            let Ok(option) = self.u16(at) else { return Ok(false) };
            self.put(named(edns_option(option), ("Opt", option)));
            let Ok(length) = self.u16(at + 2).map(usize::from) else { return Ok(false) };
            let value = at + 4;
            let Ok(bytes) = self.bytes(value, length) else { return Ok(false) };
            if length > 0 {
                self.put(" ");
                self.edns_value(option, value, bytes)?;
            }
            at = value + length;
            if at < end {
                self.put(",");
            }
        }
        self.put("]");
        Ok(true)
    }

    fn edns_value(&mut self, option: u16, at: usize, bytes: &[u8]) -> Result {
        let length = bytes.len();
        match option {
            8 => self.edns_subnet(bytes),
            10 if length == 8 || (16..=40).contains(&length) => {
                let (client, server) = bytes.split_at_checked(8).unwrap_or_default();
                self.put((Bytes(client), (!server.is_empty()).then_some((" ", Bytes(server)))));
            }
            11 if length == 2 => {
                let tenths = self.u16(at)?;
                self.put((tenths / 10, ".", tenths % 10, " sec"));
            }
            9 if length == 4 => self.put((self.u32(at)?, " sec")),
            12 => self.put(("(", length, ")")),
            14 if length.is_multiple_of(2) => {
                let keys = bytes.as_chunks().0.iter().map(|key| u16::from_be_bytes(*key));
                self.list(keys);
            }
            9..=11 | 14 => self.invalid(),
            5 => self
                .list(bytes.iter().map(|value| named(dnssec_algorithm(*value), ("Alg_", *value)))),
            6 => self.list(bytes.iter().map(|value| named(dnssec_hash(*value), ("Alg_", *value)))),
            7 => {
                self.list(
                    bytes
                        .iter()
                        .map(|value| named((*value == 1).then_some("SHA-1"), ("Alg_", *value))),
                );
            }
            // tcpdump takes pointers in this name to be relative to the name's end.
            13 => {
                self.domain_name(at, at + length)?;
            }
            _ => self.put(Bytes(bytes)),
        }
        Ok(())
    }

    fn list(&mut self, items: impl Iterator<Item = impl Show>) {
        for (number, item) in items.enumerate() {
            self.put((if number > 0 { " " } else { "" }, item));
        }
    }

    /// The client subnet on whose behalf a resolver asks.
    /// <https://www.rfc-editor.org/rfc/rfc7871>
    fn edns_subnet(&mut self, bytes: &[u8]) {
        let [0, family @ (1 | 2), source, scope, prefix @ ..] = bytes else {
            return self.invalid();
        };
        let bits = if *family == 1 { 32 } else { 128 };
        let mut address = [0; 16];
        let fits = prefix.len() * 8 <= bits
            && usize::from(*source) <= bits
            && usize::from(*scope) <= bits
            && usize::from(source.div_ceil(8)) == prefix.len();
        let Some(there) = address.get_mut(..prefix.len()).filter(|_| fits) else {
            return self.invalid();
        };
        there.copy_from_slice(prefix);
        let [a, b, c, d, ..] = address;
        if *family == 1 {
            self.put((V4([a, b, c, d]), "/", *source, "/", *scope));
        } else {
            self.put((V6(address), "/", *source, "/", *scope));
        }
    }
}
