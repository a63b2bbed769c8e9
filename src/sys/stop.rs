//! Ending all processes of a container, without the runtime.

use rustix::process::Signal;

use super::{SysError, containers::Containers, process::Pidfd, procfs::Proc};
use crate::domain::cgroup::{self, ContainerCgroup};

impl Containers {
    /// Pins every process in the container's cgroup and sends it `signal`. Returns those that got
    /// it.
    ///
    /// A process that is forked meanwhile is missed: call again until none is left.
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

/// What came of a signal to all processes of a container.
#[derive(Debug, Default)]
pub struct Signalled {
    /// Those that got it, with their pids.
    pub processes: Vec<(u32, Pidfd)>,
    /// How many could not be sent it.
    pub refused: u32,
}

/// The process with this pid, if it is in the container's cgroup: read after the pidfd was opened
/// and before a last look at it, so it is that process' cgroup.
fn pin(proc: &Proc, pid: u32, place: ContainerCgroup<'_>, buffer: &mut Vec<u8>) -> Option<Pidfd> {
    let process = Pidfd::open(pid).ok()?;
    let text = proc.read(pid, "cgroup", buffer).ok()?;
    let inside = cgroup::memberships(text, proc.own_pod()).any(|m| m.is(place));
    (inside && process.is_alive()).then_some(process)
}
