//! Removing whole trees.

use emberfs_proto::ErrorCode::{NotDirectory, NotFound, NotPermitted};
use emberfs_proto::pb;

use super::fixture::*;

/// More than one batch in a directory, and subdirectories with something in them.
async fn tree(f: &Fixture) -> (u64, u64) {
    let top = f.mkdir(ROOT, "top").await.inode;
    let sub = f.mkdir(top, "sub").await.inode;
    for index in 0..700 {
        f.file(top, &format!("file-{index:04}")).await;
    }
    let inner = f.mkdir(sub, "inner").await.inode;
    f.file(inner, "deep").await;
    (top, sub)
}

async fn remove(f: &Fixture, caller: Option<pb::Caller>, name: &str) -> emberfs_proto::Result<()> {
    let request = pb::NameRequest {
        caller,
        ..f.named(ROOT, name)
    };
    f.ns.remove_tree(request).await.map(drop)
}

#[tokio::test]
async fn a_tree_is_gone_at_once_and_then_really() {
    let f = Fixture::new();
    let (top, sub) = tree(&f).await;
    let kept = f.file(sub, "kept").await;
    let link = pb::LinkRequest {
        caller: f.root(),
        inode: kept.inode,
        parent: ROOT,
        name: bytes("also"),
    };
    f.ns.link(link).await.unwrap();
    assert_eq!(f.attr(ROOT).await.unwrap().nlink, 3);

    remove(&f, f.root(), "top").await.unwrap();
    assert_eq!(code(f.lookup(ROOT, "top").await), NotFound);
    assert_eq!(f.attr(ROOT).await.unwrap().nlink, 2);
    assert_eq!(code(f.create(f.root(), top, "new", 0o644).await), NotFound);
    assert_eq!(code(f.lookup(top, "sub").await), NotFound);

    f.ns.sweep_trees().await.unwrap();
    f.collect().await;
    // The root, and the file that has another name.
    assert_eq!(f.summary().await.inodes, 2);
    assert_eq!(f.lookup(ROOT, "also").await.unwrap().nlink, 1);
    assert_eq!(f.names(ROOT).await, ["also"]);
}

#[tokio::test]
async fn a_restart_in_between_goes_on() {
    let mut f = Fixture::new();
    tree(&f).await;
    remove(&f, f.root(), "top").await.unwrap();
    let mut steps = 0;
    while f.ns.core.write(crate::namespace::ops::tree::step).unwrap() {
        steps += 1;
        f = f.restart();
    }
    assert!(steps >= 4, "{steps} steps");
    f.collect().await;
    assert_eq!(f.summary().await.inodes, 1);
}

#[tokio::test]
async fn only_root_may_and_only_directories() {
    let f = Fixture::new();
    f.mkdir(ROOT, "dir").await;
    f.file(ROOT, "file").await;
    assert_eq!(code(remove(&f, f.user(7), "dir").await), NotPermitted);
    assert_eq!(code(remove(&f, f.root(), "file").await), NotDirectory);
    assert_eq!(code(remove(&f, f.root(), "none").await), NotFound);
}

#[tokio::test]
async fn what_others_cached_of_it_is_told() {
    use futures::StreamExt;
    let f = Fixture::new();
    f.mkdir(ROOT, "dir").await;
    let other = f.client(9, 0);
    let mut watch = f.ns.watch_inodes(&pb::WatchInodesRequest {
        caller: other.clone(),
    });
    let watch = watch.as_mut().unwrap();
    watch.next().await.unwrap().unwrap();
    let request = pb::NameRequest {
        caller: other,
        ..f.named(ROOT, "dir")
    };
    f.ns.lookup(request).await.unwrap();
    remove(&f, f.root(), "dir").await.unwrap();
    let told = watch.next().await.unwrap().unwrap();
    assert_eq!(told.names.len(), 1);
    assert_eq!(
        (told.names[0].parent, &told.names[0].name[..]),
        (ROOT, &b"dir"[..])
    );
    assert!(!told.inodes.is_empty());
}
