//! The house rules that a compiler does not check: which layer may use which, and where `unsafe` may stand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every top-level module, and what it may use of the others. The map is drawn in `src/lib.rs`.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("codec", &[]),
    ("telemetry", &[]),
    ("proto", &["codec"]),
    ("sys", &["domain"]),
    ("kube", &["domain"]),
    ("client", &["kube", "proto", "domain"]),
    ("agent", &["sys", "kube", "domain", "proto", "telemetry"]),
    ("embedded", &["agent", "sys", "domain"]),
    ("cli", &["client", "kube", "proto", "domain", "telemetry", "embedded"]),
];

/// What the pure layer may not know of.
const IMPURE: &[&str] = &["tokio", "tonic", "kube", "nix", "rustix", "k8s_openapi", "procfs"];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file without comments; strings stay.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The top-level modules that `text` names behind `root::`, also in groups: `crate::{a::b, c}`.
fn used(text: &str, root: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let word = |s: &str| {
        s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    for (at, _) in text.match_indices(root) {
        let rest = &text[at + root.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    start = true;
                    continue;
                }
                _ => {}
            }
            if start && !c.is_whitespace() {
                names.insert(word(&group[i..]));
                start = false;
            }
        }
    }
    names.remove("");
    names
}

#[test]
fn imports_run_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut layers = BTreeSet::new();
    for path in sources(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        let layer =
            inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if layer == "lib" || layer == "bin" {
            continue;
        }
        let (_, allowed) = LAYERS
            .iter()
            .find(|(name, _)| *name == layer)
            .unwrap_or_else(|| panic!("{layer} has no place"));
        let code = code(&path);
        for name in used(&code, "crate::") {
            if name != layer && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{} uses {name}", inside.display()));
            }
        }
        if layer == "domain" {
            for name in IMPURE {
                if code.contains(&format!("{name}::")) {
                    wrong.push(format!("{} uses {name}", inside.display()));
                }
            }
        }
        layers.insert(layer);
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(
        layers,
        LAYERS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        "a layer that is not there"
    );
}

/// The files that may hold `unsafe`, and what for.
const UNSAFE: &[&str] = &[
    // System calls without a safe form elsewhere.
    "sys/ffi.rs",
    // Memory that a packet socket's ring shares with the kernel.
    "sys/capture/ring.rs",
    // Calls of libpcap, which is loaded at run time.
    "sys/capture/libpcap.rs",
];

#[test]
fn unsafe_stands_in_few_files_of_sys() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let is_unsafe = |path: &PathBuf| {
        code(path).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe")
    };
    let found: BTreeSet<_> = sources(&src).into_iter().filter(is_unsafe).collect();
    assert_eq!(found, UNSAFE.iter().map(|path| src.join(path)).collect());
}

#[test]
fn the_reader_of_imports_reads() {
    let text =
        "use crate::{\n    a::{b, c},\n    d, e::{self, f::{g}},\n};\nlet x = crate::h::i();";
    assert_eq!(used(text, "crate::").into_iter().collect::<Vec<_>>(), ["a", "d", "e", "h"]);
}
