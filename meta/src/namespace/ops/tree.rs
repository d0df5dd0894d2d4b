//! Removing a whole tree by one request: it loses its name at once and its contents in the background.
//!
//! A directory that is to be emptied is *doomed*: marked, so that nobody finds or makes anything in it any more, and
//! recorded, so that a restart goes on. Emptying takes entries in batches, dooms the subdirectories among them, and
//! at last removes the directory itself.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::lookup;
use crate::namespace::access::Cred;
use crate::namespace::records::{Dentry, Doomed, InodeRecord, decode};
use crate::namespace::tx::Tx;
use crate::namespace::{keys, names, trash};

/// Entries removed in one transaction: well below what it may write.
const BATCH: usize = 500;

/// Takes a directory and everything in it away, perhaps into the trash. Only root may: what others may remove, each directory of the tree says
/// for itself.
pub(crate) fn remove(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::NameRequest,
) -> Result<pb::UnlinkReply> {
    let parent = InodeId(req.parent);
    let (dir, dentry) = lookup::entry(tx, cred, req)?;
    let mut child = tx.live(dentry.id())?;
    if !cred.is_root() {
        let what = format!(
            "only root may remove the tree {} by one request; remove it entry by entry",
            names::at(parent, &req.name)
        );
        return Err(Error::new(ErrorCode::NotPermitted, what));
    }
    if !child.is_dir() {
        let what = format!("{} is not a directory", names::at(parent, &req.name));
        return Err(Error::new(ErrorCode::NotDirectory, what));
    }
    let mut attr = tx.attr(&child)?;
    attr.nlink = 0;
    attr.ctime = Some(tx.now);
    tx.delete_dentry(parent, &req.name);
    tx.add_subdirs(parent, -1);
    tx.touch_dir(parent);
    let filled = !tx.peek_span(&keys::dentries(child.id()), 1)?.is_empty();
    if !trash::catch(tx, cred, &dir, &req.name, &mut child, filled)? {
        doom(tx, &mut child, false);
    }
    Ok(pb::UnlinkReply {
        attr: Some(attr),
        ..Default::default()
    })
}

/// Leaves a directory without a name to be emptied and removed; `with_trash`: with what was removed from it before.
pub(crate) fn doom(tx: &mut Tx<'_>, dir: &mut InodeRecord, with_trash: bool) {
    dir.condemned = true;
    tx.put_inode(dir);
    tx.put(&keys::doomed(dir.id()), &Doomed { with_trash });
}

/// Empties one doomed directory by one batch. False if there is none.
pub(crate) fn step(tx: &mut Tx<'_>) -> Result<bool> {
    let found = tx.scan(&keys::all_doomed(), 1)?;
    let Some((key, value)) = found.first() else {
        return Ok(false);
    };
    let Some(dir) = keys::parse_doomed(key) else {
        return Ok(false);
    };
    // Empty before there was trash.
    let Doomed { with_trash } = if value.is_empty() {
        Doomed::default()
    } else {
        decode(value)?
    };
    let entries = tx.scan(&keys::dentries(dir), BATCH)?;
    for (key, value) in &entries {
        let dentry: Dentry = decode(value)?;
        match tx.inode(dentry.id())? {
            Some(mut child) if child.is_dir() => doom(tx, &mut child, with_trash),
            Some(mut child) => tx.drop_link(&mut child),
            None => {}
        }
        let name = key.slice_ref(keys::dentry_name(key));
        tx.delete_dentry(dir, &name);
    }
    if entries.len() == BATCH || (with_trash && trash::remove_from(tx, dir)?) {
        return Ok(true);
    }
    // No entry can have come meanwhile: the mark keeps everybody out.
    if let Some(record) = tx.inode(dir)? {
        tx.drop_inode(&record);
    }
    tx.delete(&keys::doomed(dir));
    Ok(true)
}
