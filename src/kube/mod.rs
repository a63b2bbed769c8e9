//! What podsonde asks of the Kubernetes API. The agent and the client share it, so it knows of neither, nor of gRPC: of the
//! crate it may depend on `domain` only.

pub mod agents;
pub mod portforward;
pub mod workloads;
