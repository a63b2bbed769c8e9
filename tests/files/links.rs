//! Links of hostile roots, straight against what resolves paths in them. The links that lead a
//! naive reader out are counted, and there must be some.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::symlink},
};

use nix::mount::{MsFlags, mount};
use podsonde::domain::Reason;
use rustix::fs::FileType;

use crate::lab::{CANARY, CANARY_NAME, INSIDE, Lab, checked, with_mounts};

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
            "{cases} ways out, of which {naive} lead a naive reader to the host's files, and none \
             this one"
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
