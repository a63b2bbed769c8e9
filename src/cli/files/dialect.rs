//! What people type and clap does not know: find's words with one dash, `tail -20`, and `-n 20` beside `-n NAMESPACE`. The command line is
//! rewritten before clap reads it.

use std::ffi::{OsStr, OsString};

use clap::Command;

use super::find::expression::{self, Arity};

/// The hidden flag that carries one word of find's expression.
pub(in crate::cli) const EXPRESSION: &str = "expression-word";

/// How much `tail` begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Count {
    /// So many before the end.
    Last(u64),
    /// From this one on, the first being 1.
    From(u64),
}

/// `20`, `-20`, `+20`, with `b`, `k`, `K`, `kB`, `M`, `MB`, `G`, `GB` behind it.
pub(in crate::cli) fn count(text: &str) -> Result<Count, String> {
    let invalid = || format!("{text:?} is not a count; write 20, +20 or 1K");
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

/// The command line as clap understands it. `cli`: the whole command.
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

/// Where the subcommand stands: the first word that is neither an option nor an option's value.
fn subcommand(cli: &Command, arguments: &[OsString]) -> Option<usize> {
    let takes_value = |word: &str| {
        cli.get_arguments().filter(|arg| arg.get_action().takes_values()).any(|arg| {
            match word.strip_prefix("--") {
                Some(long) => arg.get_long() == Some(long),
                // The last of a cluster of short ones.
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

/// Makes every word of an expression a value of [`EXPRESSION`].
fn find(words: impl Iterator<Item = OsString>, out: &mut Vec<OsString>) {
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            out.push(word);
            out.extend(words.by_ref());
            return;
        }
        let text = word.to_str().unwrap_or_default();
        // Before the name of a format, `-o` is ours.
        let is_output = text == "-o" && words.peek().is_some_and(|next| is_format(next));
        // `--name=PATTERN`, as with every other program's long options.
        let (text, joined) = match text.split_once('=') {
            Some((name, value)) if text.starts_with("--") => (name, Some(OsString::from(value))),
            _ => (text, None),
        };
        let known = expression::word(text).filter(|_| !is_output);
        // Not `-n onsense`.
        let (canonical, arity) =
            match known.or_else(|| is_unknown(text).then_some((text, Arity::None))) {
                Some(known) => known,
                None => {
                    out.push(word);
                    continue;
                }
            };
        let mut push = |word: &OsStr| {
            let mut value = OsString::from(format!("--{EXPRESSION}="));
            value.push(word);
            out.push(value);
        };
        push(canonical.as_ref());
        if arity == Arity::One
            && let Some(value) = joined.or_else(|| words.next())
        {
            push(&value);
        }
    }
}

/// Whether it has the form of find's words, and is none of the short options that clap knows: `-vv`, `-ojson`.
fn is_unknown(word: &str) -> bool {
    let Some(letters) =
        word.strip_prefix('-').filter(|rest| rest.len() > 1 && !rest.starts_with('-'))
    else {
        return false;
    };
    let is_format = letters
        .strip_prefix('o')
        .is_some_and(|format| is_format(format.trim_start_matches('=').as_ref()));
    !is_format && !letters.bytes().all(|letter| letter == b'v')
}

fn is_format(word: &OsStr) -> bool {
    matches!(word.to_str(), Some("json" | "yaml" | "text"))
}

/// Tells tail's `-n` and `-c` from kubectl's by what follows, and knows `-20`, `-20f` and `-v`.
fn tail(words: impl Iterator<Item = OsString>, out: &mut Vec<OsString>) {
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            out.push(word);
            out.extend(words.by_ref());
            return;
        }
        let cluster = word
            .to_str()
            .and_then(|word| word.strip_prefix('-'))
            .filter(|rest| !rest.starts_with('-'));
        let Some(mut rest) = cluster.filter(|rest| !rest.is_empty()) else {
            // Its value may look like `-20`.
            let has_value = word == "--lines" || word == "--bytes";
            out.push(word);
            out.extend(words.next_if(|_| has_value));
            continue;
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits > 0 {
            let (lines, after) = rest.split_at(digits);
            out.push(format!("--lines={lines}").into());
            rest = after;
        }
        while let Some(flag) = rest.chars().next() {
            rest = rest.get(flag.len_utf8()..).unwrap_or_default();
            let long = match flag {
                'v' => {
                    out.push("--headers".into());
                    continue;
                }
                'n' => ("--lines", "--namespace"),
                'c' => ("--bytes", "--container"),
                // The value of another option, or nothing that clap does not know.
                'o' => {
                    out.push(format!("-o{rest}").into());
                    break;
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
                out.push(long.0.into());
                break;
            };
            let is_count = value.to_str().is_some_and(|value| count(value).is_ok());
            let mut option = OsString::from(if is_count { long.0 } else { long.1 });
            option.push("=");
            option.push(value);
            out.push(option);
            break;
        }
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
