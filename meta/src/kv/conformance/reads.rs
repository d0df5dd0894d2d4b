//! What a transaction sees.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Subject, accepted, fill, peek};

const ALL: std::ops::Range<&[u8]> = b"".as_slice()..b"\xff".as_slice();

/// Reads of keys and ranges show the state at the first read, whatever commits meanwhile.
pub fn one_snapshot(subject: &Subject) {
    fill(subject, &[("a", "1"), ("b", "1"), ("c", "1")]);
    let mut txn = subject.engine.begin();
    assert_eq!(txn.get(b"a").unwrap().unwrap(), "1");
    let mut other = subject.engine.begin();
    other.put(b"a", b"2");
    other.delete(b"b");
    other.put(b"d", b"2");
    other.add_i64(b"n", 2);
    accepted(&other.commit());
    let mut other = subject.engine.begin();
    other.delete_range(b"c".as_slice()..b"e".as_slice());
    accepted(&other.commit());
    assert_eq!(txn.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(txn.get_snapshot(b"b").unwrap().unwrap(), "1");
    let seen = txn.get_range(ALL, 10, false).unwrap();
    let keys: Vec<_> = seen.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(keys, [b"a", b"b", b"c"]);
    assert_eq!(txn.get_range_snapshot(ALL, 1, true).unwrap()[0].0, "c");
}

/// Puts, deletes, range deletes and blind changes are visible to their own transaction.
pub fn own_writes(subject: &Subject) {
    fill(subject, &[("a", "1"), ("b", "1"), ("c", "1"), ("e", "1")]);
    let mut txn = subject.engine.begin();
    txn.put(b"a", b"mine");
    txn.delete(b"b");
    txn.put(b"d", b"mine");
    txn.add_i64(b"n", 5);
    assert_eq!(txn.get(b"a").unwrap().unwrap(), "mine");
    assert_eq!(txn.get(b"b").unwrap(), None);
    assert_eq!(txn.get(b"n").unwrap().unwrap(), 5_i64.to_le_bytes()[..]);
    let keys = |pairs: Vec<(bytes::Bytes, bytes::Bytes)>| -> Vec<String> {
        pairs
            .iter()
            .map(|(key, _)| String::from_utf8_lossy(key).into_owned())
            .collect()
    };
    assert_eq!(
        keys(txn.get_range(ALL, 9, false).unwrap()),
        ["a", "c", "d", "e", "n"]
    );
    assert_eq!(
        keys(txn.get_range_snapshot(ALL, 2, true).unwrap()),
        ["n", "e"]
    );
    txn.delete_range(b"c".as_slice()..b"e".as_slice());
    txn.put(b"cc", b"after");
    txn.add_i64(b"d", 1);
    assert_eq!(txn.get(b"c").unwrap(), None);
    assert_eq!(txn.get(b"d").unwrap().unwrap(), 1_i64.to_le_bytes()[..]);
    assert_eq!(
        keys(txn.get_range(ALL, 3, false).unwrap()),
        ["a", "cc", "d"]
    );
    accepted(&txn.commit());
    let mut after = subject.engine.begin();
    assert_eq!(
        keys(after.get_range(ALL, 9, false).unwrap()),
        ["a", "cc", "d", "e", "n"]
    );
}

/// Random operations on a random base, each read compared with a plain map, before the commit
/// and after it.
pub fn own_writes_against_a_model(subject: &Subject) {
    let mut random = StdRng::seed_from_u64(7);
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for _ in 0..60 {
        let mut txn = subject.engine.begin();
        for _ in 0..25 {
            let key = vec![b'a' + random.random_range(0..12_u8)];
            let other = vec![b'a' + random.random_range(0..12_u8)];
            match random.random_range(0..9) {
                0 | 1 => {
                    let value = random.random_range(0..1000_u64).to_le_bytes();
                    txn.put(&key, &value);
                    model.insert(key, value.to_vec());
                }
                2 => {
                    txn.delete(&key);
                    model.remove(&key);
                }
                3 => {
                    txn.delete_range(&key..&other);
                    model.retain(|k, _| *k < key || *k >= other);
                }
                4 => {
                    let delta = random.random_range(-50..50_i64);
                    txn.add_i64(&key, delta);
                    let sum = number(model.get(&key)).wrapping_add_signed(delta);
                    model.insert(key, sum.to_le_bytes().to_vec());
                }
                5 => {
                    let value = random.random_range(0..1000_u64);
                    txn.max_u64(&key, value);
                    let max = number(model.get(&key)).max(value);
                    model.insert(key, max.to_le_bytes().to_vec());
                }
                6 => {
                    let seen = txn.get(&key).unwrap().map(|value| value.to_vec());
                    assert_eq!(seen.as_ref(), model.get(&key));
                }
                _ => {
                    let (limit, reverse) = (random.random_range(0..6), random.random_bool(0.5));
                    let seen = pairs(txn.get_range(&key..&other, limit, reverse).unwrap());
                    assert_eq!(seen, model_range(&model, &key, &other, limit, reverse));
                }
            }
        }
        accepted(&txn.commit());
        let stored = pairs(subject.engine.begin().get_range(ALL, 99, false).unwrap());
        assert_eq!(stored, model.clone().into_iter().collect::<Vec<_>>());
    }
}

fn number(value: Option<&Vec<u8>>) -> u64 {
    value.map_or(0, |value| {
        u64::from_le_bytes(value[..].try_into().expect("8 bytes"))
    })
}

pub(super) fn pairs(pairs: Vec<(bytes::Bytes, bytes::Bytes)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect()
}

pub(super) fn model_range(
    model: &BTreeMap<Vec<u8>, Vec<u8>>,
    begin: &[u8],
    end: &[u8],
    limit: usize,
    reverse: bool,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs: Vec<_> = model
        .iter()
        .filter(|(key, _)| begin <= &key[..] && &key[..] < end)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if reverse {
        pairs.reverse();
    }
    pairs.truncate(limit);
    pairs
}

/// A transaction begun after an acknowledgement sees that commit, and versions only grow.
pub fn acknowledged_is_visible(subject: &Subject) {
    let mut last = crate::kv::CommitVersion::default();
    for n in 0..20 {
        let mut txn = subject.engine.begin();
        txn.put(b"n", format!("{n}").as_bytes());
        let version = txn.commit().expect("a blind write commits");
        assert!(version > last, "{version:?} after {last:?}");
        last = version;
        let mut reader = subject.engine.begin();
        assert_eq!(reader.get(b"n").unwrap().unwrap(), format!("{n}"));
        assert_eq!(
            reader.commit(),
            Ok(version),
            "a reader answers the version it read at"
        );
    }
}

/// Without a commit there is no trace.
pub fn dropped_is_gone(subject: &Subject) {
    let mut txn = subject.engine.begin();
    txn.put(b"a", b"1");
    txn.add_i64(b"b", 1);
    drop(txn);
    assert_eq!((peek(subject, "a"), peek(subject, "b")), (None, None));
}
