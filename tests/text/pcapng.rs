//! Checks that Wireshark's programs read the pcapng that we write, and that we read the capture
//! files that they write.

use std::{fs, path::Path, process::Command};

use podsonde::domain::pcapng::{
    Direction, Reader, linktype,
    merge::{Merged, Source},
    write::{self, Interface, Section, Statistics},
};

const BASE: u64 = 1_700_000_000_123_456_789;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("TZ", "UTC").output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An Ethernet frame of a type that no program dissects.
fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    frame.resize(length, 0x5a);
    frame
}

/// A file with one of each block that we can write.
fn stream(pod: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let section = Section {
        hardware: "x86_64",
        os: "Linux 6.18",
        application: "podsonde-agent 1",
        comment: "node-1",
    };
    write::section_header(&mut out, &section);
    for name in ["eth0", "lo"] {
        let interface = Interface {
            linktype: linktype::ETHERNET,
            snaplen: 262_144,
            name: &format!("{pod}/{name}"),
            description: "interface of a pod",
            filter: "tcp port 80",
            os: "Linux",
        };
        write::interface(&mut out, &interface);
    }
    for (number, direction) in
        [Direction::In, Direction::Out, Direction::Unknown].into_iter().enumerate()
    {
        let frame = frame(60 + number);
        let packet = write::Packet {
            interface: u32::try_from(number % 2).unwrap(),
            timestamp: BASE + number as u64,
            original_length: 1000,
            direction,
        };
        write::enhanced_packet(&mut out, &packet, [&frame[..12], &frame[12..13], &frame[13..]]);
    }
    let statistics = Statistics {
        interface: 0,
        timestamp: BASE,
        started: Some(BASE - 1_000_000_000),
        ended: Some(BASE),
        received: Some(10),
        dropped: Some(0),
        accepted: Some(9),
        dropped_by_os: Some(5),
        delivered: Some(2),
    };
    write::interface_statistics(&mut out, &statistics);
    out
}

fn fields(file: &Path) -> Vec<String> {
    let names = [
        "frame.interface_name",
        "frame.time_epoch",
        "frame.len",
        "frame.cap_len",
        "frame.packet_flags_direction",
        "eth.src",
    ];
    let mut arguments = vec!["-r", file.to_str().unwrap(), "-T", "fields", "-E", "separator=,"];
    names.iter().for_each(|name| arguments.extend(["-e", name]));
    run("tshark", &arguments).lines().map(str::to_owned).collect()
}

#[test]
fn tshark_and_capinfos_read_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.pcapng");
    fs::write(&file, stream("default/web-0")).unwrap();
    let lines = fields(&file);
    assert_eq!(
        lines,
        [
            "default/web-0/eth0,1700000000.123456789,1000,60,0x00000001,02:00:00:00:00:02",
            "default/web-0/lo,1700000000.123456790,1000,61,0x00000002,02:00:00:00:00:02",
            "default/web-0/eth0,1700000000.123456791,1000,62,,02:00:00:00:00:02",
        ]
    );
    let said = run("capinfos", &[file.to_str().unwrap()]);
    for expected in [
        "File timestamp precision:  nanoseconds (9)",
        "Number of packets:   3",
        "Capture hardware:    x86_64",
        "Capture oper-sys:    Linux 6.18",
        "Capture application: podsonde-agent 1",
        "Capture comment:     node-1",
        "Number of interfaces in file: 2",
        "Name = default/web-0/eth0",
        "Description = interface of a pod",
        "Capture length = 262144",
        "Time precision = nanoseconds (9)",
        "Filter string = tcp port 80",
        "Operating system = Linux",
        "Number of stat entries = 1",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn merged_streams_are_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("merged.pcapng");
    let mut out = Vec::new();
    write::section_header(&mut out, &Section { application: "podsonde", ..Default::default() });
    let mut merged = Merged::default();
    for pod in ["default/a", "default/b"] {
        merged.append(&mut Source::default(), &stream(pod), &mut out).unwrap();
    }
    fs::write(&file, out).unwrap();
    let names: Vec<_> =
        fields(&file).iter().map(|l| l.split(',').next().unwrap().to_owned()).collect();
    let expected = [
        "default/a/eth0",
        "default/a/lo",
        "default/a/eth0",
        "default/b/eth0",
        "default/b/lo",
        "default/b/eth0",
    ];
    assert_eq!(names, expected);
    let said = run("capinfos", &[file.to_str().unwrap()]);
    assert!(said.contains("Number of interfaces in file: 4"), "{said}");
    assert_eq!(said.matches("Number of stat entries = 1").count(), 2, "{said}");
}

#[test]
fn a_file_that_ends_in_a_block_has_its_whole_packets() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cut.pcapng");
    let mut bytes = stream("default/web-0");
    // Cuts the third packet.
    bytes.truncate(bytes.len() - 200);
    fs::write(&file, &bytes).unwrap();
    let tcpdump = Command::new("tcpdump").args(["-n", "-r"]).arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&tcpdump.stderr).contains("truncated"), "{tcpdump:?}");
    let theirs =
        String::from_utf8_lossy(&tcpdump.stdout).lines().filter(|l| l.contains("length")).count();
    let mut reader = Reader::new(bytes.as_slice());
    let mut ours = 0;
    let error = loop {
        match reader.next() {
            Ok(Some(_)) => ours += 1,
            Ok(None) => panic!("the end went unnoticed"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("truncated"), "{error}");
    assert_eq!((ours, theirs), (2, 2));
}

#[test]
fn files_that_editcap_writes_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("a.pcapng");
    fs::write(&source, stream("default/web-0")).unwrap();
    for (format, unit) in [("pcap", 1000), ("nsecpcap", 1), ("pcapng", 1)] {
        let file = directory.path().join(format);
        run("editcap", &["-F", format, source.to_str().unwrap(), file.to_str().unwrap()]);
        let mut reader = Reader::new(fs::File::open(&file).unwrap());
        for number in 0..3_u64 {
            let packet = reader.next().unwrap().unwrap();
            assert_eq!(packet.timestamp, (BASE + number) / unit * unit, "{format}");
            assert_eq!(packet.data, frame(60 + usize::try_from(number).unwrap()));
            assert_eq!((packet.original_length, packet.linktype), (1000, linktype::ETHERNET));
        }
        assert_eq!(reader.next().unwrap(), None);
    }
}
