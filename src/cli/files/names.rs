//! Names of files as they are shown: bytes, which a container may choose at will.

use unicode_width::UnicodeWidthStr;

use crate::proto::v1::{FileEntry, FileType};

/// A name as `ls` shows it on a terminal: quoted for a shell if it has to be, with what is not printable as escapes.
pub(super) fn quote(name: &[u8]) -> String {
    let parts = parts(name);
    let escaped = parts.iter().any(|part| matches!(part, Part::Escaped(_)));
    let plain = || parts.iter().map(|part| if let Part::Plain(c) = part { *c } else { '?' });
    if !escaped
        && !name.is_empty()
        && plain().enumerate().all(|(at, c)| needs_no_quotes(c, at, name.len()))
    {
        return plain().collect();
    }
    // A single quote is best held by double ones, where nothing else means something in them.
    let in_double =
        |c: char| c.is_ascii_alphanumeric() || "'%+,-./:]_ #~{}".contains(c) || !c.is_ascii();
    if !escaped && plain().any(|c| c == '\'') && plain().all(in_double) {
        return format!("\"{}\"", plain().collect::<String>());
    }
    let mut quoted = String::from("'");
    let mut in_escape = false;
    for part in &parts {
        match part {
            Part::Plain(c) => {
                if std::mem::take(&mut in_escape) {
                    quoted.push_str("''");
                }
                if *c == '\'' { quoted.push_str("'\\''") } else { quoted.push(*c) }
            }
            Part::Escaped(escape) => {
                if !std::mem::replace(&mut in_escape, true) {
                    quoted.push_str("'$'");
                }
                quoted.push_str(escape);
            }
        }
    }
    quoted + "'"
}

/// A name that is shown as it is unless that would do something to the terminal.
pub(super) fn safe(name: &[u8]) -> Vec<u8> {
    match parts(name).iter().any(|part| matches!(part, Part::Escaped(_))) {
        true => quote(name).into_bytes(),
        false => name.to_vec(),
    }
}

enum Part {
    Plain(char),
    /// As a shell's `$'…'` writes it.
    Escaped(String),
}

fn parts(name: &[u8]) -> Vec<Part> {
    let octal = |bytes: &[u8]| Part::Escaped(bytes.iter().map(|b| format!("\\{b:03o}")).collect());
    let mut parts = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
            parts.push(match c {
                '\u{7}' => Part::Escaped("\\a".into()),
                '\u{8}' => Part::Escaped("\\b".into()),
                '\t' => Part::Escaped("\\t".into()),
                '\n' => Part::Escaped("\\n".into()),
                '\u{b}' => Part::Escaped("\\v".into()),
                '\u{c}' => Part::Escaped("\\f".into()),
                '\r' => Part::Escaped("\\r".into()),
                c if c.is_control() || turns => octal(c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => Part::Plain(c),
            });
        }
        if !chunk.invalid().is_empty() {
            parts.push(octal(chunk.invalid()));
        }
    }
    parts
}

/// Whether a shell takes the character for itself. `at`: where it stands in a name of so many bytes.
fn needs_no_quotes(c: char, at: usize, length: usize) -> bool {
    match c {
        '#' | '~' => at != 0,
        '{' | '}' => length != 1,
        ' ' | '!' | '"' | '$' | '&' | '\'' | '(' | ')' | '*' | ';' | '<' | '=' | '>' | '?'
        | '[' | '\\' | '^' | '`' | '|' => false,
        _ => true,
    }
}

/// How a name is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// As [`quote`] does it.
    pub(super) quoted: bool,
    pub(super) coloured: bool,
    /// A mark for the type behind it.
    pub(super) classified: bool,
}

/// A name that is ready to be shown.
#[derive(Debug)]
pub(super) struct Shown {
    text: Vec<u8>,
    colour: &'static str,
    mark: &'static str,
    /// Columns that it takes, with the mark.
    pub(super) width: usize,
    /// Whether it stands in quotes.
    pub(super) is_quoted: bool,
}

impl Shown {
    pub(super) fn new(name: &[u8], entry: &FileEntry, style: Style) -> Self {
        let text = if style.quoted { quote(name).into_bytes() } else { name.to_vec() };
        let mark = if style.classified { mark(entry) } else { "" };
        let width = String::from_utf8_lossy(&text).width() + mark.len();
        let is_quoted = text != name;
        Self {
            text,
            colour: if style.coloured { colour(entry) } else { "" },
            mark,
            width,
            is_quoted,
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if self.colour.is_empty() {
            out.extend_from_slice(&self.text);
        } else {
            out.extend_from_slice(format!("\x1b[{}m", self.colour).as_bytes());
            out.extend_from_slice(&self.text);
            out.extend_from_slice(b"\x1b[0m");
        }
        out.extend_from_slice(self.mark.as_bytes());
    }
}

fn mark(entry: &FileEntry) -> &'static str {
    match entry.r#type() {
        FileType::Directory => "/",
        FileType::Symlink => "@",
        FileType::Fifo => "|",
        FileType::Socket => "=",
        FileType::Regular if entry.mode & 0o111 != 0 => "*",
        _ => "",
    }
}

/// GNU ls's colours where nothing else is set.
fn colour(entry: &FileEntry) -> &'static str {
    match (entry.r#type(), entry.mode) {
        (FileType::Directory, mode) if mode & 0o1002 == 0o1002 => "30;42",
        (FileType::Directory, mode) if mode & 0o002 != 0 => "34;42",
        (FileType::Directory, mode) if mode & 0o1000 != 0 => "37;44",
        (FileType::Directory, _) => "01;34",
        (FileType::Symlink, _) => "01;36",
        (FileType::Fifo, _) => "40;33",
        (FileType::Socket, _) => "01;35",
        (FileType::CharacterDevice | FileType::BlockDevice, _) => "40;33;01",
        (_, mode) if mode & 0o4000 != 0 => "37;41",
        (_, mode) if mode & 0o2000 != 0 => "30;43",
        (_, mode) if mode & 0o111 != 0 => "01;32",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_as_ls_quotes_them() {
        // What `LC_ALL=C.UTF-8 ls --quoting-style=shell-escape` prints.
        for (name, shown) in [
            (b"ok".as_slice(), "ok"),
            (b"a b", "'a b'"),
            (b"it's", "\"it's\""),
            (b"x\ny", "'x'$'\\n''y'"),
            (b"q\xff", "'q'$'\\377'"),
            (b"dq\"q", "'dq\"q'"),
            (b"$x", "'$x'"),
            (b"\x1b[31m", "''$'\\033''[31m'"),
            (b"~h", "'~h'"),
            (b"#h", "'#h'"),
            (b"a~", "a~"),
            (b"x#", "x#"),
            (b"=x", "'=x'"),
            (b"'\"", "''\\''\"'"),
            (b"tab\there", "'tab'$'\\t''here'"),
            ("ünï".as_bytes(), "ünï"),
            (b"{a}", "{a}"),
            (b"{", "'{'"),
            (b"-x", "-x"),
            (b"a@b:c,d", "a@b:c,d"),
            ("gpj\u{202e}".as_bytes(), "'gpj'$'\\342\\200\\256'"),
        ] {
            assert_eq!(quote(name), shown);
        }
        assert_eq!(safe(b"a b"), b"a b");
        assert_eq!(safe(b"\x1b[2J"), b"''$'\\033''[2J'");
    }
}
