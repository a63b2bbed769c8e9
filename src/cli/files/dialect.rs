//! Rewrites what people type and clap cannot parse into what it can, before it reads the command
//! line.
//!
//! Two commands need this. `find` has words with one dash, `-name`, which clap would take for a
//! cluster of short options. `tail` has `-20`, and an `-n` and a `-c` that are also kubectl's
//! namespace and container. Only words behind the subcommand are touched, and nothing behind `--`.
//! The rewriting never fails: a word that it does not understand is left for clap to complain
//! about.

use std::{
    ffi::{OsStr, OsString},
    iter::Peekable,
};

use clap::Command;

use super::find::expression::{self, Arity};

/// The hidden option that carries one word of a find expression to clap.
pub(in crate::cli) const EXPRESSION: &str = "expression-word";

/// What `tail` prints of a file, in lines or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Count {
    /// This many before the end.
    Last(u64),
    /// From this one on; the first is 1.
    From(u64),
}

/// Parses a count as tail(1) does: `20`, `-20` or `+20`, with a unit if wanted. `k` is 1024 and
/// `kB` is 1000.
pub(in crate::cli) fn count(text: &str) -> Result<Count, String> {
    let invalid = || format!("{text:?} is not a number; write 20, +20 or 1K");
    let (from, number) = match text.strip_prefix('+') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('-').unwrap_or(text)),
    };
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    let (number, unit) = number.split_at(digits);
    let unit: u64 = match unit {
        "" => 1,
        "b" => 512,
        "k" | "K" | "KiB" => 1 << 10,
        "kB" | "KB" => 1000,
        "M" | "MiB" => 1 << 20,
        "MB" => 1_000_000,
        "G" | "GiB" => 1 << 30,
        "GB" => 1_000_000_000,
        _ => return Err(invalid()),
    };
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let number = number.checked_mul(unit).ok_or_else(invalid)?;
    Ok(if from { Count::From(number) } else { Count::Last(number) })
}

/// The arguments with the words of `find` and `tail` rewritten. `cli` is the whole command, whose
/// options tell where the subcommand stands.
pub(in crate::cli) fn rewrite(cli: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let Some(at) = subcommand(cli, &arguments) else { return arguments };
    let mut rewritten: Vec<OsString> = arguments.iter().take(at + 1).cloned().collect();
    let rest = arguments.iter().skip(at + 1).cloned();
    match arguments.get(at).and_then(|word| word.to_str()) {
        Some("find") => find(rest, &mut rewritten),
        Some("tail") => tail(rest, &mut rewritten),
        _ => rewritten.extend(rest),
    }
    rewritten
}

/// The position of the subcommand: the first word that is neither a global option nor its value.
fn subcommand(cli: &Command, arguments: &[OsString]) -> Option<usize> {
    let takes_value = |word: &str| {
        cli.get_arguments().filter(|arg| arg.get_action().takes_values()).any(|arg| {
            match word.strip_prefix("--") {
                Some(long) => arg.get_long() == Some(long),
                // Only the last of several short options can take the next word.
                None => arg.get_short() == word.chars().last(),
            }
        })
    };
    let mut at = 1;
    loop {
        let word = arguments.get(at)?.to_str()?;
        if word == "--" {
            return None;
        }
        if !word.starts_with('-') {
            return Some(at);
        }
        at += if takes_value(word) { 2 } else { 1 };
    }
}

/// Rewrites the words of find.
///
/// A word of an expression, and its value if it has one, become values of [`EXPRESSION`], which
/// keeps their order. Everything else stays: operands, global options, and `-o FORMAT`, which is
/// the output format only before the name of one and the operator otherwise. A word that looks as
/// if it were meant for find, but is unknown, is passed on too, so that find's parser names it;
/// clap would read `-nonsense` as `-n onsense`.
fn find(words: impl Iterator<Item = OsString>, out: &mut Vec<OsString>) {
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            out.push(word);
            out.extend(words.by_ref());
            return;
        }
        let text = word.to_str().unwrap_or_default();
        let is_output = text == "-o" && words.peek().is_some_and(|next| is_format(next));
        // With two dashes, a value may be joined as in other programs: `--name=PATTERN`.
        let (text, joined) = match text.split_once('=') {
            Some((name, value)) if text.starts_with("--") => (name, Some(OsString::from(value))),
            _ => (text, None),
        };
        let found = if is_output {
            None
        } else if is_unknown(text) {
            Some(expression::word(text).unwrap_or((text, Arity::None)))
        } else {
            expression::word(text)
        };
        let Some((canonical, arity)) = found else {
            out.push(word);
            continue;
        };
        out.push(expression_word(canonical.as_ref()));
        if arity == Arity::One
            && let Some(value) = joined.or_else(|| words.next())
        {
            out.push(expression_word(&value));
        }
    }
}

/// A word of an expression as an option for clap.
fn expression_word(word: &OsStr) -> OsString {
    let mut option = OsString::from(format!("--{EXPRESSION}="));
    option.push(word);
    option
}

/// Whether a word has the form of find's words, `-xyz`, and is not one of the short options that
/// clap knows: `-vv` and `-ojson`.
fn is_unknown(word: &str) -> bool {
    let Some(letters) = word.strip_prefix('-') else { return false };
    if letters.len() < 2 || letters.starts_with('-') {
        return false;
    }
    let is_format = letters
        .strip_prefix('o')
        .is_some_and(|format| is_format(format.trim_start_matches('=').as_ref()));
    !is_format && !letters.bytes().all(|letter| letter == b'v')
}

fn is_format(word: &OsStr) -> bool {
    matches!(word.to_str(), Some("json" | "yaml" | "text"))
}

/// Rewrites the words of tail. Long options and operands stay.
fn tail(words: impl Iterator<Item = OsString>, out: &mut Vec<OsString>) {
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            out.push(word);
            out.extend(words.by_ref());
            return;
        }
        match word.to_str().and_then(|word| word.strip_prefix('-')) {
            Some(cluster) if !cluster.is_empty() && !cluster.starts_with('-') => {
                short_options(cluster, &mut words, out);
            }
            _ => {
                // The value of these may look like `-20`.
                let takes_count = word == "--lines" || word == "--bytes";
                out.push(word);
                if takes_count {
                    out.extend(words.next());
                }
            }
        }
    }
}

/// Rewrites a cluster of tail's short options, given without its dash: `20f`, `fn`, `n5`.
///
/// Leading digits are the number of lines. `-v` becomes `--headers`, because it is `--verbose`
/// everywhere else. `-n` and `-c` end the cluster: the rest of it, or else the next word, is their
/// value, and whether that is a count decides between tail's meaning and kubectl's. `-o` ends it
/// too, since its value is not a cluster of options.
fn short_options(
    cluster: &str,
    words: &mut Peekable<impl Iterator<Item = OsString>>,
    out: &mut Vec<OsString>,
) {
    let digits = cluster.find(|c: char| !c.is_ascii_digit()).unwrap_or(cluster.len());
    let (lines, mut rest) = cluster.split_at(digits);
    if !lines.is_empty() {
        out.push(format!("--lines={lines}").into());
    }
    while let Some(flag) = rest.chars().next() {
        rest = rest.get(flag.len_utf8()..).unwrap_or_default();
        let (counting, naming) = match flag {
            'n' => ("--lines", "--namespace"),
            'c' => ("--bytes", "--container"),
            'v' => {
                out.push("--headers".into());
                continue;
            }
            'o' => {
                out.push(format!("-o{rest}").into());
                return;
            }
            flag => {
                out.push(format!("-{flag}").into());
                continue;
            }
        };
        let value = match rest.strip_prefix('=').unwrap_or(rest) {
            "" => words.next(),
            value => Some(value.into()),
        };
        let Some(value) = value else {
            out.push(counting.into());
            return;
        };
        let is_count = value.to_str().is_some_and(|value| count(value).is_ok());
        let mut option = OsString::from(if is_count { counting } else { naming });
        option.push("=");
        option.push(value);
        out.push(option);
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn rewritten(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let cli = crate::cli::Cli::command();
        let out: Vec<_> =
            rewrite(&cli, words).into_iter().map(|word| word.into_string().unwrap()).collect();
        out.join(" ").replace(&format!("--{EXPRESSION}="), "%")
    }

    #[test]
    fn find_s_words_have_one_dash_or_two() {
        for (typed, read) in [
            ("p find web:/ -name *.c -type f", "p find web:/ %-name %*.c %-type %f"),
            ("p find web:/ --name=*.c", "p find web:/ %-name %*.c"),
            ("p find web:/ --name *.c -n shop -c app", "p find web:/ %-name %*.c -n shop -c app"),
            (
                "p -n find find web:/ ! -name -x -o -empty",
                "p -n find find web:/ %! %-name %-x %-o %-empty",
            ),
            ("p --agent find ls -name", "p --agent find ls -name"),
            ("p find web:/ ( -ls ) -o json -print0", "p find web:/ %( %-ls %) -o json %-print0"),
            ("p find -- web:/ -name", "p find -- web:/ -name"),
            ("p -v find web:/ -maxdepth 1", "p -v find web:/ %-maxdepth %1"),
            ("p find web:/ -size", "p find web:/ %-size"),
            ("p find web:/ -vv -ojson -nonsense", "p find web:/ -vv -ojson %-nonsense"),
        ] {
            assert_eq!(rewritten(typed), read, "{typed}");
        }
    }

    #[test]
    fn tail_s_counts_are_told_from_names() {
        for (typed, read) in [
            ("p tail -n 5 web:/a", "p tail --lines=5 web:/a"),
            ("p tail -n5 -n shop web:/a", "p tail --lines=5 --namespace=shop web:/a"),
            ("p tail -fn 5 -c app web:/a", "p tail -f --lines=5 --container=app web:/a"),
            ("p tail -c +1K web:/a", "p tail --bytes=+1K web:/a"),
            ("p tail -20f web:/a", "p tail --lines=20 -f web:/a"),
            ("p tail -qn +3 web:/a", "p tail -q --lines=+3 web:/a"),
            ("p tail -v -o json --lines -5 web:/a", "p tail --headers -o json --lines -5 web:/a"),
            ("p tail -Fojson web:/a", "p tail -F -ojson web:/a"),
            ("p tail --lines -4 -c -4 web:/a", "p tail --lines -4 --bytes=-4 web:/a"),
            ("p tail web:/a -n", "p tail web:/a --lines"),
            ("p -n shop tail -- -n", "p -n shop tail -- -n"),
        ] {
            assert_eq!(rewritten(typed), read, "{typed}");
        }
    }

    #[test]
    fn counts_are_tail_s() {
        assert_eq!(count("20"), Ok(Count::Last(20)));
        assert_eq!(count("-20"), Ok(Count::Last(20)));
        assert_eq!(count("+2K"), Ok(Count::From(2048)));
        assert_eq!(count("1MB"), Ok(Count::Last(1_000_000)));
        for bad in ["", "-", "x", "1x", "99999999999999999999", "99999999999999G", "--1"] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }
}
