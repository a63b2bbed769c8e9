//! The files of a container, read and written through one agent.
//!
//! Part of an agent's answer comes from the pod, and the agent itself may be malicious. This module
//! therefore checks names and paths before it returns them. It also checks that every stream has
//! its first and its last message; a stream that lacks one ends with an error.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tonic::Streaming;

use super::{agent::Agent, credentials::Authenticated, error::Error, reason::Reason};
use crate::proto::v1::{
    FileEntry, FileRoot, FileTarget, FilesChecksumDone, FilesChecksumRequest, FilesListRequest,
    FilesListResponse, FilesReadChange, FilesReadEnd, FilesReadRequest, FilesReadResponse,
    FilesReadStart, FilesStatRequest, FilesStatResponse, FilesWalkEnd, FilesWalkRequest,
    FilesWalkResponse, FilesWriteRequest, FilesWriteResponse, FilesWriteStart,
    files_checksum_response, files_client::FilesClient, files_read_response, files_walk_response,
    files_write_request,
};

/// Largest message accepted from an agent, in bytes: it holds a page of 10 000 entries with long
/// names, or a part of a file.
const LARGEST_MESSAGE: usize = 8 * 1024 * 1024;
/// Longest path that Linux accepts, in bytes, without the terminating NUL (PATH_MAX is 4096).
pub const LONGEST_PATH: usize = 4095;
/// Longest name that Linux accepts, in bytes (NAME_MAX).
const LONGEST_NAME: usize = 255;
/// Entries requested for one page of a directory.
const PAGE: u32 = 5000;

/// The files of one container, accessed as one user. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    agent: Agent,
    target: FileTarget,
}

/// A file that is being read.
#[derive(Debug)]
pub struct Reading {
    /// The file's root, metadata and first offset.
    pub start: FilesReadStart,
    answers: Answers<FilesReadResponse>,
}

/// What an agent sends while it reads a file.
#[derive(Debug)]
pub enum ReadEvent {
    /// The next part of the content.
    Data(Bytes),
    /// A followed file was truncated, replaced or otherwise changed.
    Change(FilesReadChange),
    /// The end of the file. Nothing follows.
    End(FilesReadEnd),
}

/// A tree that is being walked.
#[derive(Debug)]
pub struct Walking {
    /// The root that the paths belong to.
    pub root: FileRoot,
    answers: Answers<FilesWalkResponse>,
}

/// What an agent sends while it walks a tree.
#[derive(Debug)]
pub enum WalkEvent {
    /// Entries with relative paths that contain no `..`. The top of the tree has an empty path.
    Entries(Vec<FileEntry>),
    /// The end of the tree. Nothing follows.
    End(FilesWalkEnd),
}

/// The messages of a stream, each with a time limit.
#[derive(Debug)]
struct Answers<T> {
    stream: Streaming<T>,
    agent: Agent,
    /// The longest wait for one message. `None` means no limit.
    limit: Option<Duration>,
}

impl Agent {
    /// Addresses the files of one container of a pod on the agent's node. Sends nothing yet.
    #[must_use]
    pub fn files(&self, target: FileTarget) -> Files {
        Files { agent: self.clone(), target }
    }
}

impl Files {
    /// Describes a file. With `follow`, describes the target of a symbolic link.
    ///
    /// # Errors
    /// As documented in `files.proto`.
    pub async fn stat(&self, path: &[u8], follow: bool) -> Result<(FileRoot, FileEntry), Error> {
        let request =
            FilesStatRequest { target: Some(self.target.clone()), path: path.to_vec(), follow };
        let mut client = self.client();
        self.agent
            .answered(async move {
                let FilesStatResponse { root, entry } = client.stat(request).await?.into_inner();
                Ok((root.ok_or_else(|| lacks("root"))?, entry.ok_or_else(|| lacks("entry"))?))
            })
            .await
    }

    /// Lists one page of a directory. The last value is the `after` of the next page; it is empty
    /// on the last page.
    ///
    /// # Errors
    /// As documented in `files.proto`, and `PROTOCOL` for names that are none or are out of order.
    pub async fn list(
        &self,
        path: &[u8],
        after: Vec<u8>,
    ) -> Result<(FileRoot, Vec<FileEntry>, Vec<u8>), Error> {
        self.page(path, after, PAGE).await
    }

    /// Reports whether a directory has no entries.
    ///
    /// # Errors
    /// Those of [`Files::list`].
    pub async fn is_empty(&self, path: &[u8]) -> Result<bool, Error> {
        self.page(path, Vec::new(), 1).await.map(|(_, entries, _)| entries.is_empty())
    }

    async fn page(
        &self,
        path: &[u8],
        after: Vec<u8>,
        page_size: u32,
    ) -> Result<(FileRoot, Vec<FileEntry>, Vec<u8>), Error> {
        let request = FilesListRequest {
            target: Some(self.target.clone()),
            path: path.to_vec(),
            page_size,
            after: after.clone(),
        };
        let mut client = self.client();
        self.agent
            .answered(async move {
                let FilesListResponse { root, entries, next_after } =
                    client.list(request).await?.into_inner();
                let mut last = after.as_slice();
                for entry in &entries {
                    if !is_name(&entry.path) {
                        return Err(absurd("a name that is none", &entry.path));
                    }
                    // Each page must end beyond the one before, so that paging ends.
                    if entry.path.as_slice() <= last {
                        return Err(absurd("names out of order", &entry.path));
                    }
                    last = &entry.path;
                }
                if !next_after.is_empty() && (entries.is_empty() || next_after.as_slice() < last) {
                    return Err(absurd("a page that leads nowhere", &next_after));
                }
                Ok((root.ok_or_else(|| lacks("root"))?, entries, next_after))
            })
            .await
    }

    /// Reads a file. Fills in the request's target. The request timeout limits the wait for each
    /// message; a followed file has no limit.
    ///
    /// # Errors
    /// As documented in `files.proto`.
    pub async fn read(&self, request: FilesReadRequest) -> Result<Reading, Error> {
        let follow = request.follow;
        let request = FilesReadRequest { target: Some(self.target.clone()), ..request };
        let mut client = self.client();
        let stream = self
            .agent
            .answered(async move { Ok(client.read(request).await?.into_inner()) })
            .await?;
        let mut answers = self.answers(stream);
        let first = answers.next().await?.and_then(|answer| answer.event);
        let Some(files_read_response::Event::Start(start)) = first else {
            return Err(Error::new(Reason::Protocol, "the agent did not begin with what it reads"));
        };
        if follow {
            answers.limit = None;
        }
        Ok(Reading { start, answers })
    }

    /// Walks a tree. With `cross_mounts`, enters mount points too. The request timeout limits the
    /// wait for each message.
    ///
    /// # Errors
    /// As documented in `files.proto`.
    pub async fn walk(
        &self,
        path: &[u8],
        max_depth: Option<u32>,
        cross_mounts: bool,
    ) -> Result<Walking, Error> {
        let request = FilesWalkRequest {
            target: Some(self.target.clone()),
            path: path.to_vec(),
            max_depth,
            max_entries: 0,
            cross_mounts,
        };
        let mut client = self.client();
        let stream = self
            .agent
            .answered(async move { Ok(client.walk(request).await?.into_inner()) })
            .await?;
        let mut answers = self.answers(stream);
        let first = answers.next().await?.and_then(|answer| answer.event);
        let Some(files_walk_response::Event::Start(root)) = first else {
            return Err(Error::new(
                Reason::Protocol,
                "the agent did not begin with whose files it walks",
            ));
        };
        Ok(Walking { root, answers })
    }

    /// Lets the agent compute the SHA-256 of the first `length` bytes of a file; 0 means all of it.
    /// The request timeout limits the wait for each message.
    ///
    /// # Errors
    /// As documented in `files.proto`, and `PROTOCOL` for a checksum that is not 32 bytes.
    pub async fn checksum(&self, path: &[u8], length: u64) -> Result<FilesChecksumDone, Error> {
        let request = FilesChecksumRequest {
            target: Some(self.target.clone()),
            path: path.to_vec(),
            offset: 0,
            length: i64::try_from(length).unwrap_or(i64::MAX),
        };
        let mut client = self.client();
        let stream = self
            .agent
            .answered(async move { Ok(client.checksum(request).await?.into_inner()) })
            .await?;
        let mut answers = self.answers(stream);
        loop {
            match answers.next().await?.and_then(|answer| answer.event) {
                Some(files_checksum_response::Event::ProgressBytes(_)) => {}
                Some(files_checksum_response::Event::Done(done)) if done.sha256.len() == 32 => {
                    return Ok(done);
                }
                Some(files_checksum_response::Event::Done(_)) | None => {
                    return Err(Error::new(Reason::Protocol, "the agent ended without a checksum"));
                }
            }
        }
    }

    /// Writes a file. Fills in the target of `start`. There is no time limit, because the time
    /// depends on the content.
    ///
    /// # Errors
    /// As documented in `files.proto`.
    pub async fn write(
        &self,
        start: FilesWriteStart,
        content: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<FilesWriteResponse, Error> {
        use futures::StreamExt;
        let start = FilesWriteStart { target: Some(self.target.clone()), ..start };
        let message = |event| FilesWriteRequest { event: Some(event) };
        let first = message(files_write_request::Event::Start(start));
        let rest = content.map(move |part| message(files_write_request::Event::Data(part)));
        let messages = futures::stream::iter([first]).chain(rest);
        let answer =
            self.client().write(messages).await.map_err(|status| self.agent.explain(status.into()));
        Ok(answer?.into_inner())
    }

    fn client(&self) -> FilesClient<Authenticated> {
        FilesClient::new(self.agent.channel()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    fn answers<T>(&self, stream: Streaming<T>) -> Answers<T> {
        Answers { stream, agent: self.agent.clone(), limit: self.agent.request_timeout() }
    }
}

impl Reading {
    /// Waits for the next event. Nothing follows [`ReadEvent::End`].
    ///
    /// # Errors
    /// As documented in `files.proto`, and `CONNECTION_LOST`.
    pub async fn next(&mut self) -> Result<ReadEvent, Error> {
        match self.answers.next().await?.and_then(|answer| answer.event) {
            Some(files_read_response::Event::Data(data)) => Ok(ReadEvent::Data(data)),
            Some(files_read_response::Event::Change(change)) => Ok(ReadEvent::Change(change)),
            Some(files_read_response::Event::End(end)) => Ok(ReadEvent::End(end)),
            Some(files_read_response::Event::Start(_)) => {
                Err(Error::new(Reason::Protocol, "the agent began a file twice"))
            }
            None => Err(Error::new(
                Reason::ConnectionLost,
                "the agent stopped in the middle of the file",
            )),
        }
    }
}

impl Walking {
    /// Waits for the next event. Nothing follows [`WalkEvent::End`].
    ///
    /// # Errors
    /// As documented in `files.proto`, `CONNECTION_LOST`, and `PROTOCOL` for a path
    /// that leads elsewhere.
    pub async fn next(&mut self) -> Result<WalkEvent, Error> {
        match self.answers.next().await?.and_then(|answer| answer.event) {
            Some(files_walk_response::Event::Entries(entries)) => {
                match entries.entries.iter().find(|entry| !is_path_below(&entry.path)) {
                    Some(entry) => Err(absurd("a path that leads out of the tree", &entry.path)),
                    None => Ok(WalkEvent::Entries(entries.entries)),
                }
            }
            Some(files_walk_response::Event::End(end)) => Ok(WalkEvent::End(end)),
            Some(files_walk_response::Event::Start(_)) => {
                Err(Error::new(Reason::Protocol, "the agent began a tree twice"))
            }
            None => Err(Error::new(
                Reason::ConnectionLost,
                "the agent stopped in the middle of the tree",
            )),
        }
    }
}

impl<T> Answers<T> {
    /// Waits for the next message. Returns `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<T>, Error> {
        let next = async { Ok(self.stream.message().await?) };
        self.agent.within(self.limit, next).await
    }
}

/// Reports whether Linux allows this file name.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= LONGEST_NAME
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// Reports whether a relative path stays below its start. The empty path is the start itself.
fn is_path_below(path: &[u8]) -> bool {
    path.is_empty() || (path.len() <= LONGEST_PATH && path.split(|b| *b == b'/').all(is_name))
}

fn lacks(what: &str) -> Error {
    Error::new(Reason::Protocol, format!("the agent's answer lacks {what}"))
}

fn absurd(what: &str, name: &[u8]) -> Error {
    let name: String = String::from_utf8_lossy(name).chars().take(100).collect();
    Error::new(Reason::Protocol, format!("the agent sent {what}: {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_down_only() {
        for good in ["", "a", "a/b", "...", "a/..b", " ", "\n", "-", "~"] {
            assert!(is_path_below(good.as_bytes()), "{good:?}");
        }
        let (long, deep) = ("a".repeat(256), "a/".repeat(2047) + "ab");
        for bad in [
            ".",
            "..",
            "/",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/..",
            "a/../../b",
            "a/./b",
            "./a",
            "a\0b",
            &long,
            &deep,
        ] {
            assert!(!is_path_below(bad.as_bytes()), "{bad:?}");
        }
        assert!(is_path_below(&deep.as_bytes()[1..][1..]));
    }
}
