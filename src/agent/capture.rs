//! Captures: from a pod to a thread that captures its packets, within what the agent may spend on
//! all of them.
//!
//! What is asked for has been checked and authorised by then (`super::rpc::capture`).

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::io::Errno;
use tokio::sync::{Semaphore, mpsc};

use super::{
    config::CaptureLimits,
    metrics::Metrics,
    work::{self, blocking},
};
use crate::{
    domain::{
        Error, Reason, Result,
        filter::{self, Ways},
        namespace::{NamespaceId, NamespaceKind},
        pcapng::{
            names,
            write::{self, Interface, Section},
        },
        pod::{ContainerKind, Pod},
    },
    kube::pods::Pods,
    sys::{
        SysError,
        broker::NamespaceEntry,
        capture::{
            Event, Limits, MIN_RING, Pump, RING_UNIT, Selection, Source, Stop, Tap,
            compiler::{Compiled, Compiler},
            links::{self, Link},
            pool::Pool,
        },
        containers::Containers,
        process::ContainerProcess,
        socket::SocketKind,
    },
};

/// Filters that are compiled at a time. Each may take
/// [`MAX_MEMORY`](crate::sys::capture::compiler::MAX_MEMORY).
pub const COMPILERS: usize = 2;

/// What captures are made with.
#[derive(Debug)]
pub struct Captures {
    pods: Arc<Pods>,
    containers: Arc<Containers>,
    entry: Arc<NamespaceEntry>,
    compiler: Compiler,
    compilers: Arc<Semaphore>,
    limits: CaptureLimits,
    /// Of rings, in [`RING_UNIT`]s.
    memory: Arc<Semaphore>,
    /// Captures that run, by user.
    running: Arc<Mutex<HashMap<String, usize>>>,
    metrics: Arc<Metrics>,
    node: String,
    /// The network namespace that the agent itself is in.
    own: Option<NamespaceId>,
}

/// A pod whose packets are captured.
#[derive(Debug)]
pub struct CaptureTarget {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Name of the container by whose process its network namespace was found.
    pub container: String,
    /// That process.
    pub process: Arc<ContainerProcess>,
    /// The process whose end is the capture's: of the container that was asked for, or of the pod.
    pub lives: Arc<ContainerProcess>,
}

/// What is captured.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Name of the interface. Empty: all of them.
    pub interface: String,
    /// The filter's text.
    pub filter: String,
    /// At most so many bytes of each packet.
    pub snaplen: u32,
    /// Of which direction.
    pub ways: Ways,
    /// Size of the ring.
    pub ring_bytes: usize,
    /// How long a packet may wait for others.
    pub max_delay: Duration,
    /// When it ends by itself.
    pub limits: Limits,
}

/// A capture that runs, until dropped.
#[derive(Debug)]
pub struct Running {
    /// Stops it.
    pub stop: Stop,
    /// What it yields.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// Link type of its packets.
    pub linktype: u16,
    /// The filter in force.
    pub filter: String,
    /// Why that is not, or not just, what was asked for.
    pub note: String,
    /// Size of the ring, as granted.
    pub ring_bytes: usize,
}

/// The place of a running capture.
#[derive(Debug)]
struct Slot {
    running: Arc<Mutex<HashMap<String, usize>>>,
    user: String,
    metrics: Arc<Metrics>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(running.remove(&self.user)),
        }
        drop(running);
        self.metrics.capture_ended();
    }
}

impl Captures {
    /// Captures of pods that `pods` knows, inside of which `entry` opens sockets.
    pub fn new(
        node: &str,
        pods: Arc<Pods>,
        containers: Arc<Containers>,
        entry: Arc<NamespaceEntry>,
        compiler: Compiler,
        limits: CaptureLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let own = std::fs::metadata("/proc/self/ns/net").ok();
        Self {
            pods,
            containers,
            entry,
            compiler,
            compilers: Arc::new(Semaphore::new(COMPILERS)),
            memory: Arc::new(Semaphore::new(
                (limits.capture_memory / RING_UNIT).min(Semaphore::MAX_PERMITS),
            )),
            running: Arc::default(),
            metrics,
            node: node.to_owned(),
            own: own.map(|found| NamespaceId { dev: found.dev(), ino: found.ino() }),
            limits,
        }
    }

    /// How much of everything.
    pub fn limits(&self) -> &CaptureLimits {
        &self.limits
    }

    /// The pod, and a process of the container in it; of any that runs if none is named.
    ///
    /// # Errors
    /// POD_NOT_FOUND, POD_ON_OTHER_NODE, POD_REPLACED, CONTAINER_NOT_FOUND, CONTAINER_NOT_RUNNING,
    /// VM_ISOLATED, PROCESS_NOT_FOUND and what keeps it from being told.
    pub async fn target(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
    ) -> Result<CaptureTarget> {
        let check = |pod: &Arc<Pod>| {
            pod.expect_uid(uid)?;
            if let Some(runtime) = pod.vm_runtime() {
                let message = format!(
                    "runs in {runtime}: its packets are not seen in a network namespace of the node"
                );
                return Err(Error::new(Reason::VmIsolated, message));
            }
            let is_wanted = |name: &str| container.is_empty() || name == container;
            if !container.is_empty() {
                pod.require(container)?;
            }
            let runs = pod.containers.iter().any(|c| c.is_running() && is_wanted(&c.name));
            if runs {
                return Ok(());
            }
            let message = match container {
                "" => "none of its containers runs".to_owned(),
                name => format!("container {name} does not run"),
            };
            Err(Error::new(
                Reason::ContainerNotRunning,
                format!("{message}, so there are no packets to capture"),
            ))
        };
        let (pod, ()) = self.pods.find(namespace, name, check).await?;
        let (wanted, slot) = (container.to_owned(), work::slot());
        self.containers
            .pass(move |containers| {
                let _slot = slot;
                process_of(containers, pod, &wanted)
            })
            .await?
            .map_err(|e| e.pod(namespace, name))
    }

    /// The interfaces in the network namespace of the target.
    ///
    /// # Errors
    /// PROCESS_GONE, BROKER_LOST, SYSTEM_CALL.
    pub async fn links(&self, target: &CaptureTarget) -> Result<Vec<Link>> {
        let (entry, process) = (Arc::clone(&self.entry), Arc::clone(&target.process));
        let list = move || {
            let socket = entry.socket(process.pidfd().as_fd(), SocketKind::Routes)?;
            links::list(&socket)
        };
        blocking(list).await?.map_err(failed)
    }

    /// Where packets of an interface are captured; `any` and nothing mean all of them.
    ///
    /// # Errors
    /// INTERFACE_NOT_FOUND, with the names there are.
    pub fn source(&self, links: &[Link], interface: &str) -> Result<Source> {
        if matches!(interface, "" | "any") {
            return Ok(Source::ANY);
        }
        let found = links.iter().find(|link| link.name == interface.as_bytes());
        found.map(Source::of).ok_or_else(|| {
            let names: Vec<_> =
                links.iter().map(|link| String::from_utf8_lossy(&link.name)).collect();
            let message =
                format!("has no interface {interface:?}; there are any, {}", names.join(", "));
            Error::new(Reason::InterfaceNotFound, message)
        })
    }

    /// Compiles a filter for packets of the source.
    ///
    /// # Errors
    /// INVALID_FIELD with libpcap's message, FILTER_UNSUPPORTED.
    pub async fn compile(&self, source: Source, snaplen: u32, text: &str) -> Result<Compiled> {
        let closed = |_| Error::new(Reason::Bug, "the semaphore was closed");
        let permit = Arc::clone(&self.compilers).acquire_owned().await.map_err(closed)?;
        let (compiler, text) = (self.compiler.clone(), text.to_owned());
        // The permit is the work's: a caller who stops waiting does not stop the compiler.
        let compile = move || {
            let compiled = compiler.compile(source.dlt(), snaplen, &text);
            drop(permit);
            compiled
        };
        blocking(compile).await?
    }

    /// Starts a capture for `user`, whose request came over `connection`: from, to.
    ///
    /// # Errors
    /// INTERFACE_NOT_FOUND, INVALID_FIELD, TOO_MANY_CAPTURES, CAPTURE_MEMORY, PROCESS_GONE,
    /// BROKER_LOST.
    pub async fn start(
        &self,
        target: &CaptureTarget,
        wanted: &Wanted,
        user: &str,
        connection: Option<(SocketAddr, SocketAddr)>,
    ) -> Result<Running> {
        let slot = self.slot(user)?;
        let units = u32::try_from(wanted.ring_bytes.div_ceil(RING_UNIT)).unwrap_or(u32::MAX);
        let full = |_| {
            let most = self.limits.capture_memory >> 20;
            let message = format!(
                "the rings of running captures take most of the {most} MiB that they may; ask \
                for a smaller ring"
            );
            Error::new(Reason::CaptureMemory, message)
        };
        let memory = Arc::clone(&self.memory).try_acquire_many_owned(units).map_err(full)?;

        let links = self.links(target).await?;
        let source = self.source(&links, &wanted.interface)?;
        let own = connection.filter(|own| self.carries(target, &links, own));
        let (filter, mut note) = match own {
            None => (wanted.filter.clone(), String::new()),
            Some(own) => without(&own, &wanted.filter),
        };
        let mut program = None;
        if !wanted.filter.trim().is_empty() {
            // First as it was asked for, for libpcap's words to be about that.
            program = Some(self.compile(source, wanted.snaplen, &wanted.filter).await?.program);
        }
        if own.is_some() {
            program = Some(self.compile(source, wanted.snaplen, &filter).await?.program);
        }
        let on_tags = filter::wants_vlan_tags(&filter);
        if on_tags {
            let reason =
                "the kernel takes VLAN tags out before its filter runs, so the agent runs this one";
            note = if note.is_empty() { reason.to_owned() } else { format!("{note}; {reason}") };
        }

        let selection =
            Selection { filter: program, on_tags, ways: wanted.ways, snaplen: wanted.snaplen };
        let (entry, process) = (Arc::clone(&self.entry), Arc::clone(&target.process));
        let (ring_bytes, max_delay) = (wanted.ring_bytes, wanted.max_delay);
        let open = move || {
            let socket = entry.socket(process.pidfd().as_fd(), source.socket())?;
            let tap = Tap::open(socket, source, &selection, ring_bytes, max_delay)?;
            // What was paid for the ring goes with it, wherever that ends: a caller who stops
            // waiting does not stop this.
            Ok((tap, slot, memory))
        };
        let opened: Result<_, SysError> = blocking(open).await?;
        let (tap, slot, mut memory) = opened.map_err(|error| match error.errno {
            Errno::NODEV => Error::new(Reason::InterfaceNotFound, "the interface has gone away"),
            Errno::NOMEM => {
                Error::new(Reason::CaptureMemory, "the node has no memory for the ring")
            }
            _ => failed(error),
        })?;
        let ring_bytes = tap.ring_bytes();
        let granted = ring_bytes.div_ceil(RING_UNIT);
        if let Some(excess) = memory.num_permits().checked_sub(granted).filter(|excess| *excess > 0)
        {
            drop(memory.split(excess));
            let size = format!("the node had memory for a ring of {} MiB only", ring_bytes >> 20);
            note = if note.is_empty() { size } else { format!("{note}; {size}") };
        }

        let header = self.header(target, wanted, source, &links, &filter);
        let pool = Pool::new(self.limits.capture_queue).map_err(failed)?;
        let (sender, events) = mpsc::unbounded_channel();
        let stop = Pump::start(tap, &header, wanted.limits, pool, sender, (slot, memory))
            .map_err(failed)?;
        Ok(Running { stop, events, linktype: source.linktype(), filter, note, ring_bytes })
    }

    /// Takes a place for one more capture.
    fn slot(&self, user: &str) -> Result<Slot> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let own = running.get(user).copied().unwrap_or_default();
        let CaptureLimits { max_captures, max_captures_per_user, .. } = self.limits;
        let refused = if running.values().sum::<usize>() >= max_captures {
            Some(format!("the agent runs {max_captures} captures, as many as it may"))
        } else if own >= max_captures_per_user {
            Some(format!("the agent runs {own} captures of this user, as many as it may"))
        } else {
            None
        };
        if let Some(message) = refused {
            return Err(Error::new(Reason::TooManyCaptures, message));
        }
        running.insert(user.to_owned(), own + 1);
        drop(running);
        self.metrics.capture_started();
        let (running, metrics) = (Arc::clone(&self.running), Arc::clone(&self.metrics));
        Ok(Slot { running, user: user.to_owned(), metrics })
    }

    /// Whether the connection's packets are seen in the target's network namespace.
    fn carries(
        &self,
        target: &CaptureTarget,
        links: &[Link],
        (local, peer): &(SocketAddr, SocketAddr),
    ) -> bool {
        let net = target
            .process
            .namespaces()
            .ok()
            .and_then(|namespaces| namespaces.get(NamespaceKind::Net));
        if local.ip().is_loopback() {
            return net.is_some() && net == self.own;
        }
        // The agent's pod is connected by way of the node.
        let on_node =
            net.is_some() && net == self.containers.host().namespaces.get(NamespaceKind::Net);
        let ends = [local.ip().to_canonical(), peer.ip().to_canonical()];
        on_node
            || links
                .iter()
                .flat_map(|link| &link.addresses)
                .any(|(address, _)| ends.contains(address))
    }

    /// The beginning of the file.
    fn header(
        &self,
        target: &CaptureTarget,
        wanted: &Wanted,
        source: Source,
        links: &[Link],
        filter: &str,
    ) -> Vec<u8> {
        let kernel = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let os = format!("{} {}", text(kernel.sysname()), text(kernel.release()));
        let mut header = Vec::new();
        let section = Section {
            hardware: &text(kernel.machine()),
            os: &os,
            application: concat!("podsonde-agent ", env!("CARGO_PKG_VERSION")),
            comment: &format!("node {}", self.node),
        };
        write::section_header(&mut header, &section);
        let Pod { namespace, name, .. } = &*target.pod;
        let interface = if wanted.interface.is_empty() { "any" } else { &wanted.interface };
        let mut description = format!("container {} on node {}", target.container, self.node);
        if let Source::ANY = source {
            let named = links.iter().map(|link| (link.index, String::from_utf8_lossy(&link.name)));
            names::append(&mut description, named);
        }
        let interface = Interface {
            linktype: source.linktype(),
            snaplen: wanted.snaplen,
            name: &format!("{namespace}/{name}/{interface}"),
            description: &description,
            filter,
            os: &os,
        };
        write::interface(&mut header, &interface);
        header
    }
}

/// The filter with the connection left out, and what to say of it.
fn without((local, peer): &(SocketAddr, SocketAddr), filter: &str) -> (String, String) {
    let (here, there) = (local.ip().to_canonical(), peer.ip().to_canonical());
    let own = format!(
        "not (tcp and host {here} and host {there} and port {} and port {})",
        local.port(),
        peer.port()
    );
    let note = format!(
        "the packets that carry this capture, between {here} port {} and {there} port {}, are \
        left out",
        local.port(),
        peer.port()
    );
    match filter.trim() {
        "" => (own, note),
        filter => (format!("{own} and ({filter})"), note),
    }
}

/// The process by which the pod's network namespace is found. Blocks.
fn process_of(containers: &Containers, pod: Arc<Pod>, wanted: &str) -> Result<CaptureTarget> {
    let is_wanted = |name: &str| wanted.is_empty() || name == wanted;
    let mut running: Vec<_> =
        pod.containers.iter().filter(|c| c.is_running() && is_wanted(&c.name)).collect();
    // What the pod is there for, before what was added to it.
    running.sort_by_key(|c| c.kind == ContainerKind::Ephemeral);
    let mut scan = None;
    let cgroups = running.iter().filter_map(|c| pod.cgroup_of(c));
    let found = containers.resolve(cgroups, &mut scan)?;
    let first = running
        .iter()
        .find_map(|c| Some((c.name.clone(), Arc::clone(found.get(&pod.cgroup_of(c)?)?))));
    let Some((container, process)) = first else {
        return Err(Error::new(
            Reason::ProcessNotFound,
            "no process on the node is in a cgroup of its containers' ids",
        ));
    };
    let sandbox =
        if wanted.is_empty() { containers.sandbox(&pod, &[&process], &mut scan)? } else { None };
    let lives = sandbox.unwrap_or_else(|| Arc::clone(&process));
    Ok(CaptureTarget { pod, container, process, lives })
}

/// What a failed system call means for a capture.
fn failed(error: SysError) -> Error {
    match (error.op, error.errno) {
        ("broker", Errno::PIPE) => Error::new(
            Reason::BrokerLost,
            "the agent's broker has ended, so no network namespace can be entered until the \
            agent is started again",
        ),
        _ => error.into(),
    }
}

/// The ring that is asked for, in whole blocks and as large as it may be; `asked` 0 is the agent's
/// default.
///
/// # Errors
/// INVALID_FIELD if it is larger than it may be.
pub fn ring_size(asked: u64, limits: &CaptureLimits) -> Result<usize> {
    let most = limits.max_ring;
    let wanted = match usize::try_from(asked) {
        Ok(0) => limits.default_ring.min(most),
        Ok(wanted) if wanted <= most => wanted,
        _ => {
            return Err(Error::invalid(
                "ring_bytes",
                format!("is more than {most}, the most this agent allows"),
            ));
        }
    };
    Ok(wanted.max(MIN_RING).next_multiple_of(RING_UNIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_connection_is_left_out() {
        let own = ("[::ffff:10.0.0.1]:7463".parse().unwrap(), "10.0.0.2:40000".parse().unwrap());
        let (filter, note) = without(&own, " tcp or udp ");
        assert_eq!(
            filter,
            "not (tcp and host 10.0.0.1 and host 10.0.0.2 and port 7463 and port 40000) and (tcp \
            or udp)"
        );
        assert!(note.contains("10.0.0.1 port 7463"), "{note}");
        assert!(without(&own, "").0.ends_with("port 40000)"));
    }

    #[test]
    fn rings_are_whole_blocks_within_limits() {
        let limits = CaptureLimits::default();
        assert_eq!(ring_size(0, &limits).unwrap(), limits.default_ring);
        assert_eq!(ring_size(1, &limits).unwrap(), MIN_RING);
        assert_eq!(ring_size((2 << 20) + 1, &limits).unwrap(), (2 << 20) + RING_UNIT);
        for huge in [limits.max_ring as u64 + 1, u64::MAX] {
            assert_eq!(ring_size(huge, &limits).unwrap_err().reason, Reason::InvalidField);
        }
    }
}
