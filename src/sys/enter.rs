//! Running something inside another process' namespaces.
//!
//! **Invariant**: a thread that entered a foreign namespace never goes back to a pool. Each entry
//! has an OS thread of its own, which ends with it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    thread::{
        LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space,
        move_into_thread_name_spaces,
    },
};

use super::{SysError, procfs::Proc};

/// Makes the calling thread, and all that it starts from then on, see cgroups as the process
/// `host_pid` does. Container runtimes on cgroup v2 give each container a cgroup namespace. From
/// inside it, the paths of the agent's own pod are relative and name neither pod nor container.
///
/// # Errors
/// `openat` EACCES if that process may not be looked into, `setns` EPERM without CAP_SYS_ADMIN.
pub fn see_cgroups_of(host_pid: u32) -> Result<(), SysError> {
    let namespace = Proc::open()?.process(host_pid)?.open("ns/cgroup")?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ControlGroup))
        .map_err(SysError::of("setns", format_args!("/proc/{host_pid}/ns/cgroup")))
}

/// How long an entry may take. What is asked inside waits only for locks of the kernel.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Entries at a time. Those that missed their deadline and still hang in the kernel count, too.
const MAX_ENTRIES: usize = 16;

/// Runs `work` inside the namespaces of the given kinds of the process that `pidfd` names, and
/// waits for it at most [`DEADLINE`]. A pidfd never comes to mean another process, so the
/// namespaces are those of the process that was proven, or the call fails. Needs Linux 5.8.
///
/// # Errors
/// `thread` EAGAIN if too many entries hang. `setns` EPERM without CAP_SYS_ADMIN, ESRCH if the
/// process has ended. `work` ETIMEDOUT after the deadline, when the thread is left to end by
/// itself, and ENOTRECOVERABLE if it panicked.
pub fn inside<T: Send + 'static>(
    pidfd: OwnedFd,
    kinds: ThreadNameSpaceType,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SysError> {
    let failed = |op, errno: Errno| SysError::new(op, "a namespace", errno);
    let slot = Slot::take().ok_or_else(|| failed("thread", Errno::AGAIN))?;
    let (sender, done) = mpsc::sync_channel(1);
    let enter = move || {
        let _slot = slot;
        let result =
            move_into_thread_name_spaces(rustix::fd::AsFd::as_fd(&pidfd), kinds).map(|()| work());
        drop(pidfd);
        // Nobody receives it after the deadline.
        let _ = sender.send(result);
    };
    let thread = thread::Builder::new()
        .name("namespace".into())
        .spawn(enter)
        .map_err(|e| failed("thread", Errno::from_io_error(&e).unwrap_or(Errno::AGAIN)))?;
    let result = match done.recv_timeout(DEADLINE) {
        Ok(result) => result.map_err(SysError::of("setns", "pidfd")),
        Err(RecvTimeoutError::Timeout) => return Err(failed("work", Errno::TIMEDOUT)),
        Err(RecvTimeoutError::Disconnected) => Err(failed("work", Errno::NOTRECOVERABLE)),
    };
    // The thread has nothing left to do but to end; whether it panicked is known by now.
    let _ = thread.join();
    result
}

/// One of the [`MAX_ENTRIES`] entries.
struct Slot;

impl Slot {
    fn take() -> Option<Self> {
        let more = |taken| (taken < MAX_ENTRIES).then_some(taken + 1);
        TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok().then_some(Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

static TAKEN: AtomicUsize = AtomicUsize::new(0);
