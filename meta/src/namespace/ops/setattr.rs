//! Changing attributes: mode, owner, times, size.

use emberfs_proto::ids::{InodeId, SessionId};
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::xattr;
use crate::namespace::access::{self, Cred, SETGID, SETUID};
use crate::namespace::core::{Step, Who};
use crate::namespace::records::{DirTimes, InodeRecord};
use crate::namespace::tx::Tx;
use crate::namespace::{keys, length, time, usage};

pub(crate) fn setattr(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::SetAttrRequest,
) -> Result<Step<pb::AttrReply>> {
    let cred = &who.cred;
    let mut inode = tx.live(InodeId(req.inode))?;
    let before = inode.clone();
    if inode.is_file() && tx.trim_intent(inode.id())?.is_some() {
        return Ok(Step::Blocked(inode.id()));
    }
    change_owner(cred, &mut inode, req.uid, req.gid)?;
    let owner_changes = req.uid.is_some() || req.gid.is_some();
    if (owner_changes && !inode.is_dir()) || req.size.is_some() {
        xattr::drop_capability(tx, &mut inode)?;
    }
    if let Some(mode) = req.mode {
        let session = SessionId(req.session);
        let writes = tx.core.sessions.check(who.client, inode.id(), session) == Some(true);
        change_mode(cred, &mut inode, &before, mode, writes)?;
    }
    let mtime = change_times(tx, cred, &mut inode, &before, req)?;
    if let Some(size) = req.size {
        change_size(tx, who, &mut inode, &before, size, SessionId(req.session))?;
    }
    // Asked for together with a size, a time is meant.
    match mtime {
        Some(mtime) if inode.is_dir() => {
            let ctime = tx.now;
            tx.put(&keys::dir_times(inode.id()), &DirTimes { mtime, ctime });
        }
        Some(mtime) => inode.mtime = mtime,
        None => {}
    }
    let times = [
        req.atime.is_some(),
        req.mtime.is_some(),
        req.atime_now,
        req.mtime_now,
    ];
    let rest = [
        req.uid.is_some(),
        req.gid.is_some(),
        req.mode.is_some(),
        req.size.is_some(),
    ];
    if !times.contains(&true) && !rest.contains(&true) {
        renew_owner(cred, &mut inode)?;
    }
    inode.ctime = tx.now;
    tx.put_inode(&inode);
    let attr = Some(tx.attr(&inode)?);
    Ok(Step::Done(pb::AttrReply {
        attr,
        ..Default::default()
    }))
}

fn change_owner(
    cred: &Cred,
    inode: &mut InodeRecord,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<()> {
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    let new_uid = uid.unwrap_or(inode.uid);
    let new_gid = gid.unwrap_or(inode.gid);
    access::check_owner(cred, inode)?;
    let gives_away = new_uid != inode.uid;
    let foreign_group = new_gid != inode.gid && !cred.in_group(new_gid);
    if !cred.is_root() && (gives_away || foreign_group) {
        let what = format!(
            "uid {} may not give inode {} to {new_uid}:{new_gid}; only root may",
            cred.uid,
            inode.id()
        );
        return Err(Error::new(ErrorCode::NotPermitted, what));
    }
    if !inode.is_dir() {
        inode.mode = access::without_set_ids(cred, inode);
    }
    inode.uid = new_uid;
    inode.gid = new_gid;
    Ok(())
}

/// chown(2) with neither owner nor group: kernels ask for it by a change of nothing. Everybody may, as long as there are no
/// set-id bits to lose.
fn renew_owner(cred: &Cred, inode: &mut InodeRecord) -> Result<()> {
    let mode = access::without_set_ids(cred, inode);
    if mode != inode.mode && !inode.is_dir() {
        access::check_owner(cred, inode)?;
        inode.mode = mode;
    }
    Ok(())
}

fn change_mode(
    cred: &Cred,
    inode: &mut InodeRecord,
    before: &InodeRecord,
    mode: u32,
    writes: bool,
) -> Result<()> {
    let mut mode = mode & access::MODE_BITS;
    // Whoever may write a file, or has it open for that, takes its set-id bits away by writing; kernels ask for it this way.
    let lost = before.mode & !mode;
    let only_set_ids = mode & !before.mode == 0 && lost & !(SETUID | SETGID) == 0;
    let may_write = writes || access::allows(cred, before, access::WRITE);
    if !(only_set_ids && may_write) {
        access::check_owner(cred, before)?;
    }
    if !cred.is_root() && !cred.in_group(inode.gid) {
        mode &= !SETGID;
    }
    inode.mode = mode;
    Ok(())
}

/// Sets the access time; answers the modification time to set.
fn change_times(
    tx: &Tx<'_>,
    cred: &Cred,
    inode: &mut InodeRecord,
    before: &InodeRecord,
    req: &pb::SetAttrRequest,
) -> Result<Option<pb::Time>> {
    let atime = time::asked(req.atime, req.atime_now, tx.now)?;
    let mtime = time::asked(req.mtime, req.mtime_now, tx.now)?;
    let explicit =
        (req.atime.is_some() && !req.atime_now) || (req.mtime.is_some() && !req.mtime_now);
    let touched = atime.is_some() || mtime.is_some();
    // A size change brings its own times and its own permission check.
    if explicit {
        access::check_owner(cred, before)?;
    } else if touched && req.size.is_none() && !cred.owns(before) {
        access::check(cred, before, access::WRITE)?;
    }
    if let Some(atime) = atime {
        inode.atime = atime;
    }
    Ok(mtime)
}

fn change_size(
    tx: &mut Tx<'_>,
    who: &Who,
    inode: &mut InodeRecord,
    before: &InodeRecord,
    size: u64,
    session: SessionId,
) -> Result<()> {
    if inode.is_dir() {
        let what = format!("inode {} is a directory; it has no size to set", inode.id());
        return Err(Error::new(ErrorCode::IsDirectory, what));
    }
    if !inode.is_file() {
        let what = format!(
            "inode {} is no regular file; it has no size to set",
            inode.id()
        );
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let writes = tx.core.sessions.check(who.client, inode.id(), session) == Some(true);
    if !writes {
        access::check(&who.cred, before, access::WRITE)?;
    }
    if !who.cred.is_root() {
        inode.mode = access::without_set_ids(&who.cred, inode);
    }
    length::resize(tx, inode, size)?;
    usage::truncated(tx, inode, who.client)
}
