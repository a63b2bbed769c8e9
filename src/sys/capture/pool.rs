//! The buffers between a capture and its reader. Their number is bounded, and the capture waits
//! until one comes back, which bounds the memory that a slow reader costs.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use rustix::{
    event::{EventfdFlags, eventfd},
    io::{read, write},
};

use crate::sys::SysError;

/// Size of a buffer: what is sent at a time, and a block of the ring besides.
pub const BUFFER: usize = super::pump::ENOUGH + super::RING_UNIT + 4096;

/// The buffers of one capture, and what wakes its thread.
#[derive(Debug)]
pub struct Pool {
    wake: OwnedFd,
    /// Whether the thread waits for a buffer.
    starving: AtomicBool,
    buffers: Mutex<Buffers>,
}

#[derive(Debug)]
struct Buffers {
    free: Vec<Vec<u8>>,
    /// How many may still be made.
    unmade: usize,
}

impl Pool {
    /// A pool of as many buffers as fit into `bytes`, but at least two: one is filled while another
    /// is read. Buffers are allocated when they are first needed.
    ///
    /// # Errors
    /// If there are no more descriptors.
    pub fn new(bytes: usize) -> Result<Arc<Self>, SysError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(SysError::of("eventfd", "the pool"))?;
        let buffers = Buffers { free: Vec::new(), unmade: (bytes / BUFFER).max(2) };
        Ok(Arc::new(Self { wake, starving: AtomicBool::new(false), buffers: Mutex::new(buffers) }))
    }

    /// An empty buffer. None if all are in use: the pool's descriptor then becomes readable once
    /// one is back.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        self.take_now().or_else(|| {
            self.starving.store(true, Ordering::SeqCst);
            // One that came back before that did not wake anybody.
            let buffer = self.take_now();
            if buffer.is_some() {
                self.starving.store(false, Ordering::SeqCst);
            }
            buffer
        })
    }

    fn take_now(&self) -> Option<Vec<u8>> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = buffers.free.pop() {
            return Some(buffer);
        }
        buffers.unmade = buffers.unmade.checked_sub(1)?;
        Some(Vec::with_capacity(BUFFER))
    }

    /// What the buffer holds, for a reader. It comes back once that has let go of it.
    pub(super) fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, pool: Arc::clone(self) })
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).free.push(buffer);
        if self.starving.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Wakes the thread.
    pub(super) fn wake(&self) {
        // It fails only when nobody has slept for 2^64 times.
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Has been woken.
    pub(super) fn woken(&self) {
        let _ = read(&self.wake, &mut [0; 8]);
    }
}

impl AsFd for Pool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[derive(Debug)]
struct Lent {
    buffer: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(pool: &Pool) -> bool {
        let mut fds = [PollFd::new(pool, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }

    #[test]
    fn there_are_only_so_many_and_one_that_comes_back_wakes() {
        let pool = Pool::new(3 * BUFFER).unwrap();
        let mut taken: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        let mut buffer = taken.pop().unwrap();
        buffer.extend(b"abc");
        let lent = pool.lend(buffer);
        assert_eq!(&lent[..], b"abc");
        assert!(pool.take().is_none() && !is_readable(&pool));
        drop(lent.slice(1..));
        assert!(!is_readable(&pool));
        drop(lent);
        assert!(is_readable(&pool));
        pool.woken();
        assert!(pool.take().is_some_and(|buffer| buffer.is_empty()));
        // Nobody waits: no wake.
        drop(pool.lend(taken.pop().unwrap()));
        assert!(!is_readable(&pool));
    }
}
