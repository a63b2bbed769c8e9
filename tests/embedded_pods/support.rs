//! What the tests build pods of, and how they look at them.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, PodSpec, SecurityContext};
use podsonde::embedded::{
    namespaces::NamespaceOptions,
    runtime::{ContainerStart, PidMode},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

pub(crate) const PODSONDE: &str = env!("CARGO_BIN_EXE_podsonde");
pub(crate) const SLEEP: &str = "podsonde.dev/demo/sleep:1";

/// Whether a test that needs root can run. Where `CI` is set it must.
pub(crate) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "needs root");
    if !root {
        println!("skipped: needs root");
    }
    root
}

pub(crate) fn options() -> NamespaceOptions {
    NamespaceOptions { executable: PathBuf::from(PODSONDE), ..NamespaceOptions::default() }
}

pub(crate) fn pod(name: &str) -> Pod {
    let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    pod.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
    pod
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap()
}

pub(crate) fn container(name: &str, image: &str) -> ContainerStart {
    ContainerStart {
        name: name.to_owned(),
        attempt: 0,
        image: image.to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        security: SecurityContext::default(),
        pid: PidMode::Container,
        mounts: Vec::new(),
        labels: BTreeMap::new(),
        stdin: false,
        tty: false,
    }
}

pub(crate) fn shell(script: &str) -> ContainerStart {
    let mut container = container("shell", "busybox");
    container.command = ["sh", "-c", script].map(str::to_owned).to_vec();
    container
}

/// Runs a script with a shell in the namespaces in which a runtime runs, and gives what it prints.
pub(crate) struct View {
    prefix: Vec<String>,
}

impl View {
    pub(crate) fn here() -> Self {
        Self { prefix: Vec::new() }
    }

    /// The user and mount namespaces of a process of nobody's.
    pub(crate) fn of(pid: u32) -> Self {
        let prefix = format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups \
             nsenter --target {pid} --user --mount --preserve-credentials --"
        );
        Self { prefix: prefix.split(' ').map(str::to_owned).collect() }
    }

    pub(crate) fn run(&self, script: &str) -> String {
        let mut words = self.prefix.iter().map(String::as_str).chain(["sh", "-c", script]);
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The pids of processes whose cgroup line names this container or sandbox.
    pub(crate) fn pids(&self, id: &str) -> Vec<i32> {
        let found = self.run(&format!("grep -lsE '[/-]{id}(\\.scope)?$' /proc/[0-9]*/cgroup"));
        let mut pids: Vec<i32> =
            found.lines().map(|path| path.split('/').nth(2).unwrap().parse().unwrap()).collect();
        pids.sort_by_key(|pid| start_time(*pid));
        pids
    }

    /// The first process of a container.
    pub(crate) fn pid(&self, id: &str) -> i32 {
        *self.pids(id).first().unwrap_or_else(|| panic!("no process with id {id}"))
    }

    /// The namespaces of a process, by kind.
    pub(crate) fn namespaces(&self, pid: i32) -> BTreeMap<String, String> {
        let links = self.run(&format!(
            "for kind in cgroup ipc mnt net pid time user uts; do readlink /proc/{pid}/ns/$kind; done"
        ));
        let namespaces: BTreeMap<_, _> = links
            .lines()
            .map(|link| (link.split(':').next().unwrap().to_owned(), link.to_owned()))
            .collect();
        assert_eq!(namespaces.len(), 8, "namespaces of {pid}: {namespaces:?}");
        namespaces
    }
}

pub(crate) fn start_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    fields.split(' ').nth(19).and_then(|field| field.parse().ok()).unwrap_or(u64::MAX)
}

/// What is left of a pod anywhere: processes and cgroups. A process whose cgroup is deleted has
/// ended, and waits for the machine's init to take note.
pub(crate) fn left_of(uid: &str) -> String {
    let systemd = uid.replace('-', "_");
    View::here().run(&format!(
        "grep -sE '{uid}|{systemd}' /proc/[0-9]*/cgroup | grep -v '(deleted)$'; find /sys/fs/cgroup -name '*{uid}*' -o -name '*{systemd}*'"
    ))
}

/// Every descendant of a process.
pub(crate) fn descendants(pid: u32) -> Vec<i32> {
    let listed = View::here().run("ps -eo pid=,ppid=");
    let pairs: Vec<(u32, u32)> = listed
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
            Some((numbers.next()?, numbers.next()?))
        })
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(pairs.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.into_iter().skip(1).map(|pid| i32::try_from(pid).unwrap()).collect()
}

pub(crate) fn pidfd(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap()
}

pub(crate) fn has_ended(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)).unwrap() == 1
}

/// Waits until all of the processes have ended.
pub(crate) fn wait_for_end(processes: &[OwnedFd]) {
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    for process in processes {
        let ready = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "a process is still there after 20 s");
    }
}

/// For what the kernel does by and by and tells nobody: the removal of an interface after its
/// namespace.
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "still not so after 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}
