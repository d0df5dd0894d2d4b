use super::*;
use crate::kv::conflict::{ReadSet, WriteSet};
use crate::kv::mutations::Bounds;
use crate::kv::rocks::open;
use crate::kv::transaction::CommitRequest;

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn request(read_version: u64, reads: &[&str], puts: &[&str]) -> CommitRequest {
    let mut mutations = Mutations::default();
    for name in puts {
        mutations.put(key(name), key("value"));
    }
    CommitRequest {
        epoch: 0,
        read_version,
        reads: ReadSet {
            keys: reads.iter().map(|name| key(name)).collect(),
            ..ReadSet::default()
        },
        writes: WriteSet::new(&mutations, std::collections::BTreeSet::new()),
        mutations,
        bounds: Bounds::default(),
    }
}

/// What a committer answers to these, one after the other.
fn serve(requests: Vec<CommitRequest>) -> (Vec<KvResult<CommitVersion>>, (u64, u64)) {
    let directory = tempfile::tempdir().unwrap();
    let db = Arc::new(open::open(directory.path()).unwrap());
    let stats = Arc::new(Counters::default());
    let mut committer = Committer::new(db, 0, Clock::manual(), Arc::clone(&stats), write);
    let answers = requests.into_iter();
    let answers = answers.map(|request| committer.commit(request, Patience::Waits));
    let answers = answers.collect();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    (answers, (count(&stats.committed), count(&stats.refused)))
}

#[test]
fn blind_writes_of_one_key_follow_each_other() {
    let requests = (0..40)
        .map(|n| request(0, &[], &[&format!("a{n}"), "shared"]))
        .collect();
    let (answers, stats) = serve(requests);
    for (version, answer) in (1..).zip(answers) {
        assert_eq!(answer, Ok(CommitVersion(version)));
    }
    assert_eq!(stats, (40, 0));
}

#[test]
fn a_transaction_conflicts_with_accepted_ones_only() {
    let requests = vec![
        request(0, &["b"], &["a"]),
        request(0, &["a"], &["c"]),
        request(0, &["c"], &["b"]),
        request(0, &[], &["a"]),
    ];
    let (answers, stats) = serve(requests);
    let expected = [
        Ok(CommitVersion(1)),
        Err(KvError::Conflict),
        Ok(CommitVersion(2)), // "c" was refused, so nobody wrote it
        Ok(CommitVersion(3)),
    ];
    assert_eq!(answers, expected);
    assert_eq!(stats, (3, 1));
}

#[test]
fn one_that_must_not_wait_is_refused_unharmed() {
    let directory = tempfile::tempdir().unwrap();
    let db = Arc::new(open::open(directory.path()).unwrap());
    let stall = |db: &DB, batch, patience| match patience {
        Patience::Hurries => Err(WriteFailure::Stalled),
        Patience::Waits => write(db, batch, patience),
    };
    let mut committer = Committer::new(db, 0, Clock::manual(), Arc::default(), stall);
    let refused = committer.commit(request(0, &["b"], &["a"]), Patience::Hurries);
    assert_eq!(refused, Err(KvError::NotCached));
    let accepted = committer.commit(request(0, &["a"], &["b"]), Patience::Waits);
    assert_eq!(accepted, Ok(CommitVersion(1)), "nobody has written \"a\"");
}
