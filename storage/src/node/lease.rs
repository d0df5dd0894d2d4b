//! Self-fencing: a node serves only while it holds a lease from the cluster manager.
//!
//! The lease runs from when the node *sent* the heartbeat that the manager answered, on the
//! node's own clock, which also counts while the process or the machine is suspended. The
//! manager counts from when it answered, which is later, so it never declares a node dead that
//! still believes in its lease.
//!
//! A grant counts only once the node has adopted the cluster map that the manager had when it
//! granted: a node that was stopped, declared dead and woken up must not get a fresh lease for
//! an old map.

use std::time::Duration;

use emberfs_proto::ids::MapVersion;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

/// The lease of this process. A new process has none.
pub struct Lease {
    term: Mutex<Term>,
}

/// What is known of the lease, on a clock that the caller reads. Pure.
#[derive(Debug, Default)]
pub(crate) struct Term {
    until: Duration,
    adopted: MapVersion,
    /// Granted, but under a map that has not arrived.
    held_back: Option<(Duration, MapVersion)>,
    /// Given up for good: the node stops.
    resigned: bool,
}

/// Time since boot, suspension included.
pub(super) fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // The boot clock starts at zero and never runs backwards.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

impl Term {
    pub(crate) fn granted(&mut self, sent: Duration, lease: Duration, map: MapVersion) {
        if map <= self.adopted {
            self.until = self.until.max(sent + lease);
        } else {
            self.held_back = Some((sent + lease, map));
        }
    }

    pub(crate) fn adopted(&mut self, map: MapVersion) {
        self.adopted = self.adopted.max(map);
        if let Some((until, needed)) = self.held_back
            && needed <= self.adopted
        {
            self.until = self.until.max(until);
            self.held_back = None;
        }
    }

    pub(crate) fn resign(&mut self) {
        self.resigned = true;
    }

    pub(crate) fn left(&self, now: Duration) -> Duration {
        if self.resigned {
            Duration::ZERO
        } else {
            self.until.saturating_sub(now)
        }
    }
}

impl Lease {
    pub(super) fn new() -> Self {
        Self {
            term: Mutex::default(),
        }
    }

    /// The manager answered a heartbeat sent at `sent` (by [`now`]).
    pub fn granted(&self, sent: Duration, lease: Duration, map: MapVersion) {
        self.term.lock().granted(sent, lease, map);
    }

    /// The node has adopted this map.
    pub fn adopted(&self, map: MapVersion) {
        self.term.lock().adopted(map);
    }

    /// Gives the lease up for good, before the manager hears that this node leaves: from then on the
    /// others may go on without it.
    pub fn resign(&self) {
        self.term.lock().resign();
    }

    /// Whether it has been given up: the node stops and must not join again.
    pub(super) fn is_resigned(&self) -> bool {
        self.term.lock().resigned
    }

    /// Whether the node may serve now.
    pub fn is_valid(&self) -> bool {
        !self.left().is_zero()
    }

    /// Time left, zero when it has run out.
    pub fn left(&self) -> Duration {
        self.term.lock().left(now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(5);

    #[test]
    fn a_new_process_has_no_lease() {
        assert!(!Lease::new().is_valid());
    }

    #[test]
    fn a_lease_runs_from_the_sending_of_the_heartbeat() {
        let lease = Lease::new();
        lease.adopted(MapVersion(3));
        lease.granted(now().saturating_sub(LEASE), LEASE, MapVersion(3));
        assert!(
            !lease.is_valid(),
            "granted for a heartbeat as old as the lease"
        );
        lease.granted(now(), LEASE, MapVersion(3));
        assert!(lease.is_valid());
    }

    #[test]
    fn a_grant_for_a_newer_map_waits_for_that_map() {
        let lease = Lease::new();
        lease.adopted(MapVersion(3));
        lease.granted(now(), LEASE, MapVersion(5));
        assert!(!lease.is_valid());
        lease.adopted(MapVersion(4));
        assert!(!lease.is_valid());
        lease.adopted(MapVersion(5));
        assert!(lease.is_valid());
    }

    #[test]
    fn a_node_that_leaves_serves_nothing_from_before_the_manager_hears_of_it() {
        let lease = Lease::new();
        lease.adopted(MapVersion(3));
        lease.granted(now(), LEASE, MapVersion(3));
        assert!(!lease.is_resigned());
        lease.resign();
        assert!(!lease.is_valid() && lease.is_resigned());
        lease.granted(now(), LEASE, MapVersion(3));
        assert!(!lease.is_valid(), "a late answer must not bring it back");
    }
}
