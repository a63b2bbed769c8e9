//! `podsonde ls`.

use std::cmp::Reverse;

use super::{
    accounts::Accounts,
    args::{Format, LsArgs},
    entries::{Clock, human, is_device, is_known, mode_string},
    location::PodPath,
    names::{Shown, Style},
    open::{self, Pod, Pods, Troubles, reason_words},
    out::Out,
    report::{EntryReport, ListingReport, ListingsReport, PathReport},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        terminal::Terminal,
    },
    client::{Error, files::LONGEST_PATH},
    proto::v1::{FileEntry, FileRoot, FileType},
};

/// Space between columns.
const GAP: usize = 2;

pub(super) async fn run(context: &Context, args: &LsArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.whose, false).await?;
    let mut troubles = Troubles::new(context);
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for operand in &args.operands {
        match describe(&pods, operand, args).await {
            Ok((pod, root, entry)) => {
                let entry = FileEntry { path: operand.typed(), ..entry };
                let is_listed = entry.r#type() == FileType::Directory && !args.directory;
                if is_listed { &mut directories } else { &mut files }
                    .push((operand, pod, root, entry));
            }
            Err(failed) => troubles.note(&operand.shown(), failed, Exit::Trouble)?,
        }
    }
    let mut listing = Listing {
        args,
        terminal: context.terminal,
        clock: Clock::system(),
        out: Out::new(),
        begun: false,
        report: ListingsReport::default(),
    };
    sort(&mut files, args, |(.., entry)| entry);
    sort(&mut directories, args, |(.., entry)| entry);
    if listing.is_report() {
        for (operand, _, root, entry) in &files {
            listing.report(
                &operand.path,
                root,
                &[FileEntry { path: operand.path.clone(), ..entry.clone() }],
            );
        }
    } else if let Some((_, pod, ..)) = files.first() {
        let accounts = pod.accounts_for(args).await;
        let entries: Vec<_> = files.iter().map(|(.., entry)| entry.clone()).collect();
        listing.block(&entries, accounts)?;
    }
    let headed = args.recursive || args.operands.len() > 1;
    for (operand, pod, ..) in directories {
        listing.tree(&pod, operand, headed, &mut troubles).await?;
    }
    listing.out.flush()?;
    if listing.is_report() {
        let report =
            ListingsReport { errors: std::mem::take(&mut troubles.errors), ..listing.report };
        open::print(context, args.output, &report)?;
    }
    Ok(troubles.exit)
}

/// What an operand is. A link to a directory means the directory, unless the link itself is asked about.
async fn describe(
    pods: &Pods<'_>,
    operand: &PodPath,
    args: &LsArgs,
) -> Result<(Pod, FileRoot, FileEntry), Failed> {
    let pod = pods.open(operand).await?;
    let described = async {
        if !args.is_long() && !args.directory && !args.classify {
            match pod.files.stat(&operand.path, true).await {
                Ok((root, entry)) if entry.r#type() == FileType::Directory => {
                    return Ok((root, entry));
                }
                Ok(_) => {}
                // A link that leads nowhere is there all the same.
                Err(error)
                    if error.reason == "PATH_NOT_FOUND" || error.reason == "TOO_MANY_LINKS" => {}
                Err(error) => return Err(error),
            }
        }
        pod.files.stat(&operand.path, false).await
    };
    let (root, entry) = described.await.map_err(|error| pod.about(error))?;
    pod.say_whose(&root);
    Ok((pod, root, entry))
}

impl LsArgs {
    fn is_long(&self) -> bool {
        self.long || self.numeric_uid_gid || self.full_time
    }

    fn hides(&self, name: &[u8]) -> bool {
        name.starts_with(b".") && !self.all && !self.almost_all
    }
}

impl Pod {
    async fn accounts_for(&self, args: &LsArgs) -> Option<&Accounts> {
        if args.is_long() && !args.numeric_uid_gid { Some(self.accounts().await) } else { None }
    }

    /// All entries of a directory, `.` and `..` first if they are wanted.
    async fn entries(
        &self,
        path: &[u8],
        args: &LsArgs,
    ) -> Result<(FileRoot, Vec<FileEntry>), Error> {
        let mut entries = Vec::new();
        if args.all {
            for name in [b".".as_slice(), b".."] {
                let (_, entry) = self.files.stat(&join(path, name), true).await?;
                entries.push(FileEntry { path: name.to_vec(), ..entry });
            }
        }
        let mut after = Vec::new();
        loop {
            let (root, page, next) = self.files.list(path, after).await?;
            entries.extend(page.into_iter().filter(|entry| !args.hides(&entry.path)));
            if next.is_empty() {
                return Ok((root, entries));
            }
            after = next;
        }
    }
}

/// The path of what is in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let directory = match directory.iter().rposition(|b| *b != b'/') {
        Some(last) => directory.get(..=last).unwrap_or_default(),
        None => b"",
    };
    [directory, b"/", name].concat()
}

fn sort<T>(items: &mut [T], args: &LsArgs, entry: impl Fn(&T) -> &FileEntry) {
    let name = |item: &T| entry(item).path.clone();
    if args.by_time {
        let time = |item: &T| entry(item).modified_at.map(|at| (at.seconds, at.nanos));
        items.sort_by_cached_key(|item| (Reverse(time(item)), name(item)));
    } else if args.by_size {
        items.sort_by_cached_key(|item| (Reverse(entry(item).size), name(item)));
    } else {
        items.sort_by_cached_key(name);
    }
    if args.reverse {
        items.reverse();
    }
}

struct Listing<'a> {
    args: &'a LsArgs,
    terminal: Terminal,
    clock: Clock,
    out: Out,
    /// Whether something was printed.
    begun: bool,
    report: ListingsReport,
}

impl Listing<'_> {
    fn is_report(&self) -> bool {
        self.args.output != Format::Text
    }

    fn report(&mut self, path: &[u8], root: &FileRoot, entries: &[FileEntry]) {
        let entries = entries.iter().map(|entry| EntryReport::new(&entry.path, entry)).collect();
        self.report.listings.push(ListingReport {
            path: PathReport::new(path),
            root: root.into(),
            entries,
            truncated: false,
        });
    }

    /// A directory, and with `-R` those below it.
    async fn tree(
        &mut self,
        pod: &Pod,
        operand: &PodPath,
        headed: bool,
        troubles: &mut Troubles<'_>,
    ) -> Result<(), Failed> {
        let mut waiting = vec![operand.path.clone()];
        let mut exit = Exit::Trouble;
        while let Some(path) = waiting.pop() {
            let shown = || operand.prefix.clone() + &String::from_utf8_lossy(&path);
            if headed && !self.is_report() {
                self.header(&[operand.prefix.as_bytes(), &path].concat())?;
            }
            if self.is_streamed() {
                if let Err(failed) = self.stream(pod, &path).await {
                    troubles.note(&shown(), failed, exit)?;
                }
                continue;
            }
            match pod.entries(&path, self.args).await {
                Ok((root, mut entries)) => {
                    sort(&mut entries, self.args, |entry| entry);
                    if self.is_report() {
                        self.report(&path, &root, &entries);
                    } else {
                        let accounts = pod.accounts_for(self.args).await;
                        self.total(&entries)?;
                        self.block(&entries, accounts)?;
                    }
                    if self.args.recursive {
                        let below = entries.iter().rev().filter(|entry| {
                            entry.r#type() == FileType::Directory
                                && !matches!(entry.path.as_slice(), b"." | b"..")
                        });
                        for entry in below {
                            let below = join(&path, &entry.path);
                            if below.len() > LONGEST_PATH {
                                troubles.say(
                                    &shown(),
                                    "PATH_TOO_LONG",
                                    "File name too long",
                                    Exit::Error,
                                );
                            } else {
                                waiting.push(below);
                            }
                        }
                    }
                }
                Err(error) if error.reason == "PATH_REFUSED" && exit == Exit::Error => {
                    self.out.flush()?;
                    self.terminal.note(&format!(
                        "not listed: {}: {}",
                        shown(),
                        reason_words(&error.reason)
                    ));
                }
                Err(error) => {
                    self.out.flush()?;
                    troubles.note(&shown(), pod.about(error).into(), exit)?;
                }
            }
            // What ls calls a minor problem.
            exit = Exit::Error;
        }
        Ok(())
    }

    fn header(&mut self, path: &[u8]) -> std::io::Result<()> {
        let mut line = if self.begun { b"\n".to_vec() } else { Vec::new() };
        line.extend(if self.quotes() {
            super::names::quote(path).into_bytes()
        } else {
            path.to_vec()
        });
        line.extend_from_slice(b":\n");
        self.begun = true;
        self.out.write(&line)
    }

    /// Whether names can be printed as they come: a directory may have millions.
    fn is_streamed(&self) -> bool {
        let args = self.args;
        let sorted_here = args.by_time || args.by_size || args.reverse;
        !self.is_report()
            && !args.is_long()
            && !args.inode
            && !args.recursive
            && !args.all
            && !sorted_here
            && self.line_length().is_none()
    }

    async fn stream(&mut self, pod: &Pod, path: &[u8]) -> Result<(), Failed> {
        let mut after = Vec::new();
        loop {
            let (_, page, next) =
                pod.files.list(path, after).await.map_err(|error| pod.about(error))?;
            let entries: Vec<_> =
                page.into_iter().filter(|entry| !self.args.hides(&entry.path)).collect();
            self.block(&entries, None)?;
            if next.is_empty() {
                return Ok(());
            }
            after = next;
        }
    }

    fn quotes(&self) -> bool {
        self.terminal.interactive && !self.args.literal
    }

    /// Columns to fill. `None`: one name a line.
    fn line_length(&self) -> Option<usize> {
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

    fn total(&mut self, entries: &[FileEntry]) -> std::io::Result<()> {
        if !self.args.is_long() {
            return Ok(());
        }
        let blocks: u64 = entries.iter().map(|entry| entry.blocks).fold(0, u64::saturating_add);
        let total = match self.args.human_readable {
            true => human(blocks.saturating_mul(512)),
            false => blocks.div_ceil(2).to_string(),
        };
        self.begun = true;
        self.out.write(format!("total {total}\n").as_bytes())
    }

    /// Some entries, in the order that they have.
    fn block(&mut self, entries: &[FileEntry], accounts: Option<&Accounts>) -> std::io::Result<()> {
        self.begun |= !entries.is_empty();
        let style = |entry: &FileEntry| Style {
            quoted: self.quotes(),
            coloured: self.terminal.colour,
            classified: self.args.classify
                && !(self.args.is_long() && entry.r#type() == FileType::Symlink),
        };
        let names: Vec<Shown> =
            entries.iter().map(|entry| Shown::new(&entry.path, entry, style(entry))).collect();
        let line_length = self.line_length();
        // The text of names lines up, quotes stand before it.
        let shift = names.iter().any(|name| name.is_quoted)
            && (self.args.is_long() || line_length.is_some());
        let inodes = entries.iter().map(|entry| known(entry, entry.inode));
        let inodes: Option<Vec<String>> = self.args.inode.then(|| pad_left(inodes.collect()));
        let mut cells: Vec<(Vec<u8>, usize)> = Vec::with_capacity(entries.len());
        let long = self.args.is_long().then(|| self.long(entries, accounts));
        for (at, (entry, name)) in entries.iter().zip(&names).enumerate() {
            let mut cell = Vec::new();
            if let Some(inode) = inodes.as_ref().and_then(|inodes| inodes.get(at)) {
                cell.extend_from_slice(inode.as_bytes());
                cell.push(b' ');
            }
            if let Some(line) = long.as_ref().and_then(|long| long.get(at)) {
                cell.extend_from_slice(line.as_bytes());
            }
            if shift && !name.is_quoted {
                cell.push(b' ');
            }
            let width = cell.len() + name.width;
            name.write(&mut cell);
            if long.is_some() && entry.r#type() == FileType::Symlink && is_known(entry) {
                cell.extend_from_slice(b" -> ");
                let style = Style { coloured: false, ..style(entry) };
                Shown::new(&entry.link_target, entry, style).write(&mut cell);
            }
            cells.push((cell, width));
        }
        let text = match line_length {
            Some(length) => in_columns(&cells, length),
            None => cells
                .into_iter()
                .flat_map(|(mut cell, _)| {
                    cell.push(b'\n');
                    cell
                })
                .collect(),
        };
        self.out.write(&text)
    }

    /// All that stands before the names in the long format.
    fn long(&self, entries: &[FileEntry], accounts: Option<&Accounts>) -> Vec<String> {
        let column = |cell: &dyn Fn(&FileEntry) -> String| -> Vec<String> {
            entries.iter().map(cell).collect()
        };
        let owner =
            |name: Option<&str>, id: u32| name.map_or_else(|| id.to_string(), str::to_owned);
        let users = column(&|entry| match is_known(entry) {
            true => owner(accounts.and_then(|accounts| accounts.user(entry.uid)), entry.uid),
            false => "?".to_owned(),
        });
        let groups = column(&|entry| match is_known(entry) {
            true => owner(accounts.and_then(|accounts| accounts.group(entry.gid)), entry.gid),
            false => "?".to_owned(),
        });
        let devices = |entry: &FileEntry| is_device(entry) && is_known(entry);
        let digits = |number: u32| number.to_string().len();
        let major = entries
            .iter()
            .filter(|e| devices(e))
            .map(|e| digits(e.device_major))
            .max()
            .unwrap_or(0);
        let minor = entries
            .iter()
            .filter(|e| devices(e))
            .map(|e| digits(e.device_minor))
            .max()
            .unwrap_or(0);
        let sizes = column(&|entry| match (devices(entry), self.args.human_readable) {
            (true, _) => format!("{:>major$}, {:>minor$}", entry.device_major, entry.device_minor),
            (false, true) if is_known(entry) => human(entry.size),
            (false, _) => known(entry, entry.size),
        });
        let times = column(&|entry| match self.args.full_time {
            _ if !is_known(entry) => "?".to_owned(),
            true => self.clock.full(entry.modified_at),
            false => self.clock.short(entry.modified_at),
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

/// Names to the left, numbers to the right.
fn pad_accounts(cells: Vec<String>) -> Vec<String> {
    let width = widest(&cells);
    let is_number = |cell: &str| cell.bytes().all(|b| b.is_ascii_digit());
    cells
        .into_iter()
        .map(
            |cell| {
                if is_number(&cell) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            },
        )
        .collect()
}

/// Down, then across, in as many columns as fit.
fn in_columns(cells: &[(Vec<u8>, usize)], length: usize) -> Vec<u8> {
    // A column takes at least one character and the gap.
    let most = (length / (1 + GAP)).clamp(1, cells.len().max(1));
    let layout = |columns: usize| {
        let rows = cells.len().div_ceil(columns).max(1);
        let widths: Vec<usize> = cells
            .chunks(rows)
            .map(|column| column.iter().map(|(_, width)| *width).max().unwrap_or(0))
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
            let Some((cell, width)) = cells.get(column * rows + row) else { break };
            text.extend(std::iter::repeat_n(b' ', pending));
            text.extend_from_slice(cell);
            pending = column_width + GAP - width;
        }
        if !cells.is_empty() {
            text.push(b'\n');
        }
    }
    text
}
