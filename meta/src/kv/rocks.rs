//! The embedded engine: RocksDB for storage, our own conflict validation and group commit.
//!
//! RocksDB's own optimistic transactions validate reads of keys against writes of keys and know
//! no ranges: "the directory is empty, remove it" and "create a child" both commit there. So this
//! engine uses plain snapshots and plain write batches, and decides itself (`committer`), in
//! FoundationDB's way, who conflicts with whom.
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
use std::time::Duration;

use emberfs_proto::{Error, Result};
use rocksdb::DB;

use super::transaction::{CommitRequest, OptimisticTransaction, Store};
use super::{Clock, CommitVersion, Engine, KvResult, Transaction};

mod committer;
mod open;
mod queue;
mod snapshot;

pub use committer::CommitStats;
use committer::{Committer, WriteBatchFn};
use queue::CommitQueue;
use snapshot::RocksSnapshot;

/// The version of the last commit, 8 bytes little-endian.
const VERSION_KEY: &[u8] = b"\xffversion";

/// RocksDB in one directory. Dropping it finishes the commits under way; that blocks for at
/// most the time of a synced write.
pub struct RocksEngine {
    shared: Arc<Shared>,
}

struct Shared {
    db: Arc<DB>,
    clock: Clock,
    stats: Arc<committer::Counters>,
    queue: CommitQueue,
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
        let committer = Committer::new(
            Arc::clone(&db),
            version,
            clock.clone(),
            Arc::clone(&stats),
            write,
        );
        let shared = Shared {
            db,
            clock,
            stats,
            queue: CommitQueue::new(committer),
        };
        Ok(Self {
            shared: Arc::new(shared),
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

    fn begin_cached(&self) -> Box<dyn Transaction> {
        let cached = Cached(Arc::clone(&self.shared));
        Box::new(OptimisticTransaction::new(Arc::new(cached)))
    }

    fn name(&self) -> &'static str {
        "rocksdb"
    }
}

impl Drop for RocksEngine {
    fn drop(&mut self) {
        self.shared.queue.close();
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
        RocksSnapshot::take(Arc::clone(&self.db), false)
    }

    fn commit(&self, request: CommitRequest) -> KvResult<CommitVersion> {
        self.queue.commit(request)
    }
}

/// The store as far as it is in memory.
struct Cached(Arc<Shared>);

impl Store for Cached {
    type Snapshot = RocksSnapshot;

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn epoch(&self) -> u64 {
        self.0.epoch()
    }

    fn snapshot(self: &Arc<Self>) -> KvResult<RocksSnapshot> {
        RocksSnapshot::take(Arc::clone(&self.0.db), true)
    }

    fn commit(&self, request: CommitRequest) -> KvResult<CommitVersion> {
        self.0.commit(request)
    }
}

#[cfg(test)]
mod tests;
