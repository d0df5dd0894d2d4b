//! Which directories keep what is removed from them, and for how long.

use bytes::Bytes;
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::{check_root, paths};
use crate::namespace::access::Cred;
use crate::namespace::keys;
use crate::namespace::records::InodeRecord;
use crate::namespace::tx::Tx;

/// Longest time that anything is kept, seconds: ten years.
const MAX_KEEP: u64 = 10 * 366 * 86_400;

/// For how many seconds what is removed from a directory is kept, if it is.
pub(super) fn keep(tx: &mut Tx<'_>, dir: &InodeRecord) -> Result<Option<u64>> {
    if !tx.core.trash.is_on() {
        return Ok(None);
    }
    Ok(rule(tx, dir)?
        .map(|(keep, _)| keep)
        .filter(|&keep| keep > 0))
}

/// What holds for a directory, and which one says so.
fn rule(tx: &mut Tx<'_>, dir: &InodeRecord) -> Result<Option<(u64, InodeId)>> {
    let (mut own, mut at, mut parent) = (dir.trash_keep, dir.id(), InodeId(dir.parent));
    for _ in 0..paths::MAX_DEPTH {
        if let Some(keep) = own {
            return Ok(Some((keep, at)));
        }
        if at == InodeId::ROOT {
            break;
        }
        // A directory above that is gone says nothing.
        let Some(above) = tx.peek_inode(parent)? else {
            break;
        };
        (own, at, parent) = (above.trash_keep, above.id(), InodeId(above.parent));
    }
    Ok(None)
}

/// Changes what a directory says.
pub(super) fn set(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::SetTrashRequest,
) -> Result<pb::TrashPolicy> {
    check_root(cred)?;
    if let Some(keep) = req.keep.filter(|&keep| keep > MAX_KEEP) {
        let what = format!("trash cannot be kept for {keep} s; at most {MAX_KEEP} s, ten years");
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let mut dir = tx.dir(InodeId(req.inode))?;
    if req.keep.is_some() {
        tx.core.trash.turn_on();
    }
    let says = |keep: Option<u64>| i64::from(keep.is_some());
    tx.add(keys::TRASH_POLICIES, says(req.keep) - says(dir.trash_keep));
    dir.trash_keep = req.keep;
    dir.ctime = tx.now;
    tx.put_inode(&dir);
    describe(tx, &dir)
}

/// What holds for a directory.
pub(super) fn get(tx: &mut Tx<'_>, inode: InodeId) -> Result<pb::TrashPolicy> {
    let dir = tx.dir(inode)?;
    describe(tx, &dir)
}

fn describe(tx: &mut Tx<'_>, dir: &InodeRecord) -> Result<pb::TrashPolicy> {
    let rule = rule(tx, dir)?;
    let from = match rule {
        Some((_, from)) => paths::Walk::default().place(tx, from)?.shown(),
        None => Bytes::new(),
    };
    Ok(pb::TrashPolicy {
        own: dir.trash_keep,
        keep: rule.map_or(0, |(keep, _)| keep),
        from,
    })
}
