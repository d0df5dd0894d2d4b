//! What every engine must do, as properties that panic when it does not.
//!
//! An engine's tests call [`all`] with a way to open an empty store. Each property is also
//! callable on its own.

#![expect(
    clippy::unwrap_used,
    reason = "tests: a failed unwrap is a failed property"
)]

use std::sync::Arc;

use super::{Clock, CommitVersion, Engine, KvError, KvResult};

pub mod anomalies;
pub mod bounds;
pub mod conflicts;
pub mod histories;
pub mod limits;
pub mod reads;

/// An empty store under test.
pub struct Subject {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The clock that limits the age of its transactions; one moved by hand if the engine can.
    pub clock: Clock,
}

/// A property.
pub type Property = fn(&Subject);

/// Every property with its name.
pub const PROPERTIES: &[(&str, Property)] = &[
    ("a lost update is refused", anomalies::lost_update),
    ("write skew is refused", anomalies::write_skew),
    (
        "an emptied range is guarded against phantoms",
        anomalies::phantom,
    ),
    (
        "rmdir and create cannot both commit",
        anomalies::rmdir_against_create,
    ),
    (
        "creates in one directory commit together",
        anomalies::parallel_creates,
    ),
    (
        "the read-only anomaly cannot be seen",
        anomalies::read_only_anomaly,
    ),
    (
        "a recorded request id makes a commit exactly once",
        anomalies::exactly_once,
    ),
    ("a transaction reads one snapshot", reads::one_snapshot),
    ("a transaction reads its own writes", reads::own_writes),
    (
        "own writes overlay every read like a plain map",
        reads::own_writes_against_a_model,
    ),
    (
        "an acknowledged commit is seen by the next transaction",
        reads::acknowledged_is_visible,
    ),
    (
        "a dropped transaction leaves nothing",
        reads::dropped_is_gone,
    ),
    (
        "every kind of write conflicts with a read of its key",
        conflicts::writes_against_key,
    ),
    (
        "every kind of write conflicts with a read of its range",
        conflicts::writes_against_range,
    ),
    (
        "writes outside what was read do not conflict",
        conflicts::outside,
    ),
    ("a limit cuts the conflict range", conflicts::limited_range),
    ("snapshot reads do not conflict", conflicts::snapshot_reads),
    (
        "reading what oneself wrote does not conflict",
        conflicts::own_keys,
    ),
    (
        "explicit conflicts act like reads and writes",
        conflicts::explicit,
    ),
    ("blind writes never conflict", conflicts::blind_writes),
    (
        "a bounded add counts all that its transaction does",
        bounds::one_transaction,
    ),
    (
        "bounded adds conflict with nobody and fill to the limit",
        bounds::fill_exactly,
    ),
    ("key sizes are limited", limits::keys),
    ("value sizes are limited", limits::values),
    ("transaction sizes are limited", limits::sizes),
    ("conflict sets count as size", limits::conflict_sets),
    (
        "the engine's own keys are out of reach",
        limits::reserved_keys,
    ),
    ("transactions age", limits::age),
    (
        "blind adds from many threads sum exactly",
        histories::blind_adds,
    ),
    ("transfers keep the sum", histories::transfers),
    ("random histories are serializable", histories::serializable),
];

/// Runs every property on a fresh store.
///
/// # Panics
/// When one does not hold; the name of the property precedes the reason.
pub fn all(open: &dyn Fn() -> Subject) {
    for (name, property) in PROPERTIES {
        let subject = open();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| property(&subject)));
        if let Err(panic) = outcome {
            let why = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref().copied())
                .unwrap_or("see above");
            panic!("engine {}: {name}: {why}", subject.engine.name());
        }
    }
}

/// Commits these pairs.
fn fill(subject: &Subject, pairs: &[(&str, &str)]) {
    let mut txn = subject.engine.begin();
    for (key, value) in pairs {
        txn.put(key.as_bytes(), value.as_bytes());
    }
    txn.commit().expect("a blind write commits");
}

/// A key's value in a transaction of its own.
fn peek(subject: &Subject, key: &str) -> Option<String> {
    let value = subject
        .engine
        .begin()
        .get(key.as_bytes())
        .expect("a read succeeds");
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// A number's value in a transaction of its own.
fn peek_i64(subject: &Subject, key: &str) -> i64 {
    let value = subject
        .engine
        .begin()
        .get(key.as_bytes())
        .expect("a read succeeds");
    value.map_or(0, |value| {
        i64::from_le_bytes(value[..].try_into().expect("8 bytes"))
    })
}

#[track_caller]
fn refused(outcome: &KvResult<CommitVersion>) {
    assert_eq!(
        *outcome,
        Err(KvError::Conflict),
        "the commit must be refused"
    );
}

#[track_caller]
fn accepted(outcome: &KvResult<CommitVersion>) {
    assert!(outcome.is_ok(), "the commit must succeed: {outcome:?}");
}

#[cfg(test)]
mod tests;
