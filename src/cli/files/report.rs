//! What `-o json` and `-o yaml` print about files. As in [`crate::cli::report`], fields are added
//! and never renamed. A path that is not UTF-8 is printed with replacement characters, and exactly
//! in base64 beside that.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::entries::mode_string;
use crate::{
    cli::report::{ErrorReport, rfc3339},
    proto::v1::{ContainerIdentity, FileEntry, FileRoot, FileType, RootOwner},
};

/// `podsonde ls`, `podsonde find`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListingsReport {
    /// One for each directory of ls, and for each operand of find.
    pub(super) listings: Vec<ListingReport>,
    pub(super) errors: Vec<ErrorReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListingReport {
    /// The directory of ls, or the operand of find.
    #[serde(flatten)]
    pub(super) path: PathReport,
    pub(super) root: RootReport,
    /// Their paths are names under ls and paths in the pod under find.
    pub(super) entries: Vec<EntryReport>,
    /// Whether a limit of the agent cut the search short.
    pub(super) truncated: bool,
}

/// `podsonde stat`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatsReport {
    pub(super) files: Vec<FileReport>,
    pub(super) errors: Vec<ErrorReport>,
}

/// A file of `podsonde stat`, `cat` and `tail`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileReport {
    pub(super) root: RootReport,
    #[serde(flatten)]
    pub(super) entry: EntryReport,
    /// Where the content begins in the file, in bytes. Only `cat` and `tail` print it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset: Option<u64>,
    #[serde(flatten)]
    pub(super) content: Option<ContentReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ContentReport {
    /// Content that is UTF-8.
    Content(String),
    /// Any other content, in base64.
    ContentBase64(String),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PathReport {
    pub(super) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path_base64: Option<String>,
}

/// Which root directory was used, and as which user.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RootReport {
    /// `container`, `sandbox`, `host` or `unknown`.
    pub(super) owner: &'static str,
    pub(super) node: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) pod_uid: String,
    /// The container that was asked about.
    pub(super) container: String,
    pub(super) container_id: String,
    /// The container that the root belongs to, if it belongs to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner_container: Option<String>,
    /// The user and group that files are read as.
    pub(super) as_uid: u32,
    pub(super) as_gid: u32,
}

/// The metadata of a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EntryReport {
    #[serde(flatten)]
    pub(super) path: PathReport,
    /// `regular`, `directory`, `symlink`, `fifo`, `socket`, `characterDevice`, `blockDevice` or
    /// `unknown`.
    pub(super) r#type: &'static str,
    /// Permission bits in octal: `0644`.
    pub(super) mode: String,
    /// Type and permissions as ls prints them: `-rw-r--r--`.
    pub(super) permissions: String,
    /// In bytes.
    pub(super) size: u64,
    /// In units of 512 bytes.
    pub(super) blocks: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) inode: u64,
    pub(super) device: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Major and minor number of a device file.
    pub(super) device_number: Option<[u32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accessed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) modified_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) changed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) link_target: Option<String>,
    pub(super) mount_point: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) file_system: String,
    /// The reason why it could not be described or entered.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
}

/// `podsonde cp`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CopyReport {
    pub(super) source: String,
    pub(super) destination: String,
    /// Regular files that were copied.
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) links: u64,
    /// Bytes that were transferred.
    pub(super) bytes: u64,
    /// Bytes that an earlier, interrupted download had brought.
    pub(super) resumed_bytes: u64,
    /// Whether checksums were compared with the agent's.
    pub(super) verified: bool,
    /// How many entries were skipped: links, devices and other things that are not copied.
    pub(super) skipped_count: u64,
    /// The first 1000 of the skipped entries.
    pub(super) skipped: Vec<SkippedReport>,
    pub(super) errors: Vec<ErrorReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SkippedReport {
    #[serde(flatten)]
    pub(super) path: PathReport,
    pub(super) why: String,
}

/// `podsonde diff`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DiffReport {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) differs: bool,
    pub(super) differences: Vec<DifferenceReport>,
    pub(super) errors: Vec<ErrorReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DifferenceReport {
    #[serde(flatten)]
    pub(super) path: PathReport,
    pub(super) kind: DifferenceKind,
    /// The side that has it, if `kind` is `onlyIn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) only_in: Option<SideName>,
}

/// How two files differ.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum DifferenceKind {
    /// Only one side has it.
    OnlyIn,
    /// One is a directory and the other is not, for instance.
    Type,
    /// Files whose bytes differ.
    Content,
    /// Symbolic links whose targets differ.
    Link,
}

/// A side of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum SideName {
    From,
    To,
}

impl PathReport {
    pub(super) fn new(path: &[u8]) -> Self {
        let is_text = std::str::from_utf8(path).is_ok();
        Self {
            path: String::from_utf8_lossy(path).into_owned(),
            path_base64: (!is_text).then(|| STANDARD.encode(path)),
        }
    }
}

impl ContentReport {
    pub(super) fn new(content: Vec<u8>) -> Self {
        match String::from_utf8(content) {
            Ok(text) => Self::Content(text),
            Err(error) => Self::ContentBase64(STANDARD.encode(error.as_bytes())),
        }
    }
}

impl From<&FileRoot> for RootReport {
    fn from(root: &FileRoot) -> Self {
        let ContainerIdentity { node, namespace, pod, pod_uid, container, container_id, .. } =
            root.container.clone().unwrap_or_default();
        Self {
            owner: owner(root),
            node,
            namespace,
            pod,
            pod_uid,
            container,
            container_id,
            owner_container: root.owner_container.as_ref().map(|owner| owner.container.clone()),
            as_uid: root.uid,
            as_gid: root.gid,
        }
    }
}

fn owner(root: &FileRoot) -> &'static str {
    match root.owner() {
        RootOwner::Container => "container",
        RootOwner::Sandbox => "sandbox",
        RootOwner::Host => "host",
        RootOwner::Unspecified => "unknown",
    }
}

/// Which root directory it is and as whom it is read, for `stat` and the log.
pub(super) fn describe_root(root: &FileRoot) -> String {
    let asked = root.container.clone().unwrap_or_default();
    let of_pod = format!("of pod {}/{}", asked.namespace, asked.pod);
    let root_of = match (root.owner(), &root.owner_container) {
        (RootOwner::Container, Some(owner)) => format!("container {} {of_pod}", owner.container),
        (RootOwner::Sandbox, _) => format!("the sandbox {of_pod}"),
        (RootOwner::Host, _) => format!("node {}", asked.node),
        (RootOwner::Container | RootOwner::Unspecified, _) => {
            format!("container {} {of_pod}", asked.container)
        }
    };
    format!("{root_of}, read as {}:{}", root.uid, root.gid)
}

impl EntryReport {
    /// `path` replaces the entry's own, which may be relative to an operand.
    pub(super) fn new(path: &[u8], entry: &FileEntry) -> Self {
        let is_device = super::entries::is_device(entry);
        Self {
            path: PathReport::new(path),
            r#type: match entry.r#type() {
                FileType::Regular => "regular",
                FileType::Directory => "directory",
                FileType::Symlink => "symlink",
                FileType::Fifo => "fifo",
                FileType::Socket => "socket",
                FileType::CharacterDevice => "characterDevice",
                FileType::BlockDevice => "blockDevice",
                FileType::Unspecified => "unknown",
            },
            mode: format!("{:04o}", entry.mode),
            permissions: mode_string(entry),
            size: entry.size,
            blocks: entry.blocks,
            uid: entry.uid,
            gid: entry.gid,
            links: entry.links,
            inode: entry.inode,
            device: entry.device,
            device_number: is_device.then_some([entry.device_major, entry.device_minor]),
            accessed_at: entry.accessed_at.and_then(rfc3339),
            modified_at: entry.modified_at.and_then(rfc3339),
            changed_at: entry.changed_at.and_then(rfc3339),
            created_at: entry.created_at.and_then(rfc3339),
            link_target: (entry.r#type() == FileType::Symlink)
                .then(|| String::from_utf8_lossy(&entry.link_target).into_owned()),
            mount_point: entry.mount_point,
            file_system: entry.file_system.clone(),
            reason: entry.reason.clone(),
        }
    }
}
