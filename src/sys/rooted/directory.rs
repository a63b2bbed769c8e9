//! Listing: a directory page by page, or a tree.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{CStr, CString},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    time::Instant,
};

use rustix::{
    fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, fstatfs, openat, seek},
    io::Errno,
};

use super::{
    entry::{self, DirEntry},
    failed, filesystem, open_within,
};
use crate::domain::{Reason, Result};

/// What the kernel is asked for at a time, in bytes. A name takes 24 and its own.
const BUFFER: usize = 16 * 1024;

/// A directory that is open.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    entry: DirEntry,
    mount: u64,
}

/// Some entries of a directory, sorted by name.
#[derive(Debug)]
pub struct Page {
    /// The entries.
    pub entries: Vec<DirEntry>,
    /// Whether there are more behind them.
    pub more: bool,
}

impl Directory {
    pub(super) fn new(fd: OwnedFd, entry: DirEntry, mount: u64) -> Self {
        Self { fd, entry, mount }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The first `limit` entries with names behind `after`, or fewer so that they take no more than about `max_bytes`. However many
    /// there are, no more names than that are held at a time.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED.
    pub fn page(&self, after: &[u8], limit: usize, max_bytes: usize) -> Result<Page> {
        let failure = |op| move |errno| failed(op, &self.entry.path, errno);
        seek(&self.fd, SeekFrom::Start(0)).map_err(failure("lseek"))?;
        let mut first: BTreeMap<CString, FileType> = BTreeMap::new();
        let mut more = false;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut names = RawDir::new(&self.fd, &mut buffer);
        while let Some(found) = names.next() {
            let found = found.map_err(failure("getdents64"))?;
            let name = found.file_name();
            if is_self_or_parent(name) || name.to_bytes() <= after {
                continue;
            }
            if first.len() >= limit {
                more = true;
                if first.last_key_value().is_none_or(|(last, _)| name >= last.as_c_str()) {
                    continue;
                }
                first.pop_last();
            }
            first.insert(name.to_owned(), found.file_type());
        }
        let mut page = Page { entries: Vec::with_capacity(first.len()), more };
        let mut bytes = 0_usize;
        for (name, kind) in first {
            if bytes > max_bytes {
                page.more = true;
                break;
            }
            let entry = describe(&self.fd, &name, name.to_bytes(), kind);
            bytes = bytes.saturating_add(weight(&entry));
            page.entries.push(entry);
        }
        Ok(page)
    }

    /// Walks the tree below it, at most `max_depth` directories deep: 0 is the directory alone. Other file systems that are mounted below are
    /// entered only if `cross_mounts`.
    pub fn walk(self, max_depth: usize, cross_mounts: bool) -> Walk {
        let top = DirEntry { path: Vec::new(), ..self.entry };
        let level = Level {
            fd: self.fd,
            path: 0,
            names: VecDeque::new(),
            at_end: max_depth == 0,
            mount: self.mount,
        };
        Walk { top: Some(top), levels: vec![level], path: Vec::new(), max_depth, cross_mounts }
    }
}

/// A tree that is being walked: one descriptor and one buffer of names for each directory on the way down.
#[derive(Debug)]
pub struct Walk {
    /// Until it was told.
    top: Option<DirEntry>,
    levels: Vec<Level>,
    /// Of the entry that was told last.
    path: Vec<u8>,
    max_depth: usize,
    cross_mounts: bool,
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    fd: OwnedFd,
    /// Length of its path.
    path: usize,
    names: VecDeque<(CString, FileType)>,
    at_end: bool,
    mount: u64,
}

impl Walk {
    /// The next entries, at most so many, until they take `max_bytes` or it is `until`. None at the end.
    pub fn next(
        &mut self,
        max_entries: usize,
        max_bytes: usize,
        until: Instant,
    ) -> Option<Vec<DirEntry>> {
        let mut entries = Vec::new();
        let mut bytes = 0_usize;
        while entries.len() < max_entries && bytes < max_bytes {
            let Some(entry) = self.one() else { break };
            bytes = bytes.saturating_add(weight(&entry));
            entries.push(entry);
            if Instant::now() >= until {
                break;
            }
        }
        (!entries.is_empty() || max_entries == 0).then_some(entries)
    }

    fn one(&mut self) -> Option<DirEntry> {
        if let Some(top) = self.top.take() {
            return Some(top);
        }
        loop {
            let level = self.levels.last_mut()?;
            if let Some((name, kind)) = level.names.pop_front() {
                return Some(self.visit(&name, kind));
            }
            if level.at_end {
                self.levels.pop();
                continue;
            }
            if let Err(errno) = level.refill() {
                // What is left of it is not told, and that is.
                level.at_end = true;
                self.path.truncate(level.path);
                let reason = failed("getdents64", &self.path, errno).reason;
                return Some(DirEntry::bare(self.path.clone(), Some(FileType::Directory), reason));
            }
        }
    }

    /// Tells of an entry of the innermost directory, and makes it the innermost if it is one.
    fn visit(&mut self, name: &CStr, kind: FileType) -> DirEntry {
        let depth = self.levels.len();
        let Some(level) = self.levels.last() else { return DirEntry::default() };
        self.path.truncate(level.path);
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            return describe(&level.fd, name, &self.path, kind);
        }
        match level.descend(name, &self.path, depth < self.max_depth, self.cross_mounts) {
            Ok((entry, below)) => {
                self.levels.extend(below);
                entry
            }
            Err(reason) => DirEntry::bare(self.path.clone(), Some(kind), reason),
        }
    }
}

impl Level {
    /// As many names as the kernel gives at once.
    fn refill(&mut self) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut names = RawDir::new(&self.fd, &mut buffer);
        while let Some(found) = names.next() {
            let found = found?;
            if !is_self_or_parent(found.file_name()) {
                self.names.push_back((found.file_name().to_owned(), found.file_type()));
            }
            if names.is_buffer_empty() {
                return Ok(());
            }
        }
        self.at_end = true;
        Ok(())
    }

    /// What is at that name, and the level below if it is a directory that is to be entered.
    fn descend(
        &self,
        name: &CStr,
        path: &[u8],
        enter: bool,
        cross_mounts: bool,
    ) -> Result<(DirEntry, Option<Self>), Reason> {
        // One name, no link: what was described is what is entered. Nothing is mounted for an O_PATH descriptor.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let node = open_within(&self.fd, name.to_bytes(), OFlags::PATH | OFlags::NOFOLLOW, resolve)
            .map_err(|errno| failed("openat2", path, errno).reason)?;
        let (mut entry, mount) = entry::describe(&node, path).map_err(|error| error.reason)?;
        if entry.kind != Some(FileType::Directory)
            || !enter
            || (mount != self.mount && !cross_mounts)
        {
            return Ok((entry, None));
        }
        let refused = mount != self.mount
            && fstatfs(&node).map_or(true, |found| filesystem::is_refused(found.f_type));
        if refused {
            entry.reason = Some(Reason::PathRefused);
            return Ok((entry, None));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let below = match openat(&node, c".", flags, Mode::empty()) {
            Ok(fd) => {
                Some(Self { fd, path: path.len(), names: VecDeque::new(), at_end: false, mount })
            }
            Err(errno) => {
                entry.reason = Some(failed("openat", path, errno).reason);
                None
            }
        };
        Ok((entry, below))
    }
}

fn is_self_or_parent(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// What a name in a directory is, as far as that can be told.
fn describe(directory: &OwnedFd, name: &CStr, path: &[u8], kind: FileType) -> DirEntry {
    match entry::describe_at(directory, name, path) {
        Ok((entry, _)) => entry,
        Err(error) => DirEntry::bare(path.to_owned(), Some(kind), error.reason),
    }
}

/// About how many bytes a message takes that holds it.
fn weight(entry: &DirEntry) -> usize {
    entry.path.len().saturating_add(entry.link_target.len()).saturating_add(128)
}
