//! Running something inside another process' namespaces.
//!
//! **Invariant**: a thread that entered a foreign namespace never goes back to a pool. Each entry has an OS thread of its own, which
//! ends with it.

use std::thread;

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::{SysError, process::ContainerProcess};
use crate::domain::{Error, Reason, Result};

/// Runs `work` inside the process' namespaces of the given kinds and waits for it. The process is named by its pidfd, so it is
/// the one that was proven, or the call fails. Linux 5.8.
///
/// # Errors
/// SYSTEM_CALL without CAP_SYS_ADMIN, PROCESS_GONE if the process has ended, BUG if `work` panicked.
pub fn inside<T: Send>(
    process: &ContainerProcess,
    kinds: ThreadNameSpaceType,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let entry = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, move || {
            move_into_thread_name_spaces(rustix::fd::AsFd::as_fd(process.pidfd()), kinds)
                .map_err(SysError::of("setns", format_args!("pidfd of {}", process.facts.pid)))?;
            Ok(work())
        });
        let entry =
            entry.map_err(|e| Error::new(Reason::SystemCall, format!("cannot start a thread: {e}")))?;
        entry.join().map_err(|_| Error::new(Reason::Bug, "panic inside a namespace"))?
    })
}
