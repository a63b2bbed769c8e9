//! Describing files, listing and walking directories, checksums.

use std::time::{Duration, Instant};

use aws_lc_rs::digest;

use super::{Root, read, threads::Held};
use crate::{
    domain::{Error, Reason, Result},
    sys::rooted::{
        content::{Content, Part},
        directory::Page,
        entry::DirEntry,
        walk::Walk,
    },
};

/// About how many bytes a page and a message of a walk take at most.
const PAGE_BYTES: usize = 2 << 20;
const BATCH_BYTES: usize = 128 << 10;
/// Entries in a message of a walk.
const BATCH: usize = 512;
/// How long a step of a walk or of a checksum may take. Short, so that the thread is free for
/// others in between and progress is reported.
const STEP: Duration = Duration::from_millis(100);

impl Root {
    /// Describes a file. If `follow`, describes what a link leads to.
    ///
    /// # Errors
    /// Those of [`crate::sys::rooted::RootedDir::resolve`] and [`Root::run`].
    pub async fn stat(&self, path: Vec<u8>, follow: bool) -> Result<DirEntry> {
        self.run(move |root| root.resolve(&path, follow).map(|node| node.entry().clone())).await
    }

    /// Lists at most `size` entries of a directory, from the first name behind `after` on.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY, FILE_SYSTEM_STUCK for a directory that does not end in time, and those of
    /// [`Root::stat`].
    pub async fn list(&self, path: Vec<u8>, after: Vec<u8>, size: usize) -> Result<Page> {
        let deadline = self.deadline();
        self.run(move |root| {
            let until = deadline();
            root.resolve(&path, true)?.open_directory(root)?.page(&after, size, PAGE_BYTES, until)
        })
        .await
    }

    /// Begins to walk a tree, at most `max_depth` directories deep.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY and those of [`Root::stat`].
    pub async fn walk(
        &self,
        path: Vec<u8>,
        max_depth: usize,
        cross_mounts: bool,
    ) -> Result<Walking<'_>> {
        let walk = self
            .open(move |root| {
                Ok(root.resolve(&path, true)?.open_directory(root)?.walk(max_depth, cross_mounts))
            })
            .await?;
        Ok(Walking { root: self, walk: Some(walk) })
    }

    /// Begins the SHA-256 of at most `length` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// NOT_A_FILE and those of [`Root::stat`].
    pub async fn checksum(&self, path: Vec<u8>, offset: u64, length: u64) -> Result<Summing<'_>> {
        let mut sum = self
            .open(move |root| {
                let content = root.resolve(&path, true)?.open(root)?;
                let context = digest::Context::new(&digest::SHA256);
                Ok(Sum { content, context, offset, left: length })
            })
            .await?;
        let entry = sum.with(|sum| Ok(sum.content.entry().clone()))?;
        Ok(Summing { root: self, entry, bytes: 0, sum: Some(sum) })
    }
}

/// A walk in progress.
#[derive(Debug)]
pub struct Walking<'r> {
    root: &'r Root,
    /// None once it is over, or lost with a stuck thread.
    walk: Option<Held<Walk>>,
}

impl Walking<'_> {
    /// The next entries, at least one and at most `at_most`. None at the end.
    ///
    /// # Errors
    /// Those of [`Root::run`].
    pub async fn next(&mut self, at_most: u64) -> Result<Option<Vec<DirEntry>>> {
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX).clamp(1, BATCH);
        while let Some(mut walk) = self.walk.take() {
            let step = move |_: &_| {
                let entries =
                    walk.with(|walk| Ok(walk.next(at_most, BATCH_BYTES, Instant::now() + STEP)))?;
                Ok((walk, entries))
            };
            let (walk, entries) = self.root.run(step).await?;
            let Some(entries) = entries else { break };
            self.walk = Some(walk);
            // Nothing was found in time: the next step goes on where this one stopped.
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
        Ok(None)
    }
}

/// A checksum in progress.
#[derive(Debug)]
pub struct Summing<'r> {
    root: &'r Root,
    /// The file as it was when it was opened.
    pub entry: DirEntry,
    /// How many bytes have gone into the sum.
    pub bytes: u64,
    sum: Option<Held<Sum>>,
}

struct Sum {
    content: Content,
    context: digest::Context,
    offset: u64,
    left: u64,
}

impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sum")
            .field("offset", &self.offset)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Sum {
    /// Takes in the next part. Returns its length, and the sum if it was the last one.
    fn step(&mut self) -> Result<(u64, Option<Vec<u8>>)> {
        let until = Instant::now() + STEP;
        let mut done = 0_u64;
        while Instant::now() < until {
            let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(read::CHUNK);
            let Part { data, at_end } = self.content.read(self.offset, want, until)?;
            self.context.update(&data);
            let length = data.len() as u64;
            self.offset = self.offset.saturating_add(length);
            self.left = self.left.saturating_sub(length);
            done = done.saturating_add(length);
            if at_end || self.left == 0 {
                return Ok((done, Some(self.context.clone().finish().as_ref().to_owned())));
            }
        }
        Ok((done, None))
    }
}

impl Summing<'_> {
    /// Takes the next step, of at most 100 ms where the file system is not slow. Returns the sum at
    /// the end.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED and those of [`Root::run`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let lost = || Error::new(Reason::Bug, "the sum was lost with a stuck thread");
        let mut sum = self.sum.take().ok_or_else(lost)?;
        let step = move |_: &_| sum.with(Sum::step).map(|step| (sum, step));
        let (sum, (bytes, done)) = self.root.run(step).await?;
        self.bytes = self.bytes.saturating_add(bytes);
        self.sum = Some(sum);
        Ok(done)
    }
}
