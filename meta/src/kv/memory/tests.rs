use super::*;
use crate::kv::conformance::{self, Subject};
use crate::kv::{RetryPolicy, run_idempotent};

fn put(engine: &MemoryEngine, key: &[u8]) -> KvResult<CommitVersion> {
    let mut txn = engine.begin();
    txn.put(key, b"v");
    txn.commit()
}

#[test]
fn the_memory_engine_conforms() {
    conformance::all(&|| {
        let engine = MemoryEngine::new();
        let clock = engine.clock().clone();
        Subject {
            engine: Arc::new(engine),
            clock,
        }
    });
}

#[test]
fn every_injected_fault_does_what_it_says() {
    for fault in FAULTS {
        let engine = MemoryEngine::new();
        engine.inject_nth(1, fault);
        assert!(put(&engine, b"before").is_ok());
        let mut open = engine.begin();
        assert!(open.get(b"before").unwrap().is_some());
        open.put(b"open", b"");

        let (error, applied, lost) = match fault {
            Fault::Conflict => (KvError::Conflict, false, false),
            Fault::TooOld => (KvError::TooOld, false, false),
            Fault::Throttled => (KvError::Throttled, false, false),
            Fault::MaybeCommitted { applied } => {
                (KvError::MaybeCommitted("injected".into()), applied, false)
            }
            Fault::Crash { applied } => (KvError::MaybeCommitted("injected".into()), applied, true),
        };
        assert_eq!(put(&engine, b"hit"), Err(error), "{fault:?}");
        assert_eq!(
            engine.begin().get(b"hit").unwrap().is_some(),
            applied,
            "{fault:?}"
        );
        assert_eq!(open.get(b"before").is_err(), lost, "{fault:?}");
        assert_eq!(open.commit().is_err(), lost, "{fault:?}");
        assert!(put(&engine, b"after").is_ok(), "{fault:?}");
    }
}

#[test]
fn a_crash_ends_open_transactions_and_keeps_what_was_committed() {
    let engine = MemoryEngine::new();
    put(&engine, b"k").unwrap();
    let (mut reader, mut blind) = (engine.begin(), engine.begin());
    reader.get(b"k").unwrap();
    blind.put(b"b", b"");
    engine.crash();
    assert_eq!(reader.get(b"k"), Err(KvError::TooOld));
    assert_eq!(blind.commit(), Err(KvError::TooOld));
    assert_eq!(engine.begin().get(b"k").unwrap().unwrap(), "v");
}

#[test]
fn random_faults_are_the_same_for_the_same_seed() {
    let outcomes = |seed| {
        let engine = MemoryEngine::new();
        engine.inject_randomly(seed, 3);
        (0..100).map(|_| put(&engine, b"k")).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(1), outcomes(1));
    assert_ne!(outcomes(1), outcomes(2));
    let failed = outcomes(1)
        .iter()
        .filter(|outcome| outcome.is_err())
        .count();
    assert!(
        (15..60).contains(&failed),
        "{failed} of 100 with one in three"
    );
}

#[test]
fn requests_with_ids_are_exactly_once_under_every_fault() {
    let engine = MemoryEngine::new();
    engine.inject_randomly(9, 2);
    for request in 0..200_u64 {
        run_idempotent(&engine, &RetryPolicy::default(), |txn| {
            let record = [b"R", &request.to_be_bytes()[..]].concat();
            if txn.get(&record)?.is_none() {
                txn.add_i64(b"n", 1);
                txn.put(&record, b"");
            }
            Ok(())
        })
        .unwrap();
    }
    engine.inject_randomly(0, 0);
    assert_eq!(
        engine.begin().get(b"n").unwrap().unwrap(),
        200_i64.to_le_bytes()[..]
    );
}

#[test]
fn deleted_keys_and_old_versions_do_not_pile_up() {
    let engine = MemoryEngine::new();
    let mut reader = engine.begin();
    reader.get(b"k").unwrap();
    for _ in 0..10 {
        put(&engine, b"k").unwrap();
        put(&engine, b"gone").unwrap();
        let mut txn = engine.begin();
        txn.delete_range(b"g".as_slice()..b"h".as_slice());
        txn.commit().unwrap();
    }
    assert!(
        engine.store.state.lock().data[b"k".as_slice()].len() > 5,
        "the reader keeps them"
    );
    drop(reader);
    put(&engine, b"k").unwrap();
    let state = engine.store.state.lock();
    assert_eq!(state.data.len(), 1);
    assert_eq!(state.data[b"k".as_slice()].len(), 1);
    assert!(state.deleted.is_empty() && state.readers.is_empty());
}
