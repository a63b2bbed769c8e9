//! Errors of printing or writing packets.

use std::io;

use crate::domain::pcapng;

/// An error of printing or writing packets.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    /// The output failed. Nothing more can be written to it.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// One pod's stream is malformed. The streams of other pods go on.
    #[error(transparent)]
    Stream(#[from] pcapng::Error),
}
