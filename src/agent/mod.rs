//! The daemon: one per node, serves the gRPC API for the pods of its node. Linux only.
//!
//! - [`config`]: its flags;
//! - [`app`]: the one place where everything is wired together, and drained;
//! - [`privileges`]: what its processes may do, settled before anything listens;
//! - [`access`]: who is calling, and what each method asks of them; [`audit`]: the record of it;
//! - [`files`]: the files of containers;
//! - [`verify`] and [`sessions`]: the two things it does, [`expiry`] ends what has lasted long
//!   enough;
//! - [`rpc`]: the gRPC services: conversions and calls, no decisions;
//! - [`tls`], [`announce`]: its certificate, and how clients learn it;
//! - [`work`]: what blocks, and the permits that it holds;
//! - [`listen`], [`probes`], [`metrics`]: its sockets and what it tells about itself.

pub mod access;
pub mod announce;
pub mod app;
pub mod audit;
pub mod capture;
pub mod config;
pub mod expiry;
pub mod files;
mod health;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod privileges;
pub mod probes;
pub mod rpc;
pub mod sessions;
pub mod tls;
pub mod verify;
pub mod work;
