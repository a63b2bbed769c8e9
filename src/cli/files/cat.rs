//! `podsonde cat`.

use clap::Args;

use super::{
    args::{ContainerArgs, Format, pod_path},
    location::PodPath,
    open::{self, Pods, Troubles},
    report::{ContentReport, EntryReport, FileReport, StatsReport},
    sink,
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        options::TEMPLATE,
    },
    client::files::{ReadEvent, Reading},
    proto::v1::{FilesReadRequest, ReadEnd},
};

/// Largest content that is printed as JSON or YAML, in bytes: it has to fit into memory.
const MAX_REPORTED: usize = 16 * 1024 * 1024;

/// `podsonde cat`.
#[derive(Debug, Clone, Args)]
#[command(
    help_template = TEMPLATE,
    after_help = "Examples:
  podsonde cat web:/etc/nginx/nginx.conf
  podsonde cat web:/var/log/app.log.gz | zcat | less
  podsonde cat deploy/web:/etc/shadow --as-root

Exit codes:
  0  everything was printed
  1  a file could not be read
  2  the usage was wrong"
)]
pub(in crate::cli) struct CatArgs {
    /// Files to print: POD:PATH, NAMESPACE/POD:PATH or TYPE/NAME:PATH
    #[arg(value_name = "POD:PATH", required = true, value_parser = pod_path())]
    operands: Vec<PodPath>,
    #[command(flatten)]
    container: ContainerArgs,
    /// Output format; json and yaml take files up to 16 MiB, and encode what is not UTF-8 in base64
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

pub(super) async fn run(context: &Context, args: &CatArgs) -> Result<Exit, Failed> {
    let pods = Pods::new(context, &args.container, true).await?;
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

/// Writes a whole file to stdout.
async fn copy(pods: &Pods<'_>, operand: &PodPath) -> Result<(), Failed> {
    let pod = pods.open(operand).await?;
    let about = |error| pod.about(error);
    let mut offset = 0;
    let mut version = Vec::new();
    // An agent limits how much one answer holds; the rest takes further requests, for the same
    // version of the file.
    loop {
        let request = FilesReadRequest {
            path: operand.path.clone(),
            offset,
            if_version: std::mem::take(&mut version),
            ..FilesReadRequest::default()
        };
        let mut reading = pod.files.read(request).await.map_err(about)?;
        if let Some(root) = &reading.start.root {
            pod.log_root(root);
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
        // What arrived is written even if the connection broke.
        offset += i64::try_from(stdout.finish().await?.bytes).unwrap_or(i64::MAX);
        let end = ended?;
        if end.reason() != ReadEnd::Limit || end.bytes == 0 {
            return Ok(());
        }
        version = reading.start.version;
    }
}

/// Reads a whole file for a report.
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

/// The rest of what is being read, if it is small enough for a report.
pub(super) async fn content(reading: &mut Reading) -> Result<Vec<u8>, Failed> {
    let mut content = Vec::new();
    loop {
        match reading.next().await? {
            ReadEvent::Data(data) if content.len() + data.len() > MAX_REPORTED => {
                return Err(Failed::Usage(
                    "the file is larger than 16 MiB; print it without -o".to_owned(),
                ));
            }
            ReadEvent::Data(data) => content.extend_from_slice(&data),
            ReadEvent::Change(_) => {}
            ReadEvent::End(_) => return Ok(content),
        }
    }
}

/// A file that was read, for a report.
pub(super) fn reported(reading: &Reading, path: &[u8], content: Vec<u8>) -> FileReport {
    FileReport {
        root: (&reading.start.root.clone().unwrap_or_default()).into(),
        entry: EntryReport::new(path, &reading.start.entry.clone().unwrap_or_default()),
        offset: Some(reading.start.offset),
        content: Some(ContentReport::new(content)),
    }
}
