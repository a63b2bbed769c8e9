//! What packets as text cost: our reader and printer beside `tcpdump -n -r FILE`, over the same
//! file, in turns. Figures, printed and never asserted. `cargo bench --bench text`.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::resource::{UsageWho, getrusage};
use podsonde::domain::{
    packet::{Packet, PrintOptions, Printer},
    pcapng::{Direction, Reader, write},
};

#[allow(dead_code)]
#[path = "figures.rs"]
mod figures;

use figures::{Series, table};

const PACKETS: u32 = 1_000_000;
const ROUNDS: usize = 3;

fn main() {
    let mut rows = Vec::new();
    for protocol in ["UDP", "TCP"] {
        for length in [100, 1000] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("packets.pcapng");
            fs::write(&file, packets(protocol, length)).unwrap();
            let [mut ours, mut theirs] = [(); 2].map(|()| Series::default());
            for round in 0..=ROUNDS {
                let (us, them) = (cpu(UsageWho::RUSAGE_SELF, || print(&file)), tcpdump(&file));
                // The first warms the page cache.
                if round > 0 {
                    ours.add(us);
                    theirs.add(them);
                }
            }
            rows.push(vec![
                format!("{protocol}, {length} B"),
                format!("{:.2}", ours.median()),
                format!("{:.2}", theirs.median()),
                format!("{:.2}", theirs.ratio_to(&ours)),
            ]);
        }
    }
    table(
        "A million packets from a file to text in /dev/null (CPU seconds, median of 3)",
        &["frames", "podsonde", "tcpdump -n", "ratio"],
        &rows,
    );
}

/// CPU seconds that it takes.
fn cpu(who: UsageWho, work: impl FnOnce()) -> f64 {
    let used = || {
        let usage = getrusage(who).unwrap();
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6)
            .sum::<f64>()
    };
    let before = used();
    work();
    used() - before
}

fn tcpdump(file: &Path) -> f64 {
    cpu(UsageWho::RUSAGE_CHILDREN, || {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-r"]).arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("tcpdump").success());
    })
}

fn print(file: &Path) {
    let mut reader = Reader::new(File::open(file).unwrap());
    let mut null = File::create("/dev/null").unwrap();
    let mut printer = Printer::new(PrintOptions::default());
    let mut text = Vec::new();
    while let Some(packet) = reader.next().unwrap() {
        let packet = Packet {
            linktype: packet.linktype,
            timestamp: packet.timestamp,
            original_length: packet.original_length,
            data: packet.data,
            ..Packet::default()
        };
        printer.print(&packet, &mut text);
        if text.len() > 1 << 16 {
            null.write_all(&text).unwrap();
            text.clear();
        }
    }
    null.write_all(&text).unwrap();
}

/// A capture of a hundred conversations.
fn packets(protocol: &str, length: usize) -> Vec<u8> {
    let mut file = Vec::new();
    write::section_header(&mut file, &write::Section::default());
    write::interface(
        &mut file,
        &write::Interface { linktype: 1, snaplen: 262_144, name: "eth0", ..Default::default() },
    );
    let total = u16::try_from(length - 14).unwrap().to_be_bytes();
    for number in 0..PACKETS {
        let conversation = u8::try_from(number % 100).unwrap();
        let mut frame = vec![
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, total[0], total[1], 0, 0, 0x40, 0,
            64,
        ];
        frame.extend([
            if protocol == "UDP" { 17 } else { 6 },
            0,
            0,
            10,
            244,
            1,
            conversation,
            10,
            244,
            2,
            7,
        ]);
        // Ports.
        frame.extend([0x9c, conversation, 0x1f, 0x91]);
        if protocol == "UDP" {
            frame.extend(u16::try_from(length - 34).unwrap().to_be_bytes());
            frame.extend([0, 0]);
        } else {
            frame.extend((number * 1000).to_be_bytes());
            frame.extend((number * 7).to_be_bytes());
            frame.extend([0x80, 0x18, 0x01, 0xf5, 0, 0, 0, 0, 1, 1, 8, 10]);
            frame.extend((number + 1_000_000).to_be_bytes());
            frame.extend((number + 2_000_000).to_be_bytes());
        }
        frame.resize(length, b'x');
        let packet = write::Packet {
            timestamp: 1_735_689_600_000_000_000 + u64::from(number) * 6667,
            original_length: u32::try_from(length).unwrap(),
            direction: Direction::In,
            ..Default::default()
        };
        write::enhanced_packet(&mut file, &packet, [&frame]);
    }
    file
}
