//! A failed system call: which one, on what, and why.

use std::fmt;

use rustix::io::Errno;

use crate::domain::{Error, Reason};

/// A system call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysError {
    /// The call: `openat`, `setns`.
    pub op: &'static str,
    /// What the call was about: `/proc/812/ns/net`.
    pub on: String,
    /// Why it failed.
    pub errno: Errno,
}

impl SysError {
    /// The failure of `op` on something.
    pub fn new(op: &'static str, on: impl Into<String>, errno: impl Into<Errno>) -> Self {
        Self { op, on: on.into(), errno: errno.into() }
    }

    /// A closure for `map_err`.
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

    /// Whether it means that the agent or the node has no descriptors or memory left.
    pub fn is_exhaustion(&self) -> bool {
        matches!(self.errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}): {}", self.op, self.on, errno_text(self.errno))
    }
}

impl std::error::Error for SysError {}

impl From<SysError> for Error {
    fn from(e: SysError) -> Self {
        let reason = if e.is_gone() { Reason::ProcessGone } else { Reason::SystemCall };
        Self::new(reason, e.to_string())
    }
}

/// What the C library says of an errno, without its number.
pub(super) fn errno_text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.find(" (os error ") {
        Some(at) => text.get(..at).unwrap_or_default().to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_is_told_without_numbers() {
        let error = SysError::new("openat", "/proc/7/root", Errno::ACCESS);
        assert_eq!(error.to_string(), "openat(/proc/7/root): Permission denied");
    }
}
