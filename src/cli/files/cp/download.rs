//! Downloads one file: finds what an earlier download left, fetches the rest, compares the checksum
//! with the agent's, and only then gives the file its name.
//!
//! Until then the bytes are in `.NAME.podsonde-part`. A download that ends early leaves them there,
//! and beside them, in `.NAME.podsonde-version`, what the agent calls the version of the file that
//! they are from. The next download continues only if the file still has that version.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use aws_lc_rs::digest::{Context as Hash, SHA256, digest};
use tokio_util::sync::CancellationToken;

use super::{
    bar::Progress,
    directory::{Attributes, Directory},
};
use crate::{
    cli::files::{local::hash_rest, sink},
    client::{
        Error, Files, Reason,
        files::{ReadEvent, Reading},
    },
    domain::Reason as AgentReason,
    proto::v1::{FileEntry, FileType, FilesReadRequest, ReadEnd},
};

/// How many attempts in a row may bring nothing before the download fails.
const MAX_ATTEMPTS: u32 = 5;
/// The pause that doubles with each attempt that brings nothing: 0.5 s after the first.
const PAUSE: Duration = Duration::from_millis(250);
/// How much of a saved version is read, in bytes. Agents use far fewer.
const MAX_VERSION: u64 = 4096;
/// Longest file name that common file systems allow, in bytes.
const MAX_NAME: usize = 255;

/// How files are downloaded.
#[derive(Debug, Clone)]
pub(super) struct DownloadOptions {
    /// Whether files keep their mode and times.
    pub(super) preserve: bool,
    /// Whether checksums are compared with the agent's.
    pub(super) verify: bool,
    /// Whether a download continues from what an earlier one left.
    pub(super) resume: bool,
    pub(super) interrupted: CancellationToken,
    pub(super) progress: Arc<Progress>,
}

/// Why a file was not copied.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The agent or the connection failed.
    Asking(Error),
    /// A file of this machine failed.
    Writing(io::Error),
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Asking(error)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Writing(error)
    }
}

/// What a finished download did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Downloaded {
    /// Bytes that were transferred, including those of a version that was then abandoned.
    pub(super) bytes: u64,
    /// Bytes of an earlier download that were used.
    pub(super) resumed: u64,
    /// Whether the file changed under the download, which then started again.
    pub(super) restarted: bool,
}

/// The names of the files that hold an unfinished download and its version. A name that would be
/// too long is replaced by its hash.
pub(super) fn part_names(name: &OsStr) -> (OsString, OsString) {
    let named = |suffix: &str| {
        let mut part = OsString::from(".");
        part.push(name);
        part.push(suffix);
        if part.len() <= MAX_NAME {
            return part;
        }
        let hash = digest(&SHA256, name.as_encoded_bytes());
        let hash: String =
            hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!(".{hash}{suffix}").into()
    };
    (named(".podsonde-part"), named(".podsonde-version"))
}

/// Whether a file of a pod has a name that [`part_names`] uses.
pub(super) fn is_part(name: &[u8]) -> bool {
    name.starts_with(b".")
        && (name.ends_with(b".podsonde-part") || name.ends_with(b".podsonde-version"))
}

/// What this machine has of a file that is being downloaded.
struct Part<'a> {
    directory: &'a Directory,
    name: OsString,
    version_name: OsString,
    /// `None` while a sink writes to it.
    file: Option<File>,
    /// How many bytes it holds.
    have: u64,
    /// The checksum of these bytes.
    hash: Hash,
    /// The version of the pod's file that they are from; empty until the agent has told it.
    version: Vec<u8>,
}

impl<'a> Part<'a> {
    async fn open(
        directory: &'a Directory,
        name: &OsStr,
        mode: u32,
        resume: bool,
    ) -> io::Result<Self> {
        let (name, version_name) = part_names(name);
        let mut file = directory.file(&name, mode)?;
        let mut version = Vec::new();
        if resume && let Ok(saved) = directory.existing(&version_name) {
            saved.take(MAX_VERSION).read_to_end(&mut version)?;
        }
        // Two downloads of one file would write into each other. A file system without locks gets
        // no such protection.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(io::Error::other("another podsonde is downloading this file"));
        }
        let mut hash = Hash::new(&SHA256);
        let have = if version.is_empty() {
            file.set_len(0)?;
            0
        } else {
            let hashing = tokio::task::spawn_blocking(move || {
                hash_rest(&mut file, &mut hash).map(|()| (file, hash))
            });
            (file, hash) = hashing.await.map_err(io::Error::other)??;
            file.stream_position()?
        };
        Ok(Self { directory, name, version_name, file: Some(file), have, hash, version })
    }

    /// Discards everything that was downloaded.
    fn restart(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
        }
        (self.have, self.hash, self.version) = (0, Hash::new(&SHA256), Vec::new());
        Ok(())
    }

    /// Leaves what was downloaded for the next time, or removes the files if that is nothing.
    fn leave(self) -> io::Result<()> {
        if self.have == 0 || self.version.is_empty() {
            return self.remove();
        }
        let mut saved = self.directory.file(&self.version_name, 0o600)?;
        saved.set_len(0)?;
        saved.write_all(&self.version)
    }

    fn remove(self) -> io::Result<()> {
        self.directory.remove(&self.name)?;
        self.directory.remove(&self.version_name)
    }
}

/// Downloads a file into a directory.
///
/// # Errors
/// What stopped it. The bytes that arrived are kept for the next time, unless they are wrong.
pub(super) async fn download(
    files: &Files,
    path: &[u8],
    entry: &FileEntry,
    directory: &Directory,
    name: &OsStr,
    options: &DownloadOptions,
) -> Result<Downloaded, Stopped> {
    let mode = entry.mode & 0o777;
    let mut part = Part::open(directory, name, mode, options.resume).await?;
    let mut copied = Downloaded { resumed: part.have, ..Downloaded::default() };
    options.progress.bytes.fetch_add(part.have, Relaxed);
    options.progress.resumed.fetch_add(part.have, Relaxed);
    match transfer(files, path, &mut part, options, &mut copied).await {
        Ok(()) => {}
        Err(stopped) => {
            part.leave()?;
            return Err(stopped);
        }
    }
    if options.verify
        && part.have > 0
        && let Err(stopped) = verify(files, path, &part, options).await
    {
        match &stopped {
            // Continuing from wrong bytes could never succeed.
            Stopped::Asking(error) if error.reason == Reason::ChecksumMismatch => part.remove()?,
            _ => part.leave()?,
        }
        return Err(stopped);
    }
    let time = |time: Option<prost_types::Timestamp>| {
        time.map_or((0, 0), |time| (time.seconds, time.nanos))
    };
    let times = [time(entry.accessed_at), time(entry.modified_at)];
    let Some(file) = &part.file else { return Err(io::Error::other("the file is gone").into()) };
    directory.place(
        file,
        &part.name,
        name,
        Attributes { mode, preserve: options.preserve, times },
    )?;
    directory.remove(&part.version_name)?;
    options.progress.files.fetch_add(1, Relaxed);
    Ok(copied)
}

/// Fetches what is missing, in as many requests as it takes. Attempts that bring bytes never count
/// as failures, so a slow or shaky connection gets there in the end. If the file changes, the
/// download starts again with the new version.
async fn transfer(
    files: &Files,
    path: &[u8],
    part: &mut Part<'_>,
    options: &DownloadOptions,
    copied: &mut Downloaded,
) -> Result<(), Stopped> {
    let mut failures = 0;
    loop {
        let before = part.have;
        let (failed, is_changed) = match segment(files, path, part, options, copied).await {
            Ok(true) => return Ok(()),
            Ok(false) => continue,
            Err(Stopped::Asking(error))
                if error.reason == Reason::Agent(AgentReason::FileChanged) =>
            {
                options.progress.bytes.fetch_sub(part.have, Relaxed);
                options.progress.resumed.fetch_sub(copied.resumed, Relaxed);
                part.restart()?;
                (copied.resumed, copied.restarted) = (0, true);
                (error, true)
            }
            Err(Stopped::Asking(error)) if is_passing(&error) => (error, false),
            Err(stopped) => return Err(stopped),
        };
        failures = if part.have > before { 0 } else { failures + 1 };
        if failures >= MAX_ATTEMPTS {
            return Err(failed.into());
        }
        tracing::debug!(error = %failed, have = part.have, "trying again");
        let pause = if is_changed { Duration::ZERO } else { PAUSE * 2_u32.pow(failures) };
        tokio::select! {
            () = options.interrupted.cancelled() => return Err(Stopped::Interrupted),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether the same request may succeed if it is repeated soon.
fn is_passing(error: &Error) -> bool {
    match &error.reason {
        Reason::ConnectionLost
        | Reason::AgentUnreachable
        | Reason::PortForwardFailed
        | Reason::RequestTimeout => true,
        Reason::Agent(reason) => matches!(
            reason,
            AgentReason::TooManyFileRequests | AgentReason::TooManyRequests | AgentReason::Draining
        ),
        Reason::Other(code) => code == "UNAVAILABLE",
        _ => false,
    }
}

/// Fetches one answer of the agent, which may not hold all of the file. Returns whether the end of
/// the file was reached.
async fn segment(
    files: &Files,
    path: &[u8],
    part: &mut Part<'_>,
    options: &DownloadOptions,
    copied: &mut Downloaded,
) -> Result<bool, Stopped> {
    let request = FilesReadRequest {
        path: path.to_vec(),
        offset: i64::try_from(part.have).unwrap_or(i64::MAX),
        if_version: part.version.clone(),
        ..FilesReadRequest::default()
    };
    let reading = tokio::select! {
        () = options.interrupted.cancelled() => return Err(Stopped::Interrupted),
        reading = files.read(request) => reading?,
    };
    let kind = reading.start.entry.as_ref().map(FileEntry::r#type);
    if reading.start.offset != part.have || kind != Some(FileType::Regular) {
        return Err(Error::new(
            Reason::Protocol,
            "the agent sent another part of the file than was asked for",
        )
        .into());
    }
    part.version.clone_from(&reading.start.version);
    let Some(file) = part.file.take() else {
        return Err(io::Error::other("the file is gone").into());
    };
    let mut sink = sink::file(file, Some(part.hash.clone()));
    let announced = reading.start.entry.as_ref().map_or(0, |entry| entry.size);
    let left = announced.saturating_sub(part.have);
    let ended = pump(reading, &mut sink, options, left).await;
    let (written, done) = sink.end().await?;
    part.file = written.file;
    if let Some(hash) = written.sha256 {
        part.hash = hash;
    }
    part.have += written.bytes;
    copied.bytes += written.bytes;
    done?;
    match ended? {
        ReadEnd::Limit if written.bytes > 0 => Ok(false),
        ReadEnd::EndOfFile | ReadEnd::Length => Ok(true),
        other => Err(Error::new(
            Reason::Protocol,
            format!("the agent stopped before the end of the file: {other:?}"),
        )
        .into()),
    }
}

/// Passes at most `left` bytes to a sink: what the file held when it was opened. Returns why that
/// was all. A file may grow for as long as it is copied, and a pod decides how fast; the local disk
/// must not fill with that.
pub(super) async fn pump(
    mut reading: Reading,
    sink: &mut sink::Sink,
    options: &DownloadOptions,
    mut left: u64,
) -> Result<ReadEnd, Stopped> {
    loop {
        if left == 0 {
            return Ok(ReadEnd::Length);
        }
        let event = tokio::select! {
            () = options.interrupted.cancelled() => return Err(Stopped::Interrupted),
            event = reading.next() => event?,
        };
        match event {
            ReadEvent::Data(mut data) => {
                data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= data.len() as u64;
                options.progress.bytes.fetch_add(data.len() as u64, Relaxed);
                sink.write(data).await?;
            }
            ReadEvent::Change(_) => {}
            ReadEvent::End(end) => return Ok(end.reason()),
        }
    }
}

/// Compares the checksum with the agent's for as many bytes of its file as were downloaded: a log
/// may have grown meanwhile.
async fn verify(
    files: &Files,
    path: &[u8],
    part: &Part<'_>,
    options: &DownloadOptions,
) -> Result<(), Stopped> {
    let mut attempts = 1;
    let theirs = loop {
        let asked = tokio::select! {
            () = options.interrupted.cancelled() => return Err(Stopped::Interrupted),
            asked = files.checksum(path, part.have) => asked,
        };
        match asked {
            Err(error) if attempts < MAX_ATTEMPTS && is_passing(&error) => {
                tokio::time::sleep(PAUSE * 2_u32.pow(attempts)).await;
                attempts += 1;
            }
            asked => break asked?,
        }
    };
    compare(part.hash.clone(), part.have, theirs.bytes, &theirs.sha256)
}

/// Compares a checksum with the agent's.
///
/// # Errors
/// `CHECKSUM_MISMATCH` if number of bytes or checksum differ.
pub(super) fn compare(hash: Hash, have: u64, bytes: u64, sha256: &[u8]) -> Result<(), Stopped> {
    if bytes == have && hash.finish().as_ref() == sha256 {
        return Ok(());
    }
    let message = "the checksum is not the agent's: the file was changed while it was copied";
    Err(Error::new(Reason::ChecksumMismatch, message).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_names_of_their_own() {
        let named = |name: &str| part_names(OsStr::new(name)).0.into_string().unwrap();
        assert_eq!(named("a.log"), ".a.log.podsonde-part");
        let long = named(&"x".repeat(255));
        assert!(long.len() <= 255 && long != named(&"y".repeat(255)), "{long}");
        assert!(
            is_part(b".a.podsonde-part")
                && is_part(long.as_bytes())
                && !is_part(b"a.podsonde-part")
        );
    }
}
