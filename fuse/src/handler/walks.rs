//! Names that a program is about to ask for.
//!
//! Who goes through a directory (`git status`, `rsync`, the reader of a data set) asks for one name after the other in the order
//! of a listing, each a round trip to the metadata server. So a program that has asked for a few in ascending order is taken to
//! go on: the names behind are fetched with their attributes, many by one request, and its next lookups are answered from
//! here. The more of them it asks for, the further ahead is fetched; who does not ask for them has to walk for longer before it is
//! believed again. (Lustre's *statahead* follows listings in the same way.)
//!
//! What was fetched counts as a line of a listing does: as long as the server tells of changes, and until somebody, here or
//! elsewhere, has changed names in the directory or that inode. What has changed in the last moments is likely to be changing
//! still, and is left to be asked for.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use emberfs_client::attr::AttrExt;
use emberfs_client::{Attr, Creds};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::ReadDirReply;
use parking_lot::Mutex;

use super::namespace::check_name;
use super::{Handler, virtual_dir};
use crate::backend::Backend;

/// Ascending lookups after which a program is believed to go on; and as many at most.
const PATIENCE: u32 = 3;
const MAX_PATIENCE: u32 = 64;
/// Names fetched first, and at most.
const WINDOW: u32 = 8;
const MAX_WINDOW: u32 = 128;
/// One of so many names that were fetched has to be asked for, or fetching is not worth it.
const WORTH: u32 = 4;
/// What was changed this short before it was fetched does not count: far longer than news of a change take.
const MOMENT: Duration = Duration::from_millis(200);
/// Walks remembered; with names of common length some 50 KiB each at most.
const MAX_WALKS: usize = 256;

/// See the module.
#[derive(Default)]
pub(super) struct Walks {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// By directory and thread.
    walks: HashMap<(u64, u32), Walk>,
    /// How long the server tells of changes after it was asked; zero: it does not.
    term: Duration,
}

/// One thread's lookups in one directory.
struct Walk {
    /// The last name that was asked for.
    last: Bytes,
    /// How many in a row were ascending.
    run: u32,
    /// How many have to be before anything is fetched.
    patience: u32,
    window: u32,
    fetching: bool,
    /// Fetched and not asked for yet.
    ahead: BTreeMap<Bytes, Found>,
    /// The last name that was fetched.
    reached: Option<Bytes>,
    /// There is nothing behind that.
    ended: bool,
    /// Of what was fetched by the last request.
    used: u32,
    /// Counts how often it was begun anew.
    turn: u64,
    touched: Instant,
}

#[derive(Clone, Copy)]
struct Found {
    attr: Attr,
    /// The clock of changes when it was asked for.
    at: u64,
    asked: Instant,
}

/// Names to be fetched, see [`Handler::fetch_ahead`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetch {
    walk: (u64, u32),
    /// Of the walk, when it was wanted.
    turn: u64,
    after: Bytes,
    limit: u32,
}

/// See [`Handler::step`].
#[derive(Default)]
pub(crate) struct Step {
    /// What the name means, and how long that holds.
    pub(crate) found: Option<(Attr, Duration)>,
    pub(crate) fetch: Option<Fetch>,
}

impl Walk {
    fn new() -> Self {
        Self {
            last: Bytes::new(),
            run: 0,
            patience: PATIENCE,
            window: WINDOW,
            fetching: false,
            ahead: BTreeMap::new(),
            reached: None,
            ended: false,
            used: 0,
            turn: 0,
            touched: Instant::now(),
        }
    }

    /// What was fetched is of no use any more.
    fn drop_ahead(&mut self) {
        if self.reached.is_some() {
            self.judge();
        }
        self.ahead.clear();
        (self.reached, self.ended) = (None, false);
        self.turn += 1;
    }

    /// Whether the last fetch was worth it: how far to fetch from now on.
    fn judge(&mut self) -> bool {
        let worth = self.used * WORTH >= self.window;
        if worth {
            self.window = (self.window * 2).min(MAX_WINDOW);
            self.patience = PATIENCE;
        } else {
            self.window = WINDOW;
            self.patience = (self.patience * 2).min(MAX_PATIENCE);
            (self.run, self.reached) = (0, None);
        }
        self.used = 0;
        worth
    }

    /// A name is asked for.
    fn step(&mut self, name: &[u8], valid: impl Fn(&Found) -> bool) -> Option<Found> {
        self.touched = Instant::now();
        match name.cmp(&self.last[..]) {
            Ordering::Less => {
                self.run = 1;
                self.drop_ahead();
            }
            Ordering::Equal => return None,
            Ordering::Greater => self.run += 1,
        }
        self.last = Bytes::copy_from_slice(name);
        // What lies before was passed over.
        let mut rest = self.ahead.split_off(name);
        let found = rest.remove(name);
        self.ahead = rest;
        let found = found?;
        if valid(&found) {
            self.used += 1;
            return Some(found);
        }
        self.drop_ahead();
        None
    }

    /// Where to fetch from, if it is time to.
    fn wanted(&mut self) -> Option<(Bytes, u32)> {
        if self.fetching || self.ended || self.run < self.patience {
            return None;
        }
        let reached = self.reached.clone();
        let ahead = reached.filter(|reached| *reached > self.last);
        if ahead.is_some() && self.ahead.len() as u32 > self.window / 2 {
            return None;
        }
        if self.reached.is_some() && !self.judge() {
            return None;
        }
        let after = ahead.unwrap_or_else(|| self.last.clone());
        self.fetching = true;
        self.reached = Some(after.clone());
        Some((after, self.window))
    }

    fn arrived(&mut self, reply: ReadDirReply, at: u64, asked: Instant) {
        let settled = SystemTime::now() - MOMENT;
        self.fetching = false;
        self.ended = reply.end;
        for entry in reply.entries {
            let Some(attr) = entry.attr else { continue };
            self.reached = Some(entry.name.clone());
            if entry.name > self.last && attr.changed() < settled {
                self.ahead.insert(entry.name, Found { attr, at, asked });
            }
        }
    }
}

impl Walks {
    /// From now on the server tells of what others change for so long after it was asked; zero: it does not.
    pub(super) fn watched_for(&self, term: Duration) {
        *self.table.lock() = Table {
            term,
            ..Table::default()
        };
    }

    fn step(
        &self,
        walk: (u64, u32),
        name: &[u8],
        changed: impl Fn(u64, u64) -> bool,
    ) -> (Option<(Found, Duration)>, Option<Fetch>) {
        let mut table = self.table.lock();
        let term = table.term;
        if term.is_zero() {
            return (None, None);
        }
        table.make_room(walk);
        let known = table.walks.entry(walk).or_insert_with(Walk::new);
        let left = |found: &Found| (found.asked + term).saturating_duration_since(Instant::now());
        let found = known.step(name, |found| {
            !left(found).is_zero()
                && !changed(walk.0, found.at)
                && !changed(found.attr.inode, found.at)
        });
        let wanted = known.wanted();
        let turn = known.turn;
        let fetch = wanted.map(|(after, limit)| Fetch {
            walk,
            turn,
            after,
            limit,
        });
        (found.map(|found| (found, left(&found))), fetch)
    }

    fn arrived(&self, fetch: &Fetch, reply: ReadDirReply, at: u64, asked: Instant) {
        if let Some(walk) = self.table.lock().walks.get_mut(&fetch.walk) {
            if walk.turn == fetch.turn {
                walk.arrived(reply, at, asked);
            } else {
                walk.fetching = false;
            }
        }
    }

    fn failed(&self, fetch: &Fetch) {
        if let Some(walk) = self.table.lock().walks.get_mut(&fetch.walk) {
            (walk.fetching, walk.patience, walk.run) = (false, MAX_PATIENCE, 0);
        }
    }
}

impl Table {
    /// Forgets the older half of the walks when there are too many.
    fn make_room(&mut self, walk: (u64, u32)) {
        if self.walks.len() < MAX_WALKS || self.walks.contains_key(&walk) {
            return;
        }
        let mut times: Vec<Instant> = self.walks.values().map(|walk| walk.touched).collect();
        let middle = times.len() / 2;
        let (_, &mut median, _) = times.select_nth_unstable(middle);
        self.walks.retain(|_, walk| walk.touched > median);
    }
}

impl<B: Backend> Handler<B> {
    /// The thread `asker` asks for a name: what it means, if that was fetched before, and what to fetch now.
    pub(crate) fn step(&self, asker: u32, parent: u64, name: &[u8]) -> Step {
        if check_name(name).is_err() || virtual_dir::may_be(parent, name) {
            return Step::default();
        }
        let walk = (self.inode(parent).0, asker);
        let changed = |inode, at| self.inodes.changed_since(inode, at);
        let (found, fetch) = self.walks.step(walk, name, changed);
        let fits =
            |(found, _): &mut (Found, Duration)| self.inodes.outgrown(&mut found.attr).is_none();
        let found = found.and_then(|mut found| fits(&mut found).then_some(found));
        let found = found.map(|(found, left)| (self.show_asked(found.attr, found.asked), left));
        Step { found, fetch }
    }

    /// Fetches names that are about to be asked for.
    pub(crate) async fn fetch_ahead(&self, fetch: Fetch) {
        let (at, asked) = (self.inodes.now(), Instant::now());
        // Only who may search the directory is answered from this: the kernel sees to that.
        let root = Creds::default();
        let dir = InodeId(fetch.walk.0);
        let listed = self.backend.readdir(&root, dir, &fetch.after, fetch.limit);
        match listed.await {
            Ok(reply) => self.walks.arrived(&fetch, reply, at, asked),
            // Who asks for the names will hear why.
            Err(_) => self.walks.failed(&fetch),
        }
    }
}

#[cfg(test)]
mod tests;
