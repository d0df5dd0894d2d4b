//! Deciding and writing, one group of transactions after the other.
//!
//! All transactions of a group are validated in order, each against the window of recent commits
//! including the accepted ones before it in the same group; the writes of the accepted ones are merged
//! into one batch, which is written with one sync; then all are answered. Limits of numbers
//! ([`crate::kv::Transaction::add_at_most`]) are judged in the same order. While the disk syncs,
//! the next group gathers ([`super::queue`]).
//!
//! The refused are answered after the write as well: a transaction that lost against a member of
//! its own group and ran again before the group was visible would only lose again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rocksdb::{DB, WriteBatch, WriteOptions};

use super::VERSION_KEY;
use super::queue::{Ticket, Word};
use super::snapshot::io;
use crate::kv::conflict::Window;
use crate::kv::mutations::{Mutations, Write};
use crate::kv::transaction::CommitRequest;
use crate::kv::{Clock, CommitVersion, KvError, KvResult};

/// Writes a batch durably. A parameter so that a test can make it fail.
pub(super) type WriteBatchFn = fn(&DB, WriteBatch) -> Result<(), String>;

pub(super) fn write_synced(db: &DB, batch: WriteBatch) -> Result<(), String> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options)
        .map_err(rocksdb::Error::into_string)
}

/// What a committer has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Transactions committed.
    pub committed: u64,
    /// Transactions refused for a conflict, a limit or their age.
    pub refused: u64,
    /// Synced writes; fewer than transactions when they share.
    pub groups: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    committed: AtomicU64,
    refused: AtomicU64,
    groups: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> CommitStats {
        CommitStats {
            committed: self.committed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            groups: self.groups.load(Ordering::Relaxed),
        }
    }
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
    poison: Option<String>,
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
            poison: None,
        }
    }

    /// Decides, writes and answers one group.
    pub(super) fn commit(&mut self, group: Vec<Ticket>) {
        let now = self.clock.now();
        let mut mutations = Mutations::default();
        let mut answers = Vec::with_capacity(group.len());
        let before = self.version;
        for Ticket { request, tell } in group {
            let verdict = match &self.poison {
                Some(why) => Err(KvError::Closed(why.clone())),
                None => self.judge(&request, &mutations),
            };
            let verdict = verdict.map(|()| {
                self.version += 1;
                self.window.record(self.version, now, request.writes);
                mutations.merge(request.mutations);
                CommitVersion(self.version)
            });
            answers.push((tell, verdict));
        }
        let accepted = self.version - before;
        let written = if accepted == 0 {
            Ok(())
        } else {
            self.write_group(mutations)
        };
        if written.is_ok() {
            self.stats.committed.fetch_add(accepted, Ordering::Relaxed);
            self.stats
                .groups
                .fetch_add(u64::from(accepted > 0), Ordering::Relaxed);
        }
        self.stats
            .refused
            .fetch_add(answers.len() as u64 - accepted, Ordering::Relaxed);
        for (tell, verdict) in answers {
            let verdict = match (&written, verdict) {
                (Err(error), Ok(_)) => Err(error.clone()),
                (_, verdict) => verdict,
            };
            // A caller that no longer waits is one whose thread died.
            let _ = tell.try_send(Word::Answer(verdict));
        }
    }

    /// Whether a transaction may commit after those that are stored and those accepted before it in its group.
    fn judge(&self, request: &CommitRequest, accepted: &Mutations) -> KvResult<()> {
        self.window.check(request.read_version, &request.reads)?;
        request.bounds.check(&request.mutations, |key| {
            accepted.value(key, |key| self.stored(key))
        })
    }

    fn stored(&self, key: &[u8]) -> KvResult<Option<Bytes>> {
        let found = self.db.get_pinned(key).map_err(io)?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Writes the merged mutations of a group. After a failure the window knows commits that the
    /// store may not have, so nothing may be judged by it any more.
    fn write_group(&mut self, mut mutations: Mutations) -> KvResult<()> {
        if let Err(error) = mutations.resolve(|key| self.stored(key)) {
            self.poison(&error.to_string());
            return Err(error);
        }
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
        batch.put(VERSION_KEY, self.version.to_le_bytes());
        (self.write)(&self.db, batch).map_err(|error| {
            self.poison(&error);
            KvError::MaybeCommitted(error)
        })
    }

    fn poison(&mut self, why: &str) {
        tracing::error!(why, "the metadata store failed and takes no more commits");
        self.poison = Some(format!(
            "an earlier write failed ({why}); check its disk, then restart the metadata server"
        ));
    }
}

#[cfg(test)]
mod tests;
