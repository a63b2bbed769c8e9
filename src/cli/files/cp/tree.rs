//! Copies a directory tree as the agent lists it. Trees may have millions of entries, so each is
//! handled as it arrives, and only an eight-byte hash of its path is kept, to notice duplicates.
//! With `-p`, directories are kept too, because their times can only be set when all else is done.

use std::{
    collections::{HashSet, hash_map::RandomState},
    ffi::OsString,
    fmt,
    hash::BuildHasher,
    io,
    sync::Arc,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    directory::{Attributes, Directory, stays_inside},
    download::{DownloadOptions, Downloaded, Stopped, download, is_part},
};
use crate::{
    cli::files::{local::local_name, location::join, open::reason_words},
    client::{Error, Files, Reason, files::WalkEvent},
    proto::v1::{FileEntry, FileType},
};

/// How many files are downloaded at the same time. Agents limit the requests of one user.
const CONCURRENCY: usize = 4;

/// What happens while a tree is copied. Paths are relative to its top.
pub(super) enum TreeEvent {
    Downloaded(Vec<u8>, Downloaded),
    /// A directory was created.
    Directory,
    /// A symbolic link was created.
    Link,
    /// An entry was not copied, which is not a failure.
    Skipped(Vec<u8>, Skipped),
    Failed(Vec<u8>, Stopped),
    /// The agent reached its limit of entries.
    Truncated,
}

/// Why an entry is not copied.
pub(super) enum Skipped {
    /// A symbolic link; `--links` was not given.
    Link {
        target: Vec<u8>,
    },
    /// A symbolic link that leads out of the tree.
    LinkOutside {
        target: Vec<u8>,
    },
    Fifo,
    Socket,
    Device,
    /// The local file system cannot have a file of that name.
    Name,
    /// Its name is that of an unfinished download, which could be mistaken for one.
    NamedLikePart,
    /// The agent could not describe it.
    Unknown,
    /// The agent refused to enter it. Holds the agent's reason.
    Refused(String),
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { target } => {
                write!(f, "a symbolic link to {}", String::from_utf8_lossy(target))
            }
            Self::LinkOutside { target } => {
                let target = String::from_utf8_lossy(target);
                write!(f, "a symbolic link to {target}, which is outside the copied directory")
            }
            Self::Fifo => f.write_str("a FIFO"),
            Self::Socket => f.write_str("a socket"),
            Self::Device => f.write_str("a device"),
            Self::Name => f.write_str("this system does not allow its name"),
            Self::NamedLikePart => f.write_str("its name is that of an unfinished download"),
            Self::Unknown => f.write_str("the agent could not describe it"),
            Self::Refused(reason) => f.write_str(reason_words(reason)),
        }
    }
}

/// The copy of a tree.
pub(super) struct TreeCopy<'a> {
    pub(super) files: &'a Files,
    /// The top of the tree in the pod.
    pub(super) path: &'a [u8],
    /// The directory that receives the contents of the tree.
    pub(super) top: Arc<Directory>,
    /// Whether the top keeps its own mode and times: with `SRC/.`, it is the user's directory.
    pub(super) keeps_top: bool,
    pub(super) links: bool,
    pub(super) cross_mounts: bool,
    pub(super) options: DownloadOptions,
}

/// The downloads that are under way, each with its path.
type Pending<'a> = FuturesUnordered<BoxFuture<'a, (Vec<u8>, Result<Downloaded, Stopped>)>>;

/// Hashes of the paths that the agent sent, with a random key so that no pod can make them collide.
struct Seen {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl Seen {
    /// Whether a path comes for the first time. On systems whose file systems usually ignore case,
    /// it is ignored here too: otherwise two files would be written into one.
    fn is_new(&mut self, path: &[u8]) -> bool {
        let hash = match cfg!(any(windows, target_vendor = "apple")) {
            true => self.hasher.hash_one(String::from_utf8_lossy(path).to_lowercase()),
            false => self.hasher.hash_one(path),
        };
        self.hashes.insert(hash)
    }
}

impl TreeCopy<'_> {
    /// Copies the whole tree, and calls `tell` for everything that happens.
    ///
    /// # Errors
    /// A failure that ends the copy. What concerns one entry is told instead.
    pub(super) async fn copy(
        &self,
        tell: &mut (dyn FnMut(TreeEvent) + Send),
    ) -> Result<(), Stopped> {
        let mut walking = self.files.walk(self.path, None, self.cross_mounts).await?;
        let mut seen = Seen { hasher: RandomState::new(), hashes: HashSet::new() };
        let mut pending = Pending::new();
        // Consecutive entries are usually in the same directory, which stays open.
        let mut last: (Vec<u8>, Arc<Directory>) = (Vec::new(), Arc::clone(&self.top));
        let mut directories = Vec::new();
        loop {
            let event = tokio::select! {
                () = self.options.interrupted.cancelled() => break,
                event = walking.next() => event?,
            };
            let entries = match event {
                WalkEvent::Entries(entries) => entries,
                WalkEvent::End(end) => {
                    if end.truncated {
                        tell(TreeEvent::Truncated);
                    }
                    break;
                }
            };
            for entry in entries {
                if self.options.interrupted.is_cancelled() {
                    break;
                }
                if !entry.path.is_empty() && !seen.is_new(&entry.path) {
                    let twice = Error::new(
                        Reason::Protocol,
                        "the agent sent it twice, or it differs from another name only in case",
                    );
                    tell(TreeEvent::Failed(entry.path, twice.into()));
                    continue;
                }
                match self.entry(&entry, &mut last) {
                    Ok(Step::Done(event)) => tell(event),
                    Ok(Step::Directory) => {
                        let keeps = self.keeps_top && entry.path.is_empty();
                        if self.options.preserve && !keeps {
                            directories.push((entry.path.clone(), attributes(&entry)));
                        }
                        tell(TreeEvent::Directory);
                    }
                    Ok(Step::Download(directory, name)) => {
                        while pending.len() >= CONCURRENCY
                            && let Some(done) = pending.next().await
                        {
                            tell(finished(done));
                        }
                        pending.push(Box::pin(self.download(entry.clone(), directory, name)));
                    }
                    Err(error) => tell(TreeEvent::Failed(entry.path.clone(), error.into())),
                }
                // A directory that the agent could not enter is reported itself, not its entries.
                match entry.reason.as_str() {
                    "" => {}
                    "PATH_REFUSED" => {
                        tell(TreeEvent::Skipped(entry.path, Skipped::Refused(entry.reason)));
                    }
                    _ => {
                        let error = Error::new(Reason::Protocol, reason_words(&entry.reason));
                        let error = Error { reason: Reason::parse(&entry.reason), ..error };
                        tell(TreeEvent::Failed(entry.path, error.into()));
                    }
                }
            }
        }
        while let Some(done) = pending.next().await {
            tell(finished(done));
        }
        if self.options.interrupted.is_cancelled() {
            return Err(Stopped::Interrupted);
        }
        // Children first: creating them changed the times of their parents.
        for (path, attributes) in directories.into_iter().rev() {
            let set = enter(&self.top, &path).and_then(|directory| directory.finish(attributes));
            if let Err(error) = set {
                tell(TreeEvent::Failed(path, error.into()));
            }
        }
        Ok(())
    }

    async fn download(
        &self,
        entry: FileEntry,
        directory: Arc<Directory>,
        name: OsString,
    ) -> (Vec<u8>, Result<Downloaded, Stopped>) {
        self.options.progress.name(&entry.path);
        let path = join(self.path, &entry.path);
        let done = download(self.files, &path, &entry, &directory, &name, &self.options).await;
        (entry.path, done)
    }

    /// Creates a directory or a link, or returns what is left to do for an entry. `last` is the
    /// directory of the entry before.
    fn entry(&self, entry: &FileEntry, last: &mut (Vec<u8>, Arc<Directory>)) -> io::Result<Step> {
        let skipped = |why| Ok(Step::Done(TreeEvent::Skipped(entry.path.clone(), why)));
        if entry.path.is_empty() {
            // The top of the tree exists already.
            return Ok(Step::Directory);
        }
        let (parent, name) = match entry.path.iter().rposition(|b| *b == b'/') {
            Some(slash) => entry.path.split_at_checked(slash).unwrap_or_default(),
            None => (b"".as_slice(), entry.path.as_slice()),
        };
        let name = name.strip_prefix(b"/").unwrap_or(name);
        let Ok(local) = local_name(name) else {
            return skipped(Skipped::Name);
        };
        if is_part(name) {
            return skipped(Skipped::NamedLikePart);
        }
        if last.0 != parent {
            // A subdirectory of the last one is opened from there, not from the top.
            let further =
                parent.strip_prefix(last.0.as_slice()).and_then(|rest| rest.strip_prefix(b"/"));
            let (from, rest) = match further {
                Some(rest) if !last.0.is_empty() => (&last.1, rest),
                _ => (&self.top, parent),
            };
            *last = (parent.to_vec(), Arc::new(enter(from, rest)?));
        }
        let directory = &last.1;
        match entry.r#type() {
            FileType::Directory => {
                directory.make(&local, entry.mode & 0o777)?;
                Ok(Step::Directory)
            }
            FileType::Regular if entry.reason.is_empty() => {
                Ok(Step::Download(Arc::clone(directory), local))
            }
            FileType::Symlink if !self.links => {
                skipped(Skipped::Link { target: entry.link_target.clone() })
            }
            FileType::Symlink => {
                let depth = parent.split(|b| *b == b'/').filter(|name| !name.is_empty()).count();
                if !stays_inside(&entry.link_target, depth) {
                    return skipped(Skipped::LinkOutside { target: entry.link_target.clone() });
                }
                directory.link(&entry.link_target, &local)?;
                Ok(Step::Done(TreeEvent::Link))
            }
            FileType::Fifo => skipped(Skipped::Fifo),
            FileType::Socket => skipped(Skipped::Socket),
            FileType::CharacterDevice | FileType::BlockDevice => skipped(Skipped::Device),
            FileType::Regular | FileType::Unspecified => skipped(Skipped::Unknown),
        }
    }
}

/// Opens a directory below another, name by name, so that no link is followed.
fn enter(from: &Directory, path: &[u8]) -> io::Result<Directory> {
    let mut directory = from.enter(".".as_ref())?;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        directory = directory.enter(&local_name(name).map_err(io::Error::other)?)?;
    }
    Ok(directory)
}

/// What is left to do for an entry.
enum Step {
    /// Nothing.
    Done(TreeEvent),
    /// Remember the directory, which was created, for its times.
    Directory,
    /// Download a file into this directory, under this name.
    Download(Arc<Directory>, OsString),
}

fn finished((path, done): (Vec<u8>, Result<Downloaded, Stopped>)) -> TreeEvent {
    match done {
        Ok(downloaded) => TreeEvent::Downloaded(path, downloaded),
        Err(stopped) => TreeEvent::Failed(path, stopped),
    }
}

fn attributes(entry: &FileEntry) -> Attributes {
    let time = |time: Option<prost_types::Timestamp>| {
        time.map_or((0, 0), |time| (time.seconds, time.nanos))
    };
    Attributes {
        mode: entry.mode & 0o777,
        preserve: true,
        times: [time(entry.accessed_at), time(entry.modified_at)],
    }
}
