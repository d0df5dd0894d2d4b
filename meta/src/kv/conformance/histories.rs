//! Many threads at once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::reads::{model_range, pairs};
use super::{Subject, accepted, fill, peek_i64};
use crate::kv::{KvError, RetryPolicy, run};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Eight threads add to one number without reading it; no commit is refused.
pub fn blind_adds(subject: &Subject) {
    thread::scope(|scope| {
        for thread in 1..=8 {
            scope.spawn(move || {
                for _ in 0..25 {
                    let mut txn = subject.engine.begin();
                    txn.add_i64(b"n", thread);
                    txn.max_u64(b"max", thread as u64);
                    accepted(&txn.commit());
                }
            });
        }
    });
    assert_eq!(
        (peek_i64(subject, "n"), peek_i64(subject, "max")),
        (25 * 36, 8)
    );
}

/// Random transfers between few accounts: every reader and the end see the same total.
pub fn transfers(subject: &Subject) {
    const ACCOUNTS: [&str; 6] = ["a0", "a1", "a2", "a3", "a4", "a5"];
    const TOTAL: i64 = 600;
    let mut txn = subject.engine.begin();
    for account in ACCOUNTS {
        txn.add_i64(account.as_bytes(), 100);
    }
    accepted(&txn.commit());
    thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                for _ in 0..40 {
                    let (from, to) = (random.random_range(0..6), random.random_range(0..6));
                    let amount = random.random_range(1..50_i64);
                    run(&*subject.engine, &RetryPolicy::default(), |txn| {
                        for (account, change) in [(from, -amount), (to, amount)] {
                            let key = ACCOUNTS[account].as_bytes();
                            let old = txn.get(key)?.expect("the account exists");
                            let old = i64::from_le_bytes(old[..].try_into().expect("8 bytes"));
                            thread::yield_now();
                            txn.put(key, &(old + change).to_le_bytes());
                        }
                        Ok(())
                    })
                    .expect("a transfer succeeds in the end");
                    let all = subject
                        .engine
                        .begin()
                        .get_range(b"a".as_slice()..b"b".as_slice(), 9, false)
                        .expect("a read succeeds");
                    let sum = |(_, value): &(_, bytes::Bytes)| {
                        i64::from_le_bytes(value[..].try_into().expect("8 bytes"))
                    };
                    assert_eq!(all.iter().map(sum).sum::<i64>(), TOTAL);
                }
            });
        }
    });
    assert_eq!(
        ACCOUNTS
            .iter()
            .map(|account| peek_i64(subject, account))
            .sum::<i64>(),
        TOTAL
    );
}

/// What a transaction did and saw.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Get(Vec<u8>, Option<Vec<u8>>),
    Range(Vec<u8>, Vec<u8>, usize, bool, Vec<(Vec<u8>, Vec<u8>)>),
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
    Add(Vec<u8>, i64),
}

/// A committed transaction.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) version: u64,
    pub(super) writes: bool,
    /// The highest version acknowledged before it began.
    pub(super) not_before: u64,
    pub(super) steps: Vec<Step>,
}

/// Small random transactions of four threads on eight keys: replayed one after the other in the
/// order of their commit versions, each sees exactly what it saw; and none is ordered before
/// one that was acknowledged before it began.
pub fn serializable(subject: &Subject) {
    fill(subject, &[("a", "12345678")]);
    let history = Mutex::new(Vec::new());
    let acknowledged = AtomicU64::new(0);
    thread::scope(|scope| {
        for seed in 0..4 {
            let (history, acknowledged) = (&history, &acknowledged);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                for _ in 0..150 {
                    if let Some(committed) = transaction(subject, &mut random, acknowledged) {
                        acknowledged.fetch_max(committed.version, Ordering::SeqCst);
                        history.lock().expect("no thread panicked").push(committed);
                    }
                }
            });
        }
    });
    let history = history.into_inner().expect("no thread panicked");
    assert!(
        history.len() > 100,
        "too few commits to judge: {}",
        history.len()
    );
    let start = BTreeMap::from([(b"a".to_vec(), b"12345678".to_vec())]);
    if let Err(why) = replay(start, history) {
        panic!("{why}");
    }
}

/// One random transaction; none if it was refused.
fn transaction(
    subject: &Subject,
    random: &mut StdRng,
    acknowledged: &AtomicU64,
) -> Option<Committed> {
    let not_before = acknowledged.load(Ordering::SeqCst);
    let mut txn = subject.engine.begin();
    let mut steps = Vec::new();
    let mut writes = false;
    // Begins with a read, so that every transaction has a version to be ordered by.
    for n in 0..random.random_range(1..7) {
        let key = vec![b'a' + random.random_range(0..8_u8)];
        let other = vec![b'a' + random.random_range(0..9_u8)];
        let kind = if n == 0 {
            random.random_range(0..3)
        } else {
            random.random_range(0..8)
        };
        // A range delete of nothing is none.
        let deletes_nothing = kind == 7 && key >= other;
        steps.push(match kind {
            0 | 1 => {
                let seen = txn.get(&key).unwrap().map(|value| value.to_vec());
                Step::Get(key, seen)
            }
            2 | 3 => {
                let (limit, reverse) = (random.random_range(1..4), random.random_bool(0.5));
                let seen = pairs(txn.get_range(&key..&other, limit, reverse).unwrap());
                Step::Range(key, other, limit, reverse, seen)
            }
            4 | 5 => {
                let value = random.random::<u64>().to_le_bytes().to_vec();
                txn.put(&key, &value);
                Step::Put(key, value)
            }
            6 => {
                let delta = random.random_range(-9..9);
                txn.add_i64(&key, delta);
                Step::Add(key, delta)
            }
            _ if deletes_nothing || random.random_bool(0.7) => {
                txn.delete(&key);
                Step::Delete(key)
            }
            _ => {
                txn.delete_range(&key..&other);
                Step::DeleteRange(key, other)
            }
        });
        writes |= kind > 3;
        thread::yield_now();
    }
    match txn.commit() {
        Ok(version) => Some(Committed {
            version: version.0,
            writes,
            not_before,
            steps,
        }),
        Err(KvError::Conflict) => None,
        Err(error) => panic!("the commit fails with {error}"),
    }
}

/// Whether the history is that of its transactions run one after the other by version, a reader
/// after the writer whose version it read.
pub(super) fn replay(mut model: Model, mut history: Vec<Committed>) -> Result<(), String> {
    history.sort_by_key(|committed| (committed.version, !committed.writes));
    let mut last_written = 0;
    for committed in history {
        let say = |what: &str| Err(format!("{what}: {committed:?}"));
        if committed.version < committed.not_before {
            return say("ordered before what was acknowledged before it began");
        }
        if committed.writes && committed.version <= last_written {
            return say("its version is not its own");
        }
        if committed.writes {
            last_written = committed.version;
        }
        for step in &committed.steps {
            let fits = match step {
                Step::Get(key, seen) => model.get(key) == seen.as_ref(),
                Step::Range(begin, end, limit, reverse, seen) => {
                    model_range(&model, begin, end, *limit, *reverse) == *seen
                }
                Step::Put(key, value) => {
                    model.insert(key.clone(), value.clone());
                    true
                }
                Step::Delete(key) => {
                    model.remove(key);
                    true
                }
                Step::DeleteRange(begin, end) => {
                    model.retain(|key, _| key < begin || key >= end);
                    true
                }
                Step::Add(key, delta) => {
                    let old = model.get(key).map_or(0, |old| {
                        i64::from_le_bytes(old[..].try_into().expect("8 bytes"))
                    });
                    model.insert(key.clone(), old.wrapping_add(*delta).to_le_bytes().to_vec());
                    true
                }
            };
            if !fits {
                return say(&format!("no serial order: {step:?} does not see {model:?}"));
            }
        }
    }
    Ok(())
}
