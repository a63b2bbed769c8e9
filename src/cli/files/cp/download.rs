//! One file from a pod: what is here already, what is still to come, whether it is what the agent has, and its name last.

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
    cli::files::sink,
    client::{
        Error, Files,
        files::{ReadEvent, Reading},
        reason,
    },
    proto::v1::{FileEntry, FileType, FilesReadRequest, ReadEnd},
};

/// How often a connection that brings nothing is tried again.
const TRIES: u32 = 5;
/// The first pause between; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest version of a file that is kept, in bytes.
const LONGEST_VERSION: u64 = 4096;
/// Longest name that file systems take, in bytes.
const LONGEST_NAME: usize = 255;

/// How files are copied.
#[derive(Debug, Clone)]
pub(super) struct How {
    pub(super) preserve: bool,
    pub(super) verify: bool,
    pub(super) resume: bool,
    pub(super) interrupted: CancellationToken,
    pub(super) progress: Arc<Progress>,
}

/// Why a file was not copied.
#[derive(Debug)]
pub(super) enum Stopped {
    Asking(Error),
    Writing(io::Error),
    /// By the person.
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

/// A file that was copied.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Copied {
    /// Bytes that were transferred.
    pub(super) bytes: u64,
    /// Bytes that an earlier download had brought.
    pub(super) resumed: u64,
    /// Whether the file had changed, and was copied anew.
    pub(super) anew: bool,
}

/// Where a download that is not finished is kept.
pub(super) fn part_names(name: &OsStr) -> (OsString, OsString) {
    let named = |suffix: &str| {
        let mut part = OsString::from(".");
        part.push(name);
        part.push(suffix);
        if part.len() <= LONGEST_NAME {
            return part;
        }
        let hash = digest(&SHA256, name.as_encoded_bytes());
        let hash: String =
            hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!(".{hash}{suffix}").into()
    };
    (named(".podsonde-part"), named(".podsonde-version"))
}

/// Whether a file of a pod has the name of one of ours.
pub(super) fn is_part(name: &[u8]) -> bool {
    name.starts_with(b".")
        && (name.ends_with(b".podsonde-part") || name.ends_with(b".podsonde-version"))
}

/// What is here of a file.
struct Part<'a> {
    directory: &'a Directory,
    name: OsString,
    version_name: OsString,
    /// `None` while it is being written.
    file: Option<File>,
    /// Bytes that it holds.
    have: u64,
    hash: Hash,
    /// Of the file that they are from. Empty: not known yet.
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
            saved.take(LONGEST_VERSION).read_to_end(&mut version)?;
        }
        // Two copies of the same at the same time would write into one another. Not all file systems have locks.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(io::Error::other("another copy of it is under way"));
        }
        let mut hash = Hash::new(&SHA256);
        let have = match version.is_empty() {
            true => {
                file.set_len(0)?;
                0
            }
            false => {
                (file, hash) = tokio::task::spawn_blocking(move || hashed(file, hash))
                    .await
                    .map_err(io::Error::other)??;
                file.stream_position()?
            }
        };
        Ok(Self { directory, name, version_name, file: Some(file), have, hash, version })
    }

    /// Forgets all that was there.
    fn restart(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
        }
        (self.have, self.hash, self.version) = (0, Hash::new(&SHA256), Vec::new());
        Ok(())
    }

    /// Leaves it for another time; nothing, if there is nothing to leave.
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

/// The file at its end, and the SHA-256 of it.
fn hashed(mut file: File, mut hash: Hash) -> io::Result<(File, Hash)> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((file, hash)),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// Copies a file to a directory under a name.
///
/// # Errors
/// What stopped it. What has come by then is kept for the next time.
pub(super) async fn download(
    files: &Files,
    path: &[u8],
    entry: &FileEntry,
    directory: &Directory,
    name: &OsStr,
    how: &How,
) -> Result<Copied, Stopped> {
    let mode = entry.mode & 0o777;
    let mut part = Part::open(directory, name, mode, how.resume).await?;
    let mut copied = Copied { resumed: part.have, ..Copied::default() };
    how.progress.bytes.fetch_add(part.have, Relaxed);
    how.progress.resumed.fetch_add(part.have, Relaxed);
    match transfer(files, path, &mut part, how, &mut copied).await {
        Ok(()) => {}
        Err(stopped) => {
            part.leave()?;
            return Err(stopped);
        }
    }
    if how.verify
        && part.have > 0
        && let Err(stopped) = verify(files, path, &part, how).await
    {
        match &stopped {
            // What is there is not what it should be.
            Stopped::Asking(error) if error.reason == reason::CHECKSUM_MISMATCH => part.remove()?,
            _ => part.leave()?,
        }
        return Err(stopped);
    }
    let time = |time: Option<prost_types::Timestamp>| {
        time.map_or((0, 0), |time| (time.seconds, time.nanos))
    };
    let times = [time(entry.accessed_at), time(entry.modified_at)];
    let Some(file) = &part.file else { return Err(io::Error::other("the file is gone").into()) };
    directory.place(file, &part.name, name, Attributes { mode, preserve: how.preserve, times })?;
    directory.remove(&part.version_name)?;
    how.progress.files.fetch_add(1, Relaxed);
    Ok(copied)
}

/// Brings all that is not here yet.
async fn transfer(
    files: &Files,
    path: &[u8],
    part: &mut Part<'_>,
    how: &How,
    copied: &mut Copied,
) -> Result<(), Stopped> {
    let mut failures = 0;
    loop {
        let before = part.have;
        let (failed, is_changed) = match segment(files, path, part, how, copied).await {
            Ok(true) => return Ok(()),
            Ok(false) => continue,
            Err(Stopped::Asking(error)) if error.reason == "FILE_CHANGED" => {
                how.progress.bytes.fetch_sub(part.have, Relaxed);
                how.progress.resumed.fetch_sub(copied.resumed, Relaxed);
                part.restart()?;
                (copied.resumed, copied.anew) = (0, true);
                (error, true)
            }
            Err(Stopped::Asking(error)) if is_passing(&error) => (error, false),
            Err(stopped) => return Err(stopped),
        };
        failures = if part.have > before { 0 } else { failures + 1 };
        if failures >= TRIES {
            return Err(failed.into());
        }
        tracing::debug!(error = %failed, have = part.have, "trying again");
        let pause = if is_changed { Duration::ZERO } else { PAUSE * 2_u32.pow(failures) };
        tokio::select! {
            () = how.interrupted.cancelled() => return Err(Stopped::Interrupted),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether the same request may succeed in a moment.
fn is_passing(error: &Error) -> bool {
    [
        reason::CONNECTION_LOST,
        reason::AGENT_UNREACHABLE,
        reason::PORT_FORWARD_FAILED,
        reason::REQUEST_TIMEOUT,
    ]
    .contains(&&*error.reason)
        || matches!(
            &*error.reason,
            "UNAVAILABLE" | "TOO_MANY_FILE_REQUESTS" | "TOO_MANY_REQUESTS" | "DRAINING"
        )
}

/// One answer of the agent. Whether it was the last.
async fn segment(
    files: &Files,
    path: &[u8],
    part: &mut Part<'_>,
    how: &How,
    copied: &mut Copied,
) -> Result<bool, Stopped> {
    let request = FilesReadRequest {
        path: path.to_vec(),
        offset: i64::try_from(part.have).unwrap_or(i64::MAX),
        if_version: part.version.clone(),
        ..FilesReadRequest::default()
    };
    let reading = tokio::select! {
        () = how.interrupted.cancelled() => return Err(Stopped::Interrupted),
        reading = files.read(request) => reading?,
    };
    let kind = reading.start.entry.as_ref().map(FileEntry::r#type);
    if reading.start.offset != part.have || kind != Some(FileType::Regular) {
        return Err(Error::new(
            reason::PROTOCOL,
            "the agent began at another place than it was asked to",
        )
        .into());
    }
    part.version.clone_from(&reading.start.version);
    let Some(file) = part.file.take() else {
        return Err(io::Error::other("the file is gone").into());
    };
    let mut sink = sink::file(file, Some(part.hash.clone()));
    let ended = pump(reading, &mut sink, how).await;
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
        ReadEnd::EndOfFile => Ok(true),
        other => Err(Error::new(
            reason::PROTOCOL,
            format!("the agent stopped before the end of the file: {other:?}"),
        )
        .into()),
    }
}

/// Hands all that comes to a sink.
pub(super) async fn pump(
    mut reading: Reading,
    sink: &mut sink::Sink,
    how: &How,
) -> Result<ReadEnd, Stopped> {
    loop {
        let event = tokio::select! {
            () = how.interrupted.cancelled() => return Err(Stopped::Interrupted),
            event = reading.next() => event?,
        };
        match event {
            ReadEvent::Data(data) => {
                how.progress.bytes.fetch_add(data.len() as u64, Relaxed);
                sink.write(data).await?;
            }
            ReadEvent::Change(_) => {}
            ReadEvent::End(end) => return Ok(end.reason()),
        }
    }
}

/// Compares what has come with what the agent says of the same part of its file: a log may have grown meanwhile.
async fn verify(files: &Files, path: &[u8], part: &Part<'_>, how: &How) -> Result<(), Stopped> {
    let mut tries = 1;
    let theirs = loop {
        let asked = tokio::select! {
            () = how.interrupted.cancelled() => return Err(Stopped::Interrupted),
            asked = files.checksum(path, part.have) => asked,
        };
        match asked {
            Err(error) if tries < TRIES && is_passing(&error) => {
                tokio::time::sleep(PAUSE * 2_u32.pow(tries)).await;
                tries += 1;
            }
            asked => break asked?,
        }
    };
    compare(part.hash.clone(), part.have, theirs.bytes, &theirs.sha256)
}

/// # Errors
/// `CHECKSUM_MISMATCH`.
pub(super) fn compare(hash: Hash, have: u64, bytes: u64, sha256: &[u8]) -> Result<(), Stopped> {
    if bytes == have && hash.finish().as_ref() == sha256 {
        return Ok(());
    }
    let message =
        "what came is not what the agent has now: the file was changed while it was copied";
    Err(Error::new(reason::CHECKSUM_MISMATCH, message).into())
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
