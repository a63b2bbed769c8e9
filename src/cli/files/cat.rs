//! `podsonde cat`.

use super::{
    args::{CatArgs, Format},
    location::PodPath,
    open::{self, Pods, Troubles},
    report::{ContentReport, EntryReport, FileReport, StatsReport},
    sink,
};
use crate::{
    cli::context::{Context, Exit, Failed},
    client::files::{ReadEvent, Reading},
    proto::v1::{FilesReadRequest, ReadEnd},
};

/// Largest content that is shown as JSON, in bytes.
pub(super) const LARGEST_REPORTED: usize = 16 * 1024 * 1024;

pub(super) async fn run(context: &Context, args: &CatArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.whose, true).await?;
    let mut troubles = Troubles::new(context);
    let mut report = StatsReport::default();
    for operand in &args.operands {
        let done = match args.output {
            Format::Text => copy(&pods, operand).await,
            Format::Json | Format::Yaml => {
                collect(&pods, operand).await.map(|file| report.files.push(file))
            }
        };
        if let Err(failed) = done {
            troubles.note(&operand.shown(), failed, Exit::Error)?;
        }
    }
    if args.output != Format::Text {
        report.errors = std::mem::take(&mut troubles.errors);
        open::print(context, args.output, &report)?;
    }
    Ok(troubles.exit)
}

/// To stdout, all of it.
async fn copy(pods: &Pods<'_>, operand: &PodPath) -> Result<(), Failed> {
    let pod = pods.open(operand).await?;
    let about = |error| pod.about(error);
    let mut offset = 0;
    let mut version = Vec::new();
    // The agent gives away only so much in one answer.
    loop {
        let request = FilesReadRequest {
            path: operand.path.clone(),
            offset,
            if_version: std::mem::take(&mut version),
            ..FilesReadRequest::default()
        };
        let mut reading = pod.files.read(request).await.map_err(about)?;
        if let Some(root) = &reading.start.root {
            pod.say_whose(root);
        }
        let mut stdout = sink::stdout(None);
        let ended = async {
            loop {
                match reading.next().await.map_err(about)? {
                    ReadEvent::Data(data) => stdout.write(data).await?,
                    ReadEvent::Change(_) => {}
                    ReadEvent::End(end) => return Ok::<_, Failed>(end),
                }
            }
        };
        let ended = ended.await;
        // What has come is written, whatever ended it.
        offset += i64::try_from(stdout.finish().await?.bytes).unwrap_or(i64::MAX);
        let end = ended?;
        if end.reason() != ReadEnd::Limit || end.bytes == 0 {
            return Ok(());
        }
        version = reading.start.version;
    }
}

async fn collect(pods: &Pods<'_>, operand: &PodPath) -> Result<FileReport, Failed> {
    let pod = pods.open(operand).await?;
    let request = FilesReadRequest { path: operand.path.clone(), ..FilesReadRequest::default() };
    let mut reading = pod.files.read(request).await.map_err(|error| pod.about(error))?;
    let content = content(&mut reading).await.map_err(|failed| match failed {
        Failed::Asking(error) => pod.about(*error).into(),
        other => other,
    })?;
    Ok(reported(&reading, &operand.path, content))
}

/// What is left of a file, if that is not too much for one answer.
pub(super) async fn content(reading: &mut Reading) -> Result<Vec<u8>, Failed> {
    let mut content = Vec::new();
    loop {
        match reading.next().await? {
            ReadEvent::Data(data) if content.len() + data.len() > LARGEST_REPORTED => {
                return Err(Failed::Usage(
                    "the file is larger than 16 MiB; read it without -o".to_owned(),
                ));
            }
            ReadEvent::Data(data) => content.extend_from_slice(&data),
            ReadEvent::Change(_) => {}
            ReadEvent::End(_) => return Ok(content),
        }
    }
}

pub(super) fn reported(reading: &Reading, path: &[u8], content: Vec<u8>) -> FileReport {
    FileReport {
        root: (&reading.start.root.clone().unwrap_or_default()).into(),
        entry: EntryReport::new(path, &reading.start.entry.clone().unwrap_or_default()),
        offset: Some(reading.start.offset),
        content: Some(ContentReport::new(content)),
    }
}
