//! podsonde: debug containers for Kubernetes pods, with proof of the namespaces they share.

pub mod cli;
pub mod client;
#[cfg(all(feature = "embedded", target_os = "linux"))]
pub mod embedded;
pub mod kube;
pub mod proto;
pub mod telemetry;
