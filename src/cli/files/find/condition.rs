//! The tests of a find expression.

use super::pattern::Pattern;
use crate::{
    cli::files::accounts::Accounts,
    proto::v1::{FileEntry, FileType},
};

/// Seconds and nanoseconds since the epoch.
pub(super) type Instant = (i64, i32);

/// One entry, and everything else that tests may need.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) entry: &'a FileEntry,
    /// The last name of its path.
    pub(super) name: &'a [u8],
    /// Its path in the pod.
    pub(super) path: &'a [u8],
    /// The path as it is printed: `POD:PATH`.
    pub(super) printed: &'a [u8],
    /// Whether it is a directory without entries. Known only if the expression asks for that.
    pub(super) is_empty_directory: bool,
    pub(super) accounts: &'a Accounts,
    /// Modification times of the files that `-newer` names.
    pub(super) references: &'a [Instant],
    /// When the search began.
    pub(super) now: Instant,
}

/// A test of an entry.
#[derive(Debug)]
pub(super) enum Test {
    Name(Pattern),
    Path(Pattern),
    Link(Pattern),
    Type(Vec<FileType>),
    /// The unit is in bytes.
    Size {
        figure: Figure,
        unit: u64,
    },
    Empty,
    /// The unit is in seconds.
    Age {
        time: Time,
        figure: Figure,
        unit: i64,
    },
    /// Holds an index into [`Candidate::references`].
    Newer(usize),
    Mode {
        bits: u32,
        how: Sign,
    },
    User(Who),
    Group(Who),
    Links(Figure),
    Inode(Figure),
}

/// Which of a file's times.
#[derive(Debug, Clone, Copy)]
pub(super) enum Time {
    Accessed,
    Modified,
    Changed,
}

/// A user or a group.
#[derive(Debug)]
pub(super) enum Who {
    Name(String),
    Id(Figure),
}

/// What stands in front of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Exactly,
    /// `-N`: less than N; for modes, all of these bits are set.
    Less,
    /// `+N`: more than N; for modes, `/N`: any of these bits is set.
    More,
}

/// A number to compare with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    sign: Sign,
    value: u64,
}

impl Figure {
    /// Parses `5`, `+5` or `-5`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (sign, digits) = match text.split_at_checked(1) {
            Some(("+", digits)) => (Sign::More, digits),
            Some(("-", digits)) => (Sign::Less, digits),
            _ => (Sign::Exactly, text),
        };
        let value = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
        Some(Self { sign, value })
    }

    fn matches(self, value: u64) -> bool {
        match self.sign {
            Sign::Exactly => value == self.value,
            Sign::Less => value < self.value,
            Sign::More => value > self.value,
        }
    }
}

/// The file type that a letter of `-type` stands for.
pub(super) fn file_type(letter: &str) -> Option<FileType> {
    Some(match letter {
        "f" => FileType::Regular,
        "d" => FileType::Directory,
        "l" => FileType::Symlink,
        "p" => FileType::Fifo,
        "s" => FileType::Socket,
        "c" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        _ => return None,
    })
}

impl Test {
    pub(super) fn matches(&self, candidate: Candidate<'_>) -> bool {
        let Candidate { entry, accounts, .. } = candidate;
        match self {
            Self::Name(pattern) => pattern.matches(candidate.name),
            Self::Path(pattern) => {
                pattern.matches(candidate.path) || pattern.matches(candidate.printed)
            }
            Self::Link(pattern) => {
                entry.r#type() == FileType::Symlink && pattern.matches(&entry.link_target)
            }
            Self::Type(types) => types.contains(&entry.r#type()),
            Self::Size { figure, unit } => figure.matches(entry.size.div_ceil(*unit)),
            Self::Empty => match entry.r#type() {
                FileType::Regular => entry.size == 0,
                FileType::Directory => candidate.is_empty_directory,
                _ => false,
            },
            Self::Age { time, figure, unit } => {
                let time = match time {
                    Time::Accessed => entry.accessed_at,
                    Time::Modified => entry.modified_at,
                    Time::Changed => entry.changed_at,
                };
                let Some(time) = time else { return false };
                age_matches(*figure, *unit, (time.seconds, time.nanos), candidate.now)
            }
            Self::Newer(index) => entry
                .modified_at
                .zip(candidate.references.get(*index))
                .is_some_and(|(time, reference)| (time.seconds, time.nanos) > *reference),
            Self::Mode { bits, how } => match how {
                Sign::Exactly => entry.mode & 0o7777 == *bits,
                Sign::Less => entry.mode & bits == *bits,
                Sign::More => *bits == 0 || entry.mode & bits != 0,
            },
            Self::User(Who::Name(name)) => accounts.user(entry.uid) == Some(name),
            Self::User(Who::Id(figure)) => figure.matches(entry.uid.into()),
            Self::Group(Who::Name(name)) => accounts.group(entry.gid) == Some(name),
            Self::Group(Who::Id(figure)) => figure.matches(entry.gid.into()),
            Self::Links(figure) => figure.matches(entry.links.into()),
            Self::Inode(figure) => figure.matches(entry.inode),
        }
    }
}

/// Whether an age in days or minutes matches, as in GNU find.
///
/// Days drop their fraction: a file is 1 day old from 24 to 48 hours. Minutes are compared with the
/// fraction: `-mmin -N` means less than N minutes, `-mmin +N` more, and `-mmin N` the minute up to
/// N, so there a fraction rounds up.
fn age_matches(figure: Figure, unit: i64, time: Instant, now: Instant) -> bool {
    const NANOS: i128 = 1_000_000_000;
    let nanos = |(seconds, nanos): Instant| i128::from(seconds) * NANOS + i128::from(nanos);
    let age = nanos(now) - nanos(time);
    let unit = i128::from(unit) * NANOS;
    let mut whole = age.div_euclid(unit);
    let is_minutes = unit == 60 * NANOS;
    if is_minutes && figure.sign != Sign::Less && age.rem_euclid(unit) > 0 {
        whole += 1;
    }
    let value = i128::from(figure.value);
    match figure.sign {
        Sign::Exactly => whole == value,
        Sign::Less => whole < value,
        Sign::More => whole > value,
    }
}
