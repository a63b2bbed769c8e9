//! Builds a container's file tree: a tmpfs into which single files and directories of the host are
//! bound. Nothing is written to disk, and all of it goes with the mount namespace.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown, symlink},
    },
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::{FsFlags, statvfs},
};

use super::plan::{RootPlan, UserRange};

/// The mount point of the tree while it is built: an existing directory, covered in the launcher's
/// mount namespace only.
pub(super) const STAGE: &str = "/tmp";

/// The device files that a container runtime puts into every container.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];
const DIRECTORIES: [&str; 9] =
    ["/proc", "/sys", "/dev/pts", "/dev/shm", "/etc", "/root", "/run", "/tmp", "/var/log"];
/// Top-level directories with programs and libraries on various distributions.
const HOST_PROGRAMS: [&str; 8] = ["bin", "sbin", "usr", "lib", "lib32", "lib64", "libx32", "nix"];

/// A file or directory of the host to bind. It is opened before the stage covers what lies below
/// it.
struct HostSource {
    file: File,
    target: PathBuf,
    directory: bool,
    read_only: bool,
}

impl HostSource {
    fn open(path: &Path, target: impl Into<PathBuf>, read_only: bool) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        let directory =
            file.metadata().with_context(|| format!("stat {}", path.display()))?.is_dir();
        Ok(Self { file, target: target.into(), directory, read_only })
    }
}

/// Builds the tree and mounts it on [`STAGE`]. The caller must have a private mount namespace and
/// the rights in the pod's parent user namespace.
pub(super) fn stage(plan: &RootPlan, user: Option<UserRange>) -> anyhow::Result<()> {
    let mut sources = Vec::new();
    let mut links: Vec<(PathBuf, PathBuf)> =
        LINKS.map(|(link, target)| (PathBuf::from(link), PathBuf::from(target))).to_vec();
    let program = std::env::current_exe().context("find the podsonde binary")?;
    sources.push(HostSource::open(&program, &plan.program, true)?);
    if plan.host_programs {
        for name in HOST_PROGRAMS {
            let path = Path::new("/").join(name);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() => {
                    links.push((path.clone(), relative_link(&path)?));
                }
                Ok(_) => sources.push(HostSource::open(&path, &path, true)?),
                Err(_) => {}
            }
        }
    } else {
        for link in ["/bin", "/lib", "/lib64"]
            .map(PathBuf::from)
            .into_iter()
            .filter(|path| path.is_symlink())
        {
            links.push((link.clone(), relative_link(&link)?));
        }
        for (library, link_names) in libraries(&program)? {
            for link in link_names {
                links.push((link, library.clone()));
            }
            sources.push(HostSource::open(&library, &library, true)?);
        }
    }
    for device in DEVICES {
        sources.push(HostSource::open(
            &Path::new("/dev").join(device),
            Path::new("/dev").join(device),
            false,
        )?);
    }
    if plan.host_proc {
        sources.push(HostSource::open(Path::new("/proc"), "/proc", false)?);
    }
    for volume in &plan.mounts {
        sources.push(HostSource::open(&volume.source, &volume.target, volume.read_only)?);
    }

    mount(
        Some("tmpfs"),
        STAGE,
        Some("tmpfs"),
        MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
        Some("mode=0755,size=256m"),
    )
    .context("mount a tmpfs for the root")?;
    let tree = Tree { owner: user.map(|user| user.base) };
    tree.own(Path::new(STAGE))?;
    for directory in DIRECTORIES.into_iter().chain(plan.directories.iter().map(String::as_str)) {
        tree.directory(Path::new(directory))?;
    }
    for (directory, mode) in [("/tmp", 0o1777), ("/dev/shm", 0o1777), ("/root", 0o700)] {
        fs::set_permissions(tree.path(Path::new(directory))?, fs::Permissions::from_mode(mode))?;
    }
    for (link, target) in links {
        tree.link(&link, &target)?;
    }
    for (path, text) in &plan.files {
        tree.file(Path::new(path))?.write_all(text.as_bytes())?;
    }
    for source in sources {
        tree.bind(&source).with_context(|| format!("bind {}", source.target.display()))?;
    }
    Ok(())
}

/// The tree while it is built. Paths are those inside the tree.
struct Tree {
    owner: Option<u32>,
}

impl Tree {
    /// The path from outside while the tree is built. A path across a symbolic link in a volume is
    /// refused, because the link's target is not the runtime's to choose.
    fn path(&self, inside: &Path) -> anyhow::Result<PathBuf> {
        let mut path = PathBuf::from(STAGE);
        for component in inside.components() {
            match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => path.push(name),
                Component::ParentDir | Component::Prefix(_) => {
                    bail!("path {} must not contain '..'", inside.display())
                }
            }
            while let Ok(target) = fs::read_link(&path) {
                if target.is_absolute()
                    || target.components().any(|part| part == Component::ParentDir)
                {
                    bail!("path {} crosses a symbolic link", inside.display());
                }
                path.pop();
                path.push(target);
            }
        }
        Ok(path)
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        match self.owner {
            Some(owner) => chown(path, Some(owner), Some(owner)),
            None => Ok(()),
        }
    }

    fn directory(&self, inside: &Path) -> anyhow::Result<PathBuf> {
        let path = self.path(inside)?;
        let missing: Vec<&Path> =
            path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
        for directory in missing.into_iter().rev() {
            fs::create_dir(directory)
                .and_then(|()| self.own(directory))
                .with_context(|| format!("make the directory {}", inside.display()))?;
        }
        Ok(path)
    }

    fn file(&self, inside: &Path) -> anyhow::Result<File> {
        if let Some(parent) = inside.parent() {
            self.directory(parent)?;
        }
        let path = self.path(inside)?;
        let file =
            File::create(&path).with_context(|| format!("make the file {}", inside.display()))?;
        self.own(&path)?;
        Ok(file)
    }

    fn link(&self, inside: &Path, target: &Path) -> anyhow::Result<()> {
        if let Some(parent) = inside.parent() {
            self.directory(parent)?;
        }
        let path = self.path(inside)?;
        if !path.exists() {
            symlink(target, &path)
                .with_context(|| format!("make the link {}", inside.display()))?;
        }
        Ok(())
    }

    fn bind(&self, source: &HostSource) -> anyhow::Result<()> {
        let target = if source.directory {
            self.directory(&source.target)?
        } else {
            let path = self.path(&source.target)?;
            if !path.exists() {
                self.file(&source.target)?;
            }
            path
        };
        let origin = format!("/proc/self/fd/{}", source.file.as_raw_fd());
        mount(
            Some(origin.as_str()),
            &target,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )?;
        if source.read_only {
            make_read_only(&target)?;
        }
        Ok(())
    }
}

/// Remounts one mount read-only, with the restrictions that it has: in a user namespace the kernel
/// refuses to lift them.
pub(super) fn make_read_only(path: &Path) -> nix::Result<()> {
    const KEPT: [(FsFlags, MsFlags); 6] = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let present = statvfs(path)?.flags();
    let flags =
        KEPT.into_iter().filter(|(present_flag, _)| present.contains(*present_flag)).fold(
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            |flags, (_, flag)| flags | flag,
        );
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
}

/// Unmounts what the rootless fallback mounted over `/proc/<pid>/cgroup`. Copied into another user
/// namespace, these mounts would be locked, and the kernel then refuses to mount a new proc.
pub(super) fn uncover_proc() -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    for target in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
        if target.starts_with("/proc/") && target.ends_with("/cgroup") {
            // An error means that the process has ended, and the mount with it.
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// The target of a link in the host's root directory, made relative, so that it holds below any
/// root.
fn relative_link(link: &Path) -> anyhow::Result<PathBuf> {
    let target =
        fs::read_link(link).with_context(|| format!("read the link {}", link.display()))?;
    Ok(target.strip_prefix("/").map(Path::to_owned).unwrap_or(target))
}

/// The shared libraries that this process has loaded, each with the names by which the loader finds
/// it.
fn libraries(program: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<PathBuf>)>> {
    let maps = fs::read_to_string("/proc/self/maps").context("read the process's own mappings")?;
    let loaded: BTreeSet<PathBuf> = maps
        .lines()
        .filter(|line| {
            line.split_ascii_whitespace().nth(1).is_some_and(|access| access.contains('x'))
        })
        .filter_map(|line| line.find('/').and_then(|start| line.get(start..)))
        .map(PathBuf::from)
        .filter(|path| path != program)
        .collect();
    loaded
        .into_iter()
        .map(|library| {
            let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let stem = name.split(['.', '-']).next().unwrap_or_default().to_owned();
            let directory = library.parent().unwrap_or(Path::new("/"));
            let mut links = Vec::new();
            for directory in [directory, Path::new("/lib"), Path::new("/lib64")] {
                let entries = fs::read_dir(directory).into_iter().flatten().flatten();
                links.extend(
                    entries
                        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
                        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&stem))
                        .map(|entry| entry.path())
                        .filter(|link| fs::canonicalize(link).is_ok_and(|path| path == library)),
                );
            }
            Ok((library, links))
        })
        .collect()
}
