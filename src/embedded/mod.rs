//! The embedded cluster: an API server that speaks the slice of the Kubernetes API that podsonde
//! uses, over HTTP, with a small kubelet and a container runtime. The demo and the tests run on it,
//! and the agent cannot tell it from a real cluster.
//!
//! The cluster is an oracle for the agent and the client, so that it shares no code with them:
//! where both sides need the same thing (label selectors, pidfds, cgroup paths, mount tables), the
//! cluster has its own implementation, made after Kubernetes' or the runtime's. A shared mistake
//! would make a test pass that should fail. `tests/architecture.rs` holds this: the module may use
//! no other one. What the two sides do share are the crates below them: `kube` and `k8s-openapi`
//! for the API's types, `nix` and `rustix` for system calls.
//!
//! - [`Cluster`]: starts the API server and the kubelets, and can make them fail ([`Faults`]).
//! - [`runtime`]: what the kubelet asks of a container runtime.
//! - [`namespaces`]: a runtime made of plain Linux namespaces. The node tier has another one, which
//!   drives a real containerd (`tests/support/cri`).
//! - [`mod@reference`]: image references.

mod api;
mod cluster;
mod kubelet;
pub mod namespaces;
pub mod reference;
pub mod runtime;

pub use api::Address;
pub use cluster::{ApiStatus, Builder, Cluster, Faults};
