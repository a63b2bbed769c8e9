//! Reading a file: a range of it, or its growing end as `tail -F` does.
//!
//! A followed file is polled, every 50 ms while it grows and once a second while it does not.
//! Polling works alike on every file system, over the network, for layers of an overlay and for
//! names that do not exist, and takes none of the node's inotify instances.
//!
//! When another file takes the name, the old one is read on until the new one holds something, and
//! then to its end. By then the writer has opened the new one, so nothing of the old one is missed.
//! Two changes go unnoticed: a file that is rotated twice between two polls, and a file that is
//! truncated and written beyond its old end between two polls.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Root, threads::Held};
use crate::{
    agent::listen::budget::{self, Allowance},
    domain::{Error, Reason, Result},
    sys::rooted::{
        RootedDir,
        content::{Content, LastLines, Part},
        entry::DirEntry,
    },
};

/// Bytes in one message of content.
pub const CHUNK: usize = 256 << 10;
/// Messages that one step reads at most.
const BATCH: usize = 2;
/// How long a step may take where the file system is slow.
const STEP: Duration = Duration::from_millis(200);
/// How long a followed file rests between two polls: at first after it grew, and at most.
const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(1);

/// A request to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Path of the file.
    pub path: Vec<u8>,
    /// Where to begin.
    pub begin: Begin,
    /// Bytes that are wanted. None: all.
    pub length: Option<u64>,
    /// Bytes that may be read at most.
    pub limit: u64,
    /// Whether to go on at the end, as `tail -F` does.
    pub follow: bool,
    /// The [`version`] that the file must still have. Empty: any.
    pub version: Vec<u8>,
}

/// Where a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// This many bytes from the start.
    Start(u64),
    /// This many bytes before the end.
    End(u64),
    /// This many lines before the end.
    Lines(u32),
}

/// A step of a read.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Content.
    Data(Bytes),
    /// Something happened to the file; content after it begins at the offset.
    Change(Change, u64),
    /// The read is over.
    End(End),
}

/// What happened to a followed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is shorter than what was already read.
    Truncated,
    /// Another file took its name.
    Replaced,
    /// No file has its name at present.
    Missing,
}

/// Why a read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// At the end of the file.
    EndOfFile,
    /// The length that was asked for was read.
    Length,
    /// The limit of the agent was reached.
    Limit,
    /// The container ended while its file was followed.
    ContainerEnded,
}

/// A file that is being read.
#[derive(Debug)]
pub struct Reader<'r> {
    root: &'r Root,
    /// The file as it was when it was opened.
    pub entry: DirEntry,
    /// Where the content begins.
    pub offset: u64,
    /// How many bytes were read up to now.
    pub bytes: u64,
    length: Option<u64>,
    limit: u64,
    follow: bool,
    wait: Duration,
    /// None once the read is over, or the file was lost with a stuck thread.
    file: Option<Held<Followed>>,
    /// Where the bytes of a batch come from until the client has taken them.
    memory: Allowance,
}

/// An open file, and the name it is followed by.
#[derive(Debug)]
struct Followed {
    path: Vec<u8>,
    content: Content,
    offset: u64,
    follow: bool,
    missing: bool,
}

/// Identifies the state of a file: device, inode, size, and the time of its last change. A resumed
/// download compares it.
pub fn version(entry: &DirEntry) -> Vec<u8> {
    let time = entry.modified_at;
    let parts = [
        entry.device,
        entry.inode,
        entry.size,
        time.seconds.cast_unsigned(),
        u64::from(time.nanos),
    ];
    parts.into_iter().flat_map(u64::to_be_bytes).collect()
}

impl Root {
    /// Opens a file and finds where the read begins.
    ///
    /// # Errors
    /// NOT_A_FILE, FILE_CHANGED, and those of [`Root::stat`].
    pub async fn read(&self, reading: Reading, memory: Allowance) -> Result<Reader<'_>> {
        let Reading { path, begin, length, limit, follow, version: wanted } = reading;
        let mut file = self
            .open(move |root| {
                let content = root.resolve(&path, true)?.open(root)?;
                Ok(Followed { path, content, offset: 0, follow, missing: false })
            })
            .await?;
        let entry = file.with(|file| Ok(file.content.entry().clone()))?;
        if !wanted.is_empty() && wanted != version(&entry) {
            return Err(Error::new(Reason::FileChanged, "the file has changed since")
                .container(&self.container));
        }
        let offset = match begin {
            Begin::Start(offset) => offset,
            Begin::End(bytes) => entry.size.saturating_sub(bytes),
            Begin::Lines(lines) => {
                let mut search = LastLines::new(entry.size, lines);
                loop {
                    let step = move |_: &_| {
                        let found = file.with(|file| search.search(&file.content, STEP))?;
                        Ok((file, search, found))
                    };
                    let found;
                    (file, search, found) = self.run(step).await?;
                    match found {
                        Some(offset) => break offset,
                        None if search.bytes() >= limit => {
                            let message =
                                format!("the last {lines} lines take more than {limit} bytes");
                            return Err(Error::invalid("tail_lines", message));
                        }
                        None => {}
                    }
                }
            }
        };
        file.with(|file| {
            file.offset = offset;
            Ok(())
        })?;
        let file = Some(file);
        Ok(Reader {
            root: self,
            entry,
            offset,
            bytes: 0,
            length,
            limit,
            follow,
            wait: SOON,
            file,
            memory,
        })
    }
}

impl Reader<'_> {
    /// The next events, at least one. None after the end. Waits for more if the file is followed.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED and those of [`Root::run`].
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>> {
        loop {
            let Some(mut file) = self.file.take() else { return Ok(None) };
            let left = self.length.unwrap_or(u64::MAX).min(self.limit).saturating_sub(self.bytes);
            if left == 0 {
                let whole = self.length.is_some_and(|length| self.bytes >= length);
                return Ok(Some(vec![Event::End(if whole { End::Length } else { End::Limit })]));
            }
            // Asked before the file is read, so that what the container wrote last is read, too.
            let alive = self.root.is_alive();
            let batch = usize::try_from(left).unwrap_or(usize::MAX).min(BATCH * CHUNK);
            let held = Arc::new(self.memory.clone().take(batch).await);
            let step = move |root: &Arc<RootedDir>| {
                let mut events = file.with(|file| file.next(root, left, alive))?;
                for event in &mut events {
                    if let Event::Data(data) = event {
                        *data = budget::keep(std::mem::take(data), Arc::clone(&held));
                    }
                }
                Ok((file, events))
            };
            let (file, mut events) = if self.follow {
                self.root.run_past_end(step).await?
            } else {
                self.root.run(step).await?
            };
            let length = |event: &Event| if let Event::Data(data) = event { data.len() } else { 0 };
            let bytes: usize = events.iter().map(length).sum();
            self.bytes = self.bytes.saturating_add(bytes as u64);
            if events.is_empty() && !alive {
                events.push(Event::End(End::ContainerEnded));
            } else if !matches!(events.last(), Some(Event::End(_))) {
                self.file = Some(file);
            }
            if !events.is_empty() {
                self.wait = SOON;
                return Ok(Some(events));
            }
            tokio::time::sleep(self.wait).await;
            self.wait = self.wait.saturating_mul(2).min(LATE);
        }
    }
}

impl Followed {
    /// The next events. Empty if nothing happened to a followed file, or nothing came in time.
    fn next(&mut self, root: &RootedDir, left: u64, alive: bool) -> Result<Vec<Event>> {
        let (mut events, at_end) = self.read(left)?;
        if at_end && !self.follow {
            events.push(Event::End(End::EndOfFile));
        } else if at_end
            && events.is_empty()
            && let Some(change) = self.look(root, alive)?
        {
            events.push(Event::Change(change, self.offset));
        }
        Ok(events)
    }

    /// What the file holds beyond the offset, at most `left` bytes, and whether that was all.
    fn read(&mut self, mut left: u64) -> Result<(Vec<Event>, bool)> {
        let until = Instant::now() + STEP;
        let mut events = Vec::new();
        while events.len() < BATCH && left > 0 && Instant::now() < until {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let Part { data, at_end } = self.content.read(self.offset, want, until)?;
            let length = data.len() as u64;
            self.offset = self.offset.saturating_add(length);
            left = left.saturating_sub(length);
            if !data.is_empty() {
                events.push(Event::Data(data.into()));
            }
            if at_end {
                return Ok((events, true));
            }
        }
        Ok((events, false))
    }

    /// What happened to the file since it was read to its end.
    fn look(&mut self, root: &RootedDir, alive: bool) -> Result<Option<Change>> {
        if self.content.current()?.size < self.offset {
            self.offset = 0;
            return Ok(Some(Change::Truncated));
        }
        // Names mean nothing once the container's mounts are gone.
        if !alive {
            return Ok(None);
        }
        let found = match root.resolve(&self.path, true) {
            Ok(node) => node,
            // It may come back.
            Err(_) if self.missing => return Ok(None),
            Err(_) => {
                self.missing = true;
                return Ok(Some(Change::Missing));
            }
        };
        let (old, new) = (self.content.entry(), found.entry());
        if (old.device, old.inode) == (new.device, new.inode) {
            self.missing = false;
            return Ok(None);
        }
        // Until the new file holds something, the old one may still be written to. Once it does,
        // the old one is read once more.
        if new.size == 0 {
            return Ok(None);
        }
        let Ok(content) = found.open(root) else { return Ok(None) };
        if !self.content.read(self.offset, 1, Instant::now())?.data.is_empty() {
            return Ok(None);
        }
        (self.content, self.offset, self.missing) = (content, 0, false);
        Ok(Some(Change::Replaced))
    }
}
