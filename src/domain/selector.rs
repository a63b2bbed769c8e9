//! Selectors in kubectl's syntax: `app=web,tier!=cache,env in (a,b),!legacy`.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>

use std::fmt;

/// What is asked of one label or field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// Its value is one of these.
    In(Vec<String>),
    /// It has none of these values, or is absent.
    NotIn(Vec<String>),
    /// It is there.
    Exists,
    /// It is absent.
    Absent,
}

impl Requirement {
    /// Whether a value, or its absence, fulfils it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::In(wanted), Some(value)) => wanted.iter().any(|w| w == value),
            (Self::NotIn(refused), Some(value)) => refused.iter().all(|r| r != value),
            (Self::Exists, value) => value.is_some(),
            (Self::Absent, value) => value.is_none(),
            (Self::In(_), None) => false,
            (Self::NotIn(_), None) => true,
        }
    }
}

/// Longest selector that is parsed, in bytes.
///
/// Every pod is matched against every requirement, on a worker that other requests need, too: a
/// selector of 255 KB took it for 0.65 s. People write a handful of requirements.
pub const MAX_LENGTH: usize = 4096;
/// Most requirements of one selector.
pub const MAX_REQUIREMENTS: usize = 64;

/// Why a text is no selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelectorError<'t> {
    /// It has this many bytes.
    TooLong(usize),
    /// It has more than [`MAX_REQUIREMENTS`].
    TooMany,
    /// This part of it cannot be understood.
    Term(&'t str),
}

impl fmt::Display for SelectorError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(length) => write!(f, "has {length} bytes; it may have {MAX_LENGTH}"),
            Self::TooMany => write!(f, "has more than {MAX_REQUIREMENTS} requirements"),
            Self::Term(term) => write!(
                f,
                "{term:?} is no selector; write app=web, tier!=cache, env in (a,b), key or !key"
            ),
        }
    }
}

/// All of some requirements, by label. Empty, it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<(String, Requirement)>);

impl LabelSelector {
    /// Parses a selector; an empty text selects everything.
    ///
    /// # Errors
    /// If it is too long, or has a part that cannot be understood.
    pub fn parse(text: &str) -> Result<Self, SelectorError<'_>> {
        if text.len() > MAX_LENGTH {
            return Err(SelectorError::TooLong(text.len()));
        }
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut requirements = Vec::new();
        for term in split(text) {
            if requirements.len() >= MAX_REQUIREMENTS {
                return Err(SelectorError::TooMany);
            }
            requirements.push(label_requirement(term).ok_or(SelectorError::Term(term))?);
        }
        Ok(Self(requirements))
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels, looked up through `value`, fulfil all of it.
    pub fn matches<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> bool {
        self.0.iter().all(|(key, requirement)| requirement.matches(value(key)))
    }
}

/// The terms of a selector: what stands between the commas that are outside parentheses. Empty ones
/// are left out.
pub fn terms(selector: &str) -> impl Iterator<Item = &str> {
    split(selector).filter(|term| !term.is_empty())
}

fn split(selector: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    selector
        .split(move |c| {
            match c {
                '(' => depth = depth.saturating_add(1),
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ',' && depth == 0
        })
        .map(str::trim)
}

/// `key=value`, `key==value` or `key!=value`.
pub fn equality(term: &str) -> Option<(String, Requirement)> {
    let (key, value) = term.split_once('=')?;
    let (value, values) =
        (value.strip_prefix('=').unwrap_or(value).trim(), |v: &str| vec![v.to_owned()]);
    match key.strip_suffix('!') {
        Some(key) => Some((key.trim().to_owned(), Requirement::NotIn(values(value)))),
        None => Some((key.trim().to_owned(), Requirement::In(values(value)))),
    }
}

fn label_requirement(term: &str) -> Option<(String, Requirement)> {
    let (key, requirement) = if let Some(list) = term.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        match (words.next()?, words.next()?, words.next()) {
            (key, "in", None) => (key.to_owned(), Requirement::In(values)),
            (key, "notin", None) => (key.to_owned(), Requirement::NotIn(values)),
            _ => return None,
        }
    } else if term.contains('=') {
        equality(term)?
    } else if let Some(key) = term.strip_prefix('!') {
        (key.trim().to_owned(), Requirement::Absent)
    } else {
        (term.to_owned(), Requirement::Exists)
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    // A value that no label can have would silently select nothing.
    let values = match &requirement {
        Requirement::In(values) | Requirement::NotIn(values) => values.as_slice(),
        Requirement::Exists | Requirement::Absent => &[],
    };
    let valid_value =
        |value: &String| value.len() <= 63 && value.chars().all(|c| c != '/' && valid(c));
    let is_valid = !key.is_empty() && key.chars().all(valid) && values.iter().all(valid_value);
    is_valid.then_some((key, requirement))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_selectors_are_refused_before_they_are_parsed() {
        let of = |count: usize| vec!["a"; count].join(",");
        assert!(LabelSelector::parse(&of(MAX_REQUIREMENTS)).is_ok());
        let more = of(MAX_REQUIREMENTS + 1);
        assert_eq!(LabelSelector::parse(&more), Err(SelectorError::TooMany));
        let long = format!("a in ({})", of(MAX_LENGTH / 2));
        assert_eq!(LabelSelector::parse(&long), Err(SelectorError::TooLong(long.len())));
        let longest = format!("a in ({})", of(MAX_LENGTH / 2 - 4));
        assert!(longest.len() <= MAX_LENGTH && LabelSelector::parse(&longest).is_ok());
    }

    #[test]
    fn kubectl_syntax() {
        let labels = |key: &str| match key {
            "app" => Some("web"),
            "example.com/tier" => Some("front"),
            _ => None,
        };
        let table = [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=web", true),
            ("app == web, example.com/tier!=back", true),
            ("app!=web", false),
            ("env!=x", true),
            ("app in (db, web)", true),
            ("app notin (db, web)", false),
            ("env notin (x)", true),
            ("env in (x)", false),
            ("app,!env", true),
        ];
        for (text, expected) in table {
            assert_eq!(
                LabelSelector::parse(text).map(|s| s.matches(labels)),
                Ok(expected),
                "{text}"
            );
        }
        for bad in [
            "=x",
            "a b",
            "app in",
            "app in (x",
            "in (x)",
            "!a=b",
            "a;b",
            "a=b=c",
            "a=b c",
            "a,,b",
            ",",
            "a,",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }
}
