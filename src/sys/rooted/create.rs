//! Writing a new file, or a new one in the place of another. It gets its name only once it is
//! complete.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fchmod, linkat, openat, renameat, unlinkat},
    io::{Errno, write},
};

use super::{
    RootedDir, check_path,
    directory::Directory,
    entry::{self, DirEntry},
    failed, show,
};
use crate::domain::{Error, Reason, Result};

/// A file that is being written.
#[derive(Debug)]
pub struct Creation {
    root: Arc<RootedDir>,
    path: Vec<u8>,
    directory: Directory,
    name: CString,
    fd: OwnedFd,
    /// The name it has until it is complete, where the file system has no files without names.
    temporary: Option<CString>,
}

impl RootedDir {
    /// Begins a file at `path`, in an existing directory, with the permission bits of `mode`.
    ///
    /// # Errors
    /// Those of [`RootedDir::resolve`]; READ_ONLY_FILE_SYSTEM, FILE_SYSTEM_FULL.
    pub fn create(self: &Arc<Self>, path: &[u8], mode: u32) -> Result<Creation> {
        check_path("path", path)?;
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => path.split_at(at.saturating_add(1)),
            None => (&b"/"[..], path),
        };
        let name =
            CString::new(name).ok().filter(|name| !matches!(name.to_bytes(), b"" | b"." | b".."));
        let name =
            name.ok_or_else(|| Error::invalid("path", "does not end with the name of a file"))?;
        let directory = self.resolve(parent, true)?.open_directory(self)?;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let failed = |op| move |errno| failed(op, path, errno);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let (fd, temporary) =
            match openat(directory.fd(), c".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
                Ok(fd) => (fd, None),
                // NFS and others have no files without names.
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                    let name = temporary_name();
                    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                    let fd = openat(directory.fd(), &name, flags, Mode::RUSR | Mode::WUSR)
                        .map_err(failed("openat"))?;
                    (fd, Some(name))
                }
                Err(errno) => return Err(failed("openat")(errno)),
            };
        let this = Creation {
            root: Arc::clone(self),
            path: path.to_owned(),
            directory,
            name,
            fd,
            temporary,
        };
        // Not subject to the agent's umask, as `openat` is.
        fchmod(&this.fd, mode).map_err(failed("fchmod"))?;
        Ok(this)
    }
}

impl Creation {
    /// Appends to its content, at the latest until `until`.
    ///
    /// # Errors
    /// FILE_SYSTEM_FULL, FILE_SYSTEM_FAILED; FILE_SYSTEM_STUCK if not all of it was written by
    /// then: a FUSE may take it byte by byte.
    pub fn write(&self, mut data: &[u8], until: Instant) -> Result<()> {
        while !data.is_empty() {
            if Instant::now() >= until {
                let path = show(&self.path);
                let message = format!("{path}: the file system writes too slowly");
                return Err(Error::new(Reason::FileSystemStuck, message));
            }
            match write(&self.fd, data) {
                Ok(0) => return Err(failed("write", &self.path, Errno::NOSPC)),
                Ok(written) => data = data.get(written..).unwrap_or_default(),
                Err(errno) => return Err(failed("write", &self.path, errno)),
            }
        }
        Ok(())
    }

    /// Gives the file its name. Replaces a regular file of that name only if `overwrite`.
    ///
    /// # Errors
    /// FILE_EXISTS, NOT_A_FILE, READ_ONLY_FILE_SYSTEM, FILE_SYSTEM_FULL.
    pub fn complete(mut self, overwrite: bool) -> Result<DirEntry> {
        let path = self.path.clone();
        let failure = |op, errno| failed(op, &path, errno);
        let directory = self.directory.fd();
        if overwrite {
            match entry::describe_at(directory, &self.name, &self.path) {
                Ok((found, _)) if found.kind != Some(FileType::RegularFile) => {
                    let message =
                        format!("{}: is {}, not a file", show(&self.path), found.kind_name());
                    return Err(Error::new(Reason::NotAFile, message));
                }
                Ok(_) => {}
                Err(error) if error.reason == Reason::PathNotFound => {}
                Err(error) => return Err(error),
            }
            let temporary = match self.temporary.take() {
                Some(name) => name,
                None => {
                    let name = temporary_name();
                    self.link(&name).map_err(|errno| failure("linkat", errno))?;
                    name
                }
            };
            if let Err(errno) = renameat(directory, &temporary, directory, &self.name) {
                let _ = unlinkat(directory, &temporary, AtFlags::empty());
                return Err(failure("renameat", errno));
            }
        } else {
            self.link(&self.name).map_err(|errno| failure("linkat", errno))?;
        }
        entry::describe(&self.fd, &self.path).map(|(entry, _)| entry)
    }

    /// Links it, by its temporary name or by its descriptor.
    fn link(&self, name: &CString) -> Result<(), Errno> {
        let directory = self.directory.fd();
        match &self.temporary {
            Some(temporary) => linkat(directory, temporary, directory, name, AtFlags::empty()),
            None => {
                let own = format!("self/fd/{}", self.fd.as_raw_fd());
                linkat(self.root.proc.as_fd(), own, directory, name, AtFlags::SYMLINK_FOLLOW)
            }
        }
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(self.directory.fd(), temporary, AtFlags::empty());
        }
    }
}

/// A name that cannot be guessed.
fn temporary_name() -> CString {
    let mut random = [0_u8; 16];
    // Without randomness the name could be guessed, but not used: it must not exist.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    CString::new(format!(".podsonde-{digits}")).unwrap_or_default()
}
