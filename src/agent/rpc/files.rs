//! The service `Files`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::fs::FileType;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert,
    gate::{Answers, Call, Gate, hung_up},
    operation::{Operation, Subject},
};
use crate::{
    agent::{
        access::Method,
        audit::Notes,
        files::{
            Files, FilesTarget, Owner, Root, View,
            read::{self, Begin, Change, End, Event, Reader, Reading},
        },
        listen::bulk::{self, Bulk},
    },
    domain::{Error, Reason, Result, process::IdMap},
    proto::v1::{
        self, files_checksum_response as checksum, files_read_response as reading, files_server,
        files_walk_response as walking, files_write_request as writing,
    },
    sys::rooted::{
        self,
        entry::{DirEntry, Time},
    },
};

/// Entries of a page of a list, if the request does not say, and at most.
const PAGE: u32 = 1000;
const MAX_PAGE: u32 = 10_000;
/// Lines that a read may begin before the end.
const MAX_LINES: u32 = 1_000_000;
/// How often the progress of a checksum is told.
const PROGRESS: Duration = Duration::from_millis(100);

impl Bulk for v1::FilesReadResponse {
    const FIELD: u32 = 2;

    fn take(&mut self) -> Option<Bytes> {
        match self.event.take_if(|event| matches!(event, reading::Event::Data(_))) {
            Some(reading::Event::Data(data)) => Some(data),
            _ => None,
        }
    }
}

/// Implements [`Operation`] for a request about a file; `$more` are the parameters that only this
/// request has.
macro_rules! operation {
    ($request:ident, $method:ident, |$it:ident| $more:expr) => {
        impl Operation for v1::$request {
            const METHOD: Method = Method::$method;

            fn subject(&mut self) -> Subject<'_> {
                Subject::Files(&mut self.target)
            }

            fn parameters(&self) -> Vec<(&'static str, String)> {
                let $it = self;
                let mut parameters = vec![("path", rooted::show(&self.path))];
                if let Some(target) = &self.target {
                    let view = target.view().as_str_name().trim_start_matches("ROOT_VIEW_");
                    parameters.push(("container", target.container.clone()));
                    parameters.push(("view", view.to_ascii_lowercase()));
                    parameters.push(("as_root", target.as_root.to_string()));
                }
                parameters.extend($more);
                parameters
            }
        }
    };
}

operation!(FilesStatRequest, FilesStat, |_it| Vec::new());
operation!(FilesListRequest, FilesList, |it| vec![("after", rooted::show(&it.after))]);
operation!(FilesReadRequest, FilesRead, |it| {
    let lines = it.tail_lines.map(|lines| lines.to_string()).unwrap_or_default();
    vec![
        ("offset", it.offset.to_string()),
        ("length", it.length.to_string()),
        ("tail_lines", lines),
        ("follow", it.follow.to_string()),
    ]
});
operation!(FilesWalkRequest, FilesWalk, |it| {
    let depth = it.max_depth.map(|depth| depth.to_string()).unwrap_or_default();
    vec![("max_depth", depth), ("cross_mounts", it.cross_mounts.to_string())]
});
operation!(FilesChecksumRequest, FilesChecksum, |it| {
    vec![("offset", it.offset.to_string()), ("length", it.length.to_string())]
});
operation!(FilesWriteStart, FilesWrite, |it| {
    vec![("mode", format!("{:04o}", it.mode)), ("overwrite", it.overwrite.to_string())]
});

/// Serves `Files`.
#[derive(Debug)]
pub struct FilesService {
    /// Admits the calls.
    pub gate: Arc<Gate>,
    /// The files.
    pub files: Arc<Files>,
    /// Name of the node.
    pub node: String,
    /// Ends what has no end of its own.
    pub drain: CancellationToken,
}

#[tonic::async_trait]
impl files_server::Files for FilesService {
    type ReadStream = Answers<v1::FilesReadResponse>;
    type WalkStream = Answers<v1::FilesWalkResponse>;
    type ChecksumStream = Answers<v1::FilesChecksumResponse>;

    async fn stat(
        &self,
        request: Request<v1::FilesStatRequest>,
    ) -> Result<Response<v1::FilesStatResponse>, Status> {
        let act = |call: Call<v1::FilesStatRequest>| async move {
            let v1::FilesStatRequest { target, path, follow } = call.message;
            rooted::check_path("path", &path)?;
            let root = self.files.open(&call.caller.user.name, convert_target(target)?).await?;
            let entry = root.stat(path, follow).await?;
            let entry = Some(convert_entry(entry, &root.maps));
            Ok(v1::FilesStatResponse { root: Some(convert_root(&root, &self.node)), entry })
        };
        self.gate.unary(request, act).await
    }

    async fn list(
        &self,
        request: Request<v1::FilesListRequest>,
    ) -> Result<Response<v1::FilesListResponse>, Status> {
        let act = |call: Call<v1::FilesListRequest>| async move {
            let v1::FilesListRequest { target, path, page_size, after } = call.message;
            rooted::check_path("path", &path)?;
            let size = match page_size {
                0 => PAGE,
                size if size <= MAX_PAGE => size,
                size => {
                    return Err(Error::invalid(
                        "page_size",
                        format!("is {size}; at most {MAX_PAGE} are allowed"),
                    ));
                }
            };
            let root = self.files.open(&call.caller.user.name, convert_target(target)?).await?;
            let page = root.list(path, after, usize::try_from(size).unwrap_or_default()).await?;
            call.notes.add("entries", page.entries.len());
            let last = page.entries.last().filter(|_| page.more).map(|entry| entry.path.clone());
            Ok(v1::FilesListResponse {
                root: Some(convert_root(&root, &self.node)),
                entries: page
                    .entries
                    .into_iter()
                    .map(|entry| convert_entry(entry, &root.maps))
                    .collect(),
                next_after: last.unwrap_or_default(),
            })
        };
        self.gate.unary(request, act).await
    }

    async fn read(
        &self,
        request: Request<v1::FilesReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let (files, node, drain) = (Arc::clone(&self.files), self.node.clone(), self.drain.clone());
        let act = |call: Call<v1::FilesReadRequest>, answers| async move {
            let (target, reading) = convert_reading(call.message, files.limits().max_read_bytes)?;
            let root = files.open(&call.caller.user.name, target).await?;
            let follow = reading.follow;
            let reader = root.read(reading, call.memory).await?;
            tokio::select! {
                result = send_content(&root, reader, &node, &answers, &call.notes) => result,
                () = drain.cancelled(), if follow => {
                    Err(Error::new(Reason::Draining, "the agent is shutting down"))
                }
            }
        };
        Ok(bulk::response(self.gate.stream(request, act).await?.into_inner()))
    }

    async fn walk(
        &self,
        request: Request<v1::FilesWalkRequest>,
    ) -> Result<Response<Self::WalkStream>, Status> {
        let (files, node) = (Arc::clone(&self.files), self.node.clone());
        let act = |call: Call<v1::FilesWalkRequest>, answers| async move {
            let v1::FilesWalkRequest { target, path, max_depth, max_entries, cross_mounts } =
                call.message;
            rooted::check_path("path", &path)?;
            let most = files.limits().max_walk_entries;
            let most = if max_entries == 0 { most } else { max_entries.min(most) };
            let depth = max_depth.unwrap_or(u32::MAX).min(files.limits().max_walk_depth);
            let depth = usize::try_from(depth).unwrap_or_default();
            let root = files.open(&call.caller.user.name, convert_target(target)?).await?;
            let mut walk = root.walk(path, depth, cross_mounts).await?;
            let answer = |event| v1::FilesWalkResponse { event: Some(event) };
            send(&answers, answer(walking::Event::Start(convert_root(&root, &node)))).await?;
            let mut entries = 0;
            // One more than may be sent says that there are more.
            let mut next = walk.next(most.saturating_add(1)).await?;
            let mut truncated = false;
            while let Some(mut found) = next {
                let left = usize::try_from(most.saturating_sub(entries)).unwrap_or(usize::MAX);
                truncated = found.len() > left;
                found.truncate(left);
                entries = entries.saturating_add(found.len() as u64);
                call.notes.add("entries", entries);
                let found =
                    found.into_iter().map(|entry| convert_entry(entry, &root.maps)).collect();
                let sending = send(
                    &answers,
                    answer(walking::Event::Entries(v1::FileEntries { entries: found })),
                );
                if truncated {
                    sending.await?;
                    break;
                }
                ((), next) = tokio::try_join!(
                    sending,
                    walk.next(most.saturating_sub(entries).saturating_add(1))
                )?;
            }
            let end = v1::FilesWalkEnd { entries, truncated };
            send(&answers, answer(walking::Event::End(end))).await
        };
        self.gate.stream(request, act).await
    }

    async fn checksum(
        &self,
        request: Request<v1::FilesChecksumRequest>,
    ) -> Result<Response<Self::ChecksumStream>, Status> {
        let (files, node) = (Arc::clone(&self.files), self.node.clone());
        let act = |call: Call<v1::FilesChecksumRequest>, answers| async move {
            let v1::FilesChecksumRequest { target, path, offset, length } = call.message;
            rooted::check_path("path", &path)?;
            let limit = files.limits().max_read_bytes;
            let offset = not_negative("offset", offset)?;
            let length = match not_negative("length", length)? {
                0 => limit,
                length => length.min(limit),
            };
            let root = files.open(&call.caller.user.name, convert_target(target)?).await?;
            let mut sum = root.checksum(path, offset, length).await?;
            let mut told = Instant::now();
            let sha256 = loop {
                if let Some(sha256) = sum.next().await? {
                    break sha256;
                }
                if told.elapsed() >= PROGRESS {
                    let event = Some(checksum::Event::ProgressBytes(sum.bytes));
                    send(&answers, v1::FilesChecksumResponse { event }).await?;
                    told = Instant::now();
                }
            };
            call.notes.add("bytes", sum.bytes);
            let done = v1::FilesChecksumDone {
                root: Some(convert_root(&root, &node)),
                entry: Some(convert_entry(sum.entry.clone(), &root.maps)),
                bytes: sum.bytes,
                sha256,
            };
            send(&answers, v1::FilesChecksumResponse { event: Some(checksum::Event::Done(done)) })
                .await
        };
        self.gate.stream(request, act).await
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::FilesWriteRequest>>,
    ) -> Result<Response<v1::FilesWriteResponse>, Status> {
        // Who calls, and whether they may, is asked about the first message; how long it may take
        // is the transport's to say.
        let (metadata, extensions, mut content) = request.into_parts();
        let start = match content.message().await?.and_then(|message| message.event) {
            Some(writing::Event::Start(start)) => start,
            _ => return Err(Status::invalid_argument("the first message is not `start`")),
        };
        let act = |call: Call<v1::FilesWriteStart>| async move {
            let v1::FilesWriteStart { target, path, mode, overwrite, sha256 } = call.message;
            let limits = self.files.limits();
            if !limits.allow_file_writes {
                let message =
                    "this agent writes no files; it is to be started with --allow-file-writes";
                return Err(Error::new(Reason::WritesDisabled, message));
            }
            rooted::check_path("path", &path)?;
            let mode = match mode {
                0 => 0o600,
                mode if mode <= 0o777 => mode,
                mode => {
                    return Err(Error::invalid(
                        "mode",
                        format!("is {mode:#o}; at most 0777 is allowed"),
                    ));
                }
            };
            if !matches!(sha256.len(), 0 | 32) {
                return Err(Error::invalid(
                    "sha256",
                    format!("is {} bytes long, not 32", sha256.len()),
                ));
            }
            let root = self.files.open(&call.caller.user.name, convert_target(target)?).await?;
            let mut writer = root.create(path, mode, limits.max_write_bytes).await?;
            let mut bytes = 0_u64;
            // A stream that breaks off is not a file that ends.
            let broken = |status: Status| Error::new(Reason::PeerGone, status.message());
            while let Some(message) = content.message().await.map_err(broken)? {
                let Some(writing::Event::Data(data)) = message.event else {
                    return Err(Error::invalid("data", "is required after the first message"));
                };
                bytes = bytes.saturating_add(data.len() as u64);
                writer.write(data).await?;
                call.notes.add("bytes", bytes);
            }
            let entry = writer.complete(overwrite, &sha256).await?;
            let entry = Some(convert_entry(entry, &root.maps));
            Ok(v1::FilesWriteResponse { root: Some(convert_root(&root, &self.node)), entry })
        };
        self.gate.unary(Request::from_parts(metadata, extensions, start), act).await
    }
}

async fn send<A>(answers: &mpsc::Sender<A>, answer: A) -> Result<()> {
    answers.send(answer).await.map_err(|_| hung_up())
}

/// Sends the content of a file: while one part is on its way the next one is read.
async fn send_content(
    root: &Root,
    mut reader: Reader<'_>,
    node: &str,
    answers: &mpsc::Sender<v1::FilesReadResponse>,
    notes: &Notes,
) -> Result<()> {
    let answer = |event| v1::FilesReadResponse { event: Some(event) };
    let start = v1::FilesReadStart {
        root: Some(convert_root(root, node)),
        version: read::version(&reader.entry),
        entry: Some(convert_entry(reader.entry.clone(), &root.maps)),
        offset: reader.offset,
    };
    send(answers, answer(reading::Event::Start(start))).await?;
    let mut next = reader.next().await?;
    while let Some(events) = next {
        let bytes = reader.bytes;
        notes.add("bytes", bytes);
        let sending = async {
            for event in events {
                send(answers, answer(convert_event(event, bytes))).await?;
            }
            Ok(())
        };
        ((), next) = tokio::try_join!(sending, reader.next())?;
    }
    Ok(())
}

fn convert_event(event: Event, bytes: u64) -> reading::Event {
    match event {
        Event::Data(data) => reading::Event::Data(data),
        Event::Change(change, offset) => {
            let change = match change {
                Change::Truncated => v1::FileChange::Truncated,
                Change::Replaced => v1::FileChange::Replaced,
                Change::Missing => v1::FileChange::Missing,
            };
            reading::Event::Change(v1::FilesReadChange { change: change.into(), offset })
        }
        Event::End(end) => {
            let reason = match end {
                End::EndOfFile => v1::ReadEnd::EndOfFile,
                End::Length => v1::ReadEnd::Length,
                End::Limit => v1::ReadEnd::Limit,
                End::ContainerEnded => v1::ReadEnd::ContainerEnded,
            };
            reading::Event::End(v1::FilesReadEnd { reason: reason.into(), bytes })
        }
    }
}

fn convert_target(target: Option<v1::FileTarget>) -> Result<FilesTarget> {
    let target = target.ok_or_else(|| Error::invalid("target", "is required"))?;
    let (namespace, pod, pod_uid) = convert::pod_ref(target.pod.as_ref())?;
    let view = match v1::RootView::try_from(target.view) {
        Ok(v1::RootView::Unspecified | v1::RootView::Container) => View::Container,
        Ok(v1::RootView::Proc1Root) => View::Proc1Root,
        Err(_) => {
            return Err(Error::invalid("target.view", format!("{} is no RootView", target.view)));
        }
    };
    if !target.container.is_empty() {
        crate::domain::name::label("target.container", &target.container)?;
    }
    Ok(FilesTarget {
        namespace,
        pod,
        pod_uid,
        container: target.container,
        view,
        as_root: target.as_root,
    })
}

fn convert_reading(request: v1::FilesReadRequest, limit: u64) -> Result<(FilesTarget, Reading)> {
    let v1::FilesReadRequest { target, path, offset, length, tail_lines, follow, if_version } =
        request;
    rooted::check_path("path", &path)?;
    let begin = match tail_lines {
        Some(_) if offset != 0 => {
            return Err(Error::invalid("offset", "may not be set together with tail_lines"));
        }
        Some(lines) if lines > MAX_LINES => {
            return Err(Error::invalid(
                "tail_lines",
                format!("is {lines}; at most {MAX_LINES} are allowed"),
            ));
        }
        Some(lines) => Begin::Lines(lines),
        None if offset < 0 => Begin::End(offset.unsigned_abs()),
        None => Begin::Start(offset.unsigned_abs()),
    };
    let length = Some(not_negative("length", length)?).filter(|length| *length > 0);
    let reading = Reading { path, begin, length, limit, follow, version: if_version };
    Ok((convert_target(target)?, reading))
}

fn not_negative(field: &str, number: i64) -> Result<u64> {
    u64::try_from(number)
        .map_err(|_| Error::invalid(field, format!("is {number}, which is negative")))
}

fn convert_root(root: &Root, node: &str) -> v1::FileRoot {
    let container =
        |name: &str, process| Some(convert::identity(&root.pod, name, Some(process), node));
    let (owner, owner_container) = match &root.owner {
        Owner::Container(name, process) => (v1::RootOwner::Container, container(name, process)),
        Owner::Sandbox(_) => (v1::RootOwner::Sandbox, None),
        Owner::Host => (v1::RootOwner::Host, None),
    };
    v1::FileRoot {
        container: container(&root.container, &root.process),
        owner: owner.into(),
        owner_container,
        uid: root.identity.uid,
        gid: root.identity.gid,
    }
}

fn convert_entry(entry: DirEntry, (users, groups): &(IdMap, IdMap)) -> v1::FileEntry {
    let kind = match entry.kind {
        Some(FileType::RegularFile) => v1::FileType::Regular,
        Some(FileType::Directory) => v1::FileType::Directory,
        Some(FileType::Symlink) => v1::FileType::Symlink,
        Some(FileType::Fifo) => v1::FileType::Fifo,
        Some(FileType::Socket) => v1::FileType::Socket,
        Some(FileType::CharacterDevice) => v1::FileType::CharacterDevice,
        Some(FileType::BlockDevice) => v1::FileType::BlockDevice,
        _ => v1::FileType::Unspecified,
    };
    // Nothing is known but that it is there.
    let known = entry.links != 0 || entry.inode != 0;
    let time = |time: Time| prost_types::Timestamp {
        seconds: time.seconds,
        nanos: i32::try_from(time.nanos).unwrap_or_default(),
    };
    v1::FileEntry {
        path: entry.path,
        r#type: kind.into(),
        mode: entry.mode,
        size: entry.size,
        blocks: entry.blocks,
        uid: if known { users.inside(entry.uid) } else { 0 },
        gid: if known { groups.inside(entry.gid) } else { 0 },
        links: entry.links,
        inode: entry.inode,
        device: entry.device,
        device_major: entry.device_file.0,
        device_minor: entry.device_file.1,
        accessed_at: known.then(|| time(entry.accessed_at)),
        modified_at: known.then(|| time(entry.modified_at)),
        changed_at: known.then(|| time(entry.changed_at)),
        created_at: entry.created_at.map(time),
        link_target: entry.link_target,
        mount_point: entry.mount_point,
        file_system: entry.file_system,
        reason: entry.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
    }
}
