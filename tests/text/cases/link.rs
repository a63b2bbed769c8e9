//! ARP, and frames of the link layer.

use crate::{
    cases::{IP, IP6},
    frames::*,
};

pub(crate) fn arp_packets() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let ends = |target: [u8; 6]| [&[2, 0, 0, 0, 0, 1][..], &V4_A, &target, &V4_B].concat();
    for operation in 0..12 {
        for target in [[0; 6], [2, 0, 0, 0, 0, 9]] {
            all.push([&[0, 1, 8, 0, 6, 4, 0, operation][..], &ends(target)].concat());
        }
    }
    for (at, value) in [
        (1, 6),
        (1, 7),
        (1, 23),
        (1, 24),
        (1, 32),
        (1, 99),
        (2, 0x10),
        (2, 0x99),
        (4, 0),
        (4, 8),
        (5, 3),
        (5, 0),
    ] {
        for operation in [1, 2, 3] {
            let mut packet =
                [&[0, 1, 8, 0, 6, 4, 0, operation][..], &ends([7; 6]), &[0; 18]].concat();
            packet[at] = value;
            all.push(packet);
        }
    }
    all
}

pub(crate) fn ethernet_frames() -> Vec<Vec<u8>> {
    let packet = v4(17, &udp(false, 40_000, 2000, b"data"));
    let mut all = vec![
        ethernet(0x8100, &vlan(0x0064, IP, &packet)),
        ethernet(0x8100, &vlan(0xb064, IP6, &v6(59, &[]))),
        ethernet(0x88a8, &vlan(0x0064, 0x8100, &vlan(0x2001, IP, &packet))),
        ethernet(0x9100, &vlan(1, 0x9200, &vlan(2, 0x8100, &vlan(3, 0x0806, &arp_packets()[2])))),
        ethernet(0x8100, &vlan(5, 0x1234, b"unknown")),
        ethernet(0x8100, &vlan(5, 8, b"\xaa\xaa\x03\0\0\0\x08\0")),
        ethernet(0x88b5, b"a local experiment, longer than a line of the dump"),
        ethernet(0x0600, &[1, 2, 3]),
        ethernet(0x05dd, &[]),
        ethernet(0xffff, &[0]),
        ethernet(0x8035, &arp_packets()[4]),
        // Padded to the least length of a frame.
        ethernet(IP, &[&packet[..], &[0; 14]].concat()),
        ethernet(0x0806, &[&arp_packets()[2][..], &[0; 18]].concat()),
    ];
    let snap = |organisation: [u8; 3], kind: u16, payload: &[u8]| {
        [&[0xaa, 0xaa, 3][..], &organisation, &kind.to_be_bytes(), payload].concat()
    };
    for payload in [
        snap([0, 0, 0], IP, &packet),
        snap([0, 0, 0], 0x0806, &arp_packets()[2]),
        snap([0, 0, 0xf8], IP6, &v6(59, &[])),
        snap([0, 0, 0], 0x1234, b"unknown"),
        snap([1, 2, 3], 0x1234, b"unknown"),
        [&[6, 6, 3][..], &packet].concat(),
        vec![0x04, 0x05, 0x03, 1, 2, 3],
        vec![0x05, 0x04, 0x13, 1, 2, 3],
        vec![0x99, 0x12, 0xe3, 1, 2, 3],
        vec![0x04, 0x04, 0xaf],
        vec![0x04, 0x04, 0xbf, 0x81, 1, 2],
        vec![0x04, 0x04, 0xaf, 0x81, 1],
        vec![0x04, 0x04, 0xaf, 0x11, 1, 2],
        vec![0x04, 0x04, 0x01, 0x02],
        vec![0x04, 0x05, 0x05, 0x03],
        vec![0x04, 0x05, 0x0d, 0xff],
        vec![0x04, 0x05, 0x04, 0x03, 9, 9],
        vec![0x04, 0x05, 0x01],
        vec![0x04, 0x05],
        vec![],
    ] {
        let length = u16::try_from(payload.len()).unwrap();
        all.push(ethernet(length, &payload));
        all.push(ethernet(length, &[&payload[..], &[0; 20]].concat()));
        all.push(ethernet(length + 5, &payload));
    }
    all
}
