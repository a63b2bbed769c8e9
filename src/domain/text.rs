//! Text from elsewhere: made safe for a terminal, and shortened.
//!
//! A pod, a peer, a file, an agent or a user's name can hold any character. Some of them make a
//! terminal act instead of printing: they set its title, write the clipboard, clear the screen, or
//! reorder the line so that it reads as something else. [`is_unsafe`] is the one list of them, and
//! whatever writes text for people escapes them by one of the functions below.

use std::borrow::Cow;

/// Whether a character does something to a terminal, or to the text around it, instead of being
/// shown: the control characters C0, DEL and C1; Unicode's `Bidi_Control`; the line and paragraph
/// separators; the byte order mark.
#[must_use]
pub const fn is_unsafe(c: char) -> bool {
    matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Text as part of a line: every unsafe character becomes an escape as in Rust, such as `\u{1b}`
/// or `\n`.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    replace(text, is_unsafe, |c, safe| safe.extend(c.escape_default()))
}

/// Text of several lines: as [`escape`], but newlines and tabs stay.
#[must_use]
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    // Every printed packet comes through here. This loop has no branch, so it takes 16 bytes at
    // once.
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t');
    if text.as_bytes().iter().fold(true, |plain, byte| plain & is_plain(byte)) {
        return Cow::Borrowed(text);
    }
    let unsafe_here = |c| is_unsafe(c) && !matches!(c, '\n' | '\t');
    replace(text, unsafe_here, |c, safe| safe.extend(c.escape_default()))
}

/// Serialised JSON with the escapes that JSON itself does not demand: of the unsafe characters it
/// only forbids those below 0x20 in strings. The value stays the same, because such characters
/// stand in strings alone; newlines between the tokens stay.
#[must_use]
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let unsafe_here = |c| is_unsafe(c) && c != '\n';
    replace(json, unsafe_here, |c, safe| safe.push_str(&format!("\\u{:04x}", u32::from(c))))
}

/// Text of at most `most` bytes: a longer one is cut between characters and ends with `…`.
#[must_use]
pub fn shorten(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let room = most.saturating_sub('…'.len_utf8());
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default()))
}

/// The text with the characters that `is_replaced` names replaced; borrowed where there are none.
fn replace(
    text: &str,
    is_replaced: impl Fn(char) -> bool,
    replacement: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    let Some(first) = text.find(&is_replaced) else { return Cow::Borrowed(text) };
    let (head, tail) = text.split_at(first);
    let mut safe = String::with_capacity(text.len() + 16);
    safe.push_str(head);
    for c in tail.chars() {
        if is_replaced(c) { replacement(c, &mut safe) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Unicode's `PropList.txt` lists as `Bidi_Control`.
    const BIDI: &str = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\
                        \u{2066}\u{2067}\u{2068}\u{2069}";

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        assert_eq!(escape("\u{1b}]0;owned\u{7}\r\n"), "\\u{1b}]0;owned\\u{7}\\r\\n");
        assert_eq!(escape("a\u{7f}\u{9b}2J\u{2028}"), "a\\u{7f}\\u{9b}2J\\u{2028}");
        assert_eq!(escape_lines("a\tb\n\u{1b}c"), "a\tb\n\\u{1b}c");
        assert_eq!(escape_json("{\n \"a\u{9b}\u{202e}\"}"), "{\n \"a\\u009b\\u202e\"}");
        for c in (0..0x20).map(char::from).chain("\u{7f}\u{80}\u{9f}\u{2028}\u{2029}".chars()) {
            assert!(is_unsafe(c), "{c:?}");
        }
        assert!(BIDI.chars().all(is_unsafe));
        // Joiners belong to the spelling of Persian words and of many emoji.
        assert!(matches!(escape("容器 é 👩\u{200d}🚀 می\u{200c}خواهم"), Cow::Borrowed(_)));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(shorten("web", 3), "web");
        assert_eq!(shorten("webs!", 4), "w…");
        assert_eq!(shorten("éééé", 6), "é…");
        assert_eq!(shorten("webs", 0), "…");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(text in any::<String>()) {
            prop_assert!(!escape(&text).contains(is_unsafe));
            let lines = escape_lines(&text);
            prop_assert!(!lines.replace(['\n', '\t'], "").contains(is_unsafe));
            let json = serde_json::to_string(&text).unwrap();
            let safe = escape_json(&json);
            prop_assert!(!safe.contains(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }
    }
}
