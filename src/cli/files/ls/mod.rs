//! `podsonde ls`.

mod args;
mod layout;

use std::cmp::Reverse;

pub(in crate::cli) use args::LsArgs;
use layout::Layout;

use super::{
    accounts::Accounts,
    args::Format,
    entries::Clock,
    location::{PodPath, join},
    names::{self, Quoting},
    open::{self, Pod, Pods, Troubles, reason_words},
    out::Out,
    report::{EntryReport, ListingReport, ListingsReport, PathReport},
};
use crate::{
    cli::context::{Context, Exit, Failed},
    client::{Error, Reason, files::LONGEST_PATH},
    domain::Reason as AgentReason,
    proto::v1::{FileEntry, FileRoot, FileType},
};

pub(super) async fn run(context: &Context, args: &LsArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.container, false).await?;
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
        context,
        layout: Layout { args, terminal: context.terminal, clock: Clock::system() },
        out: Out::new(),
        has_printed: false,
        report: ListingsReport::default(),
    };
    sort(&mut files, args, |(.., entry)| entry);
    sort(&mut directories, args, |(.., entry)| entry);
    if listing.is_report() {
        for (operand, _, root, entry) in &files {
            let entry = FileEntry { path: operand.path.clone(), ..entry.clone() };
            listing.add_to_report(&operand.path, root, &[entry]);
        }
    } else if let Some((_, pod, ..)) = files.first() {
        let accounts = accounts(pod, args).await;
        let entries: Vec<_> = files.iter().map(|(.., entry)| entry.clone()).collect();
        listing.print(&entries, accounts)?;
    }
    let has_headers = args.recursive || args.operands.len() > 1;
    for (operand, pod, ..) in directories {
        listing.tree(&pod, operand, has_headers, &mut troubles).await?;
    }
    listing.out.flush()?;
    if listing.is_report() {
        let report =
            ListingsReport { errors: std::mem::take(&mut troubles.errors), ..listing.report };
        open::print(context, args.output, &report)?;
    }
    Ok(troubles.exit)
}

/// Describes an operand. A link to a directory means the directory, unless the format shows links
/// themselves (`-l`, `-d`, `-F`): this is ls(1)'s rule.
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
                // A link that leads nowhere can be listed all the same.
                Err(error)
                    if matches!(
                        error.reason,
                        Reason::Agent(AgentReason::PathNotFound | AgentReason::TooManyLinks)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        pod.files.stat(&operand.path, false).await
    };
    let (root, entry) = described.await.map_err(|error| pod.about(error))?;
    pod.log_root(&root);
    Ok((pod, root, entry))
}

/// The account names of a pod, if the format shows them.
async fn accounts<'p>(pod: &'p Pod, args: &LsArgs) -> Option<&'p Accounts> {
    if args.is_long() && !args.numeric_uid_gid { Some(pod.accounts().await) } else { None }
}

/// All entries of a directory, with `.` and `..` first under `-a`.
async fn entries(
    pod: &Pod,
    path: &[u8],
    args: &LsArgs,
) -> Result<(FileRoot, Vec<FileEntry>), Error> {
    let mut entries = Vec::new();
    if args.all {
        for name in [b".".as_slice(), b".."] {
            let (_, entry) = pod.files.stat(&join(path, name), true).await?;
            entries.push(FileEntry { path: name.to_vec(), ..entry });
        }
    }
    let mut after = Vec::new();
    loop {
        let (root, page, next) = pod.files.list(path, after).await?;
        entries.extend(page.into_iter().filter(|entry| !args.hides(&entry.path)));
        if next.is_empty() {
            return Ok((root, entries));
        }
        after = next;
    }
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

/// A listing while it is printed or collected.
struct Listing<'a> {
    context: &'a Context,
    layout: Layout<'a>,
    out: Out,
    /// Whether a blank line has to separate the next header.
    has_printed: bool,
    report: ListingsReport,
}

impl Listing<'_> {
    fn is_report(&self) -> bool {
        self.layout.args.output != Format::Text
    }

    fn add_to_report(&mut self, path: &[u8], root: &FileRoot, entries: &[FileEntry]) {
        let entries = entries.iter().map(|entry| EntryReport::new(&entry.path, entry)).collect();
        self.report.listings.push(ListingReport {
            path: PathReport::new(path),
            root: root.into(),
            entries,
            truncated: false,
        });
    }

    /// Lists a directory, and with `-R` those below it.
    async fn tree(
        &mut self,
        pod: &Pod,
        operand: &PodPath,
        has_headers: bool,
        troubles: &mut Troubles<'_>,
    ) -> Result<(), Failed> {
        let args = self.layout.args;
        let mut waiting = vec![operand.path.clone()];
        let mut exit = Exit::Trouble;
        while let Some(path) = waiting.pop() {
            let shown = || operand.prefix.clone() + &String::from_utf8_lossy(&path);
            if has_headers && !self.is_report() {
                self.header(&[operand.prefix.as_bytes(), &path].concat())?;
            }
            if self.is_streamed() {
                if let Err(failed) = self.stream(pod, &path).await {
                    troubles.note(&shown(), failed, exit)?;
                }
                continue;
            }
            match entries(pod, &path, args).await {
                Ok((root, mut entries)) => {
                    sort(&mut entries, args, |entry| entry);
                    if self.is_report() {
                        self.add_to_report(&path, &root, &entries);
                    } else {
                        let accounts = accounts(pod, args).await;
                        self.total(&entries)?;
                        self.print(&entries, accounts)?;
                    }
                    if args.recursive {
                        // The last one waiting is the next one listed.
                        for entry in entries.iter().rev().filter(|entry| is_subdirectory(entry)) {
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
                Err(error)
                    if error.reason == Reason::Agent(AgentReason::PathRefused)
                        && exit == Exit::Error =>
                {
                    self.out.flush()?;
                    self.context.terminal.note(&format!(
                        "not listed: {}: {}",
                        shown(),
                        reason_words(error.reason.as_str())
                    ));
                }
                Err(error) => {
                    self.out.flush()?;
                    troubles.note(&shown(), pod.about(error).into(), exit)?;
                }
            }
            // What fails below the operand is what ls(1) calls a minor problem.
            exit = Exit::Error;
        }
        Ok(())
    }

    fn header(&mut self, path: &[u8]) -> std::io::Result<()> {
        let mut line = if self.has_printed { b"\n".to_vec() } else { Vec::new() };
        line.extend(match self.layout.quoting() {
            Quoting::Shell => names::quote(path).into_bytes(),
            Quoting::Masked => names::mask(path).into_bytes(),
            Quoting::Literal => path.to_vec(),
        });
        line.extend_from_slice(b":\n");
        self.has_printed = true;
        self.out.write(&line)
    }

    /// Whether names can be printed page by page as they arrive, because nothing depends on the
    /// whole directory. A directory may have millions of entries, which then never fill memory.
    fn is_streamed(&self) -> bool {
        let args = self.layout.args;
        let sorted_here = args.by_time || args.by_size || args.reverse;
        !self.is_report()
            && !args.is_long()
            && !args.inode
            && !args.recursive
            && !args.all
            && !sorted_here
            && self.layout.line_length().is_none()
    }

    async fn stream(&mut self, pod: &Pod, path: &[u8]) -> Result<(), Failed> {
        let mut after = Vec::new();
        loop {
            let (_, page, next) =
                pod.files.list(path, after).await.map_err(|error| pod.about(error))?;
            let entries: Vec<_> =
                page.into_iter().filter(|entry| !self.layout.args.hides(&entry.path)).collect();
            self.print(&entries, None)?;
            if next.is_empty() {
                return Ok(());
            }
            after = next;
        }
    }

    fn total(&mut self, entries: &[FileEntry]) -> std::io::Result<()> {
        if !self.layout.args.is_long() {
            return Ok(());
        }
        self.has_printed = true;
        self.out.write(self.layout.total(entries).as_bytes())
    }

    fn print(&mut self, entries: &[FileEntry], accounts: Option<&Accounts>) -> std::io::Result<()> {
        self.has_printed |= !entries.is_empty();
        self.out.write(&self.layout.rows(entries, accounts))
    }
}

fn is_subdirectory(entry: &FileEntry) -> bool {
    entry.r#type() == FileType::Directory && !matches!(entry.path.as_slice(), b"." | b"..")
}
