//! For status and fsck: counts and listings.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Result, pb};

use crate::namespace::keys;
use crate::namespace::records::{InodeRecord, decode};
use crate::namespace::tx::Tx;

/// Most inodes of a page.
const MAX_PAGE: usize = 4096;
/// Inodes read per transaction, directories and others included.
const READ_PAGE: usize = 4096;
/// What `statfs` says is free: numbers are 64 bits, only the store's disk limits them.
const INODES_FREE: u64 = 1 << 40;

/// How many inodes there are, and how many await deletion.
pub(crate) fn counts(tx: &mut Tx<'_>) -> Result<(u64, u64)> {
    let inodes = tx.number(keys::INODES)?.max(0) as u64;
    let garbage = tx.number(keys::GARBAGE)?.max(0) as u64;
    Ok((inodes, garbage))
}

/// Space for file data: raw space divided by the number of copies.
pub(crate) fn statfs(inodes: u64, space: pb::Space, replicas: u32) -> pb::StatFsReply {
    let copies = u64::from(replicas.max(1));
    pb::StatFsReply {
        capacity: space.capacity / copies,
        free: space.free / copies,
        inodes: inodes + INODES_FREE,
        inodes_free: INODES_FREE,
    }
}

/// Adds files after `after` to `page`; answers where to go on, or `None` at the end.
pub(crate) fn list_files(
    tx: &mut Tx<'_>,
    after: InodeId,
    limit: u32,
    page: &mut Vec<pb::Attr>,
) -> Result<Option<InodeId>> {
    let limit = match limit as usize {
        0 => MAX_PAGE,
        limit => limit.min(MAX_PAGE),
    };
    let found = tx.scan(&keys::inodes_after(after), READ_PAGE)?;
    let mut last = after;
    for (_, value) in &found {
        let record: InodeRecord = decode(value)?;
        last = record.id();
        if record.is_file() {
            page.push(tx.attr(&record)?);
            if page.len() == limit {
                return Ok(Some(last));
            }
        }
    }
    Ok((found.len() == READ_PAGE).then_some(last))
}
