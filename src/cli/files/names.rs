//! Names of files as they are shown. A name is any bytes that a container chose, so a terminal only
//! gets names that were quoted or masked.

use unicode_width::UnicodeWidthStr;

use crate::{
    domain::text::is_unsafe,
    proto::v1::{FileEntry, FileType},
};

/// How a name is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    /// Its bytes, for pipes and files.
    Literal,
    /// Its bytes, with `?` for what a terminal must not get: `ls -N` on a terminal.
    Masked,
    /// Quoted for a shell if it needs that, with escapes for what is not printable.
    Shell,
}

/// Quotes a name as GNU ls does on a terminal (`--quoting-style=shell-escape`): the result means
/// the name to a shell, and is safe to print.
///
/// Names without special characters stay as they are. A name with a single quote and nothing that
/// double quotes would not hold is put into these. Everything else is put into single quotes, and
/// unprintable parts into `$'…'` between them: `'x'$'\n''y'`.
pub(super) fn quote(name: &[u8]) -> String {
    let pieces = pieces(name);
    let has_escapes = pieces.iter().any(|piece| matches!(piece, Piece::Unprintable(_)));
    let plain = || pieces.iter().map(|piece| if let Piece::Plain(c) = piece { *c } else { '?' });
    let is_special = plain().enumerate().any(|(at, c)| needs_quotes(c, at, name.len()));
    if !has_escapes && !name.is_empty() && !is_special {
        return plain().collect();
    }
    let in_double_quotes =
        |c: char| c.is_ascii_alphanumeric() || "'%+,-./:]_ #~{}".contains(c) || !c.is_ascii();
    if !has_escapes && plain().any(|c| c == '\'') && plain().all(in_double_quotes) {
        return format!("\"{}\"", plain().collect::<String>());
    }
    let mut quoted = String::from("'");
    let mut in_escape = false;
    for piece in &pieces {
        match piece {
            Piece::Plain(c) => {
                if std::mem::take(&mut in_escape) {
                    quoted.push_str("''");
                }
                if *c == '\'' { quoted.push_str("'\\''") } else { quoted.push(*c) }
            }
            Piece::Unprintable(bytes) => {
                if !std::mem::replace(&mut in_escape, true) {
                    quoted.push_str("'$'");
                }
                escape(bytes, &mut quoted);
            }
        }
    }
    quoted + "'"
}

/// A name for a terminal that is not quoted unless printing it would do something to the terminal.
pub(super) fn safe(name: &[u8]) -> Vec<u8> {
    match pieces(name).iter().any(|piece| matches!(piece, Piece::Unprintable(_))) {
        true => quote(name).into_bytes(),
        false => name.to_vec(),
    }
}

/// A name with `?` for each character, and each byte of no character, that a terminal must not get.
/// GNU ls does so with `-N`, and `-q`, on a terminal.
pub(super) fn mask(name: &[u8]) -> String {
    let mut masked = String::with_capacity(name.len());
    for piece in pieces(name) {
        match piece {
            Piece::Plain(c) => masked.push(c),
            Piece::Unprintable(bytes) if std::str::from_utf8(bytes).is_ok() => masked.push('?'),
            Piece::Unprintable(bytes) => masked.extend(bytes.iter().map(|_| '?')),
        }
    }
    masked
}

/// A part of a name.
enum Piece<'a> {
    /// A character that can be printed.
    Plain(char),
    /// One character that must not reach a terminal, or bytes that are not UTF-8.
    Unprintable(&'a [u8]),
}

fn pieces(name: &[u8]) -> Vec<Piece<'_>> {
    let mut pieces = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for (at, c) in chunk.valid().char_indices() {
            let bytes = chunk.valid().as_bytes().get(at..at + c.len_utf8()).unwrap_or_default();
            let is_safe = !is_unsafe(c);
            pieces.push(if is_safe { Piece::Plain(c) } else { Piece::Unprintable(bytes) });
        }
        if !chunk.invalid().is_empty() {
            pieces.push(Piece::Unprintable(chunk.invalid()));
        }
    }
    pieces
}

/// Writes bytes as a shell's `$'…'` takes them: by letter if they have one, else in octal.
fn escape(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        match byte {
            0x07 => out.push_str("\\a"),
            0x08 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            0x0b => out.push_str("\\v"),
            0x0c => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            byte => out.push_str(&format!("\\{byte:03o}")),
        }
    }
}

/// Whether a character means something to a shell. `at` is its position in a name of `length`
/// bytes: `#` and `~` matter only at the start, braces only alone.
fn needs_quotes(c: char, at: usize, length: usize) -> bool {
    match c {
        '#' | '~' => at == 0,
        '{' | '}' => length == 1,
        ' ' | '!' | '"' | '$' | '&' | '\'' | '(' | ')' | '*' | ';' | '<' | '=' | '>' | '?'
        | '[' | '\\' | '^' | '`' | '|' => true,
        _ => false,
    }
}

/// How a name is shown in a listing.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameStyle {
    pub(super) quoting: Quoting,
    pub(super) coloured: bool,
    /// Whether a mark for the type follows the name (`-F`).
    pub(super) classified: bool,
}

/// A name that is ready to be printed.
#[derive(Debug)]
pub(super) struct StyledName {
    text: Vec<u8>,
    colour: &'static str,
    mark: &'static str,
    /// Columns of a terminal that it takes, quotes and mark included.
    pub(super) width: usize,
    pub(super) is_quoted: bool,
}

impl StyledName {
    pub(super) fn new(name: &[u8], entry: &FileEntry, style: NameStyle) -> Self {
        let text = match style.quoting {
            Quoting::Literal => name.to_vec(),
            Quoting::Masked => mask(name).into_bytes(),
            Quoting::Shell => quote(name).into_bytes(),
        };
        let mark = if style.classified { mark(entry) } else { "" };
        let width = String::from_utf8_lossy(&text).width() + mark.len();
        let is_quoted = style.quoting == Quoting::Shell && text != name;
        Self {
            text,
            colour: if style.coloured { colour(entry) } else { "" },
            mark,
            width,
            is_quoted,
        }
    }

    /// Appends the name with its colour and its mark.
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

/// GNU ls's built-in colours, as SGR parameters. `LS_COLORS` is not read.
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

    #[test]
    fn names_are_masked_as_ls_masks_them() {
        // What `LC_ALL=C.UTF-8 ls -N` prints on a terminal, and the last two more strictly.
        for (name, shown) in [
            (b"a b'c".as_slice(), "a b'c"),
            (b"\x1b[31m\n", "?[31m?"),
            (b"q\xff\xfe", "q??"),
            ("\u{9b}31m".as_bytes(), "?31m"),
            ("gpj\u{202e}".as_bytes(), "gpj?"),
            ("\u{2028}x".as_bytes(), "?x"),
        ] {
            assert_eq!(mask(name), shown);
        }
    }
}
