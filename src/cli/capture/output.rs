//! Writes packets to a file, as lines or as JSON. It uses a thread of its own, which may block on a
//! disk or on the reader of a pipe.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::{
    error::PutError,
    savefile::{self, Savefiles},
    stream::{Item, Stop},
    text::Lines,
    window::Window,
};
use crate::domain::pcapng::{self, Block, Order};

/// How long the lines of one pod wait for earlier ones of another.
const LINES_WAIT: Duration = Duration::from_millis(10);
/// How long packets wait that go only to a file.
const FILE_WAITS: Duration = Duration::from_millis(50);

/// The destinations of the packets.
pub(super) struct Output {
    pub(super) lines: Option<Lines>,
    pub(super) file: Option<Savefiles>,
    pub(super) sources: usize,
    /// Ends after this many packets.
    pub(super) count: Option<u64>,
    /// Set when that many packets have come, or when nobody reads the output.
    pub(super) stop: watch::Sender<Stop>,
    pub(super) progress: Arc<Progress>,
}

/// What was written so far, for the progress line.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// The totals of the output.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Packets of each pod that were written or printed.
    pub(super) packets: Vec<u64>,
    /// Packets of each pod that came after the last wanted one.
    pub(super) beyond: Vec<u64>,
    /// The error that ended the output. A reader that closed the pipe is no error.
    pub(super) failed: Option<io::Error>,
    /// The first error in a pod's stream.
    pub(super) malformed: Option<pcapng::Error>,
    pub(super) closed: bool,
}

impl Output {
    /// Starts the thread. It ends when all streams have ended or the output fails.
    pub(super) fn start(self, items: Receiver<Item>) -> io::Result<oneshot::Receiver<Written>> {
        let (done, written) = oneshot::channel();
        thread::Builder::new().name("capture-output".to_owned()).spawn(move || {
            // The receiver is gone when nobody waits for the totals.
            let _ = done.send(self.run(&items));
        })?;
        Ok(written)
    }

    fn run(self, items: &Receiver<Item>) -> Written {
        let stop = self.stop.clone();
        let mut written = Written {
            packets: vec![0; self.sources],
            beyond: vec![0; self.sources],
            ..Written::default()
        };
        let ended = Sink::new(self).and_then(|mut sink| sink.run(items, &mut written));
        match ended {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => written.closed = true,
            Err(error) => written.failed = Some(error),
        }
        if written.closed || written.failed.is_some() {
            stop.send_replace(Stop::Now);
        }
        written
    }
}

struct Sink {
    lines: Option<Lines>,
    file: Option<savefile::Writer>,
    /// `None` for a single pod, whose blocks need no ordering.
    window: Option<Window>,
    /// The byte order of each pod's stream.
    orders: Vec<Option<Order>>,
    count: Option<u64>,
    stop: watch::Sender<Stop>,
    progress: Arc<Progress>,
}

impl Sink {
    fn new(output: Output) -> io::Result<Self> {
        let several = output.sources > 1;
        let wait = if output.lines.is_some() { LINES_WAIT } else { FILE_WAITS };
        let file = output
            .file
            .as_ref()
            .map(|files| savefile::Writer::create(files, output.sources))
            .transpose()?;
        Ok(Self {
            lines: output.lines,
            file,
            window: several.then(|| Window::new(output.sources, wait)),
            orders: vec![None; output.sources],
            count: output.count,
            stop: output.stop,
            progress: output.progress,
        })
    }

    fn run(&mut self, items: &Receiver<Item>, written: &mut Written) -> io::Result<()> {
        loop {
            let item = match items.try_recv() {
                Ok(item) => Ok(item),
                Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {
                    self.flush()?;
                    match self.window.as_ref().and_then(Window::due) {
                        Some(due) => {
                            items.recv_timeout(due.saturating_duration_since(Instant::now()))
                        }
                        None => items.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    }
                }
            };
            let now = Instant::now();
            match item {
                Ok(item) => self.take(now, item, written)?,
                Err(RecvTimeoutError::Timeout) => self.pass_on(Some(now), written)?,
                Err(RecvTimeoutError::Disconnected) => {
                    self.pass_on(None, written)?;
                    return self.flush();
                }
            }
        }
    }

    fn take(&mut self, now: Instant, item: Item, written: &mut Written) -> io::Result<()> {
        let Item { source, blocks, packets, .. } = item;
        let Some(window) = &mut self.window else {
            return self.put(source, &blocks, packets, written);
        };
        let Some(order) = self.orders.get_mut(source) else { return Ok(()) };
        let mut rest = blocks;
        while let Ok(Some(block)) = Block::first(&rest, order) {
            let time = time(&block);
            let block = rest.split_to(block.bytes.len());
            window.push(now, source, time, block);
        }
        self.pass_on(Some(now), written)
    }

    fn pass_on(&mut self, now: Option<Instant>, written: &mut Written) -> io::Result<()> {
        while let Some(first) = self.window.as_mut().and_then(|window| window.pop(now)) {
            let order = self.orders.get_mut(first.source);
            let block = order.and_then(|order| Block::first(&first.block, order).ok().flatten());
            let packets = block.map_or(0, |block| u64::from(block.is_packet()));
            self.put(first.source, &first.block, packets, written)?;
        }
        Ok(())
    }

    /// Writes blocks of one pod that hold this many packets. For a single pod they are all that
    /// came at once; for several it is one block.
    fn put(
        &mut self,
        source: usize,
        blocks: &Bytes,
        packets: u64,
        written: &mut Written,
    ) -> io::Result<()> {
        let so_far: u64 = written.packets.iter().sum();
        let enough = self.count.is_some_and(|count| packets > 0 && so_far >= count);
        let counted = if enough { &mut written.beyond } else { &mut written.packets };
        if let Some(counted) = counted.get_mut(source) {
            *counted += packets;
        }
        if enough {
            return Ok(());
        }
        let mut put = || -> Result<(), PutError> {
            if let Some(file) = &mut self.file {
                let bytes = file.put(source, blocks)?;
                self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            if let Some(lines) = &mut self.lines {
                lines.put(source, blocks)?;
            }
            Ok(())
        };
        match put() {
            Ok(()) => {}
            Err(PutError::Output(error)) => return Err(error),
            Err(PutError::Stream(error)) => written.malformed = Some(error),
        }
        self.progress.packets.fetch_add(packets, Ordering::Relaxed);
        if self.count.is_some_and(|count| so_far + packets >= count) {
            self.stop.send_if_modified(|stop| {
                let was = *stop;
                *stop = was.max(Stop::Soon);
                was != *stop
            });
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.flush()?;
        }
        match &mut self.lines {
            Some(lines) => lines.flush(),
            None => Ok(()),
        }
    }
}

/// The time of a packet as agents write it: in nanoseconds, with the upper half first.
fn time(block: &Block<'_>) -> Option<u64> {
    let body = block.body().get(4..12).filter(|_| block.is_packet())?;
    let half = |at: usize| {
        let bytes = *body.get(at..)?.first_chunk()?;
        Some(u64::from(match block.order {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        }))
    };
    Some(half(0)? << 32 | half(4)?)
}
