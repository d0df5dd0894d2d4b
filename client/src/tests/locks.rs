//! Advisory locks: what is asked, what is remembered, what is reclaimed, and what is taken back.

use std::time::Duration;

use emberfs_proto::ErrorCode;
use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::locks::Hold;

use crate::testing::*;
use crate::{
    Client, ClientConfig, Identity, LockInfo, LockKind, LockRequest, LockSpace, Result, blocking,
};

const FILE: InodeId = InodeId(7);

/// A POSIX lock of an owner whose process has ten times its number.
fn posix(owner: u64, kind: LockKind, start: u64, end: u64) -> LockRequest {
    LockRequest {
        space: LockSpace::Posix,
        owner,
        pid: owner as u32 * 10,
        kind,
        start,
        end,
    }
}

fn flock(owner: u64, kind: LockKind) -> LockRequest {
    LockRequest {
        space: LockSpace::Flock,
        ..posix(owner, kind, 0, 0)
    }
}

/// A process of one and the same client.
async fn process(cluster: &Cluster, instance: u32) -> Client {
    let identity = Identity {
        client: ClientId(9),
        instance,
    };
    let config = ClientConfig {
        identity: Some(identity),
        ..cluster.config()
    };
    Client::connect(config).await.unwrap()
}

fn waiting(client: &Client, request: LockRequest) -> tokio::task::JoinHandle<Result<()>> {
    let client = client.clone();
    tokio::spawn(async move { client.set_lock(FILE, request, true).await })
}

async fn queued(cluster: &Cluster, count: usize) {
    let waits = || cluster.meta.state.lock().locks.waiting() == count;
    eventually("requests wait", waits).await;
}

/// What the server holds for an owner.
fn held(cluster: &Cluster, owner: u64) -> Vec<(u64, u64, Hold)> {
    let held = cluster.meta.state.lock().locks.of(owner);
    held.iter()
        .map(|r| (r.span.start, r.span.end, r.hold))
        .collect()
}

fn calls(cluster: &Cluster, verb: &str) -> usize {
    let state = cluster.meta.state.lock();
    state.locks.calls.iter().filter(|c| **c == verb).count()
}

#[tokio::test]
async fn a_lock_that_is_held_is_refused_and_told_and_free_after_its_release() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let wanted = posix(1, LockKind::Exclusive, 10, 19);
    a.set_lock(FILE, wanted, false).await.unwrap();
    let other = posix(2, LockKind::Shared, 0, i64::MAX as u64);
    let error = b.set_lock(FILE, other, false).await.unwrap_err();
    assert_eq!((error.code, error.errno()), (ErrorCode::LockHeld, 11));
    let there = LockInfo {
        kind: LockKind::Exclusive,
        start: 10,
        end: 19,
        pid: 10,
    };
    assert_eq!(a.test_lock(FILE, other).await, Ok(Some(there)));
    let elsewhere = LockInfo { pid: 0, ..there };
    assert_eq!(b.test_lock(FILE, other).await, Ok(Some(elsewhere)));
    assert_eq!(a.test_lock(FILE, wanted).await, Ok(None), "its own");
    a.release_locks(FILE, 1, LockSpace::Posix).await.unwrap();
    b.set_lock(FILE, other, false).await.unwrap();
    let backwards = posix(1, LockKind::Shared, 2, 1);
    let error = a.set_lock(FILE, backwards, false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn owners_without_locks_cost_no_requests() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client
        .release_locks(FILE, 1, LockSpace::Posix)
        .await
        .unwrap();
    let unlock = posix(1, LockKind::Unlock, 0, 9);
    client.set_lock(FILE, unlock, true).await.unwrap();
    let lock = posix(1, LockKind::Shared, 0, 9);
    client.set_lock(FILE, lock, false).await.unwrap();
    client.set_lock(FILE, unlock, false).await.unwrap();
    client
        .release_locks(FILE, 1, LockSpace::Posix)
        .await
        .unwrap();
    let calls = cluster.meta.state.lock().locks.calls.clone();
    assert_eq!(calls, ["reclaim_locks", "lock", "unlock"]);
}

#[tokio::test]
async fn a_waiting_call_returns_when_the_lock_is_free() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let exclusive = posix(1, LockKind::Exclusive, 0, 9);
    a.set_lock(FILE, exclusive, false).await.unwrap();
    let wait = waiting(&b, posix(2, LockKind::Exclusive, 5, 14));
    queued(&cluster, 1).await;
    assert!(!wait.is_finished());
    let part = posix(1, LockKind::Unlock, 5, 9);
    a.set_lock(FILE, part, false).await.unwrap();
    wait.await.unwrap().unwrap();
    assert_eq!(held(&cluster, 1), [(0, 4, Hold::Exclusive)]);
    assert_eq!(held(&cluster, 2), [(5, 14, Hold::Exclusive)]);
}

#[tokio::test]
async fn a_wait_that_outlasts_a_request_goes_on() {
    let cluster = Cluster::start().await;
    let a = cluster.client().await;
    let impatient = ClientConfig {
        io_timeout: Some(Duration::from_millis(300)),
        ..cluster.config()
    };
    let b = Client::connect(impatient).await.unwrap();
    let exclusive = posix(1, LockKind::Exclusive, 0, 9);
    a.set_lock(FILE, exclusive, false).await.unwrap();
    let wait = waiting(&b, posix(2, LockKind::Exclusive, 0, 9));
    eventually("asked often", || calls(&cluster, "lock") > 5).await;
    assert!(!wait.is_finished());
    a.release_locks(FILE, 1, LockSpace::Posix).await.unwrap();
    wait.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_taken_back() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let exclusive = posix(1, LockKind::Exclusive, 0, 9);
    a.set_lock(FILE, exclusive, false).await.unwrap();
    // What the owner held before stays.
    let before = posix(2, LockKind::Shared, 10, 19);
    b.set_lock(FILE, before, false).await.unwrap();
    let wait = waiting(&b, posix(2, LockKind::Exclusive, 5, 14));
    queued(&cluster, 1).await;
    wait.abort();
    queued(&cluster, 0).await;
    a.release_locks(FILE, 1, LockSpace::Posix).await.unwrap();
    let settled = || held(&cluster, 2) == [(10, 19, Hold::Shared)];
    eventually("only what it held", settled).await;
}

#[tokio::test]
async fn a_lock_whose_answer_was_lost_is_had_once_and_given_back_if_nobody_wants_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let lock = posix(1, LockKind::Exclusive, 0, 9);
    cluster
        .meta
        .fault("lock", ErrorCode::MaybeCommitted, true, 2);
    client.set_lock(FILE, lock, false).await.unwrap();
    assert_eq!(calls(&cluster, "lock"), 3);
    client
        .release_locks(FILE, 1, LockSpace::Posix)
        .await
        .unwrap();
    assert!(held(&cluster, 1).is_empty());
    // Granted, but the caller is gone before it hears of it.
    cluster
        .meta
        .fault("lock", ErrorCode::MaybeCommitted, true, 1000);
    let wait = waiting(&client, lock);
    eventually("granted", || !held(&cluster, 1).is_empty()).await;
    wait.abort();
    eventually("given back", || held(&cluster, 1).is_empty()).await;
}

#[tokio::test]
async fn a_lost_answer_to_an_unlock_does_not_matter() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let lock = flock(1, LockKind::Exclusive);
    client.set_lock(FILE, lock, false).await.unwrap();
    cluster
        .meta
        .fault("unlock", ErrorCode::MaybeCommitted, true, 2);
    client
        .release_locks(FILE, 1, LockSpace::Flock)
        .await
        .unwrap();
    assert!(held(&cluster, 1).is_empty());
}

#[tokio::test]
async fn two_flocks_that_both_want_more_do_not_wait_for_each_other() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    for owner in [1, 2] {
        let shared = flock(owner, LockKind::Shared);
        client.set_lock(FILE, shared, false).await.unwrap();
    }
    let refused = client.set_lock(FILE, flock(1, LockKind::Exclusive), false);
    assert_eq!(refused.await.unwrap_err().code, ErrorCode::LockHeld);
    let whole = [(0, u64::MAX, Hold::Shared)];
    assert_eq!(held(&cluster, 1), whole, "without waiting it keeps it");
    let turns = [1, 2].map(|owner| {
        let client = client.clone();
        tokio::spawn(async move {
            let exclusive = flock(owner, LockKind::Exclusive);
            client.set_lock(FILE, exclusive, true).await.unwrap();
            client
                .release_locks(FILE, owner, LockSpace::Flock)
                .await
                .unwrap();
        })
    });
    for turn in turns {
        turn.await.unwrap();
    }
}

#[tokio::test]
async fn locks_are_reclaimed_after_a_restart_and_waits_go_on() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let exclusive = posix(1, LockKind::Exclusive, 0, 9);
    a.set_lock(FILE, exclusive, false).await.unwrap();
    a.set_lock(FILE, posix(1, LockKind::Shared, 20, 29), false)
        .await
        .unwrap();
    a.set_lock(InodeId(8), flock(3, LockKind::Shared), false)
        .await
        .unwrap();
    let wait = waiting(&b, posix(2, LockKind::Exclusive, 0, 9));
    queued(&cluster, 1).await;
    cluster.meta.restart_locks();
    let back = || held(&cluster, 1).len() == 2 && held(&cluster, 3).len() == 1;
    eventually("reclaimed", back).await;
    queued(&cluster, 1).await;
    assert!(!wait.is_finished());
    a.release_locks(FILE, 1, LockSpace::Posix).await.unwrap();
    wait.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lock_request_finds_a_restart_before_the_next_keep_alive_does() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let lock = posix(1, LockKind::Exclusive, 0, 9);
    client.set_lock(FILE, lock, false).await.unwrap();
    for round in 1..20u64 {
        cluster.meta.restart_locks();
        let next = posix(1, LockKind::Exclusive, round * 10, round * 10 + 9);
        client.set_lock(FILE, next, false).await.unwrap();
        let whole = (0, round * 10 + 9, Hold::Exclusive);
        assert_eq!(held(&cluster, 1), [whole], "round {round}");
    }
    client
        .release_locks(FILE, 1, LockSpace::Posix)
        .await
        .unwrap();
    assert!(held(&cluster, 1).is_empty());
}

#[tokio::test]
async fn lost_locks_are_an_error_until_they_are_unlocked() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let lock = posix(1, LockKind::Exclusive, 0, 9);
    client.set_lock(FILE, lock, false).await.unwrap();
    cluster.meta.state.lock().locks.expire();
    let next = posix(1, LockKind::Exclusive, 20, 29);
    let error = client.set_lock(FILE, next, true).await.unwrap_err();
    assert_eq!((error.code, error.errno()), (ErrorCode::LockLost, 5));
    eventually("what it may have got went back", || {
        held(&cluster, 1).is_empty()
    })
    .await;
    // Others are not concerned.
    client
        .set_lock(FILE, posix(2, LockKind::Exclusive, 0, 9), false)
        .await
        .unwrap();
    let part = posix(1, LockKind::Unlock, 0, 4);
    client.set_lock(FILE, part, false).await.unwrap();
    assert!(client.set_lock(FILE, next, false).await.is_err());
    client
        .release_locks(FILE, 1, LockSpace::Posix)
        .await
        .unwrap();
    client.set_lock(FILE, next, false).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_releases_everything() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let lock = flock(1, LockKind::Exclusive);
    a.set_lock(FILE, lock, false).await.unwrap();
    let wait = waiting(&b, flock(2, LockKind::Exclusive));
    queued(&cluster, 1).await;
    a.shutdown().await;
    wait.await.unwrap().unwrap();
    b.shutdown().await;
    let error = b.set_lock(FILE, flock(3, LockKind::Shared), true).await;
    assert_eq!(error.unwrap_err().code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn nothing_is_remembered_of_owners_that_are_gone() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    for owner in 0..50 {
        let lock = posix(owner, LockKind::Exclusive, owner, owner);
        client.set_lock(FILE, lock, false).await.unwrap();
    }
    assert_eq!(client.core.locks.owners(), 50);
    for owner in 0..50 {
        client
            .release_locks(FILE, owner, LockSpace::Posix)
            .await
            .unwrap();
    }
    assert_eq!(client.core.locks.owners(), 0);
}

#[test]
fn the_blocking_client_locks() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(Cluster::start());
    let client = blocking::Client::connect(cluster.config()).unwrap();
    let lock = posix(1, LockKind::Exclusive, 0, 9);
    client.set_lock(FILE, lock, true).unwrap();
    let other = posix(2, LockKind::Shared, 9, 9);
    assert!(client.test_lock(FILE, other).unwrap().is_some());
    client.release_locks(FILE, 1, LockSpace::Posix).unwrap();
    assert_eq!(client.test_lock(FILE, other), Ok(None));
    client.shutdown();
}

#[tokio::test]
async fn a_later_process_has_the_locks_of_the_earlier_one() {
    let cluster = Cluster::start().await;
    let (first, other) = (process(&cluster, 1).await, cluster.client().await);
    let append = LockRequest {
        space: LockSpace::Append,
        ..flock(0, LockKind::Exclusive)
    };
    let elsewhere = InodeId(8);
    for (inode, request) in [
        (FILE, posix(1, LockKind::Exclusive, 10, 19)),
        (FILE, posix(2, LockKind::Shared, 30, 39)),
        (FILE, append),
        (elsewhere, flock(3, LockKind::Exclusive)),
    ] {
        first.set_lock(inode, request, false).await.unwrap();
    }
    let theirs = posix(5, LockKind::Exclusive, 50, 59);
    other.set_lock(FILE, theirs, false).await.unwrap();
    let wait = waiting(&first, posix(4, LockKind::Exclusive, 50, 59));
    queued(&cluster, 1).await;

    let second = process(&cluster, 2).await;
    assert_eq!(second.resume_locks().await.unwrap(), [FILE]);
    queued(&cluster, 0).await;
    let error = wait.await.unwrap().unwrap_err();
    // Or its keep-alive heard of it first, and stopped it.
    let told = [ErrorCode::Superseded, ErrorCode::Unavailable];
    assert!(told.contains(&error.code), "{error}");
    // As if it had taken them itself: unlocked, released at close, reclaimed.
    let part = posix(1, LockKind::Unlock, 10, 14);
    second.set_lock(FILE, part, false).await.unwrap();
    assert_eq!(held(&cluster, 1), [(15, 19, Hold::Exclusive)]);
    second
        .release_locks(FILE, 2, LockSpace::Posix)
        .await
        .unwrap();
    assert!(held(&cluster, 2).is_empty());
    second
        .release_locks(FILE, 0, LockSpace::Append)
        .await
        .unwrap();
    assert!(held(&cluster, 0).is_empty());
    cluster.meta.restart_locks();
    eventually("what is left is reclaimed", || {
        held(&cluster, 1).len() == 1 && held(&cluster, 3).len() == 1
    })
    .await;
    assert_eq!(calls(&cluster, "resume_locks"), 2, "a page for each file");
}

#[tokio::test]
async fn a_client_without_locks_takes_over_none() {
    let cluster = Cluster::start().await;
    let client = process(&cluster, 2).await;
    assert_eq!(client.resume_locks().await.unwrap(), []);
    let lock = flock(1, LockKind::Exclusive);
    client.set_lock(FILE, lock, false).await.unwrap();
}
