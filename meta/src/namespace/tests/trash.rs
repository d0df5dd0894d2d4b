//! What goes to the trash, for how long, and what it looks like from there.

use bytes::Bytes;
use emberfs_proto::ErrorCode::{InvalidArgument, NotDirectory, NotFound, NotPermitted};
use emberfs_proto::pb::TrashPlace;
use emberfs_proto::{Result, pb};

use super::fixture::*;
use crate::namespace::trash;

pub(super) const DAY: u64 = 86_400;

pub(super) async fn keep(f: &Fixture, inode: u64, keep: Option<u64>) -> pb::TrashPolicy {
    let caller = f.root();
    let request = pb::SetTrashRequest {
        caller,
        inode,
        keep,
    };
    f.ns.set_trash(request).await.unwrap()
}

/// A directory that keeps what is removed from it for a day.
pub(super) async fn kept(f: &Fixture) -> u64 {
    let dir = f.mkdir(ROOT, "kept").await.inode;
    keep(f, dir, Some(DAY)).await;
    dir
}

/// Everything in the trash, in pages of two.
pub(super) async fn listed(f: &Fixture, request: pb::ListTrashRequest) -> Vec<pb::TrashEntry> {
    let (mut entries, mut after) = (Vec::new(), Bytes::new());
    loop {
        let request = pb::ListTrashRequest {
            caller: f.root(),
            after,
            limit: 2,
            ..request.clone()
        };
        let page = f.ns.list_trash(request).await.unwrap();
        entries.extend(page.entries);
        if page.end {
            return entries;
        }
        after = page.next;
    }
}

pub(super) async fn all(f: &Fixture) -> Vec<pb::TrashEntry> {
    let nested = true;
    let request = pb::ListTrashRequest {
        nested,
        ..Default::default()
    };
    listed(f, request).await
}

pub(super) fn paths(entries: &[pb::TrashEntry]) -> Vec<&str> {
    let paths = entries.iter();
    paths
        .map(|e| std::str::from_utf8(&e.path).unwrap())
        .collect()
}

/// Lets everything expire, and goes on until nothing is left to do in the background.
pub(super) async fn expire_all(f: &Fixture) {
    while f
        .ns
        .core
        .write(|tx| trash::expire(tx, 0, u64::MAX))
        .unwrap()
    {}
    f.ns.sweep_trees().await.unwrap();
    f.collect().await;
}

async fn remove_tree(f: &Fixture, parent: u64, name: &str) {
    f.ns.remove_tree(f.named(parent, name)).await.unwrap();
}

#[tokio::test]
async fn a_removed_file_keeps_its_inode_and_then_goes_for_good() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let file = f.file(dir, "a").await.inode;
    f.chunks.write(file, 5);
    let gone = f.unlink(dir, "a").await.unwrap();
    assert_eq!(gone.nlink, 1, "the trash holds the link");
    assert_eq!(code(f.lookup(dir, "a").await), NotFound);
    assert!(f.names(dir).await.is_empty());
    f.collect().await;
    assert_eq!(f.chunks.end_of(file), Some(5));

    let entries = all(&f).await;
    assert_eq!(paths(&entries), ["/kept/a"]);
    let spot = entries[0].spot.as_ref().unwrap();
    assert_eq!((spot.parent, &spot.name[..]), (dir, &b"a"[..]));
    assert_eq!(entries[0].expires - spot.removed, DAY * 1_000_000_000);
    assert_eq!(entries[0].inode, file);

    let before = spot.removed + DAY * 1_000_000_000 - 1;
    f.ns.core.write(|tx| trash::expire(tx, 0, before)).unwrap();
    assert_eq!(all(&f).await.len(), 1, "not yet");
    expire_all(&f).await;
    assert!(all(&f).await.is_empty());
    assert_eq!(f.chunks.end_of(file), None);
    assert_eq!(f.summary().await.inodes, 2);
}

#[tokio::test]
async fn without_a_policy_nothing_is_kept() {
    let f = Fixture::new();
    kept(&f).await;
    f.file(ROOT, "a").await;
    assert_eq!(f.unlink(ROOT, "a").await.unwrap().nlink, 0);
    assert!(all(&f).await.is_empty());
}

#[tokio::test]
async fn the_nearest_directory_that_says_anything_decides() {
    let f = Fixture::new();
    let top = kept(&f).await;
    let middle = f.mkdir(top, "middle").await.inode;
    let low = f.mkdir(middle, "low").await.inode;
    let removed = async |name: &str| {
        f.file(low, name).await;
        f.unlink(low, name).await.unwrap().nlink == 1
    };
    assert!(removed("a").await);
    keep(&f, middle, Some(0)).await;
    assert!(!removed("b").await, "off from here down");
    let policy = keep(&f, low, Some(7)).await;
    assert_eq!((policy.own, policy.keep), (Some(7), 7));
    assert_eq!(&policy.from[..], b"/kept/middle/low");
    assert!(removed("c").await);
    keep(&f, low, None).await;
    let policy = keep(&f, middle, None).await;
    assert_eq!((policy.own, policy.keep), (None, DAY));
    assert_eq!(&policy.from[..], b"/kept");
    assert!(removed("d").await);
    // It goes with the directory.
    f.rename(middle, "low", ROOT, "low").await.unwrap();
    assert!(!removed("e").await);
    let request = pb::GetAttrRequest {
        caller: f.user(7),
        inode: low,
    };
    let policy = f.ns.get_trash(request).await.unwrap();
    assert_eq!(policy, pb::TrashPolicy::default());
    assert_eq!(paths(&all(&f).await), ["/low/a", "/low/c", "/low/d"]);
}

#[tokio::test]
async fn what_is_replaced_is_kept_and_what_changes_places_is_not_removed() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    f.file(dir, "new").await;
    let old = f.file(dir, "old").await.inode;
    let reply = f.rename(dir, "new", dir, "old").await.unwrap();
    assert_eq!(reply.replaced.unwrap().nlink, 1);
    let entries = all(&f).await;
    assert_eq!(paths(&entries), ["/kept/old"]);
    assert_eq!(entries[0].inode, old);

    f.file(dir, "other").await;
    f.rename_with(dir, "old", dir, "other", false, true)
        .await
        .unwrap();
    assert_eq!(all(&f).await.len(), 1);

    // An empty directory that another one replaces.
    f.mkdir(dir, "x").await;
    f.mkdir(dir, "y").await;
    f.rename(dir, "x", dir, "y").await.unwrap();
    assert_eq!(paths(&all(&f).await), ["/kept/old", "/kept/y"]);
    assert_eq!(f.attr(dir).await.unwrap().nlink, 3);
}

#[tokio::test]
async fn a_tree_is_one_entry_and_goes_as_one() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let top = f.mkdir(dir, "top").await.inode;
    let sub = f.mkdir(top, "sub").await.inode;
    let file = f.file(sub, "file").await.inode;
    f.chunks.write(file, 3);
    remove_tree(&f, dir, "top").await;
    assert_eq!(code(f.lookup(dir, "top").await), NotFound);
    assert_eq!(f.attr(dir).await.unwrap().nlink, 2);
    let entries = all(&f).await;
    assert_eq!(paths(&entries), ["/kept/top"]);
    assert!(entries[0].tree);
    f.ns.sweep_trees().await.unwrap();
    assert_eq!(f.summary().await.inodes, 5);
    expire_all(&f).await;
    assert_eq!(f.summary().await.inodes, 2);
    assert_eq!(f.chunks.end_of(file), None);
}

#[tokio::test]
async fn a_directory_with_a_policy_is_kept_itself() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    f.file(dir, "a").await;
    remove_tree(&f, ROOT, "kept").await;
    assert_eq!(paths(&all(&f).await), ["/kept"]);
    // And one that wants none is not, whatever is said above it.
    keep(&f, ROOT, Some(DAY)).await;
    let scratch = f.mkdir(ROOT, "scratch").await.inode;
    keep(&f, scratch, Some(0)).await;
    f.rmdir(ROOT, "scratch").await.unwrap();
    assert_eq!(paths(&all(&f).await), ["/kept"]);
}

#[tokio::test]
async fn nothing_is_found_or_made_in_a_directory_in_the_trash() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let gone = f.mkdir(dir, "gone").await.inode;
    let other = f.mkdir(dir, "other").await.inode;
    f.rmdir(dir, "gone").await.unwrap();
    assert_eq!(code(f.create(f.root(), gone, "new", 0o644).await), NotFound);
    assert_eq!(
        code(f.try_mkdir(f.root(), gone, "new", 0o755).await),
        NotFound
    );
    assert_eq!(code(f.rename(dir, "other", gone, "in").await), NotFound);
    assert_eq!(code(f.lookup(gone, "x").await), NotFound);
    // Nor is a directory moved below one that is in the trash.
    let top = f.mkdir(dir, "top").await.inode;
    let sub = f.mkdir(top, "sub").await.inode;
    remove_tree(&f, dir, "top").await;
    assert_eq!(code(f.rename(dir, "other", sub, "in").await), NotFound);
    assert_eq!(f.lookup(dir, "other").await.unwrap().inode, other);
}

#[tokio::test]
async fn open_files_and_other_links_outlive_the_expiry() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let opened = f.create(f.root(), dir, "open", 0o644).await.unwrap();
    let open = opened.attr.unwrap().inode;
    let twice = f.file(dir, "twice").await.inode;
    let link = pb::LinkRequest {
        caller: f.root(),
        inode: twice,
        parent: ROOT,
        name: bytes("also"),
    };
    f.ns.link(link).await.unwrap();
    f.chunks.write(open, 1);
    f.unlink(dir, "open").await.unwrap();
    assert_eq!(f.unlink(dir, "twice").await.unwrap().nlink, 2);
    expire_all(&f).await;
    assert_eq!(f.attr(open).await.unwrap().nlink, 0);
    assert_eq!(f.chunks.end_of(open), Some(1));
    assert_eq!(f.lookup(ROOT, "also").await.unwrap().nlink, 1);
    f.close(open, opened.session).await;
    f.collect().await;
    assert_eq!(f.chunks.end_of(open), None);
}

#[tokio::test]
async fn what_was_removed_from_a_directory_outlives_it_or_goes_with_it() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    for name in ["expires", "emptied"] {
        let sub = f.mkdir(dir, name).await.inode;
        f.file(sub, "file").await;
        f.unlink(sub, "file").await.unwrap();
        // Kept for a shorter time than what was removed before.
        keep(&f, sub, Some(1)).await;
        f.rmdir(dir, name).await.unwrap();
    }
    let top = pb::ListTrashRequest {
        under: dir,
        ..Default::default()
    };
    assert_eq!(
        paths(&listed(&f, top.clone()).await),
        ["/kept/emptied", "/kept/expires"]
    );
    // Emptied by hand, it takes along what was removed from it.
    let spot = listed(&f, top.clone()).await[0].spot.clone();
    let request = pb::PurgeTrashRequest {
        caller: f.root(),
        spots: spot.into_iter().collect(),
    };
    let purged = f.ns.purge_trash(request.clone()).await.unwrap();
    assert_eq!(purged.purged, 1);
    assert_eq!(f.ns.purge_trash(request).await, Ok(purged), "exactly once");
    f.ns.sweep_trees().await.unwrap();
    assert_eq!(
        paths(&all(&f).await),
        ["/kept/expires", "/kept/expires/file"]
    );
    // Expired, it leaves it: found by the words of its path, also with the directory gone.
    let soon = listed(&f, top.clone()).await[0].expires;
    f.ns.core.write(|tx| trash::expire(tx, 0, soon)).unwrap();
    f.ns.sweep_trees().await.unwrap();
    let left = listed(&f, top).await;
    assert_eq!(paths(&left), ["/kept/expires/file"]);
    assert_eq!(left[0].place(), TrashPlace::Gone);
    expire_all(&f).await;
    assert_eq!(f.summary().await.inodes, 2);
}

#[tokio::test]
async fn lists_show_what_is_below_a_directory() {
    let f = Fixture::new();
    keep(&f, ROOT, Some(DAY)).await;
    let a = f.mkdir(ROOT, "a").await.inode;
    let b = f.mkdir(ROOT, "ab").await.inode;
    for (dir, name) in [(a, "x"), (a, "y"), (b, "z"), (ROOT, "r")] {
        f.file(dir, name).await;
        f.unlink(dir, name).await.unwrap();
    }
    let below = async |under| {
        let request = pb::ListTrashRequest {
            under,
            ..Default::default()
        };
        let entries = listed(&f, request).await;
        paths(&entries).join(" ")
    };
    assert_eq!(below(a).await, "/a/x /a/y");
    assert_eq!(below(ROOT).await, "/r /a/x /a/y /ab/z");
    let one = pb::ListTrashRequest {
        parent: a,
        name: bytes("y"),
        ..Default::default()
    };
    assert_eq!(paths(&listed(&f, one).await), ["/a/y"]);
    // A directory that moves takes them along.
    f.rename(ROOT, "a", b, "a").await.unwrap();
    assert_eq!(below(b).await, "/ab/a/x /ab/a/y /ab/z");
}

#[tokio::test]
async fn only_root_and_only_directories() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let file = f.file(dir, "a").await.inode;
    let set = async |caller, inode, keep| -> Result<pb::TrashPolicy> {
        let request = pb::SetTrashRequest {
            caller,
            inode,
            keep,
        };
        f.ns.set_trash(request).await
    };
    assert_eq!(code(set(f.user(7), dir, None).await), NotPermitted);
    assert_eq!(code(set(f.root(), file, Some(1)).await), NotDirectory);
    assert_eq!(
        code(set(f.root(), dir, Some(u64::MAX)).await),
        InvalidArgument
    );
    let caller = f.user(7);
    let list = pb::ListTrashRequest {
        caller,
        ..Default::default()
    };
    assert_eq!(code(f.ns.list_trash(list).await), NotPermitted);
    let caller = f.user(7);
    let spots = Vec::new();
    let purge = pb::PurgeTrashRequest { caller, spots };
    assert_eq!(code(f.ns.purge_trash(purge).await), NotPermitted);
}

#[tokio::test]
async fn a_restarted_server_remembers_policies_until_their_directories_are_gone() {
    let f = Fixture::new();
    let dir = kept(&f).await;
    let f = f.restart();
    f.file(dir, "a").await;
    f.unlink(dir, "a").await.unwrap();
    assert_eq!(all(&f).await.len(), 1);
    keep(&f, dir, Some(0)).await;
    f.rmdir(ROOT, "kept").await.unwrap();
    let policies = |f: &Fixture| {
        let number = |tx: &mut crate::namespace::tx::Tx<'_>| {
            tx.number(crate::namespace::keys::TRASH_POLICIES)
        };
        f.ns.core.read(number).unwrap()
    };
    assert_eq!(policies(&f), 0);
    let f = f.restart();
    expire_all(&f).await;
    assert_eq!(f.summary().await.inodes, 1);
}
