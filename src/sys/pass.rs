//! Passes over `/proc`: blocking, and a few milliseconds of CPU on a node with thousands of
//! processes, so few run at a time, whoever asks for them.

use std::sync::Arc;

use super::containers::Containers;
use crate::domain::{Error, Reason, Result};

/// Passes at a time. A second one lets a short request overtake a long one; more would only share
/// the CPU.
pub(super) const PASSES: usize = 2;

impl Containers {
    /// Runs `work`, which reads `/proc`, on a blocking thread once one of the two passes is free.
    ///
    /// The permit belongs to the work: a pass that nobody waits for any longer still counts. What
    /// `work` does must end by itself, so nothing that a foreign file system answers belongs here.
    ///
    /// # Errors
    /// BUG if `work` panics.
    pub async fn pass<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T> {
        let bug = |what: String| Error::new(Reason::Bug, what);
        let permit = Arc::clone(self.passes()).acquire_owned().await;
        let permit = permit.map_err(|closed| bug(closed.to_string()))?;
        let containers = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&containers)
        });
        work.await.map_err(|panicked| bug(panicked.to_string()))
    }
}
