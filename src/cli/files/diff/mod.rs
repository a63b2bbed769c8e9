//! `podsonde diff`: two trees side by side, directory by directory; content is fetched only where checksums differ.

mod side;
mod unified;

use std::{cmp::Ordering, time::Duration};

use futures::{StreamExt, stream};

use side::{Item, Side};

use super::{
    args::{DiffArgs, Format},
    entries::{Clock, type_words},
    open::{self, Pods, Troubles},
    out::Out,
    report::{DiffReport, DifferenceReport, PathReport},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        table::{Tone, escape},
    },
    proto::v1::FileType,
};

/// Pairs that are compared at the same time.
const AT_ONCE: usize = 4;
/// Largest file whose lines are compared, in bytes.
const LARGEST: u64 = 64 * 1024 * 1024;
/// How long the shortest way from one text to the other is looked for.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context, args: &DiffArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.whose, true).await?;
    let (from, to) =
        futures::try_join!(Side::open(&pods, &args.from), Side::open(&pods, &args.to))?;
    if !from.is_pod() && !to.is_pod() {
        return Err(Failed::Usage(
            "neither is in a pod: write POD:PATH for one of them".to_owned(),
        ));
    }
    let mut diff = Diff {
        context,
        args,
        from: &from,
        to: &to,
        clock: Clock::system(),
        out: Out::new(),
        report: DiffReport { from: from.shown(b""), to: to.shown(b""), ..DiffReport::default() },
        troubles: Troubles::new(context),
    };
    diff.operands().await?;
    diff.out.flush()?;
    let Diff { mut report, troubles, .. } = diff;
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

struct Diff<'a> {
    context: &'a Context,
    args: &'a DiffArgs,
    from: &'a Side,
    to: &'a Side,
    clock: Clock,
    out: Out,
    report: DiffReport,
    troubles: Troubles<'a>,
}

/// What is to be compared next, by paths below the operands.
enum Work {
    Directories(Vec<u8>, Vec<u8>),
    Pair(Box<Pair>),
    Only { from: bool, directory: Vec<u8>, name: Vec<u8> },
}

struct Pair {
    from: Item,
    to: Item,
    /// Whether it was found in directories, and not named.
    is_inside: bool,
}

/// What became of a pair.
enum Verdict {
    Same,
    Types,
    Links,
    /// `None`: content that is not compared by lines.
    Contents(Option<Box<[Vec<u8>; 2]>>),
}

impl Diff<'_> {
    async fn operands(&mut self) -> Result<(), Failed> {
        let (from, to) = futures::join!(self.from.describe(b"", true), self.to.describe(b"", true));
        let (from, to) = match (from, to) {
            (Ok(from), Ok(to)) => (from, to),
            (from, to) => {
                for (side, described) in [(self.from, from), (self.to, to)] {
                    if let Err(failed) = described {
                        self.troubles.note(&side.shown(b""), failed, Exit::Trouble)?;
                    }
                }
                return Ok(());
            }
        };
        let is_directory = |item: &Item| item.entry.r#type() == FileType::Directory;
        let pair = match (is_directory(&from), is_directory(&to)) {
            (true, true) => {
                return self.work(vec![Work::Directories(Vec::new(), Vec::new())]).await;
            }
            (false, false) => Pair { from, to, is_inside: false },
            // `diff DIR FILE` means the file of that name in the directory.
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
        self.work(vec![Work::Pair(Box::new(pair))]).await
    }

    /// Works off what there is, the last first.
    async fn work(&mut self, mut works: Vec<Work>) -> Result<(), Failed> {
        while let Some(work) = works.pop() {
            match work {
                Work::Directories(from, to) => match self.directories(&from, &to).await {
                    Ok(below) => works.extend(below.into_iter().rev()),
                    Err((subject, failed)) => {
                        self.troubles.note(&subject, failed, Exit::Trouble)?
                    }
                },
                Work::Only { from, directory, name } => self.only(from, &directory, &name)?,
                Work::Pair(pair) => {
                    let mut pairs = vec![pair];
                    while let Some(Work::Pair(pair)) =
                        works.pop_if(|next| matches!(next, Work::Pair(_)))
                    {
                        pairs.push(pair);
                    }
                    let (left, right, brief) = (self.from, self.to, self.is_brief());
                    let mut verdicts = stream::iter(pairs)
                        .map(|pair| async move {
                            let verdict = verdict(left, right, &pair, brief).await;
                            (pair, verdict)
                        })
                        .buffered(AT_ONCE);
                    while let Some((pair, verdict)) = verdicts.next().await {
                        match verdict {
                            Ok(verdict) => self.tell(&pair, verdict)?,
                            Err((subject, failed)) => {
                                self.troubles.note(&subject, failed, Exit::Trouble)?
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn is_brief(&self) -> bool {
        self.args.brief || self.args.output != Format::Text
    }

    /// What two directories have, in the order of names.
    async fn directories(&self, from: &[u8], to: &[u8]) -> Result<Vec<Work>, (String, Failed)> {
        let (left, right) = futures::join!(self.from.list(from), self.to.list(to));
        let left = left.map_err(|failed| (self.from.shown(from), failed))?;
        let right = right.map_err(|failed| (self.to.shown(to), failed))?;
        let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
        let mut works = Vec::new();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Ok(works),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.name.cmp(&b.name),
            };
            let only = |from, directory: &[u8], item: Option<Item>| {
                item.map(|item| Work::Only { from, directory: directory.to_vec(), name: item.name })
            };
            works.extend(match order {
                Ordering::Less => only(true, from, left.next()),
                Ordering::Greater => only(false, to, right.next()),
                Ordering::Equal => left.next().zip(right.next()).map(|(from, to)| {
                    match [from.entry.r#type(), to.entry.r#type()] {
                        [FileType::Directory, FileType::Directory] => {
                            Work::Directories(from.path, to.path)
                        }
                        _ => Work::Pair(Box::new(Pair { from, to, is_inside: true })),
                    }
                }),
            });
        }
    }

    fn only(&mut self, from: bool, directory: &[u8], name: &[u8]) -> Result<(), Failed> {
        let side = if from { self.from } else { self.to };
        let line = [b"Only in ".as_slice(), &side.typed(directory), b": ", name, b"\n"].concat();
        self.line(&line, Tone::Plain)?;
        let path =
            if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() };
        self.differs(&path, "onlyIn", Some(if from { "from" } else { "to" }));
        Ok(())
    }

    fn differs(&mut self, path: &[u8], kind: &'static str, only_in: Option<&'static str>) {
        self.report.differs = true;
        if self.args.output != Format::Text {
            self.report.differences.push(DifferenceReport {
                path: PathReport::new(path),
                kind,
                only_in,
            });
        }
    }

    fn tell(&mut self, pair: &Pair, verdict: Verdict) -> Result<(), Failed> {
        let (a, b) = (self.from.typed(&pair.from.path), self.to.typed(&pair.to.path));
        let files = |what: &str, verb: &str| {
            [what.as_bytes(), b" ", &a, b" and ", &b, b" ", verb.as_bytes(), b"\n"].concat()
        };
        let kind = match &verdict {
            Verdict::Same if self.args.report_identical_files => {
                return self.line(&files("Files", "are identical"), Tone::Plain);
            }
            Verdict::Same => return Ok(()),
            Verdict::Types => {
                let words = |item: &Item| type_words(&item.entry).as_bytes();
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
                "type"
            }
            Verdict::Links => {
                self.line(&files("Symbolic links", "differ"), Tone::Plain)?;
                "link"
            }
            Verdict::Contents(None) => {
                self.line(&files("Files", "differ"), Tone::Plain)?;
                "content"
            }
            Verdict::Contents(Some(texts)) => {
                let [old, new] = texts.as_ref();
                if unified::is_binary(old) || unified::is_binary(new) {
                    self.line(&files("Binary files", "differ"), Tone::Plain)?;
                } else {
                    self.hunks(pair, [&a, &b], [old, new])?;
                }
                "content"
            }
        };
        self.differs(&pair.from.path, kind, None);
        Ok(())
    }

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
        let header = |mark: &str, name: &[u8], item: &Item, clock: &Clock| {
            let time = clock.full(item.entry.modified_at);
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

    /// A line of the result, ended. What it is made of cannot write to a terminal.
    fn line(&mut self, line: &[u8], tone: Tone) -> Result<(), Failed> {
        if self.args.output != Format::Text {
            return Ok(());
        }
        let terminal = self.context.terminal;
        if !terminal.interactive && !terminal.colour {
            return Ok(self.out.write(line)?);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = match terminal.interactive {
            true => {
                String::from_utf8_lossy(text).split('\t').map(escape).collect::<Vec<_>>().join("\t")
            }
            false => String::from_utf8_lossy(text).into_owned(),
        };
        Ok(self.out.write(format!("{}\n", tone.paint(&text, terminal.colour)).as_bytes())?)
    }
}

/// Compares two that have the same name. `brief`: content is not needed.
async fn verdict(
    left: &Side,
    right: &Side,
    pair: &Pair,
    brief: bool,
) -> Result<Verdict, (String, Failed)> {
    let Pair { from, to, .. } = pair;
    match [from.entry.r#type(), to.entry.r#type()] {
        [FileType::Regular, FileType::Regular] => {}
        [FileType::Symlink, FileType::Symlink]
            if from.entry.link_target == to.entry.link_target =>
        {
            return Ok(Verdict::Same);
        }
        [FileType::Symlink, FileType::Symlink] => return Ok(Verdict::Links),
        _ => return Ok(Verdict::Types),
    }
    let at_left = |failed| (left.shown(&from.path), failed);
    let at_right = |failed| (right.shown(&to.path), failed);
    if from.entry.size == to.entry.size {
        let (a, b) = futures::join!(left.checksum(&from.path), right.checksum(&to.path));
        if a.map_err(at_left)? == b.map_err(at_right)? {
            return Ok(Verdict::Same);
        }
    }
    if brief || from.entry.size > LARGEST || to.entry.size > LARGEST {
        return Ok(Verdict::Contents(None));
    }
    let (a, b) =
        futures::join!(left.content(&from.path, LARGEST), right.content(&to.path, LARGEST));
    Ok(Verdict::Contents(Some(Box::new([a.map_err(at_left)?, b.map_err(at_right)?]))))
}
