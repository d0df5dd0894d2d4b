//! Room for those who write.

use std::time::Duration;

use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::QuotaKind::{Tree, User};

use super::*;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_mins(1);

async fn tree(f: &Fixture, bytes: u64) -> u64 {
    let dir = f.mkdir(ROOT, "dir").await.inode;
    limit(f, Tree, dir, Some(bytes), NONE).await;
    dir
}

#[tokio::test]
async fn without_a_limit_nobody_is_granted_anything() {
    let f = Fixture::new();
    let opened = f.create(f.root(), ROOT, "a", 0o644).await.unwrap();
    let attr = opened.attr.unwrap();
    assert!(!attr.limited);
    let reserved = reserve(&f, attr.inode, opened.session, 1 << 40)
        .await
        .unwrap();
    assert!(!reserved.limited);
    assert_eq!((reserved.granted, reserved.size), (0, 0));
}

#[tokio::test]
async fn a_writer_is_granted_steps_and_the_last_close_gives_the_rest_back() {
    let f = Fixture::new();
    let dir = tree(&f, 1 << 40).await;
    let first = f.create(f.root(), dir, "a", 0o644).await.unwrap();
    let attr = first.attr.unwrap();
    let file = attr.inode;
    assert!(attr.limited);
    assert_eq!(attr.granted, 4 * MIB, "a small file needs no request");
    let attr = reserve(&f, file, first.session, 5 * MIB).await.unwrap();
    assert_eq!((attr.granted, attr.size), (64 * MIB, 0));
    let attr = reserve(&f, file, first.session, 6 * MIB).await.unwrap();
    assert_eq!(attr.granted, 64 * MIB, "it has that already");
    assert_eq!(used(&f, Tree, dir).await.0, 64 * MIB);

    let second = f.open(file, true).await.unwrap();
    assert_eq!(second.attr.unwrap().granted, 64 * MIB);
    let synced = f.sync(file, first.session, 100, 0).await.unwrap();
    assert_eq!(
        (synced.size, synced.granted, synced.grant),
        (100, 64 * MIB, 0)
    );
    f.close(file, first.session).await;
    assert_eq!(used(&f, Tree, dir).await.0, 64 * MIB, "one is left");
    let closed = f.close(file, second.session).await;
    assert_eq!((closed.granted, closed.grant), (100, 1));
    assert_eq!(used(&f, Tree, dir).await.0, 100);
    // Also by a batch of closes.
    let third = f.open(file, true).await.unwrap().session;
    reserve(&f, file, third, MIB).await.unwrap();
    let many = pb::CloseManyRequest {
        caller: f.root(),
        sessions: vec![pb::SessionRef {
            inode: file,
            session: third,
        }],
        returned: Vec::new(),
    };
    f.ns.close_many(many).await.unwrap();
    assert_eq!(used(&f, Tree, dir).await.0, 100);
    check_counters(&f);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_rest_can_be_used_to_the_last_byte() {
    let f = Fixture::new();
    let dir = tree(&f, 10 * MIB).await;
    let a = f.create(f.root(), dir, "a", 0o644).await.unwrap();
    let b = f.create(f.root(), dir, "b", 0o644).await.unwrap();
    let (ai, bi) = (a.attr.unwrap().inode, b.attr.unwrap().inode);
    let refused = reserve(&f, ai, a.session, 11 * MIB).await.unwrap_err();
    assert_eq!(refused.code, QuotaExceeded);
    assert!(refused.message.contains("10485760 bytes"), "{refused}");
    // In turn, as far as each gets.
    let (mut sizes, mut full) = ([0_u64, 0], [false, false]);
    while full != [true, true] {
        for (index, (inode, session)) in [(ai, a.session), (bi, b.session)].into_iter().enumerate()
        {
            let end = sizes[index] + 4096;
            let granted = f.attr(inode).await.unwrap().granted;
            let fits = granted >= end || reserve(&f, inode, session, end).await.is_ok();
            full[index] = !fits;
            if fits {
                sizes[index] = end;
            }
        }
        assert!(used(&f, Tree, dir).await.0 <= 10 * MIB);
    }
    assert_eq!(sizes.iter().sum::<u64>(), 10 * MIB);
    check_counters(&f);
}

#[tokio::test]
async fn a_truncation_by_the_only_writer_gives_room_back_and_another_writer_keeps_it() {
    let f = Fixture::new();
    let dir = tree(&f, 1 << 30).await;
    let opened = f.create(f.root(), dir, "a", 0o644).await.unwrap();
    let (file, session) = (opened.attr.unwrap().inode, opened.session);
    reserve(&f, file, session, 100 * MIB).await.unwrap();
    let attr = f.truncate(file, 50).await.unwrap();
    assert_eq!((attr.granted, attr.grant), (50, 1));
    assert_eq!(used(&f, Tree, dir).await.0, 50);
    let granted = reserve(&f, file, session, MIB).await.unwrap().granted;
    let open = pb::OpenRequest {
        caller: f.client(2, 0),
        inode: file,
        write: true,
        truncate: true,
        ..Default::default()
    };
    let other = f.ns.open_inode(open).await.unwrap().attr.unwrap();
    assert_eq!((other.size, other.granted, other.grant), (0, granted, 1));
    assert_eq!(used(&f, Tree, dir).await.0, granted);
    check_counters(&f);
}

#[tokio::test]
async fn a_dead_writers_grant_goes_when_its_file_is_settled() {
    let f = Fixture::new();
    let dir = tree(&f, 1 << 30).await;
    let opened = f.create(f.root(), dir, "a", 0o644).await.unwrap();
    let file = opened.attr.unwrap().inode;
    reserve(&f, file, opened.session, 10 * MIB).await.unwrap();
    f.chunks.write(file, 777);
    // Also across a restart.
    let f = f.restart();
    assert!(used(&f, Tree, dir).await.0 >= 10 * MIB);
    f.expire_after(LONG).await;
    assert_eq!(f.attr(file).await.unwrap().size, 777);
    assert_eq!(used(&f, Tree, dir).await.0, 777);
    check_counters(&f);
}

#[tokio::test]
async fn an_unlinked_file_counts_until_it_is_gone_and_may_grow() {
    let f = Fixture::new();
    let dir = tree(&f, 1 << 30).await;
    let opened = f.create(f.root(), dir, "a", 0o644).await.unwrap();
    let file = opened.attr.unwrap().inode;
    f.unlink(dir, "a").await.unwrap();
    reserve(&f, file, opened.session, 5 * MIB).await.unwrap();
    assert!(used(&f, Tree, dir).await.0 >= 5 * MIB);
    f.close(file, opened.session).await;
    assert_eq!(used(&f, Tree, dir).await, (0, 2, false));
    f.collect().await;
    assert_eq!(used(&f, Tree, dir).await, (0, 1, false));
}

#[tokio::test]
async fn only_a_session_that_writes_gets_room() {
    let f = Fixture::new();
    let dir = tree(&f, 1 << 30).await;
    let file = written(&f, dir, "a", 10).await.unwrap();
    let reader = f.open(file, false).await.unwrap().session;
    assert_eq!(code(reserve(&f, file, reader, 100).await), NoSession);
    let writer = f.open(file, true).await.unwrap().session;
    let other = reserve_as(&f, f.client(2, 0), file, writer, 100).await;
    assert_eq!(code(other), NoSession);
    assert_eq!(
        code(reserve(&f, file, writer, u64::MAX).await),
        FileTooLarge
    );
}

#[tokio::test]
async fn who_did_not_know_of_a_quota_is_counted_and_stops_when_it_learns() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    let opened = f.create(f.root(), dir, "a", 0o644).await.unwrap();
    let attr = opened.attr.unwrap();
    assert!(!attr.limited);
    limit(&f, Tree, dir, Some(100), NONE).await;
    limit(&f, User, 0, Some(1000), NONE).await;
    let attr = f.sync(attr.inode, opened.session, 500, 0).await.unwrap();
    assert!(attr.limited);
    assert_eq!(attr.granted, 500);
    assert_eq!(used(&f, Tree, dir).await.0, 500);
    let refused = reserve(&f, attr.inode, opened.session, 501).await;
    assert_eq!(code(refused), QuotaExceeded);
    check_counters(&f);
}

#[tokio::test]
async fn a_grant_from_a_forgotten_quota_is_not_counted_by_the_next() {
    let f = Fixture::new();
    let dir = tree(&f, 1 << 30).await;
    let opened = f.create(f.root(), dir, "a", 0o644).await.unwrap();
    let file = opened.attr.unwrap().inode;
    reserve(&f, file, opened.session, 10 * MIB).await.unwrap();
    clear(&f, Tree, dir).await;
    f.close(file, opened.session).await;
    limit(&f, Tree, dir, Some(1 << 30), NONE).await;
    assert_eq!(used(&f, Tree, dir).await, (0, 2, false));
    check_counters(&f);
}
