use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};

use emberfs_proto::ErrorCode;

use super::committer::WriteFailure;
use super::*;
use crate::kv::conformance::{self, Subject};

fn put(engine: &RocksEngine, key: &[u8], value: &[u8]) -> KvResult<CommitVersion> {
    let mut txn = engine.begin();
    txn.put(key, value);
    txn.commit()
}

#[test]
fn the_rocksdb_engine_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    conformance::all(&|| {
        count.set(count.get() + 1);
        let clock = Clock::manual();
        let path = directory.path().join(count.get().to_string());
        let engine = RocksEngine::open_with_clock(&path, clock.clone()).unwrap();
        Subject {
            engine: Arc::new(engine),
            clock,
        }
    });
}

#[test]
fn reopening_keeps_what_was_acknowledged_and_versions_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/on/the/way");
    let engine = RocksEngine::open(&path).unwrap();
    put(&engine, b"a", b"1").unwrap();
    let last = put(&engine, b"b", b"2").unwrap();
    drop(engine);
    let engine = RocksEngine::open(&path).unwrap();
    let mut txn = engine.begin();
    assert_eq!(txn.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(txn.commit(), Ok(last));
    assert!(put(&engine, b"c", b"3").unwrap() > last);
}

#[test]
fn each_start_knows_where_the_earlier_ones_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (path, before) = (directory.path().join("db"), directory.path().join("before"));
    let end = |engine: &RocksEngine, start| engine.end_of(start).map(|end| end.0);
    let engine = RocksEngine::open(&path).unwrap();
    assert_eq!(engine.position().start, 1);
    put(&engine, b"a", b"1").unwrap();
    put(&engine, b"b", b"2").unwrap();
    assert_eq!(engine.position().durable.0, 2);
    // What a loss of power leaves if the third commit is not on disk.
    copy_database(&path, &before);
    put(&engine, b"c", b"3").unwrap();
    assert_eq!(end(&engine, 1), None, "it goes on");
    drop(engine);
    for (path, kept) in [(&path, 3), (&before, 2)] {
        let engine = RocksEngine::open(path).unwrap();
        assert_eq!(engine.position().start, 2);
        assert_eq!(end(&engine, 1), Some(kept));
        put(&engine, b"d", b"4").unwrap();
        drop(engine);
        let engine = RocksEngine::open(path).unwrap();
        let ends = [0, 1, 2, 3, u64::MAX].map(|start| end(&engine, start));
        assert_eq!(ends, [Some(0), Some(kept), Some(kept + 1), None, None]);
    }
}

fn copy_database(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_directory_in_use_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(directory.path()).unwrap();
    let error = RocksEngine::open(directory.path()).err().unwrap();
    assert_eq!(error.code, ErrorCode::NodeConflict);
    assert!(
        error
            .message
            .contains(&directory.path().display().to_string()),
        "{error}"
    );
    assert!(
        error
            .message
            .contains("another metadata server is running there"),
        "{error}"
    );
    drop(engine);
    RocksEngine::open(directory.path()).unwrap();
}

#[test]
fn a_foreign_or_newer_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("foreign");
    DB::open_default(&path)
        .unwrap()
        .put(b"somebody's", b"data")
        .unwrap();
    assert_eq!(
        RocksEngine::open(&path).err().unwrap().code,
        ErrorCode::ForeignDisk
    );

    let path = directory.path().join("newer");
    drop(RocksEngine::open(&path).unwrap());
    DB::open_default(&path)
        .unwrap()
        .put(b"\xffformat", 2_u32.to_le_bytes())
        .unwrap();
    let error = RocksEngine::open(&path).err().unwrap();
    assert_eq!(error.code, ErrorCode::ForeignDisk);
    assert!(error.message.contains("newer program"), "{error}");
}

#[test]
fn a_failed_write_or_flush_is_an_unknown_outcome_and_ends_all_commits_but_not_reads() {
    type Faults = (WriteBatchFn, FlushFn, bool);
    let write_fails: WriteBatchFn =
        |_, _, _| Err(WriteFailure::Broken("no space left on device".to_owned()));
    let flush_fails: FlushFn = |_| Err("no space left on device".to_owned());
    let faults: [Faults; 2] = [
        (write_fails, log::flush, false),
        (committer::write, flush_fails, true),
    ];
    for (write, flush, visible) in faults {
        let directory = tempfile::tempdir().unwrap();
        drop(RocksEngine::open(directory.path()).unwrap());
        let engine =
            RocksEngine::open_with(directory.path(), Clock::system(), write, flush).unwrap();
        let unknown = put(&engine, b"a", b"1");
        assert_eq!(
            unknown,
            Err(KvError::MaybeCommitted("no space left on device".into()))
        );
        match put(&engine, b"b", b"1") {
            Err(KvError::Closed(why)) => assert!(why.contains("no space left on device"), "{why}"),
            other => panic!("{other:?}"),
        }
        let seen = engine.begin().get(b"a").unwrap();
        assert_eq!(seen.is_some(), visible);
        drop(engine);
        put(&RocksEngine::open(directory.path()).unwrap(), b"b", b"1").unwrap();
    }
}

/// Held by a test while flushes are to wait.
static HELD: Mutex<()> = Mutex::new(());

#[test]
fn what_is_committed_soon_is_seen_at_once_and_durable_after_a_flush_that_all_share() {
    let slow: FlushFn = |db| {
        drop(HELD.lock());
        log::flush(db)
    };
    let directory = tempfile::tempdir().unwrap();
    let engine =
        RocksEngine::open_with(directory.path(), Clock::system(), committer::write, slow).unwrap();
    let before = engine.stats().flushes;
    let held = HELD.lock();
    let (tell, told) = std::sync::mpsc::channel();
    for n in 0..10_u8 {
        let mut txn = engine.begin_cached();
        txn.put(&[n], b"1");
        let version = txn.commit_soon().unwrap();
        assert!(engine.begin().get(&[n]).unwrap().is_some());
        let tell = tell.clone();
        let done = move |outcome| tell.send((version, outcome)).unwrap();
        engine.when_durable(version, Box::new(done));
    }
    assert!(told.try_recv().is_err(), "the disk has not answered");
    drop(held);
    for version in 1..=10 {
        assert_eq!(told.recv().unwrap(), (CommitVersion(version), Ok(())));
    }
    assert!(engine.stats().flushes - before <= 2);
    let known = engine.begin().commit().unwrap();
    engine.when_durable(
        known,
        Box::new(move |outcome| tell.send((known, outcome)).unwrap()),
    );
    assert_eq!(told.try_recv().unwrap().1, Ok(()), "it was durable before");
}

#[test]
fn what_nobody_waits_for_becomes_durable_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(directory.path()).unwrap();
    let before = engine.stats().flushes;
    let mut txn = engine.begin();
    txn.put(b"a", b"1");
    txn.commit_soon().unwrap();
    let since = std::time::Instant::now();
    while engine.stats().flushes == before {
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
}

#[test]
fn a_transaction_that_outlives_the_engine_reads_on_and_cannot_commit() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(directory.path()).unwrap();
    put(&engine, b"a", b"1").unwrap();
    let mut txn = engine.begin();
    assert_eq!(txn.get(b"a").unwrap().unwrap(), "1");
    drop(engine);
    assert_eq!(txn.get(b"a").unwrap().unwrap(), "1");
    txn.put(b"a", b"2");
    assert!(matches!(txn.commit(), Err(KvError::Closed(_))));
}

#[test]
fn a_cached_look_answers_what_is_in_memory_and_says_what_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(directory.path()).unwrap();
    // Each in a block of its own, away from the version, which is read when a look begins.
    for key in [b"a", b"b", b"c"] {
        put(&engine, key, &[key[0]; 16 << 10]).unwrap();
    }
    let look = |engine: &RocksEngine, key: &[u8]| engine.begin_cached().get(key);
    assert_eq!(look(&engine, b"a").unwrap().unwrap()[0], b'a');
    engine.shared.db.flush().unwrap();
    drop(engine);

    let engine = RocksEngine::open(directory.path()).unwrap();
    assert_eq!(look(&engine, b"a"), Err(KvError::NotCached));
    let scan = engine.begin_cached().get_range(b"a"..b"d", 9, false);
    assert_eq!(scan, Err(KvError::NotCached));
    assert!(engine.begin().get(b"a").unwrap().is_some());
    assert_eq!(look(&engine, b"a").unwrap().unwrap()[0], b'a');
    assert_eq!(look(&engine, b"c"), Err(KvError::NotCached));
    put(&engine, b"c", b"new").unwrap();
    assert_eq!(look(&engine, b"c").unwrap().unwrap(), "new");
}

#[test]
fn sixteen_threads_share_flushes() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(directory.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let engine = &engine;
            scope.spawn(move || {
                for n in 0..25_u64 {
                    let mut txn = engine.begin();
                    txn.put(&[thread.to_be_bytes(), n.to_be_bytes()].concat(), b"1");
                    txn.put(&[n.to_be_bytes(), thread.to_be_bytes()].concat(), b"2");
                    txn.commit().unwrap();
                }
            });
        }
    });
    let stats = engine.stats();
    assert_eq!((stats.committed, stats.refused), (400, 0));
    assert!(
        stats.flushes < 300,
        "{} flushes for 400 transactions",
        stats.flushes
    );
}

const CRASH_DIRECTORY: &str = "EMBERFS_KV_CRASH_DIRECTORY";
const WRITERS: u64 = 4;

fn key(kind: &str, writer: u64, n: u64) -> Vec<u8> {
    format!("{kind}{writer}/{n:010}").into_bytes()
}

/// Writes until it is killed. A line per acknowledged commit.
#[test]
#[ignore = "the child of acknowledged_commits_survive_a_kill, which runs it"]
fn crash_child() {
    let directory = std::env::var_os(CRASH_DIRECTORY).unwrap();
    let engine = RocksEngine::open(Path::new(&directory)).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let engine = &engine;
            scope.spawn(move || {
                for n in 0.. {
                    let mut txn = engine.begin();
                    txn.put(&key("x", writer, n), b"");
                    txn.put(&key("y", writer, n), b"");
                    txn.add_i64(b"count", 1);
                    if txn.commit().is_ok() {
                        // Locked per line, so lines of different writers do not mix.
                        writeln!(std::io::stdout().lock(), "acknowledged {writer} {n}").unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn acknowledged_commits_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let path = directory.path().join(round.to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kv::rocks::tests::crash_child",
                "--ignored",
                "--nocapture",
            ])
            .env(CRASH_DIRECTORY, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = BTreeMap::<u64, u64>::new();
        let mut lines = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            // The last line may be cut by the kill.
            let line = line.unwrap();
            let mut words = line.split(' ');
            if words.next() == Some("acknowledged")
                && let Some(writer) = words.next().and_then(|word| word.parse().ok())
                && let Some(n) = words.next().and_then(|word| word.parse().ok())
            {
                acknowledged.insert(writer, n);
                lines += 1;
            }
            if lines == 100 + 150 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(
            lines >= 100 + 150 * round,
            "the child ended early, after {lines} commits"
        );

        let engine = RocksEngine::open(&path).unwrap();
        let mut txn = engine.begin();
        let mut present = 0;
        for writer in 0..WRITERS {
            let expected = acknowledged.get(&writer).map_or(0, |last| last + 1);
            let mut n = 0;
            while txn.get_snapshot(&key("x", writer, n)).unwrap().is_some() {
                let other = txn.get_snapshot(&key("y", writer, n)).unwrap();
                assert!(other.is_some(), "half a transaction: {writer} {n}");
                n += 1;
            }
            assert!(txn.get_snapshot(&key("y", writer, n)).unwrap().is_none());
            assert!(
                n >= expected,
                "lost commit {n} of writer {writer}, {expected} acknowledged"
            );
            present += n;
        }
        let count = txn.get_snapshot(b"count").unwrap().unwrap();
        assert_eq!(
            count,
            present.to_le_bytes()[..],
            "the blind sum counts every commit once"
        );
    }
}
