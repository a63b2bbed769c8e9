//! Where much is written: a thread of its own that writes what the connection brings, so that neither waits for the other.

use std::{
    fs::File,
    io::{self, Write},
};

use aws_lc_rs::digest::Context as Hash;
use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};

/// Parts that wait to be written: at most so many messages of 1 MiB.
const WAITING: usize = 16;

/// What is written to.
pub(super) struct Sink {
    parts: mpsc::Sender<Bytes>,
    writing: JoinHandle<(Written, io::Result<()>)>,
}

/// What was written.
pub(super) struct Written {
    /// So many bytes.
    pub(super) bytes: u64,
    /// The SHA-256 so far, if there was one to begin with.
    pub(super) sha256: Option<Hash>,
    /// The file again.
    pub(super) file: Option<File>,
}

enum To {
    Stdout,
    File(File),
}

/// To stdout.
pub(super) fn stdout(sha256: Option<Hash>) -> Sink {
    start(To::Stdout, sha256)
}

/// To a file, where it stands. `sha256`: of what the file holds before that.
pub(super) fn file(file: File, sha256: Option<Hash>) -> Sink {
    start(To::File(file), sha256)
}

fn start(mut to: To, mut sha256: Option<Hash>) -> Sink {
    let (parts, mut received) = mpsc::channel::<Bytes>(WAITING);
    let writing = tokio::task::spawn_blocking(move || {
        let mut bytes = 0;
        let mut out = super::out::Out::new();
        let mut done = Ok(());
        while let Some(part) = received.blocking_recv() {
            done = match &mut to {
                To::Stdout => out.write(&part),
                To::File(file) => file.write_all(&part),
            };
            // Whoever writes on finds the channel closed.
            if done.is_err() {
                break;
            }
            if let Some(sha256) = &mut sha256 {
                sha256.update(&part);
            }
            bytes += part.len() as u64;
        }
        let file = match to {
            To::Stdout => {
                done = done.and_then(|()| out.flush());
                None
            }
            To::File(file) => Some(file),
        };
        (Written { bytes, sha256, file }, done)
    });
    Sink { parts, writing }
}

impl Sink {
    /// Hands over a part, and waits while too many wait.
    ///
    /// # Errors
    /// If an earlier part could not be written; [`Sink::finish`] says why.
    pub(super) async fn write(&mut self, part: Bytes) -> io::Result<()> {
        self.parts.send(part).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) async fn finish(self) -> io::Result<Written> {
        let (written, done) = self.end().await?;
        done.map(|()| written)
    }

    /// Waits until what was handed over is written, or could not be.
    pub(super) async fn end(self) -> io::Result<(Written, io::Result<()>)> {
        drop(self.parts);
        self.writing.await.map_err(io::Error::other)
    }
}
