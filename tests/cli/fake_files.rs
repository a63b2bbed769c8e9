//! The fake agent's files: those of real directories, one for each pod, and what a hostile agent would say.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{Read, Seek, SeekFrom},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use futures::{StreamExt, stream};
use podsonde::proto::v1::{files_server, *};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::fake_agent::{Answers, FakeAgent, failure};

/// What the fake agent has and how it behaves.
#[derive(Clone, Default)]
pub(crate) struct FakeFiles(Arc<Mutex<State>>);

#[derive(Default)]
pub(crate) struct State {
    /// Directories by pod.
    pub(crate) roots: HashMap<String, PathBuf>,
    /// By pod: entries that a walk consists of, whatever there is.
    pub(crate) walks: HashMap<String, Vec<FileEntry>>,
    /// By pod: pages that a list consists of.
    pub(crate) pages: HashMap<String, Vec<FilesListResponse>>,
    /// The next read breaks off after so many bytes.
    pub(crate) cut_after: Option<usize>,
    /// The next read stops to send after so many bytes.
    pub(crate) stall_after: Option<usize>,
    /// One read sends at most so many bytes.
    pub(crate) limit: Option<usize>,
    /// The size that reads announce, whatever is sent.
    pub(crate) announced: Option<u64>,
    /// Most entries of a page.
    pub(crate) page: Option<usize>,
    /// Checksums are wrong.
    pub(crate) lies: bool,
    /// Files may be written.
    pub(crate) writable: bool,
    /// The reads that were asked for.
    pub(crate) reads: Vec<FilesReadRequest>,
    /// How many checksums were asked for.
    pub(crate) checksums: usize,
    /// The last target.
    pub(crate) target: Option<FileTarget>,
}

impl FakeFiles {
    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The file of the request on this machine, and whose root it is.
    fn resolve(
        &self,
        target: Option<FileTarget>,
        path: &[u8],
    ) -> Result<(PathBuf, FileRoot, String), Status> {
        let target = target.unwrap();
        let pod = target.pod.clone().unwrap();
        let mut state = self.state();
        state.target = Some(target.clone());
        if target.container == "gone" {
            let message = "container gone does not run";
            return Err(failure(Code::FailedPrecondition, "CONTAINER_NOT_RUNNING", message, &[]));
        }
        let known = [state.walks.contains_key(&pod.name), state.pages.contains_key(&pod.name)];
        let root = match state.roots.get(&pod.name) {
            Some(root) => root.clone(),
            None if known.contains(&true) => PathBuf::from("/nowhere"),
            None => {
                let message = format!("there is no pod {}/{} on node n1", pod.namespace, pod.name);
                return Err(failure(Code::NotFound, "POD_NOT_FOUND", &message, &[]));
            }
        };
        let container = if target.container.is_empty() { "app" } else { &target.container };
        let identity = ContainerIdentity {
            node: "n1".into(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            pod_uid: "u1".into(),
            container: container.into(),
            container_id: "containerd://abc".into(),
            ..ContainerIdentity::default()
        };
        let whose = FileRoot {
            container: Some(identity.clone()),
            owner: RootOwner::Container.into(),
            owner_container: Some(identity),
            uid: 1000,
            gid: 1000,
        };
        if path.starts_with(b"/proc/") {
            return Err(failure(Code::PermissionDenied, "PATH_REFUSED", "it is on a procfs", &[]));
        }
        if path == b"/secret" && !target.as_root {
            return Err(failure(
                Code::PermissionDenied,
                "FILE_PERMISSION",
                "Permission denied",
                &[],
            ));
        }
        if path == b"/forbidden" {
            let message = "jane may not create pods/exec in namespace default";
            let facts = [("field", "create pods/exec")];
            return Err(failure(Code::PermissionDenied, "FORBIDDEN", message, &facts));
        }
        let relative =
            path.iter().position(|b| *b != b'/').map_or(b"".as_slice(), |at| &path[at..]);
        // Trailing slashes mean what they lead to.
        Ok((root.join(OsStr::from_bytes(relative)), whose, pod.name))
    }
}

fn errno(error: std::io::Error) -> Status {
    match error.raw_os_error() {
        Some(2) => failure(Code::NotFound, "PATH_NOT_FOUND", "No such file or directory", &[]),
        Some(20) => failure(Code::FailedPrecondition, "NOT_A_DIRECTORY", "Not a directory", &[]),
        Some(40) => failure(
            Code::FailedPrecondition,
            "TOO_MANY_LINKS",
            "Too many levels of symbolic links",
            &[],
        ),
        _ => failure(Code::PermissionDenied, "FILE_PERMISSION", &error.to_string(), &[]),
    }
}

pub(crate) fn entry(path: &Path, name: &[u8], follow: bool) -> Result<FileEntry, Status> {
    let found = if follow { path.metadata() } else { path.symlink_metadata() }.map_err(errno)?;
    let kind = found.file_type();
    let time = |seconds, nanos: i64| {
        Some(prost_types::Timestamp { seconds, nanos: i32::try_from(nanos).unwrap() })
    };
    let created = found.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let (major, minor) = (nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()));
    let number = |number: u64| u32::try_from(number).unwrap();
    Ok(FileEntry {
        path: name.to_vec(),
        r#type: if kind.is_file() {
            FileType::Regular
        } else if kind.is_dir() {
            FileType::Directory
        } else if kind.is_symlink() {
            FileType::Symlink
        } else if kind.is_fifo() {
            FileType::Fifo
        } else if kind.is_socket() {
            FileType::Socket
        } else if kind.is_char_device() {
            FileType::CharacterDevice
        } else {
            FileType::BlockDevice
        }
        .into(),
        mode: found.permissions().mode() & 0o7777,
        size: found.size(),
        blocks: found.blocks(),
        uid: found.uid(),
        gid: found.gid(),
        links: number(found.nlink()),
        inode: found.ino(),
        device: found.dev(),
        device_major: if kind.is_file() { 0 } else { number(major) },
        device_minor: if kind.is_file() { 0 } else { number(minor) },
        accessed_at: time(found.atime(), found.atime_nsec()),
        modified_at: time(found.mtime(), found.mtime_nsec()),
        changed_at: time(found.ctime(), found.ctime_nsec()),
        created_at: created
            .and_then(|at| time(i64::try_from(at.as_secs()).unwrap(), at.subsec_nanos().into())),
        link_target: if kind.is_symlink() {
            path.read_link().unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        },
        file_system: "overlay".into(),
        ..FileEntry::default()
    })
}

fn version(entry: &FileEntry) -> Vec<u8> {
    format!("{}-{}-{:?}", entry.inode, entry.size, entry.modified_at).into_bytes()
}

/// The entries below, a directory before what is in it, in the file system's order.
fn walk(directory: &Path, below: &[u8], depth: u32, found: &mut Vec<FileEntry>) {
    if depth == 0 {
        return;
    }
    for child in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = child.file_name();
        let path = if below.is_empty() {
            name.as_bytes().to_vec()
        } else {
            [below, b"/", name.as_bytes()].concat()
        };
        let entry = entry(&child.path(), &path, false).unwrap();
        let is_directory = entry.r#type() == FileType::Directory;
        found.push(entry);
        if is_directory {
            walk(&child.path(), &path, depth - 1, found);
        }
    }
}

#[tonic::async_trait]
impl files_server::Files for FakeAgent {
    async fn stat(
        &self,
        request: Request<FilesStatRequest>,
    ) -> Result<Response<FilesStatResponse>, Status> {
        let request = request.into_inner();
        let (path, root, pod) = self.files.resolve(request.target, &request.path)?;
        let canned = self.files.state().walks.contains_key(&pod);
        let entry = match canned {
            true => FileEntry { r#type: FileType::Directory.into(), ..FileEntry::default() },
            false => entry(&path, &request.path, request.follow)?,
        };
        Ok(Response::new(FilesStatResponse { root: Some(root), entry: Some(entry) }))
    }

    async fn list(
        &self,
        request: Request<FilesListRequest>,
    ) -> Result<Response<FilesListResponse>, Status> {
        let request = request.into_inner();
        let (path, root, pod) = self.files.resolve(request.target, &request.path)?;
        let mut state = self.files.state();
        if let Some(pages) = state.pages.get_mut(&pod) {
            return Ok(Response::new(FilesListResponse { root: Some(root), ..pages.remove(0) }));
        }
        let mut names: Vec<_> = std::fs::read_dir(&path)
            .map_err(errno)?
            .map(|child| child.unwrap().file_name())
            .collect();
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        names.retain(|name| name.as_bytes() > request.after.as_slice());
        let size =
            usize::try_from(request.page_size).unwrap().min(state.page.unwrap_or(usize::MAX));
        let more = names.len() > size;
        names.truncate(size);
        let entries: Vec<_> = names
            .iter()
            .map(|name| entry(&path.join(name), name.as_bytes(), false))
            .collect::<Result<_, _>>()?;
        let next_after = if more { names.last().unwrap().as_bytes().to_vec() } else { Vec::new() };
        Ok(Response::new(FilesListResponse { root: Some(root), entries, next_after }))
    }

    type ReadStream = Answers<FilesReadResponse>;

    async fn read(
        &self,
        request: Request<FilesReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let (path, root, _) = self.files.resolve(request.target.clone(), &request.path)?;
        let (cut, stall, limit) = {
            let mut state = self.files.state();
            state.reads.push(request.clone());
            (state.cut_after.take(), state.stall_after.take(), state.limit)
        };
        let mut entry = entry(&path, &request.path, true)?;
        match entry.r#type() {
            FileType::Regular => {}
            FileType::Directory => {
                return Err(failure(Code::FailedPrecondition, "NOT_A_FILE", "Is a directory", &[]));
            }
            _ => {
                return Err(failure(
                    Code::FailedPrecondition,
                    "NOT_A_FILE",
                    "it is not a regular file",
                    &[],
                ));
            }
        }
        let version = version(&entry);
        if !request.if_version.is_empty() && request.if_version != version {
            return Err(failure(Code::Aborted, "FILE_CHANGED", "the file is another one now", &[]));
        }
        entry.size = self.files.state().announced.unwrap_or(entry.size);
        let content = std::fs::read(&path).map_err(errno)?;
        let size = content.len();
        let offset = match (request.tail_lines, request.offset) {
            (Some(0), _) => size,
            (Some(lines), _) => {
                let body = content.strip_suffix(b"\n").unwrap_or(&content);
                let mut starts = body
                    .iter()
                    .enumerate()
                    .rev()
                    .filter(|(_, b)| **b == b'\n')
                    .map(|(at, _)| at + 1);
                starts.nth(usize::try_from(lines - 1).unwrap()).unwrap_or(0)
            }
            (None, offset @ 0..) => usize::try_from(offset).unwrap().min(size),
            (None, offset) => size.saturating_sub(usize::try_from(offset.unsigned_abs()).unwrap()),
        };
        let mut end = size;
        let mut reason = ReadEnd::EndOfFile;
        if request.length > 0 && size - offset > usize::try_from(request.length).unwrap() {
            (end, reason) = (offset + usize::try_from(request.length).unwrap(), ReadEnd::Length);
        }
        if let Some(limit) = limit.filter(|limit| end - offset > *limit) {
            (end, reason) = (offset + limit, ReadEnd::Limit);
        }
        let answer = |event| Ok(FilesReadResponse { event: Some(event) });
        use files_read_response::Event;
        let start =
            FilesReadStart { root: Some(root), entry: Some(entry), offset: offset as u64, version };
        let mut data = &content[offset..end];
        if let Some(short) = cut.or(stall) {
            data = &data[..short.min(data.len())];
        }
        let parts: Vec<_> = data
            .chunks(64 * 1024)
            .map(|part| answer(Event::Data(bytes::Bytes::copy_from_slice(part))))
            .collect();
        let begun = stream::iter([answer(Event::Start(start))]).chain(stream::iter(parts));
        if cut.is_some() {
            return Ok(Response::new(
                begun
                    .chain(stream::iter([Err(Status::unavailable("the connection broke"))]))
                    .boxed(),
            ));
        }
        if stall.is_some() {
            return Ok(Response::new(begun.chain(stream::pending()).boxed()));
        }
        if request.follow {
            let (sender, receiver) = mpsc::channel(16);
            tokio::spawn(follow(path, end as u64, sender));
            return Ok(Response::new(begun.chain(ReceiverStream::new(receiver)).boxed()));
        }
        let end = FilesReadEnd { reason: reason.into(), bytes: (end - offset) as u64 };
        Ok(Response::new(begun.chain(stream::iter([answer(Event::End(end))])).boxed()))
    }

    type WalkStream = Answers<FilesWalkResponse>;

    async fn walk(
        &self,
        request: Request<FilesWalkRequest>,
    ) -> Result<Response<Self::WalkStream>, Status> {
        let request = request.into_inner();
        let (path, root, pod) = self.files.resolve(request.target, &request.path)?;
        let canned = self.files.state().walks.get(&pod).cloned();
        let entries = match canned {
            Some(entries) => entries,
            None => {
                let top = entry(&path, b"", true)?;
                if top.r#type() != FileType::Directory {
                    return Err(failure(
                        Code::FailedPrecondition,
                        "NOT_A_DIRECTORY",
                        "Not a directory",
                        &[],
                    ));
                }
                let mut entries = vec![top];
                walk(&path, b"", request.max_depth.unwrap_or(1000), &mut entries);
                entries
            }
        };
        let answer = |event| Ok(FilesWalkResponse { event: Some(event) });
        use files_walk_response::Event;
        let end = FilesWalkEnd { entries: entries.len() as u64, truncated: false };
        let parts: Vec<_> = entries
            .chunks(50)
            .map(|part| answer(Event::Entries(FileEntries { entries: part.to_vec() })))
            .collect();
        let answers = stream::iter([answer(Event::Start(root))])
            .chain(stream::iter(parts))
            .chain(stream::iter([answer(Event::End(end))]));
        Ok(Response::new(answers.boxed()))
    }

    type ChecksumStream = Answers<FilesChecksumResponse>;

    async fn checksum(
        &self,
        request: Request<FilesChecksumRequest>,
    ) -> Result<Response<Self::ChecksumStream>, Status> {
        let request = request.into_inner();
        let (path, root, _) = self.files.resolve(request.target, &request.path)?;
        let mut content = std::fs::read(&path).map_err(errno)?;
        if request.length > 0 {
            content.truncate(usize::try_from(request.length).unwrap());
        }
        let mut sha256 = digest(&SHA256, &content).as_ref().to_vec();
        let mut state = self.files.state();
        state.checksums += 1;
        if state.lies {
            sha256[0] ^= 1;
        }
        use files_checksum_response::Event;
        let done = FilesChecksumDone {
            root: Some(root),
            entry: Some(entry(&path, &request.path, true)?),
            bytes: content.len() as u64,
            sha256,
        };
        let answer = |event| Ok(FilesChecksumResponse { event: Some(event) });
        Ok(Response::new(
            stream::iter([answer(Event::ProgressBytes(1)), answer(Event::Done(done))]).boxed(),
        ))
    }

    async fn write(
        &self,
        request: Request<Streaming<FilesWriteRequest>>,
    ) -> Result<Response<FilesWriteResponse>, Status> {
        let mut messages = request.into_inner();
        use files_write_request::Event;
        let Some(Event::Start(start)) = messages.message().await?.and_then(|message| message.event)
        else {
            return Err(Status::invalid_argument("no start"));
        };
        let (path, root, _) = self.files.resolve(start.target, &start.path)?;
        if !self.files.state().writable {
            return Err(failure(
                Code::Unimplemented,
                "WRITES_DISABLED",
                "the agent writes no files",
                &[],
            ));
        }
        if path.exists() && !start.overwrite {
            return Err(failure(Code::AlreadyExists, "FILE_EXISTS", "File exists", &[]));
        }
        let mut content = Vec::new();
        while let Some(message) = messages.message().await? {
            if let Some(Event::Data(data)) = message.event {
                content.extend_from_slice(&data);
            }
        }
        if !start.sha256.is_empty() && digest(&SHA256, &content).as_ref() != start.sha256 {
            return Err(failure(
                Code::InvalidArgument,
                "INVALID_FIELD",
                "not what it says",
                &[("field", "sha256")],
            ));
        }
        std::fs::write(&path, content).map_err(errno)?;
        let mode = if start.mode == 0 { 0o600 } else { start.mode };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let entry = entry(&path, &start.path, false)?;
        Ok(Response::new(FilesWriteResponse { root: Some(root), entry: Some(entry) }))
    }
}

/// What is added to a file from `at` on, and what happens to it, as long as somebody listens.
async fn follow(
    path: PathBuf,
    mut at: u64,
    sender: mpsc::Sender<Result<FilesReadResponse, Status>>,
) {
    use files_read_response::Event;
    let mut inode = path.metadata().map(|found| found.ino()).unwrap_or(0);
    loop {
        let mut send = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&path) {
            let found = file.metadata().unwrap();
            let change = match () {
                () if found.ino() != inode => Some(FileChange::Replaced),
                () if found.size() < at => Some(FileChange::Truncated),
                () => None,
            };
            if let Some(change) = change {
                (at, inode) = (0, found.ino());
                send.push(Event::Change(FilesReadChange { change: change.into(), offset: 0 }));
            }
            let mut added = Vec::new();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.read_to_end(&mut added).unwrap();
            at += added.len() as u64;
            let end = added.ends_with(b"THE END\n");
            if !added.is_empty() {
                send.push(Event::Data(added.into()));
            }
            if end {
                send.push(Event::End(FilesReadEnd {
                    reason: ReadEnd::ContainerEnded.into(),
                    bytes: at,
                }));
            }
        }
        for event in send {
            if sender.send(Ok(FilesReadResponse { event: Some(event) })).await.is_err() {
                return;
            }
        }
        if sender.is_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
