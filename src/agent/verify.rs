//! Verification: for containers of the node's pods, which namespaces they really have.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::{
    domain::{
        Error, Reason, Result,
        evidence::{Evidence, MutualPids},
        namespace::{NamespaceKind, NamespaceSet},
        pod::{Container, ContainerKind, Pod},
        verdict::{Census, Comparison, ContainerVerdict, Outcome, ReferenceKind},
    },
    kube::pods::Pods,
    sys::{
        broker::Entry,
        containers::{Containers, Scan},
        evidence,
        process::ContainerProcess,
    },
};

/// What was found about one pod.
#[derive(Debug)]
pub struct PodReport {
    /// The pod.
    pub pod: Arc<Pod>,
    /// One per verified container.
    pub containers: Vec<ContainerReport>,
}

/// What was found about one container.
#[derive(Debug)]
pub struct ContainerReport {
    /// Its name.
    pub name: String,
    /// Its first process, if it was proven.
    pub process: Option<Arc<ContainerProcess>>,
    /// What it was compared with.
    pub reference: Reference,
    /// The verdict.
    pub verdict: ContainerVerdict,
    /// What is seen from inside; empty where it is the host's or could not be taken.
    pub evidence: Evidence,
    /// Which pid it and the reference have for each other.
    pub pids: MutualPids,
}

/// What a container was compared with.
#[derive(Debug, Clone)]
pub struct Reference {
    /// What kind of thing.
    pub kind: ReferenceKind,
    /// Name of the container; empty for the sandbox and for nothing.
    pub name: String,
    /// Its process.
    pub process: Option<Arc<ContainerProcess>>,
}

impl Reference {
    const NONE: Self = Self { kind: ReferenceKind::None, name: String::new(), process: None };
}

/// Verifies.
#[derive(Debug)]
pub struct Verifier {
    pods: Arc<Pods>,
    containers: Arc<Containers>,
    entry: Arc<Entry>,
    /// Passes over `/proc` at a time.
    passes: Semaphore,
    counts: [AtomicU64; 3],
}

/// A container of the node that runs, with its process and the namespaces that has.
struct Live<'a> {
    pod: &'a Pod,
    container: &'a Container,
    process: Arc<ContainerProcess>,
    namespaces: NamespaceSet,
}

impl Verifier {
    /// Verifies pods that `pods` knows, and takes evidence by way of `entry`.
    pub fn new(pods: Arc<Pods>, containers: Arc<Containers>, entry: Arc<Entry>) -> Self {
        Self { pods, containers, entry, passes: Semaphore::new(2), counts: Default::default() }
    }

    /// How many verdicts there were, by outcome.
    pub fn counts(&self) -> [(Outcome, u64); 3] {
        let [ok, unknown, drift] = &self.counts;
        [(Outcome::Ok, ok), (Outcome::Unknown, unknown), (Outcome::Drift, drift)]
            .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }

    /// Verifies the running containers of `wanted`, or of these only the one that is named.
    ///
    /// All containers of the node are looked at, since a namespace may leak from any of them.
    ///
    /// # Errors
    /// SYSTEM_CALL if `/proc` cannot be read. What cannot be told about a container is its verdict.
    pub async fn verify(
        self: &Arc<Self>,
        wanted: Vec<Arc<Pod>>,
        container: Option<String>,
    ) -> Result<Vec<PodReport>> {
        let permit =
            self.passes.acquire().await.map_err(|_| Error::new(Reason::Bug, "the semaphore was closed"))?;
        let this = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || this.pass(&wanted, container.as_deref()));
        let reports = work.await.map_err(|e| Error::new(Reason::Bug, e.to_string()))??;
        drop(permit);
        for report in reports.iter().flat_map(|p| &p.containers) {
            let [ok, unknown, drift] = &self.counts;
            let count = match report.verdict.outcome {
                Outcome::Ok => ok,
                Outcome::Unknown => unknown,
                Outcome::Drift => drift,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(reports)
    }

    fn pass(&self, wanted: &[Arc<Pod>], only: Option<&str>) -> Result<Vec<PodReport>> {
        // `wanted` may hold a pod that is newer than the watch, so it counts besides what the watch knows.
        let mut node = self.pods.all();
        node.retain(|pod| wanted.iter().all(|w| w.uid != pod.uid));
        node.extend(wanted.iter().cloned());
        let live = self.live(&node)?;
        let mut census = Census::default();
        for l in &live {
            census.add(l.pod, l.container, &l.namespaces);
        }
        let mut pass = Pass {
            containers: &self.containers,
            entry: &self.entry,
            live: &live,
            census: &census,
            scan: None,
            entry_hangs: false,
            seen: HashMap::new(),
        };
        wanted.iter().map(|pod| pass.pod(pod, only)).collect()
    }

    /// The containers that run and whose process can be proven.
    fn live<'a>(&self, pods: &'a [Arc<Pod>]) -> Result<Vec<Live<'a>>> {
        let running = || {
            pods.iter().flat_map(|pod| {
                let running = pod.containers.iter().filter(|c| c.is_running());
                running.filter_map(move |c| Some((pod.as_ref(), c, c.id.as_ref()?.id.as_str())))
            })
        };
        let processes = self.containers.resolve(running().map(|(_, _, id)| id))?;
        let live = running().filter_map(|(pod, container, id)| {
            let process = Arc::clone(processes.get(id)?);
            let namespaces = process.namespaces().ok()?;
            Some(Live { pod, container, process, namespaces })
        });
        Ok(live.collect())
    }
}

/// One pass over the node.
struct Pass<'a> {
    containers: &'a Containers,
    entry: &'a Entry,
    live: &'a [Live<'a>],
    census: &'a Census<'a>,
    /// Made at most once, and only if a sandbox is not known yet.
    scan: Option<Scan>,
    /// That nothing more is asked of whoever enters namespaces, since it has not answered in time.
    entry_hangs: bool,
    /// Evidence by uts, net and ipc namespace: the containers of a pod share it.
    seen: HashMap<NamespaceSet, Evidence>,
}

impl<'a> Pass<'a> {
    fn pod(&mut self, pod: &Arc<Pod>, only: Option<&str>) -> Result<PodReport> {
        let chosen = pod.containers.iter().filter(|c| only.map_or(c.is_running(), |name| c.name == name));
        let containers = chosen.map(|c| self.container(pod, c)).collect::<Result<_>>()?;
        Ok(PodReport { pod: Arc::clone(pod), containers })
    }

    fn container(&mut self, pod: &Pod, container: &Container) -> Result<ContainerReport> {
        let unknown = |reason, message: String, process| ContainerReport {
            name: container.name.clone(),
            process,
            reference: Reference::NONE,
            verdict: ContainerVerdict::unknown(reason, message),
            evidence: Evidence::default(),
            pids: MutualPids::default(),
        };
        if let Some(runtime) = pod.vm_runtime() {
            let message = format!(
                "runs in {runtime}: its processes are not the node's, so the node cannot prove its namespaces"
            );
            return Ok(unknown(Reason::VmIsolated, message, None));
        }
        if !container.is_running() {
            let message = "does not run, so it has no namespaces".to_owned();
            return Ok(unknown(Reason::ContainerExited, message, None));
        }
        let Some(own) = self.find(pod, &container.name) else {
            let message = "no process on the node is in a cgroup of its container id".to_owned();
            return Ok(unknown(Reason::ProcessNotFound, message, None));
        };
        // The runtime's own init is in the container's cgroup before it changes its root.
        if self.containers.host().root.is_some() && own.process.root().ok() == self.containers.host().root {
            let message =
                "its first process still has the host's root: the runtime is only starting it".to_owned();
            return Ok(unknown(Reason::ProcessStarting, message, Some(Arc::clone(&own.process))));
        }
        let Some(reference) = self.reference(pod, container)? else {
            let message = format!("its target {} does not run", container.target);
            return Ok(unknown(Reason::TargetNotRunning, message, Some(Arc::clone(&own.process))));
        };
        let reference_namespaces = match &reference.process {
            Some(process) => process.namespaces().unwrap_or_default(),
            None => NamespaceSet::default(),
        };
        let comparison = Comparison {
            pod,
            container,
            own: &own.namespaces,
            reference_kind: reference.kind,
            reference: &reference_namespaces,
            host: &self.containers.host().namespaces,
            unified: self.containers.host().unified,
        };
        let pids = reference.process.as_ref().map_or_else(MutualPids::default, |r| MutualPids {
            reference_from_container: own.process.pid_of(r),
            container_from_reference: r.pid_of(&own.process),
        });
        Ok(ContainerReport {
            name: container.name.clone(),
            process: Some(Arc::clone(&own.process)),
            verdict: comparison.judge(self.census),
            evidence: self.evidence(own),
            reference,
            pids,
        })
    }

    /// What `container` is compared with; none if it has a target that does not run.
    fn reference(&mut self, pod: &Pod, container: &Container) -> Result<Option<Reference>> {
        let of = |kind, live: &Live<'_>| Reference {
            kind,
            name: live.container.name.clone(),
            process: Some(Arc::clone(&live.process)),
        };
        if container.kind == ContainerKind::Ephemeral && !container.target.is_empty() {
            return Ok(self.find(pod, &container.target).map(|target| of(ReferenceKind::Target, target)));
        }
        let of_pod: Vec<_> =
            self.live.iter().filter(|l| l.pod.uid == pod.uid).map(|l| Arc::clone(&l.process)).collect();
        if let Some(sandbox) = self.containers.sandbox(&pod.uid, &of_pod, &mut self.scan)? {
            let reference =
                Reference { kind: ReferenceKind::Sandbox, name: String::new(), process: Some(sandbox) };
            return Ok(Some(reference));
        }
        let peer = self.live.iter().find(|l| l.pod.uid == pod.uid && l.container.name != container.name);
        Ok(Some(peer.map_or(Reference::NONE, |peer| of(ReferenceKind::Peer, peer))))
    }

    fn find(&self, pod: &Pod, container: &str) -> Option<&'a Live<'a>> {
        self.live.iter().find(|l| l.pod.uid == pod.uid && l.container.name == container)
    }

    /// Goes inside once for all containers of the same namespaces, and not at all where they are the host's.
    fn evidence(&mut self, own: &Live<'_>) -> Evidence {
        use NamespaceKind::{Ipc, Net, Uts};
        let host = &self.containers.host().namespaces;
        let is_own = |kind| own.namespaces.get(kind) != host.get(kind);
        if ![Uts, Net, Ipc].into_iter().any(is_own) {
            return Evidence::default();
        }
        let key = NamespaceSet::from_fn(|k| own.namespaces.get(k).filter(|_| matches!(k, Uts | Net | Ipc)));
        let gathered = self.seen.entry(key).or_insert_with(|| {
            if self.entry_hangs {
                return Evidence::default();
            }
            evidence::gather(self.entry, &own.process).unwrap_or_else(|error| {
                tracing::debug!(pid = own.process.facts.pid, %error, "no evidence");
                self.entry_hangs = error.errno == Errno::TIMEDOUT;
                Evidence::default()
            })
        });
        Evidence {
            hostname: gathered.hostname.clone().filter(|_| is_own(Uts)),
            net: gathered.net.clone().filter(|_| is_own(Net)),
            ipc: gathered.ipc.clone().filter(|_| is_own(Ipc)),
        }
    }
}
