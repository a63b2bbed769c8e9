//! The gRPC API, which `build.rs` generates from `proto/`, and nothing else.

/// Package `podsonde.v1`: podsonde's own API.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod v1 {
    tonic::include_proto!("podsonde.v1");

    /// The name of the package, which comes before those of services and methods.
    pub const PACKAGE: &str = "podsonde.v1";

    /// The descriptors of all services, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("podsonde.v1");
}
