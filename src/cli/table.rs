//! Tables in kubectl's layout, and the text of their cells.

use std::time::Duration;

use unicode_width::UnicodeWidthStr;

use crate::domain::text;

/// Spaces between columns.
const GAP: usize = 3;

/// The colour of a cell on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tone {
    /// Plain text.
    #[default]
    Plain,
    /// A value that is as expected.
    Good,
    /// A value that is not as expected.
    Bad,
    /// A value that is not known.
    Doubtful,
}

impl Tone {
    /// All escape sequences that [`Tone::paint`] writes.
    pub(super) const SEQUENCES: [&str; 4] = [Self::GOOD, Self::BAD, Self::DOUBTFUL, Self::END];
    const GOOD: &str = "\x1b[32m";
    const BAD: &str = "\x1b[1;31m";
    const DOUBTFUL: &str = "\x1b[33m";
    const END: &str = "\x1b[0m";

    /// Puts the text in this tone's colour, if `colour` is set.
    pub(super) fn paint(self, text: &str, colour: bool) -> String {
        let begin = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => Self::GOOD,
            Self::Bad => Self::BAD,
            Self::Doubtful => Self::DOUBTFUL,
        };
        if colour { format!("{begin}{text}{}", Self::END) } else { text.to_owned() }
    }
}

/// A cell and its colour.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in the given tone.
    pub(super) fn toned(text: &str, tone: Tone) -> Self {
        Self { text: escape(text), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text.as_ref(), Tone::Plain)
    }
}

/// Rows below a header. Each column is as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these columns.
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(Cell::from).collect()] }
    }

    /// Adds a row. Surplus cells, which have no header, are shown too.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table as text; every line ends with a newline. Empty cells read `<none>`, as in kubectl.
    pub(super) fn render(&self, colour: bool) -> String {
        let shown = |cell: &Cell| {
            if cell.text.is_empty() { "<none>".to_owned() } else { cell.text.clone() }
        };
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row: &Vec<Cell>| row.get(column));
            cells.map(|cell| shown(cell).width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let text = shown(cell);
                out.push_str(&cell.tone.paint(&text, colour));
                if column + 1 < row.len() {
                    out.extend(std::iter::repeat_n(' ', width - text.width() + GAP));
                }
            }
            out.push('\n');
        }
        out
    }
}

/// [`text::escape`] as an owned string.
pub(super) fn escape(text: &str) -> String {
    text::escape(text).into_owned()
}

/// Formats an age as kubectl's AGE column does.
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let years = days / 365;
    let two = |whole: u64, unit: &str, rest: u64, small: &str| match rest {
        0 => format!("{whole}{unit}"),
        _ => format!("{whole}{unit}{rest}{small}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 2 * 365 => format!("{days}d"),
        () if days < 8 * 365 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_width_on_the_screen() {
        let mut table = Table::new(&["NAME", "STATE", "NOTE"]);
        table.row(vec!["web".into(), Cell::toned("OK", Tone::Good), "".into()]);
        table.row(vec!["容器".into(), Cell::toned("private!", Tone::Bad), "x".into()]);
        assert_eq!(
            table.render(false),
            "NAME   STATE      NOTE\n\
             web    OK         <none>\n\
             容器   private!   x\n"
        );
        assert_eq!(
            table.render(true).lines().nth(2),
            Some("容器   \u{1b}[1;31mprivate!\u{1b}[0m   x")
        );
    }

    #[test]
    fn a_container_cannot_write_to_the_terminal() {
        let mut table = Table::new(&["HOSTNAME"]);
        table.row(vec!["\u{1b}]0;owned\u{7}\r\n\u{202e}gpj\u{9b}2J".into()]);
        assert_eq!(
            table.render(true),
            "HOSTNAME\n\\u{1b}]0;owned\\u{7}\\r\\n\\u{202e}gpj\\u{9b}2J\n"
        );
    }

    #[test]
    fn ages_are_kubectl_s() {
        let (m, h, d) = (60, 3600, 86_400);
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (5 * m + 12, "5m12s"),
            (10 * m, "10m"),
            (179 * m, "179m"),
            (3 * h, "3h"),
            (3 * h + 5 * m, "3h5m"),
            (8 * h, "8h"),
            (47 * h, "47h"),
            (48 * h, "2d"),
            (2 * d + h, "2d1h"),
            (8 * d, "8d"),
            (729 * d, "729d"),
            (730 * d, "2y"),
            (731 * d, "2y1d"),
            (9 * 365 * d, "9y"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
