//! What comes back from the trash, where, and when not.

use emberfs_proto::ErrorCode::{Exists, NotFound, NotPermitted};
use emberfs_proto::{Result, pb};

use super::fixture::*;
use super::trash::{DAY, all, expire_all, keep, kept, paths};

fn request(f: &Fixture, parent: u64, name: &str) -> pb::RestoreTrashRequest {
    pb::RestoreTrashRequest {
        caller: f.root(),
        spot: Some(pb::TrashSpot {
            parent,
            name: bytes(name),
            removed: 0,
        }),
        ..Default::default()
    }
}

async fn restore(f: &Fixture, parent: u64, name: &str) -> Result<pb::RestoreTrashReply> {
    f.ns.restore_trash(request(f, parent, name)).await
}

pub(super) async fn restore_to(
    f: &Fixture,
    from: (u64, &str),
    to: (u64, &str),
) -> Result<pb::RestoreTrashReply> {
    let request = pb::RestoreTrashRequest {
        to_parent: to.0,
        to_name: bytes(to.1),
        ..request(f, from.0, from.1)
    };
    f.ns.restore_trash(request).await
}

/// Removes a directory as `rm -r` on a mount does.
async fn remove_by_name(f: &Fixture, parent: u64, name: &str) {
    let dir = f.lookup(parent, name).await.unwrap().inode;
    for child in f.names(dir).await {
        if f.unlink(dir, &child).await.is_err() {
            Box::pin(remove_by_name(f, dir, &child)).await;
        }
    }
    f.rmdir(parent, name).await.unwrap();
}

/// Every path below a directory.
async fn below(f: &Fixture, dir: u64, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in f.names(dir).await {
        let child = f.lookup(dir, &name).await.unwrap();
        let path = format!("{path}/{name}");
        found.push(path.clone());
        if child.kind() == pb::FileKind::Directory {
            found.extend(Box::pin(below(f, child.inode, &path)).await);
        }
    }
    found
}

#[tokio::test]
async fn a_name_comes_back_once_with_what_it_was() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let file = f.file(dir, "a").await.inode;
    f.unlink(dir, "a").await.unwrap();
    let asked = request(&f, dir, "a");
    let reply = f.ns.restore_trash(asked.clone()).await.unwrap();
    assert_eq!(&reply.path[..], b"/kept/a");
    assert_eq!(f.lookup(dir, "a").await.unwrap().inode, file);
    assert_eq!(f.lookup(dir, "a").await.unwrap().nlink, 1);
    assert!(all(&f).await.is_empty());
    // A retry is answered, and touches nothing.
    f.unlink(dir, "a").await.unwrap();
    assert_eq!(f.ns.restore_trash(asked).await, Ok(reply));
    assert_eq!(code(f.lookup(dir, "a").await), NotFound);
    // No trace of it expires.
    restore(&f, dir, "a").await.unwrap();
    expire_all(&f).await;
    assert_eq!(f.lookup(dir, "a").await.unwrap().nlink, 1);
}

#[tokio::test]
async fn the_newest_of_a_name_comes_back_unless_another_is_chosen() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let mut inodes = Vec::new();
    for _ in 0..3 {
        inodes.push(f.file(dir, "a").await.inode);
        f.unlink(dir, "a").await.unwrap();
    }
    let oldest = all(&f).await.pop().unwrap();
    assert_eq!(oldest.inode, inodes[0]);
    restore(&f, dir, "a").await.unwrap();
    assert_eq!(f.lookup(dir, "a").await.unwrap().inode, inodes[2]);
    let error = restore(&f, dir, "a").await.unwrap_err();
    assert_eq!(error.code, Exists);
    assert!(
        error.message.contains("/kept/a") && error.message.contains("--to"),
        "{error}"
    );
    let chosen = pb::RestoreTrashRequest {
        spot: oldest.spot,
        to_name: bytes("first"),
        ..request(&f, dir, "a")
    };
    f.ns.restore_trash(chosen).await.unwrap();
    assert_eq!(f.lookup(dir, "first").await.unwrap().inode, inodes[0]);
    assert_eq!(code(restore(&f, dir, "none").await), NotFound);
}

#[tokio::test]
async fn a_directory_removed_name_by_name_comes_back_as_a_whole() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let top = f.mkdir(dir, "top").await.inode;
    for name in ["a", "b", "c"] {
        let sub = f.mkdir(top, name).await.inode;
        f.mkdir(sub, "empty").await;
        for file in 0..250 {
            f.file(sub, &format!("{file:03}")).await;
        }
    }
    let before = below(&f, dir, "").await;
    let inodes = f.summary().await.inodes;
    let generation = f.attr(top).await.unwrap().generation;
    remove_by_name(&f, dir, "top").await;
    assert_eq!(f.attr(dir).await.unwrap().nlink, 2);
    restore(&f, dir, "top").await.unwrap();
    assert_eq!(below(&f, dir, "").await, before);
    assert_eq!(f.attr(top).await.unwrap().nlink, 5);
    assert_eq!(f.attr(top).await.unwrap().generation, generation + 1);
    assert_eq!(f.attr(dir).await.unwrap().nlink, 3);
    assert!(all(&f).await.is_empty());
    expire_all(&f).await;
    assert_eq!(f.summary().await.inodes, inodes);
}

#[tokio::test]
async fn a_restart_in_between_goes_on() {
    use crate::namespace::trash::testing::{refill, restore};
    let mut f = Fixture::new();
    let dir = kept(&f).await;
    let top = f.mkdir(dir, "top").await.inode;
    for file in 0..450 {
        f.file(top, &format!("{file:03}")).await;
    }
    remove_by_name(&f, dir, "top").await;
    let request = request(&f, dir, "top");
    f.ns.core.write(|tx| restore(tx, &request)).unwrap();
    // What is removed meanwhile stays removed, and what is made stays.
    let made = f.file(top, "449").await.inode;
    f.file(top, "448").await;
    f.unlink(top, "448").await.unwrap();
    let mut steps = 0;
    while f.ns.core.write(refill).unwrap() {
        steps += 1;
        f = f.restart();
    }
    assert!(steps >= 3, "{steps} steps");
    assert_eq!(f.names(top).await.len(), 450);
    assert_eq!(f.lookup(top, "449").await.unwrap().inode, made);
}

#[tokio::test]
async fn a_tree_comes_back_without_what_was_removed_from_it_before() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let top = f.mkdir(dir, "top").await.inode;
    f.file(top, "before").await;
    f.unlink(top, "before").await.unwrap();
    f.file(top, "stays").await;
    f.ns.remove_tree(f.named(dir, "top")).await.unwrap();
    restore(&f, dir, "top").await.unwrap();
    assert_eq!(f.names(top).await, ["stays"]);
    restore(&f, top, "before").await.unwrap();
    assert_eq!(f.names(top).await, ["before", "stays"]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_reached_is_named_with_a_way_out() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let top = f.mkdir(dir, "top").await.inode;
    let sub = f.mkdir(top, "sub").await.inode;
    f.file(sub, "file").await;
    remove_by_name(&f, dir, "top").await;
    let error = restore(&f, sub, "file").await.unwrap_err();
    assert_eq!(error.code, NotFound);
    assert!(
        error.message.contains("restore /kept/top first") && error.message.contains("--to"),
        "{error}"
    );
    // A directory does not come back inside itself.
    let inside = restore_to(&f, (dir, "top"), (sub, "in")).await;
    assert_eq!(code(inside), NotFound);
    let file = restore_to(&f, (sub, "file"), (ROOT, "saved"))
        .await
        .unwrap();
    assert_eq!(&file.path[..], b"/saved");

    f.file(dir, "x").await;
    f.unlink(dir, "x").await.unwrap();
    keep(&f, dir, Some(0)).await;
    f.rmdir(ROOT, "kept").await.unwrap();
    let error = restore(&f, dir, "x").await.unwrap_err();
    assert!(
        error.message.contains("/kept was removed for good") && error.message.contains("--to"),
        "{error}"
    );
    restore_to(&f, (dir, "x"), (ROOT, "")).await.unwrap();
    assert_eq!(f.names(ROOT).await, ["saved", "x"]);
    // The tree whose directory is gone can go elsewhere as well.
    restore_to(&f, (dir, "top"), (ROOT, "top")).await.unwrap();
    assert_eq!(
        below(&f, ROOT, "").await,
        ["/saved", "/top", "/top/sub", "/x"]
    );
    assert_eq!(f.attr(ROOT).await.unwrap().nlink, 3);
}

#[tokio::test]
async fn names_come_back_where_their_directory_is_now() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let other = f.mkdir(ROOT, "other").await.inode;
    f.file(dir, "a").await;
    f.unlink(dir, "a").await.unwrap();
    f.rename(ROOT, "kept", other, "moved").await.unwrap();
    assert_eq!(paths(&all(&f).await), ["/other/moved/a"]);
    let reply = restore(&f, dir, "a").await.unwrap();
    assert_eq!(&reply.path[..], b"/other/moved/a");
    assert_eq!(f.names(dir).await, ["a"]);
}

#[tokio::test]
async fn races_with_moves_and_other_restores_leave_one_tree() {
    let f = Fixture::new();
    keep(&f, ROOT, Some(DAY)).await;
    for round in 0..20 {
        let name = format!("d{round}");
        let dir = f.mkdir(ROOT, &name).await.inode;
        f.file(dir, "file").await;
        let place = format!("t{round}");
        let target = f.mkdir(ROOT, &place).await.inode;
        remove_by_name(&f, ROOT, &name).await;
        let moved = format!("t{round}-moved");
        let (one, two, three) = tokio::join!(
            restore_to(&f, (ROOT, &name), (target, "in")),
            restore(&f, ROOT, &name),
            f.rename(ROOT, &place, ROOT, &moved),
        );
        three.unwrap();
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        assert_eq!(f.names(dir).await, ["file"]);
        assert_eq!(
            u64::from(f.attr(target).await.unwrap().nlink),
            2 + u64::from(one.is_ok())
        );
    }
    expire_all(&f).await;
    assert_eq!(f.summary().await.inodes, 61);
}

#[tokio::test]
async fn others_hear_of_names_that_go_and_come_back() {
    use futures::StreamExt;
    let f = Fixture::new();
    let dir = kept(&f).await;
    f.file(dir, "a").await;
    let other = f.client(9, 0);
    let mut watch = f.ns.watch_inodes(&pb::WatchInodesRequest {
        caller: other.clone(),
    });
    let watch = watch.as_mut().unwrap();
    watch.next().await.unwrap().unwrap();
    let look = async || {
        let request = pb::NameRequest {
            caller: other.clone(),
            ..f.named(dir, "a")
        };
        f.ns.lookup(request).await
    };
    look().await.unwrap();
    f.unlink(dir, "a").await.unwrap();
    let told = watch.next().await.unwrap().unwrap();
    assert_eq!(&told.names[0].name[..], b"a");
    assert_eq!(code(look().await), NotFound);
    restore(&f, dir, "a").await.unwrap();
    let told = watch.next().await.unwrap().unwrap();
    assert_eq!(&told.names[0].name[..], b"a");
    look().await.unwrap();
}

#[tokio::test]
async fn only_root_restores() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    f.file(dir, "a").await;
    f.unlink(dir, "a").await.unwrap();
    let request = pb::RestoreTrashRequest {
        caller: f.user(7),
        ..request(&f, dir, "a")
    };
    assert_eq!(code(f.ns.restore_trash(request).await), NotPermitted);
}
