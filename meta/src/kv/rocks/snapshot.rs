//! A RocksDB snapshot that keeps its database alive.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, ErrorKind, ReadOptions, ReadTier, Snapshot as DbSnapshot};

use super::VERSION_KEY;
use crate::kv::transaction::{Snapshot, Visit};
use crate::kv::{KvError, KvResult};

/// A snapshot and the version of the last commit in it.
pub(super) struct RocksSnapshot {
    version: u64,
    /// Borrows from `db`. Declared first, so it is dropped first.
    snapshot: DbSnapshot<'static>,
    _db: Arc<DB>,
    /// Nothing is read from a disk.
    cached: bool,
}

impl RocksSnapshot {
    /// `cached`: reads answer [`KvError::NotCached`] instead of waiting for a disk.
    pub(super) fn take(db: Arc<DB>, cached: bool) -> KvResult<Self> {
        let borrowed: *const DB = Arc::as_ptr(&db);
        // SAFETY: the reference must be valid as long as `snapshot` lives. It points into the
        // allocation of the `Arc`, which does not move when the `Arc` does, and which the same
        // struct keeps alive: fields drop in order of declaration, `snapshot` before `_db`, and
        // neither leaves this module. `DB` is only ever used through shared references.
        let snapshot = DbSnapshot::new(unsafe { &*borrowed });
        let version = snapshot.get_pinned_opt(VERSION_KEY, options(cached));
        let version = decode_version(version.map_err(io)?.as_deref())?;
        Ok(Self {
            version,
            snapshot,
            _db: db,
            cached,
        })
    }
}

fn options(cached: bool) -> ReadOptions {
    let mut options = ReadOptions::default();
    if cached {
        options.set_read_tier(ReadTier::BlockCache);
    }
    options
}

impl Snapshot for RocksSnapshot {
    fn version(&self) -> u64 {
        self.version
    }

    fn get(&self, key: &[u8]) -> KvResult<Option<Bytes>> {
        let found = self.snapshot.get_pinned_opt(key, options(self.cached));
        let found = found.map_err(io)?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, begin: &[u8], end: &[u8], reverse: bool, visit: &mut Visit<'_>) -> KvResult<()> {
        let mut options = options(self.cached);
        options.set_iterate_lower_bound(begin);
        options.set_iterate_upper_bound(end);
        let mut pairs = self.snapshot.raw_iterator_opt(options);
        if reverse {
            pairs.seek_to_last();
        } else {
            pairs.seek_to_first();
        }
        while let Some((key, value)) = pairs.item() {
            if !visit(key, value) {
                return Ok(());
            }
            if reverse { pairs.prev() } else { pairs.next() }
        }
        pairs.status().map_err(io)
    }
}

/// The version of the last commit.
pub(super) fn stored_version(db: &DB) -> KvResult<u64> {
    decode_version(db.get_pinned(VERSION_KEY).map_err(io)?.as_deref())
}

fn decode_version(stored: Option<&[u8]>) -> KvResult<u64> {
    let Some(stored) = stored else { return Ok(0) };
    let bytes = stored.try_into().map_err(|_| {
        KvError::Io(format!(
            "the stored commit version has {} bytes instead of 8",
            stored.len()
        ))
    })?;
    Ok(u64::from_le_bytes(bytes))
}

pub(super) fn io(error: rocksdb::Error) -> KvError {
    if error.kind() == ErrorKind::Incomplete {
        return KvError::NotCached;
    }
    KvError::Io(error.into_string())
}
