//! What is in the trash.

use bytes::Bytes;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, TrashPlace};
use emberfs_proto::{Error, ErrorCode, Result};

use super::check_root;
use super::paths::{Place, Walk};
use crate::namespace::access::Cred;
use crate::namespace::keys::{self, TrashSpot};
use crate::namespace::records::{TrashEntry, decode};
use crate::namespace::tx::Tx;

/// Most entries that one request looks at.
const PAGE: usize = 1000;

pub(super) fn list(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::ListTrashRequest,
) -> Result<pb::ListTrashReply> {
    check_root(cred)?;
    let limit = match req.limit as usize {
        0 => PAGE,
        limit => limit.min(PAGE),
    };
    let (parent, under) = (InodeId(req.parent), InodeId(req.under));
    let mut span = match (req.parent, req.name.is_empty()) {
        (0, _) => keys::trash(),
        (_, true) => keys::trash_of(parent),
        (_, false) => keys::trash_named(parent, &req.name),
    };
    if !req.after.is_empty() {
        if TrashSpot::parse(&req.after).is_none() {
            let what = "a page of the trash begins after what the page before answered";
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        span = span.after(&req.after);
    }
    let mut walk = Walk::below(under);
    let asked = if req.under == 0 {
        None
    } else {
        Some(walk.place(tx, under)?)
    };
    let found = tx.scan(&span, limit)?;
    let mut entries = Vec::new();
    for (key, value) in &found {
        let Some(spot) = TrashSpot::parse(key) else {
            continue;
        };
        let entry: TrashEntry = decode(value)?;
        let place = walk.place(tx, spot.parent)?;
        let wanted = req.parent != 0
            || ((req.nested || place.standing != TrashPlace::InTrash)
                && asked
                    .as_ref()
                    .is_none_or(|asked| is_below(asked, &place, &entry)));
        if wanted {
            entries.push(describe(tx, &spot, &entry, &place)?);
        }
    }
    Ok(pb::ListTrashReply {
        entries,
        next: found.last().map_or_else(Bytes::new, |(key, _)| key.clone()),
        end: found.len() < limit,
    })
}

/// Of a directory that is gone only the words are left.
fn is_below(asked: &Place, place: &Place, entry: &TrashEntry) -> bool {
    match place.standing {
        TrashPlace::Gone => entry
            .path
            .strip_prefix(&asked.path[..])
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")),
        _ => place.below,
    }
}

fn describe(
    tx: &mut Tx<'_>,
    spot: &TrashSpot<'_>,
    entry: &TrashEntry,
    place: &Place,
) -> Result<pb::TrashEntry> {
    let path = match place.standing {
        TrashPlace::Gone => {
            let dir = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
            [dir, b"/", spot.name].concat().into()
        }
        _ => place.child(spot.name),
    };
    let size = tx.inode(entry.id())?.map_or(0, |inode| inode.size);
    Ok(pb::TrashEntry {
        spot: Some(pb::TrashSpot {
            parent: spot.parent.0,
            name: Bytes::copy_from_slice(spot.name),
            removed: spot.removed,
        }),
        inode: entry.inode,
        kind: entry.kind,
        tree: entry.tree,
        size,
        uid: entry.uid,
        expires: entry.expires,
        path,
        place: place.standing.into(),
    })
}
