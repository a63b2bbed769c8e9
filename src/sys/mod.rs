//! Linux: procfs, pidfds, namespaces, files, packets. The only home of `unsafe`: it stands in `ffi`
//! and in the two parts of [`capture`] that share memory with the kernel and with libpcap.
//!
//! Most calls block and run on blocking threads; what may block for ever has threads of its own.
//! Depends on [`crate::domain`] alone.
//!
//! - [`procfs`]: the `/proc` of the node, read through directory descriptors;
//! - [`process`]: a process proven to be a container's, pinned by pidfd;
//! - [`containers`]: from container ids to such processes, in one pass over `/proc`, of which
//!   `pass` lets two run at a time;
//! - [`enter`]: running something inside another namespace, on a thread that ends with it;
//! - `evidence`: what is seen from inside namespaces;
//! - [`socket`]: the sockets that are opened inside a network namespace;
//! - [`capture`]: packets of a network namespace, through a ring and libpcap's filters;
//! - [`broker`]: the process that enters namespaces, so that the one that speaks gRPC need not;
//! - [`confine`]: giving up privileges for good;
//! - [`rooted`]: the files below a root directory that somebody else controls;
//! - [`identity`]: reading files as somebody else;
//! - [`stop`]: ending a container's processes;
//! - [`preflight`]: whether the node allows all that.

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
