//! Widths, lengths and wording: what the formatter leaves alone.

use std::{collections::BTreeSet, fs, path::Path};

use super::source::{files, root, rust, shown, split};

/// Most columns of a line. rustfmt holds code to it, but neither comments nor lines with long
/// strings.
const COLUMNS: usize = 100;

/// Most lines of a file.
const LINES: usize = 600;

/// Files, or folders of them, that are not yet as the rules want them.
const UNFINISHED: &[&str] = &[
    "deploy/image/oci-archive",
    "src/agent/",
    "src/cli/",
    "src/client/",
    "src/domain/filter.rs",
    "src/domain/packet/",
    "src/domain/verdict.rs",
    "src/embedded/api/handlers.rs",
    "src/embedded/kubelet/worker.rs",
    "src/sys/",
    "tests/",
];

fn is_unfinished(path: &str) -> bool {
    UNFINISHED.iter().any(|prefix| path.starts_with(prefix))
}

/// The directories with files of our own, and the files beside them.
fn everything() -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> =
        ["src", "tests", "proto", "deploy", ".github", ".cargo", ".ci"].map(files).concat();
    all.extend(
        ["build.rs", "Cargo.toml", "clippy.toml", "deny.toml"].map(|name| root().join(name)),
    );
    all.retain(|path| !path.starts_with(root().join("tests/fuzz/target")));
    all
}

/// The comments of a file in any language with `//` or `#` comments, line by line.
///
/// In scripts only lines that are comments as a whole count: a `#` elsewhere may stand in a string.
fn comments(path: &Path, text: &str) -> Option<Vec<String>> {
    let name = path.file_name()?.to_str()?;
    let marker = match path.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => return Some(split(text).comments.lines().map(str::to_owned).collect()),
        Some("proto" | "c") => "//",
        Some("py" | "sh" | "toml" | "yaml" | "yml") => "#",
        None if text.starts_with("#!") || name == "Dockerfile" => "#",
        _ => return None,
    };
    let comment = |line: &str| line.trim_start().starts_with(marker);
    Some(text.lines().map(|l| if comment(l) { l.to_owned() } else { String::new() }).collect())
}

/// Whether a comment could be broken: one word that is too long by itself, such as an address,
/// could not.
fn could_be_broken(comment: &str) -> bool {
    comment.split_whitespace().filter(|word| word.len() > 3).count() > 1
}

/// The lines of a file that are too wide, by their numbers.
///
/// The content of a string does not count: a message is found by searching for it, which a line
/// break in it would prevent.
fn wide(path: &Path, text: &str) -> Vec<usize> {
    let mut wide = BTreeSet::new();
    let lines: Vec<&str> = text.lines().collect();
    for (at, comment) in comments(path, text).unwrap_or_default().iter().enumerate() {
        if !comment.is_empty() && lines[at].chars().count() > COLUMNS && could_be_broken(comment) {
            wide.insert(at + 1);
        }
    }
    if path.extension().is_some_and(|extension| extension == "rs") {
        let code = split(text).code;
        wide.extend(
            code.lines()
                .enumerate()
                .filter(|(_, line)| line.trim_end().chars().count() > COLUMNS)
                .map(|(at, _)| at + 1),
        );
    }
    wide.into_iter().collect()
}

#[test]
fn lines_are_at_most_100_columns_wide() {
    let mut wrong = Vec::new();
    for path in everything() {
        let name = shown(&path);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if !is_unfinished(&name) {
            wrong.extend(wide(&path, &text).iter().map(|line| format!("{name}:{line}")));
        }
    }
    assert!(wrong.is_empty(), "{} lines are too wide:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn files_are_at_most_600_lines_long() {
    let mut wrong = Vec::new();
    for path in ["src", "tests"].map(files).concat() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let lines = text.lines().count();
        let ours = path.extension().is_none_or(|e| e != "lock") && !is_unfinished(&shown(&path));
        if lines > LINES && ours {
            wrong.push(format!("{}: {lines} lines", shown(&path)));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Words that mark a sentence which wants to be written anew.
const BANNED: &[&str] = &["so many", "by way of", "not any more", "besides"];

/// Words that no sentence begins with.
const OPENINGS: &[&str] = &["Of", "Whose", "Whom"];

/// What of the wording of a comment is against the rules.
fn wording(comment: &str) -> Option<String> {
    let plain = format!(" {} ", comment.split_whitespace().collect::<Vec<_>>().join(" "));
    let lower = plain.to_lowercase();
    let banned = BANNED.iter().find(|words| {
        lower.match_indices(*words).any(|(at, words)| {
            let next = lower[at + words.len()..].chars().next();
            let last = lower[..at].chars().next_back();
            ![next, last].into_iter().flatten().any(char::is_alphanumeric)
        })
    });
    let opens = |word: &&&str| {
        plain.starts_with(&format!(" {word} ")) || plain.contains(&format!(". {word} "))
    };
    banned.or_else(|| OPENINGS.iter().find(opens)).map(|words| (*words).to_owned())
}

/// The paragraphs of a file's comments without their slashes, each with the line that it begins in.
fn paragraphs(comments: &[String]) -> Vec<(usize, String)> {
    let mut paragraphs: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (at, line) in comments.iter().enumerate() {
        let text = line.trim_start_matches(['/', '!', '#', ' ', '-', '*']);
        match paragraphs.last_mut() {
            Some((_, paragraph)) if open && !text.is_empty() => {
                paragraph.push(' ');
                paragraph.push_str(text);
            }
            _ if !text.is_empty() => paragraphs.push((at + 1, text.to_owned())),
            _ => {}
        }
        open = !text.is_empty();
    }
    paragraphs
}

#[test]
fn comments_are_plain_english() {
    let mut wrong = Vec::new();
    for path in [rust("src"), files("proto/podsonde")].concat() {
        let name = shown(&path);
        let text = fs::read_to_string(&path).unwrap();
        if is_unfinished(&name) {
            continue;
        }
        for (line, paragraph) in paragraphs(&comments(&path, &text).unwrap_or_default()) {
            if let Some(words) = wording(&paragraph) {
                wrong.push(format!("{name}:{line}: {words:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} comments to reword:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn wide_lines_are_found() {
    let of = |name: &str, text: &str| wide(Path::new(name), text);
    let long = "word ".repeat(20);
    assert_eq!(of("a.rs", &format!("//! {long}\n/// {}\n", "w ".repeat(40))), [1]);
    assert_eq!(of("a.rs", &format!("f(\"{long}{long}\"); // short\n")), [] as [usize; 0]);
    assert_eq!(of("a.rs", &format!("f(\"\"); // {long}\n")), [1]);
    assert_eq!(of("a.rs", &format!("f({});\n", "a+".repeat(60))), [1]);
    assert_eq!(of("a.rs", &format!("/// <https://{}>\n", "a".repeat(120))), [] as [usize; 0]);
    assert_eq!(of("a.proto", &format!("a\n  // {long}")), [2]);
    assert_eq!(of("a.py", &format!("'{long}{long}'\n# {long}")), [2]);
    assert_eq!(of("run", &format!("#!/bin/sh\n# {long}")), [2]);
    assert_eq!(of("a.lock", &format!("# {long}")), [] as [usize; 0]);
}

#[test]
fn wording_is_found() {
    for wrong in [
        "At most so many bytes",
        "Of a pod, its name",
        "It ends. Whose it is",
        "Compiled by way of libpcap",
        "Not any more. Not",
        "And besides, this",
    ] {
        assert!(wording(wrong).is_some(), "{wrong}");
    }
    for fine in ["Also many", "Off it goes. Often", "How many of a pod's", "besidesX", ""] {
        assert_eq!(wording(fine), None, "{fine}");
    }
    let comments = ["//! One", "//! two.", "//!", "/// - Of", "", "// three"].map(str::to_owned);
    let expected = [(1, "One two.".to_owned()), (4, "Of".to_owned()), (6, "three".to_owned())];
    assert_eq!(paragraphs(&comments), expected);
}
