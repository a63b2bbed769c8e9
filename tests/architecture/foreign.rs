//! Which files may call what asks the file system of a container something.

use std::collections::BTreeSet;

use super::source::{rust, shown, split};

/// Calls that may ask a foreign file system something, and the files that may name them. Such a
/// file system may never answer, so all of these run on threads that may be lost; one call
/// elsewhere would hang the agent.
const FOREIGN: &[(&[&str], &[&str])] = &[
    (&["open_path"], &["src/sys/containers.rs", "src/sys/process.rs", "src/sys/procfs.rs"]),
    (&["host_root"], &["src/agent/files/find.rs", "src/sys/containers.rs"]),
    (&["open_root"], &["src/agent/files/find.rs", "src/agent/files/mod.rs"]),
    (&["statat", "fstatfs"], &["src/sys/procfs.rs", "src/sys/rooted/"]),
    // The broker reads what its own descriptors are.
    (&["readlinkat"], &["src/sys/broker/server.rs", "src/sys/rooted/"]),
    (
        &["openat2", "statx", "pread", "fchmod", "linkat", "renameat", "unlinkat"],
        &["src/sys/rooted/"],
    ),
];

#[test]
fn only_threads_that_may_be_lost_ask_foreign_file_systems() {
    let mut wrong = Vec::new();
    let mut unused: BTreeSet<_> = FOREIGN.iter().flat_map(|(names, _)| names.iter()).collect();
    for path in rust("src/sys").into_iter().chain(rust("src/agent")) {
        let code = split(&std::fs::read_to_string(&path).unwrap()).code;
        let words: BTreeSet<_> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let file = shown(&path);
        for (names, allowed) in FOREIGN {
            for name in names.iter().filter(|name| words.contains(**name)) {
                unused.remove(name);
                if !allowed.iter().any(|start| file.starts_with(start)) {
                    wrong.push(format!("{file} uses {name}"));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(unused, BTreeSet::new(), "names that nothing uses");
}
