//! Work that blocks, and what it holds until it is done.
//!
//! A request's future ends when its deadline passes or its caller hangs up, but a thread that
//! blocks cannot be stopped. If the request's slot went with the future, callers with a short
//! `grpc-timeout` would keep more threads busy than there are slots. So the slot belongs to the
//! work: the gate runs each handler within [`in_slot`], and whatever goes on beyond the handler
//! holds a clone of the slot.

use std::sync::Arc;

use super::rpc::slots::RequestSlot;
use crate::domain::{Error, Reason, Result};

tokio::task_local! {
    static SLOT: Arc<RequestSlot>;
}

/// Runs a handler whose work holds `slot`.
pub async fn in_slot<F: Future>(slot: Arc<RequestSlot>, handler: F) -> F::Output {
    SLOT.scope(slot, handler).await
}

/// The slot of the request that the caller works for; none outside of a request. To be held by work
/// on other threads until it is done.
pub fn slot() -> Option<Arc<RequestSlot>> {
    SLOT.try_with(Arc::clone).ok()
}

/// Runs `work` on a thread for work that blocks. It holds the request's slot until it is done, also
/// if nobody waits for it any longer; other permits that it needs are to be moved into it.
///
/// # Errors
/// BUG if `work` panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let slot = slot();
    let held = move || {
        let _slot = slot;
        work()
    };
    let done = tokio::task::spawn_blocking(held).await;
    done.map_err(|error| Error::new(Reason::Bug, format!("a thread that blocks: {error}")))
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;
    use crate::agent::rpc::slots::RequestSlots;

    #[tokio::test]
    async fn work_holds_the_slot_after_its_request_has_ended() {
        let slots = Arc::new(RequestSlots::new(1, 1));
        let slot = Arc::new(slots.take().unwrap());
        let (finish, finished) = mpsc::channel::<()>();
        let work = blocking(move || finished.recv().is_ok());
        let request = tokio::time::timeout(Duration::from_millis(1), in_slot(slot, work));
        assert!(request.await.is_err(), "the work blocks");
        assert_eq!(slots.take().unwrap_err().reason, Reason::TooManyRequests);
        drop(finish);
        while slots.take().is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_bug() {
        let panics: fn() -> u8 = || panic!("on purpose");
        assert_eq!(blocking(panics).await.unwrap_err().reason, Reason::Bug);
    }
}
