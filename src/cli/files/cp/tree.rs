//! A tree from a pod, as it comes: entries are dealt with one by one, and what is kept of each is eight bytes.

use std::{
    collections::{HashSet, hash_map::RandomState},
    ffi::OsString,
    hash::BuildHasher,
    io,
    sync::Arc,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    directory::{Attributes, Directory, local_name, stays_inside},
    download::{Copied, How, Stopped, download, is_part},
};
use crate::{
    cli::files::{ls::join, open::reason_words},
    client::{Error, Files, files::WalkEvent, reason},
    proto::v1::{FileEntry, FileType},
};

/// Files that are copied at the same time. An agent serves a user only so many.
const AT_ONCE: usize = 4;

/// What the reason for leaving out a symbolic link begins with.
pub(super) const LINK: &str = "a symbolic link";

/// What happens on the way, for whoever tells it.
pub(super) enum Happened {
    /// A file was copied.
    Copied(Vec<u8>, Copied),
    Directory,
    Link,
    /// Left out, and why: no failure.
    Skipped(Vec<u8>, String),
    Failed(Vec<u8>, Stopped),
    /// The agent did not walk all of it.
    Truncated,
}

/// The copy of a tree.
pub(super) struct Tree<'a> {
    pub(super) files: &'a Files,
    /// Its top in the pod.
    pub(super) path: &'a [u8],
    pub(super) top: Arc<Directory>,
    pub(super) links: bool,
    pub(super) cross_mounts: bool,
    pub(super) how: How,
}

/// One download that is under way.
type Pending<'a> = FuturesUnordered<BoxFuture<'a, (Vec<u8>, Result<Copied, Stopped>)>>;

struct Seen {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl Seen {
    /// Whether a path is new. Where the case of names makes no difference it makes none here.
    fn is_new(&mut self, path: &[u8]) -> bool {
        let hash = match cfg!(any(windows, target_vendor = "apple")) {
            true => self.hasher.hash_one(String::from_utf8_lossy(path).to_lowercase()),
            false => self.hasher.hash_one(path),
        };
        self.hashes.insert(hash)
    }
}

impl Tree<'_> {
    /// Copies all of it. `tell`: is told what happens.
    ///
    /// # Errors
    /// What ends the whole copy.
    pub(super) async fn copy(
        &self,
        tell: &mut (dyn FnMut(Happened) + Send),
    ) -> Result<(), Stopped> {
        let mut walking = self.files.walk(self.path, None, self.cross_mounts).await?;
        let mut seen = Seen { hasher: RandomState::new(), hashes: HashSet::new() };
        let mut pending = Pending::new();
        // The directory of the entry before is most often that of the next one.
        let mut last: (Vec<u8>, Arc<Directory>) = (Vec::new(), Arc::clone(&self.top));
        let mut directories = Vec::new();
        loop {
            let event = tokio::select! {
                () = self.how.interrupted.cancelled() => break,
                event = walking.next() => event?,
            };
            let entries = match event {
                WalkEvent::Entries(entries) => entries,
                WalkEvent::End(end) => {
                    if end.truncated {
                        tell(Happened::Truncated);
                    }
                    break;
                }
            };
            for entry in entries {
                if self.how.interrupted.is_cancelled() {
                    break;
                }
                if !entry.path.is_empty() && !seen.is_new(&entry.path) {
                    let twice = Error::new(
                        reason::PROTOCOL,
                        "it came twice, or differs from another name in case only",
                    );
                    tell(Happened::Failed(entry.path, twice.into()));
                    continue;
                }
                match self.entry(&entry, &mut last) {
                    Ok(Step::Told(happened)) => tell(happened),
                    Ok(Step::Directory) => {
                        if self.how.preserve {
                            directories.push((entry.path.clone(), attributes(&entry)));
                        }
                        tell(Happened::Directory);
                    }
                    Ok(Step::Download(directory, name)) => {
                        while pending.len() >= AT_ONCE
                            && let Some(done) = pending.next().await
                        {
                            tell(happened(done));
                        }
                        pending.push(Box::pin(self.download(entry.clone(), directory, name)));
                    }
                    Err(error) => tell(Happened::Failed(entry.path.clone(), error.into())),
                }
                // Of a directory that could not be entered, its entries are not told of one by one.
                let why = reason_words(&entry.reason).to_owned();
                match entry.reason.as_str() {
                    "" => {}
                    "PATH_REFUSED" => tell(Happened::Skipped(entry.path, why)),
                    _ => {
                        let error = Error::new(reason::PROTOCOL, why);
                        tell(Happened::Failed(
                            entry.path,
                            Error { reason: entry.reason.into(), ..error }.into(),
                        ));
                    }
                }
            }
        }
        while let Some(done) = pending.next().await {
            tell(happened(done));
        }
        if self.how.interrupted.is_cancelled() {
            return Err(Stopped::Interrupted);
        }
        // The deepest first, for each changes the time of the one above.
        for (path, attributes) in directories.into_iter().rev() {
            let set = enter(&self.top, &path).and_then(|directory| directory.finish(attributes));
            if let Err(error) = set {
                tell(Happened::Failed(path, error.into()));
            }
        }
        Ok(())
    }

    async fn download(
        &self,
        entry: FileEntry,
        directory: Arc<Directory>,
        name: OsString,
    ) -> (Vec<u8>, Result<Copied, Stopped>) {
        self.how.progress.name(&entry.path);
        let path = join(self.path, &entry.path);
        let copied = download(self.files, &path, &entry, &directory, &name, &self.how).await;
        (entry.path, copied)
    }

    /// What is to be done with an entry.
    fn entry(&self, entry: &FileEntry, last: &mut (Vec<u8>, Arc<Directory>)) -> io::Result<Step> {
        let skipped =
            |why: &str| Ok(Step::Told(Happened::Skipped(entry.path.clone(), why.to_owned())));
        if entry.path.is_empty() {
            // The top is there; it is told when it could not be read.
            return Ok(Step::Directory);
        }
        let (parent, name) = match entry.path.iter().rposition(|b| *b == b'/') {
            Some(slash) => entry.path.split_at_checked(slash).unwrap_or_default(),
            None => (b"".as_slice(), entry.path.as_slice()),
        };
        let name = name.strip_prefix(b"/").unwrap_or(name);
        let Ok(local) = local_name(name) else {
            return skipped("this system does not allow its name");
        };
        if is_part(name) {
            return skipped("it is named like an unfinished copy");
        }
        if last.0 != parent {
            // Further down from there is not all the way from the top.
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
                let target = String::from_utf8_lossy(&entry.link_target).into_owned();
                skipped(&format!("{LINK} to {target}"))
            }
            FileType::Symlink => {
                let depth = parent.split(|b| *b == b'/').filter(|name| !name.is_empty()).count();
                if !stays_inside(&entry.link_target, depth) {
                    let target = String::from_utf8_lossy(&entry.link_target).into_owned();
                    return skipped(&format!("{LINK} to {target}, which leads out of the tree"));
                }
                directory.link(&entry.link_target, &local)?;
                Ok(Step::Told(Happened::Link))
            }
            FileType::Fifo => skipped("a FIFO"),
            FileType::Socket => skipped("a socket"),
            FileType::CharacterDevice | FileType::BlockDevice => skipped("a device"),
            FileType::Regular | FileType::Unspecified => skipped("it could not be described"),
        }
    }
}

/// What is below a directory, name by name.
fn enter(from: &Directory, path: &[u8]) -> io::Result<Directory> {
    let mut directory = from.enter(".".as_ref())?;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        directory = directory.enter(&local_name(name).map_err(io::Error::other)?)?;
    }
    Ok(directory)
}

enum Step {
    Told(Happened),
    Directory,
    Download(Arc<Directory>, OsString),
}

fn happened((path, copied): (Vec<u8>, Result<Copied, Stopped>)) -> Happened {
    match copied {
        Ok(copied) => Happened::Copied(path, copied),
        Err(stopped) => Happened::Failed(path, stopped),
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
