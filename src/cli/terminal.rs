//! Writes results to stdout and all else to stderr. Neither end of a pipe that closes early is an error, and nothing here panics.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::{
    args::Colour,
    table::{Tone, escape},
};

/// Where output goes and what it may look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    /// Whether stdout takes colours.
    pub(super) colour: bool,
    /// Whether stderr takes colours.
    pub(super) colour_notes: bool,
    /// Whether a line on stderr can be rewritten.
    pub(super) live: bool,
    /// Whether a person reads stdout.
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

    /// Columns of the terminal on stderr; 80 where they are not known.
    pub(super) fn width() -> usize {
        terminal_size::terminal_size_of(io::stderr()).map_or(80, |(width, _)| width.0.into())
    }

    /// Columns of the terminal on stdout, else what COLUMNS says, else 80.
    pub(super) fn width_of_stdout() -> usize {
        let told = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns > 0);
        let size =
            terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
        size.filter(|width| *width > 0).or_else(told).unwrap_or(80)
    }

    /// Writes a result.
    pub(super) fn print(self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Writes a result as JSON.
    pub(super) fn json(self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        self.print(&format!("{text}\n"))
    }

    /// Writes a result as YAML.
    pub(super) fn yaml(self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
        self.print(&format!("{}\n", text.trim_end()))
    }

    /// Writes a line that is not the result, safe for a terminal.
    pub(super) fn note(self, line: &str) {
        // When stderr is gone there is nobody left to tell.
        let _ = io::stderr().write_all(format!("{}\n", escape(line)).as_bytes());
    }

    /// Writes a line that is not the result behind a word that says what it is.
    pub(super) fn labelled(self, label: &str, tone: Tone, line: &str) {
        let label = tone.paint(&format!("{label}:"), self.colour_notes);
        let _ = io::stderr().write_all(format!("{label} {}\n", escape(line)).as_bytes());
    }

    /// Says what went wrong.
    pub(super) fn error(self, line: &str) {
        self.labelled("error", Tone::Bad, line);
    }

    /// Says what to do next.
    pub(super) fn hint(self, line: &str) {
        self.labelled("hint", Tone::Plain, line);
    }
}
