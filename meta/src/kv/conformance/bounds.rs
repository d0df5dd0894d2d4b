//! Numbers that may not exceed a limit.

use std::thread;

use super::{Subject, accepted, fill, peek, peek_i64};
use crate::kv::KvError;

/// What counts is the number after the transaction, in whatever order it was changed; a refused one leaves nothing.
pub fn one_transaction(subject: &Subject) {
    let outcome = |changes: &[(i64, Option<i64>)]| {
        let mut txn = subject.engine.begin();
        for (delta, max) in changes {
            match max {
                Some(max) => txn.add_at_most(b"n", *delta, *max),
                None => txn.add_i64(b"n", *delta),
            }
        }
        txn.put(b"other", b"written");
        txn.commit().map(drop)
    };
    assert_eq!(outcome(&[(11, Some(10))]), Err(KvError::AboveLimit));
    assert_eq!((peek(subject, "n"), peek(subject, "other")), (None, None));
    assert_eq!(outcome(&[(10, Some(10))]), Ok(()));
    assert_eq!(outcome(&[(1, Some(10))]), Err(KvError::AboveLimit));
    assert_eq!(outcome(&[(1, Some(10)), (-1, None)]), Ok(()));
    assert_eq!(outcome(&[(-5, None), (5, Some(10))]), Ok(()));
    assert_eq!(outcome(&[(0, Some(9))]), Err(KvError::AboveLimit));
    let (low, high) = ((1, Some(11)), (1, Some(12)));
    assert_eq!(outcome(&[low, high]), Err(KvError::AboveLimit));
    assert_eq!(peek_i64(subject, "n"), 10);
    // Those without a limit pass it, and a number may be put there as well.
    assert_eq!(outcome(&[(90, None)]), Ok(()));
    assert_eq!(outcome(&[(-1, Some(99))]), Ok(()));
    let mut txn = subject.engine.begin();
    txn.put(b"n", &5_i64.to_le_bytes());
    txn.add_at_most(b"n", 1, 6);
    accepted(&txn.commit());
    let mut txn = subject.engine.begin();
    txn.delete(b"n");
    txn.add_at_most(b"n", 7, 6);
    assert_eq!(txn.commit().map(drop), Err(KvError::AboveLimit));
    let mut txn = subject.engine.begin();
    txn.add_at_most(b"n", 3, 100);
    let seen = txn.get_snapshot(b"n").unwrap().unwrap();
    assert_eq!(seen[..], 9_i64.to_le_bytes(), "it reads its own add");
}

/// Eight threads add what they can, all begun before anybody commits: no commit conflicts, and together they reach the
/// limit exactly.
pub fn fill_exactly(subject: &Subject) {
    const MAX: i64 = 100;
    fill(subject, &[("directory", "")]);
    let won = thread::scope(|scope| {
        let threads = (0..8).map(|_| {
            scope.spawn(|| {
                let begin = || {
                    let mut txn = subject.engine.begin();
                    assert!(txn.get(b"directory").unwrap().is_some());
                    txn.add_at_most(b"n", 1, MAX);
                    txn
                };
                let all: Vec<_> = (0..25).map(|_| begin()).collect();
                let mut won = 0;
                for txn in all {
                    match txn.commit() {
                        Ok(_) => won += 1,
                        refused => assert_eq!(refused, Err(KvError::AboveLimit)),
                    }
                }
                won
            })
        });
        let threads: Vec<_> = threads.collect();
        let counts = threads.into_iter().map(|thread| thread.join().unwrap());
        counts.sum::<i64>()
    });
    assert_eq!((won, peek_i64(subject, "n")), (MAX, MAX));
}
