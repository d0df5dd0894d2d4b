//! The suite itself can fail: an engine with weaker isolation does not pass it.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::histories::{Committed, Step, replay};
use super::*;
use crate::kv::{LogPosition, MemoryEngine, TellDurable, Transaction};

/// Which part of the contract an engine breaks.
#[derive(Clone, Copy)]
enum Weakness {
    /// Reads of keys do not conflict: snapshot isolation without first-committer-wins.
    KeysUnchecked,
    /// Reads of ranges do not conflict: phantoms.
    RangesUnchecked,
    /// Declared writes are forgotten.
    DeclarationsForgotten,
    /// Limits of numbers are not checked.
    LimitsIgnored,
}

struct Weak(MemoryEngine, Weakness);

struct WeakTransaction(Box<dyn Transaction>, Weakness);

impl Engine for Weak {
    fn begin(&self) -> Box<dyn Transaction> {
        Box::new(WeakTransaction(self.0.begin(), self.1))
    }

    fn when_durable(&self, version: CommitVersion, tell: TellDurable) {
        self.0.when_durable(version, tell);
    }

    fn position(&self) -> LogPosition {
        self.0.position()
    }

    fn end_of(&self, start: u64) -> Option<CommitVersion> {
        self.0.end_of(start)
    }

    fn name(&self) -> &'static str {
        "weak"
    }
}

impl Transaction for WeakTransaction {
    fn get(&mut self, key: &[u8]) -> KvResult<Option<Bytes>> {
        match self.1 {
            Weakness::KeysUnchecked => self.0.get_snapshot(key),
            _ => self.0.get(key),
        }
    }
    fn get_snapshot(&mut self, key: &[u8]) -> KvResult<Option<Bytes>> {
        self.0.get_snapshot(key)
    }
    fn get_range(
        &mut self,
        range: Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>> {
        match self.1 {
            Weakness::RangesUnchecked => self.0.get_range_snapshot(range, limit, reverse),
            _ => self.0.get_range(range, limit, reverse),
        }
    }
    fn get_range_snapshot(
        &mut self,
        range: Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>> {
        self.0.get_range_snapshot(range, limit, reverse)
    }
    fn add_read_conflict_key(&mut self, key: &[u8]) {
        self.0.add_read_conflict_key(key);
    }
    fn add_read_conflict_range(&mut self, range: Range<&[u8]>) {
        self.0.add_read_conflict_range(range);
    }
    fn add_write_conflict_key(&mut self, key: &[u8]) {
        if !matches!(self.1, Weakness::DeclarationsForgotten) {
            self.0.add_write_conflict_key(key);
        }
    }
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.put(key, value);
    }
    fn delete(&mut self, key: &[u8]) {
        self.0.delete(key);
    }
    fn delete_range(&mut self, range: Range<&[u8]>) {
        self.0.delete_range(range);
    }
    fn add_i64(&mut self, key: &[u8], delta: i64) {
        self.0.add_i64(key, delta);
    }
    fn add_at_most(&mut self, key: &[u8], delta: i64, max: i64) {
        match self.1 {
            Weakness::LimitsIgnored => self.0.add_i64(key, delta),
            _ => self.0.add_at_most(key, delta, max),
        }
    }
    fn max_u64(&mut self, key: &[u8], value: u64) {
        self.0.max_u64(key, value);
    }
    fn commit(self: Box<Self>) -> KvResult<CommitVersion> {
        self.0.commit()
    }
    fn commit_soon(self: Box<Self>) -> KvResult<CommitVersion> {
        self.0.commit_soon()
    }
}

fn passes(weakness: Weakness, property: Property) -> bool {
    let engine = MemoryEngine::new();
    let clock = engine.clock().clone();
    let subject = Subject {
        engine: Arc::new(Weak(engine, weakness)),
        clock,
    };
    catch_unwind(AssertUnwindSafe(|| property(&subject))).is_ok()
}

#[test]
fn an_engine_that_does_not_check_key_reads_is_caught() {
    let properties: [Property; 5] = [
        anomalies::lost_update,
        anomalies::write_skew,
        anomalies::read_only_anomaly,
        anomalies::exactly_once,
        conflicts::writes_against_key,
    ];
    for property in properties {
        assert!(!passes(Weakness::KeysUnchecked, property));
    }
    assert!(passes(
        Weakness::KeysUnchecked,
        conflicts::writes_against_range
    ));
}

#[test]
fn an_engine_that_does_not_check_range_reads_is_caught() {
    let properties: [Property; 3] = [
        anomalies::phantom,
        conflicts::writes_against_range,
        conflicts::limited_range,
    ];
    for property in properties {
        assert!(!passes(Weakness::RangesUnchecked, property));
    }
    assert!(passes(Weakness::RangesUnchecked, anomalies::write_skew));
}

#[test]
fn an_engine_that_forgets_declared_writes_is_caught() {
    let properties: [Property; 2] = [anomalies::rmdir_against_create, conflicts::explicit];
    for property in properties {
        assert!(!passes(Weakness::DeclarationsForgotten, property));
    }
}

#[test]
fn an_engine_that_ignores_limits_is_caught() {
    for property in [bounds::one_transaction, bounds::fill_exactly] {
        assert!(!passes(Weakness::LimitsIgnored, property));
    }
}

fn committed(version: u64, not_before: u64, steps: Vec<Step>) -> Committed {
    let writes = steps
        .iter()
        .any(|step| !matches!(step, Step::Get(..) | Step::Range(..)));
    Committed {
        version,
        writes,
        not_before,
        steps,
    }
}

#[test]
fn the_replay_finds_histories_without_a_serial_order() {
    let put = |key: &[u8]| Step::Put(key.to_vec(), b"new".to_vec());
    let absent = |key: &[u8]| Step::Get(key.to_vec(), None);
    let found = |key: &[u8]| Step::Get(key.to_vec(), Some(b"new".to_vec()));
    let judge =
        |history: Vec<Committed>| replay(std::collections::BTreeMap::new(), history).is_ok();

    let skew = |second| {
        vec![
            committed(1, 0, vec![absent(b"x"), put(b"y")]),
            committed(2, 0, vec![second, put(b"x")]),
        ]
    };
    assert!(judge(skew(found(b"y"))));
    assert!(!judge(skew(absent(b"y"))), "write skew");

    let one = || committed(1, 0, vec![put(b"x")]);
    assert!(
        judge(vec![committed(1, 1, vec![found(b"x")]), one()]),
        "a reader comes after its writer"
    );
    assert!(
        !judge(vec![one(), committed(0, 1, vec![absent(b"x")])]),
        "a stale reader"
    );
    assert!(
        !judge(vec![one(), committed(1, 0, vec![put(b"y")])]),
        "a version used twice"
    );
    let empty = Step::Range(b"a".to_vec(), b"z".to_vec(), 9, false, Vec::new());
    assert!(
        !judge(vec![one(), committed(2, 0, vec![empty, put(b"z")])]),
        "a phantom"
    );
}
