//! Counting what existed before a quota, batch by batch, while everything changes.
//!
//! Whatever is created, removed or changed meanwhile is counted by who does it, because each inode says whether it is counted.
//!
//! **Users and groups**: a pass over all inodes. New ones are counted from the beginning.
//!
//! **Directories**: a directory is first marked, alone, so that what is made in it from then on is counted; only the
//! next transaction looks at its entries, and sees all that came before the mark. Subdirectories are marked and recorded
//! in the transaction that finds them. Nobody carries one that has entries to where the count has been, without recording
//! it there ([`crate::namespace::usage::check_move`]).

use emberfs_proto::Result;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::QuotaKind;

use crate::namespace::records::{Dentry, InodeRecord, OwnersRecord, WalkRecord, decode};
use crate::namespace::tx::Tx;
use crate::namespace::usage::table::{Holder, Table};
use crate::namespace::{keys, usage};

/// Inodes counted in one transaction: few, because one that changes meanwhile makes it run again.
const BATCH: usize = 200;

/// Counts some inodes for their users and groups. False: there is nothing more to count.
pub(crate) fn owners(tx: &mut Tx<'_>) -> Result<bool> {
    let Some(mut state) = tx.get::<OwnersRecord>(keys::OWNERS)? else {
        return Ok(false);
    };
    if !state.active || !state.counting {
        return Ok(false);
    }
    tx.ignore_limits();
    let found = tx.peek(&keys::inodes_after(InodeId(state.after)), BATCH)?;
    for (_, value) in &found {
        let seen: InodeRecord = decode(value)?;
        state.after = seen.id;
        if seen.owner_era == state.era {
            continue;
        }
        if let Some(mut inode) = tx.inode(seen.id())? {
            inode.owner_era = state.era;
            count(tx, inode)?;
        }
    }
    tx.put(keys::OWNERS, &state);
    Ok(found.len() == BATCH)
}

/// Counts some entries of a directory in its tree. False: there is nothing more to count in any.
pub(crate) fn trees(tx: &mut Tx<'_>) -> Result<bool> {
    let first = tx.peek(&keys::walks(), 1)?;
    let Some((key, _)) = first.first() else {
        return Ok(false);
    };
    let Some(walk) = tx.get::<WalkRecord>(key)? else {
        return Ok(true);
    };
    let Some((tree, dir)) = keys::parse_walk(key) else {
        tx.delete(key);
        return Ok(true);
    };
    tx.ignore_limits();
    let Some(mut record) = tx.inode(dir)?.filter(InodeRecord::is_dir) else {
        tx.delete(key);
        return Ok(true);
    };
    if tx.quotas.tree_of(&record) != tree {
        if tx.quotas.tree_of(&record) == 0 && tx.quotas.is_top(tree, dir) {
            record.tree = tree;
            count(tx, record)?;
        } else {
            // It has gone elsewhere meanwhile.
            tx.delete(key);
        }
        return Ok(true);
    }
    let mut span = keys::dentries(dir);
    if !walk.after.is_empty() {
        span = span.after(&keys::dentry(dir, &walk.after));
    }
    let entries = tx.peek(&span, BATCH)?;
    for (_, value) in &entries {
        let dentry: Dentry = decode(value)?;
        let Some(mut inode) = tx.inode(dentry.id())? else {
            continue;
        };
        // One that is counted in another tree stays there.
        if tx.quotas.tree_of(&inode) == 0 {
            inode.tree = tree;
            if inode.is_dir() {
                tx.put(&keys::walk(tree, inode.id()), &WalkRecord::default());
            }
            count(tx, inode)?;
        }
    }
    match entries.last().filter(|_| entries.len() == BATCH) {
        Some((last, _)) => {
            let after = last.slice_ref(keys::dentry_name(last));
            tx.put(key, &WalkRecord { after });
        }
        None => tx.delete(key),
    }
    Ok(true)
}

/// Stores an inode with new marks. A grant that no writer has any more, from a time without quotas, goes.
fn count(tx: &mut Tx<'_>, mut inode: InodeRecord) -> Result<()> {
    usage::ended(tx, &mut inode)?;
    tx.put_marks(&inode);
    Ok(())
}

/// Notes which counts are complete.
pub(crate) fn complete(tx: &mut Tx<'_>, table: &mut Table) -> Result<()> {
    if table.owners.active && table.owners.counting {
        let stored: OwnersRecord = tx.get(keys::OWNERS)?.unwrap_or_default();
        let rest = keys::inodes_after(InodeId(stored.after));
        // An attempt of unknown outcome may have noted it.
        if !stored.counting || tx.scan(&rest, 1)?.is_empty() {
            table.owners.counting = false;
            tx.put(keys::OWNERS, &table.owners);
        }
    }
    for (dir, tree) in table.trees().collect::<Vec<_>>() {
        let holder = Holder {
            kind: QuotaKind::Tree,
            id: dir.0,
        };
        let Some(mut quota) = table.get(holder).filter(|quota| quota.counting).cloned() else {
            continue;
        };
        if tx.scan(&keys::walks_of(tree), 1)?.is_empty() {
            quota.counting = false;
            tx.put(&holder.key(), &quota);
            table.put(holder, quota);
        }
    }
    Ok(())
}
