//! Which layer may use which, and where `unsafe` may stand.

use std::{collections::BTreeSet, path::Path};

use super::source::{root, rust, shown, split};

/// Every top-level module, and what it may use of the others. The map is drawn in `src/lib.rs`. A
/// file below a module that may use more has a row of its own.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("codec", &[]),
    ("telemetry", &[]),
    ("proto", &["codec"]),
    ("sys", &["domain"]),
    ("kube", &["domain"]),
    ("client", &["kube", "proto", "domain", "codec"]),
    ("agent", &["sys", "kube", "domain", "proto", "telemetry", "codec"]),
    // The oracle of the tests, which shares no code with what it tests.
    ("embedded", &[]),
    ("cli", &["client", "kube", "proto", "domain", "telemetry"]),
    // Starts agents and a cluster in the client's own process.
    ("cli/demo", &["agent", "sys", "embedded"]),
];

/// Crates that the pure layer may not use.
const IMPURE: &[&str] = &["tokio", "tonic", "kube", "nix", "rustix", "k8s_openapi", "procfs"];

/// The files that may hold `unsafe`, and what for.
const UNSAFE: &[&str] = &[
    // System calls without a safe form elsewhere.
    "src/sys/ffi.rs",
    // Memory that a packet socket's ring shares with the kernel.
    "src/sys/capture/ring.rs",
    // Calls of libpcap, which is loaded at run time.
    "src/sys/capture/libpcap.rs",
];

fn code(path: &std::path::Path) -> String {
    split(&std::fs::read_to_string(path).unwrap()).code
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
    let src = root().join("src");
    let mut wrong = Vec::new();
    let mut layers = BTreeSet::new();
    for path in rust("src") {
        let inside = path.strip_prefix(&src).unwrap();
        let module = inside.with_extension("");
        let layer = module.iter().next().unwrap().to_str().unwrap().to_owned();
        if layer == "lib" || layer == "bin" {
            continue;
        }
        let row = |module: &Path| LAYERS.iter().find(|(name, _)| Path::new(name) == module);
        let (name, allowed) = row(&module)
            .or_else(|| row(Path::new(&layer)))
            .unwrap_or_else(|| panic!("{layer} is no layer; add it to LAYERS"));
        layers.insert((*name).to_owned());
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
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(
        layers,
        LAYERS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        "a layer that does not exist"
    );
}

#[test]
fn unsafe_stands_in_few_files_of_sys() {
    let is_unsafe = |path: &std::path::PathBuf| {
        code(path).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe")
    };
    let found: BTreeSet<_> =
        rust("src").iter().filter(|path| is_unsafe(path)).map(|path| shown(path)).collect();
    assert_eq!(found, UNSAFE.iter().map(|path| (*path).to_owned()).collect());
}

#[test]
fn the_reader_of_imports_reads() {
    let text =
        "use crate::{\n    a::{b, c},\n    d, e::{self, f::{g}},\n};\nlet x = crate::h::i();";
    assert_eq!(used(text, "crate::").into_iter().collect::<Vec<_>>(), ["a", "d", "e", "h"]);
}
