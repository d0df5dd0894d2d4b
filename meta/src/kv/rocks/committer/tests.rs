use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, sync_channel};

use super::*;
use crate::kv::conflict::{ReadSet, WriteSet};
use crate::kv::mutations::Bounds;
use crate::kv::rocks::open;
use crate::kv::rocks::queue::{MAX_GROUP, MAX_GROUP_BYTES, take_group};
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
        bytes: 100,
    }
}

/// What a committer answers to transactions that all wait when it starts.
fn serve(
    requests: Vec<CommitRequest>,
    write: WriteBatchFn,
) -> (Vec<KvResult<CommitVersion>>, CommitStats) {
    let directory = tempfile::tempdir().unwrap();
    let db = Arc::new(open::open(directory.path()).unwrap());
    let mut tickets = VecDeque::new();
    let mut answers = Vec::new();
    for request in requests {
        let (tell, told) = sync_channel(2);
        tickets.push_back(Ticket { request, tell });
        answers.push(told);
    }
    let stats = Arc::new(Counters::default());
    let mut committer = Committer::new(db, 0, Clock::manual(), Arc::clone(&stats), write);
    while !tickets.is_empty() {
        committer.commit(take_group(&mut tickets));
    }
    let answer = |told: Receiver<Word>| match told.recv().unwrap() {
        Word::Answer(answer) => answer,
        Word::Lead => panic!("there is nothing left to lead"),
    };
    (answers.into_iter().map(answer).collect(), stats.read())
}

#[test]
fn transactions_that_wait_together_share_one_sync() {
    let requests = (0..40)
        .map(|n| request(0, &[], &[&format!("a{n}"), "shared"]))
        .collect();
    let (answers, stats) = serve(requests, write_synced);
    for (version, answer) in (1..).zip(answers) {
        assert_eq!(answer, Ok(CommitVersion(version)));
    }
    assert_eq!(
        stats,
        CommitStats {
            committed: 40,
            refused: 0,
            groups: 1
        }
    );
}

#[test]
fn a_transaction_conflicts_with_earlier_members_of_its_own_group_only() {
    let requests = vec![
        request(0, &["b"], &["a"]),
        request(0, &["a"], &["c"]),
        request(0, &["c"], &["b"]),
        request(0, &[], &["a"]),
    ];
    let (answers, stats) = serve(requests, write_synced);
    let expected = [
        Ok(CommitVersion(1)),
        Err(KvError::Conflict),
        Ok(CommitVersion(2)), // "c" was refused, so nobody wrote it
        Ok(CommitVersion(3)),
    ];
    assert_eq!(answers, expected);
    assert_eq!(
        stats,
        CommitStats {
            committed: 3,
            refused: 1,
            groups: 1
        }
    );
}

#[test]
fn a_group_is_bounded() {
    let requests = (0..=MAX_GROUP).map(|_| request(0, &[], &["k"])).collect();
    assert_eq!(serve(requests, write_synced).1.groups, 2);
    let mut large: Vec<_> = (0..4).map(|_| request(0, &[], &["k"])).collect();
    for request in &mut large {
        request.bytes = MAX_GROUP_BYTES / 2;
    }
    assert_eq!(serve(large, write_synced).1.groups, 2);
}
