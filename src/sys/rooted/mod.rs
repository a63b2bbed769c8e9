//! The files below a root directory that somebody else controls.
//!
//! **Invariant**: nothing outside the root is opened, described or read, whatever is renamed, linked or mounted inside meanwhile. What holds
//! it:
//! - the kernel resolves each path in one call, within the root (`RESOLVE_IN_ROOT`) and without magic links; no path is looked at and
//!   then opened. The result is an O_PATH descriptor, which opens nothing yet;
//! - what that descriptor turns out to be is decided on, and only regular files and directories are opened, by way of the descriptor;
//! - file systems whose files are doors to the kernel or to other processes are refused by their type (`filesystem`);
//! - directories are descended by single names, links not followed, and `..` is never used.
//!
//! Whether a file may be read is the kernel's to say: the calling thread is whom it is read as ([`super::identity`]). All of it may block
//! for as long as a file system likes. The root being the one that is meant is the caller's to prove.
//!
//! - [`entry`]: what is said of a file;
//! - [`content`]: reading one;
//! - [`create`]: writing one;
//! - [`directory`]: listing one, in pages or as a tree;
//! - `filesystem`: kinds of file systems.
//!
//! <https://man7.org/linux/man-pages/man2/openat2.2.html>

pub mod content;
pub mod create;
pub mod directory;
pub mod entry;
mod filesystem;

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstatfs, openat2},
    io::Errno,
};

use self::{content::Content, directory::Directory, entry::DirEntry};
use super::procfs::Proc;
use crate::domain::{Error, Reason, Result};

/// The longest path, in bytes: PATH_MAX without the NUL.
pub const MAX_PATH: usize = 4095;

/// How long a path with `..` is tried again while the kernel cannot tell whether a rename has moved it out of the root. It looks at all
/// renames of the machine.
const PATIENCE: Duration = Duration::from_millis(500);

/// Nothing leads out, and no magic link leads anywhere.
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A root directory.
#[derive(Debug)]
pub struct RootedDir {
    root: OwnedFd,
    proc: Proc,
}

/// What a path has led to. Holds it, whatever is at the path later.
#[derive(Debug)]
pub struct Node {
    /// O_PATH.
    fd: OwnedFd,
    entry: DirEntry,
    /// Of the mount that it is in.
    mount: u64,
}

impl RootedDir {
    /// The directory that `root` is a descriptor of, which may be O_PATH.
    ///
    /// # Errors
    /// If there is no `/proc`.
    pub fn new(root: OwnedFd) -> Result<Self> {
        Ok(Self { root, proc: Proc::open()? })
    }

    /// Whether both are the same directory, by device and inode.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED, and what else the file systems of the two answer.
    pub fn is_same_directory(&self, other: &Self) -> Result<bool> {
        let identity = |root: &OwnedFd| {
            entry::describe(root, b"/").map(|(entry, _)| (entry.device, entry.inode))
        };
        Ok(identity(&self.root)? == identity(&other.root)?)
    }

    /// Whether the kernel, and the filter of system calls that the process is under, let it resolve paths.
    pub fn is_supported() -> bool {
        openat2(rustix::fs::CWD, c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), WITHIN)
            .is_ok()
    }

    /// What is at a path, as a process whose root this is would find it. A link at its end is followed only if `follow`.
    ///
    /// # Errors
    /// PATH_NOT_FOUND, PATH_REFUSED, FILE_PERMISSION, NOT_A_DIRECTORY, TOO_MANY_LINKS, FILE_CHANGED, FILE_SYSTEM_FAILED; INVALID_FIELD
    /// for a path that is none.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Node> {
        check_path("path", path)?;
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let fd = match open_within(&self.root, path, flags, WITHIN) {
            Ok(fd) => fd,
            Err(Errno::LOOP) => return Err(self.too_many_or_magic(path, flags)),
            Err(errno) => return Err(failed("openat2", path, errno)),
        };
        Node::of(fd, path)
    }

    /// ELOOP says that a link was magic as well as that there were too many. Without the flag that forbids the former they are still not
    /// followed within a root, but the error is another one.
    fn too_many_or_magic(&self, path: &[u8], flags: OFlags) -> Error {
        match open_within(&self.root, path, flags, ResolveFlags::IN_ROOT) {
            Err(Errno::XDEV) => failed("openat2", path, Errno::XDEV),
            _ => failed("openat2", path, Errno::LOOP),
        }
    }
}

impl Node {
    fn of(fd: OwnedFd, path: &[u8]) -> Result<Self> {
        let kind = fstatfs(&fd).map_err(|errno| failed("fstatfs", path, errno))?.f_type;
        let (mut entry, mount) = entry::describe(&fd, path)?;
        // The top of a mount may be told of, since the directory that it covers is listed, too; nothing below it.
        if filesystem::is_refused(kind) && !entry.mount_point {
            return Err(refused(path, &filesystem::name(kind)));
        }
        entry.file_system = filesystem::name(kind);
        Ok(Self { fd, entry, mount })
    }

    /// What it is.
    pub fn entry(&self) -> &DirEntry {
        &self.entry
    }

    /// Opens it to read it.
    ///
    /// # Errors
    /// NOT_A_FILE, FILE_PERMISSION, PATH_REFUSED, FILE_CHANGED, FILE_SYSTEM_FAILED.
    pub fn open(self, root: &RootedDir) -> Result<Content> {
        if self.entry.kind != Some(FileType::RegularFile) {
            let message =
                format!("{}: is {}, not a file", show(&self.entry.path), self.entry.kind_name());
            return Err(Error::new(Reason::NotAFile, message));
        }
        // Not to wait for whoever holds a lease on it, and not to become anybody's terminal.
        let fd = self.reopen(root, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        Ok(Content::new(fd, self.entry))
    }

    /// Opens it to list it.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY, FILE_PERMISSION, PATH_REFUSED, FILE_SYSTEM_FAILED.
    pub fn open_directory(self, root: &RootedDir) -> Result<Directory> {
        if self.entry.kind != Some(FileType::Directory) {
            let message = format!(
                "{}: is {}, not a directory",
                show(&self.entry.path),
                self.entry.kind_name()
            );
            return Err(Error::new(Reason::NotADirectory, message));
        }
        let fd = self.reopen(root, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Directory::new(fd, self.entry, self.mount))
    }

    fn reopen(&self, root: &RootedDir, flags: OFlags) -> Result<OwnedFd> {
        let path = &self.entry.path;
        let kind = fstatfs(&self.fd).map_err(|errno| failed("fstatfs", path, errno))?.f_type;
        if filesystem::is_refused(kind) {
            return Err(refused(path, &filesystem::name(kind)));
        }
        root.proc.reopen(&self.fd, flags).map_err(|errno| failed("open", path, errno))
    }
}

/// Checks that something can be a path.
///
/// # Errors
/// INVALID_FIELD.
pub fn check_path(field: &str, path: &[u8]) -> Result<()> {
    let message = match path {
        [] => "is required".to_owned(),
        _ if path.len() > MAX_PATH => {
            format!("is {} bytes long; at most {MAX_PATH} are allowed", path.len())
        }
        _ if path.contains(&0) => "holds a NUL byte".to_owned(),
        _ => return Ok(()),
    };
    Err(Error::invalid(field, message))
}

/// `openat2`, tried again as long as makes sense.
fn open_within(
    at: impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut began = None;
    loop {
        match openat2(at.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if began.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                std::thread::yield_now();
            }
            done => return done,
        }
    }
}

/// What the kernel says of a path, as an error.
fn failed(op: &'static str, path: &[u8], errno: Errno) -> Error {
    let (reason, why) = match errno {
        Errno::NOENT => (Reason::PathNotFound, "no such file or directory"),
        Errno::NOTDIR => (Reason::NotADirectory, "a part of it is not a directory"),
        Errno::ACCESS | Errno::PERM => (Reason::FilePermission, "permission denied"),
        Errno::LOOP => (Reason::TooManyLinks, "too many levels of symbolic links"),
        Errno::XDEV => (
            Reason::PathRefused,
            "it leads through a link of procfs, which leads out of the container",
        ),
        Errno::NAMETOOLONG => {
            return Error::invalid("path", "a name in it is longer than file systems allow");
        }
        Errno::AGAIN if op == "openat2" => {
            (Reason::FileChanged, "directories are being renamed all the time")
        }
        Errno::AGAIN => (Reason::FileChanged, "another process holds a lease on it; try again"),
        Errno::ISDIR => (Reason::NotAFile, "is a directory"),
        Errno::EXIST => (Reason::FileExists, "exists"),
        Errno::ROFS => (Reason::ReadOnlyFileSystem, "the file system is read-only"),
        Errno::NOSPC | Errno::DQUOT => {
            (Reason::FileSystemFull, "the file system, or its owner's quota, is full")
        }
        Errno::FBIG => (Reason::FileSystemFull, "files may not become that large"),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
            (Reason::TooManyFileRequests, "the agent has no descriptors or memory left")
        }
        Errno::NOSYS => (
            Reason::KernelUnsupported,
            "this needs Linux 5.8 and a seccomp profile that knows openat2",
        ),
        // Gone network and FUSE file systems say many things.
        Errno::IO
        | Errno::STALE
        | Errno::NOTCONN
        | Errno::CONNABORTED
        | Errno::CONNRESET
        | Errno::CONNREFUSED
        | Errno::TIMEDOUT
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NODEV
        | Errno::NXIO
        | Errno::OPNOTSUPP
        | Errno::UCLEAN => {
            let why = std::io::Error::from(errno);
            return Error::new(
                Reason::FileSystemFailed,
                format!("{}: the file system failed: {why}", show(path)),
            );
        }
        _ => {
            let why = std::io::Error::from(errno);
            return Error::new(Reason::SystemCall, format!("{op}({}): {why}", show(path)));
        }
    };
    Error::new(reason, format!("{}: {why}", show(path)))
}

fn refused(path: &[u8], file_system: &str) -> Error {
    let message =
        format!("{}: is in a {file_system}, which holds no files of the container's", show(path));
    Error::new(Reason::PathRefused, message)
}

/// A path as text: what is not printable is escaped.
pub fn show(path: &[u8]) -> String {
    let mut shown = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                c if c.is_control() => shown.extend(c.escape_default()),
                c => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_on_one_line() {
        assert_eq!(show(b"/a\n\x1b[2J\\\xff/\xc3\xbc"), "/a\\n\\u{1b}[2J\\\\\\xff/\u{fc}");
    }

    #[test]
    fn what_is_no_path() {
        for bad in [&b""[..], b"a\0b", &[b'a'; MAX_PATH + 1]] {
            assert_eq!(check_path("path", bad).unwrap_err().reason, Reason::InvalidField);
        }
        assert_eq!(check_path("path", &[b'a'; MAX_PATH]), Ok(()));
    }
}
