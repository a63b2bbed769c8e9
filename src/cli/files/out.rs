//! stdout for much: bytes, buffered as long as nobody waits for them.

use std::io::{self, IsTerminal, Write};

/// How much is collected before it is written, in bytes.
const ENOUGH: usize = 64 * 1024;

/// stdout.
pub(super) struct Out {
    to: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    is_terminal: bool,
}

impl Out {
    pub(super) fn new() -> Self {
        Self { to: raw(), buffer: Vec::new(), is_terminal: io::stdout().is_terminal() }
    }

    /// Writes all of it now or later.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= ENOUGH {
            self.flush()?;
            return self.to.write_all(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        // Somebody watches a terminal.
        if self.buffer.len() >= ENOUGH || self.is_terminal { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer)?;
        self.buffer.clear();
        self.to.flush()
    }
}

/// stdout without the standard library's buffer, which looks for the last newline in all that it is given.
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
