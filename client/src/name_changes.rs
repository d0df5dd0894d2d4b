//! Names and attributes that this client has changed and that may not be durable yet, and those that were lost.
//!
//! The metadata server answers such changes before they are on its disk, with their place in its log and how far that is
//! durable ([`pb::LogPosition`]). What is not yet is kept here. Whoever syncs an inode of it asks, and hears where the logs of
//! earlier starts of the server ended: what came later there was lost with its power.
//!
//! A loss is told as Linux tells of lost pages (`errseq_t`): once to everybody who had the inode open ([`Told`]), also to
//! who opens it soon after.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;
use parking_lot::Mutex;

/// Changes that are kept; more are taken together. The server flushes its log every few milliseconds.
const MOST: usize = 1024;
/// Inodes of lost changes that are kept; if there are more, all inodes count as lost.
const MOST_LOST: usize = 4096;
/// Who opens an inode for so long after a loss was found is told of it: programs that change names have nothing open while they do.
const RECENT: Duration = Duration::from_secs(3);
/// Stands for all inodes.
const ANY: InodeId = InodeId(0);

/// Which losses whoever has a file or directory open has been told of; see [`crate::Client::told`].
#[derive(Debug, Default)]
pub struct Told(AtomicU64);

/// See the module.
pub(crate) struct NameChanges(Mutex<State>);

struct State {
    open: Vec<Change>,
    /// A process before this one may have made some.
    inherited: bool,
    /// By inode, the number of its last loss.
    lost: HashMap<InodeId, u64>,
    /// How many losses were found, and when the last one was.
    losses: u64,
    found: Option<Instant>,
    /// How many had been found before those that are recent.
    earlier: u64,
}

struct Change {
    start: u64,
    commit: u64,
    inodes: [InodeId; 2],
}

impl Change {
    fn concerns(&self, inode: InodeId) -> bool {
        self.inodes.contains(&inode) || self.inodes.contains(&ANY)
    }
}

impl Default for NameChanges {
    fn default() -> Self {
        Self(Mutex::new(State {
            open: Vec::new(),
            inherited: true,
            lost: HashMap::new(),
            losses: 0,
            found: None,
            earlier: 0,
        }))
    }
}

impl NameChanges {
    /// The server has answered a change of the names in, or the attributes of, these two.
    pub(crate) fn made(&self, log: Option<pb::LogPosition>, inodes: [InodeId; 2]) {
        let Some(log) = log else { return };
        let mut state = self.0.lock();
        state.durable(log);
        if log.committed > log.durable {
            state.open.push(Change {
                start: log.start,
                commit: log.committed,
                inodes,
            });
            state.limit();
        }
    }

    /// The server has answered who asked it to make everything durable.
    pub(crate) fn synced(&self, log: Option<pb::LogPosition>) {
        let mut state = self.0.lock();
        state.inherited = false;
        state.durable(log.unwrap_or_default());
    }

    /// The starts of which changes are open, if some that concern `inode` are. `None`: all of all inodes.
    pub(crate) fn open(&self, inode: Option<InodeId>) -> Option<Vec<u64>> {
        let state = self.0.lock();
        let concerns = |change: &Change| inode.is_none_or(|inode| change.concerns(inode));
        let any = state.inherited || state.open.iter().any(concerns);
        any.then(|| {
            let starts: BTreeSet<_> = state.open.iter().map(|change| change.start).collect();
            starts.into_iter().collect()
        })
    }

    /// The answer to who asked about what [`Self::open`] said: what was open then is durable or lost.
    pub(crate) fn settled(&self, log: pb::LogPosition, asked: &[u64], ends: &[pb::LogEnd]) {
        let ends: HashMap<_, _> = ends.iter().map(|it| (it.start, it.end)).collect();
        let mut state = self.0.lock();
        state.durable(log);
        state.inherited = false;
        let mut lost = Vec::new();
        state.open.retain(|change| {
            if change.start == log.start || !asked.contains(&change.start) {
                return true;
            }
            // What the server does not remember it cannot vouch for.
            if ends
                .get(&change.start)
                .is_none_or(|end| change.commit > *end)
            {
                lost.extend(change.inodes);
            }
            false
        });
        state.lose(lost);
    }

    /// What whoever opens something now has been told of.
    pub(crate) fn told(&self) -> Told {
        let state = self.0.lock();
        let recent = state.found.is_some_and(|found| found.elapsed() < RECENT);
        let told = if recent { state.earlier } else { state.losses };
        Told(AtomicU64::new(told))
    }

    /// Whether something of `inode` was lost that was not told yet; it is now.
    pub(crate) fn tell(&self, inode: InodeId, told: &Told) -> bool {
        let state = self.0.lock();
        let before = told.0.fetch_max(state.losses, Ordering::AcqRel);
        let loss = |inode| state.lost.get(&inode).is_some_and(|loss| *loss > before);
        loss(inode) || loss(ANY)
    }
}

impl State {
    fn durable(&mut self, log: pb::LogPosition) {
        self.open
            .retain(|change| change.start != log.start || change.commit > log.durable);
    }

    /// Takes the changes of each start together if there are too many: the last one stands for all.
    fn limit(&mut self) {
        if self.open.len() <= MOST {
            return;
        }
        let mut last = HashMap::new();
        for change in self.open.drain(..) {
            let last = last.entry(change.start).or_insert(change.commit);
            *last = change.commit.max(*last);
        }
        self.open = last
            .into_iter()
            .map(|(start, commit)| Change {
                start,
                commit,
                inodes: [ANY; 2],
            })
            .collect();
    }

    fn lose(&mut self, inodes: Vec<InodeId>) {
        if inodes.is_empty() {
            return;
        }
        let recent = self.found.is_some_and(|found| found.elapsed() < RECENT);
        if !recent {
            self.earlier = self.losses;
        }
        self.losses += 1;
        self.found = Some(Instant::now());
        let losses = self.losses;
        self.lost.extend(inodes.into_iter().map(|it| (it, losses)));
        if self.lost.len() > MOST_LOST {
            self.lost.clear();
            self.lost.insert(ANY, losses);
        }
    }
}

#[cfg(test)]
mod tests;
