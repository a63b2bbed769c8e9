//! `podsonde tail`.

use std::io;

use bytes::Bytes;
use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    args::{ContainerArgs, Format, pod_path},
    cat,
    dialect::{Count, count},
    location::PodPath,
    names,
    open::{self, Pod, Pods, Troubles},
    out::Out,
    report::{ContentReport, PathReport, StatsReport},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        options::TEMPLATE,
    },
    client::files::ReadEvent,
    domain::text::escape_json,
    proto::v1::{FileChange, FilesReadChange, FilesReadRequest, ReadEnd},
};

/// How many lines an agent searches back for at most.
const MAX_LINES: u64 = 1_000_000;
/// How many lines are printed if nothing else is asked for, as with tail(1).
const DEFAULT_LINES: u64 = 10;
/// How many pieces of followed files may wait to be printed. A piece is at most 1 MiB.
const MAX_WAITING: usize = 16;

/// `podsonde tail`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "-n and -c mean what they mean to tail(1) if a number follows, and kubectl's namespace or container \
if a name does. -f follows a file through truncation and rotation, as tail -F does, until the \
container ends.

Examples:
  podsonde tail web:/var/log/app.log
  podsonde tail -n 100 -f web:/var/log/app.log -n shop -c app
  podsonde tail -c 1K web:/var/log/app.log
  podsonde tail -n +1 -F web:/var/log/app.log       # from the first line on

Exit codes:
  0  everything was printed
  1  a file could not be read
  2  the usage was wrong"
)]
pub(in crate::cli) struct TailArgs {
    /// Files to print: POD:PATH, NAMESPACE/POD:PATH or TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    operands: Vec<PodPath>,
    #[command(flatten)]
    container: ContainerArgs,
    /// Keep printing what is appended
    #[arg(short, long, short_alias = 'F')]
    follow: bool,
    /// Print the last N lines, or with +N from line N on; -n N for short [default: 10]
    #[arg(long, value_name = "N", value_parser = count, allow_hyphen_values = true)]
    lines: Option<Count>,
    /// Print the last N bytes, or with +N from byte N on; -c N for short; takes K, M and G
    #[arg(
        long,
        value_name = "N",
        value_parser = count,
        allow_hyphen_values = true,
        conflicts_with = "lines"
    )]
    bytes: Option<Count>,
    /// Never print headers with file names
    #[arg(short, long, visible_alias = "silent", overrides_with = "headers")]
    quiet: bool,
    /// Always print headers with file names; -v for short
    #[arg(long, overrides_with = "quiet")]
    headers: bool,
    /// Output format; with -f, one JSON object per line
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

pub(super) async fn run(context: &Context, args: &TailArgs) -> Result<Exit, Failed> {
    let request = request(args)?;
    if !args.follow
        && [args.lines, args.bytes].contains(&Some(Count::Last(0)))
        && args.output == Format::Text
    {
        // tail(1) does not even open the file for nothing.
        return Ok(Exit::Ok);
    }
    let pods = Pods::new(context, &args.container, true).await?;
    let mut troubles = Troubles::new(context);
    let mut opened = Vec::new();
    for operand in &args.operands {
        match pods.open(operand).await {
            Ok(pod) => opened.push((operand, pod)),
            Err(failed) => troubles.note(&operand.shown(), failed, Exit::Error)?,
        }
    }
    if args.output != Format::Text && !args.follow {
        return report(context, args, &request, opened, troubles).await;
    }
    let has_headers = !args.quiet && (args.headers || args.operands.len() > 1);
    let mut printer = Printer {
        context,
        operands: opened.iter().map(|(operand, _)| *operand).collect(),
        has_headers,
        is_json: args.output != Format::Text,
        last: None,
        out: Out::new(),
    };
    let skip = match args.lines {
        Some(Count::From(line)) => line.saturating_sub(1),
        _ => 0,
    };
    if args.follow {
        let (events, mut received) = mpsc::channel(MAX_WAITING);
        for (index, (operand, pod)) in opened.iter().enumerate() {
            let reader = Reader { index, skip, pod: pod.clone(), events: events.clone() };
            tokio::spawn(
                reader.run(FilesReadRequest { path: operand.path.clone(), ..request.clone() }),
            );
        }
        drop(events);
        while let Some((index, event)) = received.recv().await {
            printer.print(index, event, &mut troubles)?;
            if received.is_empty() {
                printer.out.flush()?;
            }
        }
    } else {
        for (index, (operand, pod)) in opened.iter().enumerate() {
            let (events, mut received) = mpsc::channel(MAX_WAITING);
            let reader = Reader { index, skip, pod: pod.clone(), events };
            tokio::spawn(
                reader.run(FilesReadRequest { path: operand.path.clone(), ..request.clone() }),
            );
            while let Some((index, event)) = received.recv().await {
                printer.print(index, event, &mut troubles)?;
            }
        }
    }
    printer.out.flush()?;
    Ok(troubles.exit)
}

/// The request that a command line stands for, without its path.
fn request(args: &TailArgs) -> Result<FilesReadRequest, Failed> {
    let offset = |bytes: u64| {
        i64::try_from(bytes)
            .map_err(|_| Failed::Usage(format!("{bytes} bytes are more than a file can have")))
    };
    let request = FilesReadRequest { follow: args.follow, ..FilesReadRequest::default() };
    Ok(match (args.lines, args.bytes) {
        (_, Some(Count::From(byte))) => {
            FilesReadRequest { offset: offset(byte.saturating_sub(1))?, ..request }
        }
        // An offset of -0 would be the start of the file.
        (_, Some(Count::Last(0))) => FilesReadRequest { tail_lines: Some(0), ..request },
        (_, Some(Count::Last(bytes))) => FilesReadRequest { offset: -offset(bytes)?, ..request },
        (Some(Count::From(_)), None) => request,
        (lines, None) => {
            let lines = match lines {
                Some(Count::Last(lines)) => lines,
                _ => DEFAULT_LINES,
            };
            match u32::try_from(lines) {
                Ok(wanted) if lines <= MAX_LINES => {
                    FilesReadRequest { tail_lines: Some(wanted), ..request }
                }
                _ => {
                    return Err(Failed::Usage(format!(
                        "an agent searches back for at most {MAX_LINES} lines: use -c N for bytes, \
                         or -n +N to start from line N"
                    )));
                }
            }
        }
    })
}

/// Prints the ends of the files as one report.
async fn report(
    context: &Context,
    args: &TailArgs,
    request: &FilesReadRequest,
    opened: Vec<(&PodPath, Pod)>,
    mut troubles: Troubles<'_>,
) -> Result<Exit, Failed> {
    let mut report = StatsReport::default();
    for (operand, pod) in opened {
        let request = FilesReadRequest { path: operand.path.clone(), ..request.clone() };
        let read = async {
            let mut reading = pod.files.read(request).await.map_err(|error| pod.about(error))?;
            let mut content = cat::content(&mut reading).await?;
            if let Some(Count::From(line)) = args.lines {
                let mut skip = line.saturating_sub(1);
                content = without_lines(&Bytes::from(content), &mut skip).to_vec();
            }
            Ok(cat::reported(&reading, &operand.path, content))
        };
        match read.await {
            Ok(file) => report.files.push(file),
            Err(failed) => troubles.note(&operand.shown(), failed, Exit::Error)?,
        }
    }
    report.errors = std::mem::take(&mut troubles.errors);
    open::print(context, args.output, &report)?;
    Ok(troubles.exit)
}

/// Reads or follows one file, as a task of its own, and sends what happens to the [`Printer`].
struct Reader {
    index: usize,
    /// How many lines to leave out before the first that is printed.
    skip: u64,
    pod: Pod,
    events: mpsc::Sender<(usize, TailEvent)>,
}

/// What happens to a file that is read or followed.
enum TailEvent {
    /// The agent has opened it.
    Opened,
    /// Content, and its offset in the file.
    Data(Bytes, u64),
    /// A followed file was truncated, replaced or removed.
    Changed(FilesReadChange),
    ContainerEnded,
    Failed(Failed),
}

impl Reader {
    async fn run(mut self, request: FilesReadRequest) {
        if let Err(failed) = self.read(request).await {
            // The channel is closed only if the command has ended already.
            let _ = self.send(TailEvent::Failed(failed)).await;
        }
    }

    async fn read(&mut self, mut request: FilesReadRequest) -> Result<(), Failed> {
        let mut is_opened = false;
        loop {
            let mut reading = self
                .pod
                .files
                .read(request.clone())
                .await
                .map_err(|error| self.pod.about(error))?;
            if let Some(root) = &reading.start.root {
                self.pod.log_root(root);
            }
            let mut at = reading.start.offset;
            if !std::mem::replace(&mut is_opened, true) {
                self.send(TailEvent::Opened).await?;
            }
            let end = loop {
                match reading.next().await.map_err(|error| self.pod.about(error))? {
                    ReadEvent::Data(data) => {
                        let kept = without_lines(&data, &mut self.skip);
                        let offset = at + (data.len() - kept.len()) as u64;
                        at += data.len() as u64;
                        if !kept.is_empty() {
                            self.send(TailEvent::Data(kept, offset)).await?;
                        }
                    }
                    ReadEvent::Change(change) => {
                        at = change.offset;
                        self.send(TailEvent::Changed(change)).await?;
                    }
                    ReadEvent::End(end) => break end,
                }
            };
            match end.reason() {
                // An agent limits how much one answer holds.
                ReadEnd::Limit if end.bytes > 0 => {
                    request.tail_lines = None;
                    request.offset = i64::try_from(at).unwrap_or(i64::MAX);
                }
                ReadEnd::ContainerEnded => return self.send(TailEvent::ContainerEnded).await,
                _ => return Ok(()),
            }
        }
    }

    async fn send(&self, event: TailEvent) -> Result<(), Failed> {
        self.events
            .send((self.index, event))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe).into())
    }
}

/// The content without its first `skip` lines. `skip` counts down, because the lines may end in
/// later pieces.
fn without_lines(data: &Bytes, skip: &mut u64) -> Bytes {
    let mut rest = 0;
    while *skip > 0 {
        match data.iter().skip(rest).position(|b| *b == b'\n') {
            Some(end) => rest += end + 1,
            None => return Bytes::new(),
        }
        *skip -= 1;
    }
    data.slice(rest..)
}

/// Prints the events of all files.
struct Printer<'a> {
    context: &'a Context,
    operands: Vec<&'a PodPath>,
    has_headers: bool,
    is_json: bool,
    /// The file whose content was printed last; another one's needs a header.
    last: Option<usize>,
    out: Out,
}

impl Printer<'_> {
    fn print(
        &mut self,
        index: usize,
        event: TailEvent,
        troubles: &mut Troubles<'_>,
    ) -> Result<(), Failed> {
        let Some(operand) = self.operands.get(index).copied() else { return Ok(()) };
        let shown = operand.shown();
        match event {
            TailEvent::Opened if !self.is_json => self.header(index, operand)?,
            TailEvent::Opened => {}
            TailEvent::Data(data, offset) if self.is_json => {
                self.line(
                    operand,
                    json!({"offset": offset}),
                    Some(ContentReport::new(data.to_vec())),
                )?;
            }
            TailEvent::Data(data, _) => {
                self.header(index, operand)?;
                self.out.write(&data)?;
            }
            TailEvent::Changed(change) => {
                self.out.flush()?;
                // The sentences are those of GNU tail.
                let (word, sentence) = match change.change() {
                    FileChange::Truncated => ("truncated", "file truncated"),
                    FileChange::Replaced => {
                        ("replaced", "has been replaced; following the new file")
                    }
                    FileChange::Missing => {
                        ("missing", "has become inaccessible: No such file or directory")
                    }
                    FileChange::Unspecified => ("unknown", "has changed"),
                };
                if self.is_json {
                    self.line(operand, json!({"change": word, "offset": change.offset}), None)?;
                } else {
                    self.context.terminal.note(&format!("{shown}: {sentence}"));
                }
            }
            TailEvent::ContainerEnded => {
                self.out.flush()?;
                if self.is_json {
                    self.line(operand, json!({"end": "containerEnded"}), None)?;
                } else {
                    self.context.terminal.note(&format!("{shown}: the container has ended"));
                }
            }
            TailEvent::Failed(failed) => {
                self.out.flush()?;
                troubles.note(&shown, failed, Exit::Error)?;
            }
        }
        Ok(())
    }

    fn header(&mut self, index: usize, operand: &PodPath) -> io::Result<()> {
        if !self.has_headers || self.last == Some(index) {
            return Ok(());
        }
        let blank: &[u8] = if self.last.is_some() { b"\n" } else { b"" };
        self.last = Some(index);
        let name = operand.typed();
        let name = if self.context.terminal.interactive { names::safe(&name) } else { name };
        self.out.write(&[blank, b"==> ", &name, b" <==\n"].concat())
    }

    /// Prints an event as a line of JSON.
    fn line(
        &mut self,
        operand: &PodPath,
        mut event: serde_json::Value,
        content: Option<ContentReport>,
    ) -> Result<(), Failed> {
        let parts =
            [serde_json::to_value(PathReport::new(&operand.path)), serde_json::to_value(content)];
        for part in parts {
            if let (Some(event), serde_json::Value::Object(part)) =
                (event.as_object_mut(), part.map_err(io::Error::other)?)
            {
                event.extend(part);
            }
        }
        self.out.write(format!("{}\n", escape_json(&event.to_string())).as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_left_out_across_parts() {
        let mut skip = 2;
        let parts =
            ["a", "\nb\nc", "\nd\n"].map(|part| without_lines(&Bytes::from(part), &mut skip));
        assert_eq!(parts, ["", "c", "\nd\n"]);
    }
}
