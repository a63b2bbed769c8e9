//! A directory on this machine that receives a pod's files. Everything inside is reached step by
//! step, each a single name below an open directory, and no step follows a symbolic link: neither
//! one that the pod sent nor one that somebody puts there meanwhile.

use std::{ffi::OsStr, fs::File, io, path::Path};

use crate::cli::files::local::local_name;

#[cfg(unix)]
pub(super) use unix::Directory;
#[cfg(not(unix))]
pub(super) use windows::Directory;

/// The metadata that a copied file gets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    /// Permission bits, at most 0777.
    pub(super) mode: u32,
    /// Whether mode and times are set exactly (`-p`), instead of the mode within the umask.
    pub(super) preserve: bool,
    /// Access and modification time, in seconds and nanoseconds since 1970.
    pub(super) times: [(i64, i32); 2],
}

/// Whether a symbolic link leads to something inside its tree. `depth` counts the directories
/// between the top of the tree and the link.
///
/// `..` may only stand at the start of the target: after a name, that name could be a link, and
/// `..` of what it leads to could be anywhere.
pub(super) fn stays_inside(target: &[u8], depth: usize) -> bool {
    if target.is_empty() || target.starts_with(b"/") {
        return false;
    }
    let mut ups = 0;
    let mut has_names = false;
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if has_names => return false,
            b".." => ups += 1,
            part => {
                if local_name(part).is_err() {
                    return false;
                }
                has_names = true;
            }
        }
    }
    ups <= depth
}

#[cfg(unix)]
mod unix {
    use std::os::fd::OwnedFd;

    use rustix::fs::{
        AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, fchmod, fstat, futimens, mkdirat,
        openat, renameat, statat, symlinkat, unlinkat,
    };

    use super::{Attributes, File, OsStr, Path, io};

    /// An open directory, which stays the same when its path is renamed or replaced.
    #[derive(Debug)]
    pub(in super::super) struct Directory(OwnedFd);

    const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

    impl Directory {
        /// Opens a directory that a person named; links on the way are that person's own.
        pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
            Ok(Self(openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty())?))
        }

        /// Opens a subdirectory.
        pub(in super::super) fn enter(&self, name: &OsStr) -> io::Result<Self> {
            Ok(Self(openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
        }

        /// Creates a subdirectory; an existing one is fine.
        pub(in super::super) fn make(&self, name: &OsStr, mode: u32) -> io::Result<()> {
            match mkdirat(&self.0, name, mode_of(mode | 0o700)) {
                Err(rustix::io::Errno::EXIST) => self.enter(name).map(|_| ()),
                made => Ok(made?),
            }
        }

        /// Opens a regular file to read and write, and creates it if it does not exist.
        pub(in super::super) fn file(&self, name: &OsStr, mode: u32) -> io::Result<File> {
            // Opening a FIFO would wait for its other end without NONBLOCK.
            let flags = OFlags::RDWR
                | OFlags::CREATE
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC
                | OFlags::NONBLOCK;
            let file = openat(&self.0, name, flags, mode_of(mode | 0o600))?;
            if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
                return Err(io::Error::other("not a regular file"));
            }
            Ok(File::from(file))
        }

        /// Opens an existing file to read.
        pub(in super::super) fn existing(&self, name: &OsStr) -> io::Result<File> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
        }

        /// Gives a finished file its metadata and then its name, replacing what had the name.
        pub(in super::super) fn place(
            &self,
            file: &File,
            from: &OsStr,
            to: &OsStr,
            attributes: Attributes,
        ) -> io::Result<()> {
            // The file was created with the mode's bits that the umask leaves, plus 0600.
            #[allow(clippy::useless_conversion, reason = "mode_t is u16 on macOS")]
            let left = u32::from(fstat(file)?.st_mode) & 0o777;
            let mode = if attributes.preserve { attributes.mode } else { left & attributes.mode };
            fchmod(file, mode_of(mode))?;
            if attributes.preserve {
                futimens(file, &timestamps(attributes.times))?;
            }
            Ok(renameat(&self.0, from, &self.0, to)?)
        }

        /// Creates a symbolic link. It replaces another link, but nothing else.
        pub(in super::super) fn link(&self, target: &[u8], name: &OsStr) -> io::Result<()> {
            use std::os::unix::ffi::OsStrExt;
            let target = OsStr::from_bytes(target);
            match symlinkat(target, &self.0, name) {
                Err(rustix::io::Errno::EXIST) => {
                    let there = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    if FileType::from_raw_mode(there.st_mode) != FileType::Symlink {
                        return Err(rustix::io::Errno::EXIST.into());
                    }
                    unlinkat(&self.0, name, AtFlags::empty())?;
                    Ok(symlinkat(target, &self.0, name)?)
                }
                made => Ok(made?),
            }
        }

        /// Sets the directory's own metadata.
        pub(in super::super) fn finish(&self, attributes: Attributes) -> io::Result<()> {
            fchmod(&self.0, mode_of(attributes.mode))?;
            Ok(futimens(&self.0, &timestamps(attributes.times))?)
        }

        /// Removes a file; one that does not exist is fine.
        pub(in super::super) fn remove(&self, name: &OsStr) -> io::Result<()> {
            match unlinkat(&self.0, name, AtFlags::empty()) {
                Err(rustix::io::Errno::NOENT) => Ok(()),
                removed => Ok(removed?),
            }
        }
    }

    fn mode_of(mode: u32) -> Mode {
        #[allow(clippy::useless_conversion, reason = "mode_t is u16 on macOS")]
        Mode::from_raw_mode((mode & 0o777).try_into().unwrap_or_default())
    }

    fn timestamps(times: [(i64, i32); 2]) -> Timestamps {
        let [last_access, last_modification] =
            times.map(|(seconds, nanos)| Timespec { tv_sec: seconds, tv_nsec: nanos.into() });
        Timestamps { last_access, last_modification }
    }
}

/// Windows cannot open files relative to a directory, so each step checks for links first. A link
/// that appears between check and use is followed; hostile local users are out of scope there.
#[cfg(not(unix))]
mod windows {
    use std::{fs, path::PathBuf};

    use super::{Attributes, File, OsStr, Path, io};

    /// A directory by its path.
    #[derive(Debug)]
    pub(in super::super) struct Directory(PathBuf);

    impl Directory {
        pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
            let path = fs::canonicalize(path)?;
            if !path.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Ok(Self(path))
        }

        pub(in super::super) fn enter(&self, name: &OsStr) -> io::Result<Self> {
            let path = self.0.join(name);
            // Symbolic links and junctions have types other than that of a directory.
            if !fs::symlink_metadata(&path)?.file_type().is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Ok(Self(path))
        }

        pub(in super::super) fn make(&self, name: &OsStr, _: u32) -> io::Result<()> {
            match fs::create_dir(self.0.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.enter(name).map(|_| ())
                }
                made => made,
            }
        }

        pub(in super::super) fn file(&self, name: &OsStr, _: u32) -> io::Result<File> {
            let path = self.0.join(name);
            match fs::symlink_metadata(&path) {
                Ok(found) if !found.file_type().is_file() => {
                    return Err(io::Error::other("not a regular file"));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        }

        pub(in super::super) fn existing(&self, name: &OsStr) -> io::Result<File> {
            let path = self.0.join(name);
            if !fs::symlink_metadata(&path)?.file_type().is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            File::open(path)
        }

        pub(in super::super) fn place(
            &self,
            file: &File,
            from: &OsStr,
            to: &OsStr,
            attributes: Attributes,
        ) -> io::Result<()> {
            if attributes.preserve {
                let [_, (seconds, nanos)] = attributes.times;
                let since = std::time::Duration::new(
                    seconds.try_into().unwrap_or(0),
                    nanos.try_into().unwrap_or(0),
                );
                file.set_modified(std::time::UNIX_EPOCH + since)?;
            }
            fs::rename(self.0.join(from), self.0.join(to))
        }

        pub(in super::super) fn link(&self, _: &[u8], _: &OsStr) -> io::Result<()> {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "symbolic links cannot be created on this system",
            ))
        }

        pub(in super::super) fn finish(&self, _: Attributes) -> io::Result<()> {
            Ok(())
        }

        pub(in super::super) fn remove(&self, name: &OsStr) -> io::Result<()> {
            match fs::remove_file(self.0.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_stay_inside() {
        for (target, depth) in
            [("a", 0), ("a/b", 0), ("../a", 1), ("./a", 0), ("../../a/b", 2), ("..", 1), (".", 0)]
        {
            assert!(stays_inside(target.as_bytes(), depth), "{target} {depth}");
        }
        for (target, depth) in [
            ("", 3),
            ("/a", 3),
            ("../a", 0),
            ("a/../b", 3),
            ("../../a", 1),
            ("a/..", 1),
            ("../a/../../x", 3),
            ("a\0b", 1),
        ] {
            assert!(!stays_inside(target.as_bytes(), depth), "{target} {depth}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn no_link_is_followed() {
        use std::os::unix::fs::symlink;
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = OsStr::new("link");
        symlink(outside.path(), inside.path().join(name)).unwrap();
        let directory = Directory::open(inside.path()).unwrap();
        assert!(directory.enter(name).is_err() && directory.make(name, 0o777).is_err());
        assert!(directory.file(name, 0o600).is_err() && directory.existing(name).is_err());
        symlink(outside.path().join("made"), inside.path().join("file")).unwrap();
        assert!(directory.file(OsStr::new("file"), 0o600).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        // What takes the link's name takes its place.
        let part = directory.file(OsStr::new("part"), 0o600).unwrap();
        let attributes = Attributes { mode: 0o644, preserve: true, times: [(1, 2), (3, 4)] };
        directory.place(&part, OsStr::new("part"), name, attributes).unwrap();
        assert!(inside.path().join(name).symlink_metadata().unwrap().is_file());
    }
}
