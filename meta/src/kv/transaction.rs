//! The transaction that every engine of this crate hands out: snapshot reads overlaid with its
//! own writes, conflict sets, limits. An engine adds a snapshot and a commit.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::conflict::{ReadSet, WriteSet};
use super::mutations::{Atomic, Bounds, Mutations, Overlay, Write};
use super::{
    CommitVersion, FIRST_SYSTEM_KEY, KvError, KvResult, MAX_KEY_BYTES, MAX_TRANSACTION_AGE,
    MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, Transaction,
};

/// Called with each pair of a scan; answers whether to go on.
pub(super) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> bool + 'a;

/// A frozen state of the store.
pub(super) trait Snapshot: Send {
    /// The last commit it contains; it contains that one and all before it, nothing else.
    fn version(&self) -> u64;
    fn get(&self, key: &[u8]) -> KvResult<Option<Bytes>>;
    /// Visits the pairs of `begin..end` (which is not empty), from the end when `reverse`.
    fn scan(&self, begin: &[u8], end: &[u8], reverse: bool, visit: &mut Visit<'_>) -> KvResult<()>;
}

/// What an engine provides.
pub(super) trait Store: Send + Sync + 'static {
    type Snapshot: Snapshot;
    fn now(&self) -> Duration;
    /// Changes when every open transaction is lost.
    fn epoch(&self) -> u64;
    fn snapshot(self: &Arc<Self>) -> KvResult<Self::Snapshot>;
    /// Decides, and makes the writes visible.
    fn commit(&self, request: CommitRequest) -> KvResult<CommitVersion>;
    /// Blocks until everything up to `version` is durable.
    fn settle(&self, version: CommitVersion) -> KvResult<()>;
}

/// A transaction that asks to be committed.
#[derive(Debug)]
pub(super) struct CommitRequest {
    pub(super) epoch: u64,
    /// Meaningful when `reads` is not empty.
    pub(super) read_version: u64,
    pub(super) reads: ReadSet,
    pub(super) writes: WriteSet,
    pub(super) mutations: Mutations,
    pub(super) bounds: Bounds,
}

/// See the module.
pub(super) struct OptimisticTransaction<S: Store> {
    store: Arc<S>,
    epoch: u64,
    began: Duration,
    snapshot: Option<S::Snapshot>,
    reads: ReadSet,
    declared_writes: BTreeSet<Bytes>,
    mutations: Mutations,
    bounds: Bounds,
    bytes: usize,
    /// The first violated limit.
    fault: Option<KvError>,
}

impl<S: Store> OptimisticTransaction<S> {
    pub(super) fn new(store: Arc<S>) -> Self {
        Self {
            epoch: store.epoch(),
            began: store.now(),
            store,
            snapshot: None,
            reads: ReadSet::default(),
            declared_writes: BTreeSet::new(),
            mutations: Mutations::default(),
            bounds: Bounds::default(),
            bytes: 0,
            fault: None,
        }
    }

    fn check_age(&self) -> KvResult<()> {
        if self.store.now().saturating_sub(self.began) > MAX_TRANSACTION_AGE {
            return Err(KvError::TooOld);
        }
        Ok(())
    }

    /// Takes the snapshot if this is the first use of it.
    fn ensure_snapshot(&mut self) -> KvResult<&S::Snapshot> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        self.check_age()?;
        let snapshot = match self.snapshot.take() {
            Some(snapshot) => snapshot,
            None => self.store.snapshot()?,
        };
        Ok(self.snapshot.insert(snapshot))
    }

    /// Runs a call that returns nothing: its error is kept for later.
    fn note(&mut self, call: impl FnOnce(&mut Self) -> KvResult<()>) {
        if self.fault.is_none() {
            self.fault = call(self).err();
        }
    }

    fn charge(&mut self, bytes: usize) -> KvResult<()> {
        self.bytes += bytes;
        if self.bytes > MAX_TRANSACTION_BYTES {
            Err(KvError::TooLarge)
        } else {
            Ok(())
        }
    }

    /// Checks and charges a write of `key` with `payload` more bytes.
    fn charge_write(&mut self, key: &[u8], payload: usize) -> KvResult<Bytes> {
        check_key(key)?;
        self.charge(key.len() + payload + conflict_cost(key))?;
        Ok(Bytes::copy_from_slice(key))
    }

    fn atomic(&mut self, key: &[u8], change: Atomic) {
        self.note(|this| {
            let key = this.charge_write(key, 8)?;
            this.mutations.atomic(key, change);
            Ok(())
        });
    }

    fn depend_on_key(&mut self, key: &[u8]) -> KvResult<()> {
        if !self.reads.keys.contains(key) {
            self.charge(conflict_cost(key))?;
            self.reads.keys.insert(Bytes::copy_from_slice(key));
        }
        Ok(())
    }

    fn depend_on_range(&mut self, begin: &[u8], end: &[u8]) -> KvResult<()> {
        let range = (Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        if !self.reads.ranges.contains(&range) {
            self.charge(begin.len() + end.len())?;
            self.reads.ranges.insert(range);
        }
        Ok(())
    }

    fn read_key(&mut self, key: &[u8], conflict: bool) -> KvResult<Option<Bytes>> {
        check_key(key)?;
        self.ensure_snapshot()?;
        if let Overlay::Known(value) = self.mutations.lookup(key) {
            return Ok(value);
        }
        if conflict {
            self.depend_on_key(key)?;
        }
        let stored = self.ensure_snapshot()?.get(key)?;
        Ok(match self.mutations.lookup(key) {
            Overlay::Changes(changes) => Atomic::apply_all(changes, stored),
            Overlay::Known(_) | Overlay::Untouched => stored,
        })
    }

    fn read_range(
        &mut self,
        range: &Range<&[u8]>,
        limit: usize,
        reverse: bool,
        conflict: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>> {
        let (begin, end) = (range.start, range.end);
        check_range(begin, end)?;
        self.ensure_snapshot()?;
        if begin >= end || limit == 0 {
            return Ok(Vec::new());
        }
        let pairs = self.scan_overlaid(begin, end, limit, reverse)?;
        if conflict {
            match pairs.last().filter(|_| pairs.len() == limit) {
                Some((last, _)) if reverse => self.depend_on_range(last, end)?,
                Some((last, _)) => self.depend_on_range(begin, &after(last))?,
                None => self.depend_on_range(begin, end)?,
            }
        }
        Ok(pairs)
    }

    /// Merges the snapshot's pairs with the own writes, both in the order of the scan.
    fn scan_overlaid(
        &mut self,
        begin: &[u8],
        end: &[u8],
        limit: usize,
        reverse: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>> {
        self.ensure_snapshot()?;
        let Some(snapshot) = &self.snapshot else {
            return Ok(Vec::new());
        };
        let mutations = &self.mutations;
        let mut own: Box<dyn Iterator<Item = (&Bytes, &Write)>> = if reverse {
            Box::new(mutations.range(begin, end).rev())
        } else {
            Box::new(mutations.range(begin, end))
        };
        let mut next_own = own.next();
        let mut pairs = Vec::new();
        snapshot.scan(begin, end, reverse, &mut |key, value| {
            while let Some((own_key, write)) = next_own {
                if if reverse {
                    own_key <= key
                } else {
                    own_key >= key
                } {
                    break;
                }
                pairs.extend(written(own_key, write, None));
                if pairs.len() == limit {
                    return false;
                }
                next_own = own.next();
            }
            match next_own {
                Some((own_key, write)) if own_key == key => {
                    pairs.extend(written(own_key, write, Some(value)));
                    next_own = own.next();
                }
                _ if mutations.is_cleared(key) => {}
                _ => pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))),
            }
            pairs.len() < limit
        })?;
        while let Some((key, write)) = next_own.filter(|_| pairs.len() < limit) {
            pairs.extend(written(key, write, None));
            next_own = own.next();
        }
        Ok(pairs)
    }
}

/// The pair that a write leaves, given what was stored.
fn written(key: &Bytes, write: &Write, stored: Option<&[u8]>) -> Option<(Bytes, Bytes)> {
    let value = match write {
        Write::Put(value) => Some(value.clone()),
        Write::Delete => None,
        Write::Atomic(changes) => Atomic::apply_all(changes, stored.map(Bytes::copy_from_slice)),
    };
    value.map(|value| (key.clone(), value))
}

/// The first key after `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// A key in a conflict set is a range, `key` to the key after it.
fn conflict_cost(key: &[u8]) -> usize {
    2 * key.len() + 1
}

fn check_key(key: &[u8]) -> KvResult<()> {
    if key.len() > MAX_KEY_BYTES {
        return Err(KvError::KeyTooLarge(key.len()));
    }
    if key >= FIRST_SYSTEM_KEY {
        Err(KvError::ReservedKey)
    } else {
        Ok(())
    }
}

/// A bound may be one byte longer than a key, to end just after one.
fn check_range(begin: &[u8], end: &[u8]) -> KvResult<()> {
    for bound in [begin, end] {
        if bound.len() > MAX_KEY_BYTES + 1 {
            return Err(KvError::KeyTooLarge(bound.len()));
        }
        if bound > FIRST_SYSTEM_KEY {
            return Err(KvError::ReservedKey);
        }
    }
    Ok(())
}

impl<S: Store> Transaction for OptimisticTransaction<S> {
    fn get(&mut self, key: &[u8]) -> KvResult<Option<Bytes>> {
        self.read_key(key, true)
    }

    fn get_snapshot(&mut self, key: &[u8]) -> KvResult<Option<Bytes>> {
        self.read_key(key, false)
    }

    fn get_range(
        &mut self,
        range: Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>> {
        self.read_range(&range, limit, reverse, true)
    }

    fn get_range_snapshot(
        &mut self,
        range: Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>> {
        self.read_range(&range, limit, reverse, false)
    }

    fn add_read_conflict_key(&mut self, key: &[u8]) {
        self.note(|this| {
            check_key(key)?;
            this.ensure_snapshot()?;
            this.depend_on_key(key)
        });
    }

    fn add_read_conflict_range(&mut self, range: Range<&[u8]>) {
        self.note(|this| {
            check_range(range.start, range.end)?;
            this.ensure_snapshot()?;
            if range.start < range.end {
                this.depend_on_range(range.start, range.end)?;
            }
            Ok(())
        });
    }

    fn add_write_conflict_key(&mut self, key: &[u8]) {
        self.note(|this| {
            check_key(key)?;
            this.charge(conflict_cost(key))?;
            this.declared_writes.insert(Bytes::copy_from_slice(key));
            Ok(())
        });
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.note(|this| {
            if value.len() > MAX_VALUE_BYTES {
                return Err(KvError::ValueTooLarge(value.len()));
            }
            let key = this.charge_write(key, value.len())?;
            this.mutations.put(key, Bytes::copy_from_slice(value));
            Ok(())
        });
    }

    fn delete(&mut self, key: &[u8]) {
        self.note(|this| {
            let key = this.charge_write(key, 0)?;
            this.mutations.delete(key);
            Ok(())
        });
    }

    fn delete_range(&mut self, range: Range<&[u8]>) {
        self.note(|this| {
            check_range(range.start, range.end)?;
            this.charge(2 * (range.start.len() + range.end.len()))?;
            let (begin, end) = (
                Bytes::copy_from_slice(range.start),
                Bytes::copy_from_slice(range.end),
            );
            this.mutations.delete_range(begin, end);
            Ok(())
        });
    }

    fn add_i64(&mut self, key: &[u8], delta: i64) {
        self.atomic(key, Atomic::AddI64(delta));
    }

    fn add_at_most(&mut self, key: &[u8], delta: i64, max: i64) {
        self.add_i64(key, delta);
        self.note(|this| {
            this.charge(key.len() + 8)?;
            this.bounds.at_most(Bytes::copy_from_slice(key), max);
            Ok(())
        });
    }

    fn max_u64(&mut self, key: &[u8], value: u64) {
        self.atomic(key, Atomic::MaxU64(value));
    }

    fn commit(self: Box<Self>) -> KvResult<CommitVersion> {
        let store = Arc::clone(&self.store);
        let version = self.commit_soon()?;
        store.settle(version)?;
        Ok(version)
    }

    fn commit_soon(mut self: Box<Self>) -> KvResult<CommitVersion> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        // Also when the caller ignored a read that failed for it.
        if self.bytes > MAX_TRANSACTION_BYTES {
            return Err(KvError::TooLarge);
        }
        // The snapshot is let go here, before the wait for the disk.
        let read_version = self
            .snapshot
            .take()
            .map_or(0, |snapshot| snapshot.version());
        if self.mutations.is_empty() && self.declared_writes.is_empty() {
            return Ok(CommitVersion(read_version));
        }
        self.check_age()?;
        let Self {
            store,
            epoch,
            reads,
            declared_writes,
            mutations,
            bounds,
            ..
        } = *self;
        let writes = WriteSet::new(&mutations, declared_writes);
        store.commit(CommitRequest {
            epoch,
            read_version,
            reads,
            writes,
            mutations,
            bounds,
        })
    }
}
