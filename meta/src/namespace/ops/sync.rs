//! Reporting how far a file was written, and closing it.
//!
//! A length reported under the current truncate epoch is believed and only ever raises the size.
//! One from before a truncation says nothing about what is left, so the end of the data is asked from
//! the chunks instead. So it is when a process takes over what another one had open for writing, which may have
//! stored bytes and died before its report.

use std::collections::BTreeSet;

use emberfs_proto::ids::{InodeId, SessionId, TruncateEpoch};
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::xattr;
use crate::namespace::core::Who;
use crate::namespace::records::InodeRecord;
use crate::namespace::tx::Tx;
use crate::namespace::{access, keys, length, time, usage};

/// What an attempt came to.
#[derive(Debug)]
pub(crate) enum Report {
    /// Committed.
    Done(pb::Attr),
    /// Nothing was done: a truncation must be completed first.
    Blocked(InodeId),
    /// Nothing was done: the end of the chunks under this epoch is needed.
    Settle(Layout, TruncateEpoch),
}

/// Where the chunks of a file ended, and under which epoch that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) epoch: TruncateEpoch,
    pub(crate) end: u64,
}

/// Applies a report; `close` also ends the session's record.
pub(crate) fn sync(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::SyncRequest,
    close: bool,
    settled: Option<Settled>,
) -> Result<Report> {
    // The bytes are there already.
    tx.ignore_limits();
    let id = InodeId(req.inode);
    let session = SessionId(req.session);
    let mut inode = tx.live(id)?;
    let known = tx.core.sessions.check(who.client, id, session);
    if let Some(end) = req.end.or(req.settle.then_some(0)) {
        if tx.trim_intent(id)?.is_some() {
            return Ok(Report::Blocked(id));
        }
        // A repeated close finds its work done.
        let done = close
            && !req.settle
            && known.is_none()
            && length::covers(&inode, end, req.truncate_epoch);
        if !done {
            if known != Some(true) {
                check_without_session(who, &inode, session)?;
            }
            let before = inode.clone();
            let told = length::Told {
                end,
                epoch: req.truncate_epoch,
                settle: req.settle,
            };
            if !length::report(&mut inode, told, settled)? {
                return Ok(Report::Settle(inode.file_layout()?, inode.epoch()));
            }
            // There is no hole in nothing.
            inode.sparse |= req.sparse && inode.size > 0;
            let grown = inode.size > before.size;
            let default = if grown { tx.now } else { before.mtime };
            inode.mtime = time::asked(req.mtime, false, tx.now)?.unwrap_or(default);
            if !who.cred.is_root() {
                inode.mode = access::without_set_ids(&who.cred, &inode);
            }
            // A report that tells nothing new comes from writes before, not from one since.
            if inode != before {
                xattr::drop_capability(tx, &mut inode)?;
                inode.ctime = changed_at(tx, who, &before, &inode);
                tx.put_inode(&inode);
            }
        }
    }
    if close && known == Some(true) {
        tx.delete(&keys::session(id, session));
        if usage::ended(tx, &mut inode)? {
            tx.put_marks(&inode);
        }
    }
    Ok(Report::Done(tx.attr(&inode)?))
}

/// When the file changed: when it was written, as the writer's programs have been told already. Whoever else has looked at it
/// must see that it changed, so then it is later than before in any case.
fn changed_at(tx: &Tx<'_>, who: &Who, before: &InodeRecord, inode: &InodeRecord) -> pb::Time {
    let written = time::later(inode.mtime, before.ctime);
    let unseen = || {
        let delegations = &tx.core.sessions.delegations;
        delegations.is_held_by(inode.id(), who.client)
    };
    // Not in the future, whatever the client's clock says.
    let past = time::later(written, tx.now) == tx.now;
    if past && (written != before.ctime || unseen()) {
        written
    } else {
        tx.now
    }
}

/// Ends the records of those sessions that write.
pub(crate) fn close_many(tx: &mut Tx<'_>, who: &Who, sessions: &[pb::SessionRef]) -> Result<()> {
    let mut written = BTreeSet::new();
    for one in sessions {
        let (inode, session) = (InodeId(one.inode), SessionId(one.session));
        if tx.core.sessions.check(who.client, inode, session) == Some(true) {
            tx.delete(&keys::session(inode, session));
            written.insert(inode);
        }
    }
    usage::give_back(tx, written)
}

/// The session is gone (the client was silent for too long): who may write the file now may also say
/// how far it was written.
fn check_without_session(who: &Who, inode: &InodeRecord, session: SessionId) -> Result<()> {
    if inode.is_file() && !inode.condemned && access::allows(&who.cred, inode, access::WRITE) {
        return Ok(());
    }
    let what = format!(
        "client {} has no write session {session} on inode {}; open the file again",
        who.client,
        inode.id()
    );
    Err(Error::new(ErrorCode::NoSession, what))
}
