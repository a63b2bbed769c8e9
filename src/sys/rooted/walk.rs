//! Walking a tree.
//!
//! The walk goes depth first and keeps one level for each directory on the way down: names that it
//! has read and not told yet, and a descriptor. A tree may be as deep as the limit allows, and a
//! client may leave many walks standing in the depth, so only the top and the innermost few levels
//! keep their descriptors. The others are opened again on the way back: name by name from the
//! nearest ancestor that is open, never through `..`, links not followed. What is found there must
//! be the same directory in the same mount, by device and inode, or the rest of it is not told and
//! its entry says FILE_CHANGED.

use std::{
    collections::VecDeque,
    ffi::{CStr, CString},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    time::Instant,
};

use rustix::{
    fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, openat, seek, tell},
    io::Errno,
};

use super::{
    TrustedMount,
    directory::{BUFFER, describe, is_self_or_parent, weight},
    entry::{self, DirEntry},
    failed, filesystem, open_within,
};
use crate::domain::Reason;

/// Descriptors that a walk keeps below its top. Deeper trees cost up to one `openat2` for each
/// level and directory on the way back.
const OPEN: usize = 8;

/// How often in a row the kernel may return no name but `.` and `..`. A FUSE could do so for ever;
/// other file systems do it once.
const EMPTY: u32 = 16;

/// A tree that is being walked.
#[derive(Debug)]
pub struct Walk {
    /// The top itself, until it was told.
    top: Option<DirEntry>,
    levels: Vec<Level>,
    /// Path of the entry that was told last.
    path: Vec<u8>,
    max_depth: usize,
    cross_mounts: bool,
    trusted: TrustedMount,
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    /// None while it is closed.
    fd: Option<OwnedFd>,
    /// Length of its path.
    path: usize,
    /// Names that were read and not told.
    names: VecDeque<(CString, FileType)>,
    /// Where the names go on; counts while it is closed.
    position: u64,
    at_end: bool,
    /// How often in a row no name was returned.
    empty: u32,
    /// Which directory it is: device, inode, mount.
    identity: (u64, u64, u64),
}

/// What the next step of a walk has found.
#[expect(
    clippy::large_enum_variant,
    reason = "a step is taken apart at once, and most are entries"
)]
enum Step {
    Entry(DirEntry),
    /// Nothing yet, and it is time to stop.
    Late,
    End,
}

impl Walk {
    pub(super) fn new(
        fd: OwnedFd,
        entry: DirEntry,
        (mount, trusted): (u64, TrustedMount),
        max_depth: usize,
        cross_mounts: bool,
    ) -> Self {
        let mut level = Level::new(fd, 0, (entry.device, entry.inode, mount));
        level.at_end = max_depth == 0;
        let top = DirEntry { path: Vec::new(), ..entry };
        let levels = vec![level];
        Self { top: Some(top), levels, path: Vec::new(), max_depth, cross_mounts, trusted }
    }

    /// The next entries: at most `max_entries`, until they take `max_bytes` or it is `until`. May
    /// be none if the file system is slow. None at the end.
    pub fn next(
        &mut self,
        max_entries: usize,
        max_bytes: usize,
        until: Instant,
    ) -> Option<Vec<DirEntry>> {
        let mut entries = Vec::new();
        let mut bytes = 0_usize;
        while entries.len() < max_entries && bytes < max_bytes {
            match self.step(until) {
                Step::Entry(entry) => {
                    bytes = bytes.saturating_add(weight(&entry));
                    entries.push(entry);
                }
                Step::Late => break,
                Step::End if entries.is_empty() => return None,
                Step::End => break,
            }
            if Instant::now() >= until {
                break;
            }
        }
        Some(entries)
    }

    fn step(&mut self, until: Instant) -> Step {
        if let Some(top) = self.top.take() {
            return Step::Entry(top);
        }
        loop {
            let Some(level) = self.levels.last_mut() else { return Step::End };
            if level.names.is_empty() && level.at_end {
                self.levels.pop();
                continue;
            }
            if level.fd.is_none()
                && let Err(reason) = self.reopen()
            {
                return self.give_up(reason);
            }
            let Some(level) = self.levels.last_mut() else { return Step::End };
            if let Some((name, kind)) = level.names.pop_front() {
                return Step::Entry(self.visit(&name, kind));
            }
            if let Err(errno) = level.refill() {
                let reason = failed("getdents64", &self.path, errno).reason;
                return self.give_up(reason);
            }
            if level.empty > EMPTY {
                return self.give_up(Reason::FileSystemFailed);
            }
            if Instant::now() >= until {
                return Step::Late;
            }
        }
    }

    /// Leaves out the rest of the innermost directory, and says so by an entry of its own.
    fn give_up(&mut self, reason: Reason) -> Step {
        let Some(level) = self.levels.last_mut() else { return Step::End };
        level.at_end = true;
        level.names.clear();
        self.path.truncate(level.path);
        Step::Entry(DirEntry::bare(self.path.clone(), Some(FileType::Directory), reason))
    }

    /// Tells of an entry of the innermost directory. If it is a directory that is to be entered, it
    /// becomes the innermost one.
    fn visit(&mut self, name: &CStr, kind: FileType) -> DirEntry {
        let depth = self.levels.len();
        let Some((level, fd)) = self.levels.last().and_then(|l| Some((l, l.fd.as_ref()?))) else {
            return DirEntry::default();
        };
        self.path.truncate(level.path);
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            return describe(fd, name, &self.path, kind);
        }
        let enter = depth < self.max_depth;
        match level.descend(fd, name, &self.path, enter, self.cross_mounts, self.trusted) {
            Ok((entry, below)) => {
                if let Some(below) = below {
                    self.levels.push(below);
                    self.close_one();
                }
                entry
            }
            Err(reason) => DirEntry::bare(self.path.clone(), Some(kind), reason),
        }
    }

    /// Closes the level that is now too far up to stay open. The top always stays.
    fn close_one(&mut self) {
        let Some(index) = self.levels.len().checked_sub(OPEN + 1).filter(|index| *index > 0) else {
            return;
        };
        for level in self.levels.iter_mut().take(index + 1).skip(1) {
            let Some(fd) = &level.fd else { continue };
            // Where there is no way back to the position, it stays open.
            if let Ok(position) = tell(fd) {
                level.position = position;
                level.fd = None;
            }
        }
    }

    /// Opens the innermost level again.
    fn reopen(&mut self) -> Result<(), Reason> {
        let open = self.levels.iter().rposition(|level| level.fd.is_some());
        let open = open.ok_or(Reason::FileChanged)?;
        let (above, below) = self.levels.split_at_mut(open + 1);
        let (Some(nearest), Some(last)) = (above.last(), below.last()) else { return Ok(()) };
        let mut start = nearest.path;
        let mut node: Option<OwnedFd> = None;
        for level in below.iter() {
            let name = self.path.get(start..level.path).unwrap_or_default();
            let name = name.strip_prefix(b"/").unwrap_or(name);
            let Some(at) = node.as_ref().or(nearest.fd.as_ref()) else { break };
            node = Some(child(at, name).map_err(|errno| failed("openat2", name, errno).reason)?);
            start = level.path;
        }
        let node = node.ok_or(Reason::FileChanged)?;
        let path = self.path.get(..last.path).unwrap_or_default();
        let (entry, mount) = entry::describe(&node, path).map_err(|error| error.reason)?;
        if (entry.device, entry.inode, mount) != last.identity {
            return Err(Reason::FileChanged);
        }
        let reopened = openat(&node, c".", DIRECTORY, Mode::empty())
            .and_then(|fd| seek(&fd, SeekFrom::Start(last.position)).map(|_| fd));
        let reopened = reopened.map_err(|errno| failed("openat", path, errno).reason)?;
        if let Some(last) = below.last_mut() {
            last.fd = Some(reopened);
        }
        Ok(())
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What a directory has under a name, O_PATH. One name and no link, so that what is described is
/// what is entered; O_PATH mounts nothing.
fn child(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    open_within(directory, name, OFlags::PATH | OFlags::NOFOLLOW, resolve)
}

impl Level {
    fn new(fd: OwnedFd, path: usize, identity: (u64, u64, u64)) -> Self {
        Self {
            fd: Some(fd),
            path,
            names: VecDeque::new(),
            position: 0,
            at_end: false,
            empty: 0,
            identity,
        }
    }

    /// Reads the names that the kernel returns at once.
    fn refill(&mut self) -> Result<(), Errno> {
        let Some(fd) = &self.fd else { return Err(Errno::BADF) };
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut names = RawDir::new(fd, &mut buffer);
        while let Some(found) = names.next() {
            let found = found?;
            if !is_self_or_parent(found.file_name()) {
                self.names.push_back((found.file_name().to_owned(), found.file_type()));
            }
            if names.is_buffer_empty() {
                self.empty = if self.names.is_empty() { self.empty + 1 } else { 0 };
                return Ok(());
            }
        }
        self.at_end = true;
        Ok(())
    }

    /// What is at that name, and the level below if it is a directory that is to be entered.
    fn descend(
        &self,
        fd: &OwnedFd,
        name: &CStr,
        path: &[u8],
        enter: bool,
        cross_mounts: bool,
        trusted: TrustedMount,
    ) -> Result<(DirEntry, Option<Self>), Reason> {
        let node =
            child(fd, name.to_bytes()).map_err(|errno| failed("openat2", path, errno).reason)?;
        let (mut entry, mount) = entry::describe(&node, path).map_err(|error| error.reason)?;
        let (.., own_mount) = self.identity;
        if entry.kind != Some(FileType::Directory)
            || !enter
            || (mount != own_mount && !cross_mounts)
        {
            return Ok((entry, None));
        }
        // Asked of each directory: one of an overlay may be of another layer than its parent.
        if filesystem::of(&node).map_or(true, |kind| kind.is_refused(mount, trusted)) {
            entry.reason = Some(Reason::PathRefused);
            return Ok((entry, None));
        }
        match openat(&node, c".", DIRECTORY, Mode::empty()) {
            Ok(below) => {
                let identity = (entry.device, entry.inode, mount);
                Ok((entry, Some(Self::new(below, path.len(), identity))))
            }
            Err(errno) => {
                entry.reason = Some(failed("openat", path, errno).reason);
                Ok((entry, None))
            }
        }
    }
}
