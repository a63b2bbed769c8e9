//! One of the two trees that are compared: in a pod, or on this machine.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{Context as Hash, SHA256};

use crate::{
    cli::{
        context::Failed,
        files::{
            local::{hash_rest, local_name},
            location::{Location, PodPath, join},
            open::{Pod, Pods},
        },
    },
    client::{Error, Reason, files::ReadEvent},
    proto::v1::{FileEntry, FileType, FilesReadRequest, ReadEnd},
};

/// A file or a directory that an operand names, and what is below it.
#[allow(clippy::large_enum_variant, reason = "a comparison has two of them")]
pub(super) enum ComparedTree {
    Pod(Pod, PodPath),
    Local(PathBuf),
}

/// A file, directory or other entry of a tree.
pub(super) struct ComparedFile {
    pub(super) name: Vec<u8>,
    /// The path below the operand; empty for the operand itself.
    pub(super) path: Vec<u8>,
    pub(super) entry: FileEntry,
}

impl ComparedTree {
    pub(super) async fn open(pods: &Pods<'_>, at: &Location) -> Result<Self, Failed> {
        Ok(match at {
            Location::Pod(at) => Self::Pod(pods.open(at).await?, at.clone()),
            Location::Local(path) => Self::Local(path.clone()),
        })
    }

    pub(super) fn is_pod(&self) -> bool {
        matches!(self, Self::Pod(..))
    }

    /// A path below the operand, as a person would type it.
    pub(super) fn typed(&self, path: &[u8]) -> Vec<u8> {
        let top = match self {
            Self::Pod(_, at) => at.typed(),
            Self::Local(top) => top.as_os_str().as_encoded_bytes().to_vec(),
        };
        if path.is_empty() { top } else { join(&top, path) }
    }

    /// As [`Self::typed`], for messages.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        String::from_utf8_lossy(&self.typed(path)).into_owned()
    }

    /// The last name of the operand.
    pub(super) fn name(&self) -> Vec<u8> {
        match self {
            Self::Pod(_, at) => at.name().unwrap_or_default().to_vec(),
            Self::Local(path) => {
                path.file_name().map(|name| name.as_encoded_bytes().to_vec()).unwrap_or_default()
            }
        }
    }

    /// Describes what is at a path, or with `follow` what a link at that path leads to.
    pub(super) async fn describe(&self, path: &[u8], follow: bool) -> Result<ComparedFile, Failed> {
        let entry = match self {
            Self::Pod(pod, at) => {
                let (root, entry) = pod
                    .files
                    .stat(&below(at, path), follow)
                    .await
                    .map_err(|error| pod.about(error))?;
                pod.log_root(&root);
                entry
            }
            Self::Local(top) => local_entry(&local(top, path)?, follow).map_err(failed)?,
        };
        Ok(ComparedFile { name: Vec::new(), path: path.to_vec(), entry })
    }

    /// Lists a directory, sorted by name.
    pub(super) async fn list(&self, path: &[u8]) -> Result<Vec<ComparedFile>, Failed> {
        let mut files = Vec::new();
        let file = |entry: FileEntry| ComparedFile {
            path: if path.is_empty() { entry.path.clone() } else { join(path, &entry.path) },
            name: entry.path.clone(),
            entry,
        };
        match self {
            Self::Pod(pod, at) => {
                let mut after = Vec::new();
                loop {
                    let listed = pod.files.list(&below(at, path), after).await;
                    let (_, page, next) = listed.map_err(|error| pod.about(error))?;
                    files.extend(page.into_iter().map(file));
                    if next.is_empty() {
                        return Ok(files);
                    }
                    after = next;
                }
            }
            Self::Local(top) => {
                for child in std::fs::read_dir(local(top, path)?).map_err(failed)? {
                    let child = child.map_err(failed)?;
                    let entry = local_entry(&child.path(), false).map_err(failed)?;
                    files.push(file(FileEntry {
                        path: child.file_name().as_encoded_bytes().to_vec(),
                        ..entry
                    }));
                }
                files.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(files)
            }
        }
    }

    /// The SHA-256 of a file. It is computed where the file is, so no content is transferred.
    pub(super) async fn checksum(&self, path: &[u8]) -> Result<Vec<u8>, Failed> {
        match self {
            Self::Pod(pod, at) => {
                let done = pod
                    .files
                    .checksum(&below(at, path), 0)
                    .await
                    .map_err(|error| pod.about(error))?;
                Ok(done.sha256)
            }
            Self::Local(top) => {
                let path = local(top, path)?;
                let hashed = tokio::task::spawn_blocking(move || hash(&path)).await;
                hashed.map_err(io::Error::other)?.map_err(failed)
            }
        }
    }

    /// The content of a file, which fails if the file has more than `most` bytes by now.
    pub(super) async fn content(&self, path: &[u8], most: u64) -> Result<Vec<u8>, Failed> {
        let too_large =
            || Error::new(Reason::LocalFile, "the file has grown too large to compare by lines");
        let mut content = Vec::new();
        match self {
            Self::Pod(pod, at) => {
                let mut request =
                    FilesReadRequest { path: below(at, path), ..FilesReadRequest::default() };
                loop {
                    let about = |error| pod.about(error);
                    let mut reading = pod.files.read(request.clone()).await.map_err(about)?;
                    let end = loop {
                        match reading.next().await.map_err(about)? {
                            ReadEvent::Data(data) => content.extend_from_slice(&data),
                            ReadEvent::Change(_) => {}
                            ReadEvent::End(end) => break end,
                        }
                        if content.len() as u64 > most {
                            return Err(too_large().into());
                        }
                    };
                    if end.reason() != ReadEnd::Limit || end.bytes == 0 {
                        return Ok(content);
                    }
                    request.offset = i64::try_from(content.len()).unwrap_or(i64::MAX);
                    request.if_version = reading.start.version;
                }
            }
            Self::Local(top) => {
                let file = File::open(local(top, path)?).map_err(failed)?;
                file.take(most + 1).read_to_end(&mut content).map_err(failed)?;
                if content.len() as u64 > most {
                    return Err(too_large().into());
                }
                Ok(content)
            }
        }
    }
}

/// The pod's path of a path below the operand.
fn below(at: &PodPath, path: &[u8]) -> Vec<u8> {
    if path.is_empty() { at.path.clone() } else { join(&at.path, path) }
}

/// This machine's path of a path below the operand. The names may come from the pod.
fn local(top: &Path, path: &[u8]) -> Result<PathBuf, Failed> {
    let mut local = top.to_owned();
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        local.push(local_name(name).map_err(|why| failed(io::Error::other(why)))?);
    }
    Ok(local)
}

fn failed(error: io::Error) -> Failed {
    // In the words of the agent and of diff(1), without Rust's "(os error 2)".
    let message = match error.kind() {
        io::ErrorKind::NotFound => "No such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "Permission denied".to_owned(),
        _ => error.to_string(),
    };
    Error::new(Reason::LocalFile, message).into()
}

fn hash(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut hash = Hash::new(&SHA256);
    hash_rest(&mut file, &mut hash)?;
    Ok(hash.finish().as_ref().to_vec())
}

/// The properties of a local file that are compared.
fn local_entry(path: &Path, follow: bool) -> io::Result<FileEntry> {
    let found = if follow { path.metadata()? } else { path.symlink_metadata()? };
    let kind = found.file_type();
    let mut entry = FileEntry { size: found.len(), ..FileEntry::default() };
    entry.set_type(file_type(kind));
    if kind.is_symlink() {
        entry.link_target = path.read_link()?.into_os_string().into_encoded_bytes();
    }
    let since = found.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    entry.modified_at = Some(prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    });
    Ok(entry)
}

fn file_type(kind: std::fs::FileType) -> FileType {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return FileType::Fifo;
        } else if kind.is_socket() {
            return FileType::Socket;
        } else if kind.is_char_device() {
            return FileType::CharacterDevice;
        } else if kind.is_block_device() {
            return FileType::BlockDevice;
        }
    }
    match (kind.is_dir(), kind.is_symlink()) {
        (true, _) => FileType::Directory,
        (_, true) => FileType::Symlink,
        _ if kind.is_file() => FileType::Regular,
        _ => FileType::Unspecified,
    }
}
