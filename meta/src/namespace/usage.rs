//! What quotas count, exactly, while everything changes.
//!
//! Each inode counts as one, and a file with its length, or how far its writers may write if that is more. The inode
//! record says where it is counted now: under which era in the usage of its user and group
//! (`owner_era`), and in the usage of which directory's tree (`tree`). So whoever changes the record knows
//! what to take back and what to add, and a count of what existed before a quota can go through all inodes bit by bit
//! ([`super::ops::count`]). A number that is not in force any more counts as none: a cleared quota leaves its marks
//! where they are.
//!
//! **One place.** A transaction notes what it reads and stores of inodes ([`Ledger`], by [`Tx`]), and at its end the
//! sums of the differences go to the counters: blind adds, in the same transaction. Those that grow where there is a
//! limit are bounded ([`crate::kv::Transaction::add_at_most`]): creates in one directory do not conflict, and of those that meet at
//! the limit exactly as many pass as fit. The one that does not runs again, then reads how much is used, and says so.
//!
//! **Which quotas there are** is known in memory ([`table`]); without any nothing here costs anything.
//!
//! **Writers** send bytes to storage servers without asking here. So they write up to what they were granted; for more
//! they ask ([`super::ops::quota::reserve`]). What is granted is counted until the last of them is gone.

pub(crate) mod table;

use std::collections::{BTreeMap, HashMap};

use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::{Error, ErrorCode, Result};

use super::keys;
use super::records::{InodeRecord, SessionRecord, WalkRecord, decode};
use super::tx::Tx;
use table::{Charge, Resource, Subject, Table};

/// Writers are granted room in pieces of this size, bytes, where there is plenty of it.
const STEP: u64 = 64 << 20;
/// Room for a new file, bytes, so that a small one needs no request of its own for it.
const FIRST: u64 = 4 << 20;
/// Beyond what it needs a writer gets at most this fraction of what is left, so that little is held back by writers that
/// do not use it when it gets scarce.
const SHARE: u64 = 16;
/// Grants end at multiples of this, bytes, so that what is left is not cut into pieces that nobody can use.
const GRAIN: u64 = 4096;
/// Write sessions of a file that are looked at; with more, others count as writing too.
const MANY_WRITERS: usize = 64;

/// What a transaction does to usage.
#[derive(Default)]
pub(crate) struct Ledger {
    /// As what inodes were counted before the transaction, and as what after it.
    inodes: HashMap<InodeId, (Charge, Option<Charge>)>,
    /// What is counted must be counted, whatever the limits are.
    unlimited: bool,
}

impl Ledger {
    /// An inode was read; its first reading counts.
    pub(super) fn read(&mut self, table: &Table, record: &InodeRecord) {
        let before = || (table.charge(record), None);
        self.inodes.entry(record.id()).or_insert_with(before);
    }

    /// An inode is new.
    pub(super) fn added(&mut self, id: InodeId) {
        self.inodes.entry(id).or_default();
    }

    /// An inode that was read, or is new, will be stored; the last time counts.
    pub(super) fn stored(&mut self, table: &Table, record: &InodeRecord) {
        self.set(record.id(), table.charge(record));
    }

    /// An inode that was read will be gone.
    pub(super) fn dropped(&mut self, id: InodeId) {
        self.set(id, Charge::default());
    }

    fn set(&mut self, id: InodeId, charge: Charge) {
        let entry = self.inodes.get_mut(&id);
        debug_assert!(entry.is_some(), "inode {id} is stored without being read");
        if let Some(entry) = entry {
            entry.1 = Some(charge);
        }
    }

    fn deltas(&self) -> BTreeMap<(Subject, Resource), i64> {
        let mut deltas = BTreeMap::new();
        for (before, after) in self.inodes.values() {
            if let Some(after) = after.filter(|after| after != before) {
                for (charge, sign) in [(before, -1), (&after, 1)] {
                    for subject in charge.subjects() {
                        *deltas.entry((subject, Resource::Inodes)).or_default() += sign;
                        let bytes = sign * charge.bytes.cast_signed();
                        *deltas.entry((subject, Resource::Bytes)).or_default() += bytes;
                    }
                }
            }
        }
        deltas.retain(|_, delta| *delta != 0);
        deltas
    }
}

impl Tx<'_> {
    /// What this transaction stores is counted even where a limit leaves no room for it.
    pub(crate) fn ignore_limits(&mut self) {
        self.ledger.unlimited = true;
    }

    /// The end of a transaction: counts what it did, or [`ErrorCode::QuotaExceeded`].
    pub(super) fn settle_usage(&mut self) -> Result<()> {
        for ((subject, resource), delta) in self.ledger.deltas() {
            let key = subject.usage(resource);
            let limit = self.quotas.limit(subject, resource);
            match limit.filter(|_| delta > 0 && !self.ledger.unlimited) {
                Some(limit) => {
                    let used = self.used(subject, resource)?;
                    if used.saturating_add(delta) > limit {
                        return Err(exceeded(&self.quotas, subject, resource, used));
                    }
                    self.add_at_most(&key, delta, limit);
                }
                None => self.add(&key, delta),
            }
        }
        Ok(())
    }

    /// What is used, without a conflict.
    pub(crate) fn used(&mut self, subject: Subject, resource: Resource) -> Result<i64> {
        self.peek_number(&subject.usage(resource))
    }

    /// Whether anybody else has the file open for writing.
    fn has_other_writers(&mut self, id: InodeId, client: ClientId) -> Result<bool> {
        let found = self.scan(&keys::sessions_of(id), MANY_WRITERS)?;
        for (_, value) in &found {
            let session: SessionRecord = decode(value)?;
            if ClientId::from_bytes(&session.client) != Some(client) {
                return Ok(true);
            }
        }
        Ok(found.len() == MANY_WRITERS)
    }
}

/// What is created in a directory is counted where the directory is.
pub(super) fn inherit(tx: &Tx<'_>, dir: &InodeRecord, child: &mut InodeRecord) {
    child.tree = tx.quotas.tree_of(dir);
}

/// Whether, and as what, an inode may get a name in `to` and lose one in `from`. The caller stores the record.
///
/// [`ErrorCode::CrossDevice`]: it would carry more than itself into or out of a directory with a quota, or have
/// names on both sides.
pub(super) fn check_move(
    tx: &mut Tx<'_>,
    inode: &mut InodeRecord,
    from: &InodeRecord,
    to: &InodeRecord,
) -> Result<()> {
    let own = tx.quotas.tree_of(inode);
    let (was, will) = (tx.quotas.tree_of(from), tx.quotas.tree_of(to));
    if own != 0 && tx.quotas.is_top(own, inode.id()) {
        // It takes its quota with it.
        return if will == 0 {
            Ok(())
        } else {
            Err(nested(inode))
        };
    }
    if own == will {
        return Ok(());
    }
    if was == will && own != 0 {
        // Counted where another name of it is.
        return Ok(());
    }
    if was != will && !inode.is_dir() && inode.nlink > 1 {
        return Err(crossing(inode, "has other names"));
    }
    if inode.is_dir() && !tx.is_empty(inode.id())? {
        if own != 0 || !tx.quotas.is_counting(will) {
            return Err(crossing(inode, "is not empty"));
        }
        // The count has not come here yet, or has more to do now.
        tx.put(&keys::walk(will, inode.id()), &WalkRecord::default());
    }
    inode.tree = will;
    Ok(())
}

/// Whether, and as what, an inode may get a further name in `dir`. The caller stores the record.
pub(super) fn check_link(tx: &Tx<'_>, inode: &mut InodeRecord, dir: &InodeRecord) -> Result<()> {
    let (own, will) = (tx.quotas.tree_of(inode), tx.quotas.tree_of(dir));
    if own == will {
        return Ok(());
    }
    let not_counted_yet = own == 0 && tx.quotas.is_counting(will);
    if inode.nlink > 0 && !not_counted_yet {
        return Err(crossing(inode, "has a name elsewhere"));
    }
    inode.tree = will;
    Ok(())
}

fn crossing(inode: &InodeRecord, why: &str) -> Error {
    let what = format!(
        "inode {} {why} and would cross the border of a directory with a quota; copy it",
        inode.id()
    );
    Error::new(ErrorCode::CrossDevice, what)
}

fn nested(inode: &InodeRecord) -> Error {
    let what = format!(
        "directory {} has a quota and cannot move into another directory that has one; copy it, or clear one of them",
        inode.id()
    );
    Error::new(ErrorCode::CrossDevice, what)
}

/// Lets writers of a file write up to `end`, and some more where there is plenty; true if the record changed.
/// [`ErrorCode::QuotaExceeded`] if that does not fit.
pub(super) fn grant(tx: &mut Tx<'_>, file: &mut InodeRecord, end: u64) -> Result<bool> {
    let charged = file.charged_bytes();
    let Some(room) = room(tx, file)?.filter(|_| end > charged) else {
        return Ok(false);
    };
    let most = charged.saturating_add(room.left);
    if most < end {
        return Err(exceeded(
            &tx.quotas,
            room.subject,
            Resource::Bytes,
            room.used,
        ));
    }
    file.granted = granted(end, most);
    Ok(true)
}

/// A file that was just created for writing gets room for a small file at once, if there is plenty. The caller stores the
/// record if this is true.
pub(super) fn grant_first(tx: &mut Tx<'_>, file: &mut InodeRecord) -> Result<bool> {
    if let Some(room) = room(tx, file)? {
        let first = FIRST.min(room.left / SHARE);
        file.granted = first - first % GRAIN;
    }
    Ok(file.granted > 0)
}

/// What is left for a file, and whose quota says so.
struct Room {
    left: u64,
    subject: Subject,
    used: i64,
}

/// The least of what is left by the quotas of a file; `None`: its bytes are not limited.
fn room(tx: &mut Tx<'_>, file: &InodeRecord) -> Result<Option<Room>> {
    let mut least: Option<Room> = None;
    for subject in tx.quotas.charge(file).subjects() {
        if let Some(limit) = tx.quotas.limit(subject, Resource::Bytes) {
            let used = tx.used(subject, Resource::Bytes)?;
            let left = limit.saturating_sub(used).max(0).cast_unsigned();
            if least.as_ref().is_none_or(|least| left < least.left) {
                least = Some(Room {
                    left,
                    subject,
                    used,
                });
            }
        }
    }
    Ok(least)
}

/// Up to where a file that needs `end` may be written if `most` is possible.
fn granted(end: u64, most: u64) -> u64 {
    let round = end.saturating_add(STEP - 1) / STEP * STEP;
    let shared = end + most.saturating_sub(end) / SHARE;
    let upto = round.min(shared);
    end.max(upto - upto % GRAIN)
}

/// A truncation: what was granted is given back unless another client may be writing. The caller stores the record.
pub(super) fn truncated(tx: &mut Tx<'_>, file: &mut InodeRecord, client: ClientId) -> Result<()> {
    if file.granted != 0 && !tx.has_other_writers(file.id(), client)? {
        withdraw(file);
    }
    Ok(())
}

/// A write session has ended: what the last one did not use is given back. True if the record changed.
pub(super) fn ended(tx: &mut Tx<'_>, file: &mut InodeRecord) -> Result<bool> {
    if file.granted == 0 || tx.has_writers(file.id())? {
        return Ok(false);
    }
    withdraw(file);
    Ok(true)
}

/// [`ended`] for files whose write sessions have ended in this transaction.
pub(super) fn give_back(tx: &mut Tx<'_>, files: impl IntoIterator<Item = InodeId>) -> Result<()> {
    if tx.quotas.is_idle() {
        return Ok(());
    }
    for id in files {
        if let Some(mut file) = tx.inode(id)?
            && ended(tx, &mut file)?
        {
            tx.put_marks(&file);
        }
    }
    Ok(())
}

fn withdraw(file: &mut InodeRecord) {
    file.granted = 0;
    file.grant += 1;
}

fn exceeded(table: &Table, subject: Subject, resource: Resource, used: i64) -> Error {
    let limit = table.limit(subject, resource).unwrap_or(i64::MAX);
    let unit = match resource {
        Resource::Bytes => "bytes",
        Resource::Inodes => "files and directories",
    };
    let what = format!(
        "the quota of {} is {limit} {unit}, {used} are used; remove something, or have it raised with `emberfs quota set`",
        table.describe(subject)
    );
    Error::new(ErrorCode::QuotaExceeded, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_generous_while_there_is_room_and_exact_at_the_end() {
        const M: u64 = 1 << 20;
        for (end, most, wanted) in [
            (1, 1 << 40, 64 * M),
            (64 * M, 1 << 40, 64 * M),
            (64 * M + 1, 1 << 40, 128 * M),
            (M, 17 * M, 2 * M),
            (M, M, M),
            (5000, 5000, 5000),
            (5000, 70_000, 8192),
            (u64::MAX, u64::MAX, u64::MAX),
        ] {
            assert_eq!(granted(end, most), wanted, "{end} of {most}");
        }
    }
}
