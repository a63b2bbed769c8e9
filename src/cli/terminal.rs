//! Writes results to stdout and everything else to stderr.
//!
//! All text passes through this module, which escapes unsafe characters last
//! ([`crate::domain::text`]). A caller that forgets to escape a name can therefore spoil only its
//! own layout. A reader that closes its end of a pipe early is no error.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

use super::{options::Colour, table::Tone};
use crate::domain::text::{escape, escape_json, escape_lines};

/// Where output goes, and what each stream supports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    /// Whether stdout takes colours.
    pub(super) colour: bool,
    /// Whether stderr takes colours.
    pub(super) colour_notes: bool,
    /// Whether a line on stderr can be rewritten.
    pub(super) live: bool,
    /// Whether stdout is a terminal.
    pub(super) interactive: bool,
}

impl Terminal {
    pub(super) fn new(colour: Colour) -> Self {
        let wanted = |terminal: bool| match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                terminal && !anstyle_query::no_color() && anstyle_query::term_supports_ansi_color()
            }
        };
        let notes_on_terminal = io::stderr().is_terminal();
        Self {
            colour: wanted(io::stdout().is_terminal()),
            colour_notes: wanted(notes_on_terminal),
            live: notes_on_terminal && anstyle_query::term_supports_ansi_color(),
            interactive: io::stdout().is_terminal(),
        }
    }

    /// The width of the terminal on stderr, in columns. Default: 80.
    pub(super) fn width() -> usize {
        terminal_size::terminal_size_of(io::stderr()).map_or(80, |(width, _)| width.0.into())
    }

    /// The width of the terminal on stdout, in columns, or else COLUMNS. Default: 80.
    pub(super) fn width_of_stdout() -> usize {
        let told = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns > 0);
        let size =
            terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
        size.filter(|width| *width > 0).or_else(told).unwrap_or(80)
    }

    /// Writes a result.
    pub(super) fn print(self, text: &str) -> io::Result<()> {
        write(&if self.colour { escape_uncoloured(text) } else { escape_lines(text) })
    }

    /// Writes a result as JSON, indented.
    pub(super) fn json(self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        write(&format!("{}\n", escape_json(&text)))
    }

    /// Writes a result as JSON, on one line.
    pub(super) fn json_line(self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        write(&format!("{}\n", escape_json(&text)))
    }

    /// Writes a result as YAML.
    pub(super) fn yaml(self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
        match escape_lines(&text) {
            Cow::Borrowed(text) => write(&format!("{}\n", text.trim_end())),
            // A plain YAML scalar has no escapes, but JSON is valid YAML and its strings have them.
            Cow::Owned(_) => self.json(value),
        }
    }

    /// Writes a line to stderr.
    pub(super) fn note(self, line: &str) {
        // If stderr is gone, there is nowhere to report it.
        let _ = io::stderr().write_all(format!("{}\n", escape(line)).as_bytes());
    }

    /// Writes a line to stderr, after a label such as `note`.
    pub(super) fn labelled(self, label: &str, tone: Tone, line: &str) {
        let label = tone.paint(&format!("{label}:"), self.colour_notes);
        let _ = io::stderr().write_all(format!("{label} {}\n", escape(line)).as_bytes());
    }

    /// Prints an error to stderr.
    pub(super) fn error(self, line: &str) {
        self.labelled("error", Tone::Bad, line);
    }

    /// Prints to stderr what to do next.
    pub(super) fn hint(self, line: &str) {
        self.labelled("hint", Tone::Plain, line);
    }
}

/// Writes to stdout. A reader that has closed the pipe is no error.
fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Escapes as [`escape_lines`] does, but keeps the sequences that [`Tone::paint`] writes.
fn escape_uncoloured(text: &str) -> Cow<'_, str> {
    if let safe @ Cow::Borrowed(_) = escape_lines(text) {
        return safe;
    }
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        let (before, sequence) = rest.split_at(at);
        safe.push_str(&escape_lines(before));
        match Tone::SEQUENCES.iter().find(|own| sequence.starts_with(**own)) {
            Some(own) => {
                safe.push_str(own);
                rest = sequence.get(own.len()..).unwrap_or_default();
            }
            None => {
                let (escape, after) = sequence.split_at(1);
                safe.push_str(&escape_lines(escape));
                rest = after;
            }
        }
    }
    safe.push_str(&escape_lines(rest));
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tones_of_tables_pass() {
        let bad = Tone::Bad.paint("no", true);
        let text = format!("{bad}\tx\n\x1b[2J\x1b]0;t\x07\u{9b}1m\x1b");
        assert_eq!(
            escape_uncoloured(&text),
            format!("{bad}\tx\n\\u{{1b}}[2J\\u{{1b}}]0;t\\u{{7}}\\u{{9b}}1m\\u{{1b}}")
        );
        assert!(matches!(escape_uncoloured("plain\n"), Cow::Borrowed("plain\n")));
    }
}
