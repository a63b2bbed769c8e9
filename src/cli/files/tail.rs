//! `podsonde tail`.

use std::io;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    args::{Format, TailArgs},
    cat,
    dialect::Count,
    location::PodPath,
    names,
    open::{self, Pod, Pods, Troubles},
    out::Out,
    report::{ContentReport, PathReport, StatsReport},
};
use crate::{
    cli::context::{Context, Exit, Failed},
    client::files::ReadEvent,
    proto::v1::{FileChange, FilesReadChange, FilesReadRequest, ReadEnd},
};

/// Most lines that an agent looks back for.
const MOST_LINES: u64 = 1_000_000;
/// Parts of followed files that wait to be printed.
const WAITING: usize = 16;

pub(super) async fn run(context: &Context, args: &TailArgs) -> Result<Exit, Failed> {
    let request = request(args)?;
    if !args.follow
        && [args.lines, args.bytes].contains(&Some(Count::Last(0)))
        && args.output == Format::Text
    {
        // As tail does, which does not even look.
        return Ok(Exit::Ok);
    }
    let pods = Pods::new(context, &args.whose, true).await?;
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
    let headers = !args.quiet && (args.headers || args.operands.len() > 1);
    let mut printer = Printer {
        context,
        operands: opened.iter().map(|(operand, _)| *operand).collect(),
        headers,
        json: args.output != Format::Text,
        last: None,
        out: Out::new(),
    };
    let skip = match args.lines {
        Some(Count::From(line)) => line.saturating_sub(1),
        _ => 0,
    };
    if args.follow {
        let (events, mut received) = mpsc::channel(WAITING);
        for (index, (operand, pod)) in opened.iter().enumerate() {
            let tail = Tail { index, skip, pod: pod.clone(), events: events.clone() };
            tokio::spawn(
                tail.run(FilesReadRequest { path: operand.path.clone(), ..request.clone() }),
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
            let (events, mut received) = mpsc::channel(WAITING);
            let tail = Tail { index, skip, pod: pod.clone(), events };
            tokio::spawn(
                tail.run(FilesReadRequest { path: operand.path.clone(), ..request.clone() }),
            );
            while let Some((index, event)) = received.recv().await {
                printer.print(index, event, &mut troubles)?;
            }
        }
    }
    printer.out.flush()?;
    Ok(troubles.exit)
}

fn request(args: &TailArgs) -> Result<FilesReadRequest, Failed> {
    let offset = |bytes: u64| {
        i64::try_from(bytes).map_err(|_| Failed::Usage(format!("{bytes} bytes are too many")))
    };
    let request = FilesReadRequest { follow: args.follow, ..FilesReadRequest::default() };
    Ok(match (args.lines, args.bytes) {
        (_, Some(Count::From(byte))) => {
            FilesReadRequest { offset: offset(byte.saturating_sub(1))?, ..request }
        }
        // Minus nothing would be the start.
        (_, Some(Count::Last(0))) => FilesReadRequest { tail_lines: Some(0), ..request },
        (_, Some(Count::Last(bytes))) => FilesReadRequest { offset: -offset(bytes)?, ..request },
        (Some(Count::From(_)), None) => request,
        (lines, None) => {
            let lines = match lines {
                Some(Count::Last(lines)) => lines,
                _ => 10,
            };
            let wanted = u32::try_from(lines).ok().filter(|_| lines <= MOST_LINES);
            let too_many = || {
                Failed::Usage(format!(
                    "an agent looks back for at most {MOST_LINES} lines; use -c, or -n +N from the start"
                ))
            };
            FilesReadRequest { tail_lines: Some(wanted.ok_or_else(too_many)?), ..request }
        }
    })
}

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

/// One file that is read to its end, or followed.
struct Tail {
    index: usize,
    /// So many lines are left out first.
    skip: u64,
    pod: Pod,
    events: mpsc::Sender<(usize, Event)>,
}

enum Event {
    Begun,
    /// Content, and where it begins.
    Data(Bytes, u64),
    Changed(FilesReadChange),
    ContainerEnded,
    Failed(Failed),
}

impl Tail {
    async fn run(mut self, request: FilesReadRequest) {
        if let Err(failed) = self.read(request).await {
            // Without a printer there is nobody to tell.
            let _ = self.send(Event::Failed(failed)).await;
        }
    }

    async fn read(&mut self, mut request: FilesReadRequest) -> Result<(), Failed> {
        let mut begun = false;
        loop {
            let mut reading = self
                .pod
                .files
                .read(request.clone())
                .await
                .map_err(|error| self.pod.about(error))?;
            if let Some(root) = &reading.start.root {
                self.pod.say_whose(root);
            }
            let mut at = reading.start.offset;
            if !std::mem::replace(&mut begun, true) {
                self.send(Event::Begun).await?;
            }
            let end = loop {
                match reading.next().await.map_err(|error| self.pod.about(error))? {
                    ReadEvent::Data(data) => {
                        let kept = without_lines(&data, &mut self.skip);
                        let offset = at + (data.len() - kept.len()) as u64;
                        at += data.len() as u64;
                        if !kept.is_empty() {
                            self.send(Event::Data(kept, offset)).await?;
                        }
                    }
                    ReadEvent::Change(change) => {
                        at = change.offset;
                        self.send(Event::Changed(change)).await?;
                    }
                    ReadEvent::End(end) => break end,
                }
            };
            match end.reason() {
                // The agent gives away only so much in one answer.
                ReadEnd::Limit if end.bytes > 0 => {
                    request.tail_lines = None;
                    request.offset = i64::try_from(at).unwrap_or(i64::MAX);
                }
                ReadEnd::ContainerEnded => return self.send(Event::ContainerEnded).await,
                _ => return Ok(()),
            }
        }
    }

    async fn send(&self, event: Event) -> Result<(), Failed> {
        self.events
            .send((self.index, event))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe).into())
    }
}

/// What is left of the content when its first `skip` lines are left out.
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

struct Printer<'a> {
    context: &'a Context,
    operands: Vec<&'a PodPath>,
    headers: bool,
    json: bool,
    /// Whose content was printed last.
    last: Option<usize>,
    out: Out,
}

impl Printer<'_> {
    fn print(
        &mut self,
        index: usize,
        event: Event,
        troubles: &mut Troubles<'_>,
    ) -> Result<(), Failed> {
        let Some(operand) = self.operands.get(index).copied() else { return Ok(()) };
        let shown = operand.shown();
        match event {
            Event::Begun if !self.json => self.header(index, operand)?,
            Event::Begun => {}
            Event::Data(data, offset) if self.json => {
                self.line(
                    operand,
                    json!({"offset": offset}),
                    Some(ContentReport::new(data.to_vec())),
                )?;
            }
            Event::Data(data, _) => {
                self.header(index, operand)?;
                self.out.write(&data)?;
            }
            Event::Changed(change) => {
                self.out.flush()?;
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
                if self.json {
                    self.line(operand, json!({"change": word, "offset": change.offset}), None)?;
                } else {
                    self.context.terminal.note(&format!("{shown}: {sentence}"));
                }
            }
            Event::ContainerEnded => {
                self.out.flush()?;
                if self.json {
                    self.line(operand, json!({"end": "containerEnded"}), None)?;
                } else {
                    self.context.terminal.note(&format!("{shown}: the container has ended"));
                }
            }
            Event::Failed(failed) => {
                self.out.flush()?;
                troubles.note(&shown, failed, Exit::Error)?;
            }
        }
        Ok(())
    }

    fn header(&mut self, index: usize, operand: &PodPath) -> io::Result<()> {
        if !self.headers || self.last == Some(index) {
            return Ok(());
        }
        let blank: &[u8] = if self.last.is_some() { b"\n" } else { b"" };
        self.last = Some(index);
        let name = operand.typed();
        let name = if self.context.terminal.interactive { names::safe(&name) } else { name };
        self.out.write(&[blank, b"==> ", &name, b" <==\n"].concat())
    }

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
        self.out.write(format!("{event}\n").as_bytes())?;
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
