//! Shows that no bytes make the printer panic or loop. `tests/text` compares the text with
//! tcpdump's.

use proptest::prelude::*;

use super::*;

fn print(options: PrintOptions, linktype: u16, data: &[u8], length: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let packet = Packet { linktype, original_length: length, data, ..Packet::default() };
    Printer::new(options).print(&packet, &mut out);
    out
}

fn options() -> impl Strategy<Value = PrintOptions> {
    any::<(bool, u8, bool, bool, [u8; 5])>().prop_map(
        |(number, timestamps, nanoseconds, link_layer, counts)| {
            let [verbose, quiet, hex, hex_ascii, ascii] = counts.map(|count| count % 4);
            PrintOptions {
                number,
                timestamps,
                nanoseconds,
                link_layer,
                verbose,
                quiet,
                hex,
                hex_ascii,
                ascii,
                ..PrintOptions::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_a_line(
        options in options(),
        linktype in prop_oneof![Just(1_u16), Just(276), Just(113), Just(101), Just(0), any::<u16>()],
        begin in prop_oneof![Just(&[][..]), Just(&[0x45, 0, 1, 0][..]), Just(&[0x60, 0, 0, 0, 1, 0][..])],
        data in proptest::collection::vec(any::<u8>(), 0..300),
        more in 0_u32..100,
    ) {
        let data = [begin, &data].concat();
        let length = u32::try_from(data.len()).unwrap() + more;
        prop_assert!(print(options, linktype, &data, length).ends_with(b"\n"));
    }
}

#[test]
fn packets_in_packets_end() {
    // IPv4 in IPv4 in IPv4 …, as often as fits.
    let levels = 3000_usize;
    let mut data = Vec::new();
    for level in (1..=levels).rev() {
        let [high, low] = u16::try_from(level * 20).unwrap().to_be_bytes();
        data.extend([0x45, 0, high, low, 0, 0, 0, 0, 64, 4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let length = u32::try_from(data.len()).unwrap();
    let text = String::from_utf8(print(PrintOptions::default(), 101, &data, length)).unwrap();
    assert_eq!(text.matches("10.0.0.1 > 10.0.0.2").count(), usize::from(MAX_DEPTH));
    assert!(text.ends_with("[|ip]\n"), "{text}");
    // The same through a Redis array in an array.
    let array = b"*1\r\n".repeat(3000);
    let mut data = vec![0x45, 0, 0xff, 0xff, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    data.extend([0x18, 0xeb, 0x18, 0xeb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    data.extend(array);
    let text = String::from_utf8(print(PrintOptions::default(), 101, &data, 65_535)).unwrap();
    assert!(text.ends_with(": RESP [|resp]\n"), "{text}");
}

#[test]
fn impossible_lengths_are_said() {
    let said = |data: &[u8], length| {
        String::from_utf8(print(PrintOptions::default(), 1, data, length)).unwrap()
    };
    assert_eq!(said(&[], 0), "[Invalid header: caplen==0, len==0]\n");
    assert_eq!(said(&[0; 20], 10), "[Invalid header: len(10) < caplen(20)]\n");
    assert_eq!(said(&[0; 20], 300_000), "[Invalid header: len(300000) > 262144]\n");
}
