//! Names of non-directories: hard links, symbolic links, unlink.

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result};

use super::{lookup, unnamed};
use crate::namespace::access::{self, Cred};
use crate::namespace::tx::Tx;
use crate::namespace::{names, trash, usage};

/// Most names of one inode, as on ext4.
const MAX_LINKS: u32 = 65_000;

pub(crate) fn link(tx: &mut Tx<'_>, cred: &Cred, req: &pb::LinkRequest) -> Result<pb::AttrReply> {
    names::check(&req.name)?;
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(cred, &dir, access::EXEC)?;
    let mut inode = tx.live(InodeId(req.inode))?;
    if tx.dentry(parent, &req.name)?.is_some() {
        return Err(names::exists(parent, &req.name));
    }
    access::check(cred, &dir, access::WRITE)?;
    if inode.is_dir() {
        let what = format!(
            "inode {} is a directory, which has one name only",
            inode.id()
        );
        return Err(Error::new(ErrorCode::NotPermitted, what));
    }
    usage::check_link(tx, &mut inode, &dir)?;
    if inode.nlink == 0 {
        unnamed::keep(tx, &mut inode)?;
    }
    if inode.nlink >= MAX_LINKS {
        let what = format!("inode {} has {MAX_LINKS} names already", inode.id());
        return Err(Error::new(ErrorCode::TooManyLinks, what));
    }

    inode.nlink += 1;
    inode.ctime = tx.now;
    tx.put_inode(&inode);
    tx.put_dentry(parent, &req.name, &inode);
    tx.touch_dir(parent);
    tx.expose(&inode);
    let attr = Some(tx.attr(&inode)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
}

pub(crate) fn symlink(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::SymlinkRequest,
) -> Result<pb::AttrReply> {
    names::check(&req.name)?;
    check_target(&req.target)?;
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(cred, &dir, access::EXEC)?;
    if tx.dentry(parent, &req.name)?.is_some() {
        return Err(names::exists(parent, &req.name));
    }
    access::check(cred, &dir, access::WRITE)?;

    let (mode, gid) = access::inherit(cred, &dir, false, 0o777);
    let mut inode = tx.fresh(FileKind::Symlink, mode, cred.uid, gid)?;
    inode.size = req.target.len() as u64;
    inode.target = req.target.clone();
    usage::inherit(tx, &dir, &mut inode);
    tx.add_inode(&inode);
    tx.put_dentry(parent, &req.name, &inode);
    tx.touch_dir(parent);
    let attr = Some(tx.attr(&inode)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
}

fn check_target(target: &[u8]) -> Result<()> {
    if target.len() > names::MAX_TARGET {
        let what = format!(
            "a symbolic link's target of {} bytes exceeds {}",
            target.len(),
            names::MAX_TARGET
        );
        return Err(Error::new(ErrorCode::NameTooLong, what));
    }
    if target.is_empty() {
        let what = "a symbolic link needs a target";
        return Err(Error::new(ErrorCode::NotFound, what));
    }
    if target.contains(&0) {
        let what = "a symbolic link's target contains a NUL byte";
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    Ok(())
}

pub(crate) fn unlink(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::NameRequest,
) -> Result<pb::UnlinkReply> {
    let parent = InodeId(req.parent);
    let (dir, dentry) = lookup::entry(tx, cred, req)?;
    let mut inode = tx.live(dentry.id())?;
    access::check_remove(cred, &dir, &inode)?;
    if inode.is_dir() {
        let what = format!("{} is a directory", names::at(parent, &req.name));
        return Err(Error::new(ErrorCode::IsDirectory, what));
    }

    tx.delete_dentry(parent, &req.name);
    if !trash::catch(tx, cred, &dir, &req.name, &mut inode, false)? {
        tx.drop_link(&mut inode);
    }
    tx.touch_dir(parent);
    let attr = Some(tx.attr(&inode)?);
    Ok(pb::UnlinkReply {
        attr,
        ..Default::default()
    })
}
