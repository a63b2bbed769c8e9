//! The client library: finds agents, connects to them, and sends requests to one or many of them.
//! The command line is built on it, and other programs can use it too. It builds on every platform
//! that tokio supports, and depends on [`crate::kube`] and [`crate::proto`] only.
//!
//! ```no_run
//! use podsonde::client::{ConnectOptions, Endpoint, Fleet};
//!
//! # async fn example() -> Result<(), podsonde::client::Error> {
//! let socket: Endpoint = "unix:///run/podsonde/agent.sock".parse()?;
//! let fleet = Fleet::direct(socket, ConnectOptions::default());
//! let agent = fleet.place_of_pod("default", "web").await?;
//! let verdict = fleet.connect(&agent).await?.verify("default", "web", "").await?;
//! println!("{:?}", verdict.outcome());
//! # Ok(())
//! # }
//! ```

mod agent;
mod capture;
mod connect;
mod credentials;
mod endpoint;
mod error;
pub mod files;
mod fleet;
mod options;
mod reason;
mod tls;

pub use agent::Agent;
pub use capture::{Capture, CaptureEvent};
pub use connect::{connect, published_trust};
pub use credentials::Credentials;
pub use endpoint::Endpoint;
pub use error::Error;
pub use files::Files;
pub use fleet::{AgentLocation, Failure, Fleet, Gathered, by_reason};
pub use options::{ConnectOptions, Traffic};
pub use reason::Reason;
pub use tls::{ClientIdentity, Fingerprint, Trust};
