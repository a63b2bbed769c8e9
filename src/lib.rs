//! podsonde: looks into Kubernetes pods from their nodes: debug containers with proof of the namespaces they share, files, packets.
//!
//! # The map
//!
//! Two programs: `podsonde-agent`, one per node, and `podsonde`, for people.
//!
//! ```text
//! bin/podsonde-agent ─ agent ─┬─ sys ────┐        bin/podsonde ─ cli ─ client ─ kube, proto, domain
//!                             ├─ kube ───┤                        └─ embedded (podsonde demo) ─ agent
//!                             └─ proto   └─ domain
//! ```
//!
//! - [`domain`]: pure logic: pods, cgroups, verdicts, sessions, capture files ([`domain::pcapng`]), packets as text
//!   ([`domain::packet`]), errors. Start with [`domain::verdict`].
//! - [`sys`]: Linux: procfs, pidfds, namespaces, files below a foreign root ([`sys::rooted`]), packets ([`sys::capture`]), and the broker
//!   that alone enters namespaces ([`sys::broker`]). The only home of `unsafe`.
//! - [`kube`]: the Kubernetes API: the watch of a node's pods, ephemeral containers, the way to an agent.
//! - [`proto`]: the gRPC API, generated from `proto/`.
//! - [`agent`]: the daemon. [`agent::app`] wires it, [`agent::rpc::gate`] is what every call goes through,
//!   [`agent::access`] the table of who may call what; [`agent::sessions`], [`agent::verify`], [`agent::files`] and [`agent::capture`] are what
//!   it does.
//! - [`client`]: what the command line is made of; for other programs, too.
//! - [`cli`]: the command line.
//! - [`embedded`]: an API server, a kubelet and pods of plain namespaces, for the demo and the tests.
//!
//! # What always holds
//!
//! - Never "shared" on the strength of the spec; never a verdict about a process that was not proven to be the container's
//!   ([`sys::process`]).
//! - A thread that entered a foreign namespace ends with its visit ([`sys::enter`]).
//! - Nothing outside a container's root is opened on its behalf ([`sys::rooted`]), and no packet is lost that is not counted
//!   ([`sys::capture`]).
//! - Every call is authorised by the API server and written down before anything is done ([`agent::rpc::gate`]).
//! - The agent keeps nothing that a restart would lose: sessions are read from the pods' specs ([`agent::sessions`]).
//! - Imports run one way, and `unsafe` stands in `sys` alone (`tests/architecture.rs`).

#[cfg(target_os = "linux")]
pub mod agent;
pub mod cli;
pub mod client;
mod codec;
pub mod domain;
#[cfg(all(feature = "embedded", target_os = "linux"))]
pub mod embedded;
pub mod kube;
pub mod proto;
#[cfg(target_os = "linux")]
pub mod sys;
pub mod telemetry;
