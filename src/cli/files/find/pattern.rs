//! fnmatch(3)'s patterns on bytes, as find uses them: `*` and `?` match slashes and leading dots, too.

/// Whether the whole of `name` is what `pattern` says. `fold`: regardless of ASCII case.
pub(super) fn matches(pattern: &[u8], name: &[u8], fold: bool) -> bool {
    // Where to go on after the last star when what follows it does not match: one byte further.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    loop {
        let step = match (pattern.get(p), name.get(n)) {
            (Some(b'*'), _) => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            (None, None) => return true,
            (Some(_), Some(byte)) => one(pattern, p, *byte, fold),
            (None, Some(_)) | (Some(_), None) => None,
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

/// Where the pattern goes on behind what stands at `p`, if that matches the byte.
fn one(pattern: &[u8], p: usize, byte: u8, fold: bool) -> Option<usize> {
    let same = |a: u8, b: u8| a == b || (fold && a.eq_ignore_ascii_case(&b));
    match pattern.get(p)? {
        b'?' => Some(p + 1),
        b'[' => match set(pattern, p, byte, fold) {
            Some((true, after)) => Some(after),
            Some((false, _)) => None,
            // No closing bracket: a bracket like any byte.
            None => same(b'[', byte).then_some(p + 1),
        },
        b'\\' => match pattern.get(p + 1) {
            Some(escaped) => same(*escaped, byte).then_some(p + 2),
            None => same(b'\\', byte).then_some(p + 1),
        },
        literal => same(*literal, byte).then_some(p + 1),
    }
}

/// Whether the bracket expression at `p` holds the byte, and where it ends.
fn set(pattern: &[u8], p: usize, byte: u8, fold: bool) -> Option<(bool, usize)> {
    let mut at = p + 1;
    let negated = matches!(pattern.get(at), Some(b'!' | b'^'));
    at += usize::from(negated);
    let first = at;
    let mut found = false;
    loop {
        let mut low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        if low == b'[' && pattern.get(at + 1) == Some(&b':') {
            let rest = pattern.get(at + 2..)?;
            let end = rest.windows(2).position(|two| two == b":]")?;
            found |= class(rest.get(..end)?, byte);
            at += end + 4;
            continue;
        }
        if low == b'\\' {
            at += 1;
            low = *pattern.get(at)?;
        }
        at += 1;
        let high = match (pattern.get(at), pattern.get(at + 1)) {
            (Some(b'-'), Some(high)) if *high != b']' => {
                at += 2;
                *high
            }
            _ => low,
        };
        let within = |byte: u8| (low..=high).contains(&byte);
        found |= within(byte)
            || (fold && (within(byte.to_ascii_lowercase()) || within(byte.to_ascii_uppercase())));
    }
}

fn class(name: &[u8], byte: u8) -> bool {
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
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes(), false), expected, "{pattern} {name}");
        }
        assert!(matches(b"*.CONF", b"a.conf", true) && matches(b"[A-C]", b"b", true));
        assert!(matches(b"a*", b"a\xff\n", false));
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_exponential_time() {
        let name = vec![b'a'; 4000];
        assert!(!matches(&b"a*".repeat(1000).iter().copied().chain(*b"b").collect::<Vec<_>>(), &name, false));
    }
}
