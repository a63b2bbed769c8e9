//! Capture files as other programs read them.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// A packet as `tcpdump` reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub seconds: u32,
    pub nanoseconds: u32,
    pub original_length: u32,
    pub data: Vec<u8>,
}

/// The packets of a file, and its link type, converted to classic pcap by tcpdump: a header of 24
/// bytes, then 16 bytes and the packet for each.
pub fn read(file: &[u8]) -> (u32, Vec<Packet>) {
    let mut child = Command::new("tcpdump")
        .args(["--nano", "-r", "-", "-w", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("tcpdump");
    let mut stdin = child.stdin.take().expect("stdin");
    let file = file.to_vec();
    // A file that is cut makes tcpdump end before it has read all.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&file)));
    let output = child.wait_with_output().expect("tcpdump");
    writer.join().expect("written");
    parse(&output.stdout)
}

/// The packets of a classic pcap file with nanoseconds, or microseconds, in this machine's byte
/// order.
pub fn parse(pcap: &[u8]) -> (u32, Vec<Packet>) {
    let word = |at: usize| u32::from_ne_bytes(pcap[at..at + 4].try_into().expect("4 bytes"));
    let scale = match word(0) {
        0xa1b2_3c4d => 1,
        0xa1b2_c3d4 => 1000,
        magic => panic!("no pcap file: {magic:#x}"),
    };
    let (mut at, mut packets) = (24, Vec::new());
    while at + 16 <= pcap.len() {
        let captured = word(at + 8) as usize;
        packets.push(Packet {
            seconds: word(at),
            nanoseconds: word(at + 4) * scale,
            original_length: word(at + 12),
            data: pcap[at + 16..at + 16 + captured].to_vec(),
        });
        at += 16 + captured;
    }
    (word(20), packets)
}

/// What `capinfos -M -T`, tshark and editcap make of the file: the number of packets by capinfos.
pub fn accepted(file: &[u8]) -> u64 {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("capture.pcapng");
    std::fs::write(&path, file).expect("written");
    run("tshark", &["-r", path.to_str().expect("text"), "-q", "-z", "io,stat,0"], &path);
    let copy = directory.path().join("copy.pcapng");
    run("editcap", &[path.to_str().expect("text"), copy.to_str().expect("text")], &path);
    let table = run("capinfos", &["-M", "-T", "-r", "-c", path.to_str().expect("text")], &path);
    table.split_whitespace().last().expect("a count").parse().expect("a count")
}

fn run(program: &str, args: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(args).output().expect(program);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} of {}: {stderr}", file.display());
    String::from_utf8(output.stdout).expect("text")
}
