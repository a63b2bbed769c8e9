//! What the agent's processes may do: the broker is started, then this process gives up what only
//! the broker needs.

use anyhow::Context;
use rustix::thread::CapabilitySet;

use crate::sys::{
    broker::{Broker, NamespaceEntry},
    confine::{self, Confined, Filter, Keep},
};

/// What the process that speaks gRPC keeps in force: looking into other users' processes and ending
/// them. Threads that read files, and they alone, can also take up another user's identity and the
/// right to read any file.
const CAPABILITIES: Keep = Keep {
    effective: CapabilitySet::SYS_PTRACE.union(CapabilitySet::KILL),
    at_hand: CapabilitySet::SETUID
        .union(CapabilitySet::SETGID)
        .union(CapabilitySet::DAC_READ_SEARCH),
};

/// Starts the broker and gives up everything else, for good. Must be called before there is a
/// second thread or a socket.
///
/// # Errors
/// If the broker cannot be started, or the kernel refuses to take something away.
pub fn separate() -> anyhow::Result<NamespaceEntry> {
    let broker = Broker::start()
        .context("cannot start the broker, which enters namespaces for the agent")?;
    let Confined { bounded, filtered, .. } =
        confine::confine(CAPABILITIES, Filter::Agent).context("cannot give up privileges")?;
    if !(bounded && broker.hello().bounded) {
        tracing::warn!(
            "capabilities stay in the bounding set, where only no_new_privs keeps them out of \
            reach; add SETPCAP, \
             which is given up at once"
        );
    }
    if !(filtered && broker.hello().filtered) {
        tracing::warn!(
            "this kernel filters no system calls of the agent's own: seccomp is not available"
        );
    }
    Ok(NamespaceEntry::Broker(broker))
}
