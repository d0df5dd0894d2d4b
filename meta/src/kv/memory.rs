//! The engine for tests and simulation: in memory, deterministic, and able to fail in every way
//! that the contract allows. Never for a real cluster: it forgets everything when it is dropped.
//!
//! Given the same calls in the same order it gives the same answers: it has no thread, and its
//! time is a [`Clock`] moved by hand.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::conflict::Window;
use super::mutations::Write;
use super::transaction::{CommitRequest, OptimisticTransaction, Snapshot, Store, Visit};
use super::{
    Clock, CommitVersion, Engine, KvError, KvResult, LogPosition, TellDurable, Transaction,
};

/// A failure that the contract allows. It hits transactions that write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The commit is refused as if another transaction had won.
    Conflict,
    /// The commit is refused as too old.
    TooOld,
    /// The commit is refused for load.
    Throttled,
    /// The outcome is unknown to the caller; `applied` tells what it really is.
    MaybeCommitted {
        /// Whether the commit happened.
        applied: bool,
    },
    /// The store crashes between writing its log and answering (`applied`), or just before
    /// writing it. The caller learns an unknown outcome; every other open transaction is lost
    /// and answers [`KvError::TooOld`] from then on.
    Crash {
        /// Whether the commit happened.
        applied: bool,
    },
}

/// Every fault, for random injection.
const FAULTS: [Fault; 7] = [
    Fault::Conflict,
    Fault::TooOld,
    Fault::Throttled,
    Fault::MaybeCommitted { applied: false },
    Fault::MaybeCommitted { applied: true },
    Fault::Crash { applied: false },
    Fault::Crash { applied: true },
];

/// The store. Clones share it.
#[derive(Clone)]
pub struct MemoryEngine {
    store: Arc<MemoryStore>,
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryEngine {
    /// An empty store with a clock of its own, which stands still.
    pub fn new() -> Self {
        Self::with_clock(Clock::manual())
    }

    /// An empty store that takes the age of transactions from `clock`.
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            store: Arc::new(MemoryStore {
                clock,
                state: Mutex::new(State::new()),
            }),
        }
    }

    /// The clock that limits the age of transactions.
    pub fn clock(&self) -> &Clock {
        &self.store.clock
    }

    /// Fails the next commit of a transaction that writes; several wait in line.
    pub fn inject(&self, fault: Fault) {
        let mut state = self.store.state.lock();
        let mut at = state.attempts;
        while state.faults.contains_key(&at) {
            at += 1;
        }
        state.faults.insert(at, fault);
    }

    /// Lets `skip` such commits pass from now on, then fails one.
    pub fn inject_nth(&self, skip: u64, fault: Fault) {
        let mut state = self.store.state.lock();
        let at = state.attempts + skip;
        state.faults.insert(at, fault);
    }

    /// From now on fails about one such commit in `one_in`, each in a random way; the same seed
    /// gives the same failures. 0 ends it.
    pub fn inject_randomly(&self, seed: u64, one_in: u32) {
        self.store.state.lock().random =
            (one_in > 0).then(|| (StdRng::seed_from_u64(seed), one_in));
    }

    /// Crashes and restarts the store: what was committed stays, every open transaction is lost.
    pub fn crash(&self) {
        self.store.state.lock().epoch += 1;
    }
}

impl Engine for MemoryEngine {
    fn begin(&self) -> Box<dyn Transaction> {
        Box::new(OptimisticTransaction::new(Arc::clone(&self.store)))
    }

    fn when_durable(&self, _version: CommitVersion, tell: TellDurable) {
        tell(Ok(()));
    }

    fn position(&self) -> LogPosition {
        LogPosition {
            start: 0,
            // There is no power to lose.
            durable: CommitVersion(u64::MAX),
        }
    }

    fn end_of(&self, _start: u64) -> Option<CommitVersion> {
        None
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    /// Does not wait: a simulation's time is not the host's.
    fn pause(&self, _time: Duration) {
        std::thread::yield_now();
    }
}

struct MemoryStore {
    clock: Clock,
    state: Mutex<State>,
}

/// The versions of one key that somebody may still read: ascending; none for a deletion.
type History = VecDeque<(u64, Option<Bytes>)>;

struct State {
    data: BTreeMap<Bytes, History>,
    window: Window,
    version: u64,
    epoch: u64,
    /// How many open snapshots read at each version.
    readers: BTreeMap<u64, usize>,
    /// Keys with a deletion that a reader kept from being removed.
    deleted: Vec<Bytes>,
    /// Commits of transactions that write, successful or not.
    attempts: u64,
    faults: BTreeMap<u64, Fault>,
    random: Option<(StdRng, u32)>,
}

fn at(history: &History, version: u64) -> Option<&Bytes> {
    history
        .iter()
        .rev()
        .find(|(written, _)| *written <= version)?
        .1
        .as_ref()
}

impl State {
    fn new() -> Self {
        Self {
            data: BTreeMap::new(),
            window: Window::new(0),
            version: 0,
            epoch: 0,
            readers: BTreeMap::new(),
            deleted: Vec::new(),
            attempts: 0,
            faults: BTreeMap::new(),
            random: None,
        }
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let planned = self.faults.remove(&self.attempts);
        self.attempts += 1;
        let drawn = self.random.as_mut().and_then(|(random, one_in)| {
            let hit = random.random_ratio(1, *one_in);
            hit.then(|| FAULTS[random.random_range(0..FAULTS.len())])
        });
        planned.or(drawn)
    }

    fn commit(&mut self, request: CommitRequest, now: Duration) -> KvResult<CommitVersion> {
        if request.epoch != self.epoch {
            return Err(KvError::TooOld);
        }
        let fault = self.next_fault();
        self.window.check(request.read_version, &request.reads)?;
        request.bounds.check(&request.mutations, |key| {
            let history = self.data.get(key);
            Ok(history.and_then(|all| at(all, self.version)).cloned())
        })?;
        let unknown = || Err(KvError::MaybeCommitted("injected".into()));
        match fault {
            None => Ok(self.apply(request, now)),
            Some(Fault::Conflict) => Err(KvError::Conflict),
            Some(Fault::TooOld) => Err(KvError::TooOld),
            Some(Fault::Throttled) => Err(KvError::Throttled),
            Some(fault @ (Fault::MaybeCommitted { applied } | Fault::Crash { applied })) => {
                if applied {
                    self.apply(request, now);
                }
                self.epoch += u64::from(matches!(fault, Fault::Crash { .. }));
                unknown()
            }
        }
    }

    fn apply(&mut self, request: CommitRequest, now: Duration) -> CommitVersion {
        let CommitRequest {
            writes,
            mut mutations,
            ..
        } = request;
        let read = |key: &[u8]| {
            Ok(self
                .data
                .get(key)
                .and_then(|all| at(all, self.version))
                .cloned())
        };
        // Reading memory cannot fail.
        let _ = mutations.resolve(read);
        self.version += 1;
        self.window.record(self.version, now, writes);
        for (begin, end) in mutations.cleared() {
            let covered: Vec<Bytes> = self
                .data
                .range(begin.clone()..end.clone())
                .map(|(key, _)| key.clone())
                .collect();
            for key in covered {
                self.write(key, None);
            }
        }
        for (key, write) in mutations.keys() {
            match write {
                Write::Put(value) => self.write(key.clone(), Some(value.clone())),
                Write::Delete => self.write(key.clone(), None),
                Write::Atomic(_) => unreachable!("resolve leaves none"),
            }
        }
        CommitVersion(self.version)
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        if value.is_none() {
            self.deleted.push(key.clone());
        }
        let history = self.data.entry(key).or_default();
        if history
            .back()
            .is_some_and(|(version, _)| *version == self.version)
        {
            history.pop_back();
        }
        history.push_back((self.version, value));
        // Keep what the oldest reader sees and everything later.
        let oldest = self
            .readers
            .first_key_value()
            .map_or(self.version, |(version, _)| *version);
        while history
            .get(1)
            .is_some_and(|(version, _)| *version <= oldest)
        {
            history.pop_front();
        }
        if self.readers.is_empty() {
            self.forget_deleted();
        }
    }

    fn forget_deleted(&mut self) {
        for key in self.deleted.drain(..) {
            if self
                .data
                .get(&key)
                .is_some_and(|history| at(history, u64::MAX).is_none())
            {
                self.data.remove(&key);
            }
        }
    }
}

impl Store for MemoryStore {
    type Snapshot = MemorySnapshot;

    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    fn snapshot(self: &Arc<Self>) -> KvResult<MemorySnapshot> {
        let mut state = self.state.lock();
        let (version, epoch) = (state.version, state.epoch);
        *state.readers.entry(version).or_default() += 1;
        Ok(MemorySnapshot {
            version,
            epoch,
            store: Arc::clone(self),
        })
    }

    fn commit(&self, request: CommitRequest) -> KvResult<CommitVersion> {
        self.state.lock().commit(request, self.clock.now())
    }

    fn settle(&self, _version: CommitVersion) -> KvResult<()> {
        Ok(())
    }
}

struct MemorySnapshot {
    version: u64,
    epoch: u64,
    store: Arc<MemoryStore>,
}

impl MemorySnapshot {
    fn check(&self, state: &State) -> KvResult<()> {
        if state.epoch == self.epoch {
            Ok(())
        } else {
            Err(KvError::TooOld)
        }
    }
}

impl Snapshot for MemorySnapshot {
    fn version(&self) -> u64 {
        self.version
    }

    fn get(&self, key: &[u8]) -> KvResult<Option<Bytes>> {
        let state = self.store.state.lock();
        self.check(&state)?;
        Ok(state
            .data
            .get(key)
            .and_then(|history| at(history, self.version))
            .cloned())
    }

    fn scan(&self, begin: &[u8], end: &[u8], reverse: bool, visit: &mut Visit<'_>) -> KvResult<()> {
        let state = self.store.state.lock();
        self.check(&state)?;
        let bounds = (
            std::ops::Bound::Included(begin),
            std::ops::Bound::Excluded(end),
        );
        let range = state.data.range::<[u8], _>(bounds);
        let mut step = |(key, history): (&Bytes, &History)| {
            at(history, self.version).is_none_or(|value| visit(key, value))
        };
        if reverse {
            range.rev().all(&mut step);
        } else {
            let mut range = range;
            range.all(&mut step);
        }
        Ok(())
    }
}

impl Drop for MemorySnapshot {
    fn drop(&mut self) {
        let mut state = self.store.state.lock();
        if let Some(readers) = state.readers.get_mut(&self.version) {
            *readers -= 1;
            if *readers == 0 {
                state.readers.remove(&self.version);
            }
        }
        if state.readers.is_empty() {
            state.forget_deleted();
        }
    }
}

#[cfg(test)]
mod tests;
