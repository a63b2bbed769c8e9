//! The service `Capture`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    convert,
    gate::{Answers, Call, Gate, hung_up},
    operation::{Operation, Subject, duration_text, enum_text, number_text},
};
use crate::{
    agent::{
        access::Method,
        audit::Notes,
        capture::{self, CaptureTarget, Captures, Running, Wanted},
        config::CaptureLimits,
        listen::bulk::{self, Bulk},
        metrics::Metrics,
    },
    domain::{
        Error, Reason, Result,
        filter::{MAX_TEXT, Ways},
        name,
    },
    kube::events::{Events, Happened},
    proto::v1::{self, capture_server::Capture, capture_start_response::Event},
    sys::capture::{self as engine, End, Source, Totals, links::Link},
};

/// How long a packet waits for others.
const DELAY: Duration = Duration::from_millis(10);
/// How often statistics are sent.
const STATISTICS: Duration = Duration::from_secs(1);

impl Operation for v1::CaptureStartRequest {
    const METHOD: Method = Method::CaptureStart;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pod(&mut self.pod)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let direction = self.direction().as_str_name();
        vec![
            ("container", self.container.clone()),
            ("interface", self.interface.clone()),
            ("filter", self.filter.clone()),
            ("snaplen", number_text(self.snaplen.into())),
            ("max_packets", number_text(self.max_packets)),
            ("max_bytes", number_text(self.max_bytes)),
            ("max_duration", duration_text(self.max_duration.as_ref())),
            ("ring_bytes", number_text(self.ring_bytes)),
            ("direction", enum_text(self.direction, direction, "CAPTURE_DIRECTION_")),
        ]
    }
}

impl Operation for v1::CaptureCompileRequest {
    const METHOD: Method = Method::CaptureCompile;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pod(&mut self.pod)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("interface", self.interface.clone()), ("filter", self.filter.clone())]
    }
}

impl Operation for v1::CaptureListInterfacesRequest {
    const METHOD: Method = Method::CaptureListInterfaces;

    fn subject(&mut self) -> Subject<'_> {
        Subject::Pod(&mut self.pod)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("container", self.container.clone())]
    }
}

/// Serves `Capture`.
#[derive(Debug)]
pub struct CaptureService {
    /// Admits the calls.
    pub gate: Arc<Gate>,
    /// What captures are made with.
    pub captures: Arc<Captures>,
    /// Where pods' owners are told.
    pub events: Events,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Ends captures when the agent does.
    pub drain: CancellationToken,
    /// Name of the node.
    pub node: String,
}

#[tonic::async_trait]
impl Capture for CaptureService {
    type StartStream = Answers<v1::CaptureStartResponse>;

    async fn start(
        &self,
        request: Request<v1::CaptureStartRequest>,
    ) -> Result<Response<Self::StartStream>, Status> {
        let (captures, metrics) = (Arc::clone(&self.captures), Arc::clone(&self.metrics));
        let (events, drain, node) = (self.events.clone(), self.drain.clone(), self.node.clone());
        let response = self
            .gate
            .stream(request, move |call: Call<v1::CaptureStartRequest>, answers| async move {
                let asked = Asked::of(&call.message, captures.limits())?;
                let target =
                    target(&captures, call.message.pod.as_ref(), &call.message.container).await?;
                let by = call.caller.to_string();
                let running = captures.start(&target, &asked.wanted, &by, call.connection).await;
                let running =
                    running.map_err(|e| e.pod(&target.pod.namespace, &target.pod.name))?;
                let id = Uuid::new_v4().to_string();
                call.notes.add("capture", &id);
                let started = started(&target, &asked, &running, &id, &node);
                let tally = Tally::new(call.notes, metrics, events, &target, by, &asked.wanted);
                send(&answers, Event::Started(started)).await?;
                relay(running, &target, asked.max_duration, &answers, &drain, tally).await
            })
            .await?;
        Ok(bulk::response(response.into_inner()))
    }

    async fn compile(
        &self,
        request: Request<v1::CaptureCompileRequest>,
    ) -> Result<Response<v1::CaptureCompileResponse>, Status> {
        let act = |call: Call<v1::CaptureCompileRequest>| async move {
            let v1::CaptureCompileRequest { pod, interface, filter, snaplen } = call.message;
            check_interface(&interface)?;
            check_filter(&filter)?;
            let snaplen = snaplen_of(snaplen, self.captures.limits())?;
            let target = target(&self.captures, pod.as_ref(), "").await?;
            let source = match &*interface {
                "" | "any" => Source::ANY,
                name => self.captures.source(&self.captures.links(&target).await?, name)?,
            };
            let compiled = self.captures.compile(source, snaplen, &filter).await?;
            let instructions =
                u32::try_from(compiled.program.instructions().len()).unwrap_or(u32::MAX);
            Ok(v1::CaptureCompileResponse {
                program: compiled.listing,
                instructions,
                linktype: source.linktype().into(),
            })
        };
        self.gate.unary(request, act).await
    }

    async fn list_interfaces(
        &self,
        request: Request<v1::CaptureListInterfacesRequest>,
    ) -> Result<Response<v1::CaptureListInterfacesResponse>, Status> {
        let act = |call: Call<v1::CaptureListInterfacesRequest>| async move {
            let target =
                target(&self.captures, call.message.pod.as_ref(), &call.message.container).await?;
            let links = self.captures.links(&target).await?;
            let any = v1::CaptureInterface {
                name: b"any".to_vec(),
                linktype: Source::ANY.linktype().into(),
                up: true,
                ..v1::CaptureInterface::default()
            };
            let interfaces = std::iter::once(any).chain(links.iter().map(interface));
            Ok(v1::CaptureListInterfacesResponse {
                container: Some(identity(&target, &self.node)),
                interfaces: interfaces.collect(),
            })
        };
        self.gate.unary(request, act).await
    }
}

impl Bulk for v1::CaptureStartResponse {
    const FIELD: u32 = 2;

    fn take(&mut self) -> Option<Bytes> {
        match self.event.take_if(|event| matches!(event, Event::Pcapng(_))) {
            Some(Event::Pcapng(blocks)) => Some(blocks),
            _ => None,
        }
    }
}

/// What is asked for, checked.
struct Asked {
    wanted: Wanted,
    max_duration: Duration,
}

impl Asked {
    fn of(request: &v1::CaptureStartRequest, limits: &CaptureLimits) -> Result<Self> {
        check_interface(&request.interface)?;
        check_filter(&request.filter)?;
        let ways = match v1::CaptureDirection::try_from(request.direction) {
            Ok(v1::CaptureDirection::Unspecified) => Ways::Both,
            Ok(v1::CaptureDirection::In) => Ways::In,
            Ok(v1::CaptureDirection::Out) => Ways::Out,
            Err(_) => {
                let message = format!("{} is none: In 1, Out 2", request.direction);
                return Err(Error::invalid("direction", message));
            }
        };
        let between = |field: &str, asked: Option<&prost_types::Duration>, default, least, most| {
            let wanted = convert::duration(field, asked)?.unwrap_or(default);
            if (least..=most).contains(&wanted) {
                return Ok(wanted);
            }
            Err(Error::invalid(
                field,
                format!("is {wanted:?}; it may be from {least:?} to {most:?}"),
            ))
        };
        let (least, second) = (Duration::from_millis(1), Duration::from_secs(1));
        let hour = Duration::from_secs(3600);
        let longest = limits.max_capture_duration;
        let statistics_interval = between(
            "statistics_interval",
            request.statistics_interval.as_ref(),
            STATISTICS,
            Duration::from_millis(100),
            hour,
        )?;
        Ok(Self {
            wanted: Wanted {
                interface: request.interface.clone(),
                filter: request.filter.clone(),
                snaplen: snaplen_of(request.snaplen, limits)?,
                ways,
                ring_bytes: capture::ring_size(request.ring_bytes, limits)?,
                max_delay: between("max_delay", request.max_delay.as_ref(), DELAY, least, second)?,
                limits: engine::Limits {
                    packets: request.max_packets,
                    bytes: request.max_bytes,
                    statistics_interval,
                },
            },
            max_duration: between(
                "max_duration",
                request.max_duration.as_ref(),
                limits.default_capture_duration.min(longest),
                least,
                longest,
            )?,
        })
    }
}

/// A name is looked for as it is, so nothing but its length matters.
fn check_interface(interface: &str) -> Result<()> {
    match interface.len() {
        0..=15 => Ok(()),
        length => Err(Error::invalid(
            "interface",
            format!("has {length} bytes; an interface's name has 15 at most"),
        )),
    }
}

fn check_filter(filter: &str) -> Result<()> {
    match filter.len() {
        0..=MAX_TEXT => Ok(()),
        length => {
            Err(Error::invalid("filter", format!("has {length} bytes; it may have {MAX_TEXT}")))
        }
    }
}

fn snaplen_of(asked: u32, limits: &CaptureLimits) -> Result<u32> {
    match asked {
        0 => Ok(limits.max_snaplen),
        asked if asked <= limits.max_snaplen => Ok(asked),
        _ => Err(Error::invalid(
            "snaplen",
            format!("is more than {}, the most this agent allows", limits.max_snaplen),
        )),
    }
}

async fn target(
    captures: &Captures,
    pod: Option<&v1::PodRef>,
    container: &str,
) -> Result<CaptureTarget> {
    let (namespace, name, uid) = convert::pod_ref(pod)?;
    if !container.is_empty() {
        name::label("container", container)?;
    }
    captures.target(&namespace, &name, &uid, container).await
}

fn identity(target: &CaptureTarget, node: &str) -> v1::ContainerIdentity {
    convert::identity(&target.pod, &target.container, Some(&target.process), node)
}

fn started(
    target: &CaptureTarget,
    asked: &Asked,
    running: &Running,
    id: &str,
    node: &str,
) -> v1::CaptureStarted {
    let interface = asked.wanted.interface.as_str();
    v1::CaptureStarted {
        container: Some(identity(target, node)),
        id: id.to_owned(),
        interface: if interface.is_empty() { "any" } else { interface }.to_owned(),
        linktype: running.linktype.into(),
        snaplen: asked.wanted.snaplen,
        filter: running.filter.clone(),
        filter_note: running.note.clone(),
        ring_bytes: running.ring_bytes as u64,
        max_packets: asked.wanted.limits.packets,
        max_bytes: asked.wanted.limits.bytes,
        max_duration: prost_types::Duration::try_from(asked.max_duration).ok(),
        started_at: Some(convert::timestamp(Timestamp::now())),
    }
}

/// Hands on what the capture yields, until it or its reason to run has ended.
async fn relay(
    running: Running,
    target: &CaptureTarget,
    max_duration: Duration,
    answers: &mpsc::Sender<v1::CaptureStartResponse>,
    drain: &CancellationToken,
    mut tally: Tally,
) -> Result<()> {
    let Running { stop, mut events, .. } = running;
    let lives = target.lives.pidfd().try_clone();
    let lives = lives.map_err(|e| Error::new(Reason::SystemCall, format!("dup(pidfd): {e}")))?;
    // How it is to be ended, while its packets may wait for a slow reader.
    let ending = std::sync::OnceLock::new();
    let end = async {
        let why = tokio::select! {
            () = tokio::time::sleep(max_duration) => v1::CaptureEnd::Duration,
            () = drain.cancelled() => v1::CaptureEnd::Draining,
            // A failure to wait for it is no end.
            Ok(()) = lives.ended() => v1::CaptureEnd::ContainerEnded,
        };
        let _ = ending.set(why);
        stop.finish();
        std::future::pending::<()>().await;
    };
    let forward = async {
        while let Some(event) = events.recv().await {
            match event {
                engine::Event::Payload(bytes, packets) => {
                    let length = bytes.len();
                    send(answers, Event::Pcapng(bytes)).await?;
                    tally.delivered(packets, length);
                }
                engine::Event::Statistics(totals) => {
                    tally.update(totals);
                    send(answers, Event::Statistics(statistics(&totals))).await?;
                }
                engine::Event::Ended(end, totals) => {
                    tally.update(totals);
                    let (reason, message) = match end {
                        End::Packets => (
                            v1::CaptureEnd::Packets,
                            "as many packets were captured as were asked for".to_owned(),
                        ),
                        End::Bytes => (
                            v1::CaptureEnd::Bytes,
                            "as many bytes were sent as were asked for".to_owned(),
                        ),
                        End::InterfaceGone => (
                            v1::CaptureEnd::InterfaceGone,
                            "the interface has gone away".to_owned(),
                        ),
                        End::Stopped => match ending.get() {
                            Some(v1::CaptureEnd::Draining) => {
                                (v1::CaptureEnd::Draining, "the agent is shutting down".to_owned())
                            }
                            Some(v1::CaptureEnd::ContainerEnded) => (
                                v1::CaptureEnd::ContainerEnded,
                                "the container or its pod has ended".to_owned(),
                            ),
                            _ => {
                                (v1::CaptureEnd::Duration, format!("{max_duration:?} have passed"))
                            }
                        },
                        End::Failed(error) => return Err(error.into()),
                    };
                    tally.ended(reason);
                    let end = v1::CaptureEnded {
                        reason: reason.into(),
                        message,
                        statistics: Some(statistics(&totals)),
                    };
                    return send(answers, Event::Ended(end)).await;
                }
            }
        }
        Err(Error::new(Reason::Bug, "the thread of the capture has ended without a word"))
    };
    tokio::select! {
        result = forward => result,
        () = end => Ok(()),
        () = answers.closed() => Err(hung_up()),
    }
}

async fn send(answers: &mpsc::Sender<v1::CaptureStartResponse>, event: Event) -> Result<()> {
    let message = v1::CaptureStartResponse { event: Some(event) };
    answers.send(message).await.map_err(|_| hung_up())
}

fn statistics(totals: &Totals) -> v1::CaptureStatistics {
    let Totals { received, captured, dropped_by_kernel, dropped_by_agent, bytes } = *totals;
    v1::CaptureStatistics { received, captured, dropped_by_kernel, dropped_by_agent, bytes }
}

fn interface(link: &Link) -> v1::CaptureInterface {
    v1::CaptureInterface {
        name: link.name.clone(),
        index: link.index,
        linktype: Source::of(link).linktype().into(),
        up: link.up,
        loopback: link.loopback,
        addresses: link
            .addresses
            .iter()
            .map(|(address, prefix)| format!("{address}/{prefix}"))
            .collect(),
        mtu: link.mtu,
    }
}

/// What is told of a capture beside its stream, however it ends: to the audit log, the metrics and
/// the pod's owner.
struct Tally {
    notes: Notes,
    metrics: Arc<Metrics>,
    events: Events,
    pod: Arc<crate::domain::pod::Pod>,
    container: String,
    by: String,
    totals: Totals,
    packets: u64,
    bytes: u64,
    reason: Option<v1::CaptureEnd>,
}

impl Tally {
    fn new(
        notes: Notes,
        metrics: Arc<Metrics>,
        events: Events,
        target: &CaptureTarget,
        by: String,
        wanted: &Wanted,
    ) -> Self {
        let interface = if wanted.interface.is_empty() { "any" } else { &wanted.interface };
        let filter = match wanted.filter.trim() {
            "" => String::new(),
            filter => format!(" with filter {filter:?}"),
        };
        let message = format!("{by} captures the pod's packets on interface {interface}{filter}");
        events.tell(&target.pod, &target.container, Happened::CaptureStarted, &message);
        Self {
            notes,
            metrics,
            events,
            pod: Arc::clone(&target.pod),
            container: target.container.clone(),
            by,
            totals: Totals::default(),
            packets: 0,
            bytes: 0,
            reason: None,
        }
    }

    fn delivered(&mut self, packets: u64, bytes: usize) {
        self.packets += packets;
        self.bytes += bytes as u64;
        self.metrics.captured(packets, bytes as u64);
    }

    fn update(&mut self, totals: Totals) {
        self.metrics.capture_drops(
            "kernel",
            totals.dropped_by_kernel.saturating_sub(self.totals.dropped_by_kernel),
        );
        self.metrics.capture_drops(
            "agent",
            totals.dropped_by_agent.saturating_sub(self.totals.dropped_by_agent),
        );
        self.totals = totals;
    }

    fn ended(&mut self, reason: v1::CaptureEnd) {
        self.reason = Some(reason);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let Totals { received, dropped_by_kernel, dropped_by_agent, .. } = self.totals;
        let counts = [
            ("received", received),
            ("packets", self.packets),
            ("bytes", self.bytes),
            ("dropped_by_kernel", dropped_by_kernel),
            ("dropped_by_agent", dropped_by_agent),
        ];
        for (name, count) in counts {
            self.notes.add(name, count);
        }
        let reason = self
            .reason
            .map_or("", |reason| reason.as_str_name().trim_start_matches("CAPTURE_END_"));
        if !reason.is_empty() {
            self.notes.add("end", reason);
        }
        let message = format!(
            "the capture of {} has ended: {} packets, {} bytes",
            self.by, self.packets, self.bytes
        );
        self.events.tell(&self.pod, &self.container, Happened::CaptureEnded, &message);
    }
}
