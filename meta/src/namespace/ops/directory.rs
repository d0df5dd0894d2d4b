//! Making and removing directories.

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result};

use super::lookup;
use crate::namespace::access::{self, Cred};
use crate::namespace::tx::Tx;
use crate::namespace::{acl, names, trash, usage};

pub(crate) fn mkdir(tx: &mut Tx<'_>, cred: &Cred, req: &pb::MkdirRequest) -> Result<pb::AttrReply> {
    names::check(&req.name)?;
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(cred, &dir, access::EXEC)?;
    if tx.dentry(parent, &req.name)?.is_some() {
        return Err(names::exists(parent, &req.name));
    }
    access::check(cred, &dir, access::WRITE)?;

    let (mode, gid) = access::inherit(cred, &dir, true, req.mode);
    let mut child = tx.fresh(FileKind::Directory, mode, cred.uid, gid)?;
    acl::inherit(&dir, &mut child, req.umask)?;
    usage::inherit(tx, &dir, &mut child);
    child.layout = dir.layout;
    child.parent = req.parent;
    child.name = req.name.clone();
    tx.add_inode(&child);
    tx.put_dentry(parent, &req.name, &child);
    tx.add_subdirs(parent, 1);
    tx.touch_dir(parent);
    // Its maker may believe that it stays empty until told otherwise.
    tx.note_names(child.id());
    let attr = Some(tx.attr(&child)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
}

pub(crate) fn rmdir(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::NameRequest,
) -> Result<pb::UnlinkReply> {
    let parent = InodeId(req.parent);
    let (dir, dentry) = lookup::entry(tx, cred, req)?;
    let mut child = tx.live(dentry.id())?;
    access::check_remove(cred, &dir, &child)?;
    if !child.is_dir() {
        let what = format!("{} is not a directory", names::at(parent, &req.name));
        return Err(Error::new(ErrorCode::NotDirectory, what));
    }
    if !tx.is_empty(child.id())? {
        let what = format!("{} is not empty", names::at(parent, &req.name));
        return Err(Error::new(ErrorCode::NotEmpty, what));
    }

    let mut attr = tx.attr(&child)?;
    attr.nlink = 0;
    attr.ctime = Some(tx.now);
    tx.delete_dentry(parent, &req.name);
    if !trash::catch(tx, cred, &dir, &req.name, &mut child, false)? {
        tx.drop_inode(&child);
    }
    tx.add_subdirs(parent, -1);
    tx.touch_dir(parent);
    Ok(pb::UnlinkReply {
        attr: Some(attr),
        ..Default::default()
    })
}
