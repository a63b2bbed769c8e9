//! podsonde: debug containers for Kubernetes pods, with proof of the namespaces they share.

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
