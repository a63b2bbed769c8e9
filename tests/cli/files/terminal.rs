//! What a terminal gets of names and contents that a pod chose.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use super::{World, on_terminal};

/// Names that GNU ls masks: control characters of one byte and of two, and bytes that are not
/// UTF-8.
const MASKED_BY_LS: &[&[u8]] = &[
    b"\x1b]0;title\x07",
    b"\x1b[31mred",
    b"back\x08space",
    b"line\nbreak",
    b"return\rme",
    b"tab\there",
    b"delete\x7f",
    "c1 \u{9b}2J".as_bytes(),
    b"bytes \xff\xfe.",
    b"plain",
    b"with space",
    b"it's",
];

/// Names that reorder the line around them. GNU ls prints these as they are; podsonde does not.
const REORDERING: &[&str] = &["gpj\u{202e}exe", "\u{2066}isolate", "line\u{2028}separator"];

/// Whether a character must not reach a terminal; written out here, apart from the product's list.
fn is_unsafe(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn world(names: &[&[u8]]) -> World {
    let world = World::new();
    let tree = world.root.join("tree");
    std::fs::create_dir(&tree).unwrap();
    for name in names {
        std::fs::write(tree.join(OsStr::from_bytes(name)), name).unwrap();
    }
    world
}

#[test]
fn literal_names_are_masked_as_ls_masks_them() {
    let world = world(MASKED_BY_LS);
    for columns in [20, 80, 200] {
        for flags in ["-N", "-N1", "-Nl", "-NF"] {
            let ours = world.on_terminal(columns, &format!("ls {flags} --color=never web:/tree"));
            let line = format!("ls -T0 {flags} --color=never tree");
            assert_eq!(ours, on_terminal(&world.root, columns, &line), "{flags} {columns}");
        }
    }
}

#[test]
fn listings_let_no_pod_write_to_the_terminal() {
    let reordering: Vec<&[u8]> = REORDERING.iter().map(|name| name.as_bytes()).collect();
    let world = world(&[MASKED_BY_LS, &reordering].concat());
    // The owner of the files has a name that reorders the line, too.
    let uid = nix::unistd::getuid();
    world.write("etc/passwd", format!("\u{202e}toor:x:{uid}:0::/:\n").as_bytes());
    world.write("target", b"");
    std::os::unix::fs::symlink("\u{1b}[2J\u{202e}", world.root.join("tree/link")).unwrap();
    for arguments in [
        "ls web:/tree",
        "ls -N web:/tree",
        "ls -NR web:/tree",
        "ls -l web:/tree",
        "ls -Nl web:/tree",
        "ls -o json web:/tree",
        "ls -o yaml web:/tree",
        "find web:/tree",
        "find web:/tree -print0",
        "find web:/tree -ls",
    ] {
        let shown = world.on_terminal(80, &format!("--color=never {arguments}"));
        assert!(!shown.is_empty(), "{arguments}");
        // A NUL ends the names of -print0, and terminals ignore it.
        let found = shown.replace('\0', "").chars().find(|c| is_unsafe(*c));
        assert_eq!(found, None, "{arguments}: {shown:?}");
    }
}
