//! Trees deeper than a walk keeps descriptors for.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use podsonde::{domain::Reason, sys::rooted::walk::Walk};

use crate::lab::{Lab, never};

/// A walk's own descriptors: the top and the eight innermost directories.
const MOST: usize = 9;

/// A tree of that many directories within each other, each with names before and behind the next.
fn deep(lab: &Lab, depth: usize) -> PathBuf {
    let top = lab.root.join("deep");
    let mut at = top.clone();
    for level in 0..depth {
        fs::create_dir(&at).unwrap();
        for name in ["a-file", "z-file"] {
            fs::write(at.join(name), level.to_string()).unwrap();
        }
        // More names than the kernel returns at once.
        for i in 0..if level % 10 == 3 { 700 } else { 0 } {
            fs::write(at.join(format!("many-{i:04}-{}", "x".repeat(30))), "").unwrap();
        }
        fs::create_dir_all(at.join("side/below")).unwrap();
        symlink("..", at.join("up")).unwrap();
        at.push("m");
    }
    top
}

fn walk(lab: &Lab) -> Walk {
    lab.rooted
        .resolve(b"/deep", true)
        .unwrap()
        .open_directory(&lab.rooted)
        .unwrap()
        .walk(100, false)
}

#[test]
fn a_deep_tree_is_walked_whole_with_few_descriptors() {
    let lab = Lab::new();
    let top = deep(&lab, 60);
    let before = lab.descriptors();
    let mut walk = walk(&lab);
    let (mut found, mut most) = (Vec::new(), 0);
    while let Some(entries) = walk.next(1, 1 << 20, never()) {
        most = most.max(lab.descriptors() - before);
        for entry in entries {
            assert_eq!(entry.reason, None, "{entry:?}");
            found.push(String::from_utf8(entry.path).unwrap());
        }
    }
    drop(walk);
    assert_eq!(most, MOST);
    assert_eq!(lab.descriptors(), before);
    found.sort();
    let find = Command::new("find").arg(&top).args(["-printf", "%P\\n"]).output().unwrap();
    let find = String::from_utf8(find.stdout).unwrap();
    let mut theirs: Vec<_> = find.lines().map(str::to_owned).collect();
    theirs.sort();
    assert_eq!(found, theirs);
}

#[test]
fn a_directory_that_was_replaced_on_the_way_back_is_not_taken_for_the_old_one() {
    let lab = Lab::new();
    let top = deep(&lab, 20);
    let mut walk = walk(&lab);
    let (mut replaced, mut changed) = (false, Vec::new());
    while let Some(entries) = walk.next(1, 1 << 20, never()) {
        for entry in entries {
            let path = String::from_utf8(entry.path).unwrap();
            assert!(!path.contains("impostor"), "{path}");
            if path.matches("m/").count() == 17 && !replaced {
                // Far enough up to be closed by now.
                fs::rename(top.join("m/m/m"), top.join("elsewhere")).unwrap();
                fs::create_dir(top.join("m/m/m")).unwrap();
                fs::write(top.join("m/m/m/impostor"), "").unwrap();
                replaced = true;
            }
            if entry.reason.is_some() {
                changed.push((path, entry.reason));
            }
        }
    }
    assert!(replaced);
    // The replaced one, unless all of its names were told before, and those below that had to be
    // opened again through it. What is above is whole.
    assert!(!changed.is_empty());
    for (path, reason) in changed {
        assert!(path.starts_with("m/m/m"), "{path}");
        assert!(
            matches!(reason, Some(Reason::FileChanged | Reason::PathNotFound)),
            "{path}: {reason:?}"
        );
    }
}
