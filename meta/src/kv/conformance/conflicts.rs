//! Who conflicts with whom, and who does not.

use super::{Subject, accepted, fill, refused};
use crate::kv::Transaction;

type Act = fn(&mut dyn Transaction);

/// Every way to write the key `m`, which holds a value.
const WRITES: &[(&str, Act)] = &[
    ("put", |txn| txn.put(b"m", b"new")),
    ("delete", |txn| txn.delete(b"m")),
    ("add_i64", |txn| txn.add_i64(b"m", 1)),
    ("max_u64", |txn| txn.max_u64(b"m", u64::MAX)),
    ("delete_range", |txn| {
        txn.delete_range(b"l".as_slice()..b"n".as_slice());
    }),
    ("add_write_conflict_key", |txn| {
        txn.add_write_conflict_key(b"m");
    }),
];

/// Reads, lets another transaction write, writes something unrelated and tells the outcome.
fn race(subject: &Subject, read: Act, write: Act) -> crate::kv::KvResult<crate::kv::CommitVersion> {
    let mut reader = subject.engine.begin();
    read(&mut *reader);
    let mut writer = subject.engine.begin();
    write(&mut *writer);
    accepted(&writer.commit());
    reader.put(b"unrelated", b"");
    reader.commit()
}

/// `get` of a key, present or absent, against every write of it.
pub fn writes_against_key(subject: &Subject) {
    for (name, write) in WRITES {
        for present in [true, false] {
            let mut reset = subject.engine.begin();
            if present {
                reset.put(b"m", b"old");
            } else {
                reset.delete(b"m");
            }
            accepted(&reset.commit());
            let outcome = race(subject, |txn| drop(txn.get(b"m").unwrap()), *write);
            assert!(outcome.is_err(), "{name} against get, present: {present}");
            refused(&outcome);
        }
    }
}

/// `get_range` over a key, present or absent, in both directions, against every write of it.
pub fn writes_against_range(subject: &Subject) {
    let forward: Act = |txn| {
        txn.get_range(b"a".as_slice()..b"z".as_slice(), 100, false)
            .unwrap();
    };
    let reverse: Act = |txn| {
        txn.get_range(b"m".as_slice()..b"m\0".as_slice(), 100, true)
            .unwrap();
    };
    for (name, write) in WRITES {
        for (present, read) in [
            (true, forward),
            (false, forward),
            (true, reverse),
            (false, reverse),
        ] {
            let mut reset = subject.engine.begin();
            if present {
                reset.put(b"m", b"old");
            } else {
                reset.delete(b"m");
            }
            accepted(&reset.commit());
            let outcome = race(subject, read, *write);
            assert!(
                outcome.is_err(),
                "{name} against get_range, present: {present}"
            );
            refused(&outcome);
        }
    }
}

/// Neighbours of what was read, on both sides and for range deletes.
pub fn outside(subject: &Subject) {
    fill(subject, &[("c", "1"), ("m", "1"), ("x", "1")]);
    let reads: [Act; 2] = [
        |txn| drop(txn.get(b"m").unwrap()),
        |txn| {
            txn.get_range(b"m".as_slice()..b"n".as_slice(), 9, false)
                .unwrap();
        },
    ];
    let writes: [Act; 5] = [
        |txn| txn.put(b"l", b"2"),
        |txn| txn.put(b"n", b"2"),
        |txn| txn.delete_range(b"a".as_slice()..b"m".as_slice()),
        |txn| txn.delete_range(b"n".as_slice()..b"z".as_slice()),
        |txn| txn.delete_range(b"z".as_slice()..b"a".as_slice()),
    ];
    for read in reads {
        for write in writes {
            accepted(&race(subject, read, write));
        }
    }
}

/// A range read that its limit cut depends on what it returned, not on the rest.
pub fn limited_range(subject: &Subject) {
    let keys = [("a", "1"), ("c", "1"), ("e", "1"), ("g", "1")];
    let forward: Act = |txn| {
        assert_eq!(
            txn.get_range(b"a".as_slice()..b"z".as_slice(), 2, false)
                .unwrap()
                .len(),
            2
        );
    };
    let reverse: Act = |txn| {
        assert_eq!(
            txn.get_range(b"a".as_slice()..b"z".as_slice(), 2, true)
                .unwrap()
                .len(),
            2
        );
    };
    let cases: [(Act, Act, bool); 10] = [
        (forward, |txn| txn.put(b"b", b"2"), false),
        (forward, |txn| txn.delete(b"c"), false),
        (forward, |txn| txn.put(b"c\0", b"2"), true),
        (forward, |txn| txn.put(b"d", b"2"), true),
        (forward, |txn| txn.delete(b"e"), true),
        (reverse, |txn| txn.put(b"h", b"2"), false),
        (reverse, |txn| txn.put(b"e", b"2"), false),
        (reverse, |txn| txn.put(b"d", b"2"), true),
        (reverse, |txn| txn.delete(b"c"), true),
        // A limit of nothing reads nothing.
        (
            |txn| {
                txn.get_range(b"a".as_slice()..b"z".as_slice(), 0, false)
                    .unwrap();
            },
            |txn| txn.put(b"c", b"2"),
            true,
        ),
    ];
    for (n, (read, write, commits)) in cases.into_iter().enumerate() {
        let mut reset = subject.engine.begin();
        reset.delete_range(b"".as_slice()..b"\xff".as_slice());
        accepted(&reset.commit());
        fill(subject, &keys);
        let outcome = race(subject, read, write);
        assert_eq!(outcome.is_ok(), commits, "case {n}: {outcome:?}");
    }
}

/// `get_snapshot` and `get_range_snapshot` promise nothing about later.
pub fn snapshot_reads(subject: &Subject) {
    let reads: [Act; 2] = [
        |txn| drop(txn.get_snapshot(b"m").unwrap()),
        |txn| {
            txn.get_range_snapshot(b"a".as_slice()..b"z".as_slice(), 9, false)
                .unwrap();
        },
    ];
    for read in reads {
        for (_, write) in WRITES {
            accepted(&race(subject, read, *write));
        }
    }
}

/// A value that a transaction determined itself does not depend on others; one it only changed does.
pub fn own_keys(subject: &Subject) {
    let write: Act = |txn| txn.put(b"m", b"theirs");
    accepted(&race(
        subject,
        |txn| {
            txn.put(b"m", b"mine");
            assert_eq!(txn.get(b"m").unwrap().unwrap(), "mine");
        },
        write,
    ));
    accepted(&race(
        subject,
        |txn| {
            txn.delete_range(b"l".as_slice()..b"n".as_slice());
            txn.add_i64(b"m", 1);
            assert_eq!(txn.get(b"m").unwrap().unwrap(), 1_i64.to_le_bytes()[..]);
        },
        write,
    ));
    refused(&race(
        subject,
        |txn| {
            txn.add_i64(b"m", 1);
            txn.get(b"m").unwrap();
        },
        write,
    ));
}

/// Declared reads and writes conflict with real ones, and declared writes write nothing.
pub fn explicit(subject: &Subject) {
    let reads: [Act; 2] = [
        |txn| txn.add_read_conflict_key(b"m"),
        |txn| txn.add_read_conflict_range(b"l".as_slice()..b"n".as_slice()),
    ];
    for read in reads {
        for (_, write) in WRITES {
            refused(&race(subject, read, *write));
        }
        accepted(&race(subject, read, |txn| txn.put(b"k", b"")));
        accepted(&race(subject, read, |txn| txn.put(b"n", b"")));
    }
    let mut declared = subject.engine.begin();
    declared.add_write_conflict_key(b"w");
    accepted(&declared.commit());
    assert_eq!(super::peek(subject, "w"), None);
    // What only declares is a transaction all the same: its own reads count.
    let mut reader = subject.engine.begin();
    reader.get(b"m").unwrap();
    reader.add_write_conflict_key(b"w");
    fill(subject, &[("m", "newer")]);
    refused(&reader.commit());
}

/// Writers that read nothing commit in any order.
pub fn blind_writes(subject: &Subject) {
    for (_, first) in WRITES {
        for (_, second) in WRITES {
            let (mut a, mut b) = (subject.engine.begin(), subject.engine.begin());
            first(&mut *a);
            second(&mut *b);
            accepted(&b.commit());
            accepted(&a.commit());
        }
    }
}
