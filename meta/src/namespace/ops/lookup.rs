//! Looking: names, attributes, symbolic links.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::open;
use crate::namespace::access::{self, Cred};
use crate::namespace::core::Who;
use crate::namespace::names;
use crate::namespace::records::{Dentry, InodeRecord};
use crate::namespace::tx::Tx;

/// Most names of one [`lookup_many`].
const MAX_NAMES: usize = 4096;

/// The entry that a request names, in a directory that the caller may search.
pub(super) fn entry(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::NameRequest,
) -> Result<(InodeRecord, Dentry)> {
    names::check(&req.name)?;
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(cred, &dir, access::EXEC)?;
    let dentry = tx.dentry(parent, &req.name)?;
    let dentry = dentry.ok_or_else(|| names::not_found(parent, &req.name))?;
    Ok((dir, dentry))
}

pub(crate) fn lookup(tx: &mut Tx<'_>, cred: &Cred, req: &pb::NameRequest) -> Result<pb::AttrReply> {
    let (_, dentry) = entry(tx, cred, req)?;
    let attr = Some(tx.attr_of(dentry)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
}

/// Many names of a directory, each as looked up and opened for reading. A file that is being truncated is
/// [`ErrorCode::Busy`]: an open waits for it.
pub(crate) fn lookup_many(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::LookupManyRequest,
) -> Result<pb::LookupManyReply> {
    if req.names.len() > MAX_NAMES {
        let what = format!(
            "{} names in one lookup; at most {MAX_NAMES}",
            req.names.len()
        );
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(&who.cred, &dir, access::EXEC)?;
    let results = req.names.iter().map(|name| {
        readable(tx, who, parent, name).map_or_else(
            |error| pb::LookupResult {
                attr: None,
                status: error.code as u32,
                message: error.message,
            },
            |attr| pb::LookupResult {
                attr: Some(attr),
                ..pb::LookupResult::default()
            },
        )
    });
    let results = results.collect();
    Ok(pb::LookupManyReply { results })
}

fn readable(tx: &mut Tx<'_>, who: &Who, parent: InodeId, name: &[u8]) -> Result<pb::Attr> {
    names::check(name)?;
    let dentry = tx.dentry(parent, name)?;
    let dentry = dentry.ok_or_else(|| names::not_found(parent, name))?;
    let record = tx.live(dentry.id())?;
    open::check(who, &record, access::READ)?;
    if tx.trim_intent(record.id())?.is_some() {
        let what = format!("inode {} is being truncated", record.id());
        return Err(Error::new(ErrorCode::Busy, what));
    }
    tx.attr(&record)
}

pub(crate) fn getattr(tx: &mut Tx<'_>, inode: InodeId) -> Result<pb::AttrReply> {
    let record = tx.live(inode)?;
    let attr = Some(tx.attr(&record)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
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
