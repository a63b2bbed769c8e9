//! stdout for bulk output. Bytes are buffered, unless a terminal shows them.

use std::io::{self, IsTerminal, Write};

/// How much is collected before it is written, in bytes: a pipe's default capacity.
const CAPACITY: usize = 64 * 1024;

/// Buffered stdout. What is not flushed is lost.
pub(super) struct Out {
    to: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    is_terminal: bool,
}

impl Out {
    pub(super) fn new() -> Self {
        Self { to: raw(), buffer: Vec::new(), is_terminal: io::stdout().is_terminal() }
    }

    /// Writes bytes now, or with a later write or flush.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= CAPACITY {
            self.flush()?;
            return self.to.write_all(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CAPACITY || self.is_terminal { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer)?;
        self.buffer.clear();
        self.to.flush()
    }
}

/// stdout without the standard library's line buffer, which searches everything it is given for
/// its last newline.
#[cfg(unix)]
fn raw() -> Box<dyn Write + Send> {
    use std::os::fd::AsFd;
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => Box::new(std::fs::File::from(fd)),
        Err(_) => Box::new(io::stdout()),
    }
}

#[cfg(not(unix))]
fn raw() -> Box<dyn Write + Send> {
    Box::new(io::stdout())
}
