//! The files of a container: one target, asked of one agent.
//!
//! What an agent answers comes in part from the pod, and an agent may be anybody's: names and paths are checked here before anyone sees
//! them, and every stream has its first and its last message or ends with an error.

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

/// Largest message that is accepted: a page of 10 000 entries with long names, or a part of a file.
const LARGEST_MESSAGE: usize = 8 * 1024 * 1024;
/// Longest path that Linux takes, in bytes, without the NUL behind it.
pub const LONGEST_PATH: usize = 4095;
/// Longest name that Linux takes, in bytes.
const LONGEST_NAME: usize = 255;
/// Entries of one page.
const PAGE: u32 = 5000;

/// The files of one container, as one user. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    agent: Agent,
    target: FileTarget,
}

/// A file that is being read.
#[derive(Debug)]
pub struct Reading {
    /// What it is.
    pub start: FilesReadStart,
    answers: Answers<FilesReadResponse>,
}

/// What comes next of a file.
#[derive(Debug)]
pub enum ReadEvent {
    /// Content.
    Data(Bytes),
    /// Something happened to a followed file.
    Change(FilesReadChange),
    /// Nothing follows.
    End(FilesReadEnd),
}

/// A tree that is being walked.
#[derive(Debug)]
pub struct Walking {
    /// Whose root.
    pub root: FileRoot,
    answers: Answers<FilesWalkResponse>,
}

/// What comes next of a tree.
#[derive(Debug)]
pub enum WalkEvent {
    /// Entries, whose paths are relative and have no `..`. The top itself has an empty one.
    Entries(Vec<FileEntry>),
    /// Nothing follows.
    End(FilesWalkEnd),
}

/// The messages of a stream, each of which has to come in time.
#[derive(Debug)]
struct Answers<T> {
    stream: Streaming<T>,
    agent: Agent,
    /// Between two messages.
    limit: Option<Duration>,
}

impl Agent {
    /// The files of one container of a pod of the agent's node.
    #[must_use]
    pub fn files(&self, target: FileTarget) -> Files {
        Files { agent: self.clone(), target }
    }
}

impl Files {
    /// Describes a file. `follow`: what a symbolic link leads to.
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

    /// One page of a directory, and what to ask for the next one with; empty: there is no more.
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

    /// Whether a directory has no entries.
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
                    // Each page ends beyond the one before, so that the pages end.
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

    /// Reads a file. The request's target is filled in. Without `follow` the request timeout is for each message.
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

    /// Walks a tree. `cross_mounts`: also what is mounted in it. The request timeout is for each message.
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

    /// The SHA-256 of the first `length` bytes of a file, 0 for all of it, computed by the agent. The request timeout is for
    /// each message.
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

    /// Writes a file. The start's target is filled in. The time that it takes is not limited: it depends on the content.
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
    /// What comes next. Nothing does after [`ReadEvent::End`].
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
    /// What comes next. Nothing does after [`WalkEvent::End`].
    ///
    /// # Errors
    /// As documented in `files.proto`, `CONNECTION_LOST`, and `PROTOCOL` for a path that leads elsewhere.
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
    /// The next message. `None`: the stream ended.
    async fn next(&mut self) -> Result<Option<T>, Error> {
        let next = async { Ok(self.stream.message().await?) };
        self.agent.within(self.limit, next).await
    }
}

/// Whether a file may have that name.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= LONGEST_NAME
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// Whether a path leads nowhere but down. The empty one stays where it is.
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
