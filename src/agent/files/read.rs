//! Reading a file: a range of it, or its growing end as `tail -F` does.
//!
//! A followed file is looked at again and again, a few times a second while it grows and once a second while it does not: that works alike
//! on every file system, over the network, for layers of an overlay and for names that do not exist, and takes none of the node's inotify
//! instances. When another file has the name, the old one is read on until the new one holds something and then to its end: whoever
//! writes has opened the new one then, so nothing of the old is missed. A file that is rotated twice between two looks, or truncated and
//! written again beyond where it was, is not told from one that was not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Root, threads::Held};
use crate::{
    domain::{Error, Reason, Result},
    sys::rooted::{
        RootedDir,
        content::{Content, LastLines},
        entry::DirEntry,
    },
};

/// Bytes of one message.
pub const CHUNK: usize = 256 << 10;
/// Messages that are read at a time.
const BATCH: usize = 2;
/// How long is read at a time, where a file system is slow.
const STEP: Duration = Duration::from_millis(200);
/// How soon a followed file is looked at again, at first and at last.
const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(1);

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The file.
    pub path: Vec<u8>,
    /// Where to begin.
    pub begin: Begin,
    /// How much is wanted, if not all.
    pub length: Option<u64>,
    /// How much may be read at most.
    pub limit: u64,
    /// Whether to go on at the end.
    pub follow: bool,
    /// What the file must still be; empty for anything.
    pub version: Vec<u8>,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// So many bytes from the start.
    Start(u64),
    /// So many bytes before the end.
    End(u64),
    /// So many lines before the end.
    Lines(u32),
}

/// What is read.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Content.
    Data(Vec<u8>),
    /// Something happened to the file; content after it begins at the offset.
    Change(Change, u64),
    /// The end.
    End(End),
}

/// What happened to a followed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is shorter than what was read of it.
    Truncated,
    /// Another file has its name.
    Replaced,
    /// No file has its name.
    Missing,
}

/// Why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There is no more.
    EndOfFile,
    /// That was all that was wanted.
    Length,
    /// That was all that may be read.
    Limit,
    /// The container has ended.
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
    /// How many bytes were read.
    pub bytes: u64,
    length: Option<u64>,
    limit: u64,
    follow: bool,
    wait: Duration,
    /// None once it is over, or lost with a stuck thread.
    file: Option<Held<Followed>>,
}

/// An open file, and what is known of its name.
#[derive(Debug)]
struct Followed {
    path: Vec<u8>,
    content: Content,
    offset: u64,
    follow: bool,
    missing: bool,
}

/// Identifies the state of a file: device, inode, size, time of the last change of its content.
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
    /// Opens a file and finds where to begin.
    ///
    /// # Errors
    /// NOT_A_FILE, FILE_CHANGED, and those of [`Root::stat`].
    pub async fn read(&self, reading: Reading) -> Result<Reader<'_>> {
        let Reading { path, begin, length, limit, follow, version: wanted } = reading;
        let mut file = self
            .open(move |root| {
                let content = root.resolve(&path, true)?.open(root)?;
                Ok(Followed { path, content, offset: 0, follow, missing: false })
            })
            .await?;
        let entry = file.with(|file| Ok(file.content.entry().clone()))?;
        if !wanted.is_empty() && wanted != version(&entry) {
            return Err(Error::new(Reason::FileChanged, "the file is not what it was")
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
        Ok(Reader { root: self, entry, offset, bytes: 0, length, limit, follow, wait: SOON, file })
    }
}

impl Reader<'_> {
    /// What comes next, at least one event. None after the end. Waits until there is something, if the file is followed.
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
            // Before the file is read, so that what was written until then is.
            let alive = self.root.is_alive();
            let step = move |root: &Arc<RootedDir>| {
                let events = file.with(|file| file.next(root, left, alive))?;
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
    /// The next events; none if nothing happened to a followed file.
    fn next(&mut self, root: &RootedDir, left: u64, alive: bool) -> Result<Vec<Event>> {
        let (mut events, at_end) = self.read(left)?;
        if at_end && !self.follow {
            events.push(Event::End(End::EndOfFile));
        } else if events.is_empty()
            && let Some(change) = self.look(root, alive)?
        {
            events.push(Event::Change(change, self.offset));
        }
        Ok(events)
    }

    /// What is there now, at most so much, and whether that was all.
    fn read(&mut self, mut left: u64) -> Result<(Vec<Event>, bool)> {
        let began = Instant::now();
        let mut events = Vec::new();
        while events.len() < BATCH && left > 0 && began.elapsed() < STEP {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let data = self.content.read(self.offset, want)?;
            let (length, short) = (data.len() as u64, data.len() < want);
            self.offset = self.offset.saturating_add(length);
            left = left.saturating_sub(length);
            if !data.is_empty() {
                events.push(Event::Data(data));
            }
            if short {
                return Ok((events, true));
            }
        }
        Ok((events, false))
    }

    /// What happened to the file, of which all was read.
    fn look(&mut self, root: &RootedDir, alive: bool) -> Result<Option<Change>> {
        if self.content.current()?.size < self.offset {
            self.offset = 0;
            return Ok(Some(Change::Truncated));
        }
        // Names mean nothing any more once the container's mounts are gone.
        if !alive {
            return Ok(None);
        }
        let found = match root.resolve(&self.path, true) {
            Ok(node) => node,
            // It may come back, whatever is there instead.
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
        // Until the new one holds something, the old one may still be written to. After that it is read once more.
        if new.size == 0 {
            return Ok(None);
        }
        let Ok(content) = found.open(root) else { return Ok(None) };
        if !self.content.read(self.offset, 1)?.is_empty() {
            return Ok(None);
        }
        (self.content, self.offset, self.missing) = (content, 0, false);
        Ok(Some(Change::Replaced))
    }
}
