//! The description of a file: what `statx` says of it, and where a link leads.
//! <https://man7.org/linux/man-pages/man2/statx.2.html>

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp, makedev, readlinkat,
        statx,
    },
    io::Errno,
};

use super::failed;
use crate::domain::{Reason, Result};

/// The description of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirEntry {
    /// The path that was asked for, the name in a list, or the path below the top of a walk.
    pub path: Vec<u8>,
    /// The type of the file. None if it is not known.
    pub kind: Option<FileType>,
    /// Permission bits, and setuid, setgid and sticky.
    pub mode: u32,
    /// Size, in bytes, as the file system claims.
    pub size: u64,
    /// Blocks of 512 bytes that it takes on disk.
    pub blocks: u64,
    /// Owner, in the agent's user namespace.
    pub uid: u32,
    /// Group, in the agent's user namespace.
    pub gid: u32,
    /// Number of hard links.
    pub links: u32,
    /// Inode number.
    pub inode: u64,
    /// Device of the file system.
    pub device: u64,
    /// Major and minor number of a device file.
    pub device_file: (u32, u32),
    /// When it was last read, as far as the file system records that.
    pub accessed_at: Time,
    /// When its content was last changed.
    pub modified_at: Time,
    /// When its inode was last changed.
    pub changed_at: Time,
    /// When it was created, where the file system says so.
    pub created_at: Option<Time>,
    /// Target of a symbolic link.
    pub link_target: Vec<u8>,
    /// Whether it is the top of a mount.
    pub mount_point: bool,
    /// Type of the file system as in `/proc/mounts`. Empty in lists and walks.
    pub file_system: String,
    /// Why nothing more is known of it, or of what is in it.
    pub reason: Option<Reason>,
}

/// A time of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of that second.
    pub nanos: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(time: StatxTimestamp) -> Self {
        Self { seconds: time.tv_sec, nanos: time.tv_nsec }
    }
}

impl DirEntry {
    /// An entry of which only its name in a directory is known.
    pub(super) fn bare(path: Vec<u8>, kind: Option<FileType>, reason: Reason) -> Self {
        Self { path, kind, reason: Some(reason), ..Self::default() }
    }

    fn new(path: &[u8], stat: &Statx) -> Self {
        let has = |flag: StatxFlags| stat.stx_mask & flag.bits() != 0;
        Self {
            path: path.to_owned(),
            kind: Some(FileType::from_raw_mode(u32::from(stat.stx_mode))),
            mode: u32::from(stat.stx_mode) & 0o7777,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            links: stat.stx_nlink,
            inode: stat.stx_ino,
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            device_file: (stat.stx_rdev_major, stat.stx_rdev_minor),
            accessed_at: stat.stx_atime.into(),
            modified_at: stat.stx_mtime.into(),
            changed_at: stat.stx_ctime.into(),
            created_at: has(StatxFlags::BTIME).then(|| stat.stx_btime.into()),
            link_target: Vec::new(),
            mount_point: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            file_system: String::new(),
            reason: None,
        }
    }

    /// The type of the file as part of a sentence.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Some(FileType::RegularFile) => "a file",
            Some(FileType::Directory) => "a directory",
            Some(FileType::Symlink) => "a symbolic link",
            Some(FileType::Fifo) => "a named pipe",
            Some(FileType::Socket) => "a socket",
            Some(FileType::CharacterDevice) => "a character device",
            Some(FileType::BlockDevice) => "a block device",
            _ => "of an unknown kind",
        }
    }
}

const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// Describes what a descriptor holds, which may be O_PATH. Also returns the id of its mount.
pub(super) fn describe(fd: impl AsFd, path: &[u8]) -> Result<(DirEntry, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let stat = statx(fd.as_fd(), c"", flags, MASK).map_err(|errno| failed("statx", path, errno))?;
    let mut entry = DirEntry::new(path, &stat);
    if entry.kind == Some(FileType::Symlink) {
        entry.link_target =
            read_link(fd.as_fd(), c"").map_err(|errno| failed("readlinkat", path, errno))?;
    }
    Ok((entry, stat.stx_mnt_id))
}

/// Describes a name in a directory, without following a link or mounting anything. Also returns the
/// id of its mount.
pub(super) fn describe_at(
    directory: impl AsFd,
    name: &CStr,
    path: &[u8],
) -> Result<(DirEntry, u64)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = statx(directory.as_fd(), name, flags, MASK)
        .map_err(|errno| failed("statx", path, errno))?;
    let mut entry = DirEntry::new(path, &stat);
    if entry.kind == Some(FileType::Symlink) {
        match read_link(directory.as_fd(), name) {
            Ok(target) => entry.link_target = target,
            // Something else has replaced it meanwhile.
            Err(errno) => entry.reason = Some(failed("readlinkat", path, errno).reason),
        }
    }
    Ok((entry, stat.stx_mnt_id))
}

fn read_link(at: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
    readlinkat(at, name, Vec::with_capacity(256)).map(CString::into_bytes)
}
