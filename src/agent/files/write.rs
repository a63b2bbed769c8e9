//! Writing a file, where the agent was started with `--allow-file-writes`.

use aws_lc_rs::digest;
use bytes::Bytes;

use super::{Root, threads::Held};
use crate::{
    domain::{Error, Reason, Result},
    sys::rooted::{create::Creation, entry::DirEntry},
};

/// A file that is being written. If it is dropped before it is complete, nothing of it stays.
pub struct Writer<'r> {
    root: &'r Root,
    /// None once it was lost with a stuck thread.
    creation: Option<Held<Creation>>,
    sum: digest::Context,
    /// Bytes by which it may still grow.
    left: u64,
    limit: u64,
}

impl Root {
    /// Begins a file of at most `limit` bytes.
    ///
    /// # Errors
    /// Those of [`crate::sys::rooted::RootedDir::create`] and [`Root::run`].
    pub async fn create(&self, path: Vec<u8>, mode: u32, limit: u64) -> Result<Writer<'_>> {
        let creation = self.open(move |root| root.create(&path, mode)).await?;
        let sum = digest::Context::new(&digest::SHA256);
        Ok(Writer { root: self, creation: Some(creation), sum, left: limit, limit })
    }
}

impl Writer<'_> {
    /// Appends to the file.
    ///
    /// # Errors
    /// INVALID_FIELD beyond the limit; FILE_SYSTEM_FULL, and those of [`Root::run`].
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        let too_much =
            || Error::invalid("data", format!("is more than {} bytes in all", self.limit));
        self.left = self.left.checked_sub(data.len() as u64).ok_or_else(too_much)?;
        self.sum.update(&data);
        let mut creation = self.creation.take().ok_or_else(lost)?;
        let deadline = self.root.deadline();
        let step = move |_: &_| {
            creation.with(|file| file.write(&data, deadline()))?;
            Ok(creation)
        };
        self.creation = Some(self.root.run(step).await?);
        Ok(())
    }

    /// Gives the file its name if its content has this SHA-256; empty: whatever its content is.
    ///
    /// # Errors
    /// INVALID_FIELD, FILE_EXISTS, NOT_A_FILE, and those of [`Root::run`].
    pub async fn complete(self, overwrite: bool, sha256: &[u8]) -> Result<DirEntry> {
        if !sha256.is_empty() && self.sum.finish().as_ref() != sha256 {
            return Err(Error::invalid("sha256", "is not that of the content"));
        }
        let creation = self.creation.ok_or_else(lost)?;
        self.root.run(move |_| creation.end(|file| file.complete(overwrite))).await
    }
}

fn lost() -> Error {
    Error::new(Reason::Bug, "the file was lost with a stuck thread")
}
