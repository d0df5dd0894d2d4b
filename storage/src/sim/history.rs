//! What clients asked for and saw, and whether it can have happened one after the other.
//!
//! Each chunk is a register that holds bytes. The check is Wing and Gong's search with Lowe's memory of
//! states: take an operation that no other one must precede, apply it, go on; come back when a read does
//! not fit. An operation whose client gave up may take effect at any later time, or never. A read that
//! fits is taken at once: it changes nothing, so taking it later cannot be better.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use emberfs_proto::ids::ChunkKey;

use super::random::Random;

/// States looked at per chunk before the search gives up.
const MOST_STATES: usize = 400_000;

/// What is asked of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write { offset: u32, data: Bytes },
    Truncate { len: u32 },
    Remove,
}

/// An operation in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpIndex(pub(super) usize);

#[derive(Clone, Debug)]
struct Op {
    key: ChunkKey,
    kind: Kind,
    invoked: u64,
    /// `None`: not known to have taken effect.
    returned: Option<u64>,
    shown: Option<Bytes>,
    /// Certainly without effect, or a read that nobody saw.
    void: bool,
    open: bool,
}

/// See the module page.
#[derive(Default)]
pub(super) struct History {
    ops: Vec<Op>,
    random: Option<Random>,
    next_content: u64,
    pub(super) acknowledged: u64,
    pub(super) reads: u64,
    pub(super) unknown: u64,
    /// Chunks of files that were deleted.
    pub(super) removed: BTreeSet<ChunkKey>,
    /// Files that took the place of removed ones, by chunk index.
    generations: BTreeMap<u32, u64>,
}

impl History {
    /// What clients do is drawn from here, in the order in which they do it.
    pub(super) fn random(&mut self, seed: u64) -> &mut Random {
        self.random.get_or_insert_with(|| Random::new(seed, 5))
    }

    /// The chunk with this index of the file that is there now: inode numbers are never used again.
    pub(super) fn current(&self, index: u32) -> ChunkKey {
        ChunkKey::new(self.generations.get(&index).copied().unwrap_or(1), index)
    }

    /// Bytes that no other write has, as far as so few can be told apart.
    pub(super) fn content(&mut self, len: u32) -> Bytes {
        self.next_content += 1;
        let mark = self.next_content.to_le_bytes();
        (0..len as usize)
            .map(|i| mark[i % 2] ^ ((i as u8) << 4))
            .collect()
    }

    /// A removal is for chunks of deleted files: nobody writes them any more.
    pub(super) fn may_remove(&self, key: ChunkKey) -> bool {
        let of = self
            .ops
            .iter()
            .filter(|op| op.key == key && !op.void && op.kind != Kind::Read);
        let mut unsettled = of.filter(|op| op.returned.is_none());
        unsettled.next().is_none() && !self.removing(key)
    }

    fn removing(&self, key: ChunkKey) -> bool {
        self.ops
            .iter()
            .any(|op| op.key == key && op.kind == Kind::Remove && op.open)
    }

    /// While a removal is under way the file is gone, so nobody asks for its chunks.
    pub(super) fn may_begin(&self, key: ChunkKey, kind: &Kind) -> bool {
        let quiet = || self.ops.iter().all(|op| op.key != key || !op.open);
        !self.removing(key) && (*kind != Kind::Remove || quiet())
    }

    pub(super) fn invoke(&mut self, step: u64, key: ChunkKey, kind: Kind) -> OpIndex {
        if kind == Kind::Remove {
            self.removed.insert(key);
        }
        self.ops.push(Op {
            key,
            kind,
            invoked: step,
            returned: None,
            shown: None,
            void: false,
            open: true,
        });
        OpIndex(self.ops.len() - 1)
    }

    pub(super) fn finish(&mut self, step: u64, op: OpIndex, shown: Option<Bytes>) {
        let op = &mut self.ops[op.0];
        op.open = false;
        op.returned = Some(step);
        if op.kind == Kind::Remove {
            *self.generations.entry(op.key.index.0).or_insert(1) += 1;
        }
        if op.kind == Kind::Read {
            self.reads += 1;
        } else {
            self.acknowledged += 1;
        }
        op.shown = shown;
    }

    pub(super) fn give_up(&mut self, op: OpIndex, never: bool) {
        let op = &mut self.ops[op.0];
        op.open = false;
        op.void = never || op.kind == Kind::Read;
        self.unknown += u64::from(!op.void);
    }

    /// `Err`: which chunk's history cannot be put in order. `Ok`: how many were too long to tell.
    pub(super) fn check(&self) -> Result<u64, String> {
        let mut of: BTreeMap<ChunkKey, Vec<&Op>> = BTreeMap::new();
        for op in self
            .ops
            .iter()
            .filter(|op| !(op.void || op.open && op.kind == Kind::Read))
        {
            of.entry(op.key).or_default().push(op);
        }
        let mut undecided = 0;
        for (key, ops) in of {
            match Search::new(ops).run() {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided += 1,
                Verdict::Not(why) => return Err(format!("chunk {key} is not linearizable: {why}")),
            }
        }
        Ok(undecided)
    }
}

enum Verdict {
    Linearizable,
    Undecided,
    Not(String),
}

struct Search<'a> {
    /// By invocation.
    ops: Vec<&'a Op>,
    done: Vec<bool>,
    seen: HashSet<(Vec<u64>, Vec<u8>)>,
    /// How far it came.
    deepest: usize,
    stuck: String,
    budget: usize,
}

fn apply(kind: &Kind, bytes: &mut Vec<u8>) {
    match kind {
        Kind::Read => {}
        Kind::Write { offset, data } => {
            let (from, to) = (*offset as usize, *offset as usize + data.len());
            bytes.resize(bytes.len().max(to), 0);
            bytes[from..to].copy_from_slice(data);
        }
        Kind::Truncate { len } => bytes.truncate(*len as usize),
        Kind::Remove => bytes.clear(),
    }
}

impl<'a> Search<'a> {
    fn new(mut ops: Vec<&'a Op>) -> Self {
        ops.sort_by_key(|op| op.invoked);
        Self {
            done: vec![false; ops.len()],
            ops,
            seen: HashSet::new(),
            deepest: 0,
            stuck: String::new(),
            budget: MOST_STATES,
        }
    }

    fn run(mut self) -> Verdict {
        match self.search(0, Vec::new(), 0) {
            Some(true) => Verdict::Linearizable,
            Some(false) => Verdict::Not(self.stuck),
            None => Verdict::Undecided,
        }
    }

    /// `first`: all before it are done. `None`: out of budget.
    fn search(&mut self, mut first: usize, mut bytes: Vec<u8>, mut count: usize) -> Option<bool> {
        let mut taken = Vec::new();
        let undo =
            |this: &mut Self, taken: &[usize]| taken.iter().for_each(|&i| this.done[i] = false);
        // All reads that fit, as long as there are any.
        loop {
            while first < self.ops.len() && self.done[first] {
                first += 1;
            }
            let candidates = self.candidates(first);
            let fits = candidates.iter().copied().find(|&i| {
                let shown = self.ops[i].shown.as_deref();
                self.ops[i].kind == Kind::Read && shown == Some(&bytes[..])
            });
            let Some(read) = fits else { break };
            self.done[read] = true;
            taken.push(read);
            count += 1;
        }
        let candidates = self.candidates(first);
        if candidates.iter().all(|&i| self.ops[i].returned.is_none()) {
            // What is left may never have happened.
            return Some(true);
        }
        if count >= self.deepest {
            self.deepest = count;
            let of = candidates.iter().map(|&i| {
                let op = self.ops[i];
                format!(
                    "\n  {:?} [{}, {:?}] saw {:?}",
                    op.kind, op.invoked, op.returned, op.shown
                )
            });
            self.stuck = format!(
                "after {count} operations it holds {:?}, none of these fits:{}",
                Bytes::from(bytes.clone()),
                of.collect::<String>()
            );
        }
        let mut bits = vec![first as u64];
        let mut word = 0u64;
        for (n, done) in self.done[first..].iter().enumerate() {
            word |= u64::from(*done) << (n % 64);
            if n % 64 == 63 {
                bits.push(std::mem::take(&mut word));
            }
        }
        bits.push(word);
        // Nothing after the last done one matters.
        while bits.len() > 1 && bits.last() == Some(&0) {
            bits.pop();
        }
        if !self.seen.insert((bits, bytes.clone())) {
            undo(self, &taken);
            return Some(false);
        }
        self.budget = self.budget.checked_sub(1)?;
        for i in candidates {
            if self.ops[i].kind == Kind::Read {
                continue;
            }
            let mut next = bytes.clone();
            apply(&self.ops[i].kind, &mut next);
            self.done[i] = true;
            if self.search(first, std::mem::take(&mut next), count + 1)? {
                return Some(true);
            }
            self.done[i] = false;
        }
        bytes.clear();
        undo(self, &taken);
        Some(false)
    }

    /// Those that may come next: invoked before any of the rest returned. Those that returned first.
    fn candidates(&self, first: usize) -> Vec<usize> {
        let mut earliest = u64::MAX;
        let mut found = Vec::new();
        for i in first..self.ops.len() {
            if self.ops[i].invoked > earliest {
                break;
            }
            if !self.done[i] {
                earliest = earliest.min(self.ops[i].returned.unwrap_or(u64::MAX));
                found.push(i);
            }
        }
        found.retain(|&i| self.ops[i].invoked <= earliest);
        found.sort_by_key(|&i| self.ops[i].returned.unwrap_or(u64::MAX));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: Kind, invoked: u64, returned: Option<u64>, shown: &[u8]) -> Op {
        let read = kind == Kind::Read;
        Op {
            key: ChunkKey::new(1u64, 0u32),
            kind,
            invoked,
            returned,
            shown: read.then(|| Bytes::copy_from_slice(shown)),
            void: false,
            open: false,
        }
    }

    fn write(data: &'static [u8], invoked: u64, returned: Option<u64>) -> Op {
        let data = Bytes::from_static(data);
        op(Kind::Write { offset: 0, data }, invoked, returned, b"")
    }

    fn linearizable(ops: Vec<Op>) -> bool {
        let history = History {
            ops,
            ..History::default()
        };
        history.check() == Ok(0)
    }

    #[test]
    fn a_read_must_not_go_back_in_time() {
        let read = |shown, from, to| op(Kind::Read, from, Some(to), shown);
        let ops = |second: &'static [u8]| {
            vec![
                write(b"a", 1, Some(2)),
                write(b"b", 3, Some(9)),
                read(b"b", 4, 5),
                read(second, 6, 7),
            ]
        };
        assert!(linearizable(ops(b"b")));
        assert!(!linearizable(ops(b"a")));
    }

    #[test]
    fn a_write_without_an_answer_may_come_late_or_never_but_once() {
        let read = |shown, at| op(Kind::Read, at, Some(at), shown);
        let lost = || write(b"x", 1, None);
        assert!(linearizable(vec![lost(), read(b"", 5)]));
        let late = |third| {
            vec![
                lost(),
                write(b"y", 2, Some(3)),
                read(b"x", 5),
                write(b"z", 6, Some(7)),
                read(third, 9),
            ]
        };
        assert!(linearizable(late(b"z")));
        assert!(!linearizable(late(b"x")), "applied twice");
    }

    #[test]
    fn an_acknowledged_write_must_be_there() {
        let ops = vec![write(b"a", 1, Some(2)), op(Kind::Read, 3, Some(4), b"")];
        assert!(!linearizable(ops));
    }
}
