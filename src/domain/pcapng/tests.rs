//! Written files are read again, and no input panics. `tests/text` compares with other programs.

use proptest::prelude::*;

use super::{
    merge::{Merged, Source},
    *,
};

/// A packet with its bytes, for comparisons.
#[derive(Debug, Clone, PartialEq)]
struct Owned {
    interface: usize,
    timestamp: u64,
    original_length: u32,
    direction: Direction,
    data: Vec<u8>,
}

impl From<Packet<'_>> for Owned {
    fn from(packet: Packet<'_>) -> Self {
        Self {
            interface: packet.interface,
            timestamp: packet.timestamp,
            original_length: packet.original_length,
            direction: packet.direction,
            data: packet.data.to_vec(),
        }
    }
}

/// All packets of a file that is pushed in pieces of one size, and how the file ends.
fn decode(file: &[u8], piece: usize) -> (Vec<Owned>, Result<(), Error>) {
    let mut decoder = Decoder::new();
    let mut packets = Vec::new();
    for piece in file.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(packet)) => packets.push(packet.into()),
                Ok(None) => break,
                Err(error) => return (packets, Err(error)),
            }
        }
    }
    let end = decoder.finish();
    (packets, end)
}

fn begun(interfaces: usize) -> Vec<u8> {
    let mut file = Vec::new();
    let section =
        write::Section { hardware: "x86_64", os: "Linux", application: "podsonde", comment: "é" };
    write::section_header(&mut file, &section);
    for name in ["eth0", "lo", "a-longer-name"].into_iter().take(interfaces) {
        let interface = write::Interface {
            linktype: linktype::ETHERNET,
            snaplen: 262_144,
            name,
            description: "of a pod",
            filter: "tcp port 80",
            os: "Linux",
        };
        write::interface(&mut file, &interface);
    }
    file
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Unknown), Just(Direction::In), Just(Direction::Out)]
}

prop_compose! {
    fn packet()(
        interface in 0_usize..3,
        timestamp: u64,
        original_length: u32,
        direction in direction(),
        data in proptest::collection::vec(any::<u8>(), 0..70),
    ) -> Owned {
        Owned { interface, timestamp, original_length, direction, data }
    }
}

fn append(file: &mut Vec<u8>, packet: &Owned, split: usize) {
    let header = write::Packet {
        interface: u32::try_from(packet.interface).unwrap(),
        timestamp: packet.timestamp,
        original_length: packet.original_length,
        direction: packet.direction,
    };
    let (a, b) = packet.data.split_at(split.min(packet.data.len()));
    write::enhanced_packet(file, &header, [a, b]);
}

/// Adds an option that podsonde itself does not write to a packet's block.
fn comment(block: &mut Vec<u8>, direction: Direction) {
    // Cuts off the end of the options, if there are any, and the block's second length.
    block.truncate(block.len() - if direction == Direction::Unknown { 4 } else { 8 });
    block.extend_from_slice(b"\x01\0\x04\0kept\0\0\0\0");
    let length = u32::try_from(block.len() + 4).unwrap().to_le_bytes();
    block.extend_from_slice(&length);
    block[4..8].copy_from_slice(&length);
}

proptest! {
    #[test]
    fn written_packets_are_read_again(
        packets in proptest::collection::vec((packet(), 0_usize..70, any::<Option<u64>>()), 0..20),
        piece in 1_usize..300,
    ) {
        let mut file = begun(3);
        for (packet, split, received) in &packets {
            append(&mut file, packet, *split);
            let statistics = write::Statistics { received: *received, ..Default::default() };
            write::interface_statistics(&mut file, &statistics);
        }
        let (read, end) = decode(&file, piece);
        prop_assert!(end.is_ok());
        prop_assert_eq!(read, packets.into_iter().map(|p| p.0).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_panics(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8),
        piece in 1_usize..64,
    ) {
        let _ = decode(&bytes, piece);
        // Then the same bytes behind a valid beginning, a few of which are changed.
        let mut file = begun(2);
        let packet = Owned {
            interface: 1,
            timestamp: 1,
            original_length: 5,
            direction: Direction::In,
            data: vec![1, 2, 3],
        };
        append(&mut file, &packet, 1);
        file.append(&mut bytes);
        for (at, value) in flips {
            let at = at % file.len();
            file[at] = value;
        }
        let _ = decode(&file, piece);
        let _ = Merged::default().append(&mut Source::default(), &file, &mut Vec::new());
    }

    #[test]
    fn merged_streams_keep_their_packets(
        a in proptest::collection::vec(packet(), 0..9),
        b in proptest::collection::vec(packet(), 0..9),
    ) {
        let mut file = Vec::new();
        write::section_header(&mut file, &write::Section::default());
        let mut merged = Merged::default();
        for packets in [&a, &b] {
            let mut stream = begun(3);
            for packet in packets {
                let mut block = Vec::new();
                append(&mut block, packet, 7);
                comment(&mut block, packet.direction);
                stream.append(&mut block);
            }
            merged.append(&mut Source::default(), &stream, &mut file).unwrap();
        }
        let second = b.into_iter().map(|p| Owned { interface: p.interface + 3, ..p });
        let expected: Vec<_> = a.into_iter().chain(second).collect();
        let kept = file.windows(4).filter(|w| w == b"kept").count();
        prop_assert_eq!(kept, expected.len());
        let (read, end) = decode(&file, 1000);
        prop_assert!(end.is_ok());
        prop_assert_eq!(read, expected);
    }
}

#[test]
fn a_file_cut_anywhere_gives_the_whole_packets_before() {
    let packet = Owned {
        interface: 0,
        timestamp: 1_700_000_000_123_456_789,
        original_length: 60,
        direction: Direction::Out,
        data: vec![7; 33],
    };
    let mut file = begun(1);
    let mut ends = vec![file.len()];
    for _ in 0..3 {
        append(&mut file, &packet, 0);
        ends.push(file.len());
    }
    for length in 0..=file.len() {
        let (read, end) = decode(&file[..length], 64);
        assert_eq!(
            read.len(),
            ends.iter().skip(1).filter(|end| **end <= length).count(),
            "cut at {length}"
        );
        let whole = ends.contains(&length) || length == begun(0).len();
        assert_eq!(end.is_ok(), whole, "cut at {length}: {end:?}");
    }
}

#[test]
fn interfaces_are_described() {
    let mut decoder = Decoder::new();
    decoder.push(&begun(3));
    assert_eq!(decoder.next().unwrap(), None);
    let names: Vec<_> = decoder.interfaces().iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["eth0", "lo", "a-longer-name"]);
    assert_eq!(decoder.interfaces()[2].snaplen, 262_144);
    assert_eq!(decoder.interfaces()[2].description, "of a pod");
}

/// A block in big-endian order.
fn big(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 12).unwrap().to_be_bytes();
    [&kind.to_be_bytes(), &length, body, &length].concat()
}

#[test]
fn big_endian_sections_odd_clocks_and_old_blocks() {
    let mut file = begun(1);
    file.extend(big(
        block::SECTION_HEADER,
        &[0x1a, 0x2b, 0x3c, 0x4d, 0, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255],
    ));
    // The first interface counts units of 1/1024 s, begins ten seconds later and keeps 3 bytes of
    // each packet; the second has the default unit, microseconds.
    let options = [0, 9, 0, 1, 0x8a, 0, 0, 0, 0, 14, 0, 8, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0];
    file.extend(big(
        block::INTERFACE_DESCRIPTION,
        &[&[0, 1, 0, 0, 0, 0, 0, 3][..], &options].concat(),
    ));
    file.extend(big(block::INTERFACE_DESCRIPTION, &[0, 101, 0, 0, 0, 0, 0, 0]));
    // A block of an unknown type, which is skipped.
    file.extend(big(0x0bad_cafe, &[1, 2, 3, 4]));
    file.extend(big(
        block::ENHANCED_PACKET,
        &[
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 2, 0, 0, 0, 9, 0xaa, 0xbb, 0, 0, 0, 2, 0,
            4, 0, 0, 0, 1,
        ],
    ));
    file.extend(big(
        block::PACKET,
        &[0, 1, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0xcc, 0, 0, 0],
    ));
    file.extend(big(block::SIMPLE_PACKET, &[0, 0, 0, 9, 1, 2, 3, 0]));
    let (read, end) = decode(&file, 11);
    end.unwrap();
    let expect = |interface, timestamp, original_length, direction, data: &[u8]| Owned {
        interface,
        timestamp,
        original_length,
        direction,
        data: data.to_vec(),
    };
    assert_eq!(
        read,
        [
            expect(1, 11_500_000_000, 9, Direction::In, &[0xaa, 0xbb]),
            expect(2, 4_294_967_296_000, 1, Direction::Unknown, &[0xcc]),
            expect(1, 0, 9, Direction::Unknown, &[1, 2, 3]),
        ]
    );
}

#[test]
fn classic_files_in_both_orders_and_units() {
    for (magic, scale) in [(0xa1b2_c3d4_u32, 1000_u64), (0xa1b2_3c4d, 1)] {
        for big in [false, true] {
            let u32 = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
            let u16 = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
            let header =
                [u32(magic).as_slice(), &u16(2), &u16(4), &[0; 8], &u32(65535), &u32(1)].concat();
            let packet =
                [&u32(1_700_000_000)[..], &u32(123), &u32(3), &u32(60), &[1, 2, 3]].concat();
            let file = [header, packet.clone(), packet].concat();
            let (read, end) = decode(&file, 5);
            end.unwrap();
            assert_eq!(read.len(), 2);
            assert_eq!(read[1].timestamp, 1_700_000_000_000_000_000 + 123 * scale);
            assert_eq!((read[1].original_length, read[1].data.as_slice()), (60, &[1, 2, 3][..]));
            let (read, end) = decode(&file[..file.len() - 1], 5);
            assert_eq!((read.len(), end.is_err()), (1, true));
        }
    }
}

#[test]
fn other_files_are_refused_by_name() {
    let kuznetzov = [&0xa1b2_cd34_u32.to_le_bytes()[..], &[0; 60]].concat();
    assert!(matches!(decode(&kuznetzov, 64).1, Err(Error::Unsupported(_))));
    assert!(matches!(decode(b"<?xml version", 64).1, Err(Error::UnknownFormat(_))));
    assert!(matches!(decode(b"", 64).1, Err(Error::Truncated { .. })));
    let mut long = begun(0);
    long.extend([6, 0, 0, 0, 0, 0, 0, 0x7f]);
    assert!(matches!(decode(&long, 64).1, Err(Error::Malformed { .. })));
}
