//! A disk as the engine presents it, with exactly the engine's promises and no more.
//!
//! A change takes effect at one moment, one at a time per chunk. Prepare, abort and drop are durable
//! when they answer; a commit record is not flushed. The index's log is a sequence: a flush makes all
//! that came before durable, and a loss of power keeps some prefix of what was not flushed. A change that
//! was under way when the process died may have happened or not. A failed write leaves the disk refusing
//! changes, and the record of that write may be there or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::checksum::crc32;
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion, TargetId, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};

use super::random::Random;
use crate::engine::{
    ChunkMeta, Mark, PendingKind, PendingMeta, Prepare, PrepareKind, ReadVersion, remember,
};

/// One version of a chunk.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Version {
    pub(super) number: u64,
    pub(super) bytes: Bytes,
    pub(super) tag: WriteTag,
    pub(super) chain: u64,
    pub(super) recent: Arc<[Mark]>,
    removes: bool,
}

/// A chunk's record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stored {
    pub(super) committed: Option<Version>,
    pub(super) pending: Option<Version>,
    page: u32,
    chunk: u32,
}

pub(super) type Slot = (TargetId, ChunkKey);
type Records = BTreeMap<Slot, Stored>;

/// A change on its way.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Prepare(Prepare),
    Commit(ChunkVersion, ChainVersion),
    Abort(ChunkVersion),
    Drop,
    /// Commit all that is pending on the target.
    Recover(ChainVersion),
}

/// See the module page.
#[derive(Default)]
pub(super) struct Disk {
    /// What is certainly on the disk.
    durable: Records,
    /// Changes after the last flush, in order.
    unflushed: Vec<(Slot, Option<Stored>)>,
    /// What the process sees.
    now: Records,
    under_way: BTreeMap<u64, (Slot, Change)>,
    next_change: u64,
    busy_until: BTreeMap<Slot, u64>,
    /// Answers nothing before this.
    pub(super) stalled_until: u64,
    /// Refuses changes until the process is started again.
    pub(super) failed: bool,
    /// The next change fails the disk.
    pub(super) fail_next: bool,
    pub(super) full: bool,
    /// Reads fail.
    pub(super) unreadable: bool,
    /// Mutant: answer before the flush.
    forgets_to_flush: bool,
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32(bytes) ^ bytes.len() as u32
}

impl Version {
    fn mark(&self) -> Mark {
        Mark {
            tag: self.tag,
            version: ChunkVersion(self.number),
            len: self.bytes.len() as u32,
        }
    }
}

impl Stored {
    pub(super) fn committed_version(&self) -> u64 {
        self.committed.as_ref().map_or(0, |v| v.number)
    }

    pub(super) fn meta(&self) -> ChunkMeta {
        let none = Version::default();
        let committed = self.committed.as_ref();
        let of = committed.unwrap_or(&none);
        ChunkMeta {
            committed: ChunkVersion(of.number),
            committed_len: of.bytes.len() as u32,
            committed_chain: ChainVersion(of.chain),
            tag: of.tag,
            checksum: committed.map_or(0, |v| checksum(&v.bytes)),
            recent: of.recent.clone(),
            pending: self.pending.as_ref().map(|p| PendingMeta {
                version: ChunkVersion(p.number),
                len: p.bytes.len() as u32,
                chain: ChainVersion(p.chain),
                tag: p.tag,
                checksum: if p.removes { 0 } else { checksum(&p.bytes) },
                recent: p.recent.clone(),
                kind: if p.removes {
                    PendingKind::Remove
                } else {
                    PendingKind::Write
                },
            }),
            page_size: self.page,
            chunk_size: self.chunk,
        }
    }

    /// The newest durable version, and whether it removes the chunk.
    pub(super) fn newest(&self) -> (u64, bool) {
        self.pending
            .as_ref()
            .map_or((self.committed_version(), false), |p| (p.number, p.removes))
    }

    pub(super) fn pending_removal(&self) -> bool {
        self.pending.as_ref().is_some_and(|p| p.removes)
    }
}

impl Disk {
    pub(super) fn new(forgets_to_flush: bool) -> Self {
        Self {
            forgets_to_flush,
            ..Self::default()
        }
    }

    /// A change begins; it is to be carried out at the returned time.
    pub(super) fn begin(&mut self, slot: Slot, change: Change, now: u64, takes: u64) -> (u64, u64) {
        let busy = self.busy_until.get(&slot).copied().unwrap_or(0);
        let at = now.max(self.stalled_until).max(busy) + takes;
        self.busy_until.insert(slot, at);
        self.next_change += 1;
        self.under_way.insert(self.next_change, (slot, change));
        (self.next_change, at)
    }

    /// Carries a change out. The record after it, as the engine would answer.
    pub(super) fn finish(&mut self, change: u64) -> Result<Option<ChunkMeta>> {
        let Some((slot, change)) = self.under_way.remove(&change) else {
            return Err(Error::new(ErrorCode::Unavailable, "this disk was closed"));
        };
        if std::mem::take(&mut self.fail_next) {
            self.failed = true;
            // Uncertain: as in a crash, it may be there after the restart.
            self.next_change += 1;
            self.under_way.insert(self.next_change, (slot, change));
            return Err(Error::new(ErrorCode::DiskError, "a write failed"));
        }
        if self.failed {
            return Err(Error::new(ErrorCode::DiskError, "the disk has failed"));
        }
        if self.full
            && matches!(&change, Change::Prepare(p) if !matches!(p.kind, PrepareKind::Remove))
        {
            return Err(Error::new(ErrorCode::NoSpace, "the disk is full"));
        }
        if self.unreadable && matches!(change, Change::Prepare(_) | Change::Recover(_)) {
            // They read what is there before.
            return Err(Error::new(ErrorCode::DiskError, "a read failed"));
        }
        let flush = !matches!(change, Change::Commit(..) | Change::Recover(_));
        self.carry_out(slot, &change)?;
        if flush && !self.forgets_to_flush {
            self.flush();
        }
        Ok(self.now.get(&slot).map(Stored::meta))
    }

    fn carry_out(&mut self, slot: Slot, change: &Change) -> Result<()> {
        let old = self.now.get(&slot).cloned();
        let new = match change {
            Change::Prepare(prepare) => match prepared(old.as_ref(), prepare)? {
                Some(new) => Some(new),
                None => return Ok(()),
            },
            Change::Commit(version, chain) => committed(old, version.0, chain.0)?,
            Change::Abort(version) => match old {
                Some(old) if old.pending.as_ref().is_some_and(|p| p.number == version.0) => {
                    let pending = None;
                    old.committed.is_some().then_some(Stored { pending, ..old })
                }
                other => other,
            },
            Change::Drop => None,
            Change::Recover(chain) => {
                let pending = |(key, stored): (&Slot, &Stored)| {
                    (key.0 == slot.0).then_some(())?;
                    stored.pending.as_ref().map(|p| (*key, p.number))
                };
                let pending: Vec<_> = self.now.iter().filter_map(pending).collect();
                for (key, number) in pending {
                    let new = committed(self.now.get(&key).cloned(), number, chain.0)?;
                    self.log(key, new);
                }
                return Ok(());
            }
        };
        self.log(slot, new);
        Ok(())
    }

    fn log(&mut self, slot: Slot, new: Option<Stored>) {
        self.unflushed.push((slot, new.clone()));
        put(&mut self.now, slot, new);
    }

    fn flush(&mut self) {
        for (slot, stored) in self.unflushed.drain(..) {
            put(&mut self.durable, slot, stored);
        }
    }

    /// A clean stop.
    pub(super) fn close(&mut self) {
        self.under_way.clear();
        if !self.failed {
            self.flush();
        }
        self.reopen();
    }

    /// The process dies, and with `power` what was not flushed may be lost.
    pub(super) fn crash(&mut self, power: bool, random: &mut Random) {
        for (slot, change) in std::mem::take(&mut self.under_way).into_values() {
            if random.chance(500) {
                // What the engine would have refused never was on its way to the log.
                let _ = self.carry_out(slot, &change);
            }
        }
        if power {
            let kept = random.below(self.unflushed.len() as u64 + 1) as usize;
            self.unflushed.truncate(kept);
        }
        // Killed processes leave their log in the page cache, where a later loss of power finds it.
        self.now = self.durable.clone();
        for (slot, stored) in &self.unflushed {
            put(&mut self.now, *slot, stored.clone());
        }
        self.reopen();
    }

    fn reopen(&mut self) {
        // Opening the index replays its log and flushes it.
        self.busy_until.clear();
        self.failed = false;
        self.fail_next = false;
        if !self.forgets_to_flush {
            self.durable = self.now.clone();
            self.unflushed.clear();
        }
    }

    /// Targets that have something here.
    pub(super) fn targets(&self) -> std::collections::BTreeSet<TargetId> {
        self.now.keys().map(|&(target, _)| target).collect()
    }

    /// A target that has moved away is deleted, for good.
    pub(super) fn delete(&mut self, target: TargetId) {
        self.now.retain(|slot, _| slot.0 != target);
        self.durable.retain(|slot, _| slot.0 != target);
        self.unflushed.retain(|(slot, _)| slot.0 != target);
        self.under_way.retain(|_, (slot, _)| slot.0 != target);
        self.busy_until.retain(|slot, _| slot.0 != target);
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Stored> {
        self.now.get(&slot)
    }

    /// What a loss of power right now would certainly leave.
    pub(super) fn durable(&self, slot: Slot) -> Option<&Stored> {
        self.durable.get(&slot)
    }

    pub(super) fn meta(&self, slot: Slot) -> Result<Option<ChunkMeta>> {
        self.readable()?;
        Ok(self.now.get(&slot).map(Stored::meta))
    }

    fn readable(&self) -> Result<()> {
        if self.unreadable {
            return Err(Error::new(ErrorCode::DiskError, "a read failed"));
        }
        Ok(())
    }

    pub(super) fn list(
        &self,
        target: TargetId,
        after: Option<ChunkKey>,
        limit: usize,
    ) -> Result<Vec<(ChunkKey, ChunkMeta)>> {
        self.readable()?;
        let of = self
            .now
            .iter()
            .filter(|((t, key), _)| *t == target && after.is_none_or(|a| *key > a));
        Ok(of
            .take(limit)
            .map(|((_, key), s)| (*key, s.meta()))
            .collect())
    }

    /// The whole content of one version, with its number.
    pub(super) fn read(&self, slot: Slot, which: ReadVersion) -> Result<(u64, Bytes)> {
        self.readable()?;
        let none = || Error::new(ErrorCode::ChunkNotFound, "no such chunk");
        let stored = self.now.get(&slot).ok_or_else(none)?;
        let (committed, pending) = (stored.committed.as_ref(), stored.pending.as_ref());
        let found = match which {
            ReadVersion::Committed => committed,
            ReadVersion::Pending => pending.or(committed),
            ReadVersion::Exactly(v) => {
                let is = |found: &&Version| found.number == v.0;
                let found = pending.filter(is).or(committed.filter(is));
                if found.is_none() {
                    let code = if v.0 < stored.committed_version() {
                        ErrorCode::StaleChunkVersion
                    } else {
                        ErrorCode::MissingVersion
                    };
                    return Err(Error::new(code, format!("version {} is not here", v.0)));
                }
                found
            }
        };
        let found = found.filter(|v| !v.removes).ok_or_else(none)?;
        Ok((found.number, found.bytes.clone()))
    }

    /// All records of a target, for the comparison at the end.
    pub(super) fn records(&self, target: TargetId) -> impl Iterator<Item = (ChunkKey, &Stored)> {
        let of = self.now.iter().filter(move |((t, _), _)| *t == target);
        of.map(|((_, key), stored)| (*key, stored))
    }
}

fn put(records: &mut Records, slot: Slot, stored: Option<Stored>) {
    match stored {
        Some(stored) => drop(records.insert(slot, stored)),
        None => drop(records.remove(&slot)),
    }
}

/// As the engine's `in_turn` and `edit`. `None`: it is pending already.
fn prepared(old: Option<&Stored>, prepare: &Prepare) -> Result<Option<Stored>> {
    let number = old.map_or(0, Stored::committed_version);
    let committed = old.and_then(|s| s.committed.as_ref());
    if !matches!(prepare.kind, PrepareKind::Replace { .. }) {
        if prepare.version.0 <= number {
            return Err(Error::new(ErrorCode::StaleChunkVersion, "too late"));
        }
        if prepare.version.0 > number + 1 {
            return Err(Error::new(ErrorCode::MissingVersion, "too early"));
        }
        if let Some(pending) = old.and_then(|s| s.pending.as_ref()) {
            let again = pending.number == prepare.version.0
                && pending.tag == prepare.tag
                && prepare.tag != WriteTag::default();
            if again {
                return Ok(None);
            }
            return Err(Error::new(ErrorCode::PendingExists, "another is pending"));
        }
    }
    let mut bytes = committed.map_or(Vec::new(), |v| v.bytes.to_vec());
    let mut recent =
        committed.map_or_else(Arc::default, |v| remember(&v.recent, v.mark(), prepare.tag));
    let mut removes = false;
    match &prepare.kind {
        PrepareKind::Write { offset, data, .. } => {
            let (from, to) = (*offset as usize, *offset as usize + data.len());
            bytes.resize(bytes.len().max(to), 0);
            bytes[from..to].copy_from_slice(data);
        }
        PrepareKind::Truncate { len } => bytes.resize(*len as usize, 0),
        PrepareKind::Remove => removes = true,
        PrepareKind::Replace {
            data,
            recent: theirs,
            ..
        } => {
            bytes = data.to_vec();
            recent = theirs.clone();
        }
    }
    let pending = Version {
        number: prepare.version.0,
        bytes: bytes.into(),
        tag: prepare.tag,
        chain: prepare.chain_version.0,
        recent,
        removes,
    };
    Ok(Some(Stored {
        committed: committed.cloned(),
        pending: Some(pending),
        page: prepare.page_size,
        chunk: prepare.chunk_size,
    }))
}

fn committed(old: Option<Stored>, version: u64, chain: u64) -> Result<Option<Stored>> {
    let Some(old) = old else {
        return Err(Error::new(ErrorCode::ChunkNotFound, "no such chunk"));
    };
    match &old.pending {
        Some(p) if p.number == version && p.removes => Ok(None),
        Some(p) if p.number == version => Ok(Some(Stored {
            committed: Some(Version { chain, ..p.clone() }),
            pending: None,
            ..old
        })),
        _ if version <= old.committed_version() => Ok(Some(old)),
        _ => Err(Error::new(ErrorCode::MissingVersion, "nothing to commit")),
    }
}
