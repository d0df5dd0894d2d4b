//! The embedded engine: RocksDB for storage, our own conflict validation and group commit.
//!
//! RocksDB's own optimistic transactions validate reads of keys against writes of keys and know
//! no ranges: "the directory is empty, remove it" and "create a child" both commit there. So this
//! engine uses plain snapshots and plain write batches, and one committer thread
//! (`committer`) decides, in FoundationDB's way, who conflicts with whom.
//!
//! Invariants:
//! - Every batch stores the version of its last transaction under a system key, and is atomic.
//!   So the version that a snapshot finds there tells exactly which commits the snapshot holds,
//!   and taking one needs no lock.
//! - A batch is written with `sync`, and RocksDB shows it to readers only after its log is on disk:
//!   what was acknowledged, or even only seen, survives a power cut.
//! - After a failed write nothing more is committed until the engine is opened again, because
//!   nobody knows whether that write is in the log.
//!
//! A directory belongs to one process at a time. Transactions that outlive the engine keep it
//! locked.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::RwLock;
use rocksdb::DB;

use super::transaction::{CommitRequest, OptimisticTransaction, Store};
use super::{Clock, CommitVersion, Engine, KvError, KvResult, Transaction};

mod committer;
mod open;
mod snapshot;

pub use committer::CommitStats;
use committer::{Committer, Ticket, WriteBatchFn};
use snapshot::RocksSnapshot;

/// Transactions that may wait for the committer; more are refused with [`KvError::Throttled`].
/// Twice tokio's blocking pool, which bounds the callers.
const COMMIT_QUEUE: usize = 1024;
/// The version of the last commit, 8 bytes little-endian.
const VERSION_KEY: &[u8] = b"\xffversion";

/// RocksDB in one directory. Dropping it finishes the commits under way; that blocks for at
/// most the time of a synced write.
pub struct RocksEngine {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    db: Arc<DB>,
    clock: Clock,
    stats: Arc<committer::Counters>,
    /// None once the engine is dropped.
    queue: RwLock<Option<SyncSender<Ticket>>>,
}

impl RocksEngine {
    /// Opens the store in `directory`, which is created if it does not exist.
    ///
    /// Fails with [`ErrorCode::NodeConflict`] when another process has it open, with
    /// [`ErrorCode::ForeignDisk`] when it holds something else or a newer format, and with
    /// [`ErrorCode::DiskError`] otherwise. Blocks while RocksDB replays its log.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_with_clock(directory, Clock::system())
    }

    /// Like [`Self::open`], with the clock that limits the age of transactions.
    pub fn open_with_clock(directory: &Path, clock: Clock) -> Result<Self> {
        Self::open_with(directory, clock, committer::write_synced)
    }

    fn open_with(directory: &Path, clock: Clock, write: WriteBatchFn) -> Result<Self> {
        let db = Arc::new(open::open(directory)?);
        let version = snapshot::stored_version(&db)
            .map_err(|error| Error::from(error).context(directory.display()))?;
        let stats = Arc::new(committer::Counters::default());
        let (queue, tickets) = sync_channel(COMMIT_QUEUE);
        let committer = Committer::new(
            Arc::clone(&db),
            version,
            clock.clone(),
            Arc::clone(&stats),
            write,
        );
        let thread = std::thread::Builder::new()
            .name("kv-commit".into())
            .spawn(move || committer.run(&tickets))
            .map_err(|error| {
                Error::new(
                    ErrorCode::Internal,
                    format!("cannot start the metadata store's committer thread: {error}"),
                )
            })?;
        let shared = Shared {
            db,
            clock,
            stats,
            queue: RwLock::new(Some(queue)),
        };
        Ok(Self {
            shared: Arc::new(shared),
            committer: Some(thread),
        })
    }

    /// What the committer has done since the engine was opened.
    pub fn stats(&self) -> CommitStats {
        self.shared.stats.read()
    }
}

impl Engine for RocksEngine {
    fn begin(&self) -> Box<dyn Transaction> {
        Box::new(OptimisticTransaction::new(Arc::clone(&self.shared)))
    }

    fn name(&self) -> &'static str {
        "rocksdb"
    }
}

impl Drop for RocksEngine {
    fn drop(&mut self) {
        // With the sender gone the committer ends after the last waiting transaction.
        *self.shared.queue.write() = None;
        if self
            .committer
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the metadata store's committer thread had panicked");
        }
    }
}

impl Store for Shared {
    type Snapshot = RocksSnapshot;

    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn snapshot(self: &Arc<Self>) -> KvResult<RocksSnapshot> {
        RocksSnapshot::take(Arc::clone(&self.db))
    }

    fn commit(&self, request: CommitRequest) -> KvResult<CommitVersion> {
        let (answer, answered) = sync_channel(1);
        let sent = match &*self.queue.read() {
            Some(queue) => queue.try_send(Ticket { request, answer }),
            None => return Err(KvError::Closed("it was closed".into())),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(KvError::Throttled),
            Err(TrySendError::Disconnected(_)) => {
                return Err(KvError::Closed(
                    "its committer thread died; restart the metadata server".into(),
                ));
            }
        }
        // No answer: the committer died with the transaction in its hands.
        answered.recv().unwrap_or_else(|_| {
            Err(KvError::MaybeCommitted(
                "the committer thread died; see the log".into(),
            ))
        })
    }
}

#[cfg(test)]
mod tests;
