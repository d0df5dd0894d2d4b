//! Which clients may hold locks, and which may reclaim them after a restart.
//!
//! A client holds locks under a *tenure*: a number that is drawn for its first lock, stored in its record, and
//! kept while the client attaches again. It ends in the store *before* the locks of a silent client are given to
//! others ([`crate::namespace`] does that). So whoever comes after a restart with the tenure of its
//! record has lost nothing: no lock of it can have been given to anybody. Whoever comes with another has lost all, even
//! if it was cut off, expired and came back just when the server restarted.
//!
//! **Grace.** After a start the clients whose records have a tenure are *awaited*. Until each of them has reclaimed
//! what it held, or has lost it because one lease has passed, nobody gets a new lock. Clients that never lock have no
//! tenure and are not waited for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use emberfs_proto::ids::ClientId;

/// See the module.
pub(super) struct Tenures {
    lease: Duration,
    started: Instant,
    current: HashMap<ClientId, u64>,
    awaited: HashMap<ClientId, u64>,
    /// Ended not long ago: an attach that read the record before that must not bring it back.
    ended: HashMap<ClientId, (u64, Instant)>,
}

impl Tenures {
    pub(super) fn new(lease: Duration, now: Instant) -> Self {
        Self {
            lease,
            started: now,
            current: HashMap::new(),
            awaited: HashMap::new(),
            ended: HashMap::new(),
        }
    }

    /// A tenure found in the store at the start.
    pub(super) fn restore(&mut self, client: ClientId, tenure: u64) {
        self.awaited.insert(client, tenure);
    }

    /// The client has attached, or locks for the first time, and its record says this.
    pub(super) fn begin(&mut self, client: ClientId, tenure: u64) {
        let ended = self.ended.get(&client);
        if ended.is_none_or(|(ended, _)| *ended != tenure) {
            self.current.insert(client, tenure);
        }
    }

    /// Whether the client may lock under this tenure.
    pub(super) fn holds(&self, client: ClientId, tenure: u64) -> bool {
        tenure != 0 && self.current.get(&client) == Some(&tenure)
    }

    /// Under which the client holds its locks now, if it does.
    pub(super) fn of(&self, client: ClientId) -> Option<u64> {
        self.current.get(&client).copied()
    }

    /// Whether the client may still reclaim.
    pub(super) fn reclaims(&self, client: ClientId) -> bool {
        self.awaited.contains_key(&client)
    }

    /// Whether anybody may.
    pub(super) fn grace(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// The client has reclaimed all that it held.
    pub(super) fn reclaimed(&mut self, client: ClientId) {
        self.awaited.remove(&client);
    }

    /// Clients whose tenure has to end: they are gone, or have not reclaimed in time.
    pub(super) fn overdue(
        &self,
        now: Instant,
        attached: impl Fn(ClientId) -> bool,
    ) -> Vec<ClientId> {
        let gone = self.current.keys().filter(|client| !attached(**client));
        let over = now.saturating_duration_since(self.started) > self.lease;
        let late = self.awaited.keys().filter(|_| over);
        let mut clients: Vec<_> = gone.chain(late).copied().collect();
        clients.sort_unstable();
        clients.dedup();
        clients
    }

    /// The tenure has ended in the store.
    pub(super) fn end(&mut self, client: ClientId, now: Instant) {
        let current = self.current.remove(&client);
        let awaited = self.awaited.remove(&client);
        if let Some(tenure) = current.or(awaited) {
            self.ended.insert(client, (tenure, now));
        }
        // No request that is being carried out is older than this.
        let lease = self.lease;
        self.ended
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < lease);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    #[test]
    fn grace_lasts_until_everybody_has_reclaimed_or_is_late() {
        let start = Instant::now();
        let mut tenures = Tenures::new(LEASE, start);
        assert!(!tenures.grace(), "nobody held anything");
        tenures.restore(A, 5);
        tenures.restore(B, 6);
        tenures.begin(A, 5);
        assert!(tenures.grace() && tenures.holds(A, 5) && tenures.reclaims(A));
        tenures.reclaimed(A);
        assert!(tenures.grace() && !tenures.reclaims(A));
        assert!(tenures.overdue(start + LEASE, |_| true).is_empty());
        let late = start + LEASE * 2;
        assert_eq!(tenures.overdue(late, |_| true), [B]);
        tenures.end(B, late);
        assert!(!tenures.grace());
        tenures.begin(B, 6);
        assert!(!tenures.holds(B, 6), "an attach that came too late");
        tenures.begin(B, 7);
        assert!(tenures.holds(B, 7));
    }

    #[test]
    fn a_client_that_is_not_attached_any_more_loses_its_tenure_at_once() {
        let start = Instant::now();
        let mut tenures = Tenures::new(LEASE, start);
        tenures.begin(A, 5);
        tenures.begin(B, 6);
        assert_eq!(tenures.overdue(start, |client| client != A), [A]);
        tenures.end(A, start);
        assert!(!tenures.holds(A, 5) && tenures.holds(B, 6));
        assert!(!tenures.holds(A, 0), "no tenure is no tenure");
    }
}
