//! Reading files as somebody else.
//!
//! For file systems, the kernel looks at ids and capabilities of the calling thread alone.
//! **Invariant**: a thread that took on an identity ends with its work; no other work runs on it.
//! <https://man7.org/linux/man-pages/man2/setfsuid.2.html>

use nix::unistd::{setfsgid, setfsuid};
use rustix::{
    io::Errno,
    process::{Gid, getgroups},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups},
};

use super::SysError;

/// Stack of a thread for file work, in bytes: the largest thing on it is a 16 KiB buffer of names.
const STACK: usize = 256 * 1024;

/// The user, groups and capabilities that files are read with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// The user id, in the host's user namespace.
    pub uid: u32,
    /// The group id, in the host's user namespace.
    pub gid: u32,
    /// The supplementary group ids, in the host's user namespace.
    pub groups: Vec<u32>,
    /// Whether it holds CAP_DAC_READ_SEARCH, which reads every file whoever owns it.
    pub reads_any: bool,
}

impl FileIdentity {
    /// Root with the capability to read every file.
    pub const ROOT: Self = Self { uid: 0, gid: 0, groups: Vec::new(), reads_any: true };

    /// Makes this the identity of the calling thread, for good. The thread keeps no capability but
    /// CAP_DAC_READ_SEARCH, and that one only if the identity has it.
    ///
    /// # Errors
    /// EPERM without CAP_SETUID, CAP_SETGID and, where the identity has it, CAP_DAC_READ_SEARCH.
    /// The thread may then be half of each identity and must do nothing more.
    pub(super) fn assume(&self) -> Result<(), SysError> {
        // The process holds these two as permitted, not as effective.
        let mut had = capabilities(None).map_err(SysError::of("capget", "the thread"))?;
        had.effective |= had.permitted & (CapabilitySet::SETUID | CapabilitySet::SETGID);
        set_capabilities(None, had).map_err(SysError::of("capset", "SETUID, SETGID"))?;
        let groups: Vec<_> = self.groups.iter().copied().map(Gid::from_raw).collect();
        // A user namespace that an ordinary user made forbids setgroups; its processes have the
        // groups of their parent, which may well be the thread's.
        if getgroups().map_err(SysError::of("getgroups", "the thread"))? != groups {
            set_thread_groups(&groups)
                .map_err(SysError::of("setgroups", format_args!("{:?}", self.groups)))?;
        }
        // Neither call reports failure; called with an invalid id, each returns the current one.
        let (uid, gid) =
            (nix::unistd::Uid::from_raw(self.uid), nix::unistd::Gid::from_raw(self.gid));
        setfsgid(gid);
        if setfsgid(nix::unistd::Gid::from_raw(u32::MAX)) != gid {
            return Err(SysError::new("setfsgid", gid.to_string(), Errno::PERM));
        }
        setfsuid(uid);
        if setfsuid(nix::unistd::Uid::from_raw(u32::MAX)) != uid {
            return Err(SysError::new("setfsuid", uid.to_string(), Errno::PERM));
        }
        let kept =
            if self.reads_any { CapabilitySet::DAC_READ_SEARCH } else { CapabilitySet::empty() };
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)
            .map_err(SysError::of("capset", format_args!("{:#x}", kept.bits())))?;
        let has = capabilities(None).map_err(SysError::of("capget", "the thread"))?;
        if (has.effective, has.permitted) != (kept, kept) {
            return Err(SysError::new("capset", format!("{:#x}", kept.bits()), Errno::PERM));
        }
        Ok(())
    }

    /// Runs `work` with this identity, as [`run_as`] does.
    ///
    /// # Errors
    /// EAGAIN if no thread can be started.
    pub fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(Result<T, SysError>) + Send + 'static,
    ) -> Result<(), SysError> {
        run_as(Some(self), work, done)
    }
}

/// Runs `work` on a thread of its own that ends with it: with the identity that is given, or with
/// the agent's own. `done` gets the result, or the reason why the identity could not be assumed.
///
/// # Errors
/// EAGAIN if no thread can be started; the caller then drops `work` and `done`.
pub fn run_as<T: Send + 'static>(
    identity: Option<FileIdentity>,
    work: impl FnOnce() -> T + Send + 'static,
    done: impl FnOnce(Result<T, SysError>) + Send + 'static,
) -> Result<(), SysError> {
    let run = move || {
        let assumed = identity.map_or(Ok(()), |identity| identity.assume());
        done(assumed.map(|()| work()));
    };
    let thread = std::thread::Builder::new().name("files".to_owned()).stack_size(STACK).spawn(run);
    // Nobody joins it: it may never end.
    thread.map(drop).map_err(|e| {
        SysError::new("thread", "files", Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))
    })
}
