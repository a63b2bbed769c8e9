//! The engine alone: every packet is in the file, or counted.

use std::{os::fd::AsFd, time::Duration};

use podsonde::{
    domain::{
        filter::{MAX_SNAPLEN, Program, Ways},
        pcapng::write,
    },
    sys::{
        broker::NamespaceEntry,
        capture::{
            End, Event, Limits, Pump, RING_UNIT, Selection, Source, Stop, Tap, Totals,
            links::{self, Link},
            pool::{BUFFER, Pool},
        },
        socket::SocketKind,
    },
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{
    possible,
    support::{
        generator::{Generator, SEQUENCE, tagged, udp},
        netns::Netns,
        pcap,
    },
};

pub(crate) const QUIET: Limits =
    Limits { packets: 0, bytes: 0, statistics_interval: Duration::from_secs(3600) };

pub(crate) fn everything() -> Selection {
    Selection { filter: None, on_tags: false, ways: Ways::Both, snaplen: MAX_SNAPLEN }
}

pub(crate) fn links_of(netns: &Netns) -> Vec<Link> {
    let socket =
        NamespaceEntry::InProcess.socket(netns.pidfd().as_fd(), SocketKind::Routes).unwrap();
    links::list(&socket).unwrap()
}

pub(crate) fn link(netns: &Netns, name: &str) -> Link {
    links_of(netns)
        .into_iter()
        .find(|link| link.name == name.as_bytes())
        .unwrap_or_else(|| panic!("no {name}"))
}

/// A capture that runs.
pub(crate) struct Capture {
    pub(crate) stop: Stop,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) file: Vec<u8>,
    pub(crate) ring_bytes: usize,
}

impl Capture {
    pub(crate) fn start(
        netns: &Netns,
        source: Source,
        selection: &Selection,
        ring: usize,
        limits: Limits,
    ) -> Self {
        let socket =
            NamespaceEntry::InProcess.socket(netns.pidfd().as_fd(), source.socket()).unwrap();
        let tap = Tap::open(socket, source, selection, ring, Duration::from_millis(5)).unwrap();
        let ring_bytes = tap.ring_bytes();
        let mut header = Vec::new();
        write::section_header(&mut header, &write::Section::default());
        let linktype = source.linktype();
        let interface = write::Interface {
            linktype,
            snaplen: selection.snaplen,
            ..write::Interface::default()
        };
        write::interface(&mut header, &interface);
        let (sender, events) = unbounded_channel();
        let stop =
            Pump::start(tap, &header, limits, Pool::new(8 * BUFFER).unwrap(), sender, ()).unwrap();
        Self { stop, events, file: Vec::new(), ring_bytes }
    }

    /// Reads until it ends by itself.
    pub(crate) fn end(self) -> (Vec<u8>, End, Totals) {
        let Self { stop, events, mut file, .. } = self;
        let (end, totals) = read(events, &mut file);
        drop(stop);
        check(&file, &totals);
        (file, end, totals)
    }

    /// Lets nothing more in, and reads until its end.
    pub(crate) fn finish(self) -> (Vec<u8>, Totals) {
        self.finish_after(|| {})
    }

    /// Reads while something is done, then as [`Self::finish`].
    pub(crate) fn finish_after(self, work: impl FnOnce() + Send) -> (Vec<u8>, Totals) {
        let Self { stop, events, mut file, .. } = self;
        let (end, totals) = std::thread::scope(|scope| {
            scope.spawn(|| {
                work();
                stop.finish();
            });
            read(events, &mut file)
        });
        assert!(matches!(end, End::Stopped), "{end:?}");
        check(&file, &totals);
        (file, totals)
    }
}

fn read(mut events: UnboundedReceiver<Event>, file: &mut Vec<u8>) -> (End, Totals) {
    loop {
        match events.blocking_recv().expect("an end") {
            Event::Payload(bytes, _) => file.extend_from_slice(&bytes),
            Event::Statistics(_) => {}
            Event::Ended(end, totals) => return (end, totals),
        }
    }
}

/// That the figures add up, and that the file holds what they say.
pub(crate) fn check(file: &[u8], totals: &Totals) {
    let Totals { received, captured, dropped_by_kernel, dropped_by_agent, bytes } = *totals;
    assert_eq!(received, captured + dropped_by_kernel + dropped_by_agent, "{totals:?}");
    // The header is not counted, the figures at the end are.
    assert!(bytes <= file.len() as u64, "{totals:?}");
    assert_eq!(pcap::accepted(file), captured, "{totals:?}");
}

/// The sequence numbers of the generator's frames in a file.
pub(crate) fn sequences(file: &[u8], at: usize) -> Vec<u64> {
    let (_, packets) = pcap::read(file);
    let frames = packets.iter().filter(|packet| packet.data.len() >= at + 8);
    frames.map(|packet| u64::from_be_bytes(packet.data[at..at + 8].try_into().unwrap())).collect()
}

/// Where a row of sequence numbers is not 0, 1, 2 and so on: the first few of what should be there
/// and what is.
pub(crate) fn gaps(found: &[u64], count: u64) -> Vec<(u64, Option<u64>)> {
    let at = |number: u64| found.get(usize::try_from(number).unwrap()).copied();
    let wrong = (0..count.max(found.len() as u64)).filter(|number| at(*number) != Some(*number));
    wrong.map(|number| (number, at(number))).take(4).collect()
}

/// Only the generator's frames; namespaces have a life of their own (router solicitations).
fn generated() -> Selection {
    // ldh [12]; jeq #0x800; ldb [23]; jeq #17; ldh [36]; jeq #40404
    let program = [
        [0x28, 0, 0, 0, 12, 0, 0, 0],
        [0x15, 0, 0, 5, 0, 8, 0, 0],
        [0x30, 0, 0, 0, 23, 0, 0, 0],
        [0x15, 0, 0, 3, 17, 0, 0, 0],
        [0x28, 0, 0, 0, 36, 0, 0, 0],
        [0x15, 0, 0, 1, 0xd4, 0x9d, 0, 0],
        [0x06, 0, 0, 0, 0, 0, 4, 0],
        [0x06, 0, 0, 0, 0, 0, 0, 0],
    ];
    let program = program.map(podsonde::domain::filter::Instruction::from_bytes);
    Selection { filter: Program::new(program.to_vec()), ..everything() }
}

#[test]
fn what_is_sent_is_in_the_file() {
    if !possible() {
        return;
    }
    let (pod, _peer) = Netns::pair();
    let eth0 = link(&pod, "eth0");
    let capture = Capture::start(&pod, Source::of(&eth0), &generated(), 64 << 20, QUIET);
    assert_eq!(capture.ring_bytes, 64 << 20);
    let mut generator = Generator::new(pod.pid(), eth0.index);
    let (file, totals) = capture.finish_after(|| generator.send(50_000, 100, 50_000));
    assert_eq!((totals.received, totals.captured), (50_000, 50_000), "{totals:?}");
    assert_eq!(gaps(&sequences(&file, SEQUENCE), 50_000), []);
    let (linktype, packets) = pcap::read(&file);
    assert_eq!(linktype, 1);
    assert!(packets.iter().all(|packet| packet.data.len() == 100 && packet.original_length == 100));
    assert!(packets.is_sorted_by_key(|packet| (packet.seconds, packet.nanoseconds)));
    // Of nanoseconds.
    assert!(packets.iter().any(|packet| packet.nanoseconds % 1000 != 0));
}

#[test]
fn what_is_lost_is_counted() {
    if !possible() {
        return;
    }
    let (pod, _peer) = Netns::pair();
    let eth0 = link(&pod, "eth0");
    let mut capture = Capture::start(&pod, Source::of(&eth0), &generated(), 4 * RING_UNIT, QUIET);
    // Nobody reads: eight buffers and the ring hold less than this.
    let sent = 20_000;
    Generator::new(pod.pid(), eth0.index).send(sent, 1000, 0);
    let mut kept = Vec::new();
    while let Ok(event) = capture.events.try_recv() {
        if let Event::Payload(bytes, _) = event {
            kept.push(bytes);
        }
    }
    // The kernel had to drop, and the agent holds no more than its buffers.
    let held: usize = kept.iter().map(bytes::Bytes::len).sum();
    assert!(held <= 8 * BUFFER, "{held}");
    for bytes in kept {
        capture.file.extend_from_slice(&bytes);
    }
    let (file, totals) = capture.finish();
    assert_eq!(totals.received, sent, "{totals:?}");
    assert!(totals.dropped_by_kernel > 0, "{totals:?}");
    assert_eq!(
        sequences(&file, SEQUENCE).len() as u64 + totals.dropped_by_kernel,
        sent,
        "{totals:?}"
    );
    assert_eq!(totals.dropped_by_agent, 0);
}

#[test]
fn limits_end_it_exactly() {
    if !possible() {
        return;
    }
    let (pod, _peer) = Netns::pair();
    let eth0 = link(&pod, "eth0");
    let mut generator = Generator::new(pod.pid(), eth0.index);
    let capture = Capture::start(
        &pod,
        Source::of(&eth0),
        &generated(),
        1 << 20,
        Limits { packets: 10, ..QUIET },
    );
    generator.send(100, 200, 0);
    let (file, end, _) = capture.end();
    assert!(matches!(end, End::Packets), "{end:?}");
    assert_eq!(sequences(&file, SEQUENCE), (0..10).collect::<Vec<_>>());

    let capture = Capture::start(
        &pod,
        Source::of(&eth0),
        &generated(),
        1 << 20,
        Limits { bytes: 5000, ..QUIET },
    );
    generator.send(100, 200, 0);
    let (_, end, totals) = capture.end();
    assert!(matches!(end, End::Bytes), "{end:?}");
    assert!(totals.captured < 100, "{totals:?}");
}

#[test]
fn snaplen_cuts_and_the_length_stays() {
    if !possible() {
        return;
    }
    let (pod, _peer) = Netns::pair();
    let eth0 = link(&pod, "eth0");
    let generator = Generator::new(pod.pid(), eth0.index);
    for (source, captured, added) in [(Source::of(&eth0), 60, 0), (Source::ANY, 60, 6)] {
        let selection = Selection { snaplen: 60, ..everything() };
        let capture = Capture::start(&pod, source, &selection, 1 << 20, QUIET);
        generator.send_frames(&[udp(900, 9), tagged(&udp(900, 9), 7)]);
        let (file, _) = capture.finish();
        let packets: Vec<_> =
            pcap::read(&file).1.into_iter().filter(|p| p.original_length >= 900).collect();
        assert!(packets.iter().all(|packet| packet.data.len() == captured), "{packets:?}");
        let lengths: Vec<_> = packets.iter().map(|packet| packet.original_length).collect();
        assert_eq!(lengths, [900 + added, 904 + added]);
    }
}

#[test]
fn tags_are_where_they_were() {
    if !possible() {
        return;
    }
    let (pod, peer) = Netns::pair();
    let (eth0, peer0) = (link(&pod, "eth0"), link(&peer, "peer0"));
    let frames = [tagged(&udp(100, 9), 42), tagged(&tagged(&udp(100, 9), 7), 42), udp(100, 9)];
    // Going out the tag is in the packet; coming in the kernel has taken it out.
    let out = Capture::start(&pod, Source::of(&eth0), &everything(), 1 << 20, QUIET);
    let inward = Capture::start(&peer, Source::of(&peer0), &everything(), 1 << 20, QUIET);
    let any = Capture::start(&peer, Source::ANY, &everything(), 1 << 20, QUIET);
    Generator::new(pod.pid(), eth0.index).send_frames(&frames);
    let ours = |file: &[u8], from: usize| -> Vec<Vec<u8>> {
        let packets = pcap::read(file).1.into_iter().map(|packet| packet.data);
        packets
            .filter(|data| data.ends_with(&[0x55; 8]))
            .map(|data| data[from..].to_vec())
            .collect()
    };
    let (out, inward, any) = (out.finish().0, inward.finish().0, any.finish().0);
    assert_eq!(ours(&out, 0), frames);
    assert_eq!(ours(&inward, 0), frames);
    // From the first tag's contents on, whose protocol is in the header.
    // Of two tags the kernel does not say which protocol the first one had.
    let found = ours(&any, 20);
    assert_eq!(([&found[0], &found[2]]), [&frames[0][14..], &frames[2][14..]]);
    let headers: Vec<Vec<u8>> = pcap::read(&any).1.into_iter().map(|packet| packet.data).collect();
    let header = headers.iter().find(|data| data.ends_with(&[0x55; 8])).unwrap();
    assert_eq!(header[..2], [0x81, 0]);
    assert_eq!(header[4..8], peer0.index.to_be_bytes());
    // Ethernet, to another host, an address of 6 bytes: the sender's.
    assert_eq!(header[8..18], [0, 1, 3, 6, 2, 0, 0, 0, 0, 1]);
}

#[test]
fn an_interface_that_goes_is_told_and_one_that_comes_is_seen() {
    if !possible() {
        return;
    }
    let (pod, _peer) = Netns::pair();
    let eth0 = link(&pod, "eth0");
    let one = Capture::start(&pod, Source::of(&eth0), &generated(), 1 << 20, QUIET);
    let any = Capture::start(&pod, Source::ANY, &everything(), 1 << 20, QUIET);
    let mut generator = Generator::new(pod.pid(), eth0.index);
    generator.send(10, 100, 0);
    // Down and up again: both go on.
    pod.run(&["ip", "link", "set", "eth0", "down"]);
    pod.run(&["ip", "link", "set", "eth0", "up"]);
    generator.send(10, 100, 0);
    pod.run(&["ip", "link", "del", "eth0"]);
    let (file, end, _) = one.end();
    assert!(matches!(end, End::InterfaceGone), "{end:?}");
    assert_eq!(sequences(&file, SEQUENCE), (0..20).collect::<Vec<_>>());
    // And one that was not there.
    pod.run(&["ip", "link", "add", "new0", "type", "veth", "peer", "name", "new1"]);
    for name in ["new0", "new1"] {
        pod.run(&["ip", "link", "set", name, "up"]);
    }
    let new0 = link(&pod, "new0");
    Generator::new(pod.pid(), new0.index).send(5, 100, 0);
    let (file, _) = any.finish();
    let headers: Vec<Vec<u8>> = pcap::read(&file).1.into_iter().map(|packet| packet.data).collect();
    let seen = |index: u32| {
        let of = |data: &&Vec<u8>| {
            data.ends_with(&[0x55; 8]) && data[10] == 4 && data[4..8] == index.to_be_bytes()
        };
        headers.iter().filter(of).count()
    };
    assert_eq!((seen(eth0.index), seen(new0.index)), (20, 5));
}

#[test]
fn loopback_is_seen_once_and_directions_are_told() {
    if !possible() {
        return;
    }
    let pod = Netns::new();
    let lo = link(&pod, "lo");
    let captures = [Source::of(&lo), Source::ANY].map(|source| {
        [Ways::Both, Ways::In, Ways::Out].map(|ways| {
            Capture::start(&pod, source, &Selection { ways, ..everything() }, 1 << 20, QUIET)
        })
    });
    // Three datagrams to a port that nobody has: there and the refusals back.
    pod.run(&["bash", "-c", "for i in 1 2 3; do echo -n x >/dev/udp/127.0.0.1/9; done"]);
    for capture in captures.into_iter().flatten() {
        let (_, totals) = capture.finish();
        assert_eq!(totals.captured, 6, "{totals:?}");
    }
}

#[test]
fn abandoned_captures_are_gone_at_once() {
    if !possible() {
        return;
    }
    let (pod, _peer) = Netns::pair();
    let eth0 = link(&pod, "eth0");
    let rings = || {
        std::fs::read_to_string(format!("/proc/{}/net/packet", pod.pid())).unwrap().lines().count()
            - 1
    };
    let before = rings();
    let captures: Vec<_> = (0..100)
        .map(|_| Capture::start(&pod, Source::of(&eth0), &everything(), 1 << 20, QUIET))
        .collect();
    assert_eq!(rings(), before + 100);
    drop(captures);
    crate::support::wait_until("the sockets are closed", || rings() == before);
}
