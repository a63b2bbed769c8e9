//! Any bytes as a packet of any link type, with any options: no panic, one line and its newline.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podsonde::domain::packet::{Packet, PrintOptions, Printer};

fuzz_target!(|input: (u16, u8, u8, u8, Vec<Vec<u8>>)| {
    let (flags, linktype, cut, timestamps, packets) = input;
    let is = |bit: u16| flags >> bit & 1 == 1;
    let mut printer = Printer::new(PrintOptions {
        number: is(0),
        timestamps,
        nanoseconds: is(1),
        link_layer: is(2),
        verbose: (flags >> 3 & 3) as u8,
        quiet: (flags >> 5 & 3) as u8,
        absolute_sequence: is(7),
        hex: (flags >> 8 & 3) as u8,
        hex_ascii: (flags >> 10 & 3) as u8,
        ascii: (flags >> 12 & 3) as u8,
        ..PrintOptions::default()
    });
    let linktype = [1, 276, 113, 101, 0, 108, 228, 229][usize::from(linktype % 8)];
    let mut out = Vec::new();
    for data in &packets {
        out.clear();
        let length = data.len() as u32 + u32::from(cut);
        let packet = Packet {
            linktype,
            original_length: length,
            timestamp: length.into(),
            data,
            ..Packet::default()
        };
        printer.print(&packet, &mut out);
        assert_eq!(out.last(), Some(&b'\n'));
    }
});
