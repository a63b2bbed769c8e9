//! The patterns of fnmatch(3), for names that may be any bytes. As in find(1), `*` and `?` also
//! match slashes and leading dots.
//!
//! Pattern and name become sequences of numbers, one for each character, so that `?` matches a
//! whole character. A byte that is not part of valid UTF-8 becomes a number beyond Unicode, which
//! equals only the same byte.

/// A pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    units: Vec<u32>,
    ignores_case: bool,
}

/// The first number beyond Unicode. Bytes that are not UTF-8 are numbered from here.
const BYTES: u32 = 0x11_0000;

fn units(text: &[u8]) -> Vec<u32> {
    let mut units = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        units.extend(chunk.valid().chars().map(u32::from));
        units.extend(chunk.invalid().iter().map(|byte| BYTES + u32::from(*byte)));
    }
    units
}

fn folded(unit: u32) -> u32 {
    char::from_u32(unit).and_then(|c| c.to_lowercase().next()).map_or(unit, u32::from)
}

impl Pattern {
    pub(super) fn new(pattern: &[u8], ignores_case: bool) -> Self {
        Self { units: units(pattern), ignores_case }
    }

    /// Whether the pattern matches the whole name.
    ///
    /// Only the last `*` seen needs to be remembered: if what follows it does not match, it
    /// swallows one more character and the rest is tried again. An earlier `*` would find nothing
    /// that the last one does not, so the time grows with the product of the lengths and never
    /// exponentially.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        let name = units(name);
        // The pattern's position behind the last `*`, and the name's where the retry starts.
        let mut retry: Option<(usize, usize)> = None;
        let (mut p, mut n) = (0, 0);
        loop {
            let step = match (self.at(p), name.get(n)) {
                (Some('*'), _) => {
                    retry = Some((p + 1, n));
                    p += 1;
                    continue;
                }
                (_, None) if p == self.units.len() => return true,
                (_, Some(unit)) => self.one(p, *unit),
                (_, None) => None,
            };
            match (step, retry) {
                (Some(next), _) => {
                    p = next;
                    n += 1;
                }
                (None, Some((after, from))) if from < name.len() => {
                    retry = Some((after, from + 1));
                    p = after;
                    n = from + 1;
                }
                (None, _) => return false,
            }
        }
    }

    /// The character at `p`; `None` at the end and for a byte that is not UTF-8.
    fn at(&self, p: usize) -> Option<char> {
        self.units.get(p).copied().and_then(char::from_u32)
    }

    fn same(&self, a: u32, b: u32) -> bool {
        a == b || (self.ignores_case && folded(a) == folded(b))
    }

    /// Matches one unit of the name with what stands at `p`, and returns the position behind that.
    fn one(&self, p: usize, unit: u32) -> Option<usize> {
        let literal = |at: usize| {
            self.units.get(at).is_some_and(|own| self.same(*own, unit)).then_some(at + 1)
        };
        match self.at(p) {
            Some('?') => Some(p + 1),
            Some('[') => match self.set(p, unit) {
                Some((found, after)) => found.then_some(after),
                // Without a closing bracket, `[` stands for itself.
                None => literal(p),
            },
            Some('\\') if p + 1 < self.units.len() => literal(p + 1),
            _ => literal(p),
        }
    }

    /// Whether the bracket expression at `p` contains the unit, and the position behind it. `None`
    /// if the expression is not closed.
    fn set(&self, p: usize, unit: u32) -> Option<(bool, usize)> {
        let mut at = p + 1;
        let negated = matches!(self.at(at), Some('!' | '^'));
        at += usize::from(negated);
        let first = at;
        let mut found = false;
        loop {
            if self.at(at) == Some(']') && at > first {
                return Some((found != negated, at + 1));
            }
            if self.at(at) == Some('[') && self.at(at + 1) == Some(':') {
                let rest = self.units.get(at + 2..)?;
                let end =
                    rest.windows(2).position(|two| *two == [u32::from(':'), u32::from(']')])?;
                let name: Option<String> =
                    rest.get(..end)?.iter().map(|unit| char::from_u32(*unit)).collect();
                found |= class(name?.as_bytes(), unit);
                at += end + 4;
                continue;
            }
            at += usize::from(self.at(at) == Some('\\'));
            let low = *self.units.get(at)?;
            at += 1;
            let mut high = low;
            if self.at(at) == Some('-') && self.at(at + 1) != Some(']') {
                high = *self.units.get(at + 1)?;
                at += 2;
            }
            let within = |unit: u32| (low..=high).contains(&unit);
            let swapped = |unit: u32| {
                char::from_u32(unit).and_then(|c| c.to_uppercase().next()).map_or(unit, u32::from)
            };
            found |= within(unit)
                || (self.ignores_case && (within(folded(unit)) || within(swapped(unit))));
        }
    }
}

/// Whether a unit belongs to a character class. Beyond ASCII there are only letters and others.
fn class(name: &[u8], unit: u32) -> bool {
    let Some(byte) = u8::try_from(unit).ok().filter(u8::is_ascii) else {
        let c = char::from_u32(unit).filter(|c| c.is_alphanumeric());
        return c.is_some() && matches!(name, b"alpha" | b"alnum" | b"print" | b"graph");
    };
    match name {
        b"alpha" => byte.is_ascii_alphabetic(),
        b"digit" => byte.is_ascii_digit(),
        b"alnum" => byte.is_ascii_alphanumeric(),
        b"upper" => byte.is_ascii_uppercase(),
        b"lower" => byte.is_ascii_lowercase(),
        b"space" => byte.is_ascii_whitespace() || byte == 0x0b,
        b"blank" => matches!(byte, b' ' | b'\t'),
        b"punct" => byte.is_ascii_punctuation(),
        b"print" => byte.is_ascii_graphic() || byte == b' ',
        b"graph" => byte.is_ascii_graphic(),
        b"cntrl" => byte.is_ascii_control(),
        b"xdigit" => byte.is_ascii_hexdigit(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_fnmatch_s() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("*", "", true),
            ("*", ".hidden/x", true),
            ("a*b*c", "aXbXbYc", true),
            ("a*b*c", "aXbX", false),
            ("?", "", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[]-a]", "_", true),
            ("[a-]", "-", true),
            ("[[:digit:]x]*", "7", true),
            ("[[:digit:]]", "x", false),
            ("[abc", "[abc", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a\\", "a\\", true),
            ("{a,b}", "{a,b}", true),
            ("**a", "bba", true),
            ("A", "a", false),
            ("?mlaut", "ümlaut", true),
            ("[ä-ü]*t", "ümlaut", true),
            ("*?", "ü", true),
            ("*??", "ü", false),
        ] {
            assert_eq!(
                Pattern::new(pattern.as_bytes(), false).matches(name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
        let folded = |pattern: &str| Pattern::new(pattern.as_bytes(), true);
        assert!(
            folded("*.CONF").matches(b"a.conf")
                && folded("[A-C]").matches(b"b")
                && folded("Ü").matches("ü".as_bytes())
        );
        assert!(
            Pattern::new(b"a?*", false).matches(b"a\xff\n")
                && Pattern::new(b"\xff", false).matches(b"\xff")
        );
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_exponential_time() {
        let pattern = [b"a*".repeat(1000), b"b".to_vec()].concat();
        assert!(!Pattern::new(&pattern, false).matches(&[b'a'; 4000]));
    }
}
