//! Why packets could not be printed or written.

use std::io;

use crate::domain::pcapng;

/// Why packets could not be printed or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    /// The output failed; nothing more can be written to it.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// The stream is malformed; other streams go on.
    #[error(transparent)]
    Stream(#[from] pcapng::Error),
}
