//! Writes values as tcpdump does: numbers, addresses, and text that may not be printable.

/// A value that can append itself as text.
pub(super) trait Show {
    fn show(&self, out: &mut Vec<u8>);
}

impl<T: Show + ?Sized> Show for &T {
    #[inline]
    fn show(&self, out: &mut Vec<u8>) {
        (**self).show(out);
    }
}

impl Show for str {
    #[inline]
    fn show(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
}

impl Show for [u8] {
    #[inline]
    fn show(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

/// Unsigned numbers, in decimal.
macro_rules! decimal {
    ($($number:ty)+) => {$(
        impl Show for $number {
            #[inline]
            fn show(&self, out: &mut Vec<u8>) {
                decimal(out, u32::from(*self));
            }
        }
    )+};
}
decimal!(u8 u16 u32);

impl Show for u64 {
    fn show(&self, out: &mut Vec<u8>) {
        // Too rare to deserve a fast path: numbers beyond 32 bits.
        out.extend_from_slice(self.to_string().as_bytes());
    }
}

impl Show for usize {
    #[inline]
    fn show(&self, out: &mut Vec<u8>) {
        match u32::try_from(*self) {
            Ok(small) => decimal(out, small),
            Err(_) => (*self as u64).show(out),
        }
    }
}

/// Tuples show their parts one after the other.
macro_rules! tuples {
    ($($name:ident)+) => {
        impl<$($name: Show),+> Show for ($($name,)+) {
            #[inline]
            #[allow(non_snake_case, reason = "named as their types")]
            fn show(&self, out: &mut Vec<u8>) {
                let ($($name,)+) = self;
                $($name.show(out);)+
            }
        }
    };
}
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);
tuples!(A B C D E F);
tuples!(A B C D E F G);
tuples!(A B C D E F G H);
tuples!(A B C D E F G H I);
tuples!(A B C D E F G H I J);
tuples!(A B C D E F G H I J K);
tuples!(A B C D E F G H I J K L);

const HEX: &[u8; 16] = b"0123456789abcdef";

fn digit(value: u32) -> u8 {
    HEX.get(value as usize & 15).copied().unwrap_or_default()
}

#[inline]
fn decimal(out: &mut Vec<u8>, mut value: u32) {
    if value < 10 {
        out.push(digit(value));
        return;
    }
    let mut digits = [0; 10];
    let mut used = 0;
    for place in digits.iter_mut().rev() {
        *place = digit(value % 10);
        value /= 10;
        used += 1;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(10 - used..).unwrap_or_default());
}

/// A number in hexadecimal, without leading zeros.
pub(super) struct Hex(pub(super) u32);

impl Show for Hex {
    fn show(&self, out: &mut Vec<u8>) {
        let digits = (32 - self.0.leading_zeros()).div_ceil(4).max(1);
        for place in (0..digits).rev() {
            out.push(digit(self.0 >> (4 * place)));
        }
    }
}

/// A number in hexadecimal with at least `DIGITS` digits.
pub(super) struct Padded<const DIGITS: u32>(pub(super) u32);

impl<const DIGITS: u32> Show for Padded<DIGITS> {
    #[inline]
    fn show(&self, out: &mut Vec<u8>) {
        if DIGITS < 8 && self.0 >> (4 * DIGITS) != 0 {
            return Hex(self.0).show(out);
        }
        for place in (0..DIGITS).rev() {
            out.push(digit(self.0 >> (4 * place)));
        }
    }
}

/// A number in decimal with exactly `DIGITS` digits, which it must fit into.
pub(super) struct Digits<const DIGITS: u32>(pub(super) u32);

impl<const DIGITS: u32> Show for Digits<DIGITS> {
    #[inline]
    fn show(&self, out: &mut Vec<u8>) {
        let mut digits = [b'0'; 10];
        let mut value = self.0;
        for place in digits.iter_mut().rev().take(DIGITS as usize) {
            *place = digit(value % 10);
            value /= 10;
        }
        out.extend_from_slice(digits.get(10 - DIGITS as usize..).unwrap_or_default());
    }
}

/// Bytes in hexadecimal without separators.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Show for Bytes<'_> {
    fn show(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|byte| Padded::<2>((*byte).into()).show(out));
    }
}

/// A link-layer address: bytes in hexadecimal, separated by colons.
pub(super) struct Link<'a>(pub(super) &'a [u8]);

impl Show for Link<'_> {
    fn show(&self, out: &mut Vec<u8>) {
        for (number, byte) in self.0.iter().enumerate() {
            if number > 0 {
                out.push(b':');
            }
            Padded::<2>((*byte).into()).show(out);
        }
    }
}

/// An IPv4 address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct V4(pub(super) [u8; 4]);

impl Show for V4 {
    #[inline]
    fn show(&self, out: &mut Vec<u8>) {
        let [a, b, c, d] = self.0;
        (a, ".", b, ".", c, ".", d).show(out);
    }
}

/// An IPv6 address as inet_ntop(3) writes it: `::` stands for the first of the longest runs of at
/// least two zeros, and addresses that embed an IPv4 address end in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct V6(pub(super) [u8; 16]);

impl Show for V6 {
    fn show(&self, out: &mut Vec<u8>) {
        let mut words = [0_u16; 8];
        for (word, bytes) in words.iter_mut().zip(self.0.as_chunks().0) {
            *word = u16::from_be_bytes(*bytes);
        }
        let (mut zeros, mut run) = (0..0_usize, 0..0_usize);
        for (at, word) in words.iter().enumerate() {
            run = if *word != 0 { at + 1..at + 1 } else { run.start..at + 1 };
            if run.len() > zeros.len() {
                zeros = run.clone();
            }
        }
        if zeros.len() < 2 {
            zeros = 0..0;
        }
        let [.., a, b, c, d] = self.0;
        let embeds = zeros == (0..6) || zeros == (0..5) && words.get(5) == Some(&0xffff);
        for (at, word) in words.iter().enumerate() {
            if zeros.contains(&at) {
                if at == zeros.start {
                    out.push(b':');
                }
                continue;
            }
            if at != 0 {
                out.push(b':');
            }
            if at == 6 && embeds {
                return V4([a, b, c, d]).show(out);
            }
            Hex((*word).into()).show(out);
        }
        if zeros.end == 8 {
            out.push(b':');
        }
    }
}

/// Text from a packet. What is not printable is written as `^X`, after `M-` if the top bit is set,
/// so nothing of it can act on a terminal.
pub(super) struct Escaped<'a>(pub(super) &'a [u8]);

impl Show for Escaped<'_> {
    fn show(&self, out: &mut Vec<u8>) {
        for byte in self.0 {
            let mut byte = *byte;
            if byte >= 0x80 {
                out.extend_from_slice(b"M-");
                byte &= 0x7f;
            }
            if !is_printable(byte) {
                out.push(b'^');
                byte ^= 0x40;
            }
            out.push(byte);
        }
    }
}

pub(super) fn is_printable(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte)
}

/// The names of the bits that are set, or `none`.
pub(super) struct Flags<'a> {
    pub(super) value: u32,
    pub(super) names: &'a [(u32, &'a str)],
    pub(super) between: &'a str,
}

impl Show for Flags<'_> {
    fn show(&self, out: &mut Vec<u8>) {
        let mut first = true;
        for (bit, name) in self.names {
            if self.value & bit == *bit {
                if !first {
                    self.between.show(out);
                }
                first = false;
                name.show(out);
            }
        }
        if first {
            "none".show(out);
        }
    }
}

/// A time span as `1y2w3d4h5m6s`, without what is zero.
pub(super) struct Span(pub(super) u32);

impl Show for Span {
    fn show(&self, out: &mut Vec<u8>) {
        if self.0 == 0 {
            return "0s".show(out);
        }
        let mut rest = self.0;
        for (unit, name) in
            [(31_536_000, "y"), (604_800, "w"), (86_400, "d"), (3600, "h"), (60, "m"), (1, "s")]
        {
            if rest >= unit {
                (rest / unit, name).show(out);
                rest %= unit;
            }
        }
    }
}

/// A known name, or what to print instead.
pub(super) enum Named<T> {
    Known(&'static str),
    Unknown(T),
}

impl<T: Show> Show for Named<T> {
    fn show(&self, out: &mut Vec<u8>) {
        match self {
            Self::Known(name) => name.show(out),
            Self::Unknown(other) => other.show(out),
        }
    }
}

/// The name, or else `other`.
pub(super) fn named<T>(name: Option<&'static str>, other: T) -> Named<T> {
    name.map_or(Named::Unknown(other), Named::Known)
}

impl<T: Show> Show for Option<T> {
    fn show(&self, out: &mut Vec<u8>) {
        if let Some(item) = self {
            item.show(out);
        }
    }
}
