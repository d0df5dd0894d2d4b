//! The classic anomalies, each as the interleaving that shows it.

use super::{Subject, accepted, fill, peek, peek_i64, refused};
use crate::kv::{KvRetry, Transaction};

const DIRECTORY: &[u8] = b"D1";
const CHILDREN: std::ops::Range<&[u8]> = b"D1/".as_slice()..b"D10".as_slice();

/// Two read a counter, both write it.
pub fn lost_update(subject: &Subject) {
    fill(subject, &[("n", "1")]);
    let (mut a, mut b) = (subject.engine.begin(), subject.engine.begin());
    assert_eq!(a.get(b"n").unwrap(), b.get(b"n").unwrap());
    a.put(b"n", b"2");
    b.put(b"n", b"3");
    accepted(&a.commit());
    refused(&b.commit());
    assert_eq!(peek(subject, "n").as_deref(), Some("2"));
}

/// Two read two keys, each writes the other one.
pub fn write_skew(subject: &Subject) {
    fill(subject, &[("x", "on"), ("y", "on")]);
    let (mut a, mut b) = (subject.engine.begin(), subject.engine.begin());
    for txn in [&mut a, &mut b] {
        assert!(txn.get(b"x").unwrap().is_some() && txn.get(b"y").unwrap().is_some());
    }
    a.put(b"x", b"off");
    b.put(b"y", b"off");
    accepted(&a.commit());
    refused(&b.commit());
}

/// One finds a range empty, the other creates in it; in both orders of commit.
pub fn phantom(subject: &Subject) {
    for creator_first in [true, false] {
        let mut reader = subject.engine.begin();
        assert!(reader.get_range(CHILDREN, 1, false).unwrap().is_empty());
        reader.put(b"seen-empty", b"");
        let mut creator = subject.engine.begin();
        assert!(creator.get(b"seen-empty").unwrap().is_none());
        creator.put(b"D1/child", b"");
        if creator_first {
            accepted(&creator.commit());
            refused(&reader.commit());
            subject.engine.begin().commit().expect("nothing to do");
            let mut clean = subject.engine.begin();
            clean.delete(b"D1/child");
            accepted(&clean.commit());
        } else {
            accepted(&reader.commit());
            refused(&creator.commit());
        }
    }
}

fn create(txn: &mut dyn Transaction, name: &[u8]) {
    assert!(
        txn.get_snapshot(DIRECTORY).unwrap().is_some(),
        "the directory exists"
    );
    txn.add_read_conflict_key(b"c1");
    assert!(txn.get(name).unwrap().is_none());
    txn.put(name, b"");
}

fn rmdir(txn: &mut dyn Transaction) {
    assert!(txn.get(DIRECTORY).unwrap().is_some());
    assert!(txn.get_range(CHILDREN, 1, false).unwrap().is_empty());
    txn.delete(DIRECTORY);
    txn.add_write_conflict_key(b"c1");
}

/// The namespace's own protocol: creators read a conflict key of the directory, rmdir writes it.
pub fn rmdir_against_create(subject: &Subject) {
    for create_first in [true, false] {
        fill(subject, &[("D1", "directory")]);
        let (mut a, mut b) = (subject.engine.begin(), subject.engine.begin());
        create(&mut *a, b"D1/child");
        rmdir(&mut *b);
        if create_first {
            accepted(&a.commit());
            refused(&b.commit());
            assert_eq!(peek(subject, "D1/child").as_deref(), Some(""));
            let mut clean = subject.engine.begin();
            clean.delete_range(CHILDREN);
            accepted(&clean.commit());
        } else {
            accepted(&b.commit());
            refused(&a.commit());
            assert_eq!(peek(subject, "D1/child"), None);
        }
    }
}

/// Creates of different names in one directory, with its times and link count kept blindly.
pub fn parallel_creates(subject: &Subject) {
    fill(subject, &[("D1", "directory")]);
    let mut all: Vec<_> = (0..8_u8).map(|_| subject.engine.begin()).collect();
    for (n, txn) in (0..8_u64).zip(&mut all) {
        create(&mut **txn, format!("D1/{n}").as_bytes());
        txn.add_i64(b"links", 1);
        txn.max_u64(b"mtime", 100 - n);
    }
    for txn in all {
        accepted(&txn.commit());
    }
    assert_eq!(
        (peek_i64(subject, "links"), peek_i64(subject, "mtime")),
        (8, 100)
    );
}

/// Fekete, O'Neil, O'Neil 2004: a withdrawal that saw no deposit, a deposit, and a reader that
/// sees the deposit without the withdrawal; with the reader there is no serial order.
pub fn read_only_anomaly(subject: &Subject) {
    fill(subject, &[("checking", "0"), ("savings", "0")]);
    let mut withdraw = subject.engine.begin();
    withdraw.get(b"checking").unwrap();
    withdraw.get(b"savings").unwrap();
    let mut deposit = subject.engine.begin();
    deposit.get(b"savings").unwrap();
    deposit.put(b"savings", b"20");
    accepted(&deposit.commit());
    let mut reader = subject.engine.begin();
    assert_eq!(reader.get(b"checking").unwrap().unwrap(), "0");
    assert_eq!(reader.get(b"savings").unwrap().unwrap(), "20");
    accepted(&reader.commit());
    withdraw.put(b"checking", b"-11");
    refused(&withdraw.commit());
}

/// A request that is sent again, because nobody knows whether it was carried out, finds its
/// record; two copies at once cannot both be carried out.
pub fn exactly_once(subject: &Subject) {
    let carry_out = |txn: &mut dyn Transaction| {
        if txn.get(b"R7").unwrap().is_none() {
            txn.add_i64(b"n", 1);
            txn.put(b"R7", b"done");
        }
    };
    let (mut first, mut copy) = (subject.engine.begin(), subject.engine.begin());
    carry_out(&mut *first);
    carry_out(&mut *copy);
    accepted(&first.commit());
    let error = copy.commit().expect_err("the copy must be refused");
    assert_eq!(error.retry(), KvRetry::Again);
    let mut again = subject.engine.begin();
    carry_out(&mut *again);
    accepted(&again.commit());
    assert_eq!(peek_i64(subject, "n"), 1);
}
