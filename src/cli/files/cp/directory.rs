//! A directory of this machine that a pod's files are put into. What is inside is reached by single names from here, and no symbolic link
//! is ever followed on the way: neither one that the pod sent nor one that somebody puts there meanwhile.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::Path,
};

#[cfg(unix)]
pub(super) use unix::Directory;
#[cfg(not(unix))]
pub(super) use windows::Directory;

/// What a copied file gets besides its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    /// Permission bits, at most 0777.
    pub(super) mode: u32,
    /// Whether they, and the times, are set whatever the umask says.
    pub(super) preserve: bool,
    /// When it was last read and last changed, in seconds and nanoseconds.
    pub(super) times: [(i64, i32); 2],
}

/// The name that a file of the pod gets here.
///
/// # Errors
/// Why this system has no such file.
pub(in crate::cli::files) fn local_name(name: &[u8]) -> Result<OsString, &'static str> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err("that is no file's name");
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Ok(OsStr::from_bytes(name).to_owned())
    }
    #[cfg(not(unix))]
    {
        let name = std::str::from_utf8(name).map_err(|_| "its name is not Unicode")?;
        windows_name(name).then(|| name.into()).ok_or("this system does not allow its name")
    }
}

/// Whether Windows lets a file have that name and means that file by it.
/// <https://learn.microsoft.com/windows/win32/fileio/naming-a-file>
#[cfg(any(not(unix), test))]
fn windows_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let is_device = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || stem.strip_prefix("COM").or(stem.strip_prefix("LPT")).is_some_and(|number| {
            matches!(
                number,
                "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³"
            )
        });
    let is_allowed = |c: char| !c.is_control() && !"<>:\"/\\|?*".contains(c);
    !is_device && name.chars().all(is_allowed) && !name.ends_with(['.', ' '])
}

/// Whether a symbolic link below the top of a tree leads to something in the tree. `depth`: directories between the two.
///
/// Only the first of its components may be `..`: behind another link `..` could be anywhere.
pub(super) fn stays_inside(target: &[u8], depth: usize) -> bool {
    if target.is_empty() || target.starts_with(b"/") {
        return false;
    }
    let mut ups = 0;
    let mut names = false;
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if names => return false,
            b".." => ups += 1,
            part => {
                if local_name(part).is_err() {
                    return false;
                }
                names = true;
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

    /// An open directory.
    #[derive(Debug)]
    pub(in super::super) struct Directory(OwnedFd);

    const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

    impl Directory {
        /// One that a person named: links on the way are theirs.
        pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
            Ok(Self(openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty())?))
        }

        /// One in this one.
        pub(in super::super) fn enter(&self, name: &OsStr) -> io::Result<Self> {
            Ok(Self(openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
        }

        /// Makes one in this one. One that is there is as good.
        pub(in super::super) fn make(&self, name: &OsStr, mode: u32) -> io::Result<()> {
            match mkdirat(&self.0, name, mode_of(mode | 0o700)) {
                Err(rustix::io::Errno::EXIST) => self.enter(name).map(|_| ()),
                made => Ok(made?),
            }
        }

        /// A regular file in this directory to read and write, made if it is not there.
        pub(in super::super) fn file(&self, name: &OsStr, mode: u32) -> io::Result<File> {
            // Not to wait for whoever opens a FIFO.
            let flags = OFlags::RDWR
                | OFlags::CREATE
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC
                | OFlags::NONBLOCK;
            let file = openat(&self.0, name, flags, mode_of(mode | 0o600))?;
            if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
                return Err(io::Error::other("it is not a regular file"));
            }
            Ok(File::from(file))
        }

        /// A regular file that is there.
        pub(in super::super) fn existing(&self, name: &OsStr) -> io::Result<File> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
        }

        /// Gives a finished file its attributes and its name.
        pub(in super::super) fn place(
            &self,
            file: &File,
            from: &OsStr,
            to: &OsStr,
            attributes: Attributes,
        ) -> io::Result<()> {
            // It was made with the bits that the umask leaves, and those that writing needs.
            #[allow(clippy::useless_conversion, reason = "mode_t is u16 on macOS")]
            let left = u32::from(fstat(file)?.st_mode) & 0o777;
            let mode = if attributes.preserve { attributes.mode } else { left & attributes.mode };
            fchmod(file, mode_of(mode))?;
            if attributes.preserve {
                futimens(file, &timestamps(attributes.times))?;
            }
            Ok(renameat(&self.0, from, &self.0, to)?)
        }

        /// Makes a symbolic link, in the place of another one or of nothing.
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

        /// Sets this directory's own attributes.
        pub(in super::super) fn finish(&self, attributes: Attributes) -> io::Result<()> {
            fchmod(&self.0, mode_of(attributes.mode))?;
            Ok(futimens(&self.0, &timestamps(attributes.times))?)
        }

        /// Removes a file. One that is not there is gone already.
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

/// Where directories cannot be held open: links are looked for before each step.
#[cfg(not(unix))]
mod windows {
    use std::{fs, path::PathBuf};

    use super::{Attributes, File, OsStr, Path, io};

    /// A directory that is one, and not a link to one.
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
            // Neither a symbolic link nor a junction: of both the type is not that of a directory.
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
                    return Err(io::Error::other("it is not a regular file"));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        }

        pub(in super::super) fn existing(&self, name: &OsStr) -> io::Result<File> {
            let path = self.0.join(name);
            if !fs::symlink_metadata(&path)?.file_type().is_file() {
                return Err(io::Error::other("it is not a regular file"));
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
                "symbolic links are not made on this system",
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
    fn names_that_windows_understands_otherwise() {
        for good in ["a", "a.b", ".a", "COMX", "CONSOLE", "com10", "ä", "a b"] {
            assert!(windows_name(good), "{good}");
        }
        for bad in [
            "a:b", "C:", "a\\b", "..\\x", "CON", "con.txt", "Nul", "com1", "LPT9.log", "COM¹",
            "a.", "a ", "a?", "\u{1}", "aux .c",
        ] {
            assert!(!windows_name(bad), "{bad}");
        }
    }

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
