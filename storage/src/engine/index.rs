//! The index: one RocksDB per disk, the only truth about chunks and blocks.
//!
//! What needs no flush (commits) is written by whoever asks for it, at once. What does (prepares) goes to the *writer*, a thread
//! that gathers what is queued into one batch and flushes the log once for all. Look-ups that miss the cache of records are
//! answered at once from RocksDB's memory; those that need the disk, and listings, by the *reader*, another thread, so that
//! nobody waits for a flush.
//!
//! **A block is reused only when its record is gone for good.** A commit is not flushed; after a loss
//! of power the old version may be the committed one again, so the blocks that commits free are
//! *retired* until the next flush of the log, which covers all earlier writes. Without any other
//! write the writer flushes after [`IDLE_FLUSH`](super::writer::IDLE_FLUSH).
//!
//! **Cache, record and ownership change together**: the request carries a closure that the writer runs right
//! after the batch is written, still under the chunk's gate, which travels in that closure. A caller
//! that is cancelled midway changes nothing about this.
//!
//! Keys: target (8 bytes, big-endian) + chunk key (12) in the column family `chunks`; target (8) → state
//! in `targets`; `format` in the default one.

use std::path::Path;
use std::sync::Arc;

use emberfs_proto::ids::{ChunkIndex, ChunkKey, InodeId, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    Direction, ErrorKind, IteratorMode, Options, ReadOptions, ReadTier, WriteBatch, WriteOptions,
};

use super::health::Health;
use super::lane::LaneEnd;
use super::record::Record;

/// Files that the index keeps open.
const MAX_OPEN_FILES: i32 = 128;
/// Memory for writes before they go to a table, bytes.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Log that is replayed at open at most, bytes.
const MAX_LOG_BYTES: u64 = 64 << 20;
/// Logs that are kept when they are not needed any more, to be written over: a log that grows costs an entry in the journal
/// of the file system with each flush, two more writes and a wait.
const REUSED_LOGS: usize = 2;
/// A key that means nothing, see [`Index::make_logs_ready`].
const READY_KEY: &[u8] = b"ready";
/// Version of the disk's format.
const FORMAT: &[u8] = b"emberfs engine 1";
const FORMAT_KEY: &[u8] = b"format";
const CHUNKS: &str = "chunks";
const TARGETS: &str = "targets";

/// A chunk's key in the index.
pub(super) type Key = [u8; 20];

/// Encodes a key.
pub(super) fn key(target: TargetId, chunk: ChunkKey) -> Key {
    let mut key = [0; 20];
    key[..8].copy_from_slice(&target.0.to_be_bytes());
    key[8..].copy_from_slice(&chunk.encode());
    key
}

/// State of a target in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetState {
    Live,
    /// Its chunks are being deleted; finished at the next open if need be.
    Dropping,
}

/// One change.
pub(super) enum Op {
    Put(Key, Box<Record>),
    Delete(Key),
    PutTarget(TargetId, TargetState),
    DeleteTarget(TargetId),
}

/// What the reader can be asked for.
pub(super) enum ReadJob {
    Query(Box<dyn FnOnce(&Index) + Send>),
    Stop,
}

/// The open index.
pub(super) struct Index {
    db: DB,
    health: Arc<Health>,
}

impl Index {
    /// Opens or creates the index in `path`.
    pub(super) fn open(path: &Path, cache_bytes: usize, health: Arc<Health>) -> Result<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(cache_bytes));
        table.set_bloom_filter(10.0, false);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_open_files(MAX_OPEN_FILES);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_compression_type(DBCompressionType::None);
        // The log is kept until every family has flushed; `targets` hardly ever fills its buffer.
        options.set_max_total_wal_size(MAX_LOG_BYTES);
        options.set_recycle_log_file_num(REUSED_LOGS);
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(4 << 20);
        options.set_block_based_table_factory(&table);
        let families = [CHUNKS, TARGETS].map(|n| ColumnFamilyDescriptor::new(n, options.clone()));
        let failed = |error: rocksdb::Error| {
            let what = format!("opening the index {}: {error}", path.display());
            Error::new(ErrorCode::DiskError, what)
        };
        let opened = DB::open_cf_descriptors(&options, path, families);
        let db = opened.map_err(|error| {
            // RocksDB keeps a lock file of its own.
            let in_use = error.as_ref().contains("lock");
            let code = if in_use {
                ErrorCode::NodeConflict
            } else {
                ErrorCode::DiskError
            };
            Error {
                code,
                ..failed(error)
            }
        })?;
        match db.get(FORMAT_KEY).map_err(failed)? {
            Some(format) if format == FORMAT => {}
            Some(format) => {
                let format = String::from_utf8_lossy(&format).into_owned();
                let what = format!("index {} has format {format:?}: upgrade", path.display());
                return Err(Error::new(ErrorCode::IncompatibleVersion, what));
            }
            None => {
                let mut sync = WriteOptions::default();
                sync.set_sync(true);
                db.put_opt(FORMAT_KEY, FORMAT, &sync).map_err(failed)?;
            }
        }
        Ok(Self { db, health })
    }

    /// Fills as many logs as are reused, so that the next ones need not grow before they are `bytes` long.
    pub(super) fn make_logs_ready(&self, bytes: usize) -> Result<()> {
        const PIECE: usize = 1 << 20;
        let filler = vec![0; PIECE.min(bytes)];
        for _ in 0..REUSED_LOGS {
            let fill = || {
                for _ in 0..bytes.div_ceil(PIECE) {
                    let mut batch = WriteBatch::default();
                    batch.put(READY_KEY, b"");
                    batch.put_log_data(&filler);
                    self.db.write(batch)?;
                }
                self.db.flush_wal(true)?;
                // The next log begins here.
                self.db.flush()
            };
            fill().map_err(|error| self.health.index_failed(&error))?;
        }
        Ok(())
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db
            .cf_handle(name)
            .expect("open() creates both column families")
    }

    fn unreadable(&self, error: &rocksdb::Error) -> Error {
        self.health
            .read_failed("the index", &std::io::Error::other(error.to_string()))
    }

    fn decode(&self, key: &[u8], value: &[u8]) -> Result<(TargetId, ChunkKey, Record)> {
        let target = key
            .first_chunk()
            .map(|&id| TargetId(u64::from_be_bytes(id)));
        let chunk = key.get(8..).and_then(ChunkKey::decode);
        let (Some(target), Some(chunk)) = (target, chunk) else {
            return Err(self
                .health
                .mismatch(format_args!("index key of {} bytes", key.len())));
        };
        match Record::decode(value) {
            Ok(record) => Ok((target, chunk, record)),
            Err(why) => Err(self
                .health
                .mismatch(format_args!("index record of {target} {chunk} ({why})"))),
        }
    }

    /// The record of a chunk.
    pub(super) fn get(&self, key: &Key) -> Result<Option<Record>> {
        let value = self.db.get_pinned_cf(self.family(CHUNKS), key);
        let value = value.map_err(|e| self.unreadable(&e))?;
        value
            .map(|value| Ok(self.decode(key, &value)?.2))
            .transpose()
    }

    /// As [`Self::get`], from memory; `None` if the disk would have to be asked. That a chunk is new is mostly known in
    /// memory, by the filters.
    pub(super) fn get_at_once(&self, key: &Key) -> Option<Result<Option<Record>>> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        let found = self
            .db
            .get_pinned_cf_opt(self.family(CHUNKS), key, &options);
        match found {
            Ok(None) => Some(Ok(None)),
            Ok(Some(value)) => Some(self.decode(key, &value).map(|(.., record)| Some(record))),
            Err(error) if error.kind() == ErrorKind::Incomplete => None,
            Err(error) => Some(Err(self.unreadable(&error))),
        }
    }

    /// Visits the records of `[from, to)` in order, until `visit` answers `false`.
    pub(super) fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        mut visit: impl FnMut(TargetId, ChunkKey, Record) -> Result<bool>,
    ) -> Result<()> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        if let Some(to) = to {
            options.set_iterate_upper_bound(to);
        }
        let mode = IteratorMode::From(from, Direction::Forward);
        for item in self.db.iterator_cf_opt(self.family(CHUNKS), options, mode) {
            let (key, value) = item.map_err(|e| self.unreadable(&e))?;
            let (target, chunk, record) = self.decode(&key, &value)?;
            if !visit(target, chunk, record)? {
                break;
            }
        }
        Ok(())
    }

    /// At most `limit` records of `[from, to)` in order.
    pub(super) fn list(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(ChunkKey, Record)>> {
        let mut found = Vec::new();
        if limit > 0 {
            self.scan(from, to, |_, chunk, record| {
                found.push((chunk, record));
                Ok(found.len() < limit)
            })?;
        }
        Ok(found)
    }

    /// The file's last chunk with any bytes, committed or pending.
    pub(super) fn last_chunk(
        &self,
        target: TargetId,
        inode: InodeId,
    ) -> Result<Option<(ChunkIndex, u32)>> {
        let from = key(target, ChunkKey::new(inode, u32::MAX));
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(key(target, ChunkKey::new(inode, 0)));
        let mode = IteratorMode::From(&from, Direction::Reverse);
        for item in self.db.iterator_cf_opt(self.family(CHUNKS), options, mode) {
            let (key, value) = item.map_err(|e| self.unreadable(&e))?;
            let (_, chunk, record) = self.decode(&key, &value)?;
            let len = record.meta().max_len();
            if len > 0 {
                return Ok(Some((chunk.index, len)));
            }
        }
        Ok(None)
    }

    /// Every target.
    pub(super) fn targets(&self) -> Result<Vec<(TargetId, TargetState)>> {
        let items = self
            .db
            .iterator_cf(self.family(TARGETS), IteratorMode::Start);
        items
            .map(|item| {
                let (key, value) = item.map_err(|e| self.unreadable(&e))?;
                match (<[u8; 8]>::try_from(&*key), &*value) {
                    (Ok(id), [1]) => Ok((TargetId(u64::from_be_bytes(id)), TargetState::Live)),
                    (Ok(id), [2]) => Ok((TargetId(u64::from_be_bytes(id)), TargetState::Dropping)),
                    _ => Err(self.health.mismatch("index record of a target")),
                }
            })
            .collect()
    }

    /// Makes changes together: visible at once, durable with the next flush.
    pub(super) fn apply<'a>(&self, ops: impl IntoIterator<Item = &'a Op>) -> Result<()> {
        self.write(ops, false).map(|_| ())
    }

    /// As [`Self::apply`], unless the index is short of memory and it would have to wait; whether it was done.
    pub(super) fn apply_at_once(&self, op: &Op) -> Result<bool> {
        self.write([op], true)
    }

    fn write<'a>(&self, ops: impl IntoIterator<Item = &'a Op>, at_once: bool) -> Result<bool> {
        self.health.writable()?;
        let (chunks, targets) = (self.family(CHUNKS), self.family(TARGETS));
        let mut batch = WriteBatch::default();
        for op in ops {
            match op {
                Op::Put(key, record) => batch.put_cf(chunks, key, record.encode()),
                Op::Delete(key) => batch.delete_cf(chunks, key),
                Op::PutTarget(id, state) => {
                    let state = if *state == TargetState::Live {
                        [1]
                    } else {
                        [2]
                    };
                    batch.put_cf(targets, id.0.to_be_bytes(), state);
                }
                Op::DeleteTarget(id) => batch.delete_cf(targets, id.0.to_be_bytes()),
            }
        }
        let mut options = WriteOptions::default();
        options.set_no_slowdown(at_once);
        match self.db.write_opt(batch, &options) {
            Ok(()) => Ok(true),
            Err(error) if at_once && error.kind() == ErrorKind::Incomplete => Ok(false),
            Err(error) => Err(self.health.index_failed(&error)),
        }
    }

    /// Flushes the log: all earlier changes are durable.
    pub(super) fn flush(&self) -> Result<()> {
        self.health.writable()?;
        self.db
            .flush_wal(true)
            .map_err(|error| self.health.index_failed(&error))
    }
}

/// The reader thread's body.
pub(super) fn run_reader(index: &Index, jobs: &LaneEnd<ReadJob>) {
    while let Some(job) = jobs.recv() {
        match job.work {
            ReadJob::Query(query) => query(index),
            ReadJob::Stop => return,
        }
    }
}

#[cfg(test)]
mod tests;
