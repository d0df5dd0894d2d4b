//! Advisory locks of all clients: flock and fcntl, POSIX and open file description.
//!
//! The decisions are made by parts that know no clock and no I/O: [`table`] (who holds what, who waits),
//! [`deadlock`], [`tickets`] (late copies), [`tenure`] (who may hold and reclaim). This module holds them under one mutex
//! and lets requests wait.
//!
//! **Where the truth is.** Locks are in memory only, so that a lock costs no flush of a disk. Each client knows
//! what it holds; after a restart it reclaims that, and until all have done so nobody gets a new lock.
//!
//! **Waiting.** A request that waits is held for a while and then answered "still waiting"; the client asks again
//! with the same ticket and has kept its place. A place that nobody asks for goes after a lease. A waiting request
//! may be granted in between, or its answer may be lost: the lock is then held for its owner, who asks
//! again, finds that it has it, and is told so; or whose client takes it back ([`Locks::take_back`]).

mod deadlock;
pub(crate) mod table;
mod tenure;
mod tickets;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::locks::{LockSpace, Range, Ranges, Span};
use emberfs_proto::pb::LockState;
use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::table::{Answer, Entry, Owner, Place, Table, WaiterKey, Wish};
use self::tenure::Tenures;
use self::tickets::Tickets;

/// Longest time for which one request is held.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(20);
/// Pause that a client is asked for while others reclaim.
const GRACE_PAUSE_MS: u32 = 500;

/// On which authority a request about locks comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) client: ClientId,
    pub(crate) tenure: u64,
    pub(crate) ticket: u64,
}

/// What a client holds, or a page of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Resumed {
    /// 0: it has none, and holds nothing.
    pub(crate) tenure: u64,
    pub(crate) held: Vec<(Place, Owner, Ranges)>,
    pub(crate) more: bool,
}

/// See the module.
pub(crate) struct Locks {
    lease: Duration,
    state: Mutex<State>,
    /// Ends all waits, for a clean stop.
    stop: CancellationToken,
}

struct State {
    table: Table,
    tenures: Tenures,
    tickets: Tickets,
    /// Every waiting request.
    waits: HashMap<WaiterKey, Wait>,
    /// Number of the last listener.
    listeners: u64,
}

/// A waiting request: somebody listens, or the client is expected to ask again.
struct Wait {
    listener: Option<(u64, oneshot::Sender<()>)>,
    since: Instant,
}

/// A held request; dropping it leaves the place in the queue for the next attempt.
struct Listening<'a> {
    locks: &'a Locks,
    key: WaiterKey,
    id: u64,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut state = self.locks.state.lock();
        if let Some(wait) = state.waits.get_mut(&self.key)
            && wait.listener.as_ref().is_some_and(|(id, _)| *id == self.id)
        {
            wait.listener = None;
            wait.since = Instant::now();
        }
    }
}

impl State {
    /// Refuses whoever has no tenure here.
    fn check(&self, claim: &Claim) -> Result<()> {
        if self.tenures.holds(claim.client, claim.tenure) {
            return Ok(());
        }
        let what = format!(
            "client {} has not told this metadata server which locks it holds",
            claim.client
        );
        Err(Error::new(ErrorCode::NoTenure, what))
    }

    /// Nobody gets a lock that somebody may still reclaim.
    fn check_grace(&self) -> Result<()> {
        if !self.tenures.grace() {
            return Ok(());
        }
        let what = "the metadata server has restarted and waits for clients to reclaim their locks";
        Err(Error::new(ErrorCode::Unavailable, what).retry_after_ms(GRACE_PAUSE_MS))
    }

    /// Wakes those whose requests were granted.
    fn tell(&mut self) {
        for key in self.table.take_granted() {
            let wait = self.waits.remove(&key);
            if let Some((_, listener)) = wait.and_then(|wait| wait.listener) {
                // Whoever has stopped listening asks again, and finds that it has the lock.
                let _ = listener.send(());
            }
        }
    }
}

impl Locks {
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            lease,
            state: Mutex::new(State {
                table: Table::default(),
                tenures: Tenures::new(lease, Instant::now()),
                tickets: Tickets::default(),
                waits: HashMap::new(),
                listeners: 0,
            }),
            stop: CancellationToken::new(),
        }
    }

    /// A client's tenure found in the store at the start: it may reclaim.
    pub(crate) fn restore(&self, client: ClientId, tenure: u64) {
        self.state.lock().tenures.restore(client, tenure);
    }

    /// The client's record says this, and it is attached.
    pub(crate) fn begin(&self, client: ClientId, tenure: u64) {
        self.state.lock().tenures.begin(client, tenure);
    }

    /// Locks. `wait`: takes a place in the queue, and holds the request at most that long.
    pub(crate) async fn request(
        &self,
        claim: Claim,
        wish: &Wish,
        wait: Option<Duration>,
    ) -> Result<LockState> {
        let (listening, told) = {
            let mut state = self.state.lock();
            state.check(&claim)?;
            state.check_grace()?;
            let key = (claim.client, claim.ticket);
            let known = state.table.is_waiting(key);
            if !known && !state.tickets.admit(wish.place, wish.owner, claim.ticket) {
                return Ok(LockState::Superseded);
            }
            let answer = state.table.request(wish, claim.ticket, wait.is_some())?;
            state.tell();
            match answer {
                Answer::Granted => return Ok(LockState::Granted),
                Answer::Blocked => return Ok(LockState::Blocked),
                Answer::Waiting => self.listen(&mut state, key),
            }
        };
        let most = wait.unwrap_or_default().min(MAX_WAIT);
        if most.is_zero() {
            return Ok(LockState::Waiting);
        }
        let granted = tokio::select! {
            biased;
            granted = told => granted.is_ok(),
            () = tokio::time::sleep(most) => false,
            () = self.stop.cancelled() => {
                let what = "the metadata server is stopping";
                return Err(Error::new(ErrorCode::Unavailable, what));
            }
        };
        drop(listening);
        Ok(if granted {
            LockState::Granted
        } else {
            LockState::Waiting
        })
    }

    fn listen(&self, state: &mut State, key: WaiterKey) -> (Listening<'_>, oneshot::Receiver<()>) {
        let (tell, told) = oneshot::channel();
        state.listeners += 1;
        let id = state.listeners;
        let wait = Wait {
            listener: Some((id, tell)),
            since: Instant::now(),
        };
        // An earlier attempt of the same request, if any, hears that nobody will tell it.
        state.waits.insert(key, wait);
        let locks = self;
        (Listening { locks, key, id }, told)
    }

    /// Unlocks.
    pub(crate) fn unlock(
        &self,
        claim: Claim,
        place: Place,
        owner: Owner,
        span: Span,
    ) -> Result<LockState> {
        self.give_up(claim, place, owner, span, &Ranges::default())
    }

    /// Takes the request of the ticket `waiter`, for `span`, back: out of the queue, and what it may have been
    /// granted beyond `keep`.
    pub(crate) fn take_back(
        &self,
        claim: Claim,
        waiter: u64,
        (place, owner): (Place, Owner),
        span: Span,
        keep: &Ranges,
    ) -> Result<LockState> {
        {
            let mut state = self.state.lock();
            state.check(&claim)?;
            let key = (claim.client, waiter);
            state.table.cancel(&[key]);
            state.waits.remove(&key);
            state.tell();
        }
        self.give_up(claim, place, owner, span, keep)
    }

    fn give_up(
        &self,
        claim: Claim,
        place: Place,
        owner: Owner,
        span: Span,
        keep: &Ranges,
    ) -> Result<LockState> {
        let mut state = self.state.lock();
        state.check(&claim)?;
        if !state.tickets.admit(place, owner, claim.ticket) {
            return Ok(LockState::Superseded);
        }
        let done = state.table.weaken(place, owner, span, keep);
        state.tell();
        done.map(|()| LockState::Granted)
    }

    /// Somebody's lock that is in the way.
    pub(crate) fn test(&self, wish: &Wish) -> Result<Option<(Owner, Range)>> {
        let state = self.state.lock();
        state.check_grace()?;
        Ok(state.table.test(wish))
    }

    /// For a process that goes on as `client`: an earlier one's requests, those under tickets before `ticket`, do
    /// not wait any more and are refused. Answers a page of what the client holds. [`ErrorCode::LockLost`]: this
    /// server has restarted since, and only the earlier process knew.
    pub(crate) fn resume(
        &self,
        client: ClientId,
        ticket: u64,
        after: InodeId,
        limit: usize,
    ) -> Result<Resumed> {
        let mut state = self.state.lock();
        let Some(tenure) = state.tenures.of(client) else {
            return Ok(Resumed::default());
        };
        state.tickets.raise(client, ticket);
        let waiting = state.table.waiting_before(client, ticket);
        for key in &waiting {
            state.waits.remove(key);
        }
        state.table.cancel(&waiting);
        state.tell();
        if state.tenures.reclaims(client) {
            state.tenures.reclaimed(client);
            let what = format!(
                "this metadata server has restarted, and the process of client {client} that knew its locks is gone: \
                 they are given up"
            );
            return Err(Error::new(ErrorCode::LockLost, what));
        }
        let (held, end) = state.table.held_after(client, after, limit);
        Ok(Resumed {
            tenure,
            more: !end,
            held,
        })
    }

    /// Whether a client may reclaim under this tenure, or has it still: [`ErrorCode::LockLost`] otherwise.
    pub(crate) fn check_reclaim(&self, client: ClientId, tenure: u64) -> Result<()> {
        if self.state.lock().tenures.holds(client, tenure) {
            return Ok(());
        }
        let what = format!(
            "client {client} was silent for longer than its lease: its locks have been given up"
        );
        Err(Error::new(ErrorCode::LockLost, what))
    }

    /// Gives an owner back what it held. After the grace period, or if the client has not been away, that is to
    /// say whether it holds it.
    pub(crate) fn reclaim(
        &self,
        claim: Claim,
        place: Place,
        owner: Owner,
        ranges: &Ranges,
    ) -> LockState {
        let mut state = self.state.lock();
        if !state.tenures.holds(claim.client, claim.tenure) {
            return LockState::Lost;
        }
        if !state.tickets.admit(place, owner, claim.ticket) {
            return LockState::Superseded;
        }
        let held = if state.tenures.reclaims(claim.client) {
            state.table.restore(place, owner, ranges)
        } else {
            let held = state.table.held(place, owner);
            ranges.iter().all(|range| held.covers(range))
        };
        if held {
            return LockState::Granted;
        }
        // The client counts all of it as lost.
        let gone = state.table.unlock(place, owner, Span::WHOLE);
        debug_assert!(gone.is_ok(), "to unlock everything never makes more locks");
        state.tell();
        LockState::Lost
    }

    /// The client has reclaimed everything.
    pub(crate) fn reclaimed(&self, client: ClientId) {
        let mut state = self.state.lock();
        let before = state.tenures.grace();
        state.tenures.reclaimed(client);
        if before && !state.tenures.grace() {
            tracing::info!("all locks are reclaimed; new ones are granted again");
        }
    }

    /// Clients whose tenure must end, first in the store and then by [`Self::release_client`].
    pub(crate) fn overdue(
        &self,
        now: Instant,
        attached: impl Fn(ClientId) -> bool,
    ) -> Vec<ClientId> {
        self.state.lock().tenures.overdue(now, attached)
    }

    /// Releases everything of a client whose tenure has ended in the store.
    pub(crate) fn release_client(&self, client: ClientId, now: Instant) {
        let mut state = self.state.lock();
        state.tenures.end(client, now);
        for key in state.table.release_client(client) {
            state.waits.remove(&key);
        }
        state.tickets.forget(client);
        state.tell();
    }

    /// Takes requests out of the queue that no client has asked about for a lease.
    pub(crate) fn forget_unattended(&self, now: Instant) {
        let mut state = self.state.lock();
        let over = |wait: &Wait| {
            wait.listener.is_none() && now.saturating_duration_since(wait.since) > self.lease
        };
        let waits = state.waits.iter().filter(|(_, wait)| over(wait));
        let keys: Vec<WaiterKey> = waits.map(|(key, _)| *key).collect();
        for key in &keys {
            state.waits.remove(key);
        }
        state.table.cancel(&keys);
        state.tell();
    }

    /// Files with locks from the one after `after` on, until there are `limit` entries; true at the end.
    pub(crate) fn list(&self, after: InodeId, limit: usize) -> (Vec<Entry>, bool) {
        let state = self.state.lock();
        let mut entries = Vec::new();
        let mut next = after.0.checked_add(1);
        while let Some(inode) = next.map(InodeId) {
            let space = LockSpace::Flock;
            let Some(found) = state.table.first_from(Place { inode, space }) else {
                return (entries, true);
            };
            if entries.len() >= limit {
                return (entries, false);
            }
            // Both spaces of a file are on one page: the next page begins with the next file.
            for space in [LockSpace::Flock, LockSpace::Posix, LockSpace::Append] {
                let place = Place {
                    inode: found.inode,
                    space,
                };
                entries.extend(state.table.list(place));
            }
            next = found.inode.0.checked_add(1);
        }
        (entries, true)
    }

    /// Whether new locks wait for reclaims.
    pub(crate) fn grace(&self) -> bool {
        self.state.lock().tenures.grace()
    }

    /// Answers all waiting requests: the server stops.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
