//! `podsonde diff`: compares two trees directory by directory. Content is fetched only where
//! checksums differ.

mod tree;
mod unified;

use std::{cmp::Ordering, time::Duration};

use clap::Args;
use futures::{StreamExt, stream};

use tree::{ComparedFile, ComparedTree};

use super::{
    args::{ContainerArgs, Format, location},
    entries::{Clock, type_words},
    location::Location,
    open::{self, Pods, Troubles},
    out::Out,
    report::{DiffReport, DifferenceKind, DifferenceReport, PathReport, SideName},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        options::TEMPLATE,
        table::Tone,
    },
    domain::text::escape,
    proto::v1::FileType,
};

/// How many pairs of files are compared at the same time.
const CONCURRENCY: usize = 4;
/// Largest file that is compared line by line, in bytes: both have to fit into memory.
const MAX_TEXT: u64 = 64 * 1024 * 1024;
/// How long the shortest diff of two texts is searched for; after that a longer one is printed.
const PATIENCE: Duration = Duration::from_secs(10);

/// `podsonde diff`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Compares files or whole directories of two pods, or of a pod and this machine. The agents compute \
checksums, so files that are the same are not transferred. Symbolic links are compared by their \
targets.

Examples:
  podsonde diff web-0:/etc/nginx web-1:/etc/nginx
  podsonde diff web-0:/etc/resolv.conf ./resolv.conf
  podsonde diff -q shop/web-0:/app staging/web-0:/app

Exit codes:
  0  no differences
  1  there are differences
  2  something could not be compared, or the usage was wrong"
)]
pub(in crate::cli) struct DiffArgs {
    /// Old side: POD:PATH, NAMESPACE/POD:PATH, TYPE/NAME:PATH, or a local PATH
    #[arg(value_name = "FROM", value_parser = location())]
    from: Location,
    /// New side, in the same forms; at least one side has to be in a pod
    #[arg(value_name = "TO", value_parser = location())]
    to: Location,
    #[command(flatten)]
    container: ContainerArgs,
    /// Print only which files differ
    #[arg(short = 'q', long)]
    brief: bool,
    /// Print also which files are the same
    #[arg(short = 's', long)]
    report_identical_files: bool,
    /// Lines of context around differences
    #[arg(short = 'U', long, value_name = "LINES", default_value = "3")]
    unified: usize,
    /// Accepted out of habit: directories are always compared whole
    #[arg(short = 'r', long, hide = true)]
    recursive: bool,
    /// Accepted out of habit: the format is always unified
    #[arg(short = 'u', hide = true)]
    unified_habit: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

pub(super) async fn run(context: &Context, args: &DiffArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.container, true).await?;
    let (from, to) = futures::try_join!(
        ComparedTree::open(&pods, &args.from),
        ComparedTree::open(&pods, &args.to)
    )?;
    if !from.is_pod() && !to.is_pod() {
        return Err(Failed::Usage(
            "neither path is in a pod: write POD:PATH for one of them".to_owned(),
        ));
    }
    let mut comparison = Comparison {
        context,
        args,
        from: &from,
        to: &to,
        clock: Clock::system(),
        out: Out::new(),
        report: DiffReport { from: from.shown(b""), to: to.shown(b""), ..DiffReport::default() },
        troubles: Troubles::new(context),
    };
    comparison.operands().await?;
    comparison.out.flush()?;
    let Comparison { mut report, troubles, .. } = comparison;
    let exit = match (troubles.exit, report.differs) {
        (Exit::Ok, true) => Exit::Differs,
        (exit, _) => exit,
    };
    if args.output != Format::Text {
        report.errors = troubles.errors;
        open::print(context, args.output, &report)?;
    }
    Ok(exit)
}

/// A comparison while it runs, and its results so far.
struct Comparison<'a> {
    context: &'a Context,
    args: &'a DiffArgs,
    from: &'a ComparedTree,
    to: &'a ComparedTree,
    clock: Clock,
    out: Out,
    report: DiffReport,
    troubles: Troubles<'a>,
}

/// A step of the comparison. Paths are relative to the operands.
enum Step {
    /// Compare two directories.
    Directories(Vec<u8>, Vec<u8>),
    /// Compare two entries of which at most one is a directory.
    Pair(Box<Pair>),
    /// Print that only one side has an entry.
    Only { side: SideName, directory: Vec<u8>, name: Vec<u8> },
}

/// Two entries that correspond to each other.
struct Pair {
    from: ComparedFile,
    to: ComparedFile,
    /// Whether they were found in directories, rather than named as operands.
    is_inside: bool,
}

/// The result of comparing a pair.
enum Outcome {
    Same,
    /// They are of different types.
    Types,
    /// They are links with different targets.
    Links,
    /// They are files with different content, which is given if its lines are to be compared.
    Contents(Option<Box<[Vec<u8>; 2]>>),
}

impl Comparison<'_> {
    /// The tree on one side.
    fn tree(&self, side: SideName) -> &ComparedTree {
        match side {
            SideName::From => self.from,
            SideName::To => self.to,
        }
    }

    /// Compares the operands, and everything below them.
    async fn operands(&mut self) -> Result<(), Failed> {
        let (from, to) = futures::join!(self.from.describe(b"", true), self.to.describe(b"", true));
        let (from, to) = match (from, to) {
            (Ok(from), Ok(to)) => (from, to),
            (from, to) => {
                for (tree, described) in [(self.from, from), (self.to, to)] {
                    if let Err(failed) = described {
                        self.troubles.note(&tree.shown(b""), failed, Exit::Trouble)?;
                    }
                }
                return Ok(());
            }
        };
        let is_directory = |file: &ComparedFile| file.entry.r#type() == FileType::Directory;
        let pair = match (is_directory(&from), is_directory(&to)) {
            (true, true) => {
                return self.perform(vec![Step::Directories(Vec::new(), Vec::new())]).await;
            }
            (false, false) => Pair { from, to, is_inside: false },
            // Like diff(1), compare a file with the file of the same name in the directory.
            (true, false) => match self.from.describe(&self.to.name(), true).await {
                Ok(from) => Pair { from, to, is_inside: false },
                Err(failed) => {
                    return self.troubles.note(
                        &self.from.shown(&self.to.name()),
                        failed,
                        Exit::Trouble,
                    );
                }
            },
            (false, true) => match self.to.describe(&self.from.name(), true).await {
                Ok(to) => Pair { from, to, is_inside: false },
                Err(failed) => {
                    return self.troubles.note(
                        &self.to.shown(&self.from.name()),
                        failed,
                        Exit::Trouble,
                    );
                }
            },
        };
        self.perform(vec![Step::Pair(Box::new(pair))]).await
    }

    /// Performs steps from the end of the list, which is a stack: what a directory holds comes
    /// before what follows the directory, so the output is in the order of names, as with diff(1).
    /// Neighbouring pairs are compared at the same time, and their results printed in order.
    async fn perform(&mut self, mut steps: Vec<Step>) -> Result<(), Failed> {
        while let Some(step) = steps.pop() {
            match step {
                Step::Directories(from, to) => match self.directories(&from, &to).await {
                    Ok(below) => steps.extend(below.into_iter().rev()),
                    Err((subject, failed)) => {
                        self.troubles.note(&subject, failed, Exit::Trouble)?;
                    }
                },
                Step::Only { side, directory, name } => self.only(side, &directory, &name)?,
                Step::Pair(pair) => {
                    let mut pairs = vec![pair];
                    while let Some(Step::Pair(pair)) =
                        steps.pop_if(|next| matches!(next, Step::Pair(_)))
                    {
                        pairs.push(pair);
                    }
                    let (from, to, brief) = (self.from, self.to, self.is_brief());
                    let mut outcomes = stream::iter(pairs)
                        .map(|pair| async move {
                            let outcome = compare(from, to, &pair, brief).await;
                            (pair, outcome)
                        })
                        .buffered(CONCURRENCY);
                    while let Some((pair, outcome)) = outcomes.next().await {
                        match outcome {
                            Ok(outcome) => self.tell(&pair, outcome)?,
                            Err((subject, failed)) => {
                                self.troubles.note(&subject, failed, Exit::Trouble)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the output has no use for lines.
    fn is_brief(&self) -> bool {
        self.args.brief || self.args.output != Format::Text
    }

    /// The steps that compare the contents of two directories, by merging their sorted lists.
    async fn directories(&self, from: &[u8], to: &[u8]) -> Result<Vec<Step>, (String, Failed)> {
        let (left, right) = futures::join!(self.from.list(from), self.to.list(to));
        let left = left.map_err(|failed| (self.from.shown(from), failed))?;
        let right = right.map_err(|failed| (self.to.shown(to), failed))?;
        let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
        let mut steps = Vec::new();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Ok(steps),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.name.cmp(&b.name),
            };
            let only = |side, directory: &[u8], file: Option<ComparedFile>| {
                file.map(|file| Step::Only { side, directory: directory.to_vec(), name: file.name })
            };
            steps.extend(match order {
                Ordering::Less => only(SideName::From, from, left.next()),
                Ordering::Greater => only(SideName::To, to, right.next()),
                Ordering::Equal => left.next().zip(right.next()).map(|(from, to)| {
                    match [from.entry.r#type(), to.entry.r#type()] {
                        [FileType::Directory, FileType::Directory] => {
                            Step::Directories(from.path, to.path)
                        }
                        _ => Step::Pair(Box::new(Pair { from, to, is_inside: true })),
                    }
                }),
            });
        }
    }

    /// Prints that only one side has an entry.
    fn only(&mut self, side: SideName, directory: &[u8], name: &[u8]) -> Result<(), Failed> {
        let directory_shown = self.tree(side).typed(directory);
        let line = [b"Only in ".as_slice(), &directory_shown, b": ", name, b"\n"].concat();
        self.line(&line, Tone::Plain)?;
        let path =
            if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() };
        self.differs(&path, DifferenceKind::OnlyIn, Some(side));
        Ok(())
    }

    /// Records a difference for the exit code and the report.
    fn differs(&mut self, path: &[u8], kind: DifferenceKind, only_in: Option<SideName>) {
        self.report.differs = true;
        if self.args.output != Format::Text {
            self.report.differences.push(DifferenceReport {
                path: PathReport::new(path),
                kind,
                only_in,
            });
        }
    }

    /// Prints and records the result of comparing a pair, in the words of diff(1).
    fn tell(&mut self, pair: &Pair, outcome: Outcome) -> Result<(), Failed> {
        let (a, b) = (self.from.typed(&pair.from.path), self.to.typed(&pair.to.path));
        let files = |what: &str, verb: &str| {
            [what.as_bytes(), b" ", &a, b" and ", &b, b" ", verb.as_bytes(), b"\n"].concat()
        };
        let kind = match &outcome {
            Outcome::Same if self.args.report_identical_files => {
                return self.line(&files("Files", "are identical"), Tone::Plain);
            }
            Outcome::Same => return Ok(()),
            Outcome::Types => {
                let words = |file: &ComparedFile| type_words(&file.entry).as_bytes();
                let (first, second) = (words(&pair.from), words(&pair.to));
                let line = [
                    b"File ".as_slice(),
                    &a,
                    b" is a ",
                    first,
                    b" while file ",
                    &b,
                    b" is a ",
                    second,
                    b"\n",
                ];
                self.line(&line.concat(), Tone::Plain)?;
                DifferenceKind::Type
            }
            Outcome::Links => {
                self.line(&files("Symbolic links", "differ"), Tone::Plain)?;
                DifferenceKind::Link
            }
            Outcome::Contents(None) => {
                self.line(&files("Files", "differ"), Tone::Plain)?;
                DifferenceKind::Content
            }
            Outcome::Contents(Some(texts)) => {
                let [old, new] = texts.as_ref();
                if unified::is_binary(old) || unified::is_binary(new) {
                    self.line(&files("Binary files", "differ"), Tone::Plain)?;
                } else {
                    self.hunks(pair, [&a, &b], [old, new])?;
                }
                DifferenceKind::Content
            }
        };
        self.differs(&pair.from.path, kind, None);
        Ok(())
    }

    /// Prints the lines in which two files differ.
    fn hunks(
        &mut self,
        pair: &Pair,
        names: [&Vec<u8>; 2],
        texts: [&[u8]; 2],
    ) -> Result<(), Failed> {
        let [a, b] = names;
        if pair.is_inside {
            self.line(&[b"diff -ru ".as_slice(), a, b" ", b, b"\n"].concat(), Tone::Plain)?;
        }
        let header = |mark: &str, name: &[u8], file: &ComparedFile, clock: &Clock| {
            let time = clock.full(file.entry.modified_at);
            [mark.as_bytes(), b" ", name, b"\t", time.as_bytes(), b"\n"].concat()
        };
        let (from, to) =
            (header("---", a, &pair.from, &self.clock), header("+++", b, &pair.to, &self.clock));
        self.line(&from, Tone::Plain)?;
        self.line(&to, Tone::Plain)?;
        let [old, new] = texts;
        for line in unified::hunks(old, new, self.args.unified, PATIENCE) {
            let tone = match line.first() {
                Some(b'-') => Tone::Bad,
                Some(b'+') => Tone::Good,
                Some(b'@') => Tone::Doubtful,
                _ => Tone::Plain,
            };
            self.line(&line, tone)?;
        }
        Ok(())
    }

    /// Prints a line of the result, given with its newline. On a terminal it is escaped: names and
    /// content are the pods'.
    fn line(&mut self, line: &[u8], tone: Tone) -> Result<(), Failed> {
        if self.args.output != Format::Text {
            return Ok(());
        }
        let terminal = self.context.terminal;
        if !terminal.interactive && !terminal.colour {
            return Ok(self.out.write(line)?);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let mut text = String::from_utf8_lossy(text);
        if terminal.interactive {
            text = text.split('\t').map(escape).collect::<Vec<_>>().join("\t").into();
        }
        Ok(self.out.write(format!("{}\n", tone.paint(&text, terminal.colour)).as_bytes())?)
    }
}

/// Compares a pair. With `brief`, content is never fetched.
async fn compare(
    left: &ComparedTree,
    right: &ComparedTree,
    pair: &Pair,
    brief: bool,
) -> Result<Outcome, (String, Failed)> {
    let Pair { from, to, .. } = pair;
    match [from.entry.r#type(), to.entry.r#type()] {
        [FileType::Regular, FileType::Regular] => {}
        [FileType::Symlink, FileType::Symlink]
            if from.entry.link_target == to.entry.link_target =>
        {
            return Ok(Outcome::Same);
        }
        [FileType::Symlink, FileType::Symlink] => return Ok(Outcome::Links),
        _ => return Ok(Outcome::Types),
    }
    let at_left = |failed| (left.shown(&from.path), failed);
    let at_right = |failed| (right.shown(&to.path), failed);
    if from.entry.size == to.entry.size {
        let (a, b) = futures::join!(left.checksum(&from.path), right.checksum(&to.path));
        if a.map_err(at_left)? == b.map_err(at_right)? {
            return Ok(Outcome::Same);
        }
    }
    if brief || from.entry.size > MAX_TEXT || to.entry.size > MAX_TEXT {
        return Ok(Outcome::Contents(None));
    }
    let (a, b) =
        futures::join!(left.content(&from.path, MAX_TEXT), right.content(&to.path, MAX_TEXT));
    Ok(Outcome::Contents(Some(Box::new([a.map_err(at_left)?, b.map_err(at_right)?]))))
}
