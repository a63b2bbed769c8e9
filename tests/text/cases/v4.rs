//! IPv4 packets of every protocol.

use crate::{
    cases::application::{
        dns_messages, http_texts, mdns_messages, redis_texts, tcp_options, tunnels,
    },
    frames::*,
};

/// What IPv4 carries.
pub(crate) fn v4_packets() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let data = b"some data that is not of any protocol".to_vec();
    // A conversation, so that sequence numbers become relative; the other direction, too; another
    // begins anew.
    let tcp = Tcp::default();
    let back = Tcp {
        source: 9999,
        destination: 40_000,
        sequence: 2_000_000,
        acknowledged: 1_000_001,
        ..tcp.clone()
    };
    all.push(
        Tcp { flags: 2, acknowledged: 0, options: tcp_options()[1].clone(), ..tcp.clone() }.v4(),
    );
    all.push(Tcp { flags: 0x12, options: tcp_options()[1].clone(), ..back.clone() }.v4());
    all.push(Tcp { sequence: 1_000_001, acknowledged: 2_000_001, ..tcp.clone() }.v4());
    all.push(
        Tcp {
            sequence: 1_000_001,
            acknowledged: 2_000_001,
            flags: 0x18,
            data: data.clone(),
            ..tcp.clone()
        }
        .v4(),
    );
    all.push(
        Tcp {
            sequence: 2_000_001,
            acknowledged: 1_000_038,
            flags: 0x18,
            data: data.clone(),
            ..back.clone()
        }
        .v4(),
    );
    for options in tcp_options() {
        all.push(Tcp { sequence: 1_000_038, options: options.clone(), ..tcp.clone() }.v4());
        all.push(Tcp { sequence: 2_000_038, options, data: data.clone(), ..back.clone() }.v4());
    }
    for flags in 0..=255 {
        all.push(Tcp { flags, source: 50_000 + u16::from(flags), ..tcp.clone() }.v4());
    }
    all.push(Tcp { flags: 0x14, data: b"no such service\x00\xff".to_vec(), ..tcp.clone() }.v4());
    all.push(Tcp { flags: 0x14, data: [b'x'; 50].to_vec(), ..tcp.clone() }.v4());
    for port in [80, 8080, 25, 43, 21, 554, 8554] {
        for text in http_texts() {
            all.push(
                Tcp { destination: port, flags: 0x18, data: text.to_vec(), ..tcp.clone() }.v4(),
            );
        }
    }
    all.push(
        Tcp {
            destination: 554,
            data: b"DESCRIBE rtsp://x RTSP/1.0\r\n\r\n".to_vec(),
            ..tcp.clone()
        }
        .v4(),
    );
    for text in redis_texts() {
        all.push(Tcp { destination: 6379, flags: 0x18, data: text.to_vec(), ..tcp.clone() }.v4());
    }
    for text in [
        &b"SSH-2.0-OpenSSH_9.2\r\nmore"[..],
        b"SSH-1.5-x\n",
        b"SSH-2.0-x\r",
        b"SSH-2\x01\r\n",
        b"SSX",
        b"SSH-2.0",
    ] {
        all.push(Tcp { destination: 22, flags: 0x18, data: text.to_vec(), ..tcp.clone() }.v4());
    }
    // Same ports at both ends, wrong header lengths, a wrong checksum.
    all.push(Tcp { source: 7, destination: 7, ..tcp.clone() }.v4());
    all.push(Tcp { source: 7, destination: 7, ..tcp.clone() }.v4());
    for offset in [0x40, 0xf0] {
        let mut packet = tcp.v4();
        packet[32] = offset;
        all.push(packet);
    }
    let mut packet = tcp.v4();
    packet[36] ^= 0x55;
    all.push(packet);

    for message in dns_messages() {
        let prefixed =
            [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
        all.push(Tcp { destination: 53, flags: 0x18, data: prefixed, ..tcp.clone() }.v4());
        all.push(Tcp { destination: 53, flags: 0x18, data: message.clone(), ..tcp.clone() }.v4());
        all.push(v4(17, &udp(false, 40_000, 53, &message)));
    }
    all.push(Tcp { destination: 53, data: vec![1], ..tcp.clone() }.v4());
    for message in mdns_messages() {
        all.push(v4(17, &udp(false, 5353, 5353, &message)));
    }
    all.push(v4(17, &udp(false, 1, 2, &[])));
    all.push(v4(17, &udp(false, 40_000, 2000, &data)));
    all.push(v4(17, &udp(false, 5060, 5060, b"INVITE sip:a@b SIP/2.0\r\nVia: x\r\n\r\n")));
    for (port, payload) in tunnels() {
        all.push(v4(17, &udp(false, 40_000, port, &payload)));
    }
    // No checksum, a wrong one, wrong lengths.
    for (at, value) in [(6, 0), (6, 1), (4, 0), (4, 0xff), (5, 7), (5, 9)] {
        let mut datagram = udp(false, 40_000, 2000, &data);
        datagram[at] = value;
        if (at, value) == (6, 0) {
            datagram[7] = 0;
        }
        all.push(v4(17, &datagram));
    }
    all.push(v4(17, &[1, 2, 3, 4, 0, 6, 0]));

    let quoted = v4(17, &udp(false, 40_000, 33_434, &data));
    let quoted_tcp = tcp.v4();
    all.push(v4(1, &icmp(8, 0, &[0x12, 0x34, 0, 1, 1, 2, 3, 4])));
    all.push(v4(1, &icmp(0, 0, &[0x12, 0x34, 0, 1, 1, 2, 3, 4])));
    for code in 0..18 {
        all.push(v4(1, &icmp(3, code, &[&[0, 0, 5, 0xdc][..], &quoted].concat())));
        all.push(v4(1, &icmp(3, code, &[&[0, 0, 0, 0][..], &quoted_tcp].concat())));
    }
    all.push(v4(1, &icmp(3, 3, &[&[0; 4][..], &v4(99, &data)].concat())));
    all.push(v4(1, &icmp(3, 3, &[&[0; 4][..], &quoted[..28]].concat())));
    for kind in [4, 5, 11, 12] {
        for code in 0..5 {
            all.push(v4(1, &icmp(kind, code, &[&[10, 9, 8, 7][..], &quoted].concat())));
        }
    }
    for (lifetime, routers) in [(59, 1), (60, 2), (3599, 1), (3600, 0), (65_535, 20)] {
        let mut rest = vec![u8::try_from(routers).unwrap(), 2];
        rest.extend(u16::to_be_bytes(lifetime));
        (0..routers).for_each(|n: u32| {
            rest.extend([200, 100, 100, 250, 255, 255, 255, u8::try_from(n).unwrap()]);
        });
        all.push(v4(1, &icmp(9, 0, &rest)));
    }
    all.push(v4(1, &icmp(9, 0, &[1, 3, 0, 9, 0, 0])));
    for kind in [10, 13, 15, 16, 17, 18, 19, 40, 255] {
        all.push(v4(1, &icmp(kind, 1, &[0, 1, 0, 2, 0xff, 0xff, 0xff, 0])));
    }
    all.push(v4(
        1,
        &icmp(14, 0, &[0, 1, 0, 2, 0, 0, 0, 1, 5, 0x26, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ));
    // Extensions of errors, with and without a length, right and wrong.
    let padded = |length: u8, extension: &[u8]| {
        let mut rest = vec![0, length, 0, 0];
        rest.extend(&quoted[..quoted.len().min(128)]);
        rest.resize(4 + 128, 0);
        rest.extend(extension);
        v4(1, &icmp(11, 0, &rest))
    };
    let mpls = with_checksum(2, vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 64]);
    let two = with_checksum(2, vec![0x20, 0, 0, 0, 0, 8, 1, 2, 1, 2, 3, 4, 0, 8, 2, 9, 1, 2, 3, 4]);
    for length in [0, 32] {
        all.push(padded(length, &mpls));
        all.push(padded(length, &two));
        all.push(padded(length, &[0x10, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4]));
        all.push(padded(length, &[0x20, 0, 1, 2, 0, 8, 1, 1, 1, 2, 3, 4]));
        all.push(padded(length, &[0x20, 0, 1, 2, 0, 99, 3, 1, 1, 2, 3, 4]));
        all.push(padded(length, &[0x20, 0, 1]));
    }

    for (kind, code) in
        [(0x11, 0), (0x11, 100), (0x11, 50), (0x12, 0), (0x16, 0), (0x17, 0), (0x77, 0)]
    {
        all.push(v4(2, &with_checksum(2, vec![kind, code, 0, 0, 224, 0, 0, 251])));
    }
    all.push(v4(2, &with_checksum(2, vec![0x11, 0, 0, 0, 0, 0, 0, 0])));
    all.push(v4(2, &[0x12, 0, 1, 1, 224, 0, 0, 251, 1]));
    for code in [100, 99, 0x81, 0xff, 0xf0] {
        all.push(v4(
            2,
            &with_checksum(2, vec![0x11, code, 0, 0, 224, 0, 0, 251, 2, 125, 0, 1, 10, 0, 0, 7]),
        ));
    }
    all.push(v4(
        2,
        &with_checksum(2, vec![0x11, 10, 0, 0, 224, 0, 0, 251, 2, 125, 0, 9, 10, 0, 0, 7]),
    ));
    for kind in 0..8 {
        let report = vec![
            0x22, 0, 0, 0, 0, 0, 0, 2, kind, 0, 0, 1, 224, 0, 0, 5, 10, 0, 0, 1, kind, 0, 0, 0,
            239, 1, 1, 1,
        ];
        all.push(v4(2, &with_checksum(2, report)));
    }
    all.push(v4(2, &[0x22, 0, 0, 0, 0, 0, 0, 9, 1, 0, 0, 9, 224, 0, 0, 5]));

    for reply in [[10, 0, 0, 9], [224, 0, 1, 32]] {
        for kind in [0x1e, 0x1f] {
            let query =
                [&[kind, 0, 0, 0, 224, 0, 0, 5][..], &V4_A, &V4_B, &reply, &[63, 0, 1, 2]].concat();
            all.push(v4(2, &with_checksum(2, query)));
        }
    }
    all.push(v4(2, &[0x1f, 0, 0, 0, 224, 0, 0, 5]));

    // The header itself.
    for tos in [1, 2, 3, 0xb8] {
        all.push(
            V4 { tos, ttl: 0, id: 0, ..V4::default() }.with(17, &udp(false, 40_000, 2000, &data)),
        );
    }
    for fragment in [0, 0x2000, 0x2010, 0x0100, 0x8000, 0xe000, 0x1fff] {
        let header = V4 { fragment, ..V4::default() };
        all.push(header.with(17, &udp(false, 40_000, 2000, &data)));
        all.push(header.with(6, &tcp.v4()[20..]));
        all.push(header.with(1, &icmp(8, 0, &[0, 1, 0, 2])));
    }
    for length in [0, 10, 19, 20, 21, 27, 28, 40, 1000] {
        all.push(
            V4 { length: Some(length), ..V4::default() }.with(17, &udp(false, 40_000, 2000, &data)),
        );
        all.push(V4 { length: Some(length), ..V4::default() }.with(6, &tcp.v4()[20..]));
    }
    for options in [
        vec![1, 1, 1, 0],
        vec![148, 4, 0, 0],
        vec![148, 4, 0, 5],
        vec![148, 3, 0, 0],
        vec![7, 11, 4, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        vec![7, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        vec![131, 11, 5, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        vec![137, 7, 0, 10, 0, 0, 9, 0],
        vec![131, 2, 1, 1],
        vec![131, 6, 4, 1, 2, 3, 0, 0],
        vec![68, 12, 5, 0, 0, 0, 0, 1, 0, 0, 0, 2],
        vec![68, 12, 13, 1, 10, 0, 0, 1, 0, 0, 0, 2],
        vec![68, 12, 5, 0x53, 10, 0, 0, 1, 0, 0, 0, 2],
        vec![68, 12, 4, 7, 10, 0, 0, 1, 0, 0, 0, 2],
        vec![68, 3, 4, 1],
        vec![68, 10, 9, 1, 10, 0, 0, 1, 0, 0, 0, 2],
        vec![130, 4, 1, 2],
        vec![82, 4, 1, 2],
        vec![99, 4, 1, 2],
        vec![99, 1, 1, 2],
        vec![99, 40, 1, 2],
    ] {
        let header = V4 { options, ..V4::default() };
        all.push(header.with(17, &udp(false, 40_000, 2000, &data)));
        all.push(header.with(6, &tcp.v4()[20..]));
    }
    for protocol in [0, 4, 41, 58, 59, 77, 99, 143, 200, 255] {
        all.push(v4(protocol, &data));
    }
    all.push(v4(4, &v4(17, &udp(false, 40_000, 2000, &data))));
    all.push(v4(41, &v6(17, &udp(true, 40_000, 2000, &data))));
    let deep = (0..20).fold(v4(17, &udp(false, 40_000, 2000, &data)), |inner, _| v4(4, &inner));
    all.push(deep);
    for first in [0x35, 0x65, 0x44, 0x40, 0x4f] {
        let mut packet = v4(17, &udp(false, 40_000, 2000, &data));
        packet[0] = first;
        all.push(packet);
    }
    all
}
