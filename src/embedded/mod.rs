//! The embedded cluster: an API server that speaks the slice of the Kubernetes API that podsonde uses, over real
//! HTTP, a small kubelet, and a runtime. The demo and the tests run on it; the agent cannot tell it from a real one.

mod api;
mod cluster;
pub mod cri;
mod kubelet;
pub mod namespaces;
pub mod reference;
pub mod runtime;

pub use api::Address;
pub use cluster::{Builder, Cluster, Faults, Status};
