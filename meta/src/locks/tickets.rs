//! Late copies of requests: a request that was repeated, or whose caller has gone, may still arrive.
//!
//! Each request about locks has a ticket; a client gives them out in growing order, makes one change of an
//! owner's locks at a time, and repeats a request under its ticket. So a ticket below the newest one of
//! its owner is a late copy, unless it is known to wait. The newest tickets are kept per client in a few numbers
//! that owners share: two owners that share one may refuse each other, which costs the refused client a new
//! ticket and a round trip, and no memory grows with the number of owners.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use emberfs_proto::ids::ClientId;

use super::table::{Owner, Place};

/// Numbers per client that locks: 4 KiB.
const SHARDS: usize = 512;

/// See the module.
#[derive(Default)]
pub(super) struct Tickets {
    newest: HashMap<ClientId, Box<[u64; SHARDS]>>,
    hasher: BuildHasherDefault<DefaultHasher>,
}

impl Tickets {
    /// Notes a ticket; false if a newer one was seen.
    pub(super) fn admit(&mut self, place: Place, owner: Owner, ticket: u64) -> bool {
        let shard = self.hasher.hash_one((place, owner)) as usize % SHARDS;
        let newest = self.newest.entry(owner.client);
        let newest = &mut newest.or_insert_with(|| Box::new([0; SHARDS]))[shard];
        if ticket < *newest {
            return false;
        }
        *newest = ticket;
        true
    }

    /// Whatever the client asked under lower tickets is late.
    pub(super) fn raise(&mut self, client: ClientId, ticket: u64) {
        let newest = self.newest.entry(client);
        for newest in &mut **newest.or_insert_with(|| Box::new([0; SHARDS])) {
            *newest = ticket.max(*newest);
        }
    }

    /// The client has no locks and makes no requests any more.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.newest.remove(&client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberfs_proto::locks::LockSpace;

    #[test]
    fn an_older_ticket_of_one_owner_is_refused_and_the_same_is_not() {
        let mut tickets = Tickets::default();
        let place = Place {
            inode: 7.into(),
            space: LockSpace::Posix,
        };
        let client = ClientId(1);
        let owner = Owner { client, number: 5 };
        assert!(tickets.admit(place, owner, 3));
        assert!(tickets.admit(place, owner, 3), "a repetition");
        assert!(tickets.admit(place, owner, 9));
        assert!(!tickets.admit(place, owner, 8));
        let other = Owner {
            client: ClientId(2),
            number: 5,
        };
        assert!(tickets.admit(place, other, 1), "tickets are per client");
        tickets.raise(client, 20);
        assert!(!tickets.admit(place, owner, 19) && tickets.admit(place, owner, 20));
        assert!(tickets.admit(place, other, 1));
        tickets.forget(client);
        assert!(tickets.admit(place, owner, 1));
    }
}
