//! The gRPC services, one file each: conversions and calls, no decisions.
//!
//! - [`gate`]: what every call goes through: who calls, whether they may, limits, time, audit, metrics;
//! - [`operation`]: what each request asks for; [`slots`]: how many at a time;
//! - [`convert`]: requests to domain types and reports to messages;
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
