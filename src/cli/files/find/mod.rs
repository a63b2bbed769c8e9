//! `podsonde find`.

mod condition;
pub(super) mod expression;
mod pattern;

use std::{collections::HashSet, ffi::OsString, io};

use clap::{ArgAction, Args};

use condition::{Candidate, Instant};
use expression::{Action, Reference, Search};

use super::{
    accounts::Accounts,
    args::{ContainerArgs, Format, pod_path},
    dialect::EXPRESSION,
    entries::{Clock, is_device, is_known, mode_string},
    location::{PodPath, join},
    names,
    open::{self, Pod, Pods, Troubles, reason_words},
    out::Out,
    report::{EntryReport, ListingReport, ListingsReport, PathReport},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        options::TEMPLATE,
    },
    client::files::WalkEvent,
    proto::v1::{FileEntry, FileType},
};

/// `podsonde find`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Tests, with one dash or two; a number N means exactly N, +N more and -N less:
  -name PATTERN  -iname PATTERN  the name, with *, ? and [..]; -iname ignores case
  -path PATTERN  -ipath PATTERN  the path in the pod, or POD:PATH as it is printed
  -type f|d|l|p|s|c|b            the type; several with commas
  -size N[ckMG]  -empty          the size, in blocks of 512 bytes without a unit
  -mtime N  -mmin N              days or minutes since the last change; also -atime, -amin, -ctime
                                 and -cmin
  -newer PATH                    changed later than that file, of the same pod or POD:PATH
  -perm MODE  -user U  -group G  -links N  -inum N
Operators: ( EXPR )   ! EXPR   EXPR -a EXPR   EXPR -o EXPR
Depth: -maxdepth N  -mindepth N  -xdev (stay out of volumes and other mounts)
Actions: -print  -print0  -ls  -prune
-o json and -o yaml select the output format; before anything else, -o is the operator.

Examples:
  podsonde find web:/etc -name '*.conf'
  podsonde find web:/ -xdev -type f -size +10M -ls
  podsonde find web:/var/log -mtime -1 -print0 | xargs -0 podsonde tail
  podsonde find web:/ -name node_modules -prune -o -name '*.js' -print

Exit codes:
  0  everything was searched
  1  something could not be searched
  2  the usage was wrong"
)]
pub(in crate::cli) struct FindArgs {
    /// Where to start: POD:PATH, NAMESPACE/POD:PATH or TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    operands: Vec<PodPath>,
    #[command(flatten)]
    container: ContainerArgs,
    /// The words of the expression, which [`super::dialect`] collects
    #[arg(long = EXPRESSION, hide = true, allow_hyphen_values = true, action = ArgAction::Append)]
    expression: Vec<OsString>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

pub(super) async fn run(context: &Context, args: &FindArgs) -> Result<Exit, Failed> {
    let search = Search::parse(&args.expression).map_err(Failed::Usage)?;
    if args.output != Format::Text && !search.only_prints() {
        return Err(Failed::Usage(
            "-ls and -print0 cannot be combined with -o json or -o yaml".to_owned(),
        ));
    }
    let pods = Pods::new(context, &args.container, false).await?;
    let mut finder = Finder {
        context,
        search,
        clock: Clock::system(),
        out: Out::new(),
        widths: Widths::default(),
        is_report: args.output != Format::Text,
        report: ListingsReport::default(),
        troubles: Troubles::new(context),
    };
    for operand in &args.operands {
        let found = finder.tree(&pods, operand).await;
        finder.out.flush()?;
        if let Err(failed) = found {
            finder.troubles.note(&operand.shown(), failed, Exit::Error)?;
        }
    }
    if finder.is_report {
        finder.report.errors = std::mem::take(&mut finder.troubles.errors);
        open::print(context, args.output, &finder.report)?;
    }
    Ok(finder.troubles.exit)
}

/// A search, over all operands.
struct Finder<'a> {
    context: &'a Context,
    search: Search,
    clock: Clock,
    out: Out,
    widths: Widths,
    is_report: bool,
    report: ListingsReport,
    troubles: Troubles<'a>,
}

/// What tests and actions need for the entries of one operand.
struct SearchedTree<'a> {
    operand: &'a PodPath,
    pod: &'a Pod,
    accounts: &'a Accounts,
    references: Vec<Instant>,
    now: Instant,
    /// Directories whose contents are ignored. The agent lists them all the same.
    pruned: HashSet<Vec<u8>>,
    /// The entries that were printed, for a report.
    found: Vec<EntryReport>,
}

impl Finder<'_> {
    /// Searches the tree of one operand.
    async fn tree(&mut self, pods: &Pods<'_>, operand: &PodPath) -> Result<(), Failed> {
        let pod = pods.open(operand).await?;
        let about = |error| pod.about(error);
        let none = Accounts::default();
        let now = self.clock.now();
        let mut tree = SearchedTree {
            operand,
            pod: &pod,
            accounts: if self.search.accounts { pod.accounts().await } else { &none },
            references: self.references(pods, &pod).await?,
            now: (now.as_second(), now.subsec_nanosecond()),
            pruned: HashSet::new(),
            found: Vec::new(),
        };
        let cross_mounts = !self.search.same_file_system;
        // As in find(1), an operand that is a link means the link, and with a slash behind it what
        // the link leads to.
        let (root, top) = pod.files.stat(&operand.path, false).await.map_err(about)?;
        pod.log_root(&root);
        let mut truncated = false;
        if top.r#type() == FileType::Directory {
            let walking = pod.files.walk(&operand.path, self.search.max_depth, cross_mounts).await;
            let mut walking = walking.map_err(about)?;
            loop {
                match walking.next().await.map_err(about)? {
                    WalkEvent::Entries(entries) => {
                        for entry in entries {
                            self.entry(&mut tree, &entry).await?;
                        }
                    }
                    WalkEvent::End(end) => {
                        truncated = end.truncated;
                        break;
                    }
                }
            }
        } else {
            self.entry(&mut tree, &FileEntry { path: Vec::new(), ..top }).await?;
        }
        if truncated {
            self.out.flush()?;
            let message = "not everything was searched: there are more entries than the agent \
                           lists in one request";
            self.troubles.say(&operand.shown(), "TRUNCATED", message, Exit::Error);
        }
        if self.is_report {
            self.report.listings.push(ListingReport {
                path: PathReport::new(&operand.path),
                root: (&root).into(),
                entries: tree.found,
                truncated,
            });
        }
        Ok(())
    }

    /// The modification times of the files that `-newer` names.
    async fn references(&self, pods: &Pods<'_>, pod: &Pod) -> Result<Vec<Instant>, Failed> {
        let mut times = Vec::new();
        for reference in &self.search.references {
            let (pod, path) = match reference {
                Reference::Same(path) => (pod.clone(), path),
                Reference::Other(at) => (pods.open(at).await?, &at.path),
            };
            let (_, entry) = pod.files.stat(path, false).await.map_err(|error| pod.about(error))?;
            let time = entry.modified_at.unwrap_or_default();
            times.push((time.seconds, time.nanos));
        }
        Ok(times)
    }

    /// Applies the expression to one entry, whose path is relative to the operand.
    async fn entry(
        &mut self,
        tree: &mut SearchedTree<'_>,
        entry: &FileEntry,
    ) -> Result<(), Failed> {
        if !tree.pruned.is_empty() && is_below(&tree.pruned, &entry.path) {
            return Ok(());
        }
        let path = if entry.path.is_empty() {
            tree.operand.path.clone()
        } else {
            join(&tree.operand.path, &entry.path)
        };
        let printed = [tree.operand.prefix.as_bytes(), &path].concat();
        if !entry.reason.is_empty() {
            self.out.flush()?;
            let shown = String::from_utf8_lossy(&printed).into_owned();
            let why = reason_words(&entry.reason);
            match entry.reason.as_str() {
                "PATH_REFUSED" => {
                    self.context.terminal.note(&format!("not searched: {shown}: {why}"));
                }
                reason => self.troubles.say(&shown, reason, why, Exit::Error),
            }
        }
        let depth =
            if entry.path.is_empty() { 0 } else { entry.path.split(|b| *b == b'/').count() };
        if depth < self.search.min_depth {
            return Ok(());
        }
        let is_directory = entry.r#type() == FileType::Directory;
        // A directory that cannot be listed is not taken for empty.
        let is_empty_directory = self.search.emptiness
            && is_directory
            && entry.reason.is_empty()
            && tree.pod.files.is_empty(&path).await.unwrap_or(false);
        let candidate = Candidate {
            entry,
            name: name(&path),
            path: &path,
            printed: &printed,
            is_empty_directory,
            accounts: tree.accounts,
            references: &tree.references,
            now: tree.now,
        };
        let shown =
            if self.context.terminal.interactive { names::safe(&printed) } else { printed.clone() };
        let Self { search, out, widths, clock, is_report, .. } = self;
        let (pruned, found) = (&mut tree.pruned, &mut tree.found);
        search.apply(candidate, &mut |action| -> io::Result<()> {
            match action {
                Action::Print if *is_report => {
                    found.push(EntryReport::new(&path, entry));
                    Ok(())
                }
                Action::Print => out.write(&[&shown, b"\n".as_slice()].concat()),
                Action::Print0 => out.write(&[&shown, b"\0".as_slice()].concat()),
                Action::Ls => out.write(&widths.line(entry, &printed, tree.accounts, clock)),
                Action::Prune => {
                    if is_directory {
                        pruned.insert(entry.path.clone());
                    }
                    Ok(())
                }
            }
        })?;
        Ok(())
    }
}

/// The last name of a path. As in find(1), the name of the root directory is `/`.
fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').find(|name| !name.is_empty()).unwrap_or(b"/")
}

/// Whether a path is below one of these directories. The empty path is the top of the tree.
fn is_below(pruned: &HashSet<Vec<u8>>, path: &[u8]) -> bool {
    let parents =
        path.iter().enumerate().filter(|(_, b)| **b == b'/').filter_map(|(at, _)| path.get(..at));
    (!path.is_empty() && pruned.contains(b"".as_slice()))
        || parents.into_iter().any(|parent| pruned.contains(parent))
}

/// The widths of the columns of `-ls`. Entries are printed as they arrive, so as in find(1) a
/// column starts at a usual width and grows when a value does not fit.
struct Widths {
    inode: usize,
    blocks: usize,
    links: usize,
    user: usize,
    group: usize,
    size: usize,
}

impl Default for Widths {
    fn default() -> Self {
        Self { inode: 9, blocks: 6, links: 3, user: 8, group: 8, size: 8 }
    }
}

impl Widths {
    fn line(
        &mut self,
        entry: &FileEntry,
        path: &[u8],
        accounts: &Accounts,
        clock: &Clock,
    ) -> Vec<u8> {
        let figure =
            |figure: u64| if is_known(entry) { figure.to_string() } else { "?".to_owned() };
        let owner =
            |name: Option<&str>, id: u32| name.map_or_else(|| figure(id.into()), str::to_owned);
        let inode = wide(figure(entry.inode), &mut self.inode);
        let blocks = wide(figure(entry.blocks.div_ceil(2)), &mut self.blocks);
        let links = wide(figure(entry.links.into()), &mut self.links);
        let user = owner(accounts.user(entry.uid), entry.uid);
        let group = owner(accounts.group(entry.gid), entry.gid);
        let size = if is_device(entry) {
            format!("{:>3}, {:>3}", entry.device_major, entry.device_minor)
        } else {
            figure(entry.size)
        };
        self.user = self.user.max(user.len());
        self.group = self.group.max(group.len());
        let size = wide(size, &mut self.size);
        let (user_width, group_width) = (self.user, self.group);
        let mut line = format!(
            "{inode} {blocks} {} {links} {user:<user_width$} {group:<group_width$} {size} {} ",
            mode_string(entry),
            clock.short(entry.modified_at),
        )
        .into_bytes();
        escape(path, &mut line);
        if entry.r#type() == FileType::Symlink {
            line.extend_from_slice(b" -> ");
            escape(&entry.link_target, &mut line);
        }
        line.push(b'\n');
        line
    }
}

/// Appends a name as `-ls` writes it, on a terminal and elsewhere: with escapes for everything but
/// printable ASCII.
fn escape(name: &[u8], line: &mut Vec<u8>) {
    for byte in name {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\t' => line.extend_from_slice(b"\\t"),
            b'\r' => line.extend_from_slice(b"\\r"),
            0x08 => line.extend_from_slice(b"\\b"),
            0x0c => line.extend_from_slice(b"\\f"),
            b' ' | b'"' | b'\\' => line.extend_from_slice(&[b'\\', *byte]),
            b'!'..=b'~' => line.push(*byte),
            byte => line.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
        }
    }
}

/// Aligns a text to the right of its column, and widens the column if it has to.
fn wide(text: String, width: &mut usize) -> String {
    *width = (*width).max(text.len());
    let width = *width;
    format!("{text:>width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_pruned_directory() {
        let pruned = HashSet::from([b"a/b".to_vec()]);
        for (path, expected) in [
            ("a/b/c", true),
            ("a/b/c/d", true),
            ("a/b", false),
            ("a/bc/d", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(is_below(&pruned, path.as_bytes()), expected, "{path}");
        }
        let all = HashSet::from([Vec::new()]);
        assert!(is_below(&all, b"a") && !is_below(&all, b""));
        assert_eq!(
            (name(b"/"), name(b"/a/b/"), name(b"x")),
            (b"/".as_slice(), b"b".as_slice(), b"x".as_slice())
        );
    }
}
