//! Prints the same packets with tcpdump and with our printer, and compares the texts.

use std::{collections::BTreeMap, fmt::Write, fs, process::Command};

use jiff::tz::TimeZone;
use podsonde::domain::packet::{Packet, PrintOptions, Printer};

/// A packet: what was captured of it, and its length on the wire.
#[derive(Clone)]
pub(crate) struct Captured {
    pub(crate) data: Vec<u8>,
    pub(crate) length: u32,
}

impl From<Vec<u8>> for Captured {
    fn from(data: Vec<u8>) -> Self {
        Self { length: u32::try_from(data.len()).unwrap(), data }
    }
}

/// Protocols that tcpdump decodes and we do not: a mark in either text, and the protocol. They
/// count only where the texts differ.
const NOT_DECODED: &[(&str, &str)] = &[
    (": sctp", "SCTP"),
    ("mptcp", "Multipath TCP's option"),
    ("RPL", "RPL, in ICMPv6"),
    ("router renumbering", "router renumbering, in ICMPv6"),
    ("node information", "node information, in ICMPv6"),
    ("who-are-you", "node information, in ICMPv6"),
    ("igmp dvmrp", "DVMRP, in IGMP"),
    ("igmp pimv1", "PIMv1, in IGMP"),
    ("ATM (len", "ATM, in ARP"),
    ("ARP, ATM", "ATM, in ARP"),
    ("FrameRelay", "frame relay, in ARP"),
    ("Invalid DLCI", "frame relay, in ARP"),
    (": at-", "AppleTalk, in UDP"),
];

/// Protocols above IP that we do not decode and print as numbers.
const NOT_DECODED_IP: &[&str] = &[
    "8", "9", "33", "46", "47", "50", "51", "55", "62", "88", "89", "103", "108", "112", "113",
    "132", "135",
];

/// Protocols above Ethernet that we do not decode.
const NOT_DECODED_ETHERNET: &[&str] = &[
    "OSI",
    "DN",
    "Appletalk",
    "IPX",
    "PPP",
    "EAPOL",
    "Realtek",
    "MPCP",
    "Slow",
    "CFM",
    "LLDP",
    "NSH",
    "Loopback",
    "MPLS",
    "TIPC",
    "MS NLB",
    "GeoNet",
    "CALM",
    "AoE",
    "PTP",
    "Arista",
    "MACsec",
    "Jumbo",
];

/// Ports whose protocol tcpdump decodes and we do not.
const NOT_DECODED_PORTS: &[u16] = &[
    23, 67, 68, 69, 88, 123, 137, 138, 139, 161, 162, 179, 319, 320, 323, 445, 496, 500, 514, 520,
    521, 525, 546, 547, 639, 646, 654, 698, 701, 750, 921, 1589, 1645, 1646, 1700, 1701, 1723,
    1812, 1813, 1985, 2049, 2103, 2104, 3456, 3503, 3784, 3785, 3799, 4342, 4500, 4567, 4784, 4790,
    5359, 6343, 6633, 6635, 6653, 6696, 6697, 6784, 7000, 7001, 7002, 7003, 7004, 7005, 7006, 7007,
    7008, 7009, 7500, 8231, 8500, 10288, 12222, 12223, 17754, 30490, 49152,
];

/// The protocol because of which two texts may differ, if there is one.
fn not_decoded(ours: &str, theirs: &str) -> Option<&'static str> {
    if let Some((_, why)) =
        NOT_DECODED.iter().find(|(mark, _)| theirs.contains(mark) || ours.contains(mark))
    {
        return Some(why);
    }
    if NOT_DECODED_IP.iter().any(|number| ours.contains(&format!(" ip-proto-{number} "))) {
        return Some("a protocol above IP");
    }
    if NOT_DECODED_ETHERNET.iter().any(|name| ours.contains(name)) {
        return Some("a protocol above Ethernet");
    }
    let mut ports =
        ours.split([' ', '>', ':', '!']).filter_map(|word| word.rsplit('.').next()?.parse().ok());
    ports.any(|port| NOT_DECODED_PORTS.contains(&port)).then_some("a protocol of a port")
}

/// The results of comparisons.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) equal: usize,
    pub(crate) excluded: BTreeMap<&'static str, usize>,
    wrong: usize,
    report: String,
}

impl Tally {
    /// Prints how much was compared, and fails if anything differed.
    pub(crate) fn finish(self, name: &str) {
        println!(
            "{name}: {} packets printed alike; not decoded here: {:?}",
            self.equal, self.excluded
        );
        assert_eq!(
            self.wrong, 0,
            "{} packets differ, the first of them:\n{}",
            self.wrong, self.report
        );
        assert!(self.equal > 0, "nothing was compared");
        let excluded: usize = self.excluded.values().sum();
        assert!(excluded * 100 < self.equal, "too many are not decoded: {:?}", self.excluded);
    }
}

const BASE: u64 = 1_735_689_599_123_456_789;

/// The timestamps of packets: most rise, some are before the previous one, some are days later.
pub(crate) fn timestamp(number: usize) -> u64 {
    let number = number as u64;
    let step = match number % 7 {
        3 => 40_000_000_000,
        5 => 86_400_000_000_000,
        6 => 3,
        _ => 1_001,
    };
    BASE + number * 61_000_000 + step
}

/// Our options for tcpdump's flags.
pub(crate) fn options(flags: &[&str], zone: &str) -> PrintOptions {
    let mut options = PrintOptions {
        number: true,
        time_zone: TimeZone::get(zone).unwrap(),
        ..PrintOptions::default()
    };
    for flag in flags {
        if *flag == "--nano" {
            options.nanoseconds = true;
            continue;
        }
        for letter in flag.chars().skip(1) {
            match letter {
                't' => options.timestamps += 1,
                'e' => options.link_layer = true,
                'v' => options.verbose += 1,
                'q' => options.quiet += 1,
                'S' => options.absolute_sequence = true,
                'x' => options.hex += 1,
                'X' => options.hex_ascii += 1,
                'A' => options.ascii += 1,
                other => panic!("{other}"),
            }
        }
    }
    options
}

/// The text of each packet. `-#` numbers the packets, and so shows where each text begins.
fn split(text: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let mut parts = Vec::new();
    let mut rest = &*text;
    for number in 1..=count {
        let next = format!("\n{:5}  ", number + 1);
        let end = if number == count {
            rest.len()
        } else {
            rest.find(&next).map_or(rest.len(), |at| at + 1)
        };
        parts.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    parts
}

/// A pcap file with timestamps in nanoseconds.
pub(crate) fn pcap(linktype: u16, packets: &[Captured]) -> Vec<u8> {
    let mut file = Vec::new();
    for field in [0xa1b2_3c4d_u32, 0x0004_0002, 0, 0, 262_144, linktype.into()] {
        file.extend(field.to_le_bytes());
    }
    for (number, packet) in packets.iter().enumerate() {
        let timestamp = timestamp(number);
        let captured = u32::try_from(packet.data.len()).unwrap();
        let second = u32::try_from(timestamp / 1_000_000_000).unwrap();
        let nanosecond = u32::try_from(timestamp % 1_000_000_000).unwrap();
        for field in [second, nanosecond, captured, packet.length] {
            file.extend(field.to_le_bytes());
        }
        file.extend(&packet.data);
    }
    file
}

/// Compares the packets' texts.
pub(crate) fn compare(
    tally: &mut Tally,
    linktype: u16,
    packets: &[Captured],
    flags: &[&str],
    zone: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("case.pcap");
    fs::write(&file, pcap(linktype, packets)).unwrap();
    let output = Command::new("tcpdump")
        .args(["-n", "--number"])
        .args(flags)
        .arg("-r")
        .arg(&file)
        .env("TZ", zone)
        .output()
        .unwrap();
    assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
    let theirs = split(&output.stdout, packets.len());

    let interfaces = interfaces();
    let mut printer = Printer::new(options(flags, zone));
    for (number, packet) in packets.iter().enumerate() {
        let mut ours = Vec::new();
        let given = Packet {
            linktype,
            timestamp: timestamp(number),
            original_length: packet.length,
            data: &packet.data,
            interfaces: &interfaces,
        };
        printer.print(&given, &mut ours);
        let ours = String::from_utf8_lossy(&ours);
        let theirs = &theirs[number];
        if *theirs == ours {
            tally.equal += 1;
        } else if let Some(why) = not_decoded(&ours, theirs) {
            *tally.excluded.entry(why).or_default() += 1;
        } else {
            tally.wrong += 1;
            if tally.report.len() < 8000 {
                let (data, length) = (&packet.data, packet.length);
                let hex: String = data.iter().take(400).map(|byte| format!("{byte:02x}")).collect();
                writeln!(
                    tally.report,
                    "{flags:?} {zone} linktype {linktype}, {} of {length} bytes\ntcpdump: {theirs}ours:    {ours}{hex}\n",
                    data.len()
                )
                .unwrap();
            }
        }
    }
}

/// The names of this machine's interfaces, which tcpdump looks up too.
fn interfaces() -> BTreeMap<u32, String> {
    let entries = fs::read_dir("/sys/class/net").unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        let index = fs::read_to_string(entry.path().join("ifindex")).ok()?;
        Some((index.trim().parse().unwrap(), entry.file_name().into_string().unwrap()))
    });
    entries.collect()
}
