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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// On the boot clock.
    until: Duration,
    adopted: MapVersion,
    /// Granted, but under a map that has not arrived.
    held_back: Option<(Duration, MapVersion)>,
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

impl Lease {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
        }
    }

    /// The manager answered a heartbeat sent at `sent` (by [`now`]).
    pub fn granted(&self, sent: Duration, lease: Duration, map: MapVersion) {
        let mut state = self.state.lock();
        if map <= state.adopted {
            state.until = state.until.max(sent + lease);
        } else {
            state.held_back = Some((sent + lease, map));
        }
    }

    /// The node has adopted this map.
    pub fn adopted(&self, map: MapVersion) {
        let mut state = self.state.lock();
        state.adopted = state.adopted.max(map);
        if let Some((until, needed)) = state.held_back
            && needed <= state.adopted
        {
            state.until = state.until.max(until);
            state.held_back = None;
        }
    }

    /// Whether the node may serve now.
    pub fn is_valid(&self) -> bool {
        now() < self.state.lock().until
    }

    /// Time left, zero when it has run out.
    pub fn left(&self) -> Duration {
        self.state.lock().until.saturating_sub(now())
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
}
