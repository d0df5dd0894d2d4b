//! Counting what was there before.

use std::sync::Arc;

use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::QuotaKind::{Group, Tree, User};

use super::*;
use crate::kv::MemoryEngine;
use crate::kv::memory::Fault;
use crate::namespace::ops::count;

/// A directory with more entries than one batch, and something below.
async fn full(f: &Fixture) -> u64 {
    let dir = f.mkdir(ROOT, "dir").await.inode;
    let sub = f.mkdir(dir, "m-sub").await.inode;
    let inner = f.mkdir(sub, "inner").await.inode;
    written(f, inner, "deep", 1000).await.unwrap();
    for file in 0..450 {
        written(f, dir, &format!("f{file:04}"), 10).await.unwrap();
    }
    dir
}

const ALL: (u64, u64, bool) = (5500, 454, false);

#[tokio::test]
async fn everything_is_counted_bit_by_bit_across_restarts() {
    let mut f = Fixture::new();
    let dir = full(&f).await;
    let request = quota(&f, Tree, dir, Some(1 << 20), NONE);
    let answer = f.ns.set_quota(request).await.unwrap().quotas;
    assert!(answer[0].counting);
    let mut last = 0;
    let mut steps = 0;
    while f.ns.core.count_some().unwrap() {
        let (_, inodes, counting) = used(&f, Tree, dir).await;
        assert!(inodes >= last && counting);
        last = inodes;
        steps += 1;
        check_counters(&f);
        f = f.restart();
    }
    assert!(steps >= 5, "{steps} steps");
    assert_eq!(used(&f, Tree, dir).await, ALL);
    check_counters(&f);
    check_complete(&f);
}

#[tokio::test]
async fn owners_are_counted_in_one_pass_with_what_is_unlinked() {
    let mut f = Fixture::new();
    full(&f).await;
    let held = f.create(f.root(), ROOT, "held", 0o644).await.unwrap();
    f.unlink(ROOT, "held").await.unwrap();
    for (kind, id) in [(User, 0), (Group, 0)] {
        f.ns.set_quota(quota(&f, kind, id, NONE, NONE))
            .await
            .unwrap();
    }
    while f.ns.core.count_some().unwrap() {
        check_counters(&f);
        f = f.restart();
        // What comes meanwhile is counted by whoever brings it.
        f.mkdir(ROOT, &format!("new-{}", f.summary().await.inodes))
            .await;
        check_counters(&f);
    }
    let inodes = f.summary().await.inodes;
    assert_eq!(used(&f, User, 0).await, (5500, inodes, false));
    assert_eq!(used(&f, Group, 0).await, (5500, inodes, false));
    f.close(held.attr.unwrap().inode, held.session).await;
}

#[tokio::test]
async fn an_unknown_outcome_of_the_last_step_ends_the_count() {
    let engine = MemoryEngine::new();
    let f = Fixture::over(Arc::new(engine.clone()), Arc::default());
    f.file(ROOT, "a").await;
    let request = quota(&f, User, 0, NONE, NONE);
    f.ns.set_quota(request).await.unwrap();
    while f.ns.core.write(count::owners).unwrap() {}
    // The pass once more, then the note that it is complete.
    engine.inject_nth(1, Fault::MaybeCommitted { applied: true });
    assert_eq!(f.ns.core.count_some(), Ok(false));
    assert_eq!(used(&f, User, 0).await, (0, 2, false));
    let f = f.restart();
    assert_eq!(used(&f, User, 0).await, (0, 2, false));
}

#[tokio::test]
async fn a_limit_holds_for_what_has_been_counted() {
    let f = Fixture::new();
    let dir = full(&f).await;
    f.ns.set_quota(quota(&f, Tree, dir, NONE, Some(300)))
        .await
        .unwrap();
    // The directory itself, then a batch.
    f.ns.core.write(count::trees).unwrap();
    f.ns.core.write(count::trees).unwrap();
    f.file(dir, "new").await;
    f.ns.count().await.unwrap();
    assert_eq!(used(&f, Tree, dir).await.1, 455);
    assert_eq!(
        code(f.create(f.root(), dir, "x", 0o644).await),
        QuotaExceeded
    );
}

#[tokio::test]
async fn what_is_moved_while_it_is_counted_is_counted_once() {
    let f = Fixture::new();
    let dir = full(&f).await;
    let z = f.mkdir(dir, "z").await.inode;
    f.file(z, "in-z").await;
    f.ns.set_quota(quota(&f, Tree, dir, NONE, NONE))
        .await
        .unwrap();
    let step = || f.ns.core.write(count::trees).unwrap();
    step();
    step();
    // From where the count has not been to where it has been, and back.
    f.rename(dir, "z", dir, "a").await.unwrap();
    f.rename(dir, "f0449", dir, "b").await.unwrap();
    f.rename(dir, "f0000", z, "y").await.unwrap();
    let sub = f.lookup(dir, "m-sub").await.unwrap().inode;
    let inner = f.lookup(sub, "inner").await.unwrap().inode;
    f.rename(sub, "inner", dir, "c").await.unwrap();
    f.rename(inner, "deep", dir, "d").await.unwrap();
    // Into it from elsewhere, and out of it.
    let other = f.mkdir(ROOT, "other").await.inode;
    f.file(other, "in-other").await;
    f.rename(ROOT, "other", dir, "e").await.unwrap();
    f.rename(dir, "f0001", ROOT, "out").await.unwrap();
    check_counters(&f);
    f.ns.count().await.unwrap();
    check_counters(&f);
    // All of before, `z` with a file, `other` with a file, without one.
    assert_eq!(used(&f, Tree, dir).await, (5490, 454 + 2 + 2 - 1, false));
}

#[tokio::test]
async fn what_is_counted_elsewhere_stays_there() {
    let f = Fixture::new();
    let a = f.mkdir(ROOT, "a").await.inode;
    let b = f.mkdir(ROOT, "b").await.inode;
    let file = written(&f, a, "x", 10).await.unwrap();
    let link = pb::LinkRequest {
        caller: f.root(),
        inode: file,
        parent: b,
        name: bytes("y"),
    };
    f.ns.link(link).await.unwrap();
    limit(&f, Tree, a, NONE, NONE).await;
    limit(&f, Tree, b, NONE, NONE).await;
    assert_eq!(used(&f, Tree, a).await, (10, 2, false));
    assert_eq!(used(&f, Tree, b).await, (0, 1, false));
    f.rename(b, "y", b, "z").await.unwrap();
    f.unlink(a, "x").await.unwrap();
    assert_eq!(
        used(&f, Tree, a).await,
        (10, 2, false),
        "until its last name goes"
    );
    f.unlink(b, "z").await.unwrap();
    f.collect().await;
    assert_eq!(used(&f, Tree, a).await, (0, 1, false));
    check_counters(&f);
}
