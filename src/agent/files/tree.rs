//! Describing files, listing and walking directories, checksums.

use std::time::{Duration, Instant};

use aws_lc_rs::digest;

use super::{Root, read, threads::Held};
use crate::{
    domain::{Error, Reason, Result},
    sys::rooted::{
        content::Content,
        directory::{Page, Walk},
        entry::DirEntry,
    },
};

/// About how many bytes a page, or a message of a walk, takes at most.
const PAGE_BYTES: usize = 2 << 20;
const BATCH_BYTES: usize = 128 << 10;
/// Entries of a message of a walk.
const BATCH: usize = 512;
/// How long a walk that finds little, and a sum, works at a time.
const STEP: Duration = Duration::from_millis(100);

impl Root {
    /// Describes a file; `follow`: what a link leads to.
    ///
    /// # Errors
    /// Those of [`crate::sys::rooted::RootedDir::resolve`] and [`Root::run`].
    pub async fn stat(&self, path: Vec<u8>, follow: bool) -> Result<DirEntry> {
        self.run(move |root| root.resolve(&path, follow).map(|node| node.entry().clone())).await
    }

    /// A page of a directory, of entries behind `after`.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY and those of [`Root::stat`].
    pub async fn list(&self, path: Vec<u8>, after: Vec<u8>, size: usize) -> Result<Page> {
        self.run(move |root| {
            root.resolve(&path, true)?.open_directory(root)?.page(&after, size, PAGE_BYTES)
        })
        .await
    }

    /// Begins to walk a tree.
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

    /// Begins to sum up a file, from `offset` at most `length` bytes.
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

/// A walk that goes on.
#[derive(Debug)]
pub struct Walking<'r> {
    root: &'r Root,
    /// None once it is over, or lost with a stuck thread.
    walk: Option<Held<Walk>>,
}

impl Walking<'_> {
    /// The next entries, at most so many. None at the end.
    ///
    /// # Errors
    /// Those of [`Root::run`].
    pub async fn next(&mut self, at_most: u64) -> Result<Option<Vec<DirEntry>>> {
        let Some(mut walk) = self.walk.take() else { return Ok(None) };
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX).min(BATCH);
        let step = move |_: &_| {
            let entries =
                walk.with(|walk| Ok(walk.next(at_most, BATCH_BYTES, Instant::now() + STEP)))?;
            Ok((walk, entries))
        };
        let (walk, entries) = self.root.run(step).await?;
        self.walk = Some(walk);
        Ok(entries)
    }
}

/// A checksum on the way.
#[derive(Debug)]
pub struct Summing<'r> {
    root: &'r Root,
    /// The file.
    pub entry: DirEntry,
    /// How many bytes of it were summed up.
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
    /// Sums up the next part. Returns how long it was, and the sum if it was the last.
    fn step(&mut self) -> Result<(u64, Option<Vec<u8>>)> {
        let began = Instant::now();
        let mut done = 0_u64;
        while began.elapsed() < STEP {
            let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(read::CHUNK);
            let data = self.content.read(self.offset, want)?;
            self.context.update(&data);
            let length = data.len() as u64;
            self.offset = self.offset.saturating_add(length);
            self.left = self.left.saturating_sub(length);
            done = done.saturating_add(length);
            if data.len() < want || self.left == 0 {
                return Ok((done, Some(self.context.clone().finish().as_ref().to_owned())));
            }
        }
        Ok((done, None))
    }
}

impl Summing<'_> {
    /// Goes on for a while. Returns the sum at the end.
    ///
    /// # Errors
    /// FILE_SYSTEM_FAILED and those of [`Root::run`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let lost = || Error::new(Reason::Bug, "the sum is lost");
        let mut sum = self.sum.take().ok_or_else(lost)?;
        let step = move |_: &_| sum.with(Sum::step).map(|step| (sum, step));
        let (sum, (bytes, done)) = self.root.run(step).await?;
        self.bytes = self.bytes.saturating_add(bytes);
        self.sum = Some(sum);
        Ok(done)
    }
}
