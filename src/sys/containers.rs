//! From container ids to their first processes: one pass over `/proc` for any number of containers,
//! and none for those already known.
//!
//! A container id comes from a pod's status, which whoever holds `update pods/status` can forge. It
//! therefore only says what to look for. What is found counts for the pod whose UID stands in the
//! process' cgroup, and everything that is remembered is kept below that pod.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Semaphore;

use super::{
    SysError,
    pass::PASSES,
    process::ContainerProcess,
    procfs::{Proc, ProcessDir},
};
use crate::domain::{
    cgroup::{self, ContainerCgroup, Membership},
    namespace::{NamespaceKind, NamespaceSet},
    pod::Pod,
    process::{self, Candidate},
};

/// The containers of the node.
#[derive(Debug)]
pub struct Containers {
    proc: Proc,
    host: Host,
    /// The process that stands for the host.
    host_process: ProcessDir,
    /// What was proven before, by the name of the pod's cgroup.
    known: Mutex<HashMap<String, KnownPod>>,
    /// Permits for passes over `/proc`, see [`Containers::pass`].
    passes: Arc<Semaphore>,
}

/// The host that containers are compared with.
#[derive(Debug, Clone)]
pub struct Host {
    /// The namespaces of the process that stands for the host.
    pub namespaces: NamespaceSet,
    /// Whether the host runs cgroup v2 only.
    pub unified: bool,
}

/// Processes of one pod that were proven before. Each counts until its pidfd says that it has
/// ended.
#[derive(Debug, Default)]
struct KnownPod {
    /// First processes by container id.
    containers: HashMap<String, Arc<ContainerProcess>>,
    sandbox: Option<Arc<ContainerProcess>>,
    /// The oldest container of a pod that has no sandbox. None appears while that container runs.
    oldest_without_sandbox: Option<Arc<ContainerProcess>>,
}

impl KnownPod {
    fn forget_ended(&mut self) {
        self.containers.retain(|_, process| process.is_alive());
        self.sandbox.take_if(|process| !process.is_alive());
        self.oldest_without_sandbox.take_if(|process| !process.is_alive());
    }

    fn is_empty(&self) -> bool {
        self.containers.is_empty()
            && self.sandbox.is_none()
            && self.oldest_without_sandbox.is_none()
    }
}

/// All processes in cgroups of containers, at one moment.
#[derive(Debug, Default)]
pub struct Scan {
    /// By container id. An id has several entries if the cgroups of several pods have that name.
    members: HashMap<String, Vec<Members>>,
}

/// The processes of one container.
#[derive(Debug)]
struct Members {
    /// The UID in their cgroup's path, in the spelling of the API.
    pod_uid: String,
    pids: Vec<u32>,
}

impl Scan {
    /// The pids in the cgroup of a container.
    pub fn pids(&self, wanted: ContainerCgroup<'_>) -> impl Iterator<Item = u32> {
        let with_id = self.members.get(wanted.id).into_iter().flatten();
        with_id.filter(move |m| m.pod_uid == wanted.pod).flat_map(|m| m.pids.iter().copied())
    }

    /// Adds a process. For a container that has one already, which is the common case, this
    /// allocates nothing.
    fn add(&mut self, membership: &Membership<'_>, pid: u32) {
        // A container of no pod, such as Docker's own, is none that anybody can ask for.
        let Some(pod_uid) = membership.pod_uid else { return };
        if !self.members.contains_key(membership.id) {
            self.members.insert(membership.id.to_owned(), Vec::new());
        }
        let Some(all) = self.members.get_mut(membership.id) else { return };
        match all.iter_mut().find(|m| membership.is_of_pod(&m.pod_uid)) {
            Some(members) => members.pids.push(pid),
            None => all.push(Members { pod_uid: pod_uid.replace('_', "-"), pids: vec![pid] }),
        }
    }

    /// The ids of containers whose cgroup is below that of the pod.
    fn of_pod<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a str> {
        self.members
            .iter()
            .filter(move |(_, all)| all.iter().any(|m| m.pod_uid == uid))
            .map(|(id, _)| id.as_str())
    }
}

impl Containers {
    /// Opens `/proc`. The process `host_pid` stands for the host; on a node that is 1. Hardened
    /// hosts let nobody look into pid 1: there, kthreadd, which is in the same namespaces, does.
    ///
    /// # Errors
    /// If `/proc` or the process cannot be opened.
    pub fn open(host_pid: u32) -> Result<Self, SysError> {
        let proc = Proc::open()?;
        let mut buffer = Vec::new();
        let mut dir = proc.process(host_pid)?;
        let is_kthreadd = |text: &str| text.starts_with("2 (kthreadd) S 0 ");
        if host_pid == 1
            && dir.namespaces().get(NamespaceKind::Net).is_none()
            && proc.read(2, "stat", &mut buffer).is_ok_and(is_kthreadd)
        {
            dir = proc.process(2)?;
        }
        let unified = cgroup::is_unified(dir.read("cgroup", &mut buffer)?);
        let host = Host { namespaces: dir.namespaces(), unified };
        let passes = Arc::new(Semaphore::new(PASSES));
        Ok(Self { proc, host, host_process: dir, known: Mutex::default(), passes })
    }

    /// Says which pod the agent itself runs in. Without this, the other containers of that pod are
    /// not found where the agent has a cgroup namespace of its own.
    pub fn in_pod(mut self, uid: Option<String>) -> Self {
        self.proc.set_own_pod(uid);
        self
    }

    /// The host's root directory, O_PATH. It is opened each time, so that nothing of the host stays
    /// open.
    ///
    /// # Errors
    /// EACCES where the process that stands for the host may not be inspected.
    pub fn host_root(&self) -> Result<OwnedFd, SysError> {
        self.host_process.open_path("root")
    }

    /// The mounts of the host, as `/proc/<pid>/mountinfo` prints them.
    ///
    /// # Errors
    /// If they may not be read.
    pub fn host_mounts(&self) -> Result<OwnedFd, SysError> {
        self.host_process.open("mountinfo")
    }

    pub(super) fn passes(&self) -> &Arc<Semaphore> {
        &self.passes
    }

    /// The open `/proc`.
    pub(super) fn proc(&self) -> &Proc {
        &self.proc
    }

    /// The host that containers are compared with.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// One pass over all processes.
    ///
    /// # Errors
    /// If `/proc` cannot be listed, or if descriptors or memory do not suffice to read every
    /// process. A process that ends during the pass is left out.
    pub fn scan(&self) -> Result<Scan, SysError> {
        let mut scan = Scan::default();
        let mut buffer = Vec::with_capacity(8192);
        for pid in self.proc.pids()? {
            let text = match self.proc.read(pid, "cgroup", &mut buffer) {
                Ok(text) => text,
                // A process left out could make a running container look stopped.
                Err(error) if error.is_exhaustion() => return Err(error),
                Err(_) => continue,
            };
            for membership in cgroup::memberships(text, self.proc.own_pod()) {
                scan.add(&membership, pid);
            }
        }
        Ok(scan)
    }

    /// The first processes of these containers; one that cannot be proven is left out. Scans only
    /// if one of them is not known yet, and leaves the scan in `scan`.
    ///
    /// # Errors
    /// As [`Containers::scan`].
    pub fn resolve<'a>(
        &self,
        cgroups: impl Iterator<Item = ContainerCgroup<'a>>,
        scan: &mut Option<Scan>,
    ) -> Result<HashMap<ContainerCgroup<'a>, Arc<ContainerProcess>>, SysError> {
        self.forget_ended();
        let mut found = HashMap::new();
        for wanted in cgroups {
            let process = match self.known_container(wanted) {
                Some(process) => process,
                None => match self.pin_first(self.made(scan)?, wanted) {
                    Some(process) => self.remember(wanted, process),
                    None => continue,
                },
            };
            found.insert(wanted, process);
        }
        Ok(found)
    }

    /// The pod's sandbox (pause) process, if it has one.
    ///
    /// No container status names the sandbox' id. It is the container below the pod's cgroup whose
    /// id none of the pod's containers has and that started before all of these: a container that
    /// is only just starting has no status yet either, and must not be taken for the sandbox. Scans
    /// only if the sandbox is not known yet, and leaves the scan in `scan`.
    ///
    /// # Errors
    /// As [`Containers::scan`].
    pub fn sandbox(
        &self,
        pod: &Pod,
        containers: &[&Arc<ContainerProcess>],
        scan: &mut Option<Scan>,
    ) -> Result<Option<Arc<ContainerProcess>>, SysError> {
        let pod_uid = pod.cgroup_uid.as_str();
        let Some(oldest) = containers.iter().min_by_key(|c| c.facts.start_ticks) else {
            return Ok(None);
        };
        if let Some(known) = self.lock().get(pod_uid) {
            if let Some(sandbox) = known.sandbox.as_ref().filter(|p| p.is_alive()) {
                return Ok(Some(Arc::clone(sandbox)));
            }
            // Not every runtime has sandbox processes.
            if known.oldest_without_sandbox.as_ref().is_some_and(|p| Arc::ptr_eq(p, oldest)) {
                return Ok(None);
            }
        }
        let scan = self.made(scan)?;
        let mut others = scan
            .of_pod(pod_uid)
            .filter(|id| pod.containers.iter().all(|c| !c.has_id(id)))
            .peekable();
        if others.peek().is_none() {
            let mut known = self.lock();
            let known = known.entry(pod_uid.to_owned()).or_default();
            known.oldest_without_sandbox = Some(Arc::clone(oldest));
        }
        let sandbox = others
            .filter_map(|id| self.pin_first(scan, ContainerCgroup { pod: pod_uid, id }))
            .min_by_key(|p| p.facts.start_ticks)
            .filter(|p| p.facts.start_ticks <= oldest.facts.start_ticks)
            .map(Arc::new);
        if let Some(sandbox) = &sandbox {
            let mut known = self.lock();
            known.entry(pod_uid.to_owned()).or_default().sandbox = Some(Arc::clone(sandbox));
        }
        Ok(sandbox)
    }

    /// The scan that is there, or a new one.
    fn made<'s>(&self, scan: &'s mut Option<Scan>) -> Result<&'s Scan, SysError> {
        Ok(match scan {
            Some(scan) => scan,
            none => none.insert(self.scan()?),
        })
    }

    /// The first process of a container in `scan`, pinned.
    fn pin_first(&self, scan: &Scan, wanted: ContainerCgroup<'_>) -> Option<ContainerProcess> {
        let mut buffer = Vec::with_capacity(4096);
        let mut started = Vec::new();
        for pid in scan.pids(wanted) {
            let stat = self.proc.read(pid, "stat", &mut buffer).ok();
            started.extend(stat.and_then(process::start_ticks).map(|ticks| (ticks, pid)));
        }
        started.sort_unstable();
        // `status` takes the kernel long to write, so it is read only for the earliest processes.
        let candidates = started
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same_tick| {
                let candidate = |&(start_ticks, pid): &(u64, u32)| {
                    let ns_pids =
                        process::ns_pids(self.proc.read(pid, "status", &mut buffer).ok()?);
                    Some(Candidate { pid, start_ticks, ns_pids })
                };
                same_tick.iter().filter_map(candidate).collect::<Vec<_>>()
            })
            .find(|candidates| !candidates.is_empty())?;
        ContainerProcess::pin(&self.proc, process::first_of(&candidates)?.clone(), wanted).ok()
    }

    fn known_container(&self, wanted: ContainerCgroup<'_>) -> Option<Arc<ContainerProcess>> {
        let known = self.lock();
        let process = known.get(wanted.pod)?.containers.get(wanted.id)?;
        process.is_alive().then(|| Arc::clone(process))
    }

    fn remember(
        &self,
        wanted: ContainerCgroup<'_>,
        process: ContainerProcess,
    ) -> Arc<ContainerProcess> {
        let process = Arc::new(process);
        let mut known = self.lock();
        let of_pod = known.entry(wanted.pod.to_owned()).or_default();
        of_pod.containers.insert(wanted.id.to_owned(), Arc::clone(&process));
        process
    }

    /// Drops processes that have ended, so that no more are held than the node has containers and
    /// sandboxes.
    fn forget_ended(&self) {
        self.lock().retain(|_, pod| {
            pod.forget_ended();
            !pod.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, KnownPod>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
