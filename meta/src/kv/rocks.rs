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
//! - The log is one sequence: a commit that is durable stands for all before it, and after a loss of power the store is as
//!   it was after one of them. What [`Transaction::commit`] has answered is durable. What others have *seen* before that may
//!   be lost with the power, for the time of one flush.
//! - After a failed write or flush nothing more is committed until the engine is opened again, because
//!   nobody knows whether that write is in the log.
//!
//! A directory belongs to one process at a time. Transactions that outlive the engine keep it
//! locked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use emberfs_proto::{Error, ErrorCode, Result};
use rocksdb::DB;

use parking_lot::Mutex;

use super::transaction::{CommitRequest, OptimisticTransaction, Store};
use super::{
    Clock, CommitVersion, Engine, KvError, KvResult, LogPosition, TellDurable, Transaction,
};

mod committer;
mod log;
mod open;
mod snapshot;
mod starts;

pub use committer::CommitStats;
use committer::{Committer, Patience, WriteBatchFn};
use log::{FlushFn, Log};
use snapshot::RocksSnapshot;
use starts::Starts;

/// How long a commit that must not wait for a disk waits for another one to be decided.
const TURN: Duration = Duration::from_millis(1);

/// The version of the last commit, 8 bytes little-endian.
const VERSION_KEY: &[u8] = b"\xffversion";

/// RocksDB in one directory. Dropping it makes durable what was committed; that blocks for at
/// most the time of two flushes.
pub struct RocksEngine {
    shared: Arc<Shared>,
}

struct Shared {
    db: Arc<DB>,
    clock: Clock,
    stats: Arc<committer::Counters>,
    committer: Mutex<Committer>,
    log: Log,
    starts: Starts,
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
        Self::open_with(directory, clock, committer::write, log::flush)
    }

    fn open_with(
        directory: &Path,
        clock: Clock,
        write: WriteBatchFn,
        flush: FlushFn,
    ) -> Result<Self> {
        let db = Arc::new(open::open(directory)?);
        let version = snapshot::stored_version(&db)
            .map_err(|error| Error::from(error).context(directory.display()))?;
        let starts =
            Starts::begin(&db, version).map_err(|error| error.context(directory.display()))?;
        let stats = Arc::new(committer::Counters::default());
        let committer = Committer::new(
            Arc::clone(&db),
            version,
            clock.clone(),
            Arc::clone(&stats),
            write,
        );
        let log = Log::start(Arc::clone(&db), version, flush).map_err(|error| {
            let what = format!(
                "cannot start the thread of the metadata log: {error}; raise the limit on processes"
            );
            Error::new(ErrorCode::Internal, what)
        })?;
        let shared = Shared {
            db,
            clock,
            stats,
            committer: Mutex::new(committer),
            log,
            starts,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Prepares the log so that flushes are cheap from the start: for a server, which runs for long. Blocks for some
    /// tens of milliseconds.
    pub fn make_ready(&self) -> Result<()> {
        open::make_logs_ready(&self.shared.db).map_err(|error| {
            let what = format!("the metadata store cannot be written: {error}");
            Error::new(ErrorCode::DiskError, what)
        })
    }

    /// What the committer has done since the engine was opened.
    pub fn stats(&self) -> CommitStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CommitStats {
            committed: count(&self.shared.stats.committed),
            refused: count(&self.shared.stats.refused),
            flushes: self.shared.log.flushes(),
        }
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

    fn when_durable(&self, version: CommitVersion, tell: TellDurable) {
        self.shared.log.when_durable(version.0, tell);
    }

    fn position(&self) -> LogPosition {
        LogPosition {
            start: self.shared.starts.current(),
            durable: CommitVersion(self.shared.log.durable()),
        }
    }

    fn end_of(&self, start: u64) -> Option<CommitVersion> {
        self.shared.starts.end_of(start).map(CommitVersion)
    }

    fn name(&self) -> &'static str {
        "rocksdb"
    }
}

impl Drop for RocksEngine {
    fn drop(&mut self) {
        let closed = "it was closed".to_owned();
        self.shared.committer.lock().close(closed);
        self.shared.log.close();
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
        let mut committer = self.committer.lock();
        self.write(&mut committer, request, Patience::Waits)
    }

    fn settle(&self, version: CommitVersion) -> KvResult<()> {
        self.log.wait(version.0)
    }
}

impl Shared {
    fn write(
        &self,
        committer: &mut Committer,
        request: CommitRequest,
        patience: Patience,
    ) -> KvResult<CommitVersion> {
        if let Some(why) = self.log.failure() {
            committer.close(committer::broken(&why));
        }
        let version = committer.commit(request, patience)?;
        self.log.written(version.0);
        Ok(version)
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
        let turn = self.0.committer.try_lock_for(TURN);
        let mut committer = turn.ok_or(KvError::NotCached)?;
        self.0.write(&mut committer, request, Patience::Hurries)
    }

    fn settle(&self, version: CommitVersion) -> KvResult<()> {
        self.0.settle(version)
    }
}

#[cfg(test)]
mod tests;
