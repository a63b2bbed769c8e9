//! Linux: procfs, pidfds, namespaces, packets. The only home of `unsafe`: in `ffi`, and in the two parts of [`capture`] that share
//! memory with the kernel and with libpcap.
//!
//! Blocking calls, which the agent runs on blocking threads; only the end of a process is awaited. Depends on [`crate::domain`] alone.
//!
//! - [`procfs`]: the `/proc` of the node, read through directory descriptors;
//! - [`process`]: a process that was proven to be a container's, pinned by pidfd;
//! - [`containers`]: from container ids to such processes, in one pass over `/proc`;
//! - [`enter`]: running something inside another namespace, on a thread that ends with it;
//! - `evidence`: what is seen from inside;
//! - [`socket`]: the sockets that are opened inside;
//! - [`capture`]: packets of a network namespace, by a ring of its own and libpcap's filters;
//! - [`broker`]: the process that may enter namespaces, so that the agent's own need not;
//! - [`confine`]: giving up privileges for good;
//! - [`rooted`]: the files below a root directory that somebody else controls;
//! - [`identity`]: reading them as somebody else;
//! - [`stop`]: ending a container's processes;
//! - [`preflight`]: whether the node lets us do all that.

pub mod broker;
pub mod capture;
pub mod confine;
pub mod containers;
pub mod enter;
mod error;
mod evidence;
mod ffi;
pub mod identity;
mod pass;
pub mod preflight;
pub mod process;
pub mod procfs;
pub mod rooted;
mod seccomp;
pub mod socket;
pub mod stop;

pub use error::SysError;
