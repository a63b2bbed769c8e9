//! The text of a listing: names alone, names in columns, or the long format.

use super::args::LsArgs;
use crate::{
    cli::{
        files::{
            accounts::Accounts,
            entries::{Clock, human, is_device, is_known, mode_string},
            names::{NameStyle, Quoting, StyledName},
        },
        terminal::Terminal,
    },
    proto::v1::{FileEntry, FileType},
};

/// Spaces between columns, as in GNU ls.
const GAP: usize = 2;

/// How entries are laid out.
pub(super) struct Layout<'a> {
    pub(super) args: &'a LsArgs,
    pub(super) terminal: Terminal,
    pub(super) clock: Clock,
}

/// What one entry prints, and how many columns of a terminal it takes.
struct Cell {
    text: Vec<u8>,
    width: usize,
}

impl Layout<'_> {
    /// How names are written. A terminal never gets the bytes themselves.
    pub(super) fn quoting(&self) -> Quoting {
        match (self.terminal.interactive, self.args.literal) {
            (false, _) => Quoting::Literal,
            (true, true) => Quoting::Masked,
            (true, false) => Quoting::Shell,
        }
    }

    /// How many columns to fill. `None` stands for one name per line.
    pub(super) fn line_length(&self) -> Option<usize> {
        let args = self.args;
        if args.is_long() || args.one_per_line || !(args.columns || self.terminal.interactive) {
            return None;
        }
        Some(match args.width {
            Some(0) => usize::MAX,
            Some(width) => width,
            None => Terminal::width_of_stdout(),
        })
    }

    /// The line before a directory's entries in the long format: their blocks of 1 KiB.
    pub(super) fn total(&self, entries: &[FileEntry]) -> String {
        let blocks: u64 = entries.iter().map(|entry| entry.blocks).fold(0, u64::saturating_add);
        let total = if self.args.human_readable {
            human(blocks.saturating_mul(512))
        } else {
            blocks.div_ceil(2).to_string()
        };
        format!("total {total}\n")
    }

    /// The text of some entries, in the order in which they come.
    pub(super) fn rows(&self, entries: &[FileEntry], accounts: Option<&Accounts>) -> Vec<u8> {
        let is_long = self.args.is_long();
        let names: Vec<StyledName> = entries
            .iter()
            .map(|entry| StyledName::new(&entry.path, entry, self.style(entry)))
            .collect();
        let line_length = self.line_length();
        // Names line up by their first character; a quote stands to the left of it.
        let makes_room_for_quotes =
            names.iter().any(|name| name.is_quoted) && (is_long || line_length.is_some());
        let inodes = self
            .args
            .inode
            .then(|| pad_left(entries.iter().map(|entry| known(entry, entry.inode)).collect()));
        let details = is_long.then(|| self.details(entries, accounts));
        let mut cells = Vec::with_capacity(entries.len());
        for (at, (entry, name)) in entries.iter().zip(&names).enumerate() {
            let mut text = Vec::new();
            if let Some(inode) = inodes.as_ref().and_then(|inodes| inodes.get(at)) {
                text.extend_from_slice(inode.as_bytes());
                text.push(b' ');
            }
            if let Some(details) = details.as_ref().and_then(|details| details.get(at)) {
                text.extend_from_slice(details.as_bytes());
            }
            if makes_room_for_quotes && !name.is_quoted {
                text.push(b' ');
            }
            let width = text.len() + name.width;
            name.write(&mut text);
            if is_long && entry.r#type() == FileType::Symlink && is_known(entry) {
                text.extend_from_slice(b" -> ");
                let style = NameStyle { coloured: false, ..self.style(entry) };
                StyledName::new(&entry.link_target, entry, style).write(&mut text);
            }
            cells.push(Cell { text, width });
        }
        match line_length {
            Some(length) => in_columns(&cells, length),
            None => one_per_line(cells),
        }
    }

    /// In the long format, a link is marked by what it leads to instead.
    fn style(&self, entry: &FileEntry) -> NameStyle {
        let is_long_link = self.args.is_long() && entry.r#type() == FileType::Symlink;
        NameStyle {
            quoting: self.quoting(),
            coloured: self.terminal.colour,
            classified: self.args.classify && !is_long_link,
        }
    }

    /// What stands before each name in the long format, in aligned columns.
    fn details(&self, entries: &[FileEntry], accounts: Option<&Accounts>) -> Vec<String> {
        let column = |cell: &dyn Fn(&FileEntry) -> String| -> Vec<String> {
            entries.iter().map(cell).collect()
        };
        let user = |entry: &FileEntry| accounts.and_then(|accounts| accounts.user(entry.uid));
        let group = |entry: &FileEntry| accounts.and_then(|accounts| accounts.group(entry.gid));
        let users = column(&|entry| owner(entry, user(entry), entry.uid));
        let groups = column(&|entry| owner(entry, group(entry), entry.gid));
        // Device numbers take the place of the size, both halves aligned.
        let has_device = |entry: &FileEntry| is_device(entry) && is_known(entry);
        let digits = |number: fn(&FileEntry) -> u32| {
            let devices = entries.iter().filter(|entry| has_device(entry));
            devices.map(|entry| number(entry).to_string().len()).max().unwrap_or(0)
        };
        let major = digits(|entry| entry.device_major);
        let minor = digits(|entry| entry.device_minor);
        let sizes = column(&|entry| {
            if has_device(entry) {
                format!("{:>major$}, {:>minor$}", entry.device_major, entry.device_minor)
            } else if self.args.human_readable && is_known(entry) {
                human(entry.size)
            } else {
                known(entry, entry.size)
            }
        });
        let times = column(&|entry| {
            if !is_known(entry) {
                "?".to_owned()
            } else if self.args.full_time {
                self.clock.full(entry.modified_at)
            } else {
                self.clock.short(entry.modified_at)
            }
        });
        let links = pad_left(column(&|entry| known(entry, entry.links)));
        let (users, groups) = (pad_accounts(users), pad_accounts(groups));
        let (sizes, times) = (pad_left(sizes), pad_left(times));
        let columns = links.iter().zip(users).zip(groups).zip(sizes).zip(times);
        entries
            .iter()
            .zip(columns)
            .map(|(entry, ((((links, user), group), size), time))| {
                format!("{} {links} {user} {group} {size} {time} ", mode_string(entry))
            })
            .collect()
    }
}

/// An account by its name if that is known, else by its number.
fn owner(entry: &FileEntry, name: Option<&str>, id: u32) -> String {
    name.filter(|_| is_known(entry)).map_or_else(|| known(entry, id), str::to_owned)
}

/// A figure of an entry, or `?` if the agent could not describe the entry.
fn known(entry: &FileEntry, figure: impl ToString) -> String {
    if is_known(entry) { figure.to_string() } else { "?".to_owned() }
}

fn widest(cells: &[String]) -> usize {
    cells.iter().map(|cell| unicode_width::UnicodeWidthStr::width(cell.as_str())).max().unwrap_or(0)
}

fn pad_left(cells: Vec<String>) -> Vec<String> {
    let width = widest(&cells);
    cells.into_iter().map(|cell| format!("{cell:>width$}")).collect()
}

/// Aligns names to the left and numbers to the right, as ls does.
fn pad_accounts(cells: Vec<String>) -> Vec<String> {
    let width = widest(&cells);
    let pad = |cell: String| {
        if cell.bytes().all(|b| b.is_ascii_digit()) {
            format!("{cell:>width$}")
        } else {
            format!("{cell:<width$}")
        }
    };
    cells.into_iter().map(pad).collect()
}

fn one_per_line(cells: Vec<Cell>) -> Vec<u8> {
    let mut text = Vec::new();
    for cell in cells {
        text.extend_from_slice(&cell.text);
        text.push(b'\n');
    }
    text
}

/// Fills columns downwards, in the largest number of columns whose widths, gaps included, stay
/// below `length`. Each column is as wide as its widest cell, so the number cannot be computed and
/// is found by trying, from the most columns that could fit; one column always does.
fn in_columns(cells: &[Cell], length: usize) -> Vec<u8> {
    // A column takes at least one character and the gap.
    let most = (length / (1 + GAP)).clamp(1, cells.len().max(1));
    let layout = |columns: usize| {
        let rows = cells.len().div_ceil(columns).max(1);
        let widths: Vec<usize> = cells
            .chunks(rows)
            .map(|column| column.iter().map(|cell| cell.width).max().unwrap_or(0))
            .collect();
        let needed = widths
            .iter()
            .fold(0, |sum: usize, width| sum.saturating_add(width + GAP))
            .saturating_sub(GAP);
        (rows, widths, needed)
    };
    let fitting = (2..=most).rev().map(layout).find(|(_, _, needed)| *needed < length);
    let (rows, widths, _) = fitting.unwrap_or_else(|| layout(1));
    let mut text = Vec::new();
    for row in 0..rows {
        let mut pending = 0;
        for (column, column_width) in widths.iter().enumerate() {
            let Some(cell) = cells.get(column * rows + row) else { break };
            text.extend(std::iter::repeat_n(b' ', pending));
            text.extend_from_slice(&cell.text);
            pending = column_width + GAP - cell.width;
        }
        if !cells.is_empty() {
            text.push(b'\n');
        }
    }
    text
}
