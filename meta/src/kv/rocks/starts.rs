//! How often the store was opened, and with which commit the log of each earlier time ended.
//!
//! A loss of power takes the last commits, and their versions are given again. A commit is therefore named by the start and
//! its version, and it was lost if that start's log ended before it.

use std::collections::BTreeMap;

use emberfs_proto::{Error, ErrorCode, Result};
use rocksdb::{DB, Direction, IteratorMode, WriteBatch, WriteOptions};

/// Followed by the number of a start, 8 bytes big-endian: the last commit before it, 8 bytes little-endian.
const PREFIX: &[u8] = b"\xffstart/";
/// Starts whose beginning is remembered.
const KEPT: usize = 4096;

/// See the module.
pub(super) struct Starts {
    /// By start, the last commit before it. The last one is this process's.
    begins: BTreeMap<u64, u64>,
    current: u64,
}

impl Starts {
    /// Notes, durably, that the store was opened when `version` was its last commit.
    pub(super) fn begin(db: &DB, version: u64) -> Result<Self> {
        let mut begins = load(db)?;
        let current = begins.last_key_value().map_or(1, |(last, _)| last + 1);
        let mut batch = WriteBatch::default();
        begins.insert(current, version);
        batch.put(key(current), version.to_le_bytes());
        while begins.len() > KEPT
            && let Some((oldest, _)) = begins.pop_first()
        {
            batch.delete(key(oldest));
        }
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        db.write_opt(batch, &synced).map_err(broken)?;
        Ok(Self { begins, current })
    }

    /// This process's.
    pub(super) fn current(&self) -> u64 {
        self.current
    }

    /// The last commit of an earlier start.
    pub(super) fn end_of(&self, start: u64) -> Option<u64> {
        self.begins.get(&start.checked_add(1)?).copied()
    }
}

fn key(start: u64) -> Vec<u8> {
    [PREFIX, &start.to_be_bytes()].concat()
}

fn load(db: &DB) -> Result<BTreeMap<u64, u64>> {
    let mut begins = BTreeMap::new();
    for pair in db.iterator(IteratorMode::From(PREFIX, Direction::Forward)) {
        let (key, value) = pair.map_err(broken)?;
        let Some(start) = key.strip_prefix(PREFIX) else {
            break;
        };
        let number = |bytes: &[u8]| {
            bytes.try_into().map_err(|_| {
                let what = "the metadata store's record of its starts is damaged; restore it from a backup";
                Error::new(ErrorCode::DiskError, what)
            })
        };
        begins.insert(
            u64::from_be_bytes(number(start)?),
            u64::from_le_bytes(number(&value)?),
        );
    }
    Ok(begins)
}

fn broken(error: rocksdb::Error) -> Error {
    Error::new(ErrorCode::DiskError, error.into_string())
}
