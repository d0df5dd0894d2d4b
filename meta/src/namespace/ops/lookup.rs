//! Looking: names, attributes, symbolic links.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use crate::namespace::access::{self, Cred};
use crate::namespace::names;
use crate::namespace::tx::Tx;

pub(crate) fn lookup(tx: &mut Tx<'_>, cred: &Cred, req: &pb::NameRequest) -> Result<pb::AttrReply> {
    names::check(&req.name)?;
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(cred, &dir, access::EXEC)?;
    let dentry = tx.dentry(parent, &req.name)?;
    let dentry = dentry.ok_or_else(|| names::not_found(parent, &req.name))?;
    let attr = Some(tx.attr_of(dentry)?);
    Ok(pb::AttrReply { attr })
}

pub(crate) fn getattr(tx: &mut Tx<'_>, inode: InodeId) -> Result<pb::AttrReply> {
    let record = tx.live(inode)?;
    let attr = Some(tx.attr(&record)?);
    Ok(pb::AttrReply { attr })
}

pub(crate) fn readlink(tx: &mut Tx<'_>, inode: InodeId) -> Result<pb::ReadlinkReply> {
    let record = tx.live(inode)?;
    if record.kind() != pb::FileKind::Symlink {
        let what = format!("inode {inode} is not a symbolic link");
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let target = record.target;
    Ok(pb::ReadlinkReply { target })
}
