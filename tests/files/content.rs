//! Sizes that lie, names that are no text, trees deeper than any path, files of other users,
//! leases.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::{ffi::OsStrExt, fs::chown},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use podsonde::domain::Reason;
use rustix::fs::FileType;

use crate::lab::{INSIDE, Lab, checked, never, run_as, user};

#[test]
fn sizes_mean_nothing() {
    let lab = Lab::new();
    let sparse = File::create(lab.root.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let content = lab.open(b"sparse").unwrap();
    let read = |offset| content.read(offset, 100, never()).unwrap().data;
    assert_eq!(read((1 << 40) - 10), [0; 10]);
    assert!(read(u64::MAX - 5).is_empty());
    assert!(read(1 << 62).is_empty());

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
            let data = content.read(i % 64 * 4096, 1 << 16, never()).unwrap().data;
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
    let script = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); \
                  fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK); \
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
