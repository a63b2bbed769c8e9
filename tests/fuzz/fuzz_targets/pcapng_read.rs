//! Any bytes as a capture file: no panic, the same packets however the bytes are cut into pieces,
//! and nothing that a merge accepts that the reader does not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podsonde::domain::pcapng::{
    Decoder,
    merge::{Merged, Source},
    write,
};

fn count(file: &[u8], piece: usize) -> (usize, bool) {
    let mut decoder = Decoder::new();
    let mut packets = 0;
    for piece in file.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(_)) => packets += 1,
                Ok(None) => break,
                Err(_) => return (packets, false),
            }
        }
    }
    (packets, decoder.finish().is_ok())
}

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (piece, begun, rest) = input;
    let mut file = Vec::new();
    if begun {
        write::section_header(&mut file, &write::Section::default());
        write::interface(
            &mut file,
            &write::Interface { linktype: 1, name: "eth0", ..Default::default() },
        );
    }
    file.extend_from_slice(rest);
    let whole = count(&file, file.len().max(1));
    assert_eq!(whole, count(&file, usize::from(piece) + 1));
    let mut merged = Vec::new();
    write::section_header(&mut merged, &write::Section::default());
    if Merged::default().append(&mut Source::default(), &file, &mut merged).is_ok() && whole.1 {
        let (packets, ended) = count(&merged, 4096);
        assert!(ended && packets == whole.0);
    }
});
