//! Opening what exists.
//!
//! The session enters the table in memory before the transaction commits, and garbage collection
//! first marks an inode condemned (which conflicts with this transaction) and looks at the table
//! afterwards: so at least one of the two sees the other.

use emberfs_proto::ids::{InodeId, SessionId};
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result};

use super::xattr;
use crate::namespace::core::{Step, Who};
use crate::namespace::records::{InodeRecord, SessionRecord};
use crate::namespace::tx::Tx;
use crate::namespace::{access, keys, length, names, usage};
use crate::sessions::Held;

/// What for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) truncate: bool,
}

/// Opens an inode in a transaction that will be committed.
pub(crate) fn open(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::OpenRequest,
    held: &mut Option<Held>,
) -> Result<Step<pb::OpenReply>> {
    let record = tx.live(InodeId(req.inode))?;
    let want = Want {
        read: req.read || !req.write,
        write: req.write,
        truncate: req.truncate,
    };
    open_file(tx, who, record, want, held)
}

/// Opens an inode for reading only: nothing is written, the session is in memory.
pub(crate) fn open_read(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::OpenRequest,
    session: SessionId,
) -> Result<Step<pb::OpenReply>> {
    let inode = InodeId(req.inode);
    let record = tx.live(inode)?;
    let wanted = if req.execute {
        access::EXEC
    } else {
        access::READ
    };
    check(who, &record, wanted)?;
    if tx.trim_intent(inode)?.is_some() {
        return Ok(Step::Blocked(inode));
    }
    let attr = Some(tx.attr(&record)?);
    Ok(Step::Done(pb::OpenReply {
        attr,
        session: session.0,
        created: false,
        ..Default::default()
    }))
}

/// Opens a file whose record was read in this transaction.
pub(super) fn open_file(
    tx: &mut Tx<'_>,
    who: &Who,
    mut file: InodeRecord,
    want: Want,
    held: &mut Option<Held>,
) -> Result<Step<pb::OpenReply>> {
    let mut bits = if want.read { access::READ } else { 0 };
    if want.write || want.truncate {
        bits |= access::WRITE;
        if file.is_dir() {
            let what = format!("inode {} is a directory; it cannot be written", file.id());
            return Err(Error::new(ErrorCode::IsDirectory, what));
        }
    }
    check(who, &file, bits)?;
    if tx.trim_intent(file.id())?.is_some() {
        return Ok(Step::Blocked(file.id()));
    }
    if want.truncate {
        if !who.cred.is_root() {
            file.mode = access::without_set_ids(&who.cred, &file);
        }
        xattr::drop_capability(tx, &mut file)?;
        length::resize(tx, &mut file, 0)?;
        usage::truncated(tx, &mut file, who.client)?;
        tx.put_inode(&file);
    }
    let session = begin_session(tx, who, file.id(), want.write, held)?;
    let attr = Some(tx.attr(&file)?);
    Ok(Step::Done(pb::OpenReply {
        attr,
        session: session.0,
        created: false,
        ..Default::default()
    }))
}

/// Starts a session; a write session is stored as well.
pub(super) fn begin_session(
    tx: &mut Tx<'_>,
    who: &Who,
    inode: InodeId,
    write: bool,
    held: &mut Option<Held>,
) -> Result<SessionId> {
    let session = SessionId(tx.core.next_id()?);
    let sessions = &tx.core.sessions;
    // An earlier attempt's session goes with this assignment.
    *held = Some(sessions.hold(inode, session, who.client, write, who.request)?);
    if write {
        put_session(tx, who, inode, (session, false));
    }
    Ok(session)
}

/// Stores a write session.
pub(super) fn put_session(
    tx: &mut Tx<'_>,
    who: &Who,
    inode: InodeId,
    (session, delegated): (SessionId, bool),
) {
    let record = SessionRecord {
        client: who.client.to_bytes(),
        delegated,
    };
    tx.put(&keys::session(inode, session), &record);
}

/// Whether the caller may open this.
pub(super) fn check(who: &Who, record: &InodeRecord, bits: u32) -> Result<()> {
    let id = record.id();
    if record.condemned {
        return Err(names::stale(id));
    }
    match record.kind() {
        FileKind::File | FileKind::Directory => access::check(&who.cred, record, bits),
        FileKind::Symlink => {
            let what = format!("inode {id} is a symbolic link; open what it points to");
            Err(Error::new(ErrorCode::Loop, what))
        }
        kind => {
            let what = format!("inode {id} is a {kind:?}, which only the local kernel can open");
            Err(Error::new(ErrorCode::Unsupported, what))
        }
    }
}
