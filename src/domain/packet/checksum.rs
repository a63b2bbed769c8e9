//! The Internet checksum. <https://www.rfc-editor.org/rfc/rfc1071>

/// A sum of big-endian 16-bit words.
#[derive(Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes. An odd last byte counts as the upper half of a word.
    pub(super) fn add(mut self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks();
        self.0 += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        if let [last] = rest {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    /// The right checksum, if it is not `found`, which the bytes contained.
    pub(super) fn should_be(self, found: u16) -> Option<u16> {
        let sum = fold(self.0);
        (sum != 0xffff).then(|| fold(u64::from(found) + u64::from(!sum)))
    }
}

/// Adds the carries until 16 bits are left: one's complement arithmetic.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}
