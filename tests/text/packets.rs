//! Prints packets of every protocol with every flag, cut at every length, and with broken bytes.

use podsonde::domain::pcapng::linktype;

use crate::{
    cases::{IP, IP6, all_frames, arp_packets, v4_packets, v6_packets},
    frames::*,
    oracle::{Captured, Tally, compare},
};

/// Every combination of the flags that change how packets are decoded.
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

/// Every flag that dumps, with some of the others.
fn dumping_flags() -> Vec<Vec<&'static str>> {
    let mut all = Vec::new();
    for dump in ["-x", "-xx", "-X", "-XX", "-A", "-AA"] {
        for more in ["", "-v", "-e", "-q"] {
            all.push([dump, more].into_iter().filter(|f| !f.is_empty()).collect());
        }
    }
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

/// A generator of numbers that are the same in every run.
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
            // Most changes hit the headers behind Ethernet's.
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
