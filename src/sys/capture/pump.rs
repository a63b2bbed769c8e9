//! The thread that moves packets out of the ring: one copy each, straight into the buffer that is
//! sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt,
};
use tokio::sync::mpsc::UnboundedSender;

use super::{RING_UNIT, Tap, frame, pool::Pool};
use crate::{
    domain::{
        filter::Program,
        pcapng::write::{self, interface_statistics},
    },
    sys::SysError,
};

/// Bytes in a buffer from which on it is sent.
pub(super) const ENOUGH: usize = 128 * 1024;
/// Blocks of the ring that are worth a wake-up, where packets come so fast that none waits too long
/// for them. A wake-up costs as much as copying a block, and what is sent at once also wakes
/// whoever passes it on, and whoever receives it, only once.
const WORTHWHILE: u32 = 8;
/// At most this part of the ring may fill before a wake-up. The rest holds the packets that arrive
/// while the thread is kept from running.
const PART: usize = 4;
/// How often a resting pump checks the ring, because traffic can burst at any moment: the default
/// ring holds what a link of 50 Gbit/s brings in 10 ms.
const GLANCE: Duration = Duration::from_millis(10);
/// What is in the ring when a capture is stopped is taken out, as long as this does not take
/// longer.
const LAST: Duration = Duration::from_secs(1);
/// How often is looked whether an interface that went down is gone.
const LOOK: Duration = Duration::from_millis(100);

/// When a capture ends by itself, and how often it says how it goes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Packets after which the capture ends. 0 means never.
    pub packets: u64,
    /// Bytes of pcapng after which the capture ends. 0 means never.
    pub bytes: u64,
    /// How often statistics are sent.
    pub statistics_interval: Duration,
}

/// Figures of a capture. Received = captured + dropped by either + what is under way, which at the
/// end is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that passed the filter.
    pub received: u64,
    /// Packets in the buffers.
    pub captured: u64,
    /// Packets that found no room in the ring.
    pub dropped_by_kernel: u64,
    /// Packets that the agent took, or left, and did not hand on.
    pub dropped_by_agent: u64,
    /// Bytes of pcapng in the buffers.
    pub bytes: u64,
}

/// What the thread hands on.
#[derive(Debug)]
pub enum Event {
    /// Whole pcapng blocks, and how many packets are in them.
    Payload(Bytes, u64),
    /// How it goes.
    Statistics(Totals),
    /// The last event.
    Ended(End, Totals),
}

/// Why the thread ended.
#[derive(Debug)]
pub enum End {
    /// The limit on packets was reached.
    Packets,
    /// The limit on bytes was reached.
    Bytes,
    /// The interface is gone.
    InterfaceGone,
    /// It was stopped.
    Stopped,
    /// A system call failed that should not.
    Failed(SysError),
}

/// Stops the thread of a capture; also when dropped, then at once.
#[derive(Debug)]
pub struct Stop(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Arc<Pool>,
    stop: AtomicU8,
}

const RUN: u8 = 0;
const FINISH: u8 = 1;
const ABANDON: u8 = 2;

impl Stop {
    /// Lets nothing more in, and has what is in the ring handed on before [`Event::Ended`].
    pub fn finish(&self) {
        self.set(FINISH);
    }

    fn set(&self, how: u8) {
        self.0.stop.fetch_max(how, Ordering::Relaxed);
        self.0.pool.wake();
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.set(ABANDON);
    }
}

/// The thread, before it starts.
#[derive(Debug)]
pub struct Pump {
    tap: Tap,
    shared: Arc<Shared>,
    events: UnboundedSender<Event>,
    limits: Limits,
    started: SystemTime,
    totals: Totals,
    /// Packets taken from the ring, those included that the own filter does not want.
    taken: u64,
    unwanted: u64,
    buffer: Option<Vec<u8>>,
    /// Packets in the buffer.
    packets: u64,
    /// Full buffers, which are sent together: the first wakes the receiver, who finds the others.
    full: Vec<Event>,
    /// Blocks taken since the ring was last empty, and since when that was.
    blocks: u32,
    emptied: Instant,
    /// Until when the ring is left alone.
    rested: Instant,
    statistics_due: Instant,
    /// Whether the interface went down. It may be up again, or be gone, of which the kernel does
    /// not tell a second time.
    went_down: bool,
}

impl Pump {
    /// Starts the thread. `header` begins the file. Events are not bounded by the channel, but by
    /// the pool: each buffer allows one event more. The ring is gone soon after [`Stop`] is
    /// dropped, or nobody receives events. `permit` is what the ring was paid with: it is dropped
    /// after the ring, and before [`Event::Ended`] is sent, so that the next capture can have it.
    ///
    /// # Errors
    /// `thread` EAGAIN if there can be no more.
    pub fn start(
        tap: Tap,
        header: &[u8],
        limits: Limits,
        pool: Arc<Pool>,
        events: UnboundedSender<Event>,
        permit: impl Send + 'static,
    ) -> Result<Stop, SysError> {
        let shared = Arc::new(Shared { pool, stop: AtomicU8::new(RUN) });
        let stop = Stop(Arc::clone(&shared));
        let mut buffer = shared.pool.take();
        if let Some(buffer) = &mut buffer {
            buffer.extend(header);
        }
        let now = Instant::now();
        let pump = Self {
            tap,
            shared,
            events,
            limits,
            started: SystemTime::now(),
            totals: Totals::default(),
            taken: 0,
            unwanted: 0,
            buffer,
            packets: 0,
            full: Vec::new(),
            blocks: 0,
            emptied: now,
            rested: now,
            statistics_due: now + limits.statistics_interval,
            went_down: false,
        };
        thread::Builder::new().name("capture".into()).spawn(move || pump.run(permit)).map_err(
            |e| {
                SysError::new("thread", "capture", Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))
            },
        )?;
        Ok(stop)
    }

    fn run(mut self, permit: impl Send) {
        let ended = self.flush().and_then(|()| self.work()).and_then(|end| {
            self.conclude(&end)?;
            Ok(end)
        });
        let Self { tap, events, totals, .. } = self;
        drop(tap);
        drop(permit);
        if let Ok(end) = ended {
            let _ = events.send(Event::Ended(end, totals));
        }
    }

    /// Takes and tells the last figures.
    fn conclude(&mut self, end: &End) -> Result<(), Gone> {
        if let Err(error) = self.count() {
            tracing::debug!(%error, "the last figures of a capture are not known");
        }
        if matches!(end, End::Packets | End::Bytes) {
            // What came after the last packet is no part of the capture.
            self.totals.received = self.totals.captured + self.totals.dropped_by_kernel;
        } else {
            let known = self.totals.captured + self.totals.dropped_by_kernel;
            self.totals.dropped_by_agent = self.totals.received.saturating_sub(known);
        }
        self.tell_statistics(true)
    }

    /// Moves packets until the capture ends, and says why it ended.
    ///
    /// Each turn of the loop does the first of these that is due: it ends the capture, sends the
    /// figures, rests, copies one block, or waits in `poll`. Two ideas keep it cheap and exact.
    ///
    /// - *Resting.* A wake-up for each block costs more than the copying. After the ring was
    ///   emptied it is left alone for as long as a few blocks will take to fill at the rate of the
    ///   last ones ([`Self::rest`]), at most half of the delay that packets may have; meanwhile a
    ///   look at the ring now and then notices a burst.
    /// - *Ending in two steps.* A capture that is stopped, or whose interface is gone, first gets a
    ///   filter that lets nothing more in, and then empties the ring: what had passed the filter is
    ///   handed on, for at most [`LAST`]. The ring is empty once as many packets were taken as the
    ///   kernel says it put in. A capture that reached its limit ends at once, because what comes
    ///   after its last packet is no part of it.
    ///
    /// Without a free buffer nothing is taken: the ring fills and the kernel counts what it drops.
    fn work(&mut self) -> Result<End, Gone> {
        let mut last: Option<(End, Instant)> = None;
        loop {
            let stop = self.shared.stop.load(Ordering::Relaxed);
            if stop == ABANDON {
                return Err(Gone);
            }
            let now = Instant::now();
            let ends = match &last {
                None if stop == FINISH => Some(End::Stopped),
                None if self.went_down && self.tap.ring.is_interface_gone() => {
                    Some(End::InterfaceGone)
                }
                _ => None,
            };
            if let Some(end) = ends {
                // Nothing more comes in; what is there already is handed over when its block's time
                // is over.
                if let Err(error) = self.tap.ring.filter(&Program::everything(0)) {
                    return Ok(End::Failed(error));
                }
                last = Some((end, now + LAST));
            }
            if let Some((end, deadline)) = last.take() {
                if let Err(error) = self.count() {
                    return Ok(End::Failed(error));
                }
                if self.is_empty() || now >= deadline {
                    return Ok(end);
                }
                last = Some((end, deadline));
            }
            if now >= self.statistics_due {
                if let Err(error) = self.count() {
                    return Ok(End::Failed(error));
                }
                self.tell_statistics(false)?;
                self.statistics_due = now + self.limits.statistics_interval;
            }
            if last.is_none() && self.is_resting(now) {
                if let Err(error) = self.wait(now, false) {
                    return Ok(End::Failed(error));
                }
                continue;
            }
            match self.take_block() {
                Some(limit @ (End::Packets | End::Bytes)) => return Ok(limit),
                Some(_) => {
                    if self.is_full() {
                        self.finish_buffer();
                    }
                    continue;
                }
                None => {}
            }
            self.flush()?;
            self.rested = now + self.rest(now);
            (self.blocks, self.emptied) = (0, now);
            if let Err(error) = self.wait(now, last.is_some()) {
                return Ok(End::Failed(error));
            }
        }
    }

    /// Whether everything that passed the filter has been taken.
    fn is_empty(&self) -> bool {
        let in_ring = self.totals.received + self.unwanted - self.totals.dropped_by_kernel;
        self.taken >= in_ring
    }

    fn is_full(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| buffer.len() >= ENOUGH)
    }

    /// Whether there is a buffer to write to: the one that is being filled, or another of the pool.
    fn has_buffer(&mut self) -> bool {
        if self.buffer.is_none() {
            self.buffer = self.shared.pool.take();
        }
        self.buffer.is_some()
    }

    /// Copies the next block's packets, if there is one and a buffer for it. Returns the limit that
    /// it reached; [`End::Stopped`] is none.
    fn take_block(&mut self) -> Option<End> {
        if !self.has_buffer() {
            return None;
        }
        let buffer = self.buffer.as_mut()?;
        let (layer, snaplen) = (self.tap.source.layer, self.tap.snaplen);
        let block = self.tap.ring.block()?;
        let before = buffer.len();
        for packet in block.packets() {
            self.taken += 1;
            if !frame::put(buffer, &packet, layer, snaplen, self.tap.filter.as_ref()) {
                self.unwanted += 1;
                continue;
            }
            self.packets += 1;
            self.totals.captured += 1;
            if self.totals.captured == self.limits.packets {
                self.totals.bytes += (buffer.len() - before) as u64;
                return Some(End::Packets);
            }
            if self.limits.bytes != 0
                && self.totals.bytes + (buffer.len() - before) as u64 >= self.limits.bytes
            {
                self.totals.bytes += (buffer.len() - before) as u64;
                return Some(End::Bytes);
            }
        }
        drop(block);
        self.blocks += 1;
        self.totals.bytes += (buffer.len() - before) as u64;
        Some(End::Stopped)
    }

    /// How long the ring is left alone after it was emptied: the time in which enough blocks for a
    /// worthwhile wake-up arrive if they come as fast as the last ones did, within bounds.
    fn rest(&self, now: Instant) -> Duration {
        let took = now.duration_since(self.emptied).saturating_mul(self.worthwhile());
        took.checked_div(self.blocks).unwrap_or_default().min(self.tap.max_delay / 2)
    }

    /// Whether the ring is left alone for now.
    fn is_resting(&self, now: Instant) -> bool {
        now < self.rested && !self.tap.ring.has_blocks(self.worthwhile())
    }

    /// How many blocks are worth a wake-up.
    fn worthwhile(&self) -> u32 {
        WORTHWHILE.min(u32::try_from(self.tap.ring.size() / RING_UNIT / PART).unwrap_or(u32::MAX))
    }

    /// Waits for a packet, a buffer, the end, or what is due next.
    fn wait(&mut self, now: Instant, ending: bool) -> Result<(), SysError> {
        let mut until = self.statistics_due;
        if self.went_down {
            until = until.min(now + LOOK);
        }
        if ending {
            until = until.min(now + Duration::from_millis(2));
        }
        let rests = now < self.rested && !ending;
        if rests {
            until = until.min(self.rested).min(now + GLANCE);
        }
        let timeout = Timespec::try_from(until.saturating_duration_since(now))
            .map_err(|_| SysError::new("poll", "the ring", Errno::INVAL))?;
        // Without a buffer for them, packets may come and stay.
        let packets = !rests && self.has_buffer();
        let pool = PollFd::new(&self.shared.pool, PollFlags::IN);
        let ring =
            PollFd::new(&self.tap.ring, if packets { PollFlags::IN } else { PollFlags::empty() });
        let mut fds = [pool, ring];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(SysError::new("poll", "the ring", errno)),
        }
        let [pool, ring] = fds.map(|fd| fd.revents());
        if pool.contains(PollFlags::IN) {
            self.shared.pool.woken();
        }
        if ring.contains(PollFlags::ERR) {
            let error = sockopt::socket_error(&self.tap.ring)
                .map_err(SysError::of("getsockopt", "SO_ERROR"))?;
            match error {
                // Down, and perhaps up again soon, or gone.
                Err(Errno::NETDOWN) => self.went_down = true,
                Err(errno) => return Err(SysError::new("poll", "the packet socket", errno)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Brings the totals up to date.
    fn count(&mut self) -> Result<(), SysError> {
        let counted = self.tap.ring.statistics()?;
        self.totals.dropped_by_kernel = counted.dropped;
        // A packet that the own filter does not want has not passed the filter.
        self.totals.received = counted.received.saturating_sub(self.unwanted);
        Ok(())
    }

    /// Sends the figures, in the file and beside it, unless there is no buffer for them.
    fn tell_statistics(&mut self, last: bool) -> Result<(), Gone> {
        if !self.has_buffer() {
            return self.flush();
        }
        let Some(buffer) = self.buffer.as_mut() else { return Ok(()) };
        let now = SystemTime::now();
        let before = buffer.len();
        let statistics = write::Statistics {
            interface: 0,
            timestamp: nanoseconds(now),
            started: Some(nanoseconds(self.started)),
            ended: last.then(|| nanoseconds(now)),
            received: Some(self.totals.received),
            dropped: Some(self.totals.dropped_by_agent),
            accepted: Some(self.totals.received),
            dropped_by_os: Some(self.totals.dropped_by_kernel),
            delivered: Some(self.totals.captured),
        };
        interface_statistics(buffer, &statistics);
        self.totals.bytes += (buffer.len() - before) as u64;
        self.flush()?;
        if last { Ok(()) } else { self.send(Event::Statistics(self.totals)) }
    }

    /// Hands the buffers on.
    fn flush(&mut self) -> Result<(), Gone> {
        self.finish_buffer();
        self.full.drain(..).try_for_each(|event| self.events.send(event).map_err(|_| Gone))
    }

    fn finish_buffer(&mut self) {
        if let Some(buffer) = self.buffer.take_if(|buffer| !buffer.is_empty()) {
            let packets = std::mem::take(&mut self.packets);
            self.full.push(Event::Payload(self.shared.pool.lend(buffer), packets));
        }
    }

    fn send(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).map_err(|_| Gone)
    }
}

/// Nobody receives the events any longer.
struct Gone;

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
