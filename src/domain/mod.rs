//! Pure logic: what a pod asks for, which process is a container's, what a namespace verdict is, what a session is, what a
//! capture file holds and how its packets read.
//!
//! Depends on nothing of podsonde and on no tokio, tonic, kube or nix, so all of it can be tested and fuzzed on any
//! machine. Everything else may depend on it.

pub mod access;
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
