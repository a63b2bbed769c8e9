//! From container ids to their first processes: one pass over `/proc` for any number of containers, and none for those already known.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    SysError,
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
    /// Processes that were found before, by container id. Their pidfds tell when they are no good any more.
    known: Mutex<HashMap<String, Arc<ContainerProcess>>>,
}

/// The host that containers are compared with.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its namespaces.
    pub namespaces: NamespaceSet,
    /// Whether it runs cgroup v2 only.
    pub unified: bool,
}

/// All processes in cgroups of containers, at one moment.
#[derive(Debug, Default)]
pub struct Scan {
    /// By container id. More than one where another pod's container has a cgroup of that name.
    members: HashMap<String, Vec<Members>>,
}

/// The processes of one container, and the pod that their cgroup names.
#[derive(Debug, Default)]
struct Members {
    pod_uid: Option<String>,
    pids: Vec<u32>,
}

impl Scan {
    /// The pids in the cgroup of a container.
    pub fn pids(&self, place: ContainerCgroup<'_>) -> impl Iterator<Item = u32> {
        let of_id = self.members.get(place.id).into_iter().flatten();
        let of_pod = of_id.filter(move |m| m.pod_uid.as_deref().is_none_or(|uid| uid == place.pod));
        of_pod.flat_map(|m| m.pids.iter().copied())
    }

    /// Counts a process in. The common case, a container seen before, allocates nothing.
    fn add(&mut self, membership: &Membership<'_>, pid: u32) {
        let pod_uid = || membership.pod_uid.map(|uid| uid.replace('_', "-"));
        if !self.members.contains_key(membership.id) {
            self.members.insert(membership.id.to_owned(), Vec::new());
        }
        let Some(all) = self.members.get_mut(membership.id) else { return };
        let same = |m: &&mut Members| match &m.pod_uid {
            Some(uid) => membership.is_of_pod(uid),
            None => membership.pod_uid.is_none(),
        };
        match all.iter_mut().find(same) {
            Some(members) => members.pids.push(pid),
            None => all.push(Members { pod_uid: pod_uid(), pids: vec![pid] }),
        }
    }

    /// The ids of containers whose cgroup is below that of the pod.
    fn of_pod<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a str> {
        self.members
            .iter()
            .filter(move |(_, all)| all.iter().any(|m| m.pod_uid.as_deref() == Some(uid)))
            .map(|(id, _)| id.as_str())
    }
}

impl Containers {
    /// Opens `/proc` and takes the process with pid `host_pid` for the host's: 1 on a node. If pid 1 may not be looked into, as on hardened
    /// hosts, the kernel's own thread daemon, which is in the same namespaces, stands for it.
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
        Ok(Self { proc, host, host_process: dir, known: Mutex::default() })
    }

    /// The host's root directory, O_PATH. Opened each time: nothing of the host's stays open.
    ///
    /// # Errors
    /// If it may not be looked at.
    pub fn host_root(&self) -> Result<OwnedFd, SysError> {
        self.host_process.open_path("root")
    }

    /// The open `/proc`.
    pub(super) fn proc(&self) -> &Proc {
        &self.proc
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// One pass over all processes.
    ///
    /// # Errors
    /// If `/proc` cannot be listed, or there are too few descriptors or too little memory to look at all of them. A process that ends
    /// meanwhile is left out.
    pub fn scan(&self) -> Result<Scan, SysError> {
        let mut scan = Scan::default();
        let mut buffer = Vec::with_capacity(8192);
        for pid in self.proc.pids()? {
            let text = match self.proc.read(pid, "cgroup", &mut buffer) {
                Ok(text) => text,
                // Leaving processes out would make a container that runs one that does not.
                Err(error) if error.is_exhaustion() => return Err(error),
                Err(_) => continue,
            };
            for membership in cgroup::memberships(text) {
                scan.add(&membership, pid);
            }
        }
        Ok(scan)
    }

    /// The first processes of these containers, as far as they can be proven, by id. Makes `scan` if there is none and
    /// one of them is not known yet.
    ///
    /// # Errors
    /// As [`Containers::scan`].
    pub fn resolve<'a>(
        &self,
        places: impl Iterator<Item = ContainerCgroup<'a>>,
        scan: &mut Option<Scan>,
    ) -> Result<HashMap<&'a str, Arc<ContainerProcess>>, SysError> {
        self.forget_ended();
        let mut found = HashMap::new();
        for place in places {
            let process = match self.known(place.id) {
                Some(process) => process,
                None => match self.pin_first(self.made(scan)?, place) {
                    Some(process) => self.remember(place.id.to_owned(), process),
                    None => continue,
                },
            };
            found.insert(place.id, process);
        }
        Ok(found)
    }

    /// The pod's sandbox (pause) process, if it has one: no container status names its id. It is what runs below the pod's cgroup under
    /// an id that none of its containers has and that started before all of these, so that a container that is only just starting, and
    /// has no status yet, is never taken for it. Makes `scan` if there is none and it is not known yet.
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
        let key = format!("sandbox of {pod_uid}");
        if let Some(known) = self.known(&key) {
            return Ok(Some(known));
        }
        let Some(oldest) = containers.iter().min_by_key(|c| c.facts.start_ticks) else {
            return Ok(None);
        };
        // Not every runtime has them. One that was not there does not come while the container that would be in it runs.
        let none = format!("no sandbox of {pod_uid} for {}", oldest.container_id);
        if self.known(&none).is_some() {
            return Ok(None);
        }
        let scan = self.made(scan)?;
        let mut others = scan
            .of_pod(pod_uid)
            .filter(|id| pod.containers.iter().all(|c| !c.has_id(id)))
            .peekable();
        if others.peek().is_none() {
            self.remember_shared(none, Arc::clone(oldest));
        }
        let sandbox = others
            .filter_map(|id| self.pin_first(scan, ContainerCgroup { pod: pod_uid, id }))
            .min_by_key(|p| p.facts.start_ticks)
            .filter(|p| p.facts.start_ticks <= oldest.facts.start_ticks);
        Ok(sandbox.map(|process| self.remember(key, process)))
    }

    /// The scan, made now if there is none.
    fn made<'s>(&self, scan: &'s mut Option<Scan>) -> Result<&'s Scan, SysError> {
        Ok(match scan {
            Some(scan) => scan,
            none => none.insert(self.scan()?),
        })
    }

    /// The first process of a container in `scan`, pinned.
    fn pin_first(&self, scan: &Scan, place: ContainerCgroup<'_>) -> Option<ContainerProcess> {
        let mut buffer = Vec::with_capacity(4096);
        let mut started = Vec::new();
        for pid in scan.pids(place) {
            let stat = self.proc.read(pid, "stat", &mut buffer).ok();
            started.extend(stat.and_then(process::start_ticks).map(|ticks| (ticks, pid)));
        }
        started.sort_unstable();
        // The kernel takes long to write `status`, so only those that started first are asked for it.
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
        ContainerProcess::pin(&self.proc, process::first_of(&candidates)?.clone(), place).ok()
    }

    fn known(&self, key: &str) -> Option<Arc<ContainerProcess>> {
        self.lock().get(key).filter(|p| p.is_alive()).cloned()
    }

    fn remember(&self, key: String, process: ContainerProcess) -> Arc<ContainerProcess> {
        let process = Arc::new(process);
        self.remember_shared(key, Arc::clone(&process));
        process
    }

    fn remember_shared(&self, key: String, process: Arc<ContainerProcess>) {
        self.lock().insert(key, process);
    }

    /// Lets go of processes that have ended: no more are held than the node has containers and sandboxes.
    fn forget_ended(&self) {
        self.lock().retain(|_, process| process.is_alive());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<ContainerProcess>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
