//! The expressions of find: their words, their grammar, and their evaluation.
//!
//! `-o` binds weakest, then `-a` or nothing, then `!`. Options such as `-maxdepth` are always true
//! and hold for the whole search, wherever they stand.

use std::{
    ffi::{OsStr, OsString},
    iter::Peekable,
};

use super::{
    condition::{Candidate, Figure, Sign, Test, Time, Who, file_type},
    pattern::Pattern,
};
use crate::cli::files::location::PodPath;

/// How deeply parentheses and `!` may be nested. The parser recurses, so the stack sets a limit.
const MAX_DEPTH: usize = 100;

/// How many words follow a word as its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli::files) enum Arity {
    None,
    One,
}

/// The words without a value.
const ALONE: &[&str] = &[
    "!", "(", ")", "-not", "-a", "-and", "-o", "-or", "-empty", "-true", "-false", "-print",
    "-print0", "-ls", "-prune", "-xdev", "-mount",
];
/// The words that take the next word as their value.
const WITH_VALUE: &[&str] = &[
    "-name",
    "-iname",
    "-path",
    "-wholename",
    "-ipath",
    "-iwholename",
    "-lname",
    "-ilname",
    "-type",
    "-size",
    "-mtime",
    "-atime",
    "-ctime",
    "-mmin",
    "-amin",
    "-cmin",
    "-newer",
    "-perm",
    "-user",
    "-group",
    "-uid",
    "-gid",
    "-links",
    "-inum",
    "-maxdepth",
    "-mindepth",
];

/// Looks up a word, which may have two dashes. Returns it as find(1) spells it, and how many words
/// follow it.
pub(in crate::cli::files) fn word(text: &str) -> Option<(&'static str, Arity)> {
    let short = match text.strip_prefix("--") {
        // `--a` and `--o` would be confused with other programs' options.
        Some(long) if long.len() > 2 => text.get(1..)?,
        Some(_) => return None,
        None => text,
    };
    let known = |words: &[&'static str]| words.iter().find(|known| **known == short).copied();
    known(ALONE)
        .map(|word| (word, Arity::None))
        .or_else(|| known(WITH_VALUE).map(|word| (word, Arity::One)))
}

/// What to search for, and where.
#[derive(Debug)]
pub(super) struct Search {
    expression: Expression,
    pub(super) max_depth: Option<u32>,
    pub(super) min_depth: usize,
    pub(super) same_file_system: bool,
    /// The files of `-newer`; [`Test::Newer`] holds an index into this.
    pub(super) references: Vec<Reference>,
    /// Whether the names of users or groups are needed.
    pub(super) accounts: bool,
    /// Whether `-empty` occurs: finding out whether a directory is empty takes a request.
    pub(super) emptiness: bool,
}

/// A file of `-newer`.
#[derive(Debug)]
pub(super) enum Reference {
    /// A path in the pod that is searched.
    Same(Vec<u8>),
    /// A path in any pod.
    Other(PodPath),
}

#[derive(Debug)]
enum Expression {
    Always(bool),
    Test(Test),
    Act(Action),
    Not(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
}

/// What to do with an entry that gets this far in the expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Print,
    Print0,
    Ls,
    Prune,
}

impl Search {
    /// Parses an expression. Without an action in it, `-print` is added, as in find(1).
    ///
    /// # Errors
    /// What is wrong with the words, for a person.
    pub(super) fn parse(words: &[OsString]) -> Result<Self, String> {
        let mut parser = Parser {
            words: words.iter().peekable(),
            search: Self {
                expression: Expression::Always(true),
                max_depth: None,
                min_depth: 0,
                same_file_system: false,
                references: Vec::new(),
                accounts: false,
                emptiness: false,
            },
            has_action: false,
            depth: 0,
        };
        let expression =
            if words.is_empty() { Expression::Always(true) } else { parser.either()? };
        if let Some(word) = parser.words.next() {
            return Err(format!("{} is not expected here", word.to_string_lossy()));
        }
        let Parser { mut search, has_action, .. } = parser;
        search.expression = if has_action {
            expression
        } else {
            Expression::And(Box::new(expression), Box::new(Expression::Act(Action::Print)))
        };
        Ok(search)
    }

    /// Whether its actions are only `-print` and `-prune`, which JSON and YAML can express.
    pub(super) fn only_prints(&self) -> bool {
        fn only_prints(expression: &Expression) -> bool {
            match expression {
                Expression::Act(action) => matches!(action, Action::Print | Action::Prune),
                Expression::Not(inner) => only_prints(inner),
                Expression::And(a, b) | Expression::Or(a, b) => only_prints(a) && only_prints(b),
                Expression::Always(_) | Expression::Test(_) => true,
            }
        }
        only_prints(&self.expression)
    }

    /// Evaluates the expression for an entry, and calls `act` for each action that it comes to.
    ///
    /// # Errors
    /// Returns the first error of `act`.
    pub(super) fn apply<E>(
        &self,
        candidate: Candidate<'_>,
        act: &mut impl FnMut(Action) -> Result<(), E>,
    ) -> Result<(), E> {
        evaluate(&self.expression, candidate, act).map(|_| ())
    }
}

/// A recursive-descent parser with a method for each level of the grammar.
struct Parser<'a, I: Iterator<Item = &'a OsString>> {
    words: Peekable<I>,
    search: Search,
    /// Whether an action other than `-prune` occurred.
    has_action: bool,
    /// How many parentheses and `!` are open.
    depth: usize,
}

impl<'a, I: Iterator<Item = &'a OsString>> Parser<'a, I> {
    fn next_is(&mut self, words: &[&str]) -> bool {
        self.words
            .peek()
            .is_some_and(|next| words.iter().any(|word| next.as_os_str() == OsStr::new(word)))
    }

    /// Terms joined by `-o`.
    fn either(&mut self) -> Result<Expression, String> {
        let mut left = self.both()?;
        while self.next_is(&["-o", "-or"]) {
            self.words.next();
            left = Expression::Or(Box::new(left), Box::new(self.both()?));
        }
        Ok(left)
    }

    /// Factors joined by `-a` or by nothing.
    fn both(&mut self) -> Result<Expression, String> {
        let mut left = self.one()?;
        loop {
            if self.next_is(&["-a", "-and"]) {
                self.words.next();
            } else if self.words.peek().is_none() || self.next_is(&["-o", "-or", ")"]) {
                return Ok(left);
            }
            left = Expression::And(Box::new(left), Box::new(self.one()?));
        }
    }

    /// A test, an action, an option, or a negated or parenthesised expression.
    fn one(&mut self) -> Result<Expression, String> {
        let word = self.words.next().ok_or("the expression is not complete")?;
        let word = word.to_str().unwrap_or_default();
        if matches!(word, "!" | "-not" | "(") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(format!("the expression is nested more than {MAX_DEPTH} levels deep"));
            }
            let inner = if word == "(" {
                let inner = self.either()?;
                if !self.next_is(&[")"]) {
                    return Err("a closing ) is missing".to_owned());
                }
                self.words.next();
                inner
            } else {
                Expression::Not(Box::new(self.one()?))
            };
            self.depth -= 1;
            return Ok(inner);
        }
        let action = match word {
            "-print" => Some(Action::Print),
            "-print0" => Some(Action::Print0),
            "-ls" => Some(Action::Ls),
            "-prune" => Some(Action::Prune),
            _ => None,
        };
        if let Some(action) = action {
            self.has_action |= action != Action::Prune;
            self.search.accounts |= action == Action::Ls;
            return Ok(Expression::Act(action));
        }
        match word {
            "-true" => return Ok(Expression::Always(true)),
            "-false" => return Ok(Expression::Always(false)),
            "-xdev" | "-mount" => {
                self.search.same_file_system = true;
                return Ok(Expression::Always(true));
            }
            "-empty" => {
                self.search.emptiness = true;
                return Ok(Expression::Test(Test::Empty));
            }
            _ => {}
        }
        let value = match (self::word(word), self.words.next()) {
            (Some((_, Arity::One)), Some(value)) => value,
            (Some((_, Arity::One)), None) => return Err(format!("{word} lacks its value")),
            _ => return Err(format!("{word} is not expected here")),
        };
        self.test(word, value)
    }

    /// A test with its value.
    fn test(&mut self, word: &str, value: &OsStr) -> Result<Expression, String> {
        let pattern = || Pattern::new(value.as_encoded_bytes(), word.starts_with("-i"));
        let text = value.to_string_lossy();
        let wrong = |what: &str| format!("{word} {text}: {what}");
        let figure = || Figure::parse(&text).ok_or_else(|| wrong("not a number, as 5, +5 or -5"));
        let days_or_minutes = if word.ends_with("min") { 60 } else { 24 * 60 * 60 };
        let age = |time| -> Result<Test, String> {
            Ok(Test::Age { time, figure: figure()?, unit: days_or_minutes })
        };
        let test = match word {
            "-maxdepth" | "-mindepth" => {
                let depth: u32 = text.parse().map_err(|_| wrong("not a depth"))?;
                match word {
                    "-maxdepth" => self.search.max_depth = Some(depth),
                    _ => self.search.min_depth = usize::try_from(depth).unwrap_or(usize::MAX),
                }
                return Ok(Expression::Always(true));
            }
            "-name" | "-iname" => Test::Name(pattern()),
            "-path" | "-wholename" | "-ipath" | "-iwholename" => Test::Path(pattern()),
            "-lname" | "-ilname" => Test::Link(pattern()),
            "-type" => {
                let types: Option<Vec<_>> = text.split(',').map(file_type).collect();
                Test::Type(types.ok_or_else(|| {
                    wrong("not a type: f, d, l, p, s, c, b, or several with commas")
                })?)
            }
            "-size" => {
                let (number, unit) = match text.char_indices().last() {
                    Some((at, last)) if !last.is_ascii_digit() => {
                        (text.get(..at).unwrap_or_default(), last)
                    }
                    _ => (&*text, 'b'),
                };
                let unit = match unit {
                    'c' => 1,
                    'w' => 2,
                    'b' => 512,
                    'k' => 1 << 10,
                    'M' => 1 << 20,
                    'G' => 1 << 30,
                    _ => return Err(wrong("not a unit: c, w, b, k, M or G")),
                };
                let figure = Figure::parse(number).ok_or_else(|| wrong("not a size, as +10M"))?;
                Test::Size { figure, unit }
            }
            "-mtime" | "-mmin" => age(Time::Modified)?,
            "-atime" | "-amin" => age(Time::Accessed)?,
            "-ctime" | "-cmin" => age(Time::Changed)?,
            "-newer" => {
                self.search.references.push(match PodPath::parse(value.to_owned()) {
                    Ok(path) => Reference::Other(path),
                    Err(_) => Reference::Same(value.as_encoded_bytes().to_vec()),
                });
                Test::Newer(self.search.references.len() - 1)
            }
            "-perm" => {
                let (how, bits) = match text.split_at_checked(1) {
                    Some(("-", bits)) => (Sign::Less, bits),
                    Some(("/", bits)) => (Sign::More, bits),
                    _ => (Sign::Exactly, &*text),
                };
                let bits = u32::from_str_radix(bits, 8).ok().filter(|bits| *bits <= 0o7777);
                Test::Mode {
                    bits: bits.ok_or_else(|| wrong("not an octal mode, as 644, -4000 or /222"))?,
                    how,
                }
            }
            "-user" | "-group" => {
                let who = Figure::parse(&text)
                    .map_or_else(|| Who::Name(text.clone().into_owned()), Who::Id);
                self.search.accounts |= matches!(who, Who::Name(_));
                if word == "-user" { Test::User(who) } else { Test::Group(who) }
            }
            "-uid" => Test::User(Who::Id(figure()?)),
            "-gid" => Test::Group(Who::Id(figure()?)),
            "-links" => Test::Links(figure()?),
            "-inum" => Test::Inode(figure()?),
            _ => return Err(wrong("not expected here")),
        };
        Ok(Expression::Test(test))
    }
}

/// Evaluates from left to right and stops as soon as the result is certain, because actions have
/// effects.
fn evaluate<E>(
    expression: &Expression,
    candidate: Candidate<'_>,
    act: &mut impl FnMut(Action) -> Result<(), E>,
) -> Result<bool, E> {
    Ok(match expression {
        Expression::Always(value) => *value,
        Expression::Test(test) => test.matches(candidate),
        Expression::Act(action) => {
            act(*action)?;
            true
        }
        Expression::Not(inner) => !evaluate(inner, candidate, act)?,
        Expression::And(a, b) => evaluate(a, candidate, act)? && evaluate(b, candidate, act)?,
        Expression::Or(a, b) => evaluate(a, candidate, act)? || evaluate(b, candidate, act)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::files::accounts::Accounts,
        proto::v1::{FileEntry, FileType},
    };

    fn parse(text: &str) -> Result<Search, String> {
        let words: Vec<OsString> = text.split_whitespace().map(OsString::from).collect();
        Search::parse(&words)
    }

    fn actions(text: &str, entry: &FileEntry) -> Vec<Action> {
        let search = parse(text).unwrap();
        let accounts = Accounts::default();
        let candidate = Candidate {
            entry,
            name: b"a.conf",
            path: b"/etc/a.conf",
            printed: b"web:/etc/a.conf",
            is_empty_directory: false,
            accounts: &accounts,
            references: &[(50, 0)],
            now: (1_000_000, 0),
        };
        let mut done = Vec::new();
        search
            .apply(candidate, &mut |action| -> Result<(), ()> {
                done.push(action);
                Ok(())
            })
            .unwrap();
        done
    }

    #[test]
    fn grammar_is_find_s() {
        let entry = FileEntry {
            r#type: FileType::Regular.into(),
            size: 1025,
            mode: 0o4644,
            ..FileEntry::default()
        };
        use Action::{Ls, Print, Print0, Prune};
        for (text, expected) in [
            ("", vec![Print]),
            ("-name *.conf", vec![Print]),
            ("-name *.c", vec![]),
            ("-iname *.CONF -path /etc/* -path web:/etc/?.conf", vec![Print]),
            ("! -name *.c", vec![Print]),
            ("-not ! -name *.c", vec![]),
            ("-name x -o -type f", vec![Print]),
            ("-name x -o -type f -print0", vec![Print0]),
            ("-type f -ls -o -print", vec![Ls]),
            ("-false -o -print -print0", vec![Print, Print0]),
            ("( -name x -o -type d,f ) -a -size +2k", vec![]),
            ("( -name x -o -type d,f ) -a -size 2k", vec![Print]),
            ("-size 3 -perm 4644 -perm -4000 -perm /022 -o -perm -1", vec![]),
            ("-size 3 -perm 4644 -perm -4000 -perm /044", vec![Print]),
            ("-type f -prune -o -print", vec![Prune]),
            ("-prune", vec![Prune, Print]),
            ("-empty", vec![]),
            ("-maxdepth 3 -mindepth 1 -xdev", vec![Print]),
        ] {
            assert_eq!(actions(text, &entry), expected, "{text}");
        }
        for bad in [
            "-name",
            "( -name x",
            "-name x )",
            "-o",
            "-name x -o",
            "!",
            "-type x",
            "-size big",
            "-size 5x",
            "-mtime x",
            "-perm u+x",
            "-maxdepth -1",
            "stray",
            "-links 1x",
            "( )",
            "-size +-1",
            &"! ".repeat(200),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let search = parse("-xdev -maxdepth 2 -newer b:/x -newer y -user root").unwrap();
        assert!(
            search.same_file_system
                && search.accounts
                && search.max_depth == Some(2)
                && search.references.len() == 2
        );
    }

    #[test]
    fn ages_are_counted_as_find_counts_them() {
        let matches = |text: &str, seconds_ago: i64| {
            let modified_at =
                Some(prost_types::Timestamp { seconds: 1_000_000 - seconds_ago, nanos: 0 });
            !actions(text, &FileEntry { modified_at, ..FileEntry::default() }).is_empty()
        };
        let day = 86_400;
        assert!(matches("-mtime 0", day - 1) && !matches("-mtime 0", day + 1));
        assert!(
            matches("-mtime 1", day + 1)
                && matches("-mtime +0", day + 1)
                && !matches("-mtime +1", day + 1)
        );
        assert!(matches("-mtime -1", day - 1) && !matches("-mtime -1", day + 1));
        assert!(
            matches("-mmin -1", 59)
                && !matches("-mmin -1", 61)
                && matches("-mmin +1", 61)
                && !matches("-mmin +1", 59)
        );
        assert!(matches("-mmin 1", 30) && matches("-mmin 2", 61));
        assert!(matches("-newer x", 1_000_000 - 51) && !matches("-newer x", 1_000_000 - 50));
        assert!(actions("-mtime 0", &FileEntry::default()).is_empty());
    }
}
