//! The fake agent's captures: what is sent depends on the pod's name.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use podsonde::{
    domain::pcapng::{
        Direction,
        write::{self, Section},
    },
    proto::v1::{capture_server, capture_start_response::Event, *},
};
use tonic::{Code, Request, Response, Status};

use super::fake_agent::{Answers, FakeAgent, failure};

/// When the first packet of a pod was captured, in nanoseconds.
pub(crate) const START: u64 = 1_700_000_000_123_456_000;
/// Bytes of a packet that the flood is made of.
const FLOOD: usize = 1000;

/// An Ethernet frame with a UDP datagram, whose checksums are left to the card.
pub(crate) fn udp(source: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).unwrap();
    let ip_length = udp_length + 20;
    let mut ip = vec![0x45, 0];
    ip.extend(ip_length.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, source, 10, 0, 0, 9]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, source, 8, 0];
    frame.extend(ip);
    frame.extend(4000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(udp_length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// A TCP segment of a request, its SYN first.
fn tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = udp(1, 80, &[]);
    frame.truncate(34);
    let length = u16::try_from(40 + payload.len()).unwrap();
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[23] = 6;
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum: u32 =
        frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(
        &(!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes(),
    );
    frame.extend(4000_u16.to_be_bytes());
    frame.extend(80_u16.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

/// What goes through the fake pods.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let arp = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1],
        &[0; 6],
        &[10, 0, 0, 9],
        &[0; 18],
    ]
    .concat();
    let query =
        [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03web\x04shop\0", &[0, 1, 0, 1]]
            .concat();
    vec![
        arp,
        udp(1, 53, &query),
        tcp(1000, 2, &[]),
        tcp(1001, 0x18, b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"),
        udp(1, 9999, b"hello"),
    ]
}

/// The beginning of a pod's stream.
pub(crate) fn prelude(namespace: &str, pod: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::section_header(
        &mut out,
        &Section { application: "podsonde-agent fake", ..Section::default() },
    );
    let name = format!("{namespace}/{pod}/eth0");
    write::interface(
        &mut out,
        &write::Interface {
            linktype: 1,
            snaplen: 262_144,
            name: &name,
            ..write::Interface::default()
        },
    );
    out
}

/// One packet's block.
pub(crate) fn packet(timestamp: u64, frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let original_length = u32::try_from(frame.len()).unwrap();
    let packet = write::Packet {
        timestamp,
        original_length,
        direction: Direction::Out,
        ..write::Packet::default()
    };
    write::enhanced_packet(&mut out, &packet, [frame]);
    out
}

/// When the packets of a pod were captured: those of different pods take turns.
fn time(pod: &str, number: usize) -> u64 {
    let offset = u64::from(pod.bytes().last().unwrap_or_default() % 2) * 500_000;
    START + u64::try_from(number).unwrap() * 1_000_000 + offset
}

fn figures(captured: usize) -> CaptureStatistics {
    let captured = u64::try_from(captured).unwrap();
    CaptureStatistics { received: captured, captured, ..CaptureStatistics::default() }
}

fn started(namespace: &str, pod: &str, request: &CaptureStartRequest) -> Event {
    let container =
        if request.container.is_empty() { "nginx".to_owned() } else { request.container.clone() };
    Event::Started(CaptureStarted {
        container: Some(ContainerIdentity {
            node: "n1".into(),
            namespace: namespace.into(),
            pod: pod.into(),
            container,
            ..ContainerIdentity::default()
        }),
        id: "c1".into(),
        interface: request.interface.clone(),
        linktype: 1,
        snaplen: 262_144,
        filter: request.filter.clone(),
        filter_note: if pod == "host" {
            "the agent's own connection is left out".into()
        } else {
            String::new()
        },
        ..CaptureStarted::default()
    })
}

fn ended(reason: CaptureEnd, message: &str, statistics: CaptureStatistics) -> Event {
    Event::Ended(CaptureEnded {
        reason: reason.into(),
        message: message.into(),
        statistics: Some(statistics),
    })
}

/// The figures again and again, as an agent sends them while nothing comes.
fn ticking(
    request: &CaptureStartRequest,
    figures: CaptureStatistics,
) -> impl Stream<Item = Event> + use<> {
    let interval = request.statistics_interval.and_then(|i| Duration::try_from(i).ok());
    stream::unfold(
        tokio::time::interval(interval.expect("the client says how often")),
        move |mut ticks| async move {
            ticks.tick().await;
            Some((Event::Statistics(figures), ticks))
        },
    )
}

fn events(
    namespace: &str,
    pod: &str,
    request: &CaptureStartRequest,
) -> impl Stream<Item = Result<Event, Status>> + use<> {
    let wanted = if request.max_packets == 0 {
        usize::MAX
    } else {
        usize::try_from(request.max_packets).unwrap()
    };
    let frames: Vec<_> = frames().into_iter().take(wanted).collect();
    let mut first = prelude(namespace, pod);
    let blocks: Vec<Vec<u8>> =
        frames.iter().enumerate().map(|(number, frame)| packet(time(pod, number), frame)).collect();
    // A message with the interface and a packet, another with the rest.
    first.extend(blocks.first().unwrap());
    let rest: Vec<u8> = blocks[1..].concat();
    let mut begin = vec![started(namespace, pod, request), Event::Pcapng(first.into())];
    if !rest.is_empty() {
        begin.push(Event::Pcapng(rest.into()));
    }
    let all = figures(frames.len());
    let full = wanted <= frames.len();
    let lossy =
        CaptureStatistics { received: 20, dropped_by_kernel: 10, dropped_by_agent: 3, ..all };
    let then: stream::BoxStream<'static, Result<Event, Status>> = match pod {
        "gone" => {
            let message = "the container nginx has ended";
            stream::iter([Ok(ended(CaptureEnd::ContainerEnded, message, all))]).boxed()
        }
        "cut" => stream::iter([
            Ok(Event::Statistics(figures(1))),
            Err(Status::unavailable("connection reset")),
        ])
        .boxed(),
        "mute" => stream::pending().boxed(),
        "lossy" => ticking(request, lossy).map(Ok).boxed(),
        "garbage" => {
            stream::iter([Ok(Event::Pcapng(Bytes::from_static(b"garbage, not blocks at all")))])
                .boxed()
        }
        "flood" => {
            let block = packet(time(pod, 0), &udp(1, 9999, &[b'x'; FLOOD]));
            let many = Bytes::from(block.repeat(200));
            let mut sent = frames.len();
            let events = stream::repeat_with(move || {
                sent += 200;
                [Ok(Event::Pcapng(many.clone())), Ok(Event::Statistics(figures(sent)))]
            });
            events.flat_map(stream::iter).boxed()
        }
        _ if full => stream::iter([Ok(ended(CaptureEnd::Packets, "", all))]).boxed(),
        _ => ticking(request, all).map(Ok).boxed(),
    };
    stream::iter(begin).map(Ok).chain(then)
}

#[tonic::async_trait]
impl capture_server::Capture for FakeAgent {
    type StartStream = Answers<CaptureStartResponse>;

    async fn start(
        &self,
        request: Request<CaptureStartRequest>,
    ) -> Result<Response<Self::StartStream>, Status> {
        let request = request.into_inner();
        self.captures.lock().await.push(request.clone());
        let PodRef { namespace, name: pod, .. } = request.pod.clone().unwrap();
        match pod.as_str() {
            "nope" => {
                let message = format!("there is no pod {namespace}/{pod} on node n1");
                return Err(failure(Code::NotFound, "POD_NOT_FOUND", &message, &[("node", "n1")]));
            }
            "denied" => {
                let facts = [
                    ("namespace", namespace.as_str()),
                    ("pod", pod.as_str()),
                    ("resource", "captures.podsonde.dev"),
                ];
                let message =
                    "user \"bob\" may not create captures.podsonde.dev denied in namespace default";
                return Err(failure(Code::PermissionDenied, "FORBIDDEN", message, &facts));
            }
            "stall" => std::future::pending().await,
            _ if request.filter.contains("nonsense") => {
                let message = "filter: can't parse filter expression: syntax error";
                return Err(failure(
                    Code::InvalidArgument,
                    "INVALID_FIELD",
                    message,
                    &[("field", "filter")],
                ));
            }
            _ => {}
        }
        let events = events(&namespace, &pod, &request);
        let events =
            events.map(|event| event.map(|event| CaptureStartResponse { event: Some(event) }));
        Ok(Response::new(events.boxed()))
    }

    async fn compile(
        &self,
        request: Request<CaptureCompileRequest>,
    ) -> Result<Response<CaptureCompileResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.pod.unwrap().name, "web");
        Ok(Response::new(CaptureCompileResponse {
            program: format!(
                "(000) ret      #262144 ; {} on {}\n",
                request.filter, request.interface
            ),
            instructions: 1,
            linktype: 1,
        }))
    }

    async fn list_interfaces(
        &self,
        _: Request<CaptureListInterfacesRequest>,
    ) -> Result<Response<CaptureListInterfacesResponse>, Status> {
        let interface = |name: &str, index, linktype, addresses: &[&str]| CaptureInterface {
            name: name.as_bytes().to_vec(),
            index,
            linktype,
            up: true,
            loopback: name == "lo",
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            mtu: if name == "lo" { 65536 } else { 1500 },
        };
        let mut interfaces = vec![
            interface("any", 0, 276, &[]),
            interface("lo", 1, 1, &["127.0.0.1/8", "::1/128"]),
            interface("eth0", 2, 1, &["10.244.0.7/24"]),
        ];
        interfaces[2].up = false;
        Ok(Response::new(CaptureListInterfacesResponse { container: None, interfaces }))
    }
}
