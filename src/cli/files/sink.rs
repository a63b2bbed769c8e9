//! Writes what a connection brings on a thread of its own, so that the connection and the disk do
//! not wait for each other.

use std::{
    fs::File,
    io::{self, Write},
};

use aws_lc_rs::digest::Context as Hash;
use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};

/// How many parts may wait to be written. A part is a message of at most 1 MiB.
const MAX_WAITING: usize = 16;

/// A file or stdout that a thread writes to.
pub(super) struct Sink {
    parts: mpsc::Sender<Bytes>,
    writing: JoinHandle<(Written, io::Result<()>)>,
}

/// What a sink has written when it ends.
pub(super) struct Written {
    pub(super) bytes: u64,
    /// The checksum that the sink started with, continued over these bytes.
    pub(super) sha256: Option<Hash>,
    /// The file that the sink was given, positioned behind these bytes.
    pub(super) file: Option<File>,
}

enum Destination {
    Stdout,
    File(File),
}

/// Starts writing to stdout. `sha256` is the checksum to continue.
pub(super) fn stdout(sha256: Option<Hash>) -> Sink {
    start(Destination::Stdout, sha256)
}

/// Starts writing to a file at its position. `sha256` is the checksum of what stands before it.
pub(super) fn file(file: File, sha256: Option<Hash>) -> Sink {
    start(Destination::File(file), sha256)
}

fn start(mut destination: Destination, mut sha256: Option<Hash>) -> Sink {
    let (parts, mut received) = mpsc::channel::<Bytes>(MAX_WAITING);
    let writing = tokio::task::spawn_blocking(move || {
        let mut bytes = 0;
        let mut out = super::out::Out::new();
        let mut done = Ok(());
        while let Some(part) = received.blocking_recv() {
            done = match &mut destination {
                Destination::Stdout => out.write(&part),
                Destination::File(file) => file.write_all(&part),
            };
            // The closed channel stops the sender; `finish` returns the reason.
            if done.is_err() {
                break;
            }
            if let Some(sha256) = &mut sha256 {
                sha256.update(&part);
            }
            bytes += part.len() as u64;
        }
        let file = match destination {
            Destination::Stdout => {
                done = done.and_then(|()| out.flush());
                None
            }
            Destination::File(file) => Some(file),
        };
        (Written { bytes, sha256, file }, done)
    });
    Sink { parts, writing }
}

impl Sink {
    /// Queues a part. Waits while the queue is full.
    ///
    /// # Errors
    /// Fails if an earlier part could not be written; [`Sink::finish`] returns the reason.
    pub(super) async fn write(&mut self, part: Bytes) -> io::Result<()> {
        self.parts.send(part).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The first error of writing.
    pub(super) async fn finish(self) -> io::Result<Written> {
        let (written, done) = self.end().await?;
        done.map(|()| written)
    }

    /// Waits until writing has ended, well or not. What was written before an error is returned
    /// with it, because a download can continue from there.
    pub(super) async fn end(self) -> io::Result<(Written, io::Result<()>)> {
        drop(self.parts);
        self.writing.await.map_err(io::Error::other)
    }
}
