//! No circle of imports leads through files of different folders: each folder can then be read on
//! top of those that it uses.
//!
//! The graph is of files. A file depends on the file of the deepest module that each of its paths
//! names (`use crate::a::B`, `super::c::d()`, `child::E`). `mod child;` alone is no dependency, nor
//! is anything in tests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::source::{root, rust, split};

/// A module's path from the root of the crate.
type Module = Vec<String>;

/// Which file depends on which.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// A source file: its path below `src`, and its code without comments.
struct File {
    path: String,
    code: String,
}

impl File {
    /// `a/b.rs` and `a/b/mod.rs` are `a::b`.
    fn module(&self) -> Module {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("mod").trim_end_matches('/');
        path.split('/')
            .filter(|part| *part != "lib" && !part.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// The folder of a file. `a/b.rs` beside a folder `a/b` belongs into that folder, as its `mod.rs`.
fn folder(path: &str, graph: &Graph) -> String {
    let inside = format!("{}/", path.trim_end_matches(".rs"));
    if graph.keys().any(|file| file.starts_with(&inside)) {
        return inside;
    }
    path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"))
}

/// Identifiers, `::`, and each other character that is not white space.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = match word {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            _ => word,
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The paths that begin at `at`, groups expanded, and where the last of them ends.
fn paths(tokens: &[&str], mut at: usize, prefix: &[String], found: &mut Vec<Module>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at) {
            Some(&"{") => {
                at += 1;
                while !matches!(tokens.get(at), Some(&"}") | None) {
                    let end = paths(tokens, at, &path, found);
                    at = end.max(at + 1);
                    while !matches!(tokens.get(at), Some(&("," | "}")) | None) {
                        at += 1;
                    }
                    if tokens.get(at) == Some(&",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            Some(token) if is_word(token) => {
                path.push((*token).to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

/// All paths of a file that name modules of the crate, from its root.
fn named(file: &File) -> BTreeSet<Module> {
    let tokens = tokens(&file.code);
    let children: BTreeSet<&str> = tokens
        .windows(3)
        .filter(|window| window[0] == "mod" && window[2] == ";")
        .map(|window| window[1])
        .collect();
    let mut found = BTreeSet::new();
    // Modules written out in the file, each with the depth of braces at which it ends.
    let mut inline: Vec<(&str, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match *token {
            "mod" if tokens.get(at + 2) == Some(&"{") => {
                inline.push((tokens[at + 1], depth));
                at += 2;
                continue;
            }
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.pop_if(|(_, outside)| *outside == depth);
            }
            word if is_word(word) && tokens.get(at + 1) == Some(&"::") => {
                let mut written = Vec::new();
                // `pub(in a::b)` names a module without using it.
                let is_visibility = at > 2 && tokens[at - 3..at] == ["pub", "(", "in"];
                at = paths(&tokens, at, &[], &mut written);
                if is_visibility {
                    continue;
                }
                let mut here = file.module();
                here.extend(inline.iter().map(|(name, _)| (*name).to_owned()));
                if !here.iter().any(|module| module == "tests") {
                    found.extend(written.into_iter().filter_map(|p| absolute(p, &here, &children)));
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// A path from the root of the crate, if it leads into the crate and not to another.
fn absolute(written: Module, here: &[String], children: &BTreeSet<&str>) -> Option<Module> {
    let mut base = here.to_vec();
    let mut parts = written.into_iter().peekable();
    match parts.peek()?.as_str() {
        "crate" => {
            base.clear();
            parts.next();
        }
        "self" => _ = parts.next(),
        "super" => {
            while parts.next_if(|part| part == "super").is_some() {
                base.pop();
            }
        }
        child if children.contains(child) => {}
        _ => return None,
    }
    base.extend(parts);
    Some(base)
}

fn graph(files: &[File]) -> Graph {
    let by_module: BTreeMap<Module, &str> =
        files.iter().map(|file| (file.module(), file.path.as_str())).collect();
    let owner = |path: &Module| {
        let prefixes = (0..=path.len()).rev().map(|length| path[..length].to_vec());
        prefixes
            .into_iter()
            .find_map(|prefix| by_module.get(&prefix).map(|file| (*file).to_owned()))
    };
    files
        .iter()
        .map(|file| {
            let mut used: BTreeSet<String> = named(file).iter().filter_map(&owner).collect();
            used.remove(&file.path);
            (file.path.clone(), used)
        })
        .collect()
}

/// The shortest way from one file to another, both included.
fn way(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut waiting = VecDeque::from([from]);
    while let Some(at) = waiting.pop_front() {
        if at == to {
            let mut way = vec![to.to_owned()];
            let mut at = to;
            while at != from {
                at = before[at];
                way.insert(0, at.to_owned());
            }
            return Some(way);
        }
        for next in graph.get(at).into_iter().flatten() {
            if next != from && !before.contains_key(next.as_str()) {
                before.insert(next, at);
                waiting.push_back(next);
            }
        }
    }
    None
}

/// For each import across folders that lies on a circle, the shortest such circle; each circle
/// once.
fn circles(graph: &Graph) -> BTreeSet<String> {
    let folders: BTreeMap<&str, String> =
        graph.keys().map(|file| (file.as_str(), folder(file, graph))).collect();
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    for (file, used) in graph {
        for other in used.iter().filter(|other| folders[other.as_str()] != folders[file.as_str()]) {
            let Some(way) = way(graph, other, file) else { continue };
            if seen.insert(way.iter().cloned().collect::<BTreeSet<_>>()) {
                found.insert(format!("{file} -> {}", way.join(" -> ")));
            }
        }
    }
    found
}

#[test]
fn no_circle_of_imports_spans_folders() {
    let src = root().join("src");
    let files: Vec<_> = rust("src")
        .iter()
        .filter(|path| !path.starts_with(src.join("bin")))
        .map(|path| File {
            path: path.strip_prefix(&src).unwrap().display().to_string(),
            code: split(&std::fs::read_to_string(path).unwrap()).code,
        })
        .collect();
    let graph = graph(&files);
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > graph.len(), "imports are not seen");
    let found = circles(&graph);
    assert!(found.is_empty(), "{} circles:\n{:#?}", found.len(), found);
}

#[test]
fn circles_are_found() {
    let file = |path: &str, code: &str| File { path: path.to_owned(), code: code.to_owned() };
    let files = |c: &str| {
        [
            file("lib.rs", "mod a; mod b;"),
            // A circle within one folder, and `mod` lines, are fine.
            file("a.rs", "mod x; mod y; use x::X; fn f() { y::g() }"),
            file("a/x.rs", "use super::y::Y; use std::{a::b, c};"),
            file("a/y.rs", "use crate::{a::{x::X, Z}, b::c::{self, D}};"),
            file("b/mod.rs", "pub mod c; mod d { use super::super::a; }"),
            file("b/c.rs", c),
        ]
    };
    let of = |c: &str| graph(&files(c));
    let uses = |from: &str, c: &str| of(c)[from].iter().cloned().collect::<Vec<_>>();
    assert_eq!(uses("a.rs", ""), ["a/x.rs", "a/y.rs"]);
    assert_eq!(uses("a/y.rs", ""), ["a.rs", "a/x.rs", "b/c.rs"]);
    assert_eq!(uses("b/mod.rs", ""), ["a.rs"]);
    assert_eq!(circles(&of("fn f() {} mod tests { use crate::a::x::X; }")), BTreeSet::new());
    assert_eq!(circles(&of("pub(in crate::a) fn f() {}")), BTreeSet::new());
    assert_eq!(circles(&of("use crate::b;")).len(), 1, "through a.rs and a/y.rs");
    let through_a = circles(&of("fn f() { crate::a::x::g::<u8>() }"));
    let shortest = "a/y.rs -> b/c.rs -> a/x.rs -> a/y.rs".to_owned();
    assert!(through_a.contains(&shortest), "{through_a:?}");
}
