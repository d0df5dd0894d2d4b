//! Who holds which lock, and who waits for one: a table without clock, I/O or threads.
//!
//! **Queue.** Requests that wait for a file stand in the order in which they came, and a new one that
//! conflicts with one before it waits behind it, so that a stream of readers does not keep a writer out.
//! That holds for callers who hold nothing yet. A process that holds some lock passes those before it
//! whenever nothing that is *held* is in its way: they may be waiting for just that lock, and to wait behind them
//! would be a deadlock that locks without a queue (those of Linux) do not have. For the same reason the search for
//! deadlocks ([`super::deadlock`]) looks at locks that are held, never at places in the queue.
//!
//! **Bounds.** Locks and waiting requests are counted per client and per file ([`Limits`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::locks::{LockSpace, Range, Ranges, Span};
use emberfs_proto::{Error, ErrorCode, Result};

use super::deadlock;

/// A file, and one of its two independent spaces of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) inode: InodeId,
    pub(crate) space: LockSpace,
}

/// Who holds locks: a process or an open file description of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Owner {
    pub(crate) client: ClientId,
    pub(crate) number: u64,
}

/// Names a waiting request: the client, and the ticket of the request.
pub(crate) type WaiterKey = (ClientId, u64);

/// A lock that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) place: Place,
    pub(crate) owner: Owner,
    pub(crate) range: Range,
}

/// A lock, or a request that waits for one, as status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) wish: Wish,
    pub(crate) waiting: bool,
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted,
    /// Somebody is in the way.
    Blocked,
    /// It has a place in the queue.
    Waiting,
}

/// Most entries. Beyond them: [`ErrorCode::TooManyLocks`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) locks_per_client: usize,
    pub(crate) locks_per_file: usize,
    /// Each may hold a stream of the client's connection, which has 1024.
    pub(crate) waiting_per_client: usize,
    pub(crate) waiting_per_file: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            locks_per_client: 1 << 16,
            locks_per_file: 1 << 14,
            waiting_per_client: 512,
            waiting_per_file: 4096,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Table {
    limits: Limits,
    files: BTreeMap<Place, File>,
    clients: HashMap<ClientId, Share>,
    /// Number of the last place in any queue.
    turns: u64,
    /// Waiting requests that were granted and not told yet.
    granted: Vec<WaiterKey>,
}

#[derive(Default)]
struct File {
    held: BTreeMap<Owner, Ranges>,
    /// By turn.
    queue: BTreeMap<u64, Waiter>,
    locks: usize,
}

struct Waiter {
    owner: Owner,
    range: Range,
    ticket: u64,
}

/// One client's part of the table.
#[derive(Default)]
struct Share {
    locks: usize,
    /// Where it holds something.
    places: BTreeSet<Place>,
    /// Place and turn of its waiting requests, by ticket.
    waiting: BTreeMap<u64, (Place, u64)>,
}

impl File {
    /// Locks of others that are in the way, the first one of each owner.
    fn conflicts(&self, owner: Owner, range: Range) -> impl Iterator<Item = (Owner, Range)> + '_ {
        let others = self.held.iter().filter(move |(other, _)| **other != owner);
        others.filter_map(move |(other, ranges)| Some((*other, ranges.conflict(&range)?)))
    }

    /// Whether there are any.
    fn is_free(&self, owner: Owner, range: Range) -> bool {
        self.conflicts(owner, range).next().is_none()
    }

    /// Whether a request of somebody else that came before `turn` wants what conflicts.
    fn queued_before(&self, turn: u64, owner: Owner, range: &Range) -> bool {
        let mut before = self.queue.range(..turn).map(|(_, waiter)| waiter);
        before.any(|waiter| waiter.owner != owner && waiter.range.conflicts(range))
    }

    fn of_client(&self, client: ClientId) -> impl Iterator<Item = (&Owner, &Ranges)> {
        let owner = |number| Owner { client, number };
        self.held.range(owner(0)..=owner(u64::MAX))
    }
}

impl Table {
    #[cfg(test)]
    pub(crate) fn with(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Locks, or takes a place in the queue (`wait`). `ticket` names the request: while it waits, it may be
    /// made again and keeps its place. Nothing changes unless it is granted or waits.
    ///
    /// Fails with [`ErrorCode::Deadlock`] or [`ErrorCode::TooManyLocks`].
    pub(crate) fn request(&mut self, wish: &Wish, ticket: u64, wait: bool) -> Result<Answer> {
        let client = wish.owner.client;
        if self.is_waiting((client, ticket)) {
            return Ok(Answer::Waiting);
        }
        if self.is_free(wish, u64::MAX) {
            let ranges = self.ranges_with(wish);
            self.check_room(wish.place, wish.owner, &ranges)?;
            self.put(wish.place, wish.owner, ranges);
            // A weaker lock in place of a stronger one lets others in.
            self.wake(wish.place);
            return Ok(Answer::Granted);
        }
        if !wait {
            return Ok(Answer::Blocked);
        }
        self.check_queue(wish)?;
        if wish.place.space == LockSpace::Posix && deadlock::closes_circle(self, wish) {
            let what = format!(
                "a lock on inode {} is held by an owner that waits for a lock of this one",
                wish.place.inode
            );
            return Err(Error::new(ErrorCode::Deadlock, what));
        }
        self.turns += 1;
        let turn = self.turns;
        let waiter = Waiter {
            owner: wish.owner,
            range: wish.range,
            ticket,
        };
        let file = self.files.entry(wish.place).or_default();
        file.queue.insert(turn, waiter);
        let share = self.clients.entry(client).or_default();
        share.waiting.insert(ticket, (wish.place, turn));
        Ok(Answer::Waiting)
    }

    /// Unlocks. May fail with [`ErrorCode::TooManyLocks`], because a hole makes two locks of one.
    pub(crate) fn unlock(&mut self, place: Place, owner: Owner, span: Span) -> Result<()> {
        self.weaken(place, owner, span, &Ranges::default())
    }

    /// Gives up, of `span`, whatever goes beyond `keep`. May fail as [`Self::unlock`].
    pub(crate) fn weaken(
        &mut self,
        place: Place,
        owner: Owner,
        span: Span,
        keep: &Ranges,
    ) -> Result<()> {
        let mut ranges = self.held(place, owner);
        ranges.weaken(span, keep);
        self.check_room(place, owner, &ranges)?;
        self.put(place, owner, ranges);
        self.wake(place);
        Ok(())
    }

    /// Gives an owner what it held before a restart; false, and nothing, if that cannot be.
    pub(crate) fn restore(&mut self, place: Place, owner: Owner, ranges: &Ranges) -> bool {
        let mut all = self.held(place, owner);
        for range in ranges {
            let file = self.files.get(&place);
            if file.is_some_and(|file| !file.is_free(owner, *range)) {
                return false;
            }
            all.set(*range);
        }
        let fits = self.check_room(place, owner, &all).is_ok();
        if fits {
            self.put(place, owner, all);
        }
        fits
    }

    /// Somebody's lock that is in the way.
    pub(crate) fn test(&self, wish: &Wish) -> Option<(Owner, Range)> {
        let file = self.files.get(&wish.place)?;
        let conflicts = file.conflicts(wish.owner, wish.range);
        conflicts.min_by_key(|(_, found)| found.span.start)
    }

    /// What an owner holds.
    pub(crate) fn held(&self, place: Place, owner: Owner) -> Ranges {
        let file = self.files.get(&place);
        let held = file.and_then(|file| file.held.get(&owner));
        held.cloned().unwrap_or_default()
    }

    pub(crate) fn is_waiting(&self, (client, ticket): WaiterKey) -> bool {
        let share = self.clients.get(&client);
        share.is_some_and(|share| share.waiting.contains_key(&ticket))
    }

    /// Takes requests out of their queues, all before others are granted.
    pub(crate) fn cancel(&mut self, keys: &[WaiterKey]) {
        let places: BTreeSet<Place> = keys.iter().filter_map(|&k| self.take_waiter(k)).collect();
        for place in places {
            self.wake(place);
        }
    }

    /// Requests of a client that wait under tickets before this one.
    pub(crate) fn waiting_before(&self, client: ClientId, ticket: u64) -> Vec<WaiterKey> {
        let share = self.clients.get(&client);
        let waiting = share.map(|share| share.waiting.range(..ticket));
        let waiting = waiting.into_iter().flatten();
        waiting.map(|(&ticket, _)| (client, ticket)).collect()
    }

    /// What a client holds of the files after `after`, file by file until there are `limit` ranges; true at the end.
    pub(crate) fn held_after(
        &self,
        client: ClientId,
        after: InodeId,
        limit: usize,
    ) -> (Vec<(Place, Owner, Ranges)>, bool) {
        let mut found: Vec<(Place, Owner, Ranges)> = Vec::new();
        let mut ranges = 0;
        let share = self.clients.get(&client);
        let places = share.into_iter().flat_map(|share| &share.places);
        for &place in places.skip_while(|place| place.inode <= after) {
            let last = found.last().map(|(place, ..)| place.inode);
            if ranges >= limit && last != Some(place.inode) {
                return (found, false);
            }
            let file = self.files.get(&place);
            for (owner, held) in file.into_iter().flat_map(|file| file.of_client(client)) {
                ranges += held.len();
                found.push((place, *owner, held.clone()));
            }
        }
        (found, true)
    }

    /// Ends everything of a client; answers which of its requests waited.
    pub(crate) fn release_client(&mut self, client: ClientId) -> Vec<WaiterKey> {
        let Some(share) = self.clients.get(&client) else {
            return Vec::new();
        };
        let mut places = share.places.clone();
        let waiting: Vec<_> = share.waiting.keys().map(|&t| (client, t)).collect();
        for &key in &waiting {
            places.extend(self.take_waiter(key));
        }
        for &place in &places {
            let file = self.files.get(&place);
            let owners: Vec<Owner> = file
                .map(|file| file.of_client(client).map(|(owner, _)| *owner).collect())
                .unwrap_or_default();
            for owner in owners {
                self.put(place, owner, Ranges::default());
            }
        }
        for place in places {
            self.wake(place);
        }
        waiting
    }

    /// Waiting requests that were granted since the last call.
    pub(crate) fn take_granted(&mut self) -> Vec<WaiterKey> {
        std::mem::take(&mut self.granted)
    }

    /// The first file with locks from `from` on.
    pub(crate) fn first_from(&self, from: Place) -> Option<Place> {
        self.files.range(from..).next().map(|(place, _)| *place)
    }

    /// Locks of a file, then its waiting requests in their order.
    pub(crate) fn list(&self, place: Place) -> Vec<Entry> {
        let Some(file) = self.files.get(&place) else {
            return Vec::new();
        };
        let entry = |owner, range, waiting| Entry {
            wish: Wish {
                place,
                owner,
                range,
            },
            waiting,
        };
        let held = file.held.iter();
        let held = held.flat_map(|(owner, ranges)| ranges.iter().map(|r| (*owner, *r)));
        let held = held.map(|(owner, range)| entry(owner, range, false));
        let queue = file.queue.values();
        let waiting = queue.map(|waiter| entry(waiter.owner, waiter.range, true));
        held.chain(waiting).collect()
    }

    /// The owners whose locks are in the way of a wish.
    pub(super) fn blockers(&self, wish: &Wish) -> impl Iterator<Item = Owner> + '_ {
        let Wish { owner, range, .. } = *wish;
        let held = self.files.get(&wish.place).map(|file| file.held.iter());
        let others = held
            .into_iter()
            .flatten()
            .filter(move |(o, _)| **o != owner);
        others
            .filter(move |(_, ranges)| ranges.conflict(&range).is_some())
            .map(|(owner, _)| *owner)
    }

    /// What an owner waits for.
    pub(super) fn waits_of(&self, owner: Owner) -> impl Iterator<Item = Wish> + '_ {
        let waiting = self.clients.get(&owner.client).map(|s| s.waiting.values());
        let waiting = waiting.into_iter().flatten();
        waiting.filter_map(move |&(place, turn)| {
            let waiter = self.files.get(&place)?.queue.get(&turn)?;
            (waiter.owner == owner).then_some(Wish {
                place,
                owner,
                range: waiter.range,
            })
        })
    }

    /// Whether a wish may be granted that has this turn in the queue.
    fn is_free(&self, wish: &Wish, turn: u64) -> bool {
        let Some(file) = self.files.get(&wish.place) else {
            return true;
        };
        let Wish { owner, range, .. } = wish;
        file.is_free(*owner, *range)
            && (!file.queued_before(turn, *owner, range) || self.holds_any(*owner, range.pid))
    }

    /// Whether the owner, or its process, holds any lock.
    fn holds_any(&self, owner: Owner, pid: u32) -> bool {
        let Some(share) = self.clients.get(&owner.client) else {
            return false;
        };
        let files = share
            .places
            .iter()
            .filter_map(|place| self.files.get(place));
        let mut held = files.flat_map(|file| file.of_client(owner.client));
        held.any(|(other, ranges)| {
            *other == owner || pid != 0 && ranges.iter().any(|range| range.pid == pid)
        })
    }

    fn ranges_with(&self, wish: &Wish) -> Ranges {
        let mut ranges = self.held(wish.place, wish.owner);
        ranges.set(wish.range);
        ranges
    }

    /// Whether the owner's ranges may become `after`: there may always be fewer.
    fn check_room(&self, place: Place, owner: Owner, after: &Ranges) -> Result<()> {
        let Limits {
            locks_per_client,
            locks_per_file,
            ..
        } = self.limits;
        let before = self.held(place, owner).len();
        let Some(more) = after.len().checked_sub(before).filter(|more| *more > 0) else {
            return Ok(());
        };
        let client = self.clients.get(&owner.client).map_or(0, |s| s.locks);
        let file = self.files.get(&place).map_or(0, |f| f.locks);
        if client + more > locks_per_client {
            let what = format!(
                "client {} holds {client} locks; at most {locks_per_client}: release some",
                owner.client
            );
            return Err(Error::new(ErrorCode::TooManyLocks, what));
        }
        if file + more > locks_per_file {
            let what = format!(
                "there are {file} locks on inode {}; at most {locks_per_file}: lock fewer, larger ranges",
                place.inode
            );
            return Err(Error::new(ErrorCode::TooManyLocks, what));
        }
        Ok(())
    }

    fn check_queue(&self, wish: &Wish) -> Result<()> {
        let share = self.clients.get(&wish.owner.client);
        let client = share.map_or(0, |share| share.waiting.len());
        let file = self.files.get(&wish.place).map_or(0, |f| f.queue.len());
        let (of, count) = if client >= self.limits.waiting_per_client {
            (format!("client {}", wish.owner.client), client)
        } else if file >= self.limits.waiting_per_file {
            (format!("inode {}", wish.place.inode), file)
        } else {
            return Ok(());
        };
        let what = format!("{count} requests of {of} wait for locks already; try without waiting");
        Err(Error::new(ErrorCode::TooManyLocks, what))
    }

    /// Replaces what an owner holds.
    fn put(&mut self, place: Place, owner: Owner, ranges: Ranges) {
        let after = ranges.len();
        let file = self.files.entry(place).or_default();
        let before = if ranges.is_empty() {
            file.held.remove(&owner)
        } else {
            file.held.insert(owner, ranges)
        };
        let before = before.map_or(0, |ranges| ranges.len());
        file.locks = file.locks + after - before;
        let holds = file.of_client(owner.client).next().is_some();
        let share = self.clients.entry(owner.client).or_default();
        share.locks = share.locks + after - before;
        if holds {
            share.places.insert(place);
        } else {
            share.places.remove(&place);
        }
        self.tidy(place, owner.client);
    }

    /// Removes a request from the queue; answers where it was.
    fn take_waiter(&mut self, (client, ticket): WaiterKey) -> Option<Place> {
        let (place, turn) = self.clients.get_mut(&client)?.waiting.remove(&ticket)?;
        if let Some(file) = self.files.get_mut(&place) {
            file.queue.remove(&turn);
        }
        self.tidy(place, client);
        Some(place)
    }

    /// Forgets a file and a client about which there is nothing to know.
    fn tidy(&mut self, place: Place, client: ClientId) {
        let bare = |file: &File| file.held.is_empty() && file.queue.is_empty();
        if self.files.get(&place).is_some_and(bare) {
            self.files.remove(&place);
        }
        let bare = |share: &Share| share.locks == 0 && share.waiting.is_empty();
        if self.clients.get(&client).is_some_and(bare) {
            self.clients.remove(&client);
        }
    }

    /// Grants what can be granted of a queue now. A grant may exceed the limits on locks: by no more than
    /// the limits on requests that wait.
    fn wake(&mut self, place: Place) {
        while let Some((wish, ticket)) = self.next_free(place) {
            let ranges = self.ranges_with(&wish);
            let key = (wish.owner.client, ticket);
            self.take_waiter(key);
            self.put(place, wish.owner, ranges);
            self.granted.push(key);
        }
    }

    fn next_free(&self, place: Place) -> Option<(Wish, u64)> {
        let file = self.files.get(&place)?;
        for (&turn, waiter) in &file.queue {
            let wish = Wish {
                place,
                owner: waiter.owner,
                range: waiter.range,
            };
            if self.is_free(&wish, turn) {
                return Some((wish, waiter.ticket));
            }
        }
        None
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
