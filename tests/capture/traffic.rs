//! Packets of every shape, captured beside a `tcpdump` in the same network namespace: the same
//! ones, to the byte.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use podsonde::{
    domain::filter::{MAX_SNAPLEN, wants_vlan_tags},
    sys::capture::{Selection, Source},
};
use tempfile::NamedTempFile;

use crate::{
    engine::{Capture, QUIET, everything, link},
    filters::compiler,
    possible,
    support::{
        generator::{Generator, tagged, udp},
        netns::Netns,
        pcap::{self, Packet},
        wait_until,
    },
};

/// The last packet, on a line of its own.
const MARK: &[u8] = b"mark";

/// A process that a failing test does not leave behind.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `tcpdump` that writes a file.
struct Tcpdump {
    _process: Ended,
    file: NamedTempFile,
}

impl Tcpdump {
    /// Once it captures.
    fn start(netns: &Netns, interface: &str, filter: &str) -> Self {
        let file = NamedTempFile::new().unwrap();
        let args =
            ["tcpdump", "--nano", "-n", "-U", "-B", "65536", "-i", interface, "-w", "-", filter];
        let mut command = netns.command(&args);
        command
            .stdin(Stdio::null())
            .stdout(File::create(file.path()).unwrap())
            .stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.any(|line| line.contains("listening on ")), "{interface} {filter}");
        // It goes on to say what became of them, to nobody.
        std::thread::spawn(move || said.count());
        Self { _process: Ended(process), file }
    }

    fn packets(&self) -> Vec<Packet> {
        let file = fs::read(self.file.path()).unwrap();
        if file.is_empty() { Vec::new() } else { pcap::read(&file).1 }
    }

    /// What it captured, up to the last packet.
    fn end(self) -> Vec<Packet> {
        wait_until("tcpdump has the last packet", || {
            self.packets().last().is_some_and(|packet| packet.data.ends_with(MARK))
        });
        self.packets()
    }
}

/// The same filter for both, and its packets without when and by whom they were captured.
struct Beside(Capture, Tcpdump);

impl Beside {
    fn start(netns: &Netns, source: Source, interface: &str, filter: &str) -> Self {
        let program = compiler().compile(source.dlt(), MAX_SNAPLEN, filter).unwrap().program;
        let selection =
            Selection { filter: Some(program), on_tags: wants_vlan_tags(filter), ..everything() };
        let theirs = Tcpdump::start(netns, interface, filter);
        Self(Capture::start(netns, source, &selection, 32 << 20, QUIET), theirs)
    }

    /// Asserts that they are the same; returns them.
    fn end(self, what: &str) -> Vec<Packet> {
        let theirs = self.1.end();
        let (file, totals) = self.0.finish();
        assert_eq!(totals.received, totals.captured, "{totals:?}");
        let ours = pcap::read(&file).1;
        // Those of two processors may have been put in either order.
        let contents = |packets: &[Packet]| {
            let mut all: Vec<_> =
                packets.iter().map(|p| (p.original_length, p.data.clone())).collect();
            all.sort();
            all
        };
        let (found, expected) = (contents(&ours), contents(&theirs));
        assert_eq!(found.len(), expected.len(), "{what}");
        assert!(found == expected, "{what}: not the same packets");
        ours
    }
}

#[test]
fn large_fragmented_and_ipv6_packets_are_those_of_tcpdump() {
    if !possible() {
        return;
    }
    let (pod, peer) = Netns::pair();
    let listen = ["socat", "-u", "TCP6-LISTEN:9000,fork,reuseaddr", "OPEN:/dev/null"];
    let _server = Ended(peer.command(&listen).stdin(Stdio::null()).spawn().unwrap());
    wait_until("the server listens", || peer.run(&["ss", "-Hltn"]).contains(":9000"));
    let filter = "tcp or udp or ip6 proto 44";
    let ends = [(&pod, "eth0"), (&peer, "peer0")];
    let mut beside = Vec::new();
    for (netns, name) in ends {
        for (source, interface) in [(Source::of(&link(netns, name)), name), (Source::ANY, "any")] {
            beside.push((
                format!("{interface} of {name}"),
                Beside::start(netns, source, interface, filter),
            ));
        }
    }

    for address in ["192.0.2.2", "[2001:db8::2]"] {
        let (tcp, udp) = (format!("TCP:{address}:9000"), format!("UDP-SENDTO:{address}:9"));
        let send = |count: usize, to: &str| {
            let script = format!("head -c {count} /dev/zero | socat -u -b 1048576 - {to}");
            pod.run(&["bash", "-c", &script]);
        };
        send(4 << 20, &tcp);
        send(4000, &udp);
    }
    // The server ends its connections by itself.
    wait_until("the connections are closed", || {
        [&pod, &peer].iter().all(|netns| {
            let states = netns.run(&["ss", "-Htan"]);
            states.lines().all(|line| line.starts_with("TIME-WAIT") || line.starts_with("LISTEN"))
        })
    });
    pod.run(&["bash", "-c", "echo -n mark > /dev/udp/192.0.2.2/9"]);

    for (what, beside) in beside {
        let packets = beside.end(&what);
        let largest = packets.iter().map(|packet| packet.data.len()).max().unwrap();
        let head = if what.starts_with("any") { 20 } else { 14 };
        let count =
            |of: &dyn Fn(&[u8]) -> bool| packets.iter().filter(|p| of(&p.data[head..])).count();
        let fragments =
            count(&|ip| ip[0] >> 4 == 4 && u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0);
        let fragments_6 = count(&|ip| ip[0] >> 4 == 6 && ip[6] == 44);
        println!(
            "{what}: {} packets of at most {largest} bytes, {fragments} and {fragments_6} \
            fragments",
            packets.len()
        );
        // Segments as the network stack hands them to the interface, which would have cut them.
        assert!(largest > 60_000, "{what}: {largest}");
        assert_eq!((fragments, fragments_6), (3, 3), "{what}");
    }
}

#[test]
fn tagged_frames_are_those_of_tcpdump() {
    if !possible() {
        return;
    }
    let (pod, peer) = Netns::pair();
    let (eth0, peer0) = (link(&pod, "eth0"), link(&peer, "peer0"));
    let mark = {
        let mut frame = tagged(&udp(100, 9), 42);
        let end = frame.len() - MARK.len();
        frame[end..].copy_from_slice(MARK);
        frame
    };
    let frames = [
        udp(100, 9),
        udp(1500, 7),
        tagged(&udp(100, 9), 42),
        tagged(&udp(1500, 9), 7),
        tagged(&tagged(&udp(100, 9), 7), 42),
        mark,
    ];
    let generator = Generator::new(pod.pid(), eth0.index);
    for (filter, expected) in [
        ("udp or vlan", 6),
        ("vlan", 4),
        ("vlan 42", 3),
        ("vlan and udp port 9", 3),
        ("vlan 42 and udp", 2),
        ("port 7 or vlan", 5),
    ] {
        // Coming in the kernel has taken the tag out; going out it is in the frame.
        for (netns, link, name) in [(&peer, &peer0, "peer0"), (&pod, &eth0, "eth0")] {
            let what = format!("{name} {filter}");
            let beside = Beside::start(netns, Source::of(link), name, filter);
            generator.send_frames(&frames);
            let packets = beside.end(&what);
            assert_eq!(packets.len(), expected, "{what}");
            if name == "peer0" {
                assert!(packets.iter().all(|packet| frames.contains(&packet.data)), "{what}");
            }
        }
    }
}
