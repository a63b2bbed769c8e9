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

/// Bytes that are looked at at a time in search of lines.
const BLOCK: u64 = 64 * 1024;

/// A regular file that is open for reading.
#[derive(Debug)]
pub struct Content {
    fd: OwnedFd,
    entry: DirEntry,
}

impl Content {
    pub(super) fn new(fd: OwnedFd, entry: DirEntry) -> Self {
        Self { fd, entry }
    }

    /// What it was when it was opened.
    pub fn entry(&self) -> &DirEntry {
        &self.entry
    }

    /// What it is now.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED.
    pub fn current(&self) -> Result<DirEntry> {
        entry::describe(&self.fd, &self.entry.path).map(|(entry, _)| entry)
    }

    /// Reads at most `length` bytes from `offset`; fewer only at the end. What the size is said to be does not matter.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut data = Vec::with_capacity(length);
        while data.len() < length {
            let at = offset.saturating_add(data.len() as u64);
            match pread(&self.fd, rustix::buffer::spare_capacity(&mut data), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                // Behind the largest offset that there can be.
                Err(Errno::INVAL | Errno::OVERFLOW) => break,
                Err(errno) => return Err(failed("pread", &self.entry.path, errno)),
            }
        }
        Ok(data)
    }
}

/// The search for the beginning of a file's last lines, from its end.
#[derive(Debug)]
pub struct LastLines {
    /// Everything from here on was looked at.
    at: u64,
    end: u64,
    /// Ends of lines that are still to be found.
    left: u64,
}

impl LastLines {
    /// Of a file that ends at `end`, so many lines. One that does not end with a newline counts, as it does for `tail`.
    pub fn new(end: u64, lines: u32) -> Self {
        Self { at: end, end, left: u64::from(lines) }
    }

    /// Goes on for so long. Returns where the lines begin, once that is found.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED.
    pub fn search(&mut self, content: &Content, time: Duration) -> Result<Option<u64>> {
        let began = Instant::now();
        while began.elapsed() < time {
            if self.left == 0 || self.at == 0 {
                return Ok(Some(self.at));
            }
            let start = (self.at - 1) / BLOCK * BLOCK;
            let length = usize::try_from(self.at - start).unwrap_or_default();
            let block = content.read(start, length)?;
            for (i, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let behind = start.saturating_add(i as u64).saturating_add(1);
                // The newline at the very end ends the last line and begins none.
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

    /// How many bytes were looked at.
    pub fn bytes(&self) -> u64 {
        self.end - self.at
    }
}
