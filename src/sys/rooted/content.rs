//! Reading a regular file.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::io::{Errno, pread};

use super::{
    entry::{self, DirEntry},
    failed,
};
use crate::domain::Result;

/// Bytes that a search for lines looks at in one step.
const BLOCK: u64 = 64 * 1024;

/// A regular file that is open for reading.
#[derive(Debug)]
pub struct Content {
    fd: OwnedFd,
    entry: DirEntry,
}

/// A part of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The bytes.
    pub data: Vec<u8>,
    /// Whether the file ends behind them.
    pub at_end: bool,
}

impl Content {
    pub(super) fn new(fd: OwnedFd, entry: DirEntry) -> Self {
        Self { fd, entry }
    }

    /// What the file was when it was opened.
    pub fn entry(&self) -> &DirEntry {
        &self.entry
    }

    /// What the file is now.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED.
    pub fn current(&self) -> Result<DirEntry> {
        entry::describe(&self.fd, &self.entry.path).map(|(entry, _)| entry)
    }

    /// Reads at most `length` bytes from `offset`; fewer at the end of the file, and once it is
    /// `until`: a FUSE may serve a file byte by byte, as slowly as it likes. The size that the file
    /// system claims plays no part.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED.
    pub fn read(&self, offset: u64, length: usize, until: Instant) -> Result<Part> {
        let mut data = Vec::with_capacity(length);
        while data.len() < length {
            let at = offset.saturating_add(data.len() as u64);
            match pread(&self.fd, rustix::buffer::spare_capacity(&mut data), at) {
                // The last two: beyond the largest offset that there can be.
                Ok(0) | Err(Errno::INVAL | Errno::OVERFLOW) => {
                    return Ok(Part { data, at_end: true });
                }
                Ok(_) => {}
                // EINTR, too: no signal interrupts reading a file, but a FUSE may claim so for ever.
                Err(errno) => return Err(failed("pread", &self.entry.path, errno)),
            }
            if Instant::now() >= until {
                break;
            }
        }
        Ok(Part { data, at_end: false })
    }
}

/// The search for where a file's last lines begin, block by block from its end.
#[derive(Debug)]
pub struct LastLines {
    /// Everything from this offset on was searched.
    at: u64,
    end: u64,
    /// Ends of lines that are still to be found.
    left: u64,
    /// The beginning of the block before `at`, as far as it was read.
    block: Vec<u8>,
}

impl LastLines {
    /// Searches for the last `lines` lines of a file that ends at `end`. A last line without a
    /// newline counts, as it does for `tail`.
    pub fn new(end: u64, lines: u32) -> Self {
        Self { at: end, end, left: u64::from(lines), block: Vec::new() }
    }

    /// Searches for at most `time`. Returns the offset at which the lines begin, once found.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED.
    pub fn search(&mut self, content: &Content, time: Duration) -> Result<Option<u64>> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.left == 0 || self.at == 0 {
                return Ok(Some(self.at));
            }
            let start = (self.at - 1) / BLOCK * BLOCK;
            let length = usize::try_from(self.at - start).unwrap_or_default();
            let offset = start.saturating_add(self.block.len() as u64);
            let rest = length.saturating_sub(self.block.len());
            let part = content.read(offset, rest, until)?;
            self.block.extend(part.data);
            if self.block.len() < length && !part.at_end {
                continue;
            }
            let block = std::mem::take(&mut self.block);
            for (i, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let behind = start.saturating_add(i as u64).saturating_add(1);
                // A newline at the very end ends the last line; no line begins behind it.
                if behind == self.end {
                    continue;
                }
                self.left -= 1;
                if self.left == 0 {
                    return Ok(Some(behind));
                }
            }
            self.at = start;
        }
        Ok(None)
    }

    /// How many bytes were searched.
    pub fn bytes(&self) -> u64 {
        self.end - self.at
    }
}
