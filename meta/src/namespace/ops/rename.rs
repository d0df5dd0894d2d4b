//! Rename, in all its variants, as one transaction.

use bytes::Bytes;
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use crate::namespace::access::{self, Cred, EXEC, WRITE};
use crate::namespace::records::InodeRecord;
use crate::namespace::tx::Tx;
use crate::namespace::{names, trash, usage};

/// Directories deeper than this are refused as rename targets: the walk to the root is one transaction.
const MAX_DEPTH: usize = 10_000;

pub(crate) fn rename(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::RenameRequest,
) -> Result<pb::RenameReply> {
    names::check(&req.name)?;
    names::check(&req.new_name)?;
    if req.no_replace && req.exchange {
        let what = "NOREPLACE and EXCHANGE exclude each other";
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let (from, to) = (InodeId(req.parent), InodeId(req.new_parent));
    let from_dir = tx.dir(from)?;
    let to_dir = tx.dir(to)?;
    access::check(cred, &from_dir, EXEC)?;
    access::check(cred, &to_dir, EXEC)?;
    let source = tx.dentry(from, &req.name)?;
    let source = source.ok_or_else(|| names::not_found(from, &req.name))?;
    let mut moved = tx.live(source.id())?;
    let target = tx.dentry(to, &req.new_name)?;
    if req.no_replace && target.is_some() {
        return Err(names::exists(to, &req.new_name));
    }
    let mut replaced = match target {
        Some(target) => Some(tx.live(target.id())?),
        None if req.exchange => return Err(names::not_found(to, &req.new_name)),
        None => None,
    };

    // 1. May the names be taken away and put there?
    access::check_remove(cred, &from_dir, &moved)?;
    match &replaced {
        Some(replaced) => access::check_remove(cred, &to_dir, replaced)?,
        None => access::check(cred, &to_dir, WRITE)?,
    }

    // 2. Two names of one inode: POSIX asks that nothing happens.
    if replaced.as_ref().is_some_and(|r| r.id == moved.id) {
        let attr = tx.attr(&moved)?;
        return Ok(pb::RenameReply {
            moved: Some(attr),
            replaced: None,
            ..Default::default()
        });
    }

    // 3. A directory that changes its parent must not become its own ancestor.
    if from != to {
        check_move(tx, cred, &moved, to)?;
        if req.exchange
            && let Some(other) = &replaced
        {
            check_move(tx, cred, other, from)?;
        }
    }

    // 4. Quotas count them where they will be.
    usage::check_move(tx, &mut moved, &from_dir, &to_dir)?;
    if let Some(other) = replaced.as_mut().filter(|_| req.exchange) {
        usage::check_move(tx, other, &to_dir, &from_dir)?;
    }

    // 5. Do it.
    let reply_replaced = match &mut replaced {
        Some(other) if req.exchange => {
            place(tx, other, to, from, &req.name);
            Some(tx.attr(other)?)
        }
        Some(other) => Some(remove(tx, cred, &moved, other, (&to_dir, &req.new_name))?),
        None => None,
    };
    if !req.exchange {
        tx.delete_dentry(from, &req.name);
    }
    place(tx, &mut moved, from, to, &req.new_name);
    if from != to {
        tx.vacated(from, &req.name, &moved);
        if let Some(other) = replaced.as_ref().filter(|_| req.exchange) {
            tx.vacated(to, &req.new_name, other);
        }
    }
    tx.touch_dir(from);
    tx.touch_dir(to);
    tx.expose(&moved);
    let moved = Some(tx.attr(&moved)?);
    Ok(pb::RenameReply {
        moved,
        replaced: reply_replaced,
        ..Default::default()
    })
}

/// Puts an inode that was in `from` at a name in `to`.
fn place(tx: &mut Tx<'_>, inode: &mut InodeRecord, from: InodeId, to: InodeId, name: &[u8]) {
    inode.ctime = tx.now;
    if inode.is_dir() {
        inode.name = Bytes::copy_from_slice(name);
        if from != to {
            inode.parent = to.0;
            tx.add_subdirs(from, -1);
            tx.add_subdirs(to, 1);
        }
    }
    tx.put_inode(inode);
    tx.put_dentry(to, name, inode);
}

/// Takes away what stood at the new name; answers its attributes after.
fn remove(
    tx: &mut Tx<'_>,
    cred: &Cred,
    moved: &InodeRecord,
    other: &mut InodeRecord,
    (dir, name): (&InodeRecord, &[u8]),
) -> Result<pb::Attr> {
    let to = dir.id();
    match (moved.is_dir(), other.is_dir()) {
        (true, false) => {
            let what = format!("{} is not a directory", names::at(to, name));
            Err(Error::new(ErrorCode::NotDirectory, what))
        }
        (false, true) => {
            let what = format!("{} is a directory", names::at(to, name));
            Err(Error::new(ErrorCode::IsDirectory, what))
        }
        (false, false) => {
            if !trash::catch(tx, cred, dir, name, other, false)? {
                tx.drop_link(other);
            }
            tx.attr(other)
        }
        (true, true) => {
            if !tx.is_empty(other.id())? {
                let what = format!("{} is not empty", names::at(to, name));
                return Err(Error::new(ErrorCode::NotEmpty, what));
            }
            let mut attr = tx.attr(other)?;
            attr.nlink = 0;
            attr.ctime = Some(tx.now);
            if !trash::catch(tx, cred, dir, name, other, false)? {
                tx.drop_inode(other);
            }
            tx.add_subdirs(to, -1);
            Ok(attr)
        }
    }
}

/// Whether `inode` may move into `to`. Reads every directory up to the root, so that two moves
/// that together would close a loop conflict.
fn check_move(tx: &mut Tx<'_>, cred: &Cred, inode: &InodeRecord, to: InodeId) -> Result<()> {
    if !inode.is_dir() {
        return Ok(());
    }
    // Its ".." changes.
    access::check(cred, inode, WRITE)?;
    let mut at = to;
    for _ in 0..MAX_DEPTH {
        if at == inode.id() {
            let what = format!("directory {} cannot move into itself", inode.id());
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        if at == InodeId::ROOT {
            return Ok(());
        }
        at = InodeId(tx.dir(at)?.parent);
    }
    let what = format!("directory {to} is more than {MAX_DEPTH} levels deep");
    Err(Error::new(ErrorCode::InvalidArgument, what))
}
