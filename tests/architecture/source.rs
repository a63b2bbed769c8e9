//! Reads the repository's files, and tells the code of a Rust file from its comments and strings.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `directory` of the repository, in the order of their paths.
pub(crate) fn files(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&root().join(directory), &mut found);
    found.sort();
    found
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// All Rust files below `directory` of the repository.
pub(crate) fn rust(directory: &str) -> Vec<PathBuf> {
    let mut found = files(directory);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found
}

/// A path as messages show it: below the repository's root.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The two readings of a Rust file. Both have exactly the lines of the file.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Split {
    /// The code, in which comments are left out and strings are empty.
    pub(crate) code: String,
    /// The comments with their slashes, and nothing else.
    pub(crate) comments: String,
}

/// Splits Rust source. Knows line comments, nested block comments, strings with escapes, raw
/// strings and character literals, which is all that can hide a quote or a slash.
pub(crate) fn split(source: &str) -> Split {
    let mut split = Split::default();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            split.comments.push_str(&rest[..length]);
            length
        } else if rest.starts_with("/*") {
            let length = block_comment(rest);
            split.comments.push_str(&rest[..length]);
            newlines(&rest[..length], &mut split.code);
            length
        } else if let Some((open, length)) = string(rest) {
            split.code.push_str(&rest[..open]);
            newlines(&rest[..length], &mut split.code);
            newlines(&rest[..length], &mut split.comments);
            split.code.push('"');
            length
        } else if let Some(length) = word(rest).or_else(|| character(rest)) {
            split.code.push_str(&rest[..length]);
            length
        } else {
            split.code.push(first);
            newlines(&rest[..first.len_utf8()], &mut split.comments);
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    split
}

fn newlines(text: &str, to: &mut String) {
    to.extend(text.chars().filter(|c| *c == '\n'));
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of a string's opening with its quote, and of the whole string.
fn string(text: &str) -> Option<(usize, usize)> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|p| text.starts_with(p))?;
    let hashes = text[prefix.len()..].chars().take_while(|c| *c == '#').count();
    let open = prefix.len() + hashes + 1;
    if !text[prefix.len() + hashes..].starts_with('"') {
        return None;
    }
    if prefix.ends_with('r') {
        let close = format!("\"{}", "#".repeat(hashes));
        return Some((open, open + text[open..].find(&close)? + close.len()));
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(open) {
        match c {
            '"' if !escaped => return (hashes == 0).then_some((open, at + 1)),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    None
}

/// The length of the identifier or number that `text` begins with: `r` in it opens no string.
fn word(text: &str) -> Option<usize> {
    let length = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (length > 0).then_some(length)
}

/// The length of the character literal, or of the lifetime's quote, that `text` begins with.
fn character(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    if let Some(escape) = inside.strip_prefix('\\') {
        return Some(3 + escape.char_indices().skip(1).find(|(_, c)| *c == '\'')?.0);
    }
    let c = inside.chars().next()?;
    let closed = inside[c.len_utf8()..].starts_with('\'');
    Some(if closed { 2 + c.len_utf8() } else { 1 })
}

#[test]
fn code_and_comments_are_told_apart() {
    let source = concat!(
        "let a = \"// no \\\" comment\"; // a comment, \"not a string\n",
        "let b = r#\"raw \" /* \"#; /* one /* nested\n */ comment */ b\n",
        "let c = ('\"', '\\'', b'\"', 'l: loop {}); var\"x\ny\" //! doc",
    );
    let Split { code, comments } = split(source);
    assert_eq!(
        code.lines().collect::<Vec<_>>(),
        [
            "let a = \"\"; ",
            "let b = r#\"\"; ",
            " b",
            "let c = ('\"', '\\'', b'\"', 'l: loop {}); var\"",
            "\" ",
        ]
    );
    assert_eq!(
        comments.lines().collect::<Vec<_>>(),
        ["// a comment, \"not a string", "/* one /* nested", " */ comment */", "", "//! doc",]
    );
}
