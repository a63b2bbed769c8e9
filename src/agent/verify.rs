//! Verification: which namespaces the containers of the node's pods really have.

use std::{
    collections::{HashMap, HashSet},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::io::Errno;

use super::work;
use crate::{
    domain::{
        Reason, Result,
        evidence::{Evidence, MutualPids},
        namespace::{NamespaceKind, NamespaceSet},
        pod::{Container, ContainerKind, Pod},
        verdict::{Census, Comparison, ContainerVerdict, Outcome, ReferenceKind},
    },
    kube::pods::Pods,
    sys::{
        broker::NamespaceEntry,
        containers::{Containers, Scan},
        process::ContainerProcess,
    },
};

/// Pods that are read from the API server again, at most. A watch lags for a few pods only; if more
/// are in doubt, the cause is another, and the API server is spared.
const MAX_DOUBTFUL: usize = 8;

/// The findings on one pod.
#[derive(Debug)]
pub struct PodReport {
    /// The pod.
    pub pod: Arc<Pod>,
    /// One per verified container.
    pub containers: Vec<ContainerReport>,
}

/// The findings on one container.
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
    /// What is visible from inside. Empty where that is the host's, or could not be read.
    pub evidence: Evidence,
    /// The pid of each, container and reference, as the other sees it.
    pub pids: MutualPids,
}

/// What a container was compared with.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Target, sandbox, peer or nothing.
    pub kind: ReferenceKind,
    /// Name of the container; empty for the sandbox and for nothing.
    pub name: String,
    /// Its process.
    pub process: Option<Arc<ContainerProcess>>,
}

impl Reference {
    const NONE: Self = Self { kind: ReferenceKind::None, name: String::new(), process: None };
}

/// Verifies pods, at most two requests at a time.
#[derive(Debug)]
pub struct Verifier {
    pods: Arc<Pods>,
    containers: Arc<Containers>,
    entry: Arc<NamespaceEntry>,
    counts: [AtomicU64; 3],
}

/// A running container of the node, with its proven process and that process' namespaces.
struct Live<'a> {
    pod: &'a Pod,
    container: &'a Container,
    process: Arc<ContainerProcess>,
    namespaces: NamespaceSet,
}

impl Verifier {
    /// Creates a verifier of the pods that `pods` knows. It enters namespaces through `entry`.
    pub fn new(pods: Arc<Pods>, containers: Arc<Containers>, entry: Arc<NamespaceEntry>) -> Self {
        Self { pods, containers, entry, counts: Default::default() }
    }

    /// Number of verdicts since the start, by outcome.
    pub fn counts(&self) -> [(Outcome, u64); 3] {
        let [ok, unknown, drift] = &self.counts;
        [(Outcome::Ok, ok), (Outcome::Unknown, unknown), (Outcome::Drift, drift)]
            .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }

    /// Verifies the running containers of the `wanted` pods, or only those with the given name.
    ///
    /// All containers of the node are examined, since a namespace may leak from any of them. As the
    /// watch may lag, a pod with an UNKNOWN container is read from the API server and examined once
    /// more. So is a single pod of which no container runs.
    ///
    /// # Errors
    /// SYSTEM_CALL if `/proc` cannot be read. A container about which nothing can be proven is not
    /// an error; its verdict is UNKNOWN.
    pub async fn verify(
        self: &Arc<Self>,
        wanted: Vec<Arc<Pod>>,
        container: Option<String>,
    ) -> Result<Vec<PodReport>> {
        let mut reports = self.run(wanted, container.clone()).await?;
        let newer = self.newer(&reports).await;
        if !newer.is_empty() {
            for again in self.run(newer, container).await? {
                if let Some(report) = reports.iter_mut().find(|r| r.pod.uid == again.pod.uid) {
                    *report = again;
                }
            }
        }
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

    async fn run(
        self: &Arc<Self>,
        wanted: Vec<Arc<Pod>>,
        container: Option<String>,
    ) -> Result<Vec<PodReport>> {
        let (this, slot) = (Arc::clone(self), work::slot());
        self.containers
            .pass(move |_| {
                let _slot = slot;
                this.examine(&wanted, container.as_deref())
            })
            .await?
    }

    /// Reads pods with an UNKNOWN container again. Returns those that differ from what the watch
    /// has.
    async fn newer(&self, reports: &[PodReport]) -> Vec<Arc<Pod>> {
        let untold = |c: &ContainerReport| {
            c.verdict.outcome == Outcome::Unknown && c.verdict.reason != Some(Reason::VmIsolated)
        };
        let nothing = |report: &PodReport| reports.len() == 1 && report.containers.is_empty();
        let doubtful =
            reports.iter().filter(|report| nothing(report) || report.containers.iter().any(untold));
        let fresh = doubtful.take(MAX_DOUBTFUL).map(|report| async {
            let current = self.pods.current(&report.pod).await;
            // If the pod is gone, or the API server unreachable, the first report stands.
            current.ok().flatten().filter(|now| **now != *report.pod)
        });
        futures::future::join_all(fresh).await.into_iter().flatten().collect()
    }

    fn examine(&self, wanted: &[Arc<Pod>], only: Option<&str>) -> Result<Vec<PodReport>> {
        // `wanted` may hold pods that are newer than the watch's, and then replaces these.
        let newer: HashSet<_> = wanted.iter().map(|pod| pod.uid.as_str()).collect();
        let mut node = self.pods.all();
        node.retain(|pod| !newer.contains(pod.uid.as_str()));
        node.extend(wanted.iter().cloned());
        let contested = contested(&node);
        node.retain(|pod| !contested.contains(&pod.cgroup_uid));
        let mut scan = None;
        let live = self.live(&node, &mut scan)?;
        let mut census = Census::default();
        for l in live.values().flatten() {
            census.add(l.pod, l.container, &l.namespaces);
        }
        let mut view = NodeView {
            containers: &self.containers,
            entry: &self.entry,
            live: &live,
            census: &census,
            contested,
            scan,
            entry_hangs: false,
            seen: HashMap::new(),
        };
        wanted.iter().map(|pod| view.pod(pod, only)).collect()
    }

    /// The running containers whose process can be proven, by the UID of their pod.
    fn live<'a>(
        &self,
        pods: &'a [Arc<Pod>],
        scan: &mut Option<Scan>,
    ) -> Result<HashMap<&'a str, Vec<Live<'a>>>> {
        // The node does not see the processes of a virtual machine. Looking for them would cost a
        // scan each time.
        let pods = || pods.iter().filter(|pod| pod.vm_runtime().is_none());
        let running = || {
            pods().flat_map(|pod| {
                let running = pod.containers.iter().filter(|c| c.is_running());
                running.filter_map(move |c| Some((pod.as_ref(), c, pod.cgroup_of(c)?)))
            })
        };
        let processes = self.containers.resolve(running().map(|(_, _, wanted)| wanted), scan)?;
        let mut live: HashMap<_, Vec<_>> = HashMap::new();
        for (pod, container, wanted) in running() {
            if let Some(process) = processes.get(&wanted)
                && let Ok(namespaces) = process.namespaces()
            {
                let process = Arc::clone(process);
                live.entry(pod.uid.as_str()).or_default().push(Live {
                    pod,
                    container,
                    process,
                    namespaces,
                });
            }
        }
        Ok(live)
    }
}

/// The cgroups that several pods claim. A UID is the API server's, but the cgroup of a static pod
/// is named by an annotation, which the author of any other pod can copy. Without this check such a
/// pod would be shown the other's processes, and would make its verdict a drift.
fn contested(pods: &[Arc<Pod>]) -> HashSet<String> {
    let mut owners = HashMap::new();
    let mut contested = HashSet::new();
    for pod in pods {
        let name = (&pod.namespace, &pod.name);
        if *owners.entry(&pod.cgroup_uid).or_insert(name) != name {
            contested.insert(pod.cgroup_uid.clone());
        }
    }
    contested
}

/// The node as one verification sees it.
struct NodeView<'a> {
    containers: &'a Containers,
    entry: &'a NamespaceEntry,
    /// By the UID of the pod.
    live: &'a HashMap<&'a str, Vec<Live<'a>>>,
    census: &'a Census<'a>,
    /// Names of cgroups that several pods claim.
    contested: HashSet<String>,
    /// Made at most once, and only if a container or a sandbox is not known yet.
    scan: Option<Scan>,
    /// Whether entering a namespace has timed out. If so, no more evidence is gathered.
    entry_hangs: bool,
    /// Evidence by uts, net and ipc namespace, which the containers of a pod share.
    seen: HashMap<NamespaceSet, Evidence>,
}

/// The sandbox of the pod that is being verified.
enum Sandbox {
    NotLookedFor,
    LookedFor(Option<(Arc<ContainerProcess>, NamespaceSet)>),
}

impl<'a> NodeView<'a> {
    fn pod(&mut self, pod: &Arc<Pod>, only: Option<&str>) -> Result<PodReport> {
        let chosen =
            pod.containers.iter().filter(|c| only.map_or(c.is_running(), |name| c.name == name));
        let mut sandbox = Sandbox::NotLookedFor;
        let containers =
            chosen.map(|c| self.container(pod, c, &mut sandbox)).collect::<Result<_>>()?;
        Ok(PodReport { pod: Arc::clone(pod), containers })
    }

    fn container(
        &mut self,
        pod: &Pod,
        container: &Container,
        sandbox: &mut Sandbox,
    ) -> Result<ContainerReport> {
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
                "runs in {runtime}: its processes are not the node's, so the node cannot prove its \
                 namespaces"
            );
            return Ok(unknown(Reason::VmIsolated, message, None));
        }
        if !container.is_running() {
            let message = "does not run, so it has no namespaces".to_owned();
            return Ok(unknown(Reason::ContainerExited, message, None));
        }
        if self.contested.contains(&pod.cgroup_uid) {
            let message = "another pod of the node has the same value in its annotation \
                kubernetes.io/config.mirror, so it cannot be told whose processes these are";
            return Ok(unknown(Reason::ProcessNotFound, message.to_owned(), None));
        }
        let Some(own) = self.find(pod, &container.name) else {
            let message = "no process on the node is in a cgroup of its container id".to_owned();
            return Ok(unknown(Reason::ProcessNotFound, message, None));
        };
        let Some((reference, reference_namespaces)) = self.reference(pod, container, sandbox)?
        else {
            let message = format!(
                "its target {} does not run, or no process of it was found",
                container.target
            );
            return Ok(unknown(Reason::TargetNotRunning, message, Some(Arc::clone(&own.process))));
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

    /// The reference for `container`, with its namespaces. None if its target does not run.
    fn reference(
        &mut self,
        pod: &Pod,
        container: &Container,
        sandbox: &mut Sandbox,
    ) -> Result<Option<(Reference, NamespaceSet)>> {
        let of = |kind, live: &Live<'_>| {
            let (name, process) = (live.container.name.clone(), Some(Arc::clone(&live.process)));
            (Reference { kind, name, process }, live.namespaces.clone())
        };
        if container.kind == ContainerKind::Ephemeral && !container.target.is_empty() {
            return Ok(self
                .find(pod, &container.target)
                .map(|target| of(ReferenceKind::Target, target)));
        }
        if let Some((process, namespaces)) = self.sandbox(pod, sandbox)? {
            let (kind, process) = (ReferenceKind::Sandbox, Some(Arc::clone(process)));
            return Ok(Some((
                Reference { kind, name: String::new(), process },
                namespaces.clone(),
            )));
        }
        // Debug containers are no reference: they may rightly share the verified one's pid
        // namespace.
        let peer = self.of_pod(pod).find(|l| {
            l.container.name != container.name && l.container.kind != ContainerKind::Ephemeral
        });
        let none = (Reference::NONE, NamespaceSet::default());
        Ok(Some(peer.map_or(none, |peer| of(ReferenceKind::Peer, peer))))
    }

    /// The sandbox of the pod. It is looked for at most once.
    fn sandbox<'s>(
        &mut self,
        pod: &Pod,
        sandbox: &'s mut Sandbox,
    ) -> Result<Option<&'s (Arc<ContainerProcess>, NamespaceSet)>> {
        if let Sandbox::NotLookedFor = sandbox {
            let of_pod: Vec<_> = self.of_pod(pod).map(|l| &l.process).collect();
            let found = self.containers.sandbox(pod, &of_pod, &mut self.scan)?;
            *sandbox = Sandbox::LookedFor(found.map(|process| {
                let namespaces = process.namespaces().unwrap_or_default();
                (process, namespaces)
            }));
        }
        Ok(match sandbox {
            Sandbox::LookedFor(found) => found.as_ref(),
            Sandbox::NotLookedFor => None,
        })
    }

    fn of_pod(&self, pod: &Pod) -> impl Iterator<Item = &'a Live<'a>> + use<'a> {
        self.live.get(pod.uid.as_str()).into_iter().flatten()
    }

    fn find(&self, pod: &Pod, container: &str) -> Option<&'a Live<'a>> {
        self.of_pod(pod).find(|l| l.container.name == container)
    }

    /// Gathers evidence from inside the container's namespaces: once for all containers that share
    /// them, and never from the host's.
    fn evidence(&mut self, own: &Live<'_>) -> Evidence {
        use NamespaceKind::{Ipc, Net, Uts};
        let host = &self.containers.host().namespaces;
        let is_own = |kind| own.namespaces.get(kind) != host.get(kind);
        if ![Uts, Net, Ipc].into_iter().any(is_own) {
            return Evidence::default();
        }
        let key = NamespaceSet::from_fn(|k| {
            own.namespaces.get(k).filter(|_| matches!(k, Uts | Net | Ipc))
        });
        let gathered = self.seen.entry(key).or_insert_with(|| {
            if self.entry_hangs {
                return Evidence::default();
            }
            self.entry.evidence(own.process.pidfd().as_fd()).unwrap_or_else(|error| {
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
