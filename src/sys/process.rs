//! The first process of a container: proven to be that, and pinned so that it can never be mistaken
//! for another one.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    SysError, ffi,
    procfs::{Proc, ProcessDir},
    rooted::root_failed,
};
use crate::domain::{
    Error, Reason, Result,
    cgroup::{self, ContainerCgroup},
    namespace::{NamespaceKind, NamespaceSet},
    process::{self, Candidate, Credentials, IdMap},
};

/// A process held by its pidfd.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens the pidfd of a process.
    ///
    /// # Errors
    /// ESRCH if there is none.
    pub fn open(pid: u32) -> Result<Self, SysError> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| SysError::new("pidfd_open", pid.to_string(), Errno::SRCH))?;
        pidfd_open(raw, PidfdFlags::empty()).map(Self).map_err(SysError::of("pidfd_open", pid))
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Whether the process has not ended.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }

    /// Waits until the process has ended: its pidfd then becomes readable.
    ///
    /// # Errors
    /// If the runtime cannot wait for it.
    pub async fn ended(self) -> std::io::Result<()> {
        ffi::readable(self.0)?.readable().await.map(drop)
    }

    /// Sends a signal. On a process that has ended this does nothing, and is no error.
    ///
    /// # Errors
    /// EPERM without CAP_KILL.
    pub fn signal(&self, signal: Signal) -> Result<(), SysError> {
        match pidfd_send_signal(&self.0, signal) {
            Err(Errno::SRCH) => Ok(()),
            done => done.map_err(SysError::of("pidfd_send_signal", format_args!("{signal:?}"))),
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The first process of a container.
#[derive(Debug)]
pub struct ContainerProcess {
    /// The runtime's id of the container, 64 hex digits.
    pub container_id: String,
    /// What `/proc` said when it was pinned. It does not change while the process lives.
    pub facts: Candidate,
    pidfd: Pidfd,
    dir: ProcessDir,
}

impl ContainerProcess {
    /// Pins the process that `candidate` describes, if it is still the same and in the container's
    /// cgroup.
    ///
    /// The order proves it. While the pidfd's process lives, its pid is given to no other. So a
    /// directory that is opened and read after the pidfd was opened, and before the pidfd is seen
    /// to be alive, is that process' own.
    ///
    /// # Errors
    /// PROCESS_GONE if it has ended or differs from `candidate`.
    pub fn pin(proc: &Proc, candidate: Candidate, wanted: ContainerCgroup<'_>) -> Result<Self> {
        let pidfd = Pidfd::open(candidate.pid)?;
        let dir = proc.process(candidate.pid)?;
        let mut buffer = Vec::new();
        let same_start =
            process::start_ticks(dir.read("stat", &mut buffer)?) == Some(candidate.start_ticks);
        let in_container = cgroup::memberships(dir.read("cgroup", &mut buffer)?, proc.own_pod())
            .any(|m| m.is(wanted));
        if same_start && in_container && pidfd.is_alive() {
            return Ok(Self { container_id: wanted.id.to_owned(), facts: candidate, pidfd, dir });
        }
        Err(Error::new(
            Reason::ProcessGone,
            format!("process {} is not the container's any more", candidate.pid),
        ))
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        self.pidfd.is_alive()
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> &Pidfd {
        &self.pidfd
    }

    /// Its current namespaces, which a process may change.
    ///
    /// # Errors
    /// PROCESS_GONE if it has ended: the ids would then prove nothing.
    pub fn namespaces(&self) -> Result<NamespaceSet> {
        let namespaces = self.dir.namespaces();
        self.check_alive()?;
        Ok(namespaces)
    }

    /// When it started. None if the kernel's clock cannot be read.
    pub fn started_at(&self) -> Option<SystemTime> {
        let ticks = procfs::ticks_per_second().max(1);
        let (whole, rest) = (self.facts.start_ticks / ticks, self.facts.start_ticks % ticks);
        let since_boot =
            Duration::from_secs(whole) + Duration::from_millis(rest.saturating_mul(1000) / ticks);
        UNIX_EPOCH
            .checked_add(Duration::from_secs(procfs::boot_time_secs().ok()?))?
            .checked_add(since_boot)
    }

    /// The pid that `other` has in this process' pid namespace. None if it is not visible there.
    pub fn pid_of(&self, other: &Self) -> Option<u32> {
        let ns = self.dir.open("ns/pid").ok()?;
        match ffi::pid_in_namespace(ns.as_fd(), other.facts.pid) {
            Ok(pid) => Some(pid),
            Err(Errno::SRCH) => None,
            // Before Linux 6.11, NSpid tells if both are in one namespace.
            Err(_) => {
                let kind = NamespaceKind::Pid;
                let same =
                    self.namespaces().ok()?.get(kind)? == other.namespaces().ok()?.get(kind)?;
                same.then(|| other.facts.own_pid())
            }
        }
    }

    /// Its root directory, O_PATH.
    ///
    /// # Errors
    /// PROCESS_GONE if it has ended: the root could then be another process'.
    pub fn root(&self) -> Result<OwnedFd> {
        let root = self.dir.open_path("root").map_err(root_failed)?;
        self.check_alive()?;
        Ok(root)
    }

    /// Its current credentials, which a process may change.
    ///
    /// # Errors
    /// PROCESS_GONE if it ended.
    pub fn credentials(&self) -> Result<Credentials> {
        let found = Credentials::of_status(self.dir.read("status", &mut Vec::new())?);
        self.check_alive()?;
        found.ok_or_else(|| {
            let message =
                format!("/proc/{}/status does not say whose the process is", self.facts.pid);
            Error::new(Reason::SystemCall, message)
        })
    }

    /// How its user namespace maps users and groups.
    ///
    /// # Errors
    /// PROCESS_GONE if it ended.
    pub fn id_maps(&self) -> Result<(IdMap, IdMap)> {
        let mut buffer = Vec::new();
        let users = IdMap::parse(self.dir.read("uid_map", &mut buffer)?);
        let groups = IdMap::parse(self.dir.read("gid_map", &mut buffer)?);
        self.check_alive()?;
        Ok((users, groups))
    }

    /// Checks that it has not ended.
    ///
    /// # Errors
    /// PROCESS_GONE.
    pub fn check_alive(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        Err(Error::new(Reason::ProcessGone, format!("process {} has ended", self.facts.pid)))
    }
}
