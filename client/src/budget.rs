//! The memory that a client may fill: one half for buffered writes, one for read-ahead.
//!
//! Writers wait for their half; read-ahead never waits, it just reads less far ahead. Two halves
//! instead of one pot, so that an idle reader's prefetched bytes never stop a checkpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of memory. A permit is one byte.
pub(crate) struct Budget {
    writes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    each: usize,
    waiting: AtomicUsize,
}

/// Counts one waiting writer.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Budget {
    /// `bytes` in all; at least one smallest chunk for each half.
    pub(crate) fn new(bytes: usize) -> Self {
        let each = (bytes / 2).clamp(64 << 10, Semaphore::MAX_PERMITS);
        let half = || Arc::new(Semaphore::new(each));
        Self {
            writes: half(),
            reads: half(),
            each,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for room for `bytes` to be written; more than all there is counts as all there is.
    /// `relieve` is called once when there is no room: it must make others give theirs back.
    pub(crate) async fn for_write(
        &self,
        bytes: usize,
        relieve: impl FnOnce(),
    ) -> OwnedSemaphorePermit {
        let permits = bytes.min(self.each) as u32;
        if let Ok(permit) = self.writes.clone().try_acquire_many_owned(permits) {
            return permit;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        relieve();
        let room = self.writes.clone().acquire_many_owned(permits).await;
        room.expect("the semaphore is never closed: nothing calls close")
    }

    /// Is a writer waiting? Then no data may rest here.
    pub(crate) fn pressed(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Room for `bytes` of read-ahead, if there is any.
    pub(crate) fn for_read(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes).ok()?;
        self.reads.clone().try_acquire_many_owned(permits).ok()
    }

    /// Bytes taken: (writes, read-ahead).
    pub(crate) fn used(&self) -> (usize, usize) {
        let taken = |s: &Semaphore| self.each - s.available_permits();
        (taken(&self.writes), taken(&self.reads))
    }
}
