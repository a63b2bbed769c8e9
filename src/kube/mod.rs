//! The Kubernetes API, for the agent and for the client. Depends on [`crate::domain`] alone.
//!
//! - [`pods`]: the agent's watch of its own node's pods;
//! - [`container`]: the definition of an ephemeral container;
//! - [`ephemeral`]: adding one to a pod; [`events`]: telling the pod's owner;
//! - [`auth`]: reviews: who a caller is and what the API server allows them;
//! - [`error`]: what an API error means;
//! - [`leases`]: what an agent publishes about itself, and who signs client certificates;
//! - [`workloads`], [`agents`], [`portforward`]: from a name to the agent of a node, for the
//!   client.

pub mod agents;
pub mod auth;
pub mod container;
pub mod ephemeral;
pub mod error;
pub mod events;
pub mod leases;
pub mod pods;
pub mod portforward;
mod retry;
pub mod workloads;
