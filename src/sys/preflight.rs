//! Whether the node, and the container that the agent runs in, let it do its work. Checked at
//! start.

use super::{
    SysError,
    broker::{Broker, NamespaceEntry},
    containers::Containers,
    ffi,
    process::Pidfd,
    procfs::Proc,
    rooted::RootedDir,
};
use crate::domain::{cgroup, namespace::NamespaceKind};
use std::os::fd::AsFd;

/// Something that the agent needs or can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Name, as in `podsonde node`: `cap-sys-ptrace`.
    pub name: &'static str,
    /// Whether the node has it.
    pub available: bool,
    /// Whether the agent is useless without it.
    pub required: bool,
    /// `ok`, or what does not work without it and what to do.
    pub message: String,
}

/// Looks for everything that the agent needs. `host_pid` is the process that stands for the host, 1
/// on a node. Capabilities for entering namespaces are those of the broker where there is one.
///
/// # Errors
/// If there is no `/proc`.
pub fn check(host_pid: u32, entry: &NamespaceEntry) -> Result<Vec<Feature>, SysError> {
    let proc = Proc::open()?;
    let mut buffer = Vec::new();
    let status = proc.read(std::process::id(), "status", &mut buffer)?;
    let (capabilities, permitted) =
        (capabilities_of(status, "CapEff:"), capabilities_of(status, "CapPrm:"));
    let capability =
        |name, bit: u32, without| feature(name, true, capabilities & (1 << bit) != 0, without);
    let at_hand =
        |name, bit: u32, without| feature(name, false, permitted & (1 << bit) != 0, without);
    let of_entry = entry.broker().map_or(capabilities, |broker| broker.hello().capabilities);
    let features = [
        host_pid_feature(&proc, host_pid),
        capability(
            "cap-sys-ptrace",
            19,
            "namespaces and roots of other users' processes cannot be read; add SYS_PTRACE",
        ),
        feature(
            "cap-sys-admin",
            true,
            of_entry & (1 << 21) != 0,
            "no evidence from inside namespaces; add SYS_ADMIN",
        ),
        feature(
            "cap-net-raw",
            false,
            of_entry & (1 << 13) != 0,
            "no packets can be captured; add NET_RAW",
        ),
        capability("cap-kill", 5, "sessions of other users' processes cannot be ended; add KILL"),
        at_hand("cap-setuid", 7, "files cannot be read as a container's user; add SETUID"),
        at_hand("cap-setgid", 6, "files cannot be read as a container's user; add SETGID"),
        at_hand("cap-dac-read-search", 2, "files cannot be read as root; add DAC_READ_SEARCH"),
        feature(
            "openat2",
            false,
            RootedDir::is_supported(),
            "no files of containers; Linux 5.8 and a seccomp profile that knows openat2 are needed",
        ),
        feature(
            "pidfd",
            true,
            Pidfd::open(std::process::id()).is_ok(),
            "processes cannot be pinned; Linux 5.3 is needed",
        ),
        feature(
            "host-namespaces",
            true,
            host_is_readable(host_pid),
            "the host's namespaces cannot be read, so nothing can be told from the host's",
        ),
        feature(
            "netns-cookie",
            false,
            has_netns_cookie(),
            "no cookie in network evidence; Linux 5.14 has it",
        ),
        feature(
            "pid-translation",
            false,
            translates_pids(&proc),
            "pids are translated within one namespace only; Linux 6.11 does better",
        ),
        feature(
            "time-namespaces",
            false,
            proc.process(host_pid)?.namespaces().get(NamespaceKind::Time).is_some(),
            "the kernel has no time namespaces; Linux 5.6 has them",
        ),
    ];
    Ok(features.into())
}

/// Whether the broker lives now. None if the agent enters namespaces itself.
pub fn broker(entry: &NamespaceEntry) -> Option<Feature> {
    let available = entry.broker().map(Broker::is_alive)?;
    Some(feature(
        "broker",
        true,
        available,
        "it has ended: no evidence from inside namespaces until the agent is started again",
    ))
}

/// A feature with its message: advice only where it is missing.
fn feature(name: &'static str, required: bool, available: bool, without: &str) -> Feature {
    Feature {
        name,
        available,
        required,
        message: if available { "ok" } else { without }.to_owned(),
    }
}

/// Without `hostPID`, pid 1 is the agent itself or a process of its own container.
fn host_pid_feature(proc: &Proc, host_pid: u32) -> Feature {
    let mut buffer = Vec::new();
    let mut container_of = |pid| {
        let text = proc.read(pid, "cgroup", &mut buffer).ok()?;
        cgroup::memberships(text, None).last().map(|m| m.id.to_owned())
    };
    let own = container_of(std::process::id());
    let available = std::process::id() != 1 && (own.is_none() || container_of(host_pid) != own);
    feature(
        "host-pid",
        true,
        available,
        "only the agent's own processes are visible; set hostPID: true",
    )
}

fn host_is_readable(host_pid: u32) -> bool {
    Containers::open(host_pid).is_ok_and(|c| c.host().namespaces.get(NamespaceKind::Net).is_some())
}

fn has_netns_cookie() -> bool {
    std::os::unix::net::UnixDatagram::unbound()
        .is_ok_and(|socket| ffi::netns_cookie(&socket).is_ok())
}

fn translates_pids(proc: &Proc) -> bool {
    let own = std::process::id();
    proc.process(own)
        .and_then(|dir| dir.open("ns/pid"))
        .is_ok_and(|ns| ffi::pid_in_namespace(ns.as_fd(), own).is_ok())
}

/// A set of capabilities of `/proc/<pid>/status`.
fn capabilities_of(status: &str, set: &str) -> u64 {
    status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix(set)?.trim(), 16).ok())
        .unwrap_or_default()
}
