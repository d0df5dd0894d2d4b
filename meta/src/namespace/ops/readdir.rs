//! Listing a directory, attributes included.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Result, pb};

use crate::namespace::access::{self, Cred};
use crate::namespace::records::{Dentry, decode};
use crate::namespace::tx::Tx;
use crate::namespace::{keys, names};

/// Most entries of a page.
const MAX_ENTRIES: usize = 4096;
/// Entries of a page if the caller does not say.
const DEFAULT_ENTRIES: usize = 1024;

pub(crate) fn readdir(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::ReadDirRequest,
) -> Result<pb::ReadDirReply> {
    let id = InodeId(req.inode);
    let dir = tx.dir(id)?;
    access::check(cred, &dir, access::READ)?;
    let limit = match req.limit as usize {
        0 => DEFAULT_ENTRIES,
        limit => limit.min(MAX_ENTRIES),
    };
    tx.note_names(id);
    let mut span = keys::dentries(id);
    if !req.after.is_empty() {
        span = span.after(&keys::dentry(id, &req.after));
    }
    let found = tx.scan(&span, limit + 1)?;
    let end = found.len() <= limit;
    let mut entries = Vec::with_capacity(found.len().min(limit));
    for (key, value) in found.iter().take(limit) {
        let dentry: Dentry = decode(value)?;
        let name = key.slice_ref(keys::dentry_name(key));
        let Some(record) = tx.inode(dentry.id())? else {
            // One damaged entry must not make the others unreachable.
            tracing::error!("{} has no inode; run `emberfs fsck`", names::at(id, &name));
            continue;
        };
        let attr = Some(tx.attr(&record)?);
        entries.push(pb::DirEntry { name, attr });
    }
    Ok(pb::ReadDirReply {
        entries,
        end,
        parent: dir.parent,
    })
}
