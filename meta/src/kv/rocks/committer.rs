//! Deciding and writing, one transaction after the other.
//!
//! Each is validated against the window of recent commits; limits of numbers ([`crate::kv::Transaction::add_at_most`]) are
//! judged by what is stored then. The writes of an accepted one are a batch in RocksDB's log, visible from
//! then on; [`super::log`] makes it durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rocksdb::{DB, ErrorKind, ReadOptions, ReadTier, WriteBatch, WriteOptions};

use super::VERSION_KEY;
use super::snapshot::io;
use crate::kv::conflict::Window;
use crate::kv::mutations::{Mutations, Write};
use crate::kv::transaction::CommitRequest;
use crate::kv::{Clock, CommitVersion, KvError, KvResult};

/// Whether a commit may wait for RocksDB's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    Waits,
    /// It is refused with [`KvError::NotCached`] instead.
    Hurries,
}

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum WriteFailure {
    /// It would have to wait; nothing was written.
    Stalled,
    /// Nobody knows whether it is in the log.
    Broken(String),
}

/// Writes a batch to the log. A parameter so that a test can make it fail.
pub(super) type WriteBatchFn = fn(&DB, WriteBatch, Patience) -> Result<(), WriteFailure>;

pub(super) fn write(db: &DB, batch: WriteBatch, patience: Patience) -> Result<(), WriteFailure> {
    let mut options = WriteOptions::default();
    options.set_no_slowdown(patience == Patience::Hurries);
    db.write_opt(batch, &options).map_err(|error| {
        if error.kind() == ErrorKind::Incomplete {
            WriteFailure::Stalled
        } else {
            WriteFailure::Broken(error.into_string())
        }
    })
}

/// What a committer has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Transactions committed.
    pub committed: u64,
    /// Transactions refused for a conflict, a limit or their age.
    pub refused: u64,
    /// Flushes of the log; fewer than transactions when they share.
    pub flushes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) committed: AtomicU64,
    pub(super) refused: AtomicU64,
}

pub(super) struct Committer {
    db: Arc<DB>,
    clock: Clock,
    stats: Arc<Counters>,
    write: WriteBatchFn,
    window: Window,
    /// Of the last accepted transaction.
    version: u64,
    /// Why no more is committed.
    closed: Option<String>,
}

impl Committer {
    /// A committer that goes on after `version`.
    pub(super) fn new(
        db: Arc<DB>,
        version: u64,
        clock: Clock,
        stats: Arc<Counters>,
        write: WriteBatchFn,
    ) -> Self {
        Self {
            db,
            clock,
            stats,
            write,
            window: Window::new(version),
            version,
            closed: None,
        }
    }

    /// Decides, and writes what was accepted.
    pub(super) fn commit(
        &mut self,
        request: CommitRequest,
        patience: Patience,
    ) -> KvResult<CommitVersion> {
        if let Some(why) = &self.closed {
            return Err(KvError::Closed(why.clone()));
        }
        let decided = self.decide(request, patience);
        match &decided {
            Ok(_) => self.stats.committed.fetch_add(1, Ordering::Relaxed),
            Err(KvError::NotCached) => 0,
            Err(_) => self.stats.refused.fetch_add(1, Ordering::Relaxed),
        };
        decided
    }

    fn decide(&mut self, request: CommitRequest, patience: Patience) -> KvResult<CommitVersion> {
        let CommitRequest {
            read_version,
            reads,
            writes,
            mut mutations,
            bounds,
            ..
        } = request;
        self.window.check(read_version, &reads)?;
        let stored = |key: &[u8]| self.stored(key, patience);
        bounds.check(&mutations, stored)?;
        mutations.resolve(stored)?;
        let version = self.version + 1;
        match (self.write)(&self.db, batch(&mutations, version), patience) {
            Ok(()) => {
                self.version = version;
                self.window.record(version, self.clock.now(), writes);
                Ok(CommitVersion(version))
            }
            Err(WriteFailure::Stalled) => Err(KvError::NotCached),
            Err(WriteFailure::Broken(why)) => {
                tracing::error!(why, "the metadata store failed and takes no more commits");
                self.close(broken(&why));
                Err(KvError::MaybeCommitted(why))
            }
        }
    }

    fn stored(&self, key: &[u8], patience: Patience) -> KvResult<Option<Bytes>> {
        let mut options = ReadOptions::default();
        if patience == Patience::Hurries {
            options.set_read_tier(ReadTier::BlockCache);
        }
        let found = self.db.get_pinned_opt(key, &options).map_err(io)?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Nothing more is committed.
    pub(super) fn close(&mut self, why: String) {
        self.closed.get_or_insert(why);
    }
}

/// What whoever wants to commit after a failure is told.
pub(super) fn broken(why: &str) -> String {
    format!("an earlier write failed ({why}); check its disk, then restart the metadata server")
}

fn batch(mutations: &Mutations, version: u64) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for (begin, end) in mutations.cleared() {
        batch.delete_range(begin, end);
    }
    for (key, write) in mutations.keys() {
        match write {
            Write::Put(value) => batch.put(key, value),
            Write::Delete => batch.delete(key),
            Write::Atomic(_) => unreachable!("resolve leaves none"),
        }
    }
    batch.put(VERSION_KEY, version.to_le_bytes());
    batch
}

#[cfg(test)]
mod tests;
