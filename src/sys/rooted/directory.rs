//! Listing a directory, page by page.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    time::Instant,
};

use rustix::fs::{FileType, RawDir, SeekFrom, seek};

use super::{
    TrustedMount,
    entry::{self, DirEntry},
    failed, show,
    walk::Walk,
};
use crate::domain::{Error, Reason, Result};

/// What the kernel is asked for at once, in bytes. A name takes 24 bytes and its own length.
pub(super) const BUFFER: usize = 16 * 1024;

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    entry: DirEntry,
    mount: u64,
    trusted: TrustedMount,
}

/// Some entries of a directory, sorted by name.
#[derive(Debug)]
pub struct Page {
    /// The entries.
    pub entries: Vec<DirEntry>,
    /// Whether the directory has more behind them.
    pub more: bool,
}

impl Directory {
    pub(super) fn new(fd: OwnedFd, entry: DirEntry, mount: u64, trusted: TrustedMount) -> Self {
        Self { fd, entry, mount, trusted }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The first `limit` entries with names behind `after`; fewer once they take about `max_bytes`
    /// or it is `until`. The whole directory is read for each page, since it is in no order, but
    /// no more than `limit` names are held at a time.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED; FILE_SYSTEM_STUCK if the directory has not ended by then: one of a FUSE
    /// may have no end.
    pub fn page(
        &self,
        after: &[u8],
        limit: usize,
        max_bytes: usize,
        until: Instant,
    ) -> Result<Page> {
        let path = &self.entry.path;
        seek(&self.fd, SeekFrom::Start(0)).map_err(|errno| failed("lseek", path, errno))?;
        let mut first: BTreeMap<CString, FileType> = BTreeMap::new();
        let mut more = false;
        let mut read = 0_u64;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut names = RawDir::new(&self.fd, &mut buffer);
        loop {
            // The time is looked at once for each buffer of names.
            if names.is_buffer_empty() && Instant::now() >= until {
                let path = show(path);
                let message = format!(
                    "{path}: the directory is too slow or has no end: given up after {read} names"
                );
                return Err(Error::new(Reason::FileSystemStuck, message));
            }
            let Some(found) = names.next() else { break };
            let found = found.map_err(|errno| failed("getdents64", path, errno))?;
            let name = found.file_name();
            read = read.saturating_add(1);
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
            let late = !page.entries.is_empty() && Instant::now() >= until;
            if bytes > max_bytes || late {
                page.more = true;
                break;
            }
            let entry = describe(&self.fd, &name, name.to_bytes(), kind);
            bytes = bytes.saturating_add(weight(&entry));
            page.entries.push(entry);
        }
        Ok(page)
    }

    /// Walks the tree below it, at most `max_depth` directories deep: 0 is the directory alone.
    /// Enters other mounts only if `cross_mounts`.
    pub fn walk(self, max_depth: usize, cross_mounts: bool) -> Walk {
        Walk::new(self.fd, self.entry, (self.mount, self.trusted), max_depth, cross_mounts)
    }
}

pub(super) fn is_self_or_parent(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Describes a name of a directory; if that fails, says why.
pub(super) fn describe(directory: &OwnedFd, name: &CStr, path: &[u8], kind: FileType) -> DirEntry {
    match entry::describe_at(directory, name, path) {
        Ok((entry, _)) => entry,
        Err(error) => DirEntry::bare(path.to_owned(), Some(kind), error.reason),
    }
}

/// About how many bytes an entry takes in a message.
pub(super) fn weight(entry: &DirEntry) -> usize {
    entry.path.len().saturating_add(entry.link_target.len()).saturating_add(128)
}
