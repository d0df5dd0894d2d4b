//! Whether a request would wait for ever, because the owners in its way wait for the one who asks.

use std::collections::HashSet;

use emberfs_proto::locks::LockSpace;

use super::table::{Owner, Table, Wish};

/// Owners looked at in one search. A larger circle is not found: its owners wait until one gives up.
const MOST_OWNERS: usize = 1024;

/// Follows "waits for a lock that … holds" from `wish`, over all files and clients, back to its owner.
///
/// An owner is taken as a whole, as Linux does: one that waits is not expected to release anything, although
/// another thread of it might.
pub(super) fn closes_circle(table: &Table, wish: &Wish) -> bool {
    let mut seen = HashSet::new();
    let mut ahead: Vec<Owner> = table.blockers(wish).collect();
    while let Some(owner) = ahead.pop() {
        if owner == wish.owner {
            return true;
        }
        if !seen.insert(owner) || seen.len() > MOST_OWNERS {
            continue;
        }
        let waits = table.waits_of(owner);
        for next in waits.filter(|next| next.place.space == LockSpace::Posix) {
            ahead.extend(table.blockers(&next));
        }
    }
    false
}
