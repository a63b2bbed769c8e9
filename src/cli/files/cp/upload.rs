//! Uploads one file into a pod, if the agent allows writing.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use aws_lc_rs::digest::{Context as Hash, SHA256};
use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc;

use super::{
    args::CpArgs,
    bar::{Bar, Progress, binary},
};
use crate::{
    cli::{
        context::{Context, Exit, Failed},
        files::{
            args::Format,
            local::hash_rest,
            location::{PodPath, join},
            open::{self, Pod},
            report::CopyReport,
        },
    },
    client::{Error, Reason},
    proto::v1::{FileType, FilesWriteStart},
};

/// Size of the messages that are sent, in bytes.
const MESSAGE: usize = 256 * 1024;
/// How many messages may wait to be sent: 4 MiB, enough to keep disk and network busy.
const MAX_WAITING: usize = 16;

pub(super) async fn run(
    context: &Context,
    args: &CpArgs,
    pod: &Pod,
    source: &Path,
    destination: &PodPath,
) -> Result<Exit, Failed> {
    let started = Instant::now();
    let failed = |error: io::Error| {
        let message = format!("{}: {error}", source.display());
        Failed::from(Error::new(Reason::LocalFile, message))
    };
    let file = File::open(source).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(failed(io::Error::other(
            "not a regular file; only single files can be uploaded",
        )));
    }
    let name = source.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    let path = match pod.files.stat(&destination.path, true).await {
        Ok((_, entry)) if entry.r#type() == FileType::Directory => join(&destination.path, name),
        _ if destination.path.ends_with(b"/") => join(&destination.path, name),
        _ => destination.path.clone(),
    };
    // The agent checks the content against this before the file gets its name.
    let (file, sha256) = tokio::task::spawn_blocking(move || hashed(file))
        .await
        .map_err(io::Error::other)?
        .map_err(failed)?;
    let bar = Bar::start(context.terminal, args.quiet);
    bar.progress.name(&path);
    bar.progress.total.store(found.len(), Relaxed);
    let (messages, received) = mpsc::channel(MAX_WAITING);
    let progress = Arc::clone(&bar.progress);
    let reading = tokio::task::spawn_blocking(move || read(file, &messages, &progress));
    let content =
        stream::unfold(received, async |mut received| Some((received.recv().await?, received)));
    let start = FilesWriteStart {
        target: None,
        path: path.clone(),
        mode: mode(&found),
        overwrite: args.force,
        sha256,
    };
    let written = tokio::select! {
        written = pod.files.write(start, content) => written,
        _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
    };
    drop(bar);
    written.map_err(|error| pod.about(error))?;
    reading.await.map_err(io::Error::other)?.map_err(failed)?;
    if args.output != Format::Text {
        let report = CopyReport {
            source: source.display().to_string(),
            destination: destination.prefix.clone() + &String::from_utf8_lossy(&path),
            files: 1,
            bytes: found.len(),
            verified: true,
            ..CopyReport::default()
        };
        open::print(context, args.output, &report)?;
    } else if context.terminal.live && !args.quiet {
        let seconds = started.elapsed().as_secs_f64();
        context
            .terminal
            .note(&format!("1 file, {} in {seconds:.1} s, verified", binary(found.len())));
    }
    Ok(Exit::Ok)
}

#[cfg(unix)]
fn mode(found: &std::fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    found.permissions().mode() & 0o777
}

#[cfg(not(unix))]
fn mode(_: &std::fs::Metadata) -> u32 {
    0o644
}

/// The SHA-256 of a file, and the file at its start again.
fn hashed(mut file: File) -> io::Result<(File, Vec<u8>)> {
    let mut hash = Hash::new(&SHA256);
    hash_rest(&mut file, &mut hash)?;
    file.rewind()?;
    Ok((file, hash.finish().as_ref().to_vec()))
}

/// Sends a file's content in messages.
fn read(mut file: File, messages: &mpsc::Sender<Bytes>, progress: &Progress) -> io::Result<()> {
    loop {
        let mut buffer = vec![0; MESSAGE];
        let read = file.read(&mut buffer)?;
        buffer.truncate(read);
        progress.bytes.fetch_add(read as u64, Relaxed);
        // If nobody receives any longer, the request has failed and its error says why.
        if read == 0 || messages.blocking_send(buffer.into()).is_err() {
            return Ok(());
        }
    }
}
