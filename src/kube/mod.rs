//! What podsonde asks of the Kubernetes API. Depends on the kube client and on [`crate::proto`]-free types only, so that
//! the agent and the client share it.

pub mod agents;
pub mod portforward;
pub mod workloads;
