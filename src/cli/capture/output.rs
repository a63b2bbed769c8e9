//! Where packets go: a file, lines, JSON. One thread, which may block for as long as a disk or a
//! reader of a pipe likes.

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

/// How long lines of one pod wait for earlier ones of another.
const LINES_WAIT: Duration = Duration::from_millis(10);
/// The same for what only goes to a file.
const FILE_WAITS: Duration = Duration::from_millis(50);

/// What goes where.
pub(super) struct Output {
    pub(super) lines: Option<Lines>,
    pub(super) file: Option<Savefiles>,
    pub(super) sources: usize,
    /// Ends after so many packets.
    pub(super) count: Option<u64>,
    /// Told when that many have come, or when nobody reads the output any more.
    pub(super) stop: watch::Sender<Stop>,
    pub(super) progress: Arc<Progress>,
}

/// What was written so far, for those who watch.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Packets of each pod.
    pub(super) packets: Vec<u64>,
    /// Packets of each pod that came after the last one that was wanted.
    pub(super) beyond: Vec<u64>,
    /// Why it ended before its time: none for a reader that has closed its end.
    pub(super) failed: Option<io::Error>,
    /// What was wrong with a pod's stream.
    pub(super) malformed: Option<pcapng::Error>,
    pub(super) closed: bool,
}

impl Output {
    /// Starts the thread, which ends when nothing more can come or be written.
    pub(super) fn start(self, items: Receiver<Item>) -> io::Result<oneshot::Receiver<Written>> {
        let (done, written) = oneshot::channel();
        thread::Builder::new().name("capture-output".to_owned()).spawn(move || {
            // Where nobody waits any more nobody wants to know.
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
    /// Only where there are several pods.
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

    /// Writes blocks of one pod that hold so many packets: of one pod alone as many as came at
    /// once, else one block.
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

/// The time of a packet, as agents write it: nanoseconds, the upper half first.
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
