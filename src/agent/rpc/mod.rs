//! The gRPC services, one file each: they convert messages and call what does the work.
//!
//! - [`gate`]: what every call goes through: authentication, rights, limits, time, audit, metrics;
//! - [`operation`]: what each request is about; [`slots`]: how many are worked on at a time;
//! - [`convert`]: requests to domain types, and reports to messages;
//! - [`status`]: errors to gRPC statuses.

pub mod capture;
pub mod convert;
pub mod debug;
pub mod files;
pub mod gate;
pub mod namespaces;
pub mod node;
pub mod operation;
pub mod slots;
pub mod status;
