//! Dumps of a packet's bytes (`-x`, `-X`, `-A`), its number (`-#`), and impossible lengths.

use super::{
    MAX_LENGTH, Packet, PrintOptions,
    text::{Padded, Show},
};

/// The packet's number, right-aligned.
pub(super) fn number(number: u64, out: &mut Vec<u8>) {
    let mut digits = Vec::new();
    number.show(&mut digits);
    out.resize(out.len() + 5_usize.saturating_sub(digits.len()), b' ');
    out.append(&mut digits);
    out.extend_from_slice(b"  ");
}

/// Whether the packet's lengths are possible. Prints the packet's whole line if they are not.
pub(super) fn plausible(packet: &Packet<'_>, out: &mut Vec<u8>) -> bool {
    let captured = u32::try_from(packet.data.len()).unwrap_or(u32::MAX);
    let length = packet.original_length;
    let before = out.len();
    let mut wrong = |what: &dyn Fn(&mut Vec<u8>)| {
        if out.len() == before { "[Invalid header:" } else { "," }.show(out);
        what(out);
    };
    if captured == 0 {
        wrong(&|out| " caplen==0".show(out));
    }
    if length == 0 {
        wrong(&|out| " len==0".show(out));
    } else if length < captured {
        wrong(&|out| (" len(", length, ") < caplen(", captured, ")").show(out));
    }
    if captured > MAX_LENGTH {
        wrong(&|out| (" caplen(", captured, ") > ", MAX_LENGTH).show(out));
    }
    if length > MAX_LENGTH {
        wrong(&|out| (" len(", length, ") > ", MAX_LENGTH).show(out));
    }
    if out.len() == before {
        return true;
    }
    "]\n".show(out);
    false
}

/// Dumps the bytes as the options say. The first `header` bytes are the link layer's.
pub(super) fn print(options: &PrintOptions, data: &[u8], header: usize, out: &mut Vec<u8>) {
    let from = |count: u8| {
        data.get(if count > 1 { 0 } else { header }..).filter(|bytes| !bytes.is_empty())
    };
    if options.hex_ascii > 0 {
        if let Some(bytes) = from(options.hex_ascii) {
            hex_ascii("\n\t", bytes, out);
        }
    } else if options.hex > 0 {
        if let Some(bytes) = from(options.hex) {
            hex("\n\t", bytes, out);
        }
    } else if options.ascii > 0
        && let Some(bytes) = from(options.ascii)
    {
        ascii(bytes, out);
    }
}

/// How many bytes a line of a dump shows.
const LINE: usize = 16;

fn offset(indentation: &str, line: usize, out: &mut Vec<u8>) {
    let offset = u32::try_from(line * LINE).unwrap_or_default();
    (indentation, "0x", Padded::<4>(offset), ": ").show(out);
}

fn pairs(line: &[u8], out: &mut Vec<u8>) {
    for pair in line.chunks(2) {
        out.push(b' ');
        pair.iter().for_each(|byte| Padded::<2>((*byte).into()).show(out));
    }
}

/// Dumps in hex.
pub(super) fn hex(indentation: &str, bytes: &[u8], out: &mut Vec<u8>) {
    for (number, line) in bytes.chunks(LINE).enumerate() {
        offset(indentation, number, out);
        pairs(line, out);
    }
}

/// Dumps in hex and ASCII.
pub(super) fn hex_ascii(indentation: &str, bytes: &[u8], out: &mut Vec<u8>) {
    for (number, line) in bytes.chunks(LINE).enumerate() {
        offset(indentation, number, out);
        let begin = out.len();
        pairs(line, out);
        out.resize(begin + 42, b' ');
        out.extend(line.iter().map(|byte| if byte.is_ascii_graphic() { *byte } else { b'.' }));
    }
}

/// Dumps in ASCII, on lines of their own. Line ends stay.
fn ascii(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'\n');
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            // A return before a newline is part of the line's end and not shown.
            b'\r' => {
                let rest = bytes.get(at + 1..).unwrap_or_default();
                if rest.len() > 1 && rest.first() != Some(&b'\n') {
                    out.push(b'.');
                }
            }
            b'\t' | b' ' | b'\n' => out.push(*byte),
            byte if byte.is_ascii_graphic() => out.push(*byte),
            _ => out.push(b'.'),
        }
    }
}
