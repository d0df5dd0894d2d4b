//! Trash: what is removed from directories that ask for it keeps its inode for a while, and can be given its name back.
//!
//! **Policy.** A directory says how long (`trash_keep`), or the nearest one above it that says anything. It is looked for when
//! something is removed, by reads that do not conflict: a removal beside a change of the policy may go by either.
//!
//! **In the trash** an inode is what it was but for its name: a file keeps the link that the name was, so its chunks stay and
//! `nlink` does not fall; a directory bears a mark under which nobody finds or makes anything in it by its number. The name,
//! and the times of removal and expiry, are an *entry*, by directory, name and time, with a second key by expiry.
//!
//! **Directories.** A tree that is removed by one request is one entry. One that is removed name by name (`rm -r` on a
//! mount) leaves an entry for each name, of which those below are entries of directories that are in the trash
//! themselves, because a directory keeps its number there. Restoring such a directory gives back, in the background of the
//! same request, what had been removed from it ([`restore`]).
//!
//! **Expiry** is each entry's own. A directory that goes for good leaves entries of what was removed from it alone: they
//! have a promise of their own, and can be restored elsewhere until then. Emptying the trash by hand takes them along.

mod list;
mod paths;
mod policy;
mod requests;
mod restore;

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result};

use super::access::Cred;
use super::keys::{self, TrashSpot};
use super::ops::tree;
use super::records::{InodeRecord, Refill, TrashEntry};
use super::tx::Tx;
use super::{names, time, usage};

/// Entries removed or restored in one transaction: well below what it may write.
const BATCH: usize = 200;

/// Whether any directory says anything about trash, so that clusters without it look nothing up.
#[derive(Debug, Default)]
pub(crate) struct Switch(AtomicBool);

impl Switch {
    /// As the store says.
    pub(crate) fn load(&self, tx: &mut Tx<'_>) -> Result<()> {
        if tx.number(keys::TRASH_POLICIES)? > 0 {
            self.turn_on();
        }
        Ok(())
    }

    /// Before the first policy is stored; it stays on until the next start.
    fn turn_on(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Puts an inode that has just lost its name in `dir` into the trash, if that is wanted there; otherwise nothing is done and
/// the caller removes it. A directory's own policy counts for itself as well. `tree`: there is something in it.
pub(crate) fn catch(
    tx: &mut Tx<'_>,
    cred: &Cred,
    dir: &InodeRecord,
    name: &[u8],
    inode: &mut InodeRecord,
    tree: bool,
) -> Result<bool> {
    let below = if inode.is_dir() { &*inode } else { dir };
    let Some(keep) = policy::keep(tx, below)? else {
        return Ok(false);
    };
    let mut removed = time::nanos(tx.now);
    let spot = |removed| TrashSpot {
        parent: dir.id(),
        name,
        removed,
    };
    // Only after the clock was set back.
    while tx.exists(&spot(removed).entry())? {
        removed += 1;
    }
    let spot = spot(removed);
    let entry = TrashEntry {
        inode: inode.id,
        kind: inode.kind,
        uid: cred.uid,
        expires: removed.saturating_add(keep.saturating_mul(1_000_000_000)),
        path: paths::recorded(tx, dir.id())?,
        tree,
    };
    tx.put(&spot.entry(), &entry);
    tx.put_empty(&spot.expiry(entry.expires));
    inode.ctime = tx.now;
    if inode.is_dir() {
        inode.trashed = removed;
        inode.parent = dir.id;
        inode.name = Bytes::copy_from_slice(name);
    }
    tx.put_inode(inode);
    Ok(true)
}

/// Gives an inode of the trash a name that is free in a directory.
fn put_back(
    tx: &mut Tx<'_>,
    spot: &TrashSpot<'_>,
    entry: &TrashEntry,
    parent: InodeId,
    name: &[u8],
) -> Result<InodeRecord> {
    let mut inode = tx.live(entry.id())?;
    // It is still counted where it was, whose directory may be gone.
    let (was, to) = (inode.clone(), tx.live(parent)?);
    usage::check_move(tx, &mut inode, &was, &to)?;
    inode.ctime = tx.now;
    if inode.is_dir() {
        inode.trashed = 0;
        // A kernel that removed it, and that still has it because somebody does, lets nobody into it any more: to
        // that one it is another directory now.
        inode.returns += 1;
        inode.parent = parent.0;
        inode.name = Bytes::copy_from_slice(name);
        tx.add_subdirs(parent, 1);
        // What was removed from a tree one by one, before the tree itself, was not part of it.
        if !entry.tree {
            let until = time::nanos(tx.now);
            let after = Bytes::new();
            tx.put(&keys::refill(inode.id()), &Refill { until, after });
        }
    }
    tx.put_inode(&inode);
    tx.put_dentry(parent, name, &inode);
    forget(tx, spot, entry);
    Ok(inode)
}

/// Removes an entry for good; `with_trash`: and what was removed from a directory before.
pub(crate) fn remove(
    tx: &mut Tx<'_>,
    spot: &TrashSpot<'_>,
    entry: &TrashEntry,
    with_trash: bool,
) -> Result<()> {
    forget(tx, spot, entry);
    match tx.inode(entry.id())? {
        Some(mut dir) if dir.is_dir() => tree::doom(tx, &mut dir, with_trash),
        Some(mut inode) => tx.drop_link(&mut inode),
        None => {}
    }
    Ok(())
}

/// Removes one batch of what was removed from a directory that goes itself; false if there is no more.
pub(crate) fn remove_from(tx: &mut Tx<'_>, dir: InodeId) -> Result<bool> {
    let entries = tx.scan(&keys::trash_of(dir), BATCH)?;
    for (key, value) in &entries {
        if let Some(spot) = TrashSpot::parse(key) {
            remove(tx, &spot, &super::records::decode(value)?, true)?;
        }
    }
    Ok(entries.len() == BATCH)
}

fn forget(tx: &mut Tx<'_>, spot: &TrashSpot<'_>, entry: &TrashEntry) {
    tx.delete(&spot.entry());
    tx.delete(&spot.expiry(entry.expires));
}

/// Removes one batch of what expired between two times (nanoseconds); false if that was all.
pub(crate) fn expire(tx: &mut Tx<'_>, from: u64, until: u64) -> Result<bool> {
    let due = tx.scan(&keys::trash_due(from.min(until), until), BATCH)?;
    for (key, _) in &due {
        if let Some((_, spot)) = TrashSpot::parse_expiry(key)
            && let Some(entry) = tx.get(&spot.entry())?
        {
            remove(tx, &spot, &entry, false)?;
        }
        tx.delete(key);
    }
    Ok(due.len() == BATCH)
}

/// [`ErrorCode::NotPermitted`] unless root asks: entries hold inodes of everybody.
fn check_root(cred: &Cred) -> Result<()> {
    if cred.is_root() {
        return Ok(());
    }
    let what = "only root may look into the trash, and change it";
    Err(Error::new(ErrorCode::NotPermitted, what))
}

/// What a request names.
fn parse_spot(spot: &emberfs_proto::pb::TrashSpot) -> Result<TrashSpot<'_>> {
    names::check(&spot.name)?;
    Ok(TrashSpot {
        parent: InodeId(spot.parent),
        name: &spot.name,
        removed: spot.removed,
    })
}

#[cfg(test)]
pub(crate) mod testing {
    //! Single steps of a restore.

    use emberfs_proto::pb;

    use super::{Cred, Result, Tx, restore};

    pub(crate) fn restore(tx: &mut Tx<'_>, request: &pb::RestoreTrashRequest) -> Result<()> {
        restore::restore(tx, &Cred::default(), request).map(drop)
    }

    pub(crate) fn refill(tx: &mut Tx<'_>) -> Result<bool> {
        restore::refill(tx)
    }
}
