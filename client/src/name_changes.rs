//! Names and attributes that this client has changed and that may not be durable yet, and those that were lost.
//!
//! The metadata server answers such changes before they are on its disk, with their place in its log and how far that is
//! durable ([`pb::LogPosition`]). What is not yet is *unsettled* and kept here. Whoever syncs an inode of it asks, and hears where
//! the logs of earlier starts of the server ended: what came later there was lost with its power.
//!
//! A loss is told like an error of writing back on Linux (`errseq_t`): once to everybody who had the inode open ([`LossesHeard`]); to who
//! opens it later if nobody has been told yet, or a moment ago.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;
use parking_lot::Mutex;

/// Changes that are kept; more are taken together. The server flushes its log every few milliseconds.
const MOST: usize = 1 << 16;
/// Inodes of lost changes that are kept; if there are more, all inodes count as lost.
const MOST_LOST: usize = 4096;
/// Who opens an inode for so long after somebody was told of its loss is told as well: several programs may have changed names in one
/// directory, and have nothing open while they do.
const RECENT: Duration = Duration::from_secs(1);
/// Stands for all inodes.
const ANY: InodeId = InodeId(0);

/// Which losses whoever has a file or directory open has been told of; see [`crate::Client::losses_heard`].
#[derive(Debug, Default)]
pub struct LossesHeard(AtomicU64);

/// Told of the start and the commit of a change that is not durable yet.
type Note = dyn Fn(u64, u64) + Send + Sync;

/// See the module.
pub(crate) struct NameChanges {
    state: Mutex<State>,
    note: OnceLock<Box<Note>>,
}

struct State {
    /// By start of the server, in the order of its commits.
    unsettled: BTreeMap<u64, VecDeque<Change>>,
    /// A process before this one may have made some.
    inherited: bool,
    /// Somebody asks about earlier starts.
    asking: bool,
    lost: HashMap<InodeId, Loss>,
    /// How many losses were found.
    losses: u64,
}

struct Change {
    commit: u64,
    inodes: [InodeId; 2],
}

struct Loss {
    number: u64,
    /// When somebody was told for the first time.
    told: Option<Instant>,
}

impl Default for NameChanges {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                unsettled: BTreeMap::new(),
                inherited: true,
                asking: false,
                lost: HashMap::new(),
                losses: 0,
            }),
            note: OnceLock::new(),
        }
    }
}

impl NameChanges {
    /// From now on `note` is told of each change that is not durable yet, before it is answered here. Only the first call counts.
    pub(crate) fn note_by(&self, note: Box<Note>) {
        self.note.get_or_init(|| note);
    }

    /// A process before this one has noted this change, and perhaps made others before it.
    pub(crate) fn inherit(&self, start: u64, commit: u64) {
        self.state.lock().add(start, commit, [ANY; 2]);
    }

    /// The server has answered a change of the names in, or the attributes of, these two. True: it has been started since others of
    /// this client, and nobody asks yet what has become of them; [`Self::asked`] when somebody has.
    pub(crate) fn made(&self, log: Option<pb::LogPosition>, inodes: [InodeId; 2]) -> bool {
        let Some(log) = log else { return false };
        let mut state = self.state.lock();
        state.durable(log);
        if log.committed > log.durable {
            state.add(log.start, log.committed, inodes);
            if let Some(note) = self.note.get() {
                note(log.start, log.committed);
            }
        }
        let earlier = state.unsettled.keys().any(|start| *start != log.start);
        earlier && !std::mem::replace(&mut state.asking, true)
    }

    /// See [`Self::made`].
    pub(crate) fn asked(&self) {
        self.state.lock().asking = false;
    }

    /// The server has answered who asked it to make everything durable.
    pub(crate) fn synced(&self, log: pb::LogPosition) {
        let mut state = self.state.lock();
        state.inherited = false;
        state.durable(log);
    }

    /// The starts of which something is unsettled, if something that concerns `inode` is. `None`: of all inodes.
    pub(crate) fn unsettled(&self, inode: Option<InodeId>) -> Option<Vec<u64>> {
        let state = self.state.lock();
        let concerns = |change: &Change| {
            inode.is_none_or(|inode| [inode, ANY].iter().any(|it| change.inodes.contains(it)))
        };
        let any = state.inherited || state.unsettled.values().flatten().any(concerns);
        any.then(|| state.unsettled.keys().copied().collect())
    }

    /// The answer to who asked about what [`Self::unsettled`] said: what was unsettled then is durable or lost.
    pub(crate) fn settled(&self, log: pb::LogPosition, asked: &[u64], ends: &[pb::LogEnd]) {
        let mut state = self.state.lock();
        state.inherited = false;
        state.durable(log);
        for start in asked.iter().filter(|start| **start != log.start) {
            let changes = state.unsettled.remove(start).unwrap_or_default();
            // What the server does not remember it cannot vouch for.
            let end = ends.iter().find(|end| end.start == *start);
            let is_lost = |change: &Change| end.is_none_or(|end| change.commit > end.end);
            let lost: Vec<_> = changes.into_iter().filter(is_lost).collect();
            if !lost.is_empty() {
                tracing::error!(
                    changes = lost.len(),
                    start,
                    end = end.map(|end| end.end),
                    "the metadata server has lost its power before names or attributes that were changed here were on its disk"
                );
                state.lose(&lost);
            }
        }
    }

    /// What whoever opens this inode now has been told of.
    pub(crate) fn heard(&self, inode: InodeId) -> LossesHeard {
        self.state.lock().heard(inode, Instant::now())
    }

    /// Whether something of `inode` was lost that was not told yet; it is now.
    pub(crate) fn tell(&self, inode: InodeId, heard: &LossesHeard) -> bool {
        self.state.lock().tell(inode, heard, Instant::now())
    }
}

impl State {
    /// Keeps a change; answers come in nearly the order of commits.
    fn add(&mut self, start: u64, commit: u64, inodes: [InodeId; 2]) {
        let changes = self.unsettled.entry(start).or_default();
        let after = changes.iter().rev().take_while(|it| it.commit > commit);
        let at = changes.len() - after.count();
        changes.insert(at, Change { commit, inodes });
        let all: usize = self.unsettled.values().map(VecDeque::len).sum();
        if all > MOST {
            // The last one of each start stands for all of it.
            for changes in self.unsettled.values_mut() {
                changes.drain(..changes.len() - 1);
                changes[0].inodes = [ANY; 2];
            }
        }
    }

    fn durable(&mut self, log: pb::LogPosition) {
        if let Some(changes) = self.unsettled.get_mut(&log.start) {
            while changes
                .front()
                .is_some_and(|change| change.commit <= log.durable)
            {
                changes.pop_front();
            }
            if changes.is_empty() {
                self.unsettled.remove(&log.start);
            }
        }
    }

    fn lose(&mut self, changes: &[Change]) {
        self.losses += 1;
        let number = self.losses;
        for inode in changes.iter().flat_map(|change| change.inodes) {
            let loss = Loss { number, told: None };
            self.lost.insert(inode, loss);
        }
        if self.lost.len() > MOST_LOST {
            let loss = Loss { number, told: None };
            self.lost = HashMap::from([(ANY, loss)]);
        }
    }

    fn heard(&self, inode: InodeId, now: Instant) -> LossesHeard {
        let mut heard = self.losses;
        for loss in [inode, ANY].iter().filter_map(|it| self.lost.get(it)) {
            if loss.told.is_none_or(|told| now < told + RECENT) {
                heard = heard.min(loss.number - 1);
            }
        }
        LossesHeard(AtomicU64::new(heard))
    }

    fn tell(&mut self, inode: InodeId, heard: &LossesHeard, now: Instant) -> bool {
        let before = heard.0.fetch_max(self.losses, Ordering::AcqRel);
        let mut new = false;
        for inode in [inode, ANY] {
            if let Some(loss) = self.lost.get_mut(&inode)
                && loss.number > before
            {
                loss.told.get_or_insert(now);
                new = true;
            }
        }
        new
    }
}

#[cfg(test)]
mod tests;
