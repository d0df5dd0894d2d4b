//! Who conflicts with whom: the write sets of recent commits, checked against read sets.
//!
//! [`Window`] guarantees: a transaction that passes [`Window::check`] at read version `r` read
//! nothing that a commit later than `r` wrote. It remembers a bounded number of commits; a
//! transaction that read before the oldest of them cannot be judged and is too old.
//!
//! A point read costs one hash look-up. A range read costs a walk over the commits since its
//! snapshot, a few milliseconds' worth for a short transaction, whatever the range holds.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::mutations::Mutations;
use super::{KvError, KvResult, MAX_TRANSACTION_AGE};

/// Commits older than this are forgotten: twice what a transaction may live, because its last
/// part may wait in a queue.
const WINDOW_AGE: Duration = MAX_TRANSACTION_AGE.saturating_mul(2);
/// The window's memory, in bytes, about. More commits than fit make slow transactions too old.
const WINDOW_BYTES: usize = 64 << 20;
/// What a key costs in the window's maps beside its bytes, about.
const KEY_OVERHEAD_BYTES: usize = 128;

/// What a transaction depends on.
#[derive(Debug, Default)]
pub(super) struct ReadSet {
    pub(super) keys: BTreeSet<Bytes>,
    pub(super) ranges: BTreeSet<(Bytes, Bytes)>,
}

impl ReadSet {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }
}

/// What a transaction invalidates.
#[derive(Debug, Default)]
pub(super) struct WriteSet {
    keys: Vec<Bytes>,
    ranges: Vec<(Bytes, Bytes)>,
}

impl WriteSet {
    /// Everything written, and the keys only declared as written.
    pub(super) fn new(mutations: &Mutations, declared: BTreeSet<Bytes>) -> Self {
        Self {
            keys: mutations
                .keys()
                .map(|(key, _)| key.clone())
                .chain(declared)
                .collect(),
            ranges: mutations
                .cleared()
                .map(|(b, e)| (b.clone(), e.clone()))
                .collect(),
        }
    }
}

#[derive(Debug)]
struct Commit {
    version: u64,
    at: Duration,
    keys: Vec<Bytes>,
}

/// The recent commits.
#[derive(Debug)]
pub(super) struct Window {
    /// By version, ascending.
    commits: VecDeque<Commit>,
    /// The version, begin and end of every range in the window; by version, ascending.
    ranges: VecDeque<(u64, Bytes, Bytes)>,
    /// The newest version that wrote each key in the window.
    newest: HashMap<Bytes, u64>,
    /// The newest version that is no longer in the window.
    floor: u64,
    bytes: usize,
    max_bytes: usize,
}

impl Window {
    /// A window that knows nothing about commits up to `floor`.
    pub(super) fn new(floor: u64) -> Self {
        Self::with_limit(floor, WINDOW_BYTES)
    }

    fn with_limit(floor: u64, max_bytes: usize) -> Self {
        Self {
            commits: VecDeque::new(),
            ranges: VecDeque::new(),
            newest: HashMap::new(),
            floor,
            bytes: 0,
            max_bytes,
        }
    }

    /// Whether a transaction that read `reads` at `read_version` may commit now.
    pub(super) fn check(&self, read_version: u64, reads: &ReadSet) -> KvResult<()> {
        if reads.is_empty() {
            return Ok(());
        }
        if read_version < self.floor {
            return Err(KvError::TooOld);
        }
        if reads
            .keys
            .iter()
            .any(|key| self.newest.get(key).is_some_and(|at| *at > read_version))
        {
            return Err(KvError::Conflict);
        }
        for (_, begin, end) in self
            .ranges
            .iter()
            .rev()
            .take_while(|(at, ..)| *at > read_version)
        {
            let mut keys = reads.keys.range(begin.clone()..end.clone());
            let overlaps = |(b, e): &(Bytes, Bytes)| b < end && begin < e;
            if keys.next().is_some() || reads.ranges.iter().any(overlaps) {
                return Err(KvError::Conflict);
            }
        }
        if !reads.ranges.is_empty() {
            let since = self
                .commits
                .iter()
                .rev()
                .take_while(|commit| commit.version > read_version);
            for key in since.flat_map(|commit| &commit.keys) {
                if reads
                    .ranges
                    .iter()
                    .any(|(begin, end)| begin <= key && key < end)
                {
                    return Err(KvError::Conflict);
                }
            }
        }
        Ok(())
    }

    /// Remembers a commit; `version` must exceed all before it.
    pub(super) fn record(&mut self, version: u64, at: Duration, writes: WriteSet) {
        for key in &writes.keys {
            self.newest.insert(key.clone(), version);
        }
        self.bytes += cost(&writes.keys);
        for (begin, end) in writes.ranges {
            self.bytes += range_cost(&begin, &end);
            self.ranges.push_back((version, begin, end));
        }
        self.commits.push_back(Commit {
            version,
            at,
            keys: writes.keys,
        });
        self.forget(at);
    }

    fn forget(&mut self, now: Duration) {
        while let Some(oldest) = self.commits.front() {
            if self.bytes <= self.max_bytes && now.saturating_sub(oldest.at) <= WINDOW_AGE {
                return;
            }
            let Some(oldest) = self.commits.pop_front() else {
                return;
            };
            self.floor = oldest.version;
            self.bytes -= cost(&oldest.keys);
            for key in &oldest.keys {
                if self.newest.get(key) == Some(&oldest.version) {
                    self.newest.remove(key);
                }
            }
            while let Some((_, begin, end)) = self
                .ranges
                .pop_front_if(|(version, ..)| *version <= oldest.version)
            {
                self.bytes -= range_cost(&begin, &end);
            }
        }
    }
}

fn cost(keys: &[Bytes]) -> usize {
    KEY_OVERHEAD_BYTES
        + keys
            .iter()
            .map(|key| key.len() + KEY_OVERHEAD_BYTES)
            .sum::<usize>()
}

fn range_cost(begin: &Bytes, end: &Bytes) -> usize {
    begin.len() + end.len() + KEY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests;
