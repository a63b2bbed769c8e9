//! Payloads of TCP and UDP, TCP options, and overlay networks.

use std::slice::from_ref;

use crate::{cases::IP, frames::*};

pub(crate) fn dns_messages() -> Vec<Vec<u8>> {
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

pub(crate) fn mdns_messages() -> Vec<Vec<u8>> {
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

pub(crate) fn tcp_options() -> Vec<Vec<u8>> {
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

pub(crate) fn http_texts() -> Vec<&'static [u8]> {
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

pub(crate) fn redis_texts() -> Vec<&'static [u8]> {
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
pub(crate) fn tunnels() -> Vec<(u16, Vec<u8>)> {
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
