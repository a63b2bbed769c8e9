//! Packets of every protocol, with every flag, cut everywhere, and broken.

use std::slice::from_ref;

use podsonde::domain::pcapng::linktype;

use crate::{
    frames::*,
    oracle::{Captured, Tally, compare},
};

const IP: u16 = 0x0800;
const IP6: u16 = 0x86dd;

/// Every combination of what changes how packets are decoded.
fn decoding_flags() -> Vec<Vec<&'static str>> {
    let mut all = Vec::new();
    for verbose in ["", "-v", "-vv", "-vvv"] {
        for link in ["", "-e"] {
            for quiet in ["", "-q", "-qq"] {
                for sequence in ["", "-S"] {
                    all.push(
                        [verbose, link, quiet, sequence]
                            .into_iter()
                            .filter(|f| !f.is_empty())
                            .collect(),
                    );
                }
            }
        }
    }
    all
}

/// Every dump, with some of the rest.
fn dumping_flags() -> Vec<Vec<&'static str>> {
    let mut all = Vec::new();
    for dump in ["-x", "-xx", "-X", "-XX", "-A", "-AA"] {
        for more in ["", "-v", "-e", "-q"] {
            all.push([dump, more].into_iter().filter(|f| !f.is_empty()).collect());
        }
    }
    all
}

fn dns_messages() -> Vec<Vec<u8>> {
    let pointer = &[0xc0, 12];
    let www = question("www.example.com", 1, 1);
    let values: Vec<(u16, Vec<u8>)> = vec![
        (1, vec![93, 184, 216, 34]),
        (28, V6_A.to_vec()),
        (28, vec![0; 16]),
        (28, [&[0; 12][..], &[1, 2, 3, 4]].concat()),
        (28, [&[0; 10][..], &[255, 255, 1, 2, 3, 4]].concat()),
        (2, name("ns1.example.com")),
        (5, [&[3, b'c', b'd', b'n'][..], pointer].concat()),
        (12, name("a.b.c.d.e.f")),
        (39, name("")),
        (
            6,
            [
                &name("ns.example.com")[..],
                &name("root.example.com"),
                &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5],
            ]
            .concat(),
        ),
        (15, [&[0, 10][..], &name("mail.example.com")].concat()),
        (16, b"\x05hello\x03a\x80\x01\x00".to_vec()),
        (33, [&[0, 1, 0, 2, 0x1f, 0x90][..], &name("srv.example.com")].concat()),
        (38, [&[64][..], &[1, 2, 3, 4, 5, 6, 7, 8], &name("prefix.example")].concat()),
        (38, [&[0][..], &V6_B].concat()),
        (38, vec![129]),
        (256, b"\0\x01\0\x02https://example.com/".to_vec()),
        (104, b"some text".to_vec()),
        (43, vec![1, 2, 3, 4]),
        (999, vec![1, 2, 3]),
        (
            250,
            [
                &name("hmac-sha256")[..],
                &[0, 0, 1, 2, 3, 4, 1, 44, 0, 4, 9, 9, 9, 9, 0x12, 0x34, 0, 0, 0, 0],
            ]
            .concat(),
        ),
    ];
    let mut messages = vec![
        dns(1, 0x0100, [1, 0, 0, 0], from_ref(&www)),
        dns(2, 0x0110, [1, 0, 0, 0], &[question("example.com", 28, 3)]),
        dns(3, 0x0000, [2, 0, 0, 0], &[www.clone(), question("b", 255, 255)]),
        dns(4, 0x2100, [1, 0, 0, 0], &[question("", 6, 1)]),
        dns(5, 0x0820, [0, 1, 0, 0], &[record(&[0], 1, 1, 5, &[1, 2, 3, 4])]),
        dns(6, 0x8183, [1, 0, 0, 0], from_ref(&www)),
        dns(
            7,
            0x8580,
            [1, 1, 1, 1],
            &[
                www.clone(),
                record(pointer, 1, 1, 31_536_000 + 604_800 + 86_400 + 3661, &[1, 1, 1, 1]),
                record(pointer, 2, 1, 60, &name("ns.example.com")),
                record(pointer, 1, 1, 0, &[2, 2, 2, 2]),
            ],
        ),
        dns(8, 0x8380, [1, 0, 0, 0], from_ref(&www)),
        dns(9, 0x81a0, [0, 0, 0, 0], &[]),
        // A pointer to itself, a pointer forwards, a reserved label, a bit label.
        dns(10, 0x0100, [1, 0, 0, 0], &[vec![0xc0, 12, 0, 1, 0, 1]]),
        dns(11, 0x0100, [1, 0, 0, 0], &[vec![0xc0, 99, 0, 1, 0, 1]]),
        dns(12, 0x0100, [1, 0, 0, 0], &[vec![0x80, 1, 0, 1, 0, 1]]),
        dns(13, 0x0100, [1, 0, 0, 0], &[vec![0x41, 12, 0xab, 0xcd, 0, 0, 1, 0, 1]]),
        dns(14, 0x0100, [1, 0, 0, 0], &[vec![0x41, 3, 0xab, 0, 0, 1, 0, 1]]),
        dns(15, 0x0100, [1, 0, 0, 0], &[vec![0x42, 3, 0xab, 0, 0, 1, 0, 1]]),
        dns(
            16,
            0x0100,
            [1, 0, 0, 0],
            &[question(&"abcdefghijklmnopqrstuvwxyz0123456789.".repeat(9), 1, 1)],
        ),
        dns(17, 0x0100, [3, 0, 0, 0], from_ref(&www)),
        vec![1, 2, 3],
    ];
    for (kind, value) in &values {
        messages.push(dns(
            20,
            0x8180,
            [1, 1, 0, 0],
            &[www.clone(), record(pointer, *kind, 1, 300, value)],
        ));
    }
    for rcode in 0..16 {
        messages.push(dns(21, 0x8180 | rcode, [1, 0, 0, 0], from_ref(&www)));
        messages.push(dns(22, rcode << 11, [1, 0, 0, 0], from_ref(&www)));
    }
    for upper in 0..3_u32 {
        for rcode in 0..16 {
            let opt = record(&[0], 41, 1232, upper << 24, &[]);
            messages.push(dns(23, 0x8180 | rcode, [1, 0, 0, 1], &[www.clone(), opt]));
        }
    }
    let edns: Vec<Vec<u8>> = vec![
        vec![0, 8, 0, 7, 0, 1, 24, 0, 10, 1, 2],
        vec![0, 8, 0, 6, 0, 2, 16, 0, 0x20, 1],
        vec![0, 8, 0, 7, 0, 9, 24, 0, 10, 1, 2],
        vec![0, 8, 0, 2, 0, 1],
        vec![0, 8, 0, 8, 0, 1, 24, 0, 10, 1, 2, 3],
        vec![0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8],
        [&[0, 10, 0, 24][..], &[7; 24]].concat(),
        vec![0, 10, 0, 2, 1, 2],
        vec![0, 11, 0, 2, 0, 123],
        vec![0, 11, 0, 0],
        vec![0, 11, 0, 1, 1],
        vec![0, 9, 0, 4, 0, 0, 1, 0],
        vec![0, 9, 0, 1, 0],
        vec![0, 12, 0, 3, 0, 0, 0],
        vec![0, 14, 0, 4, 1, 2, 3, 4],
        vec![0, 14, 0, 3, 1, 2, 3],
        vec![0, 5, 0, 4, 5, 8, 13, 99],
        vec![0, 6, 0, 3, 1, 2, 9],
        vec![0, 7, 0, 2, 1, 2],
        vec![0, 3, 0, 2, 0xab, 0xcd],
        vec![0, 13, 0, 5, 3, b'a', b'b', b'c', 0],
        vec![0, 99, 0, 1, 1, 0, 3, 0, 0],
        vec![0, 8, 0, 99, 1],
    ];
    for option in edns {
        let opt = record(&[0], 41, 4096, 0x8000, &option);
        messages.push(dns(24, 0x0120, [1, 0, 0, 1], &[www.clone(), opt.clone()]));
        messages.push(dns(25, 0x8180, [1, 0, 0, 1], &[www.clone(), opt]));
    }
    messages
}

fn mdns_messages() -> Vec<Vec<u8>> {
    let service = question("_http._tcp.local", 12, 1);
    vec![
        dns(0, 0, [1, 0, 0, 0], from_ref(&service)),
        dns(
            0,
            0,
            [1, 1, 0, 0],
            &[
                question("_http._tcp.local", 12, 0x8001),
                record(&[0xc0, 12], 12, 1, 4500, &name("me._http._tcp.local")),
            ],
        ),
        dns(
            0,
            0x8400,
            [0, 2, 0, 1],
            &[
                record(&name("me.local"), 1, 0x8001, 120, &[10, 0, 0, 9]),
                record(&[0xc0, 12], 28, 0x8001, 120, &V6_B),
                record(&[0xc0, 12], 47, 0x8001, 120, &[0xc0, 12, 0, 4, 0x40, 0, 0, 8]),
            ],
        ),
    ]
}

fn tcp_options() -> Vec<Vec<u8>> {
    vec![
        vec![2, 4, 5, 0xb4],
        vec![2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 2, 0, 0, 0, 0, 1, 3, 3, 7],
        vec![1, 1, 8, 10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1],
        vec![1, 1, 5, 10, 0, 15, 66, 65, 0, 15, 66, 99],
        vec![1, 1, 5, 18, 0, 30, 132, 129, 0, 30, 132, 200, 0, 30, 140, 0, 0, 30, 150, 0],
        vec![5, 2],
        vec![5, 7, 1, 2, 3, 4, 5],
        vec![34, 2],
        vec![34, 10, 1, 2, 3, 4, 5, 6, 7, 8],
        vec![34, 5, 1, 2, 3],
        vec![254, 4, 0xf9, 0x89],
        vec![254, 8, 0xf9, 0x89, 1, 2, 3, 4],
        vec![254, 4, 0x12, 0x34],
        vec![254, 3, 1],
        vec![6, 6, 1, 2, 3, 4],
        vec![7, 6, 1, 2, 3, 4],
        vec![11, 6, 1, 2, 3, 4],
        vec![12, 6, 1, 2, 3, 4],
        vec![13, 6, 1, 2, 3, 4],
        [&[19, 18][..], &[0xab; 16]].concat(),
        vec![20, 4, 1, 2],
        vec![28, 4, 0x80, 5],
        vec![28, 4, 0, 4],
        vec![29, 4, 1, 2],
        vec![29, 8, 1, 2, 3, 4, 5, 6],
        vec![29, 3, 1],
        vec![77, 6, 1, 2, 3, 4],
        vec![77, 2],
        vec![2, 3, 1],
        vec![3, 4, 1, 2],
        vec![4, 3, 1],
        vec![2, 1],
        vec![2, 40, 1, 2],
        vec![0, 9, 9, 9],
        vec![1, 1, 1, 2],
        vec![8, 10, 1, 2],
    ]
}

fn http_texts() -> Vec<&'static [u8]> {
    vec![
        b"GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: x\r\n\r\n",
        b"get /lower HTTP/1.0\n\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 404 Not Found\r\n\r\n\x01\x02binary",
        b"POST /no-end-of-line",
        b"BREW /pot HTCPCP/1.0\r\n",
        b"\r\nGET / HTTP/1.1\r\n",
        b"GET /tab\there HTTP/1.1\r\n",
        b"GET /bad\xffbyte HTTP/1.1\r\n",
        b"GET /cr\rhere HTTP/1.1\r\n",
        b"GET /ends-in-cr\r",
        b"rest of a body that has no first line\r\nand goes on",
        b"x 123 y\r\nmore\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"OPTIONS",
    ]
}

fn redis_texts() -> Vec<&'static [u8]> {
    vec![
        b"*2\r\n$4\r\nINCR\r\n$1\r\nz\r\n*1\r\n$4\r\nPING\r\n",
        b"+OK\r\n:1000\r\n-ERR unknown\r\n$-1\r\n*-1\r\n$0\r\n\r\n*0\r\n",
        b"PING\r\nGET key\r\n\r\n",
        b"\r\n\r\nPING\r\n",
        b"no end",
        b"$5\r\nhel",
        b"$5\r\nhello",
        b"$-7\r\n$99999999999\r\n$x\r\n",
        b"*2\r\n*1\r\n:1\r\n+a\x80b\r\n",
        b"*3\r\n:1\r\n",
        b"$3\rabc",
        b"$3\r",
        b"$",
        b"*-2147483648\r\n*2147483648\r\n*2147483647\r\n",
        b"+no end",
    ]
}

/// Overlay networks' ports and payloads.
fn tunnels() -> Vec<(u16, Vec<u8>)> {
    let frame = ethernet(IP, &v4(17, &udp(false, 40_000, 2000, b"data")));
    let mut all = Vec::new();
    for port in [4789, 8472] {
        for flags in [8, 0, 0xff] {
            all.push((port, [&[flags, 1, 2, 3, 0, 0x12, 0x34, 0][..], &frame].concat()));
        }
        all.push((port, vec![8, 0, 0, 0, 0, 1]));
        all.push((port, vec![8, 0, 0, 0, 0, 1, 2, 0, 9]));
        // A tunnel in a tunnel.
        let inner = ethernet(IP, &v4(17, &udp(false, 40_000, port, &all[0].1)));
        all.push((port, [&[8, 0, 0, 0, 0, 1, 2, 0][..], &inner].concat()));
    }
    let geneve = |first: u8, flags: u8, kind: u16, reserved: u8, rest: &[u8]| {
        (
            6081,
            [&[first, flags][..], &kind.to_be_bytes(), &[0, 0x12, 0x34, reserved], rest].concat(),
        )
    };
    all.push(geneve(0, 0, 0x6558, 0, &frame));
    all.push(geneve(0, 0xff, IP, 7, &frame[14..]));
    all.push(geneve(0x40, 0, 0x6558, 0, &frame));
    all.push(geneve(0, 0, 0x1234, 0, &frame));
    all.push(geneve(9, 0, 0x6558, 0, &[1, 2, 3]));
    for class in [0, 0x100, 0x101, 0x102, 0x103, 0x104, 0x200, 0xfff0] {
        let options = [&u16::to_be_bytes(class)[..], &[0x81, 1, 1, 2, 3, 4, 1, 2, 3, 0]].concat();
        all.push(geneve(3, 0x40, 0x6558, 0, &[&options[..], &frame].concat()));
    }
    all.push(geneve(1, 0, 0x6558, 0, &[&[1, 1, 1, 5][..], &frame].concat()));
    all.push((6081, vec![0, 0, 0x65, 0x58, 0, 0, 1]));
    all
}

/// What IPv4 carries.
fn v4_packets() -> Vec<Vec<u8>> {
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
            rest.extend([200, 100, 100, 250, 255, 255, 255, u8::try_from(n).unwrap()])
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

fn v6_packets() -> Vec<Vec<u8>> {
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

fn arp_packets() -> Vec<Vec<u8>> {
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

fn ethernet_frames() -> Vec<Vec<u8>> {
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

/// All of the above, as Ethernet frames.
fn all_frames() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = v4_packets().iter().map(|packet| ethernet(IP, packet)).collect();
    all.extend(v6_packets().iter().map(|packet| ethernet(IP6, packet)));
    all.extend(arp_packets().iter().map(|packet| ethernet(0x0806, packet)));
    all.extend(ethernet_frames());
    all
}

fn captured(frames: Vec<Vec<u8>>) -> Vec<Captured> {
    frames.into_iter().map(Captured::from).collect()
}

#[test]
fn every_protocol_with_every_flag() {
    let mut tally = Tally::default();
    let frames = captured(all_frames());
    for flags in decoding_flags().iter().chain(&dumping_flags()) {
        compare(&mut tally, linktype::ETHERNET, &frames, flags, "UTC");
    }
    tally.finish("every protocol with every flag");
}

#[test]
fn timestamps_in_zones() {
    let mut tally = Tally::default();
    let frames = captured(all_frames().into_iter().take(50).collect());
    for zone in ["UTC", "America/New_York", "Asia/Kathmandu"] {
        for flags in [&["-t"][..], &["-tt"], &["-ttt"], &["-tttt"], &["-ttttt"], &[]] {
            for nano in [&[][..], &["--nano"]] {
                compare(&mut tally, linktype::ETHERNET, &frames, &[flags, nano].concat(), zone);
            }
        }
    }
    tally.finish("timestamps");
}

#[test]
fn other_link_types() {
    let mut tally = Tally::default();
    let inner = |kind: u16, wrap: &dyn Fn(u16, &[u8]) -> Vec<u8>| {
        let packets = match kind {
            IP => v4_packets(),
            IP6 => v6_packets(),
            _ => arp_packets(),
        };
        packets.iter().step_by(9).map(|packet| wrap(kind, packet)).collect::<Vec<_>>()
    };
    let mut cases = Vec::new();
    let tagged = vlan(0x2064, IP, &v4_packets()[0]);
    for packet_type in 0..6 {
        let interface = if packet_type % 2 == 0 { 1 } else { 4_000_000 };
        let wrap_2 = |kind: u16, packet: &[u8]| sll2(kind, interface, packet_type, packet);
        let wrap_1 = |kind: u16, packet: &[u8]| sll(kind, packet_type, packet);
        for kind in [IP, IP6, 0x0806] {
            cases.push((linktype::LINUX_SLL2, inner(kind, &wrap_2)));
            cases.push((linktype::LINUX_SLL, inner(kind, &wrap_1)));
        }
        for kind in [0x8100, 4, 1, 0x88b5, 0x0003] {
            let payloads = [
                tagged.clone(),
                vlan(1, 0x1234, b"unknown"),
                vec![0, 1, 0],
                vec![0x04, 0x05, 0x03, 1, 2, 3],
            ];
            // Novell's frames are not decoded.
            let payloads = payloads.iter().filter(|_| kind != 1);
            let frames: Vec<_> = payloads.clone().map(|payload| wrap_2(kind, payload)).collect();
            cases.push((linktype::LINUX_SLL2, frames));
            cases.push((
                linktype::LINUX_SLL,
                payloads.map(|payload| wrap_1(kind, payload)).collect(),
            ));
        }
    }
    let mut no_address = sll2(IP, 1, 0, &v4_packets()[0]);
    no_address[11] = 0;
    cases.push((linktype::LINUX_SLL2, vec![no_address]));
    let raw: Vec<_> =
        v4_packets().into_iter().chain(v6_packets()).step_by(9).chain([vec![0x12, 3]]).collect();
    cases.push((linktype::RAW, raw.clone()));
    cases.push((linktype::IPV4, raw.clone()));
    cases.push((linktype::IPV6, raw));
    for (family, packets) in [
        (2, v4_packets()),
        (24, v6_packets()),
        (28, v6_packets()),
        (30, v6_packets()),
        (16, vec![]),
        (99, arp_packets()),
    ] {
        for family in [u32::to_le_bytes(family), u32::to_be_bytes(family)] {
            let frames: Vec<_> =
                packets.iter().step_by(9).map(|packet| [&family[..], packet].concat()).collect();
            cases.push((linktype::NULL, frames.clone()));
            cases.push((linktype::LOOP, frames));
        }
    }
    for (linktype, frames) in cases {
        let frames = captured(frames);
        for flags in
            [&[][..], &["-e"], &["-eq"], &["-q"], &["-v"], &["-evv"], &["-X"], &["-ex"], &["-A"]]
        {
            if !frames.is_empty() {
                compare(&mut tally, linktype, &frames, flags, "UTC");
            }
        }
    }
    tally.finish("other link types");
}

#[test]
fn cut_at_every_length() {
    let mut tally = Tally::default();
    let cut = |frames: Vec<Vec<u8>>| {
        let mut all = Vec::new();
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap();
            all.extend(
                (1..=frame.len()).map(|end| Captured { data: frame[..end].to_vec(), length }),
            );
        }
        all
    };
    let frames = cut(all_frames().into_iter().step_by(3).collect());
    for flags in [&[][..], &["-v"], &["-vv"], &["-vvv", "-e"], &["-q"], &["-X"]] {
        compare(&mut tally, linktype::ETHERNET, &frames, flags, "UTC");
    }
    let frames = cut(vec![
        sll2(IP, 1, 0, &v4_packets()[0]),
        sll2(0x8100, 1, 4, &vlan(1, IP6, &v6_packets()[0])),
        sll2(4, 1, 4, &[0x04, 0x05, 0x04, 0x03, 9, 9]),
    ]);
    for flags in [&[][..], &["-v"], &["-e"], &["-X"], &["-eq"]] {
        compare(&mut tally, linktype::LINUX_SLL2, &frames, flags, "UTC");
    }
    tally.finish("cut at every length");
}

/// Numbers that look random and are the same every time.
pub(crate) struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound
    }
}

#[test]
fn broken_packets() {
    let mut tally = Tally::default();
    let mut random = Random(0x5eed_0001);
    let frames = all_frames();
    let mut broken = Vec::new();
    while broken.len() < 30_000 {
        let mut frame = frames[random.below(frames.len())].clone();
        let length = u32::try_from(frame.len()).unwrap();
        for _ in 0..=random.below(3) {
            // Mostly in the headers above Ethernet's.
            let from = if random.below(10) == 0 { 0 } else { 14 };
            if frame.len() > from {
                let at = from + random.below(frame.len() - from);
                match random.below(3) {
                    0 => frame[at] ^= 1 << random.below(8),
                    1 => frame[at] = [0, 0xff, 1, 0x7f, 0x80][random.below(5)],
                    _ => frame[at] = u8::try_from(random.below(256)).unwrap(),
                }
            }
        }
        if random.below(4) == 0 {
            frame.truncate(1 + random.below(frame.len()));
        }
        broken.push(Captured { data: frame, length });
    }
    for flags in [&[][..], &["-v"], &["-vvv"], &["-evv", "-X"]] {
        compare(&mut tally, linktype::ETHERNET, &broken, flags, "UTC");
    }
    tally.finish("broken packets");
}
