//! A container runtime made of Linux namespaces only: no daemon, no packages, no images to pull, no
//! `unsafe`.
//!
//! A container takes three processes. Each is the podsonde binary, executed again with a hidden
//! first argument, which [`dispatch`] recognises before any thread exists:
//!
//! ```text
//! runtime ── shim       one per container; stays in the runtime's namespaces; cleans up
//!              ├─ launcher   enters and makes namespaces, forks, ends
//!              └─ init       in all namespaces; mounts; becomes the container's program
//! ```
//!
//! A sandbox is a pause container whose namespaces the others enter. Everything a container holds
//! (processes, mounts, namespaces, cgroups) goes with its shim, and a shim ends with the runtime,
//! even if that is killed.
//!
//! It also works without root ([`enter_user_namespace`]), with these differences: a pod's address
//! is on its `lo` and cannot be reached from the host, the only user is 0, and the container's id
//! appears only in the `cgroup` file of the container's first process (see [`CgroupDriver`]).
//!
//! Left out of a real runtime: logs, terminals (`tty` only keeps stdin open), resource limits,
//! seccomp, AppArmor and SELinux profiles, masked files in `/proc`, `/sys`, a device cgroup.

mod builtins;
mod cgroup;
mod images;
mod init;
mod launch;
mod netlink;
mod plan;
mod rootfs;
mod rootless;
mod security;
mod shim;
mod shims;

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use nix::sched::{CloneFlags, setns};
use rustix::{
    process::{Pid, PidfdFlags, pidfd_open},
    rand::{GetRandomFlags, getrandom},
};
use tokio::sync::oneshot;

pub use self::{
    cgroup::CgroupDriver,
    rootless::{RootlessError, enter_user_namespace},
};
use self::{
    cgroup::CgroupTree,
    images::Image,
    plan::{
        BindMount, Namespace, NamespacePlan, Plan, PodNetwork, ProcessPlan, ProcessRef, RootPlan,
        SandboxPlan,
    },
    shims::{Fate, PodShims},
};
use super::runtime::{ContainerStart, PidMode, Runtime, Sandbox, StartError, Started, Stream};

/// The first argument of the processes that make and are containers.
const HIDDEN: &str = "embedded-container";

/// The time limit of a connection into a pod.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs this process's part of a container, if it was executed for one, and returns its exit code;
/// none for any other command line. A binary that is [`NamespaceOptions::executable`] calls this
/// first.
#[must_use]
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != HIDDEN {
        return None;
    }
    let role = arguments.next().unwrap_or_default();
    let argument = arguments.next();
    Some(match role.as_str() {
        "shim" => shim::run(),
        "launch" => launch::run(),
        "init" => init::run(),
        "pause" => builtins::pause(),
        "sleep" => builtins::sleep(),
        "web" => builtins::web(argument.as_deref()),
        "exit" => builtins::exit(argument.as_deref()),
        "rootless" => rootless::run(argument.map(Command::new).map(|mut command| {
            command.args(arguments);
            command
        })),
        _ => ExitCode::FAILURE,
    })
}

/// The settings of a [`NamespaceRuntime`].
#[derive(Debug, Clone)]
pub struct NamespaceOptions {
    /// A binary that calls [`dispatch`]. Default: this process's own.
    pub executable: PathBuf,
    /// The shape of cgroup paths. Default: that of the cgroupfs driver.
    pub cgroup_driver: CgroupDriver,
    /// The mount of the cgroup hierarchy. Default: the first that is writable, v2 before v1.
    pub cgroup_hierarchy: Option<PathBuf>,
    /// Whether an unprivileged container gets a cgroup namespace. Default: only on a machine with
    /// cgroup v2 alone, as with a real runtime.
    pub cgroup_namespace: Option<bool>,
    /// Whether to silently treat a container with a target as if it had none, as some runtimes do.
    /// Default: false.
    pub ignore_target: bool,
    /// The pause before each container start. Default: none.
    pub start_delay: Duration,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        Self {
            executable: PathBuf::from("/proc/self/exe"),
            cgroup_driver: CgroupDriver::default(),
            cgroup_hierarchy: None,
            cgroup_namespace: None,
            ignore_target: false,
            start_delay: Duration::ZERO,
        }
    }
}

/// The runtime. It needs root or [`enter_user_namespace`], and a tokio runtime. Dropping it ends
/// its containers.
pub struct NamespaceRuntime {
    options: NamespaceOptions,
    cgroups: Arc<CgroupTree>,
    /// Whether users other than 0 exist.
    privileged: bool,
    /// The key is the pod's UID.
    pods: Mutex<HashMap<String, Arc<RunningPod>>>,
}

#[derive(Default)]
struct RunningPod {
    /// The key is the sandbox's id.
    sandboxes: Mutex<HashMap<String, RunningSandbox>>,
    shims: Arc<PodShims>,
}

#[derive(Clone)]
struct RunningSandbox {
    process: ProcessRef,
    /// The namespaces that were made for the sandbox; the others are the runtime's own.
    namespaces: Vec<Namespace>,
    user: Option<plan::UserRange>,
    hostname: Option<String>,
    ip: Option<Ipv4Addr>,
}

impl RunningSandbox {
    fn has(&self, namespace: Namespace) -> bool {
        self.namespaces.contains(&namespace)
    }
}

impl NamespaceRuntime {
    /// A runtime without pods.
    ///
    /// # Errors
    /// If the kernel gives no random numbers.
    pub fn new(options: NamespaceOptions) -> io::Result<Self> {
        let name = format!("podsonde-{}", hex(&random::<4>()?));
        let cgroups =
            CgroupTree::find(options.cgroup_hierarchy.as_deref(), options.cgroup_driver, &name);
        let users = fs::read_to_string("/proc/self/uid_map")?;
        Ok(Self {
            options,
            cgroups: Arc::new(cgroups),
            privileged: users.split_ascii_whitespace().eq(["0", "0", "4294967295"]),
            pods: Mutex::default(),
        })
    }

    fn pod(&self, uid: &str) -> Arc<RunningPod> {
        Arc::clone(lock(&self.pods).entry(uid.to_owned()).or_default())
    }

    fn sandbox(&self, id: &str) -> Option<RunningSandbox> {
        lock(&self.pods).values().find_map(|pod| lock(&pod.sandboxes).get(id).cloned())
    }

    async fn make_sandbox(&self, pod: &Pod) -> Result<Sandbox, StartError> {
        let failed = |error: io::Error| sandbox_error(&error.to_string());
        let uid = pod_uid(pod).ok_or_else(|| sandbox_error("the pod has no valid UID"))?;
        let spec = pod.spec.clone().unwrap_or_default();
        let id = hex(&random::<32>().map_err(failed)?);
        let host = |flag: Option<bool>| flag == Some(true);
        let mut create = Vec::new();
        let user = if spec.host_users == Some(false) {
            create.push(Namespace::User);
            Some(self.user_range().map_err(failed)?)
        } else {
            None
        };
        let (mut hostname, mut network) = (None, None);
        if !host(spec.host_network) {
            create.extend([Namespace::Net, Namespace::Uts]);
            hostname = Some(pod_hostname(pod, &spec));
            network = Some(self.pod_network().map_err(failed)?);
        }
        if !host(spec.host_ipc) {
            create.push(Namespace::Ipc);
        }
        if !host(spec.host_pid) {
            create.push(Namespace::Pid);
        }
        let pause = Image {
            entrypoint: ["/pause", HIDDEN, "pause"].map(str::to_owned).to_vec(),
            ..Image::default()
        };
        let mut root = root_plan("/pause", &pause);
        root.host_proc = host(spec.host_pid);
        root.read_only = true;
        let plan = Plan {
            placement: self.cgroups.container(uid, &id),
            namespaces: NamespacePlan { join: Vec::new(), create: create.clone(), user },
            root,
            process: ProcessPlan {
                argv: pause.entrypoint,
                env: Vec::new(),
                working_dir: "/".to_owned(),
                uid: 0,
                gid: 0,
                groups: Vec::new(),
                capabilities: Some(security::DEFAULT_CAPABILITIES.bits()),
                no_new_privs: true,
                stdin: false,
            },
            sandbox: Some(SandboxPlan { hostname: hostname.clone(), network }),
        };
        let running = self.pod(uid);
        let (process, _exit) = running
            .shims
            .start(&self.options.executable, &id, Fate::WithSandbox, &plan)
            .await
            .map_err(|error| sandbox_error(&error.message))?;
        let ip = network.map(|network| network.address);
        let sandbox = RunningSandbox { process, namespaces: create, user, hostname, ip };
        lock(&running.sandboxes).insert(id.clone(), sandbox);
        Ok(Sandbox { id, ip: ip.map(IpAddr::V4) })
    }

    async fn make_container(
        &self,
        pod: &Pod,
        sandbox: &Sandbox,
        container: &ContainerStart,
    ) -> Result<Started, StartError> {
        let image = images::find(
            &container.image,
            &container.pull_policy,
            container.stdin || container.tty,
        )?;
        security::check_non_root(pod, container)?;
        let uid = pod_uid(pod).ok_or_else(|| create_error("the pod has no valid UID"))?;
        let running = lock(&self.pods).get(uid).map(Arc::clone);
        let running = running.ok_or_else(|| create_error("the pod has no sandbox"))?;
        let sandbox = lock(&running.sandboxes).get(&sandbox.id).cloned();
        let sandbox = sandbox.ok_or_else(|| create_error("the pod's sandbox does not run"))?;
        tokio::time::sleep(self.options.start_delay).await;

        let id = hex(&random::<32>().map_err(|error| create_error(&error.to_string()))?);
        let plan = self.container_plan(pod, uid, &id, &running, &sandbox, container, image)?;
        let fate = Fate::BeforeSandbox;
        let (_, exit) = running.shims.start(&self.options.executable, &id, fate, &plan).await?;
        let image_id = format!("built-in:{}", container.image);
        Ok(Started { id, image_id, exit: exit.boxed() })
    }

    #[allow(clippy::too_many_arguments)]
    fn container_plan(
        &self,
        pod: &Pod,
        uid: &str,
        id: &str,
        running: &RunningPod,
        sandbox: &RunningSandbox,
        container: &ContainerStart,
        image: Image,
    ) -> Result<Plan, StartError> {
        let security = &container.security;
        let privileged = security.privileged == Some(true);
        let shared = [Namespace::User, Namespace::Net, Namespace::Ipc, Namespace::Uts];
        let mut from_sandbox: Vec<Namespace> =
            shared.into_iter().filter(|kind| sandbox.has(*kind)).collect();
        let (mut from_target, mut create) = (None, Vec::new());
        match &container.pid {
            PidMode::Node => {}
            PidMode::Pod if sandbox.has(Namespace::Pid) => from_sandbox.push(Namespace::Pid),
            PidMode::Pod => {}
            PidMode::Target(target) if !self.options.ignore_target => {
                let process = running.shims.process(target).ok_or_else(|| {
                    create_error(&format!(
                        "invalid target container: container {target:?} is not running"
                    ))
                })?;
                from_target = Some((process, vec![Namespace::Pid]));
            }
            PidMode::Container | PidMode::Target(_) => create.push(Namespace::Pid),
        }
        if !privileged && self.options.cgroup_namespace.unwrap_or(self.cgroups.is_unified()) {
            create.push(Namespace::Cgroup);
        }
        let mut join = Vec::new();
        if !from_sandbox.is_empty() {
            join.push((sandbox.process, from_sandbox));
        }
        join.extend(from_target);

        let mut root = root_plan(images::PROGRAM, &image);
        root.host_proc = container.pid == PidMode::Node;
        root.read_only = security.read_only_root_filesystem == Some(true);
        root.protect_proc = !privileged && !root.host_proc;
        let hostname = sandbox.hostname.as_deref().unwrap_or("localhost");
        let ip = sandbox.ip.unwrap_or(Ipv4Addr::LOCALHOST);
        root.files.push((
            "/etc/hosts".to_owned(),
            format!("127.0.0.1 localhost\n::1 localhost\n{ip} {hostname}\n"),
        ));
        root.files.push(("/etc/hostname".to_owned(), format!("{hostname}\n")));
        root.mounts = container
            .mounts
            .iter()
            .map(|mount| BindMount {
                source: mount.host_path.clone(),
                target: mount.container_path.clone(),
                read_only: mount.read_only,
            })
            .collect();
        Ok(Plan {
            placement: self.cgroups.container(uid, id),
            namespaces: NamespacePlan { join, create, user: sandbox.user },
            root,
            process: security::process_plan(pod, container, image, hostname)?,
            sandbox: None,
        })
    }

    /// A range of users that probably no other pod of this runtime has; without root only user 0.
    fn user_range(&self) -> io::Result<plan::UserRange> {
        if !self.privileged {
            return Ok(plan::UserRange { base: 0, size: 1 });
        }
        let [high, low] = random::<2>()?;
        let base = u32::from_be_bytes([high, low & 0xfe, 0, 0]).max(1 << 16);
        Ok(plan::UserRange { base, size: 1 << 16 })
    }

    /// An unused pair of addresses in 198.18.0.0/15, which is reserved for tests.
    fn pod_network(&self) -> io::Result<PodNetwork> {
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        for _ in 0..64 {
            let [a, b, c] = random::<3>()?;
            let host = Ipv4Addr::new(198, 18 + (a & 1), b, c & 0xfe);
            let address = Ipv4Addr::new(198, 18 + (a & 1), b, c | 1);
            if !self.privileged {
                return Ok(PodNetwork { address, host: None });
            }
            let destination = format!("\t{:08X}\t", u32::from_ne_bytes(host.octets()));
            if !routes.contains(&destination) {
                return Ok(PodNetwork { address, host: Some(host) });
            }
        }
        Err(io::Error::other("no free pod address in 198.18.0.0/15"))
    }
}

impl Runtime for NamespaceRuntime {
    fn scheme(&self) -> &'static str {
        "containerd"
    }

    fn run_sandbox<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Sandbox, StartError>> {
        self.make_sandbox(pod).boxed()
    }

    fn start_container<'a>(
        &'a self,
        pod: &'a Pod,
        sandbox: &'a Sandbox,
        container: &'a ContainerStart,
    ) -> BoxFuture<'a, Result<Started, StartError>> {
        self.make_container(pod, sandbox, container).boxed()
    }

    fn remove_pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, ()> {
        async move {
            let running = lock(&self.pods).remove(pod_uid);
            if let Some(running) = running {
                running.shims.end().await;
            }
            let (cgroups, uid) = (Arc::clone(&self.cgroups), pod_uid.to_owned());
            // Only a panic or the end of the tokio runtime make this fail.
            let _ = tokio::task::spawn_blocking(move || cgroups.remove_pod(&uid)).await;
        }
        .boxed()
    }

    fn connect<'a>(
        &'a self,
        sandbox: &'a Sandbox,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        async move {
            let running = self.sandbox(&sandbox.id);
            let running = running
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such sandbox"))?;
            let (sender, receiver) = oneshot::channel();
            // A thread that entered a foreign namespace must not be used for anything else.
            std::thread::Builder::new().name("pod-connect".to_owned()).spawn(move || {
                // A receiver that is gone no longer waits.
                let _ = sender.send(connect_from(&running, port));
            })?;
            let stream =
                receiver.await.map_err(|_| io::Error::other("the connecting thread ended"))??;
            Ok(Box::new(tokio::net::TcpStream::from_std(stream)?) as Box<dyn Stream>)
        }
        .boxed()
    }
}

/// Moves this thread into the sandbox's network namespace and connects to its loopback address.
fn connect_from(sandbox: &RunningSandbox, port: u16) -> io::Result<TcpStream> {
    if sandbox.has(Namespace::Net) {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the sandbox has ended");
        let pid = Pid::from_raw(sandbox.process.pid).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        if launch::start_time(sandbox.process.pid).ok() != Some(sandbox.process.start_time) {
            return Err(gone());
        }
        setns(&pidfd, CloneFlags::CLONE_NEWNET)?;
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The file tree of every container, completed by its image.
fn root_plan(program: &str, image: &Image) -> RootPlan {
    let common = [
        (
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ];
    RootPlan {
        program: program.to_owned(),
        host_programs: image.host_programs,
        directories: image.directories.iter().map(|path| (*path).to_owned()).collect(),
        files: common
            .iter()
            .chain(image.files)
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect(),
        mounts: Vec::new(),
        read_only: false,
        host_proc: false,
        protect_proc: false,
    }
}

/// The pod's UID; none if it cannot be part of a path.
fn pod_uid(pod: &Pod) -> Option<&str> {
    let valid = |uid: &&str| {
        (1..=128).contains(&uid.len())
            && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    pod.metadata.uid.as_deref().filter(valid)
}

/// The pod's host name, at most 63 bytes as with the kubelet.
fn pod_hostname(pod: &Pod, spec: &PodSpec) -> String {
    let name =
        [&spec.hostname_override, &spec.hostname, &pod.metadata.name].into_iter().flatten().next();
    let name: String = name.map(String::as_str).unwrap_or("pod").chars().take(63).collect();
    name.trim_end_matches(['-', '.']).to_owned()
}

fn sandbox_error(message: &str) -> StartError {
    StartError {
        reason: "CreatePodSandboxError",
        message: format!("failed to create pod sandbox: {message}"),
    }
}

fn create_error(message: &str) -> StartError {
    StartError {
        reason: "CreateContainerError",
        message: format!("failed to create containerd container: {message}"),
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if filled == N {
        Ok(bytes)
    } else {
        Err(io::Error::other("the kernel gave too few random bytes"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// These maps stay whole if a holder of the lock panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
