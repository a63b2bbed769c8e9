//! From container ids to their first processes: one pass over `/proc` for any number of containers, and none for those already known.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{SysError, process::ContainerProcess, procfs::Proc};
use crate::domain::{
    cgroup,
    namespace::{NamespaceId, NamespaceKind, NamespaceSet},
    process::{self, Candidate},
};

/// The containers of the node.
#[derive(Debug)]
pub struct Containers {
    proc: Proc,
    host: Host,
    /// Processes that were found before, by container id. Their pidfds tell when they are no good any more.
    known: Mutex<HashMap<String, Arc<ContainerProcess>>>,
}

/// The host that containers are compared with.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its namespaces.
    pub namespaces: NamespaceSet,
    /// Its root directory; none if it may not be read.
    pub root: Option<NamespaceId>,
    /// Whether it runs cgroup v2 only.
    pub unified: bool,
}

/// All processes in cgroups of containers, at one moment.
#[derive(Debug, Default)]
pub struct Scan {
    members: HashMap<String, Members>,
}

/// The processes of one container, and the pod that their cgroup names.
#[derive(Debug, Default)]
struct Members {
    pod_uid: Option<String>,
    pids: Vec<u32>,
}

impl Scan {
    /// The pids in the cgroup of a container.
    pub fn pids(&self, container_id: &str) -> &[u32] {
        self.members.get(container_id).map_or(&[], |m| &m.pids)
    }

    /// The ids of containers whose cgroup is below that of the pod.
    fn of_pod<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a str> {
        self.members
            .iter()
            .filter(move |(_, m)| m.pod_uid.as_deref().is_some_and(|found| found == uid))
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
        let host = Host { namespaces: dir.namespaces(), root: dir.root().ok(), unified };
        Ok(Self { proc, host, known: Mutex::default() })
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
    /// If `/proc` cannot be listed. A process that ends meanwhile is left out.
    pub fn scan(&self) -> Result<Scan, SysError> {
        let mut scan = Scan::default();
        let mut buffer = Vec::with_capacity(8192);
        for pid in self.proc.pids()? {
            let Ok(text) = self.proc.read(pid, "cgroup", &mut buffer) else { continue };
            for membership in cgroup::memberships(text) {
                // The common case, a container seen before, allocates nothing.
                if !scan.members.contains_key(membership.id) {
                    let pod_uid = membership.pod_uid.map(|uid| uid.replace('_', "-"));
                    scan.members.insert(membership.id.to_owned(), Members { pod_uid, pids: Vec::new() });
                }
                if let Some(members) = scan.members.get_mut(membership.id) {
                    members.pids.push(pid);
                }
            }
        }
        Ok(scan)
    }

    /// The first processes of the containers with these ids, as far as they can be proven, by id. Passes over `/proc` only if one of
    /// them is not known yet.
    ///
    /// # Errors
    /// If `/proc` cannot be listed.
    pub fn resolve<'a>(
        &self,
        ids: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<HashMap<&'a str, Arc<ContainerProcess>>, SysError> {
        let mut found: HashMap<_, _> = ids.clone().filter_map(|id| Some((id, self.known(id)?))).collect();
        if ids.clone().all(|id| found.contains_key(id)) {
            return Ok(found);
        }
        let scan = self.scan()?;
        for id in ids {
            if !found.contains_key(id)
                && let Some(process) = self.first_process(&scan, id)
            {
                found.insert(id, process);
            }
        }
        Ok(found)
    }

    /// The pod's sandbox (pause) process, if it has one: no container status names its id. It is what runs below the pod's cgroup under
    /// an id that is none of `containers` and that started before all of these, so that a container that is only just starting, and
    /// has no status yet, is never taken for it.
    ///
    /// # Errors
    /// If `/proc` cannot be listed.
    pub fn sandbox(
        &self,
        pod_uid: &str,
        containers: &[Arc<ContainerProcess>],
        scan: &mut Option<Scan>,
    ) -> Result<Option<Arc<ContainerProcess>>, SysError> {
        let key = format!("sandbox of {pod_uid}");
        if let Some(known) = self.known(&key) {
            return Ok(Some(known));
        }
        let scan = match scan {
            Some(scan) => scan,
            none => none.insert(self.scan()?),
        };
        let Some(oldest) = containers.iter().map(|c| c.facts.start_ticks).min() else { return Ok(None) };
        let sandbox = scan
            .of_pod(pod_uid)
            .filter(|id| containers.iter().all(|c| c.container_id != *id))
            .filter_map(|id| self.pin_first(scan, id))
            .min_by_key(|p| p.facts.start_ticks)
            .filter(|p| p.facts.start_ticks <= oldest)
            .map(Arc::new);
        if let Some(process) = &sandbox {
            self.remember(key, process);
        }
        Ok(sandbox)
    }

    /// The first process of a container in `scan`, pinned and remembered.
    fn first_process(&self, scan: &Scan, id: &str) -> Option<Arc<ContainerProcess>> {
        let process = Arc::new(self.pin_first(scan, id)?);
        self.remember(id.to_owned(), &process);
        Some(process)
    }

    fn pin_first(&self, scan: &Scan, id: &str) -> Option<ContainerProcess> {
        let candidates: Vec<_> = scan.pids(id).iter().filter_map(|pid| self.candidate(*pid)).collect();
        let first = process::first_of(&candidates)?.clone();
        ContainerProcess::pin(&self.proc, first, id).ok()
    }

    fn candidate(&self, pid: u32) -> Option<Candidate> {
        let mut buffer = Vec::with_capacity(4096);
        let start_ticks = process::start_ticks(self.proc.read(pid, "stat", &mut buffer).ok()?)?;
        let ns_pids = process::ns_pids(self.proc.read(pid, "status", &mut buffer).ok()?);
        Some(Candidate { pid, start_ticks, ns_pids })
    }

    fn known(&self, key: &str) -> Option<Arc<ContainerProcess>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|p| p.is_alive()).cloned()
    }

    /// Remembers a process, and forgets those that have ended: the map is never larger than the node has containers and sandboxes.
    fn remember(&self, key: String, process: &Arc<ContainerProcess>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == known.capacity() {
            known.retain(|_, p| p.is_alive());
        }
        known.insert(key, Arc::clone(process));
    }
}
