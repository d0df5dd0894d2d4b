//! Giving names back.
//!
//! The name that is asked for comes back in one transaction. If it is a directory that was removed by rmdir, it was empty by
//! then, and what had been removed from it before is in the trash under its number: it is *refilled*, batch by
//! batch, with the newest removal of each name that it does not have, and so are the directories among those. A record
//! says how far that is, so that it goes on after a restart; what is removed meanwhile stays removed.

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, TrashPlace};
use emberfs_proto::{Error, ErrorCode, Result};

use super::paths::Walk;
use super::{BATCH, check_root, parse_spot, put_back};
use crate::namespace::access::Cred;
use crate::namespace::keys::{self, TrashSpot};
use crate::namespace::names;
use crate::namespace::records::{Refill, TrashEntry, decode};
use crate::namespace::tx::Tx;

pub(super) fn restore(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::RestoreTrashRequest,
) -> Result<pb::RestoreTrashReply> {
    check_root(cred)?;
    let asked = emberfs_proto::convert::required(req.spot.as_ref(), "name to restore")?;
    let asked = parse_spot(asked)?;
    let (spot, entry) = find(tx, asked)?;
    let name = if req.to_name.is_empty() {
        spot.name
    } else {
        names::check(&req.to_name)?;
        &req.to_name[..]
    };
    let parent = match req.to_parent {
        0 => spot.parent,
        other => InodeId(other),
    };
    let path = reach(tx, parent, &entry)?.child(name);
    if tx.dentry(parent, name)?.is_some() {
        let what = format!(
            "{} exists: rename it, or restore to another name (--to)",
            path.escape_ascii()
        );
        return Err(Error::new(ErrorCode::Exists, what));
    }
    let inode = put_back(tx, &spot, &entry, parent, name)?;
    tx.touch_dir(parent);
    let attr = Some(tx.attr(&inode)?);
    Ok(pb::RestoreTrashReply { attr, path })
}

/// The entry that is meant; without a time the newest of its name.
fn find<'a>(tx: &mut Tx<'_>, asked: TrashSpot<'a>) -> Result<(TrashSpot<'a>, TrashEntry)> {
    if asked.removed != 0 {
        if let Some(entry) = tx.get(&asked.entry())? {
            return Ok((asked, entry));
        }
    } else if let [(key, value)] = &tx.scan(&keys::trash_named(asked.parent, asked.name), 1)?[..]
        && let Some(TrashSpot { removed, .. }) = TrashSpot::parse(key)
    {
        return Ok((TrashSpot { removed, ..asked }, decode(value)?));
    }
    let what = format!(
        "{} is not in the trash (any more); `emberfs trash list` shows what is",
        names::at(asked.parent, asked.name)
    );
    Err(Error::new(ErrorCode::NotFound, what))
}

/// Where a directory is that is to hold a restored name, which must be somewhere.
fn reach(
    tx: &mut Tx<'_>,
    dir: InodeId,
    entry: &TrashEntry,
) -> Result<std::sync::Arc<super::paths::Place>> {
    let place = Walk::default().place(tx, dir)?;
    let what = match place.standing {
        TrashPlace::Gone => format!(
            "its directory {} was removed for good: restore it elsewhere (--to)",
            entry.path.escape_ascii()
        ),
        TrashPlace::InTrash => {
            let topmost = place.topmost.as_deref().unwrap_or_default();
            let topmost = topmost.escape_ascii();
            format!(
                "its directory is in the trash: restore {topmost} first, or restore it elsewhere (--to)"
            )
        }
        TrashPlace::Live | TrashPlace::Unspecified => {
            // A directory that cannot be reached cannot become its own ancestor. From here on every one above
            // has to stay where it is until the commit.
            let mut at = dir;
            while at != InodeId::ROOT {
                at = InodeId(tx.dir(at)?.parent);
            }
            return Ok(place);
        }
    };
    Err(Error::new(ErrorCode::NotFound, what))
}

/// Gives one directory back one batch of what was removed from it. False if there is none.
pub(super) fn refill(tx: &mut Tx<'_>) -> Result<bool> {
    let found = tx.scan(&keys::all_refills(), 1)?;
    let Some((key, value)) = found.first() else {
        return Ok(false);
    };
    let (Some(dir), mut refill) = (keys::parse_refill(key), decode::<Refill>(value)?) else {
        tx.delete(key);
        return Ok(true);
    };
    // It may have gone again meanwhile.
    let stays = tx
        .inode(dir)?
        .is_some_and(|record| !record.condemned && record.trashed == 0);
    if !stays {
        tx.delete(key);
        return Ok(true);
    }
    let mut span = keys::trash_of(dir);
    if !refill.after.is_empty() {
        span = span.after(&refill.after);
    }
    let entries = tx.scan(&span, BATCH)?;
    let mut changed = false;
    for (key, value) in &entries {
        let Some(spot) = TrashSpot::parse(key) else {
            continue;
        };
        // The newest of a name comes first, and then the name is taken.
        if spot.removed > refill.until || tx.dentry(dir, spot.name)?.is_some() {
            continue;
        }
        let entry: TrashEntry = decode(value)?;
        if tx.inode(entry.id())?.is_some() {
            put_back(tx, &spot, &entry, dir, spot.name)?;
            changed = true;
        }
    }
    if changed {
        tx.touch_dir(dir);
    }
    match entries.last() {
        Some((last, _)) if entries.len() == BATCH => {
            refill.after = last.clone();
            tx.put(key, &refill);
        }
        _ => tx.delete(key),
    }
    Ok(true)
}
