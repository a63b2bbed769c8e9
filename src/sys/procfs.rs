//! The `/proc` of the node, read through descriptors. Only `/proc` itself is opened by path, once.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{self, AtFlags, Dir, Mode, OFlags},
    io::Errno,
};

use super::SysError;
use crate::domain::namespace::{NamespaceId, NamespaceKind, NamespaceSet};

/// Bytes after which a file of `/proc` is cut. The longest file that is read, a `cgroup` file with
/// all hierarchies of v1, is far shorter.
const MAX_FILE: usize = 64 * 1024;

/// An open `/proc`.
#[derive(Debug)]
pub struct Proc {
    dir: OwnedFd,
    own_pod: Option<String>,
}

impl Proc {
    /// Opens `/proc`.
    ///
    /// # Errors
    /// If it cannot be opened, or is not a procfs.
    pub fn open() -> Result<Self, SysError> {
        const PROC_SUPER_MAGIC: i64 = 0x9fa0;
        // Not O_PATH: processes are listed through this descriptor, too.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::open("/proc", flags, Mode::empty()).map_err(SysError::of("open", "/proc"))?;
        let kind = fs::fstatfs(&dir).map_err(SysError::of("fstatfs", "/proc"))?.f_type;
        if kind != PROC_SUPER_MAGIC {
            return Err(SysError::new("fstatfs", "/proc is not a procfs", Errno::NODEV));
        }
        Ok(Self { dir, own_pod: None })
    }

    /// Sets the UID of the pod that the reader runs in: what a cgroup path that begins with `/..`
    /// leads into.
    pub fn set_own_pod(&mut self, uid: Option<String>) {
        self.own_pod = uid;
    }

    /// The UID of the pod that the reader runs in, if it was set.
    pub fn own_pod(&self) -> Option<&str> {
        self.own_pod.as_deref()
    }

    /// The pids of all processes, in the kernel's order.
    ///
    /// # Errors
    /// If `/proc` cannot be listed.
    pub fn pids(&self) -> Result<Vec<u32>, SysError> {
        let mut pids = Vec::with_capacity(512);
        for entry in Dir::read_from(&self.dir).map_err(SysError::of("open", "/proc"))? {
            let entry = entry.map_err(SysError::of("getdents64", "/proc"))?;
            pids.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(pids)
    }

    /// Opens the directory of a process.
    ///
    /// # Errors
    /// ENOENT if there is none.
    pub fn process(&self, pid: u32) -> Result<ProcessDir, SysError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::openat(&self.dir, pid.to_string(), flags, Mode::empty())
            .map_err(SysError::of("openat", format_args!("/proc/{pid}")))?;
        Ok(ProcessDir { pid, dir })
    }

    /// Opens for real what the calling process holds as O_PATH.
    ///
    /// # Errors
    /// EACCES if the calling thread has no right to.
    pub fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let link = format!("self/fd/{}", fd.as_fd().as_raw_fd());
        fs::openat(&self.dir, link, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Reads a file of a process without opening its directory: the cheap way for a pass over all
    /// processes.
    ///
    /// # Errors
    /// ENOENT or ESRCH if the process has ended.
    pub fn read<'b>(
        &self,
        pid: u32,
        name: &str,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b str, SysError> {
        read(&self.dir, &format!("{pid}/{name}"), buffer)
    }
}

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// The open directory of one process. Once the process has ended, everything below fails, even if
/// its pid is in use again.
#[derive(Debug)]
pub struct ProcessDir {
    pid: u32,
    dir: OwnedFd,
}

impl ProcessDir {
    /// Reads a file of it.
    ///
    /// # Errors
    /// ESRCH if the process has ended.
    pub fn read<'b>(&self, name: &str, buffer: &'b mut Vec<u8>) -> Result<&'b str, SysError> {
        read(&self.dir, name, buffer)
    }

    /// Its namespaces. Kinds that the kernel lacks or that may not be read are absent.
    pub fn namespaces(&self) -> NamespaceSet {
        NamespaceSet::from_fn(|kind| self.identity(link(kind)).ok())
    }

    /// Opens a link below it, such as `ns/pid`, and follows it.
    ///
    /// # Errors
    /// ESRCH if the process has ended, EACCES if it may not be looked into.
    pub fn open(&self, name: &str) -> Result<OwnedFd, SysError> {
        fs::openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(SysError::of("openat", format_args!("/proc/{}/{name}", self.pid)))
    }

    /// Opens a link below it to a directory, such as `root`, as O_PATH, and follows it. The file
    /// system it leads to may be asked whether the directory is still valid, and may never answer.
    ///
    /// # Errors
    /// ESRCH if the process has ended, EACCES if it may not be looked into.
    pub fn open_path(&self, name: &str) -> Result<OwnedFd, SysError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(&self.dir, name, flags, Mode::empty())
            .map_err(SysError::of("openat", format_args!("/proc/{}/{name}", self.pid)))
    }

    fn identity(&self, name: &str) -> Result<NamespaceId, SysError> {
        let stat = fs::statat(&self.dir, name, AtFlags::empty())
            .map_err(SysError::of("fstatat", format_args!("/proc/{}/{name}", self.pid)))?;
        Ok(NamespaceId { dev: stat.st_dev, ino: stat.st_ino })
    }
}

/// The link that stands for a namespace of a process.
const fn link(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Ipc => "ns/ipc",
        NamespaceKind::Net => "ns/net",
        NamespaceKind::Uts => "ns/uts",
        NamespaceKind::Pid => "ns/pid",
        NamespaceKind::Mnt => "ns/mnt",
        NamespaceKind::Cgroup => "ns/cgroup",
        NamespaceKind::User => "ns/user",
        NamespaceKind::Time => "ns/time",
    }
}

/// Reads a whole file as text, at most [`MAX_FILE`] bytes. If it is not UTF-8, as a command name in
/// `stat` may be, drops all that is not ASCII.
fn read<'b>(at: impl AsFd, path: &str, buffer: &'b mut Vec<u8>) -> Result<&'b str, SysError> {
    let file = fs::openat(at, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(SysError::of("openat", format_args!("/proc/{path}")))?;
    buffer.clear();
    while buffer.len() < MAX_FILE {
        buffer.reserve(4096);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(buffer)) {
            // The kernel fills the room there is, so room that is left means that this was all.
            Ok(_) if buffer.len() < buffer.capacity() => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(SysError::new("read", format!("/proc/{path}"), errno)),
        }
    }
    if std::str::from_utf8(buffer).is_err() {
        buffer.retain(u8::is_ascii);
    }
    Ok(std::str::from_utf8(buffer).unwrap_or_default())
}
