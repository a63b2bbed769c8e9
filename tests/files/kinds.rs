//! What is not a file of the container: devices, pipes and sockets, the kernel's file systems, and
//! what is mounted over a path.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{OpenOptionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use podsonde::{domain::Reason, sys::rooted::RootedDir};
use rustix::fs::FileType;

use crate::lab::{INSIDE, Lab, with_mounts};

#[test]
fn what_is_not_a_file_is_described_and_never_opened() {
    with_mounts(|| {
        let lab = Lab::new();
        let at = |name: &str| lab.root.join(name);
        let all = Mode::from_bits_truncate(0o666);
        mknod(&at("fifo"), SFlag::S_IFIFO, all, 0).unwrap();
        mknod(&at("zero"), SFlag::S_IFCHR, all, makedev(1, 5)).unwrap();
        mknod(&at("tty"), SFlag::S_IFCHR, all, makedev(5, 0)).unwrap();
        mknod(&at("console"), SFlag::S_IFCHR, all, makedev(5, 1)).unwrap();
        mknod(&at("mem"), SFlag::S_IFCHR, all, makedev(1, 1)).unwrap();
        mknod(&at("watchdog"), SFlag::S_IFCHR, all, makedev(10, 130)).unwrap();
        mknod(&at("disk"), SFlag::S_IFBLK, all, makedev(7, 0)).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        for (name, kind) in [
            ("fifo", FileType::Fifo),
            ("zero", FileType::CharacterDevice),
            ("tty", FileType::CharacterDevice),
            ("console", FileType::CharacterDevice),
            ("mem", FileType::CharacterDevice),
            ("watchdog", FileType::CharacterDevice),
            ("disk", FileType::BlockDevice),
            ("socket", FileType::Socket),
        ] {
            symlink(name, at(&format!("link-{name}"))).unwrap();
            assert_eq!(lab.stat(name.as_bytes(), false).unwrap().kind, Some(kind));
            for path in [name.to_owned(), format!("link-{name}")] {
                assert_eq!(lab.stat(path.as_bytes(), true).unwrap().kind, Some(kind));
                assert_eq!(
                    lab.read(path.as_bytes()).unwrap_err().reason,
                    Reason::NotAFile,
                    "{path}"
                );
                assert_eq!(
                    lab.list(path.as_bytes()).unwrap_err().reason,
                    Reason::NotADirectory,
                    "{path}"
                );
            }
        }
        assert_eq!(lab.stat(b"zero", true).unwrap().device_file, (1, 5));
        // A reader, had there been one, would let a writer in.
        let writer =
            File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(at("fifo"));
        assert_eq!(writer.unwrap_err().raw_os_error(), Some(nix::libc::ENXIO));
        let kinds = lab
            .walk(b"/", false)
            .unwrap()
            .iter()
            .filter(|e| e.kind == Some(FileType::CharacterDevice))
            .count();
        assert_eq!(kinds, 5);
    });
}

#[test]
fn file_systems_of_the_kernel_are_refused() {
    with_mounts(|| {
        let lab = Lab::new();
        let mut refused = Vec::new();
        for kind in [
            "proc",
            "sysfs",
            "cgroup2",
            "mqueue",
            "devpts",
            "debugfs",
            "tracefs",
            "securityfs",
            "configfs",
            "pstore",
            "bpf",
            "binfmt_misc",
            "hugetlbfs",
            "fusectl",
            "efivarfs",
            "nfsd",
            "rpc_pipefs",
            "binder",
            "resctrl",
            "selinuxfs",
        ] {
            let place = lab.root.join(format!("a-{kind}"));
            fs::create_dir(&place).unwrap();
            if mount(Some("x"), &place, Some(kind), MsFlags::empty(), None::<&str>).is_err() {
                continue;
            }
            let path = format!("/a-{kind}");
            // Its top is told of, since it is in the list of the directory that it is in.
            let entry = lab.stat(path.as_bytes(), true).unwrap();
            assert!(entry.mount_point && entry.file_system == kind, "{kind}: {entry:?}");
            assert_eq!(
                lab.list(path.as_bytes()).unwrap_err().reason,
                Reason::PathRefused,
                "{kind}"
            );
            let mut inside = 0;
            for found in fs::read_dir(&place).unwrap().take(50) {
                let path = format!("{path}/{}", found.unwrap().file_name().display());
                for result in [
                    lab.stat(path.as_bytes(), false).map(drop),
                    lab.read(path.as_bytes()).map(drop),
                    lab.list(path.as_bytes()).map(drop),
                ] {
                    let reason = result.unwrap_err().reason;
                    assert!(
                        matches!(reason, Reason::PathRefused | Reason::PathNotFound),
                        "{path}: {reason}"
                    );
                }
                inside += 1;
            }
            // A walk names it, and says why it does not go in.
            for cross in [false, true] {
                let below = lab.walk(b"/", cross).unwrap();
                let top = below.iter().find(|e| e.path == path.as_bytes()[1..]).unwrap();
                assert_eq!(top.reason, cross.then_some(Reason::PathRefused), "{kind}");
                assert!(
                    below.iter().all(|e| !e.path.starts_with(format!("a-{kind}/").as_bytes())),
                    "{kind}"
                );
            }
            // A file or directory of it alone, bound to an innocent name.
            let some =
                fs::read_dir(&place).unwrap().filter_map(Result::ok).find(|e| e.path().is_file());
            if let Some(file) = some {
                let innocent = lab.root.join(format!("innocent-{kind}"));
                fs::write(&innocent, "").unwrap();
                mount(Some(&file.path()), &innocent, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .unwrap();
                assert_eq!(
                    lab.read(format!("innocent-{kind}").as_bytes()).unwrap_err().reason,
                    Reason::PathRefused,
                    "{kind}"
                );
            }
            refused.push(format!("{kind} ({inside})"));
        }
        println!("refused, with so many things inside each: {}", refused.join(", "));
        assert!(refused.len() >= 4, "{refused:?}");
    });
}

#[test]
fn what_is_mounted_over_a_path_is_what_is_there() {
    with_mounts(|| {
        let lab = Lab::new();
        // The kubelet binds volumes like this, and a hostile one may bind anything of its own.
        mount(
            Some(&lab.root.join("etc")),
            &lab.root.join("d"),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        fs::write(lab.root.join("etc/only"), "in etc").unwrap();
        assert_eq!(lab.read(b"/d/only").as_deref(), Ok(&b"in etc"[..]));
        assert_eq!(lab.read(b"/d/e/file").unwrap_err().reason, Reason::PathNotFound);
        mount(Some("x"), &lab.root.join("tmp"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .unwrap();
        fs::write(lab.root.join("tmp/volume"), INSIDE).unwrap();
        let names = |entries: Vec<podsonde::sys::rooted::entry::DirEntry>| {
            let points = entries
                .iter()
                .filter(|e| e.mount_point)
                .map(|e| String::from_utf8(e.path.clone()).unwrap());
            (points.collect::<Vec<_>>(), entries.iter().any(|e| e.path == b"tmp/volume"))
        };
        let (mut points, entered) = names(lab.walk(b"/", false).unwrap());
        points.sort();
        assert_eq!((points.as_slice(), entered), (&["d".to_owned(), "tmp".to_owned()][..], false));
        assert!(names(lab.walk(b"/", true).unwrap()).1);
        assert_eq!(lab.read(b"/tmp/volume").as_deref(), Ok(INSIDE));
        // Out of a mount by `..` is to where it is mounted.
        assert_eq!(lab.read(b"/tmp/../../../file").as_deref(), Ok(INSIDE));
        // A tree that holds itself is walked as deep as is allowed, and no deeper.
        mount(
            Some(&lab.root),
            &lab.root.join("d/e"),
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .ok();
        assert!(lab.walk(b"/", true).unwrap().len() < 1000);
    });
}

/// Mounts an overlay of these layers, the topmost first, as `overlay` in the lab's root.
fn overlay(lab: &Lab, layers: &[&Path]) {
    let at = lab.root.join("overlay");
    fs::create_dir_all(&at).unwrap();
    let layers: Vec<_> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
    let options = format!("lowerdir={}", layers.join(":"));
    mount(Some("x"), &at, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

#[test]
fn an_overlay_hides_no_file_system_of_the_kernel() {
    // What is below, and a file in it that a naive reader reads.
    for (kind, file) in [
        ("sysfs", "kernel/mm/transparent_hugepage/enabled"),
        ("cgroup2", "cgroup.procs"),
        ("mqueue", "queue"),
        ("debugfs", "devices_deferred"),
    ] {
        with_mounts(|| {
            let lab = Lab::new();
            let (kernels, own) = (lab.host("kernels"), lab.root.join("d"));
            fs::create_dir(&kernels).unwrap();
            mount(Some("x"), &kernels, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
            if kind == "mqueue" {
                File::create(kernels.join(file)).unwrap();
            }
            // The container's own directory above, so that the top shows nothing of the kernel's.
            overlay(&lab, &[&own, &kernels]);
            File::open(lab.root.join("overlay").join(file)).unwrap();
            let path = format!("/overlay/{file}");
            for result in
                [lab.read(path.as_bytes()).map(drop), lab.stat(path.as_bytes(), true).map(drop)]
            {
                assert_eq!(result.unwrap_err().reason, Reason::PathRefused, "{kind}");
            }
            // A walk from the top names its directories, and enters none of the kernel's.
            let walked = lab.walk(b"/", true).unwrap();
            let deepest = walked.iter().filter(|e| e.path.starts_with(b"overlay/"));
            let deepest = deepest.filter(|e| e.path.iter().filter(|b| **b == b'/').count() > 1);
            let beyond: Vec<_> = deepest.filter(|e| !e.path.starts_with(b"overlay/e/")).collect();
            assert!(beyond.is_empty(), "{kind}: {beyond:?}");
        });
    }
}

#[test]
fn an_overlay_of_files_is_read() {
    with_mounts(|| {
        let lab = Lab::new();
        overlay(&lab, &[&lab.root.join("d"), &lab.root.join("etc")]);
        assert_eq!(lab.read(b"/overlay/file").as_deref(), Ok(INSIDE));
        let walked = lab.walk(b"/overlay", false).unwrap();
        assert!(walked.iter().any(|entry| entry.path == b"e/file"), "{walked:?}");
    });
}

#[test]
fn an_overlay_with_a_layer_of_the_kernel_is_read_only_as_the_roots_own_by_the_hosts_leave() {
    with_mounts(|| {
        let lab = Lab::new();
        let kernels = lab.host("kernels");
        fs::create_dir(&kernels).unwrap();
        mount(Some("x"), &kernels, Some("mqueue"), MsFlags::empty(), None::<&str>).unwrap();
        overlay(&lab, &[&lab.root.join("d"), &kernels]);
        let open = || RootedDir::new(crate::lab::open(&lab.root.join("overlay"))).unwrap();
        let read =
            |root: &RootedDir| root.resolve(b"/file", true).map(drop).map_err(|error| error.reason);
        let mounts = |path: &Path| Ok(File::open(path).unwrap().into());
        // This thread's mounts stand for the host's, and those of a table without it for another's.
        let own = Path::new("/proc/thread-self/mountinfo");
        assert_eq!(read(&open().trusted_if_mounted(|| mounts(own)).unwrap()), Ok(()));
        let other = Path::new("/proc/self/mountinfo");
        let refused = open().trusted_if_mounted(|| mounts(other)).unwrap();
        assert_eq!(read(&refused), Err(Reason::PathRefused));
    });
}
