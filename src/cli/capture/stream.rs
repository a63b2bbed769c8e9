//! One pod's capture: reads its agent's stream into the queue of the output.
//!
//! An interruption does not end the capture at once. The agent's figures count the packets before
//! them in the stream and the packets lost. The capture therefore ends at the next figures, so that
//! the written and the counted packets add up exactly.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{targets::PodTarget, text::Names};
use crate::{
    client::{Capture, CaptureEvent, Error, Fleet, Reason},
    domain::pcapng::{Block, Order},
    proto::v1::{
        CaptureEnded, CaptureInterface, CaptureStartRequest, CaptureStarted, CaptureStatistics,
        PodRef,
    },
};

/// How often agents send figures. This bounds how long an interruption takes.
pub(super) const STATISTICS_INTERVAL: Duration = Duration::from_millis(250);
/// How long to wait for an agent's figures after an interruption.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes that may wait for the output, over all pods. A full queue stops reading from the agents.
/// This back-pressure reaches the nodes, where the kernel counts the packets that it drops.
const ROOM: u32 = 16 * 1024 * 1024;

/// Whether captures go on. A later variant is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    No,
    /// Ends at the agent's next figures, which make the totals exact.
    Soon,
    /// Ends without waiting for figures.
    Now,
}

/// Resolves when `stop` is at least `at_least`.
pub(super) async fn stopped(stop: &mut watch::Receiver<Stop>, at_least: Stop) {
    if stop.wait_for(|stop| *stop >= at_least).await.is_err() {
        // The sender is gone, so nobody will ask for a stop.
        std::future::pending::<()>().await;
    }
}

/// A capture that has started on the agent. It writes nothing before `go`.
pub(super) struct Beginning {
    pub(super) source: usize,
    pub(super) started: CaptureStarted,
    pub(super) go: oneshot::Sender<()>,
}

/// How a pod's capture ended, with its figures.
pub(super) struct Outcome {
    pub(super) source: usize,
    /// The agent's last figures.
    pub(super) statistics: Option<CaptureStatistics>,
    /// Whether the figures came after the last packets, so that they count all of them.
    pub(super) exact: bool,
    pub(super) end: End,
}

/// Why a capture ended.
pub(super) enum End {
    /// The agent ended it, for the reason given here.
    Agent(CaptureEnded),
    /// The client stopped it, or the output is gone.
    Stopped,
    Failed(Error),
}

/// Blocks of one pod, with their share of the queue's bytes.
pub(super) struct Item {
    pub(super) source: usize,
    pub(super) blocks: Bytes,
    /// The number of packets in the blocks.
    pub(super) packets: u64,
    _room: OwnedSemaphorePermit,
}

/// The sending half of the queue to the output, bounded in bytes.
#[derive(Clone)]
pub(super) struct Queue {
    items: mpsc::Sender<Item>,
    room: Arc<Semaphore>,
}

/// The error for an output that has ended.
struct Gone;

impl Queue {
    pub(super) fn new() -> (Self, mpsc::Receiver<Item>) {
        let (items, received) = mpsc::channel();
        (Self { items, room: Arc::new(Semaphore::new(ROOM as usize)) }, received)
    }

    async fn send(&self, source: usize, blocks: Bytes, packets: u64) -> Result<(), Gone> {
        // A message that is larger than the queue waits until the queue is empty.
        let size = u32::try_from(blocks.len()).unwrap_or(ROOM).clamp(1024, ROOM);
        let room = self.room.clone().acquire_many_owned(size).await.map_err(|_| Gone)?;
        self.items.send(Item { source, blocks, packets, _room: room }).map_err(|_| Gone)
    }
}

/// The parameters of one pod's capture.
pub(super) struct Stream {
    pub(super) source: usize,
    pub(super) fleet: Fleet,
    pub(super) target: PodTarget,
    pub(super) request: CaptureStartRequest,
    /// The number of captures that run at the same time.
    pub(super) streams: usize,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) beginnings: tokio::sync::mpsc::UnboundedSender<Beginning>,
    pub(super) queue: Queue,
    /// Where to store the names of the pod's interfaces, if the output shows them.
    pub(super) names: Option<Names>,
    /// Packets lost so far for each pod, for the progress line.
    pub(super) lost: Arc<Vec<AtomicU64>>,
}

impl Stream {
    /// Captures until the end.
    pub(super) async fn follow(self) -> Outcome {
        let source = self.source;
        let PodTarget { namespace, pod } = self.target.clone();
        // A capture that never began missed nothing, so its figures are exact.
        let ended = |end| Outcome { source, statistics: None, exact: true, end };
        let mut stop = self.stop.clone();
        let begun = tokio::select! {
            biased;
            () = stopped(&mut stop, Stop::Soon) => return ended(End::Stopped),
            begun = self.begin() => begun,
        };
        let outcome = match begun {
            // Runs in a task of its own, so that many captures can use all threads.
            Ok(capture) => tokio::spawn(self.read(capture)).await.unwrap_or_else(|error| {
                ended(End::Failed(Error::new(
                    Reason::Protocol,
                    format!("reading the capture failed: {error}"),
                )))
            }),
            Err(error) => ended(End::Failed(error)),
        };
        match outcome.end {
            End::Failed(error) => Outcome {
                end: End::Failed(error.about("namespace", namespace).about("pod", pod)),
                ..outcome
            },
            _ => outcome,
        }
    }

    async fn begin(&self) -> Result<Capture, Error> {
        let PodTarget { namespace, pod } = &self.target;
        let place = self.fleet.place_of_pod(namespace, pod).await?;
        let agent = self.fleet.connect_bulk(&place, self.streams).await?;
        let named = PodRef { namespace: namespace.clone(), name: pod.clone(), uid: String::new() };
        let capture =
            agent.capture(CaptureStartRequest { pod: Some(named), ..self.request.clone() });
        let Some(names) = &self.names else { return capture.await };
        let (capture, interfaces) =
            tokio::join!(capture, agent.interfaces(namespace, pod, &self.request.container));
        match interfaces {
            Ok(listed) => {
                let name =
                    |i: CaptureInterface| (i.index, String::from_utf8_lossy(&i.name).into_owned());
                // This cannot be set yet, because each pod has one stream.
                let _ = names.set(listed.interfaces.into_iter().map(name).collect());
            }
            Err(error) => {
                tracing::debug!(%error, "the names of the pod's interfaces are not known");
            }
        }
        capture
    }

    async fn read(mut self, capture: Capture) -> Outcome {
        let mut outcome =
            Outcome { source: self.source, statistics: None, exact: false, end: End::Stopped };
        outcome.end = self.events(capture, &mut outcome).await;
        outcome
    }

    /// Passes the agent's events to the output until the end.
    async fn events(&mut self, mut capture: Capture, outcome: &mut Outcome) -> End {
        let (go, going) = oneshot::channel();
        let beginning = Beginning { source: self.source, started: capture.started().clone(), go };
        // Ends the capture if nobody receives the announcement.
        if self.beginnings.send(beginning).is_err() || going.await.is_err() {
            return End::Stopped;
        }
        let mut order = None;
        let mut stop = self.stop.clone();
        loop {
            let ending = *stop.borrow() >= Stop::Soon;
            let event = tokio::select! {
                biased;
                () = stopped(&mut stop, Stop::Now) => return End::Stopped,
                event = capture.next() => event,
                () = stopped(&mut self.stop, Stop::Soon), if !ending => continue,
                () = tokio::time::sleep(LAST_WORDS), if ending => return End::Stopped,
            };
            match event {
                Ok(CaptureEvent::Packets(blocks)) => {
                    let packets = match packets(&blocks, &mut order) {
                        Ok(packets) => packets,
                        Err(error) => return End::Failed(error),
                    };
                    outcome.exact = false;
                    tokio::select! {
                        biased;
                        sent = self.queue.send(self.source, blocks, packets) => {
                            if sent.is_err() {
                                return End::Stopped;
                            }
                        }
                        () = stopped(&mut stop, Stop::Now) => return End::Stopped,
                    }
                }
                Ok(CaptureEvent::Statistics(statistics)) => {
                    self.note(outcome, statistics);
                    if ending {
                        return End::Stopped;
                    }
                }
                Ok(CaptureEvent::Ended(ended)) => {
                    if let Some(statistics) = ended.statistics {
                        self.note(outcome, statistics);
                    }
                    return End::Agent(ended);
                }
                Err(error) => {
                    outcome.exact = false;
                    return End::Failed(error);
                }
            }
        }
    }

    fn note(&self, outcome: &mut Outcome, statistics: CaptureStatistics) {
        let lost = statistics.dropped_by_kernel.saturating_add(statistics.dropped_by_agent);
        if let Some(figure) = self.lost.get(self.source) {
            figure.store(lost, Ordering::Relaxed);
        }
        outcome.statistics = Some(statistics);
        outcome.exact = true;
    }
}

/// Counts the packets in these blocks.
fn packets(blocks: &Bytes, order: &mut Option<Order>) -> Result<u64, Error> {
    let malformed = |what: &str| {
        Error::new(Reason::Protocol, format!("the agent sent malformed pcapng: {what}"))
    };
    let (mut rest, mut packets) = (&blocks[..], 0);
    while !rest.is_empty() {
        let block = Block::first(rest, order).map_err(malformed)?;
        let block = block.ok_or_else(|| malformed("a message ends inside a block"))?;
        packets += u64::from(block.is_packet());
        rest = rest.get(block.bytes.len()..).unwrap_or_default();
    }
    Ok(packets)
}
