//! podsonde looks into Kubernetes pods from their nodes: it starts debug containers and proves
//! which namespaces they share, reads files, and captures packets.
//!
//! # The map
//!
//! There are two programs: `podsonde-agent`, the daemon on each node, and `podsonde`, for people.
//!
//! ```text
//! bin/podsonde-agent ─ agent ─┬─ sys ────┐   bin/podsonde ─ cli ─┬─ client ─ kube, proto, domain
//!                             ├─ kube ───┤                       └─ embedded (podsonde demo)
//!                             └─ proto   └─ domain
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`domain`] | pure logic, without a kernel or a network: pods, verdicts, packets, errors |
//! | [`sys`] | Linux: procfs, pidfds, namespaces, files, packets; the only home of `unsafe` |
//! | [`kube`] | the Kubernetes API, as agent and client use it |
//! | [`proto`] | the gRPC API, generated from `proto/` |
//! | [`agent`] | the daemon |
//! | [`client`] | finds agents, connects to them and asks many at once; for other programs, too |
//! | [`cli`] | the command line: one file or folder for each command |
//! | [`embedded`] | an API server, a kubelet and pods of plain namespaces, for demo and tests |
//!
//! # Where to look
//!
//! | behaviour | where it is decided | where it happens |
//! |---|---|---|
//! | who may call what | [`agent::access`] | [`agent::rpc::gate`], which every call passes |
//! | what the audit log says | [`agent::audit`] | [`agent::rpc::operation`] |
//! | an error's reason and code | [`domain::error`] | [`agent::rpc::status`] |
//! | limits and flags | [`agent::config`] | [`agent::listen`], [`agent::rpc::slots`] |
//! | start, readiness and shutdown | [`agent::app`] | [`agent::probes`] |
//! | which process is a container's | [`domain::cgroup`] | [`sys::process`], [`sys::containers`] |
//! | verdicts on namespaces | [`domain::verdict`] | [`agent::verify`] |
//! | debug containers, their end | [`domain::session`] | [`agent::sessions`], [`agent::expiry`] |
//! | entering namespaces | [`sys::broker`] | [`sys::enter`] |
//! | files of a container | [`sys::rooted`] | [`agent::files`] |
//! | packets of a pod | [`agent::capture`] | [`sys::capture`] |
//! | capture files | [`domain::pcapng`] | `cli::capture` |
//! | packets as text | [`domain::packet`] | `cli::capture` |
//! | what may reach a terminal | [`domain::text`] | `cli::terminal` |
//! | finding and trusting an agent | [`kube::agents`], [`kube::leases`] | [`client`] |
//!
//! # What always holds
//!
//! - Nothing is called "shared" on the strength of the spec, and no verdict is about a process that
//!   was not proven to be the container's ([`sys::process`]).
//! - A thread that entered a foreign namespace ends with its visit ([`sys::enter`]).
//! - Nothing outside a container's root is opened on its behalf ([`sys::rooted`]).
//! - Every packet that is lost is counted ([`sys::capture`]).
//! - The API server authorises every call, and the audit log has it before anything is done
//!   ([`agent::rpc::gate`]).
//! - The agent keeps nothing that a restart would lose: it reads sessions from the pods' specs
//!   ([`agent::sessions`]).
//! - Imports run one way, no circle of them spans folders, and `unsafe` stands in `sys` alone
//!   (`tests/architecture.rs`).
//!
//! `.github/CONTRIBUTING.md` says how to add an RPC, a command, a check and a packet printer, and
//! explains the project's words.

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
