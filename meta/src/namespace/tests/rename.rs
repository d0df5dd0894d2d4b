use std::collections::HashSet;

use super::fixture::*;
use emberfs_proto::ErrorCode::*;

#[tokio::test]
async fn a_file_moves_and_replaces() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "d").await.inode;
    let a = f.file(ROOT, "a").await.inode;
    let b = f.file(dir, "b").await.inode;
    let reply = f.rename(ROOT, "a", dir, "b").await.unwrap();
    assert_eq!(reply.moved.unwrap().inode, a);
    let replaced = reply.replaced.unwrap();
    assert_eq!((replaced.inode, replaced.nlink), (b, 0));
    assert_eq!(f.lookup(dir, "b").await.unwrap().inode, a);
    assert_eq!(code(f.lookup(ROOT, "a").await), NotFound);
    assert_eq!(f.summary().await.garbage, 1);
    assert_eq!(f.collect().await.removed, 1);
    assert_eq!(code(f.attr(b).await), Stale);
}

#[tokio::test]
async fn directories_move_with_their_link_counts() {
    let f = Fixture::new();
    let a = f.mkdir(ROOT, "a").await.inode;
    let b = f.mkdir(ROOT, "b").await.inode;
    let sub = f.mkdir(a, "s").await.inode;
    f.rename(a, "s", b, "t").await.unwrap();
    assert_eq!(f.attr(a).await.unwrap().nlink, 2);
    assert_eq!(f.attr(b).await.unwrap().nlink, 3);
    assert_eq!(parent_of(&f, sub).await, b);
    // Over an empty directory.
    f.mkdir(a, "e").await;
    f.rename(b, "t", a, "e").await.unwrap();
    assert_eq!(f.attr(a).await.unwrap().nlink, 3);
    assert_eq!(f.attr(b).await.unwrap().nlink, 2);
    assert_eq!(f.lookup(a, "e").await.unwrap().inode, sub);
    // Within one directory nothing changes but the name.
    f.rename(a, "e", a, "g").await.unwrap();
    assert_eq!(f.attr(a).await.unwrap().nlink, 3);
    assert_eq!(f.names(a).await, ["g"]);
}

#[tokio::test]
async fn others_are_told_which_names_a_directory_has_left() {
    use futures::StreamExt;
    let f = Fixture::new();
    let a = f.mkdir(ROOT, "a").await.inode;
    let b = f.mkdir(ROOT, "b").await.inode;
    for name in ["dir", "same"] {
        f.mkdir(a, name).await;
    }
    f.file(a, "file").await;
    f.mkdir(b, "other").await;
    let other = f.client(9, 0);
    let watched = emberfs_proto::pb::WatchInodesRequest {
        caller: other.clone(),
    };
    let mut watch = f.ns.watch_inodes(&watched).unwrap();
    watch.next().await.unwrap().unwrap();
    for dir in [a, b] {
        let request = emberfs_proto::pb::NameRequest {
            caller: other.clone(),
            ..f.named(dir, "none")
        };
        assert_eq!(code(f.ns.lookup(request).await), NotFound);
    }
    let cases = [
        ((a, "dir"), (b, "moved"), false, vec![(a, "dir")]),
        ((a, "same"), (a, "renamed"), false, vec![]),
        ((a, "file"), (b, "file"), false, vec![]),
        ((b, "file"), (a, "renamed"), true, vec![(a, "renamed")]),
        ((b, "moved"), (a, "renamed"), true, vec![(b, "moved")]),
        (
            (a, "renamed"),
            (b, "other"),
            true,
            vec![(a, "renamed"), (b, "other")],
        ),
    ];
    for (from, to, exchange, left) in cases {
        f.rename_with(from.0, from.1, to.0, to.1, false, exchange)
            .await
            .unwrap();
        let mut told = watch.next().await.unwrap().unwrap().names;
        assert_eq!(told.len(), 2, "{from:?} to {to:?}");
        told.retain(|name| name.vacated);
        let told: Vec<_> = told.iter().map(|it| (it.parent, &it.name[..])).collect();
        let left: Vec<_> = left
            .iter()
            .map(|(dir, name)| (*dir, name.as_bytes()))
            .collect();
        assert_eq!(
            HashSet::<_>::from_iter(told),
            HashSet::<_>::from_iter(left),
            "{from:?} to {to:?}"
        );
    }
}

async fn parent_of(f: &Fixture, inode: u64) -> u64 {
    let caller = f.root();
    let request = emberfs_proto::pb::ReadDirRequest {
        caller,
        inode,
        ..Default::default()
    };
    f.ns.readdir(request).await.unwrap().parent
}

#[tokio::test]
async fn kinds_must_match_and_targets_be_empty() {
    let f = Fixture::new();
    f.file(ROOT, "f").await;
    f.mkdir(ROOT, "d").await;
    let full = f.mkdir(ROOT, "full").await.inode;
    f.file(full, "x").await;
    assert_eq!(code(f.rename(ROOT, "d", ROOT, "f").await), NotDirectory);
    assert_eq!(code(f.rename(ROOT, "f", ROOT, "d").await), IsDirectory);
    assert_eq!(code(f.rename(ROOT, "d", ROOT, "full").await), NotEmpty);
    assert_eq!(f.names(ROOT).await, ["d", "f", "full"]);
}

#[tokio::test]
async fn a_directory_never_becomes_its_own_ancestor() {
    let f = Fixture::new();
    let a = f.mkdir(ROOT, "a").await.inode;
    let b = f.mkdir(a, "b").await.inode;
    let c = f.mkdir(b, "c").await.inode;
    for into in [a, b, c] {
        assert_eq!(code(f.rename(ROOT, "a", into, "x").await), InvalidArgument);
    }
    assert_eq!(
        code(f.rename_with(ROOT, "a", b, "c", false, true).await),
        InvalidArgument
    );
    assert_eq!(
        code(f.rename_with(b, "c", ROOT, "a", false, true).await),
        InvalidArgument
    );
    f.rename(b, "c", ROOT, "c").await.unwrap();
    f.rename(ROOT, "a", c, "a").await.unwrap();
}

#[tokio::test]
async fn flags() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "d").await.inode;
    let sub = f.mkdir(dir, "s").await.inode;
    let a = f.file(ROOT, "a").await.inode;
    assert_eq!(
        code(f.rename_with(ROOT, "a", ROOT, "d", true, false).await),
        Exists
    );
    assert_eq!(
        code(f.rename_with(ROOT, "a", ROOT, "a", true, false).await),
        Exists
    );
    f.rename_with(ROOT, "a", ROOT, "b", true, false)
        .await
        .unwrap();
    assert_eq!(
        code(f.rename_with(ROOT, "b", ROOT, "none", false, true).await),
        NotFound
    );
    assert_eq!(
        code(f.rename_with(ROOT, "b", ROOT, "d", true, true).await),
        InvalidArgument
    );
    // A file and a directory of different parents change places.
    let reply = f
        .rename_with(ROOT, "b", dir, "s", false, true)
        .await
        .unwrap();
    assert_eq!(
        (reply.moved.unwrap().inode, reply.replaced.unwrap().inode),
        (a, sub)
    );
    assert_eq!(f.lookup(dir, "s").await.unwrap().inode, a);
    assert_eq!(f.lookup(ROOT, "b").await.unwrap().inode, sub);
    assert_eq!(f.attr(dir).await.unwrap().nlink, 2);
    assert_eq!(f.attr(ROOT).await.unwrap().nlink, 4);
    assert_eq!(parent_of(&f, sub).await, ROOT);
}

#[tokio::test]
async fn two_names_of_one_inode_stay() {
    let f = Fixture::new();
    let a = f.file(ROOT, "a").await.inode;
    let name = bytes("b");
    let link = emberfs_proto::pb::LinkRequest {
        caller: f.root(),
        inode: a,
        parent: ROOT,
        name,
    };
    f.ns.link(link).await.unwrap();
    f.rename(ROOT, "a", ROOT, "b").await.unwrap();
    assert_eq!(f.names(ROOT).await, ["a", "b"]);
    assert_eq!(f.attr(a).await.unwrap().nlink, 2);
    f.rename(ROOT, "a", ROOT, "a").await.unwrap();
}

#[tokio::test]
async fn sticky_and_write_bits_guard_both_ends() {
    let f = Fixture::new();
    let open = f
        .try_mkdir(f.root(), ROOT, "open", 0o777)
        .await
        .unwrap()
        .inode;
    let sticky = f
        .try_mkdir(f.root(), ROOT, "sticky", 0o1777)
        .await
        .unwrap()
        .inode;
    f.create(f.user(5), open, "mine", 0o644).await.unwrap();
    f.file(sticky, "theirs").await;
    let rename = |from, name: &str, to, new: &str| {
        f.ns.rename(emberfs_proto::pb::RenameRequest {
            caller: f.user(5),
            parent: from,
            name: bytes(name),
            new_parent: to,
            new_name: bytes(new),
            ..Default::default()
        })
    };
    assert_eq!(
        code(rename(open, "mine", ROOT, "x").await),
        PermissionDenied
    );
    assert_eq!(
        code(rename(sticky, "theirs", open, "x").await),
        NotPermitted
    );
    assert_eq!(
        code(rename(open, "mine", sticky, "theirs").await),
        NotPermitted
    );
    rename(open, "mine", sticky, "mine").await.unwrap();
    // A directory that moves changes its "..", which needs write permission on it.
    f.mkdir(open, "dir").await;
    assert_eq!(
        code(rename(open, "dir", sticky, "dir").await),
        PermissionDenied
    );
    rename(open, "dir", open, "dir2").await.unwrap();
}
