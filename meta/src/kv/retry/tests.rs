use super::*;
use crate::kv::memory::{Fault, MemoryEngine};

fn impatient() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 3,
        ..RetryPolicy::default()
    }
}

#[test]
fn every_transient_fault_is_survived() {
    let engine = MemoryEngine::new();
    for fault in [Fault::Conflict, Fault::TooOld, Fault::Throttled] {
        engine.inject(fault);
    }
    let mut runs = 0;
    run(&engine, &RetryPolicy::default(), |txn| {
        runs += 1;
        txn.put(b"k", b"v");
        Ok(())
    })
    .unwrap();
    assert_eq!(runs, 4);
}

#[test]
fn attempts_are_bounded_and_the_last_error_is_told() {
    let engine = MemoryEngine::new();
    for nth in 0..9 {
        engine.inject_nth(nth, Fault::Conflict);
    }
    let mut runs = 0;
    let error = run(&engine, &impatient(), |txn| {
        runs += 1;
        txn.put(b"k", b"v");
        Ok(())
    })
    .unwrap_err();
    assert_eq!((runs, error.code), (3, ErrorCode::Conflict));
    assert!(
        error.message.contains("gave up after 3 attempts"),
        "{error}"
    );
}

#[test]
fn the_deadline_ends_the_attempts() {
    let engine = MemoryEngine::new();
    engine.inject(Fault::Conflict);
    let policy = RetryPolicy {
        deadline: Duration::ZERO,
        ..RetryPolicy::default()
    };
    let error = run(&engine, &policy, |txn| {
        txn.put(b"k", b"v");
        Ok(())
    })
    .unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
}

#[test]
fn an_error_of_the_body_is_returned_and_nothing_is_written() {
    let engine = MemoryEngine::new();
    let mut runs = 0;
    let error = run(&engine, &RetryPolicy::default(), |txn| -> Result<()> {
        runs += 1;
        txn.put(b"k", b"v");
        Err(Error::new(ErrorCode::NotFound, "no such file"))
    })
    .unwrap_err();
    assert_eq!((runs, error.code), (1, ErrorCode::NotFound));
    assert_eq!(engine.begin().get(b"k").unwrap(), None);
}

#[test]
fn an_unknown_outcome_is_returned_to_those_who_cannot_run_twice() {
    for applied in [false, true] {
        let engine = MemoryEngine::new();
        engine.inject(Fault::MaybeCommitted { applied });
        let error = run(&engine, &RetryPolicy::default(), |txn| {
            txn.add_i64(b"n", 1);
            Ok(())
        })
        .unwrap_err();
        assert_eq!(error.code, ErrorCode::MaybeCommitted);
        assert_eq!(engine.begin().get(b"n").unwrap().is_some(), applied);
    }
}

#[test]
fn a_recorded_request_id_makes_an_unknown_outcome_exactly_once() {
    let faults = [
        Fault::MaybeCommitted { applied: false },
        Fault::MaybeCommitted { applied: true },
        Fault::Crash { applied: false },
        Fault::Crash { applied: true },
    ];
    for fault in faults {
        let engine = MemoryEngine::new();
        engine.inject(fault);
        let answer = run_idempotent(&engine, &RetryPolicy::default(), |txn| {
            if let Some(answer) = txn.get(b"R1")? {
                return Ok(answer);
            }
            txn.add_i64(b"n", 1);
            txn.put(b"R1", b"done");
            Ok("done".into())
        });
        assert_eq!(answer.unwrap(), "done");
        assert_eq!(
            engine.begin().get(b"n").unwrap().unwrap(),
            1_i64.to_le_bytes()[..]
        );
    }
}

#[test]
fn an_outcome_that_stays_unknown_is_reported_as_unknown() {
    let engine = MemoryEngine::new();
    engine.inject(Fault::MaybeCommitted { applied: true });
    engine.inject_nth(1, Fault::Conflict);
    engine.inject_nth(2, Fault::Conflict);
    let error = run_idempotent(&engine, &impatient(), |txn| {
        txn.put(b"k", b"v");
        Ok(())
    })
    .unwrap_err();
    assert_eq!(error.code, ErrorCode::MaybeCommitted);
}
