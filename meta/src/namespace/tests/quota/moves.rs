//! Names that move into, out of and between directories with a quota.

use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::QuotaKind::Tree;

use super::super::trash::{DAY, keep};
use super::super::trash_restore::restore_to;
use super::*;

/// Two directories with quotas of 100 bytes, and one without.
async fn three(f: &Fixture) -> (u64, u64, u64) {
    let a = f.mkdir(ROOT, "a").await.inode;
    let b = f.mkdir(ROOT, "b").await.inode;
    let free = f.mkdir(ROOT, "free").await.inode;
    for dir in [a, b] {
        limit(f, Tree, dir, Some(100), Some(4)).await;
    }
    (a, b, free)
}

#[tokio::test]
async fn files_and_empty_directories_take_their_usage_with_them() {
    let f = Fixture::new();
    let (a, b, free) = three(&f).await;
    written(&f, a, "file", 60).await.unwrap();
    written(&f, b, "old", 50).await.unwrap();
    assert_eq!(code(f.rename(a, "file", b, "new").await), QuotaExceeded);
    assert_eq!(f.names(a).await, ["file"]);
    f.rename(a, "file", free, "file").await.unwrap();
    assert_eq!(used(&f, Tree, a).await, (0, 1, false));
    f.unlink(b, "old").await.unwrap();
    f.collect().await;
    f.rename(free, "file", b, "new").await.unwrap();
    assert_eq!(used(&f, Tree, b).await, (60, 2, false));

    let sub = f.mkdir(a, "sub").await.inode;
    f.rename(a, "sub", b, "sub").await.unwrap();
    assert_eq!(used(&f, Tree, a).await.1, 1);
    // What is made in it from now on counts there.
    f.file(sub, "x").await;
    assert_eq!(used(&f, Tree, b).await.1, 4);
    assert_eq!(code(f.rename(b, "sub", a, "sub").await), CrossDevice);
    assert_eq!(code(f.rename(b, "sub", free, "sub").await), CrossDevice);
    f.rename(b, "sub", b, "moved").await.unwrap();
    check_counters(&f);
}

#[tokio::test]
async fn nothing_is_linked_across_a_border() {
    let f = Fixture::new();
    let (a, b, free) = three(&f).await;
    let file = written(&f, a, "file", 60).await.unwrap();
    let link = |inode, parent, name| {
        f.ns.link(pb::LinkRequest {
            caller: f.root(),
            inode,
            parent,
            name: bytes(name),
        })
    };
    assert_eq!(code(link(file, b, "x").await), CrossDevice);
    assert_eq!(code(link(file, free, "x").await), CrossDevice);
    let outside = f.file(free, "outside").await.inode;
    assert_eq!(code(link(outside, a, "x").await), CrossDevice);
    link(file, a, "x").await.unwrap();
    // With two names it stays on its side.
    assert_eq!(code(f.rename(a, "x", free, "x").await), CrossDevice);
    f.rename(a, "x", a, "y").await.unwrap();
    f.unlink(a, "y").await.unwrap();
    f.rename(a, "file", free, "file").await.unwrap();

    // A file without a name has not been anywhere yet.
    let unnamed = pb::CreateUnnamedRequest {
        caller: f.root(),
        parent: free,
        mode: 0o644,
        ..Default::default()
    };
    let opened = f.ns.create_unnamed(unnamed).await.unwrap();
    link(opened.attr.unwrap().inode, b, "named").await.unwrap();
    assert_eq!(used(&f, Tree, b).await, (0, 2, false));
    check_counters(&f);
}

#[tokio::test]
async fn an_exchange_moves_both() {
    let f = Fixture::new();
    let (a, b, free) = three(&f).await;
    written(&f, a, "x", 70).await.unwrap();
    written(&f, a, "z", 20).await.unwrap();
    written(&f, b, "y", 50).await.unwrap();
    f.rename_with(a, "x", b, "y", false, true).await.unwrap();
    assert_eq!(used(&f, Tree, a).await, (70, 3, false));
    assert_eq!(used(&f, Tree, b).await, (70, 2, false));
    written(&f, free, "big", 200).await.unwrap();
    let refused = f.rename_with(free, "big", b, "y", false, true).await;
    assert_eq!(code(refused), QuotaExceeded);
    let full = f.mkdir(free, "full").await.inode;
    f.file(full, "x").await;
    let refused = f.rename_with(free, "full", b, "y", false, true).await;
    assert_eq!(code(refused), CrossDevice);
    check_counters(&f);
}

#[tokio::test]
async fn a_directory_takes_its_own_quota_along_but_not_into_another() {
    let f = Fixture::new();
    let (a, b, free) = three(&f).await;
    written(&f, a, "file", 60).await.unwrap();
    f.rename(ROOT, "a", free, "a").await.unwrap();
    written(&f, a, "more", 40).await.unwrap();
    assert_eq!(code(written(&f, a, "most", 1).await), QuotaExceeded);
    assert_eq!(code(f.rename(free, "a", b, "a").await), CrossDevice);
    assert_eq!(used(&f, Tree, a).await.0, 100);
    check_counters(&f);
}

#[tokio::test]
async fn what_a_rename_replaces_makes_room_when_it_is_gone() {
    let f = Fixture::new();
    let (a, _, free) = three(&f).await;
    written(&f, a, "old", 60).await.unwrap();
    written(&f, free, "new", 60).await.unwrap();
    assert_eq!(code(f.rename(free, "new", a, "old").await), QuotaExceeded);
    f.mkdir(a, "old-dir").await;
    f.mkdir(a, "third").await;
    f.mkdir(free, "new-dir").await;
    // An empty directory goes at once.
    f.rename(free, "new-dir", a, "old-dir").await.unwrap();
    assert_eq!(used(&f, Tree, a).await, (60, 4, false));
    check_counters(&f);
}

#[tokio::test]
async fn what_is_in_the_trash_is_counted_where_it_was_until_it_comes_back_elsewhere() {
    let f = Fixture::new();
    let a = f.mkdir(ROOT, "a").await.inode;
    let b = f.mkdir(ROOT, "b").await.inode;
    keep(&f, a, Some(DAY)).await;
    limit(&f, Tree, a, Some(1000), NONE).await;
    limit(&f, Tree, b, Some(200), NONE).await;
    for (name, len) in [("small", 150), ("large", 300)] {
        written(&f, a, name, len).await.unwrap();
        f.unlink(a, name).await.unwrap();
    }
    assert_eq!(used(&f, Tree, a).await, (450, 3, false));
    restore_to(&f, (a, "small"), (b, "small")).await.unwrap();
    assert_eq!(used(&f, Tree, a).await, (300, 2, false));
    assert_eq!(used(&f, Tree, b).await, (150, 2, false));
    let full = restore_to(&f, (a, "large"), (b, "large")).await;
    assert_eq!(full.unwrap_err().code, QuotaExceeded);
    assert_eq!(used(&f, Tree, a).await, (300, 2, false));
}
