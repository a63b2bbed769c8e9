//! Pure logic: what a pod asks for, which process belongs to a container, how a verdict on
//! namespaces is reached, what a session is, and how packets are stored and printed.
//!
//! The domain uses no other layer of podsonde and no tokio, tonic, kube or nix, so that all of it
//! can be tested and fuzzed on any machine. Every other layer may use it.

pub mod access;
pub mod bucket;
pub mod cgroup;
pub mod debug;
pub mod error;
pub mod evidence;
pub mod filter;
pub mod name;
pub mod namespace;
pub mod packet;
pub mod pcapng;
pub mod pod;
pub mod process;
pub mod selector;
pub mod session;
pub mod startup;
pub mod text;
pub mod verdict;

pub use error::{Error, ErrorKind, Reason, Result};
