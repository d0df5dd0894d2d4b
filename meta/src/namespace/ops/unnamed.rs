//! Files without a name (O_TMPFILE).
//!
//! Such a file is garbage from the transaction that creates it, and its session is what keeps it: so
//! whatever dies, and when, it goes like a file that was unlinked while it was open. A link takes it out
//! of the garbage again; its inode record says where it is there. Condemning reads and writes the same
//! record, so of a link and the collection only one finds the file (see [`crate::gc`]).

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::{create, open};
use crate::namespace::core::{Step, Who};
use crate::namespace::records::InodeRecord;
use crate::namespace::tx::Tx;
use crate::namespace::{access, keys, time};
use crate::sessions::Held;

/// Creates a file without a name, open for writing, where the caller might create one with a name.
pub(crate) fn create(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::CreateUnnamedRequest,
    held: &mut Option<Held>,
) -> Result<Step<pb::OpenReply>> {
    let dir = tx.dir(InodeId(req.parent))?;
    access::check(&who.cred, &dir, access::EXEC | access::WRITE)?;

    let since = time::nanos(tx.now);
    let mut file = create::fresh_file(tx, &who.cred, &dir, (req.mode, req.umask))?;
    file.nlink = 0;
    file.unnamed_since = if req.exclusive { 0 } else { since };
    tx.add_inode(&file);
    tx.put_empty(&keys::garbage(since, file.id()));
    tx.add(keys::GARBAGE, 1);
    let session = open::begin_session(tx, who, file.id(), true, held)?;
    let attr = Some(tx.attr(&file)?);
    Ok(Step::Done(pb::OpenReply {
        attr,
        session: session.0,
        created: true,
        ..Default::default()
    }))
}

/// Takes a file without a name out of the garbage, for the name that it is about to get; the caller stores the
/// record. [`ErrorCode::NotFound`] for one that had a name, may have none, or is being deleted.
pub(super) fn keep(tx: &mut Tx<'_>, file: &mut InodeRecord) -> Result<()> {
    let id = file.id();
    // Without a session its length may not be settled, and nobody is there to link it but by its number.
    if file.unnamed_since == 0 || file.condemned || !tx.core.sessions.is_open(id) {
        let what = format!("inode {id} was unlinked and is about to be deleted");
        return Err(Error::new(ErrorCode::NotFound, what));
    }
    tx.delete(&keys::garbage(file.unnamed_since, id));
    tx.add(keys::GARBAGE, -1);
    file.unnamed_since = 0;
    Ok(())
}
