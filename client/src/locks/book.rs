//! What this client holds, and what it has lost: the truth that a restarted server is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use emberfs_proto::ids::InodeId;
use emberfs_proto::locks::{LockSpace, Range, Ranges, Span};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::Identity;

/// An owner's locks on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) inode: InodeId,
    pub(crate) space: LockSpace,
    pub(crate) number: u64,
}

impl From<Key> for pb::LockOwner {
    fn from(key: Key) -> Self {
        Self {
            inode: key.inode.0,
            space: pb::LockSpace::from(key.space).into(),
            owner: key.number,
        }
    }
}

/// All locks of one client.
pub(crate) struct Book {
    owners: Mutex<HashMap<Key, Arc<Owner>>>,
    /// The last ticket given out.
    ticket: AtomicU64,
    /// Under which the server knows this client's locks; 0: it has none.
    pub(super) tenure: AtomicU64,
    /// One request begins a tenure, the others wait for it.
    pub(super) beginning: tokio::sync::Mutex<()>,
    /// Told when the server does not know this client: the next keep-alive is due now.
    pub(crate) doubt: Arc<Notify>,
    /// The server has to be told what is held here.
    pub(super) owed: AtomicBool,
    /// Requests, until nothing about them is unknown.
    pub(crate) tasks: TaskTracker,
}

/// See [`Key`].
pub(super) struct Owner {
    pub(super) key: Key,
    /// Whoever changes what the server holds has it.
    pub(super) turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Ranges,
    /// Given up by the server; the owner has not unlocked it since.
    lost: Ranges,
    /// Changes begun so far, of whatever kind.
    changes: u64,
    /// The server may hold more than `held`.
    unsure: bool,
}

impl Book {
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            owners: Mutex::default(),
            ticket: AtomicU64::new(identity.base()),
            tenure: AtomicU64::new(0),
            beginning: tokio::sync::Mutex::default(),
            doubt: Arc::default(),
            owed: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn ticket(&self) -> u64 {
        self.ticket.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn owner(&self, key: Key) -> Arc<Owner> {
        let mut owners = self.owners.lock();
        let owner = owners.entry(key).or_insert_with(|| {
            Arc::new(Owner {
                key,
                turn: tokio::sync::Mutex::default(),
                state: Mutex::default(),
            })
        });
        owner.clone()
    }

    /// An owner with locks or requests.
    pub(super) fn known(&self, key: Key) -> Option<Arc<Owner>> {
        self.owners.lock().get(&key).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Owner>> {
        self.owners.lock().values().cloned().collect()
    }

    /// Forgets an owner if this was its last user and there is nothing to remember.
    pub(super) fn tidy(&self, owner: Arc<Owner>) {
        let mut owners = self.owners.lock();
        let key = owner.key;
        drop(owner);
        // References are taken from the map only, under its lock.
        let idle = |owner: &Arc<Owner>| Arc::strong_count(owner) == 1 && owner.is_idle();
        if owners.get(&key).is_some_and(idle) {
            owners.remove(&key);
        }
    }

    /// Forgets all owners that there is nothing to remember of.
    pub(super) fn sweep(&self) {
        let mut owners = self.owners.lock();
        owners.retain(|_, owner| Arc::strong_count(owner) > 1 || !owner.is_idle());
    }

    /// What is held of all files by owners of this number.
    #[cfg(test)]
    pub(crate) fn held_by(&self, number: u64) -> Vec<Range> {
        let owners = self.all().into_iter();
        let owners = owners.filter(|owner| owner.key.number == number);
        owners.flat_map(|owner| owner.held(Span::WHOLE)).collect()
    }

    /// Whether no request is under way and the server knows what is held.
    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.tasks.is_empty() && !self.owed.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn owners(&self) -> usize {
        self.owners.lock().len()
    }

    /// The server has given everything up.
    pub(super) fn lose_all(&self) {
        for owner in self.all() {
            let mut state = owner.state.lock();
            state.changes += 1;
            lose(owner.key, &mut state);
        }
        self.tenure.store(0, Ordering::Release);
    }
}

impl Owner {
    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.held.is_empty() && state.lost.is_empty() && !state.unsure
    }

    /// Begins to lock: [`ErrorCode::LockLost`] if something is lost. Answers the number of this change.
    pub(super) fn begin(&self) -> Result<u64> {
        let mut state = self.state.lock();
        if let Some(lost) = state.lost.iter().next() {
            let what = format!(
                "bytes {} to {} of inode {} were locked and the lock was lost while the metadata server was not reached; \
                 unlock or close the file, and check what others wrote",
                lost.span.start, lost.span.end, self.key.inode
            );
            return Err(Error::new(ErrorCode::LockLost, what));
        }
        state.changes += 1;
        Ok(state.changes)
    }

    /// Something is about to change; answers its number.
    pub(super) fn bump(&self) -> u64 {
        let mut state = self.state.lock();
        state.changes += 1;
        state.changes
    }

    pub(super) fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Notes a lock that the server has granted, unless another change began since `seen`. Answers what was
    /// held before.
    pub(super) fn record(&self, seen: u64, range: &Range) -> Option<Ranges> {
        let mut state = self.state.lock();
        if state.changes != seen {
            return None;
        }
        state.changes += 1;
        let before = state.held.clone();
        state.held.set(*range);
        Some(before)
    }

    /// Notes an unlock that the server has done; false if another change began since `seen`.
    pub(super) fn clear(&self, seen: u64, span: Span) -> bool {
        let mut state = self.state.lock();
        if state.changes != seen {
            return false;
        }
        state.held.clear(span);
        if span == Span::WHOLE {
            state.unsure = false;
        }
        true
    }

    /// The server says that this is held: an earlier process took it.
    pub(super) fn adopt(&self, ranges: &Ranges) {
        let mut state = self.state.lock();
        state.changes += 1;
        state.held = ranges.clone();
    }

    /// Goes back to what was held before.
    pub(super) fn undo(&self, span: Span, before: &Ranges) {
        let mut state = self.state.lock();
        state.changes += 1;
        state.held.weaken(span, before);
    }

    /// What is lost of `span` is not expected any more.
    pub(super) fn forget_lost(&self, span: Span) {
        self.state.lock().lost.clear(span);
    }

    /// Whether the server may hold anything of `span` for this owner.
    pub(super) fn may_hold(&self, span: Span) -> bool {
        let state = self.state.lock();
        state.unsure || state.held.within(span).next().is_some()
    }

    pub(super) fn set_unsure(&self) {
        self.state.lock().unsure = true;
    }

    /// What is held of `span`.
    pub(super) fn held(&self, span: Span) -> Vec<Range> {
        self.state.lock().held.within(span).collect()
    }

    /// As of now: the number of this moment, and everything that is held.
    pub(super) fn snapshot(&self) -> (u64, Vec<Range>) {
        let mut state = self.state.lock();
        state.changes += 1;
        (state.changes, state.held.iter().copied().collect())
    }

    /// The server has given up what was held as of `seen`; false if that has changed since.
    pub(super) fn lose(&self, seen: u64) -> bool {
        let mut state = self.state.lock();
        if state.changes != seen {
            return false;
        }
        state.changes += 1;
        lose(self.key, &mut state);
        true
    }
}

fn lose(key: Key, state: &mut State) {
    let held = std::mem::take(&mut state.held);
    if !held.is_empty() {
        let Key {
            inode,
            space,
            number,
        } = key;
        tracing::error!(%inode, ?space, owner = number, ranges = held.len(), "locks were lost: the metadata server has given them up");
    }
    for range in &held {
        state.lost.set(*range);
    }
    state.unsure = false;
}
