//! Bounded lanes from async tasks into a disk's own threads.
//!
//! A request holds a permit from before it is queued until its thread drops it, so a lane bounds
//! requests waiting *and* in work, and the sender waits without blocking its worker. What a
//! request owns (buffers, block pins, locks) travels with it: a caller that goes away midway
//! never leaves the kernel writing into freed memory or a lock released too early.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use emberfs_proto::{Error, ErrorCode, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// A request and its place in the lane, given back when this is dropped.
pub(super) struct Job<T> {
    pub(super) work: T,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The sending side.
pub(super) struct Lane<T> {
    name: &'static str,
    tx: SyncSender<Job<T>>,
    permits: Arc<Semaphore>,
}

impl<T> Clone for Lane<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            tx: self.tx.clone(),
            permits: Arc::clone(&self.permits),
        }
    }
}

/// The receiving side, owned by one thread.
pub(super) struct LaneEnd<T> {
    rx: Receiver<Job<T>>,
}

/// What [`LaneEnd::recv_timeout`] found.
pub(super) enum Received<T> {
    Job(Job<T>),
    Nothing,
    Closed,
}

/// Opens a lane for at most `depth` requests.
pub(super) fn lane<T>(name: &'static str, depth: usize) -> (Lane<T>, LaneEnd<T>) {
    // Permits bound what is queued, so a send never waits; one more place is for the stop message.
    let (tx, rx) = sync_channel(depth + 1);
    (
        Lane {
            name,
            tx,
            permits: Arc::new(Semaphore::new(depth)),
        },
        LaneEnd { rx },
    )
}

impl<T> Lane<T> {
    /// Queues `work`, waiting for a place.
    pub(super) async fn send(&self, work: T) -> Result<()> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| self.closed())?;
        self.tx
            .try_send(Job {
                work,
                _permit: Some(permit),
            })
            .map_err(|_| self.closed())
    }

    /// Queues `work` unless the lane is full or closed; for hints that may be lost.
    pub(super) fn hint(&self, work: T) {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            // A closed lane needs no hints.
            let _ = self.tx.try_send(Job {
                work,
                _permit: Some(permit),
            });
        }
    }

    /// Queues the last request behind all others, and refuses later ones.
    pub(super) fn close(&self, last: T) {
        self.permits.close();
        // A full or closed channel means that the thread has ended or been told already.
        let _ = self.tx.try_send(Job {
            work: last,
            _permit: None,
        });
    }

    /// The answer to whoever comes after the end.
    pub(super) fn closed(&self) -> Error {
        let what = format!(
            "disk engine is shut down ({} thread); try another replica",
            self.name
        );
        Error::new(ErrorCode::Unavailable, what)
    }

    /// Waits for the answer of a request that was sent.
    pub(super) async fn answer<R>(&self, rx: oneshot::Receiver<Result<R>>) -> Result<R> {
        rx.await.unwrap_or_else(|_| Err(self.closed()))
    }
}

impl<T> LaneEnd<T> {
    /// The next request; `None` when all senders are gone.
    pub(super) fn recv(&self) -> Option<Job<T>> {
        self.rx.recv().ok()
    }

    /// The next request if it comes in time.
    pub(super) fn recv_timeout(&self, timeout: Duration) -> Received<T> {
        match self.rx.recv_timeout(timeout) {
            Ok(job) => Received::Job(job),
            Err(RecvTimeoutError::Timeout) => Received::Nothing,
            Err(RecvTimeoutError::Disconnected) => Received::Closed,
        }
    }

    /// A request that is already there.
    pub(super) fn try_recv(&self) -> Received<T> {
        match self.rx.try_recv() {
            Ok(job) => Received::Job(job),
            Err(TryRecvError::Empty) => Received::Nothing,
            Err(TryRecvError::Disconnected) => Received::Closed,
        }
    }
}
