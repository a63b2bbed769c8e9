//! Reading files as somebody else.
//!
//! The ids that count for file systems, and capabilities, are each thread's own as far as the kernel is concerned. **Invariant**: a thread
//! that took on an identity ends with its work; it is never handed to anybody else.
//! <https://man7.org/linux/man-pages/man2/setfsuid.2.html>

use nix::unistd::{setfsgid, setfsuid};
use rustix::{
    io::Errno,
    process::{Gid, getgroups},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups},
};

use super::SysError;

/// Whom files are read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Whether every file and directory may be read, whoever owns it: CAP_DAC_READ_SEARCH.
    pub reads_any: bool,
}

impl FileIdentity {
    /// Root with all of its rights to read.
    pub const ROOT: Self = Self { uid: 0, gid: 0, groups: Vec::new(), reads_any: true };

    /// Makes the calling thread this one, for good: it keeps no capability but that of reading any file, if that is asked for.
    ///
    /// # Errors
    /// If something of it was not done. The thread is then to do nothing more. EPERM without CAP_SETUID, CAP_SETGID and, if it is asked
    /// for, CAP_DAC_READ_SEARCH.
    pub(super) fn assume(&self) -> Result<(), SysError> {
        // The process keeps them at hand, not in force.
        let mut had = capabilities(None).map_err(SysError::of("capget", "the thread"))?;
        had.effective |= had.permitted & (CapabilitySet::SETUID | CapabilitySet::SETGID);
        set_capabilities(None, had).map_err(SysError::of("capset", "SETUID, SETGID"))?;
        let groups: Vec<_> = self.groups.iter().copied().map(Gid::from_raw).collect();
        // A user namespace made by an ordinary user has no setgroups: there the processes have the groups that all have.
        if getgroups().map_err(SysError::of("getgroups", "the thread"))? != groups {
            set_thread_groups(&groups)
                .map_err(SysError::of("setgroups", format_args!("{:?}", self.groups)))?;
        }
        // These two do not say whether they did anything; asked for an id that nobody has they tell the present one.
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

    /// Runs `work` as this one, on a thread of its own that ends with it.
    ///
    /// # Errors
    /// If there can be no thread. `done` is told everything else.
    pub fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(Result<T, SysError>) + Send + 'static,
    ) -> Result<(), SysError> {
        let run = move || done(self.assume().map(|()| work()));
        let thread =
            std::thread::Builder::new().name("files".to_owned()).stack_size(256 * 1024).spawn(run);
        // It ends by itself.
        thread.map(drop).map_err(|e| {
            SysError::new("thread", "files", Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))
        })
    }
}
