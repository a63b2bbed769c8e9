//! Hostile roots, straight against what resolves paths in them. Each case that leads a naive reader out is counted, and must be some.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{OpenOptionsExt, chown, symlink},
            net::UnixListener,
        },
    },
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use podsonde::domain::Reason;
use rustix::fs::{FileType, RenameFlags, renameat_with};

use crate::lab::{CANARY, CANARY_NAME, INSIDE, Lab, checked, run_as, user, with_mounts};

/// Where links of a hostile root lead: to what, and as what they may end.
fn targets(lab: &Lab, canary: &File) -> Vec<(String, &'static [Reason])> {
    const NONE: &[Reason] = &[Reason::PathNotFound];
    const PROC: &[Reason] = &[Reason::PathRefused, Reason::PathNotFound, Reason::FilePermission];
    let absolute = lab.host("outside").join(CANARY_NAME).display().to_string();
    let fd = canary.as_raw_fd();
    let mut targets = vec![
        (absolute.clone(), NONE),
        (format!("/..{absolute}"), NONE),
        (format!("//{absolute}"), NONE),
    ];
    for ups in [1, 2, 3, 8, 64] {
        targets.push((format!("{}{CANARY_NAME}", "../".repeat(ups)), NONE));
        targets.push((format!("{}{absolute}", "../".repeat(ups)), NONE));
    }
    let pid = std::process::id();
    for magic in [
        format!("/proc/self/root{absolute}"),
        format!("/proc/1/root{absolute}"),
        format!("/proc/{pid}/root{absolute}"),
        format!("/proc/thread-self/root{absolute}"),
        format!("/proc/self/task/{pid}/root{absolute}"),
        format!("/proc/self/cwd{absolute}"),
        format!("/proc/self/fd/{fd}"),
        format!("/proc/{pid}/fd/{fd}"),
        format!("/proc/thread-self/fd/{fd}"),
        format!("/dev/fd/{fd}"),
        "/proc/self/exe".to_owned(),
        "/proc/self/environ".to_owned(),
        "/proc/self/maps".to_owned(),
        "/proc/1/environ".to_owned(),
        "/proc/kcore".to_owned(),
        "/proc/self/mounts".to_owned(),
        format!("/elsewhere/self/root{absolute}"),
        format!("/elsewhere/{pid}/root{absolute}"),
        "/elsewhere/self/environ".to_owned(),
    ] {
        targets.push((magic, PROC));
    }
    targets
}

#[test]
fn no_link_leads_out() {
    with_mounts(|| {
        let lab = Lab::new();
        let root = |path: &str| lab.root.join(path);
        // As in a container that shares the host's pid namespace, and once more under another name.
        fs::create_dir(root("elsewhere")).unwrap();
        for place in ["proc", "elsewhere"] {
            mount(Some("proc"), &root(place), Some("proc"), MsFlags::empty(), None::<&str>)
                .unwrap();
        }
        symlink("/proc/self/fd", root("dev/fd")).unwrap();
        let canary = File::open(lab.host("outside").join(CANARY_NAME)).unwrap();
        let (mut cases, mut naive) = (0, 0);
        for (number, (target, reasons)) in targets(&lab, &canary).into_iter().enumerate() {
            // The file itself, and its directory on the way to it.
            let (parent, name) = target.rsplit_once('/').unwrap();
            for (position, link, rest) in [
                ("last", target.as_str(), ""),
                ("on the way", parent, name),
                ("in between", parent, name),
            ] {
                for chain in [1, 2, 7, 39, 60] {
                    let at = format!(
                        "{}{number}-{}-{chain}",
                        if position == "in between" { "d/e/" } else { "" },
                        position.replace(' ', "")
                    );
                    let link = if link.is_empty() { "/" } else { link };
                    for i in 0..chain {
                        let to = if i + 1 == chain {
                            link.to_owned()
                        } else {
                            format!("{}-{}", root_name(&at), i + 1)
                        };
                        symlink(to, root(&format!("{at}-{i}"))).unwrap();
                    }
                    let path = match rest {
                        "" => format!("/{at}-0"),
                        rest => format!("/{at}-0/{rest}"),
                    };
                    for path in [
                        path.clone(),
                        path.trim_start_matches('/').to_owned(),
                        format!("/d/../{path}"),
                        format!("{path}/."),
                    ] {
                        let what = format!("{path} -> {target} ({position}, {chain} links)");
                        cases += 1;
                        naive += usize::from(
                            fs::read(root(path.trim_start_matches('/')))
                                .is_ok_and(|data| data == CANARY),
                        );
                        match checked(&what, lab.read(path.as_bytes())) {
                            Ok(_) => panic!("{what}: read something"),
                            Err(Reason::TooManyLinks) if chain > 30 => {}
                            Err(Reason::NotADirectory) if path.ends_with('.') => {}
                            // Some other test renames as fast as it can.
                            Err(Reason::FileChanged)
                                if path.contains("..") || target.contains("..") => {}
                            Err(reason) => assert!(reasons.contains(&reason), "{what}: {reason}"),
                        }
                        // What is told of it is told of the link alone.
                        if let Ok(entry) = lab.stat(path.as_bytes(), false)
                            && entry.kind != Some(FileType::Symlink)
                        {
                            panic!("{what}: {entry:?}");
                        }
                        let listed = lab.list(path.as_bytes()).unwrap_or_default();
                        assert!(
                            listed.iter().all(|e| e.path != CANARY_NAME.as_bytes()),
                            "{what}: {listed:?}"
                        );
                    }
                }
            }
        }
        println!(
            "{cases} ways out, of which {naive} lead a naive reader to the host's files, and none this one"
        );
        assert!(cases > 200 && naive > 100);
    });
}

/// Relative names of a chain's links: within their own directory.
fn root_name(at: &str) -> &str {
    at.rsplit('/').next().unwrap()
}

#[test]
fn what_is_inside_is_found() {
    let lab = Lab::new();
    symlink("/etc/../../../../d/file", lab.root.join("absolute")).unwrap();
    symlink("../../../../../../etc/file", lab.root.join("d/up")).unwrap();
    symlink("/d", lab.root.join("directory")).unwrap();
    for path in [
        "file",
        "/file",
        "/absolute",
        "/d/up",
        "/directory/file",
        "/directory/../file",
        "/../file",
        "d/e/../../file",
    ] {
        assert_eq!(lab.read(path.as_bytes()).as_deref(), Ok(INSIDE), "{path}");
    }
    assert_eq!(lab.read(b"/nothing").unwrap_err().reason, Reason::PathNotFound);
    assert_eq!(lab.read(b"/file/x").unwrap_err().reason, Reason::NotADirectory);
    assert_eq!(lab.read(b"/d").unwrap_err().reason, Reason::NotAFile);
    assert_eq!(lab.list(b"/file").unwrap_err().reason, Reason::NotADirectory);
    symlink("loop", lab.root.join("loop")).unwrap();
    assert_eq!(lab.read(b"/loop").unwrap_err().reason, Reason::TooManyLinks);
    for bad in [&b""[..], b"a\0b", b"\0", &[b'a'; 4096], &[b'a'; 300]] {
        assert_eq!(lab.read(bad).unwrap_err().reason, Reason::InvalidField);
    }
    let mut longest = "d/../".repeat(818).into_bytes();
    longest.extend_from_slice(b".file");
    longest.truncate(4095);
    longest[4090..].copy_from_slice(b"/file");
    assert_eq!(longest.len(), 4095);
    assert_eq!(lab.read(&longest).as_deref(), Ok(INSIDE));
}

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

#[test]
fn sizes_mean_nothing() {
    let lab = Lab::new();
    let sparse = File::create(lab.root.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let content = lab.open(b"sparse").unwrap();
    assert_eq!(content.read((1 << 40) - 10, 100).unwrap(), [0; 10]);
    assert!(content.read(u64::MAX - 5, 100).unwrap().is_empty());
    assert!(content.read(1 << 62, 100).unwrap().is_empty());

    let path = lab.root.join("changing");
    fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::options().append(true).open(&path).unwrap();
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                file.write_all(&[b'x'; 4096]).unwrap();
                round += 1;
                if round.is_multiple_of(64) {
                    file.set_len(round % 4096).unwrap();
                }
            }
        });
        let content = lab.open(b"changing").unwrap();
        for i in 0..2000_u64 {
            let data = content.read(i % 64 * 4096, 1 << 16).unwrap();
            // Holes are zeros; nothing else is ever there.
            assert!(data.len() <= 1 << 16 && data.iter().all(|b| matches!(b, b'x' | 0)));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn names_are_bytes() {
    let lab = Lab::new();
    let mut names: Vec<Vec<u8>> = vec![
        b"new\nline".into(),
        b"esc\x1b[2J".into(),
        vec![0xff, 0xfe],
        b"-rf".into(),
        b"...".into(),
        b" ".into(),
        vec![b'n'; 255],
    ];
    names.extend((1..=255_u8).filter(|b| *b != b'/' && *b != b'.').map(|b| vec![b]));
    let directory = lab.root.join("names");
    fs::create_dir(&directory).unwrap();
    for name in &names {
        fs::write(directory.join(OsStr::from_bytes(name)), name).unwrap();
    }
    names.sort();
    names.dedup();
    let listed: Vec<_> = lab.list(b"names").unwrap().into_iter().map(|e| e.path).collect();
    assert_eq!(listed, names);
    for name in &names {
        assert_eq!(lab.read(&[b"names/", name.as_slice()].concat()).unwrap(), *name);
    }
    let mut walked: Vec<_> = lab
        .walk(b"names", false)
        .unwrap()
        .into_iter()
        .map(|e| e.path)
        .filter(|p| !p.is_empty())
        .collect();
    walked.sort();
    assert_eq!(walked, names);
    println!("{} names", names.len());
}

#[test]
fn a_tree_deeper_than_any_path() {
    let lab = Lab::new();
    // Made by descending, as no path is so long.
    let mut at = crate::lab::open(&lab.root);
    for _ in 0..300 {
        let name = "d".repeat(200);
        rustix::fs::mkdirat(&at, &name, rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(
            &at,
            &name,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    let deepest = lab.walk(b"/", false).unwrap().into_iter().map(|e| e.path.len()).max().unwrap();
    assert_eq!(deepest, 64 * 201 - 1);
    drop(at);
    Command::new("rm").arg("-rf").arg(&lab.root).status().unwrap();
}

#[test]
fn files_are_read_as_somebody() {
    let lab = std::sync::Arc::new(Lab::new());
    let root = &lab.root;
    for directory in [lab.directory.path().to_owned(), lab.host("jail"), root.clone()] {
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    }
    let file = |name: &str, owner: u32, group: u32, mode: u32| {
        let path = root.join(name);
        fs::write(&path, INSIDE).unwrap();
        chown(&path, Some(owner), Some(group)).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    file("private", 1000, 1000, 0o600);
    file("group", 1000, 2000, 0o640);
    file("roots", 0, 0, 0o600);
    fs::create_dir(root.join("closed")).unwrap();
    file("closed/file", 1001, 1001, 0o666);
    fs::set_permissions(root.join("closed"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    let read = |identity, path: &'static str| {
        let lab = std::sync::Arc::clone(&lab);
        run_as(identity, move || checked(path, lab.read(path.as_bytes())))
    };
    let (ok, denied) = (Ok(INSIDE.to_vec()), Err(Reason::FilePermission));
    let root_user = podsonde::sys::identity::FileIdentity::ROOT;
    let bare_root = podsonde::sys::identity::FileIdentity { reads_any: false, ..root_user.clone() };
    let table = [
        (user(1000, &[]), [&ok, &ok, &denied, &denied]),
        (user(1001, &[]), [&denied, &denied, &denied, &denied]),
        (user(1001, &[7, 2000]), [&denied, &ok, &denied, &denied]),
        // Root without capabilities is one user among others.
        (bare_root, [&denied, &denied, &ok, &ok]),
        (root_user, [&ok, &ok, &ok, &ok]),
    ];
    for (identity, expected) in table {
        for (path, expected) in
            ["private", "group", "roots", "closed/file"].into_iter().zip(expected)
        {
            // As coreutils are told by the same kernel.
            let theirs = Command::new("setpriv")
                .args([format!("--reuid={}", identity.uid), format!("--regid={}", identity.gid)])
                .arg(match identity.groups.as_slice() {
                    [] => "--clear-groups".to_owned(),
                    groups => format!(
                        "--groups={}",
                        groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
                    ),
                })
                .args(if identity.reads_any {
                    &[][..]
                } else {
                    &["--bounding-set=-all", "--inh-caps=-all"][..]
                })
                .arg("cat")
                .arg(root.join(path))
                .output()
                .unwrap();
            assert_eq!(
                theirs.status.success(),
                expected.is_ok(),
                "{identity:?} {path}: {theirs:?}"
            );
            assert_eq!(&read(identity.clone(), path), expected, "{identity:?} {path}");
        }
    }
    // What cannot be described is named nevertheless.
    let lab2 = std::sync::Arc::clone(&lab);
    let walked = run_as(user(1001, &[]), move || lab2.walk(b"/", false).unwrap());
    let closed = walked.iter().find(|e| e.path == b"closed").unwrap();
    assert_eq!(
        (closed.kind, closed.reason),
        (Some(FileType::Directory), Some(Reason::FilePermission))
    );
}

#[test]
fn nobody_waits_for_a_lease() {
    let lab = Lab::new();
    // Whoever opens the file would wait until the holder gives it back, 45 s by default.
    let script = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK); \
                  print('held', flush=True); sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", script])
        .arg(lab.root.join("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    assert_eq!(lab.read(b"file").unwrap_err().reason, Reason::FileChanged);
    assert_eq!(lab.stat(b"file", true).unwrap().kind, Some(FileType::RegularFile));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(lab.read(b"file").as_deref(), Ok(INSIDE));
}

/// What is exchanged, with what it is read meanwhile.
struct Storm {
    name: &'static str,
    /// Two paths, of the lab's directory, that are exchanged.
    exchange: [&'static str; 2],
    /// What is read.
    path: &'static str,
}

#[test]
fn a_storm_of_exchanges_leads_nobody_out() {
    const STORMS: [Storm; 6] = [
        Storm {
            name: "directory and absolute link",
            exchange: ["jail/root/d", "jail/root/to-outside"],
            path: "/d/file",
        },
        Storm {
            name: "directory and relative link",
            exchange: ["jail/root/d", "jail/root/to-parents"],
            path: "/d/file",
        },
        Storm {
            name: "file and link",
            exchange: ["jail/root/d/file", "jail/root/to-canary"],
            path: "/d/file",
        },
        Storm {
            name: "directory and link, then up",
            exchange: ["jail/root/d/e", "jail/root/to-outside"],
            path: "/d/e/../file",
        },
        Storm {
            name: "directory moved out of the root",
            exchange: ["jail/root/d/e", "outside/deeper"],
            path: "/d/e/../../../../file",
        },
        Storm {
            name: "directory moved out of the root, far up",
            exchange: ["jail/root/d", "outside"],
            path: "/d/../../../file",
        },
    ];
    const ATTEMPTS: usize = 170_000;
    let attempts: usize = STORMS
        .iter()
        .map(|storm| {
            let lab = Lab::new();
            symlink(lab.host("outside"), lab.root.join("to-outside")).unwrap();
            symlink("../../../../../../../../../..".to_owned() + lab.host("outside").to_str().unwrap(), lab.root.join("to-parents")).unwrap();
            symlink(lab.host("outside").join(CANARY_NAME), lab.root.join("to-canary")).unwrap();
            let before = lab.descriptors();
            let stop = AtomicBool::new(false);
            let [a, b] = storm.exchange.map(|path| lab.host(path));
            let (mut inside, mut refused, mut naive, mut exchanges) = (0, std::collections::BTreeMap::new(), 0, 0_u64);
            thread::scope(|scope| {
                let exchanger = scope.spawn(|| {
                    let cwd = rustix::fs::CWD;
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) {
                        renameat_with(cwd, &a, cwd, &b, RenameFlags::EXCHANGE).unwrap();
                        done += 1;
                    }
                    done
                });
                for i in 0..ATTEMPTS {
                    if i % 50 == 0 {
                        naive += usize::from(naive_read(&lab.root.join(storm.path.trim_start_matches('/'))));
                    }
                    match checked(storm.name, lab.read(storm.path.as_bytes())) {
                        Ok(data) => {
                            assert!(data == INSIDE, "{}: {data:?}", storm.name);
                            inside += 1;
                        }
                        Err(reason) => *refused.entry(reason.as_str()).or_insert(0) += 1,
                    }
                    if i % 500 == 0 {
                        let walked = lab.walk(b"/d", true).unwrap_or_default();
                        // What was moved in is inside; through a link nothing is.
                        let through_link = !storm.exchange[1].starts_with("outside");
                        assert!(!(through_link && walked.iter().any(|e| e.path.ends_with(CANARY_NAME.as_bytes()))), "{}: {walked:?}", storm.name);
                    }
                }
                stop.store(true, Ordering::Relaxed);
                exchanges = exchanger.join().unwrap();
            });
            println!(
                "{}: {ATTEMPTS} attempts during {exchanges} exchanges: {inside} inside, {refused:?}; a naive reader was led out {naive} times of {}",
                storm.name,
                ATTEMPTS / 50
            );
            assert_eq!(lab.descriptors(), before, "no descriptor is left");
            assert!(naive > 0, "{}: the storm is none", storm.name);
            ATTEMPTS
        })
        .sum();
    println!("{attempts} attempts in all");
    assert!(attempts >= 1_000_000);
}

fn naive_read(path: &Path) -> bool {
    match fs::read(path) {
        Ok(data) => data == CANARY,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
                "{error}"
            );
            false
        }
    }
}
