//! Names in messages, and their compression.
//! <https://www.rfc-editor.org/rfc/rfc1035#section-4.1.4>
//!
//! A name is a sequence of labels, each with its length in front, that ends with an empty one.
//! Instead of a label there may be a pointer: two bytes whose upper two bits are set, and whose
//! other fourteen are the offset in the message at which the name continues. The upper bits of a
//! length tell: `00` is a label, `11` a pointer, `01` an extended label, of which only bit labels
//! (0x41) were ever defined, and `10` is reserved.

use super::Next;
use crate::domain::packet::{
    Dissector, Result,
    tcp::wrapped,
    text::{Escaped, Hex, Padded},
};

/// How many bytes of a name are printed: the longest that the protocol allows.
const MAX_NAME: usize = 255;

impl Dissector<'_> {
    /// Returns the position behind a name. A pointer ends it, because the name continues elsewhere.
    pub(super) fn skip_name(&self, mut at: usize) -> Result<Next> {
        loop {
            let Ok(label) = self.u8(at) else { return Ok(None) };
            at += 1;
            match label {
                0 => return Ok(Some(at)),
                1..0x40 => at += usize::from(label),
                0x41 => {
                    let Ok(bits) = self.u8(at) else { return Ok(None) };
                    at += 1 + bit_label_bytes(bits);
                }
                0x40..0xc0 => return Ok(None),
                0xc0.. => return Ok(Some(at + 1)),
            }
        }
    }

    /// The length of the label at `at`, without its first byte. Prints what is wrong if there is no
    /// such label.
    fn label_length(&mut self, at: usize) -> Option<usize> {
        let label = self.u8(at).ok()?;
        match label {
            0x41 => Some(bit_label_bytes(self.u8(at + 1).ok()?) + 1),
            0x40..0x80 => {
                self.put(("<ELT ", label & 0x3f, ">"));
                None
            }
            0x80..0xc0 => {
                self.put("<BAD LABEL TYPE>");
                None
            }
            _ => Some(usize::from(label)),
        }
    }

    /// Prints a name of the message that begins at `message`, and returns the position behind it.
    ///
    /// A pointer could lead to itself, or two to each other. Each one must therefore lead further
    /// back than the one before, and the first one before the name itself: the offsets fall, so
    /// the loop ends. The position behind the
    /// name is the one behind its first pointer, if it has one. As tcpdump does, everything is
    /// printed as far as it was captured before a missing byte ends it, and a name of more than 255
    /// bytes is cut, but still followed to its end.
    pub(in crate::domain::packet) fn domain_name(
        &mut self,
        at: usize,
        message: usize,
    ) -> Result<Next> {
        let Some(mut length) = self.label_length(at) else { return Ok(None) };
        // Every pointer must lead below this offset.
        let mut limit = wrapped(at.wrapping_sub(message));
        let mut label = self.u8(at)?;
        let mut here = at + 1;
        let mut compressed = false;
        // For a pointer, known once its second byte was read.
        let mut after = (label < 0xc0).then_some(here + length);
        if label == 0 {
            self.put(".");
            return Ok(after);
        }
        let mut printed = 0;
        while label != 0 && here < self.data.len() {
            if label >= 0xc0 {
                if !compressed {
                    after = Some(here + 1);
                    compressed = true;
                }
                let Ok(low) = self.u8(here) else { return Ok(None) };
                let offset = u32::from(label & 0x3f) << 8 | u32::from(low);
                if offset >= limit {
                    self.put("<BAD PTR>");
                    return Ok(None);
                }
                limit = offset;
                here = message + offset as usize;
                let Ok(there) = self.u8(here) else { return Ok(None) };
                label = there;
                let Some(there) = self.label_length(here) else { return Ok(None) };
                length = there;
                here += 1;
                continue;
            }
            if label == 0x41 {
                if !self.bit_label(here)? {
                    return Ok(None);
                }
            } else {
                let shown = if printed + length <= MAX_NAME {
                    length
                } else {
                    MAX_NAME.saturating_sub(printed)
                };
                self.put(Escaped(self.up_to(here, shown)));
                if !self.has(here, shown) {
                    return Ok(None);
                }
                printed += length;
            }
            here += length;
            if printed <= MAX_NAME {
                self.put(".");
            }
            printed += 1;
            let Ok(next) = self.u8(here) else { return Ok(None) };
            label = next;
            let Some(next) = self.label_length(here) else { return Ok(None) };
            length = next;
            here += 1;
            if !compressed {
                after = after.map(|after| after + length + 1);
            }
        }
        if printed > MAX_NAME {
            self.put("<DOMAIN NAME TOO LONG>");
        }
        Ok(after)
    }

    /// Prints a label of bits, as in `\\[x40/2]`. Returns whether its length was captured.
    /// <https://www.rfc-editor.org/rfc/rfc2673>
    fn bit_label(&mut self, at: usize) -> Result<bool> {
        let Ok(bits) = self.u8(at) else { return Ok(false) };
        let bits = if bits == 0 { 256 } else { usize::from(bits) };
        self.put("\\[x");
        let mut here = at + 1;
        let limit = at + 1 + bits.div_ceil(4);
        let mut left = bits;
        while here < limit && left > 7 {
            self.put(Padded::<2>(self.u8(here)?.into()));
            here += 1;
            left -= 8;
        }
        if left > 4 {
            let byte = u32::from(self.u8(here)?);
            self.put(Padded::<2>(byte & 0xff << (8 - left)));
        } else if left > 0 {
            let byte = u32::from(self.u8(here)?);
            self.put(Hex(byte >> 4 & 0xf & 0xf << (4 - left)));
        }
        self.put(("/", bits, "]"));
        Ok(true)
    }
}

/// How many bytes a label of so many bits takes. 0 stands for 256 bits.
fn bit_label_bytes(bits: u8) -> usize {
    if bits == 0 { 32 } else { usize::from(bits).div_ceil(8) }
}
