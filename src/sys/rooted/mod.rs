//! The files below a root directory that somebody else controls.
//!
//! **Invariant**: nothing outside the root is opened, described or read, whatever is renamed,
//! linked or mounted inside meanwhile. It rests on this:
//! - the kernel resolves each path in one call, within the root (`RESOLVE_IN_ROOT`) and without
//!   magic links. No path is checked first and opened then. The result is an O_PATH descriptor,
//!   which opens nothing yet;
//! - the decision is about that descriptor, and only regular files and directories are opened,
//!   through the descriptor;
//! - file systems whose files are doors to the kernel or to other processes are refused by kind
//!   (`filesystem`);
//! - directories are descended by single names, without following links; `..` is never used.
//!
//! Whether a file may be read is for the kernel to say: the calling thread has the identity that
//! files are read with ([`super::identity`]). The caller proves that the root is the one that is
//! meant.
//!
//! Every call may block for as long as a file system likes, and a hostile one may also answer
//! slowly or without end. So what takes more than a few calls stops at a time that the caller sets,
//! and whatever errno such a file system makes up becomes a reason of its own: an error here never
//! says that the agent has a bug.
//!
//! - [`entry`]: the description of a file;
//! - [`content`]: reading a file;
//! - [`create`]: writing a file;
//! - [`directory`]: listing a directory, page by page;
//! - [`walk`]: walking a tree;
//! - `filesystem`: kinds of file systems.
//!
//! <https://man7.org/linux/man-pages/man2/openat2.2.html>

pub mod content;
pub mod create;
pub mod directory;
pub mod entry;
mod filesystem;
pub mod walk;

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use self::{content::Content, directory::Directory, entry::DirEntry, filesystem::TrustedMount};
use super::{SysError, error::errno_text, procfs::Proc};
use crate::domain::{Error, Reason, Result, text};

/// The longest path, in bytes: PATH_MAX without the NUL.
pub const MAX_PATH: usize = 4095;

/// How long a path with `..` is tried again while the kernel cannot tell whether a rename has moved
/// it out of the root. Any rename on the machine makes it unsure.
const PATIENCE: Duration = Duration::from_millis(500);

/// Nothing leads out of the root, and magic links are not followed.
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A root directory, open as O_PATH.
#[derive(Debug)]
pub struct RootedDir {
    root: OwnedFd,
    proc: Proc,
    trusted: TrustedMount,
}

/// What a path has led to. Stays that, whatever is put at the path later.
#[derive(Debug)]
pub struct Node {
    /// Opened as O_PATH.
    fd: OwnedFd,
    entry: DirEntry,
    /// The id of the mount that it is in.
    mount: u64,
}

impl RootedDir {
    /// The directory that `root` is a descriptor of, which may be O_PATH.
    ///
    /// # Errors
    /// If there is no `/proc`.
    pub fn new(root: OwnedFd) -> Result<Self> {
        Ok(Self { root, proc: Proc::open()?, trusted: TrustedMount::default() })
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

    /// Trusts the root's own mount if the host has it mounted, too, as `mountinfo` lists it: then
    /// the container runtime has made it. That counts only for an overlay of whose layers nothing
    /// can be told, and `mountinfo` is opened only for one.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED, and those of `mountinfo`.
    pub fn trusted_if_mounted(
        mut self,
        mountinfo: impl FnOnce() -> Result<OwnedFd, SysError>,
    ) -> Result<Self> {
        let kind = filesystem::of(&self.root).map_err(|errno| failed("fstatfs", b"/", errno))?;
        if kind.is_unknown() {
            let (root, mount) = entry::describe(&self.root, b"/")?;
            let is_mounted = filesystem::is_mounted(File::from(mountinfo()?), root.device);
            self.trusted = TrustedMount(is_mounted.then_some(mount));
        }
        Ok(self)
    }

    /// Whether the kernel can resolve paths within a root, and the seccomp filter lets it.
    pub fn is_supported() -> bool {
        openat2(rustix::fs::CWD, c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), WITHIN)
            .is_ok()
    }

    /// What a process with this root would find at a path. A link at its end is followed only if
    /// `follow`.
    ///
    /// # Errors
    /// PATH_NOT_FOUND, PATH_REFUSED, FILE_PERMISSION, NOT_A_DIRECTORY, TOO_MANY_LINKS,
    /// FILE_CHANGED, FILE_SYSTEM_FAILED; INVALID_FIELD for what [`check_path`] refuses.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Node> {
        check_path("path", path)?;
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let fd = match open_within(&self.root, path, flags, WITHIN) {
            Ok(fd) => fd,
            Err(Errno::LOOP) => return Err(self.too_many_or_magic(path, flags)),
            Err(errno) => return Err(failed("openat2", path, errno)),
        };
        Node::of(fd, path, self.trusted)
    }

    /// ELOOP means either that a link was magic or that there were too many links. Without
    /// `NO_MAGICLINKS`, magic links are still not followed within a root, but fail with EXDEV.
    fn too_many_or_magic(&self, path: &[u8], flags: OFlags) -> Error {
        match open_within(&self.root, path, flags, ResolveFlags::IN_ROOT) {
            Err(Errno::XDEV) => failed("openat2", path, Errno::XDEV),
            _ => failed("openat2", path, Errno::LOOP),
        }
    }
}

impl Node {
    fn of(fd: OwnedFd, path: &[u8], trusted: TrustedMount) -> Result<Self> {
        let kind = filesystem::of(&fd).map_err(|errno| failed("fstatfs", path, errno))?;
        let (mut entry, mount) = entry::describe(&fd, path)?;
        // The top of a mount is described, since a list of its parent has it, too. Nothing below
        // is.
        if kind.is_refused(mount, trusted) && !entry.mount_point {
            return Err(refused(path, kind));
        }
        entry.file_system = kind.name();
        Ok(Self { fd, entry, mount })
    }

    /// The description of it.
    pub fn entry(&self) -> &DirEntry {
        &self.entry
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// NOT_A_FILE, FILE_PERMISSION, PATH_REFUSED, FILE_CHANGED, FILE_SYSTEM_FAILED.
    pub fn open(self, root: &RootedDir) -> Result<Content> {
        if self.entry.kind != Some(FileType::RegularFile) {
            let message =
                format!("{}: is {}, not a file", show(&self.entry.path), self.entry.kind_name());
            return Err(Error::new(Reason::NotAFile, message));
        }
        // Neither waits for whoever holds a lease on it nor makes a terminal the agent's own.
        let fd = self.reopen(root, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        Ok(Content::new(fd, self.entry))
    }

    /// Opens it for listing.
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
        Ok(Directory::new(fd, self.entry, self.mount, root.trusted))
    }

    fn reopen(&self, root: &RootedDir, flags: OFlags) -> Result<OwnedFd> {
        let path = &self.entry.path;
        let kind = filesystem::of(&self.fd).map_err(|errno| failed("fstatfs", path, errno))?;
        if kind.is_refused(self.mount, root.trusted) {
            return Err(refused(path, kind));
        }
        root.proc.reopen(&self.fd, flags).map_err(|errno| failed("open", path, errno))
    }
}

/// Checks that bytes can be a path: neither empty, nor too long, nor with a NUL.
///
/// # Errors
/// INVALID_FIELD, naming `field`.
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

/// `openat2`, tried again for [`PATIENCE`] while renames keep it from an answer.
fn open_within(
    at: impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut began = None;
    loop {
        match openat2(at.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A FUSE may answer EINTR to each try, for ever.
            Err(Errno::AGAIN | Errno::INTR)
                if began.get_or_insert_with(Instant::now).elapsed() < PATIENCE =>
            {
                std::thread::yield_now();
            }
            done => return done,
        }
    }
}

/// What the kernel says of a path, as an error.
///
/// FUSE servers choose the errno, and so does whoever writes one: every errno becomes an error
/// about the file, none an error of the agent's that its operator would be told of.
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
            (Reason::TooManyFileRequests, "no descriptors or memory are left for it")
        }
        Errno::NOSYS if op == "openat2" && !RootedDir::is_supported() => (
            Reason::KernelUnsupported,
            "this needs Linux 5.8 and a seccomp profile that knows openat2",
        ),
        _ => {
            let why = errno_text(errno);
            let message = format!("{}: the file system failed: {why} ({op})", show(path));
            return Error::new(Reason::FileSystemFailed, message);
        }
    };
    Error::new(reason, format!("{}: {why}", show(path)))
}

/// Why a root could not be opened: `/proc` refuses for reasons of its own, and what else comes from
/// the root's file system, which may be asked whether the root is still valid.
pub(super) fn root_failed(error: SysError) -> Error {
    if error.is_gone() || matches!(error.errno, Errno::ACCESS | Errno::PERM) {
        return error.into();
    }
    failed("openat", b"/", error.errno)
}

fn refused(path: &[u8], kind: filesystem::Kind) -> Error {
    let (path, name) = (show(path), kind.name());
    let message = if kind.is_unknown() {
        format!("{path}: is in an {name} that the container mounted, which may show anything")
    } else {
        format!("{path}: is in a {name}, which holds no files of the container's")
    };
    Error::new(Reason::PathRefused, message)
}

/// A path as part of a line of text: what is unsafe there, and what is not UTF-8, is escaped.
pub fn show(path: &[u8]) -> String {
    let mut shown = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                c if text::is_unsafe(c) => shown.extend(c.escape_default()),
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
    fn what_is_not_a_path() {
        for bad in [&b""[..], b"a\0b", &[b'a'; MAX_PATH + 1]] {
            assert_eq!(check_path("path", bad).unwrap_err().reason, Reason::InvalidField);
        }
        assert_eq!(check_path("path", &[b'a'; MAX_PATH]), Ok(()));
    }
}
