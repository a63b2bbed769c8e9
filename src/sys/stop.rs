//! Ending all processes of a container, without the runtime.

use rustix::process::Signal;

use super::{SysError, containers::Containers, process::Pidfd, procfs::Proc};
use crate::domain::cgroup::{self, ContainerCgroup};

impl Containers {
    /// Sends `signal` to every process in the container's cgroup, each pinned first. Returns those
    /// that got it. Misses a process that is forked meanwhile: call again until none is left.
    ///
    /// # Errors
    /// If `/proc` cannot be listed.
    pub fn signal(
        &self,
        place: ContainerCgroup<'_>,
        signal: Signal,
    ) -> Result<Signalled, SysError> {
        let mut signalled = Signalled::default();
        let mut buffer = Vec::new();
        for pid in self.scan()?.pids(place) {
            match pin(self.proc(), pid, place, &mut buffer) {
                Some(process) if process.signal(signal).is_ok() => {
                    signalled.processes.push((pid, process));
                }
                Some(_) => signalled.refused = signalled.refused.saturating_add(1),
                None => {}
            }
        }
        Ok(signalled)
    }
}

/// The outcome of a signal to all processes of a container.
#[derive(Debug, Default)]
pub struct Signalled {
    /// The processes that got it, with their pids.
    pub processes: Vec<(u32, Pidfd)>,
    /// How many it could not be sent to.
    pub refused: u32,
}

/// The process with this pid, if it is in the container's cgroup. The cgroup is read after the
/// pidfd was opened and before a last look at the pidfd, so it is that process' own.
fn pin(proc: &Proc, pid: u32, place: ContainerCgroup<'_>, buffer: &mut Vec<u8>) -> Option<Pidfd> {
    let process = Pidfd::open(pid).ok()?;
    let text = proc.read(pid, "cgroup", buffer).ok()?;
    let inside = cgroup::memberships(text, proc.own_pod()).any(|m| m.is(place));
    (inside && process.is_alive()).then_some(process)
}
