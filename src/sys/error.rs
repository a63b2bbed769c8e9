//! A failed system call: which, on what, and why.

use std::fmt;

use rustix::io::Errno;

use crate::domain::{Error, Reason};

/// A system call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysError {
    /// The call: `openat`, `setns`.
    pub op: &'static str,
    /// What it was called on: `/proc/812/ns/net`.
    pub on: String,
    /// Why it failed.
    pub errno: Errno,
}

impl SysError {
    /// A failure of `op` on something.
    pub fn new(op: &'static str, on: impl Into<String>, errno: impl Into<Errno>) -> Self {
        Self { op, on: on.into(), errno: errno.into() }
    }

    /// Makes a closure for `map_err`.
    pub(crate) fn of<E: Into<Errno>>(
        op: &'static str,
        on: impl fmt::Display,
    ) -> impl FnOnce(E) -> Self {
        move |errno| Self::new(op, on.to_string(), errno)
    }

    /// Whether it means that the process has ended.
    pub fn is_gone(&self) -> bool {
        matches!(self.errno, Errno::SRCH | Errno::NOENT)
    }

    /// Whether it means that the agent, or the node, has no more descriptors or memory to give.
    pub fn is_exhaustion(&self) -> bool {
        matches!(self.errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = std::io::Error::from(self.errno);
        write!(f, "{}({}): {errno}", self.op, self.on)
    }
}

impl std::error::Error for SysError {}

impl From<SysError> for Error {
    fn from(e: SysError) -> Self {
        let reason = if e.is_gone() { Reason::ProcessGone } else { Reason::SystemCall };
        Self::new(reason, e.to_string())
    }
}
