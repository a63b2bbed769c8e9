//! IPv6 packets of every protocol, behind every extension header.

use crate::{
    cases::application::{dns_messages, http_texts, tcp_options},
    frames::*,
};

pub(crate) fn v6_packets() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let data = b"some data that is not of any protocol".to_vec();
    let tcp = Tcp::default();
    let datagram = udp(true, 40_000, 2000, &data);
    all.push(
        Tcp { flags: 2, acknowledged: 0, options: tcp_options()[1].clone(), ..tcp.clone() }.v6(),
    );
    all.push(Tcp { sequence: 1_000_001, data: data.clone(), ..tcp.clone() }.v6());
    all.push(Tcp { source: 9999, destination: 40_000, data: data.clone(), ..tcp.clone() }.v6());
    all.push(Tcp { destination: 80, data: http_texts()[0].to_vec(), ..tcp.clone() }.v6());
    all.push(v6(17, &datagram));
    for message in dns_messages().into_iter().take(9) {
        all.push(v6(17, &udp(true, 53, 40_000, &message)));
    }
    all.push(v6_from(0x0ab1_2345, 1, 17, &datagram));
    let mut wrong = datagram.clone();
    wrong[7] ^= 1;
    all.push(v6(17, &wrong));

    // Extension headers, each before UDP, TCP and ICMPv6.
    let ping = icmp6(128, 0, &[0x12, 0x34, 0, 1, 1, 2, 3, 4]);
    let segment = tcp.v6()[40..].to_vec();
    let routing = |kind: u8, length: u8, extra: &[u8]| {
        [&[0, length, kind, 1, 0, 0, 0, 0][..], &V6_B, &V6_A, extra].concat()
    };
    let headers: Vec<(u8, Vec<u8>)> = vec![
        (0, vec![0, 0, 5, 2, 0, 0, 1, 0]),
        (0, vec![0, 0, 1, 4, 0, 0, 0, 0]),
        (0, vec![0, 0, 0, 0, 0, 0, 0, 0]),
        (0, vec![0, 0, 5, 3, 0, 0, 1, 0]),
        (0, vec![0, 0, 0xc2, 4, 0, 1, 0, 0]),
        (0, vec![0, 0, 0xc2, 3, 0, 1, 0, 0]),
        (0, vec![0, 0, 0x1e, 4, 0, 1, 0, 0]),
        (0, vec![0, 0, 0x1e, 9, 0, 1, 0, 0]),
        (0, vec![0, 0, 0, 0, 0, 0, 0, 5]),
        (0, vec![0, 1, 0xc2, 4, 0, 1, 0, 0, 0xc2, 4, 0, 1, 0, 0, 1, 0]),
        (60, vec![0, 0, 1, 4, 0, 0, 0, 0]),
        (60, vec![0, 0, 0xc2, 4, 0, 1, 0, 0]),
        (60, [&[0, 2, 0xc9, 16][..], &V6_B, &[1, 2, 0, 0]].concat()),
        (60, [&[0, 2, 0xc9, 20][..], &V6_B, &[0, 0, 0x33, 0]].concat()),
        (60, [&[0, 2, 0xc9, 20][..], &V6_B, &[1, 2, 0x33, 9]].concat()),
        (60, [&[0, 2, 0xc9, 3][..], &V6_B, &[1, 2, 0x33, 9]].concat()),
        (43, routing(0, 4, &[])),
        (43, routing(2, 4, &[])),
        (43, routing(4, 4, &[])),
        (43, routing(0, 3, &[])),
        (43, routing(4, 3, &[])),
        (43, routing(9, 4, &[])),
        (43, routing(2, 0, &[])),
        (44, vec![0, 0, 0, 0, 1, 2, 3, 4]),
        (44, vec![0, 0, 0, 1, 1, 2, 3, 4]),
        (44, vec![0, 0, 0, 0x90, 1, 2, 3, 4]),
    ];
    for (next, header) in &headers {
        for (protocol, payload) in [(17, &datagram), (6, &segment), (58, &ping)] {
            let mut header = header.clone();
            header[0] = protocol;
            all.push(v6(*next, &[&header[..], payload].concat()));
            // Behind another one.
            let before = [*next, 0, 1, 4, 0, 0, 0, 0];
            all.push(v6(60, &[&before[..], &header, payload].concat()));
            all.push(v6(0, &[&before[..], &header, payload].concat()));
        }
    }
    // Without a length: a jumbogram, or not.
    for (next, header) in [
        (0, vec![17, 0, 0xc2, 4, 0, 1, 0, 8]),
        (0, vec![17, 0, 1, 4, 0, 0, 0, 0]),
        (17, Vec::new()),
        (60, vec![17, 0, 1, 4, 0, 0, 0, 0]),
    ] {
        let mut packet = v6(next, &[&header[..], &datagram].concat());
        packet[4..6].copy_from_slice(&[0, 0]);
        all.push(packet);
    }
    for next in [1, 2, 4, 41, 59, 77, 99, 143] {
        all.push(v6(next, &data));
    }
    all.push(v6(59, &[]));
    all.push(v6(58, &[]));
    for (at, value) in [(0, 0x50), (5, 200), (5, 3), (4, 1)] {
        let mut packet = v6(17, &datagram);
        packet[at] = value;
        all.push(packet);
    }

    let quoted = v6(17, &udp(true, 40_000, 33_434, &data));
    let quoted_tcp = tcp.v6();
    let behind = v6(60, &[&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp(true, 1, 53, &data)].concat());
    let in_fragment = v6(44, &[&[6, 0, 0, 1, 1, 2, 3, 4][..], &segment].concat());
    let in_later = v6(44, &[&[6, 0, 0, 9, 1, 2, 3, 4][..], &segment].concat());
    let in_ah = v6(51, &[&[17, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8][..], &datagram].concat());
    for code in 0..7 {
        for quoted in
            [&quoted, &quoted_tcp, &behind, &in_fragment, &in_later, &in_ah, &v6(99, &data)]
        {
            all.push(v6(58, &icmp6(1, code, &[&[0; 4][..], quoted].concat())));
        }
        for kind in [2, 3, 4] {
            all.push(v6(58, &icmp6(kind, code, &[&[0, 0, 5, 0xdc][..], &quoted].concat())));
        }
    }
    all.push(v6(58, &ping));
    all.push(v6(58, &icmp6(129, 0, &[0x12, 0x34, 0, 1, 1, 2, 3, 4])));
    let group = [&[0xff, 2][..], &[0; 13], &[0xfb]].concat();
    for kind in [130, 131, 132] {
        all.push(v6(58, &icmp6(kind, 0, &[&[0x27, 0x10, 0, 0][..], &group].concat())));
        all.push(v6(58, &icmp6(kind, 0, &[&[0x27, 0x10, 0, 0][..], &group[..9]].concat())));
    }
    for (delay, flags, interval, sources) in
        [(10_000, 0, 125, 0), (0x8123, 0x0a, 0x8f, 1), (0xffff, 7, 255, 9)]
    {
        let mut rest = u16::to_be_bytes(delay).to_vec();
        rest.extend([0, 0]);
        rest.extend(&group);
        rest.extend([flags, interval, 0, sources]);
        rest.extend(V6_A);
        all.push(v6(58, &icmp6(130, 0, &rest)));
    }
    for kind in 0..8 {
        let mut rest = vec![0, 0, 0, 2, kind, 0, 0, 1];
        rest.extend(&group);
        rest.extend(V6_A);
        rest.extend([4, 0, 0, 0]);
        rest.extend(&group);
        all.push(v6(0, &[&[58, 0, 5, 2, 0, 0, 1, 0][..], &icmp6(143, 0, &rest)].concat()));
    }
    all.push(v6(58, &icmp6(143, 0, &[0, 0, 0, 9, 1, 0, 0, 9])));
    all.push(v6(58, &icmp6(143, 0, &[0, 0, 0])));
    all.push(v6(58, &icmp6(133, 0, &[0; 4])));

    let options: Vec<Vec<u8>> = vec![
        vec![1, 1, 2, 0, 0, 0, 0, 1],
        vec![2, 1, 2, 0, 0, 0, 0, 2],
        [&[3, 4, 64, 0xe0, 0, 0, 0x38, 0x40, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0][..], &V6_A]
            .concat(),
        [&[3, 5, 64, 0, 0, 0, 0x38, 0x40, 0, 0, 0, 9, 0, 0, 0, 0][..], &V6_A, &[0; 8]].concat(),
        vec![4, 2, 0, 0, 0, 0, 0, 0, 0x60, 1, 2, 3, 4, 5, 6, 7],
        vec![5, 1, 0, 0, 0, 0, 5, 0xdc],
        vec![5, 2, 0, 0, 0, 0, 5, 0xdc, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![7, 1, 0, 0, 0, 0, 5, 0xdc],
        vec![8, 1, 0, 0, 0, 1, 5, 0xdc],
        vec![24, 1, 0, 0x08, 0, 0, 0, 60],
        vec![24, 2, 64, 0x18, 0xff, 0xff, 0xff, 0xff, 0xfd, 0, 0, 1, 0, 0, 0, 0],
        [&[24, 3, 128, 0x10, 0, 0, 0, 1][..], &V6_B].concat(),
        [&[24, 4, 128, 0x10, 0, 0, 0, 1][..], &V6_B, &[0; 8]].concat(),
        [&[25, 5, 0, 0, 0, 0, 0, 60][..], &V6_A, &V6_B].concat(),
        [&[31, 3, 0, 0, 0, 0, 0, 60][..], &name("example.com"), &[0, 0, 0]].concat(),
        vec![31, 2, 0, 0, 0, 0, 0, 60, 0xc0, 2, 0, 0, 0, 0, 0, 0],
        vec![99, 1, 1, 2, 3, 4, 5, 6],
        vec![1, 0, 1, 2, 3, 4, 5, 6],
        vec![1, 9, 1, 2, 3, 4, 5, 6],
        vec![1, 1, 1, 2, 3],
    ];
    for option in &options {
        all.push(v6(58, &icmp6(133, 0, &[&[0; 4][..], option].concat())));
        let advertisement = [64, 0xea, 7, 8, 0, 0, 0x75, 0x30, 0, 0, 3, 0xe8];
        all.push(v6(58, &icmp6(134, 0, &[&advertisement[..], option, &options[0]].concat())));
        all.push(v6(58, &icmp6(135, 0, &[&[0; 4][..], &V6_B, option].concat())));
        all.push(v6(58, &icmp6(136, 0, &[&[0xe0, 0, 0, 0][..], &V6_B, option].concat())));
        all.push(v6(58, &icmp6(137, 0, &[&[0; 4][..], &V6_A, &V6_B, option].concat())));
    }
    for flags in [0, 0x80, 0x40, 0xc0] {
        all.push(v6(58, &icmp6(145, 0, &[&[1, 2, flags, 0][..], &V6_A, &V6_B].concat())));
        all.push(v6(58, &icmp6(147, 0, &[&[1, 2, flags, 0][..], &options[2]].concat())));
    }
    for flags in [0, 0x80, 0x42, 0x38] {
        all.push(v6(58, &icmp6(134, 0, &[255, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
    }
    for kind in [141, 142, 144, 146, 148, 200, 201, 255, 0, 100] {
        all.push(v6(58, &icmp6(kind, 0, &[1, 2, 3, 4, 5, 6, 7, 8])));
    }
    all
}
