//! Every limit of the contract, at its edge: the largest legal and the smallest illegal.

use std::time::Duration;

use super::{Subject, accepted, fill, peek};
use crate::kv::{
    KvError, MAX_KEY_BYTES, MAX_TRANSACTION_AGE, MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES,
    Transaction,
};

/// The outcome of a transaction of one call.
fn outcome(subject: &Subject, act: impl FnOnce(&mut dyn Transaction)) -> Result<(), KvError> {
    let mut txn = subject.engine.begin();
    act(&mut *txn);
    txn.commit().map(drop)
}

/// Keys of every call.
pub fn keys(subject: &Subject) {
    let (longest, longer) = (vec![b'k'; MAX_KEY_BYTES], vec![b'k'; MAX_KEY_BYTES + 1]);
    let too_large = Err(KvError::KeyTooLarge(longer.len()));
    accepted(&{
        let mut txn = subject.engine.begin();
        txn.put(&longest, b"v");
        txn.commit()
    });
    assert_eq!(subject.engine.begin().get(&longest).unwrap().unwrap(), "v");
    let exactly: std::ops::Range<&[u8]> = &longest..&longer;
    assert_eq!(
        subject
            .engine
            .begin()
            .get_range(exactly, 9, false)
            .unwrap()
            .len(),
        1
    );

    assert_eq!(outcome(subject, |txn| txn.put(&longer, b"")), too_large);
    assert_eq!(outcome(subject, |txn| txn.delete(&longer)), too_large);
    assert_eq!(outcome(subject, |txn| txn.add_i64(&longer, 1)), too_large);
    assert_eq!(outcome(subject, |txn| txn.max_u64(&longer, 1)), too_large);
    assert_eq!(
        outcome(subject, |txn| txn.add_read_conflict_key(&longer)),
        too_large
    );
    assert_eq!(
        outcome(subject, |txn| txn.add_write_conflict_key(&longer)),
        too_large
    );
    assert_eq!(subject.engine.begin().get(&longer).map(drop), too_large);
    let bound = vec![b'k'; MAX_KEY_BYTES + 2];
    let far = || b"a".as_slice()..&bound[..];
    let too_large = Err(KvError::KeyTooLarge(bound.len()));
    assert_eq!(outcome(subject, |txn| txn.delete_range(far())), too_large);
    assert_eq!(
        outcome(subject, |txn| txn.add_read_conflict_range(far())),
        too_large
    );
    assert_eq!(
        subject.engine.begin().get_range(far(), 1, false).map(drop),
        too_large
    );
}

/// Values; and a violated limit ends the transaction, whatever else it did.
pub fn values(subject: &Subject) {
    let (longest, longer) = (vec![1; MAX_VALUE_BYTES], vec![1; MAX_VALUE_BYTES + 1]);
    assert_eq!(outcome(subject, |txn| txn.put(b"a", &longest)), Ok(()));
    assert_eq!(subject.engine.begin().get(b"a").unwrap().unwrap(), longest);
    let mut txn = subject.engine.begin();
    txn.put(b"b", b"fine");
    txn.put(b"c", &longer);
    txn.put(b"d", b"fine");
    let error = KvError::ValueTooLarge(longer.len());
    assert_eq!(txn.get(b"b"), Err(error.clone()));
    assert_eq!(txn.commit(), Err(error));
    assert_eq!((peek(subject, "b"), peek(subject, "d")), (None, None));
}

/// Transactions of many values.
pub fn sizes(subject: &Subject) {
    let value = vec![1; MAX_VALUE_BYTES];
    let legal = MAX_TRANSACTION_BYTES / MAX_VALUE_BYTES - 1;
    let write = |count: usize| {
        outcome(subject, |txn| {
            (0..count).for_each(|n| txn.put(&n.to_be_bytes(), &value));
        })
    };
    assert_eq!(write(legal + 1), Err(KvError::TooLarge));
    assert!(
        subject
            .engine
            .begin()
            .get(&0_usize.to_be_bytes())
            .unwrap()
            .is_none()
    );
    assert_eq!(write(legal), Ok(()));
    assert!(
        subject
            .engine
            .begin()
            .get(&(legal - 1).to_be_bytes())
            .unwrap()
            .is_some()
    );
}

/// Reading a lot makes a transaction large too; reading the same again does not.
pub fn conflict_sets(subject: &Subject) {
    let key = |n: u32| [&n.to_be_bytes()[..], &[b'k'; MAX_KEY_BYTES - 4]].concat();
    let count = (MAX_TRANSACTION_BYTES / (2 * MAX_KEY_BYTES)) as u32;
    let mut txn = subject.engine.begin();
    for _ in 0..3 {
        for n in 0..count - 1 {
            assert_eq!(txn.get(&key(n)), Ok(None));
        }
    }
    txn.put(b"a", b"");
    accepted(&txn.commit());
    let mut txn = subject.engine.begin();
    let read = (0..=count).try_for_each(|n| txn.get(&key(n)).map(drop));
    assert_eq!(read, Err(KvError::TooLarge));
    txn.put(b"b", b"");
    assert_eq!(
        txn.commit(),
        Err(KvError::TooLarge),
        "also when the caller ignores the read"
    );
}

/// Nothing from 0xff on can be read or written, and a range over everything does not show it.
pub fn reserved_keys(subject: &Subject) {
    fill(subject, &[("a", "1")]);
    let reserved = Err(KvError::ReservedKey);
    assert_eq!(outcome(subject, |txn| txn.put(b"\xff", b"")), reserved);
    assert_eq!(outcome(subject, |txn| txn.delete(b"\xffversion")), reserved);
    assert_eq!(
        outcome(subject, |txn| txn.add_i64(b"\xffversion", 1)),
        reserved
    );
    let beyond = || b"a".as_slice()..b"\xff\xff".as_slice();
    assert_eq!(outcome(subject, |txn| txn.delete_range(beyond())), reserved);
    assert_eq!(
        subject.engine.begin().get(b"\xffversion").map(drop),
        reserved
    );
    assert_eq!(
        subject
            .engine
            .begin()
            .get_range(beyond(), 9, false)
            .map(drop),
        reserved
    );
    let everything = || b"".as_slice()..b"\xff".as_slice();
    assert_eq!(
        subject
            .engine
            .begin()
            .get_range(everything(), 9, false)
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        subject
            .engine
            .begin()
            .get_range(everything(), 9, true)
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        outcome(subject, |txn| txn.delete_range(everything())),
        Ok(())
    );
    fill(subject, &[("a", "1")]);
}

/// Reads and commits of a transaction that is too old.
pub fn age(subject: &Subject) {
    let begin = || {
        let mut txn = subject.engine.begin();
        txn.get(b"a").unwrap();
        txn.put(b"a", b"1");
        txn
    };
    let (mut young, mut reads, commits) = (begin(), begin(), begin());
    let mut blind = subject.engine.begin();
    blind.put(b"b", b"1");
    subject
        .clock
        .advance(MAX_TRANSACTION_AGE.saturating_sub(Duration::from_millis(300)));
    young.get(b"b").unwrap();
    accepted(&young.commit());
    subject.clock.advance(Duration::from_millis(301));
    assert_eq!(reads.get(b"a"), Err(KvError::TooOld));
    assert_eq!(commits.commit(), Err(KvError::TooOld));
    assert_eq!(blind.commit(), Err(KvError::TooOld));
    assert_eq!(peek(subject, "b"), None);
}
