//! Files without a name: how they go, and how they get one.

use super::fixture::*;
use emberfs_proto::ErrorCode::*;
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Result, pb};
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_mins(1);

fn request(caller: Option<pb::Caller>, parent: u64, exclusive: bool) -> pb::CreateUnnamedRequest {
    pb::CreateUnnamedRequest {
        umask: 0,
        caller,
        parent,
        mode: 0o644,
        exclusive,
    }
}

/// Inode and session of a new file of root's.
async fn unnamed(f: &Fixture, exclusive: bool) -> (u64, u64) {
    let request = request(f.root(), ROOT, exclusive);
    let reply = f.ns.create_unnamed(request).await.unwrap();
    (reply.attr.unwrap().inode, reply.session)
}

async fn link(f: &Fixture, inode: u64, name: &str) -> Result<pb::Attr> {
    let request = pb::LinkRequest {
        caller: f.root(),
        inode,
        parent: ROOT,
        name: bytes(name),
    };
    Ok(f.ns.link(request).await?.attr.unwrap())
}

#[tokio::test]
async fn it_is_a_file_without_a_name_that_goes_with_its_last_session() {
    let f = Fixture::new();
    let (file, session) = unnamed(&f, false).await;
    let attr = f.attr(file).await.unwrap();
    assert_eq!((attr.nlink, attr.mode, attr.size), (0, 0o644, 0));
    assert!(f.names(ROOT).await.is_empty());
    f.chunks.write(file, 100);
    assert_eq!(f.sync(file, session, 100, 0).await.unwrap().size, 100);
    let reader = f.open(file, false).await.unwrap().session;
    f.close(file, session).await;
    assert_eq!(f.collect().await.removed, 0, "the reader is still there");
    f.close(file, reader).await;
    assert_eq!(f.collect().await.removed, 1);
    assert_eq!(code(f.attr(file).await), Stale);
    assert!(f.chunks.removed.lock().contains(&InodeId(file)));
    let summary = f.summary().await;
    assert_eq!((summary.inodes, summary.garbage), (1, 0));
}

#[tokio::test]
async fn a_link_makes_it_a_file_like_any_other() {
    let f = Fixture::new();
    let (file, session) = unnamed(&f, false).await;
    assert_eq!(f.summary().await.garbage, 1);
    assert_eq!(link(&f, file, "a").await.unwrap().nlink, 1);
    assert_eq!(f.summary().await.garbage, 0);
    assert_eq!(link(&f, file, "b").await.unwrap().nlink, 2);
    assert_eq!(f.sync(file, session, 70, 0).await.unwrap().size, 70);
    f.close(file, session).await;
    assert_eq!(f.collect().await.removed, 0);
    assert_eq!(f.lookup(ROOT, "a").await.unwrap().size, 70);
    f.unlink(ROOT, "a").await.unwrap();
    assert_eq!(f.collect().await.removed, 0);
    f.unlink(ROOT, "b").await.unwrap();
    assert_eq!(f.collect().await.removed, 1);
    let summary = f.summary().await;
    assert_eq!((summary.inodes, summary.garbage), (1, 0));
}

#[tokio::test]
async fn only_what_never_had_a_name_and_may_have_one_can_be_linked() {
    let f = Fixture::new();
    let (exclusive, _) = unnamed(&f, true).await;
    assert_eq!(code(link(&f, exclusive, "a").await), NotFound);

    let (file, session) = unnamed(&f, false).await;
    link(&f, file, "b").await.unwrap();
    f.unlink(ROOT, "b").await.unwrap();
    assert_eq!(code(link(&f, file, "b").await), NotFound, "it was unlinked");

    let opened = f.create(f.root(), ROOT, "c", 0o644).await.unwrap();
    f.unlink(ROOT, "c").await.unwrap();
    let unlinked = opened.attr.unwrap().inode;
    assert_eq!(code(link(&f, unlinked, "c").await), NotFound);

    let (closed, last) = unnamed(&f, false).await;
    f.close(closed, last).await;
    assert_eq!(code(link(&f, closed, "d").await), NotFound);

    // A failed link leaves the garbage as it is.
    f.close(file, session).await;
    f.close(unlinked, opened.session).await;
    assert_eq!(f.collect().await.removed, 3);
    assert_eq!(f.summary().await.garbage, 1);
    assert!(f.names(ROOT).await.is_empty());
}

#[tokio::test]
async fn a_dead_client_leaves_nothing_but_what_it_linked() {
    let f = Fixture::new();
    let (lost, _) = unnamed(&f, false).await;
    let (kept, _) = unnamed(&f, false).await;
    link(&f, kept, "kept").await.unwrap();
    f.chunks.write(lost, 10);
    f.chunks.write(kept, 20);
    f.expire_after(LONG).await;
    assert_eq!(f.collect().await.removed, 1);
    assert_eq!(code(f.attr(lost).await), Stale);
    assert_eq!(f.lookup(ROOT, "kept").await.unwrap().size, 20, "settled");
    assert_eq!(f.summary().await.write_sessions, 0);
}

#[tokio::test]
async fn a_restart_at_any_point_changes_nothing() {
    let f = Fixture::new();
    let (linked, _) = unnamed(&f, false).await;
    let (lost, _) = unnamed(&f, false).await;
    let (exclusive, _) = unnamed(&f, true).await;
    let f = f.restart();
    assert_eq!(f.collect().await.removed, 0, "all are open still");
    link(&f, linked, "a").await.unwrap();
    assert_eq!(code(link(&f, exclusive, "b").await), NotFound);
    let f = f.restart();
    assert_eq!(f.lookup(ROOT, "a").await.unwrap().inode, linked);
    assert_eq!(f.summary().await.garbage, 2);
    // Nobody comes back.
    f.expire_after(LONG).await;
    let f = f.restart();
    assert_eq!(f.collect().await.removed, 2);
    assert_eq!(code(f.attr(lost).await), Stale);
    assert_eq!(f.attr(linked).await.unwrap().nlink, 1);
    let summary = f.summary().await;
    assert_eq!((summary.inodes, summary.garbage), (2, 0));
}

#[tokio::test]
async fn a_repeated_request_is_one_file_and_one_name() {
    let f = Fixture::new();
    let create = request(f.root(), ROOT, false);
    let first = f.ns.create_unnamed(create.clone()).await.unwrap();
    assert_eq!(f.ns.create_unnamed(create.clone()).await, Ok(first.clone()));
    let summary = f.summary().await;
    let counts = (summary.inodes, summary.garbage, summary.sessions);
    assert_eq!(counts, (2, 1, 1));

    let link = pb::LinkRequest {
        caller: f.root(),
        inode: first.attr.unwrap().inode,
        parent: ROOT,
        name: bytes("a"),
    };
    let linked = f.ns.link(link.clone()).await.unwrap();
    let f = f.restart();
    assert_eq!(f.ns.link(link).await, Ok(linked));
    assert_eq!(f.ns.create_unnamed(create).await, Ok(first));
    assert_eq!(f.summary().await.garbage, 0);
}

#[tokio::test]
async fn unknown_outcomes_are_settled_without_a_second_effect() {
    let engine = Arc::new(crate::kv::MemoryEngine::new());
    let f = Fixture::over(engine.clone(), Arc::default());
    unnamed(&f, false).await;
    engine.inject_randomly(7, 3);
    for i in 0..20 {
        let (file, session) = unnamed(&f, false).await;
        if i % 2 == 0 {
            link(&f, file, &format!("f{i:02}")).await.unwrap();
        }
        f.close(file, session).await;
    }
    engine.inject_randomly(7, 0);
    assert_eq!(f.names(ROOT).await.len(), 10);
    let summary = f.summary().await;
    assert_eq!((summary.inodes, summary.garbage), (22, 11));
    assert_eq!(f.collect().await.removed, 10);
}

#[tokio::test]
async fn it_needs_what_a_create_needs_and_inherits_what_a_create_inherits() {
    let f = Fixture::new();
    let closed = f.mkdir(ROOT, "closed").await.inode;
    let denied = f.ns.create_unnamed(request(f.user(5), closed, false));
    assert_eq!(code(denied.await), PermissionDenied);
    let file = f.file(ROOT, "file").await.inode;
    let within = f.ns.create_unnamed(request(f.root(), file, false));
    assert_eq!(code(within.await), NotDirectory);
    f.rmdir(ROOT, "closed").await.unwrap();
    let gone = f.ns.create_unnamed(request(f.root(), closed, false));
    assert_eq!(code(gone.await), NotFound);

    let shared = f.try_mkdir(f.user(7), ROOT, "shared", 0o2777).await;
    assert_eq!(code(shared), PermissionDenied, "the root is root's");
    let shared = f.try_mkdir(f.root(), ROOT, "shared", 0o2777).await;
    let shared = shared.unwrap();
    let theirs = f.ns.create_unnamed(request(f.user(7), shared.inode, false));
    let theirs = theirs.await.unwrap().attr.unwrap();
    assert_eq!((theirs.uid, theirs.gid), (7, shared.gid));
    let named = f.create(f.user(7), shared.inode, "a", 0o644).await.unwrap();
    let sizes = |attr: &pb::Attr| attr.layout.map(|l| (l.chunk_size, l.stripe_width));
    assert_eq!(sizes(&theirs), sizes(&named.attr.unwrap()));
}

#[tokio::test]
async fn a_name_that_is_given_after_the_garbage_was_listed_counts() {
    let f = Fixture::new();
    let (file, session) = unnamed(&f, false).await;
    f.chunks.write(file, 10);
    let inode = InodeId(file);
    let record = f.ns.core.read(|tx| tx.live(inode)).unwrap();
    let key = crate::namespace::keys::garbage(record.unnamed_since, inode);
    let listed = vec![crate::gc::Garbage { key, inode }];
    link(&f, file, "a").await.unwrap();
    f.close(file, session).await;
    let results = crate::gc::remove_closed(&f.ns, listed).await.unwrap();
    assert!(results.is_empty(), "{results:?}");
    assert_eq!(f.chunks.end_of(file), Some(10));
    let again = f.open(file, true).await;
    assert!(again.is_ok(), "not condemned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_that_races_with_the_last_close_and_the_collection_keeps_all_or_nothing() {
    let f = Arc::new(Fixture::new());
    for i in 0..60 {
        let name = format!("f{i}");
        let (file, session) = unnamed(&f, false).await;
        f.chunks.write(file, 10);
        let (linker, collector) = (f.clone(), f.clone());
        let linked = {
            let name = name.clone();
            tokio::spawn(async move { link(&linker, file, &name).await })
        };
        let collected = tokio::spawn(async move {
            collector.close(file, session).await;
            collector.collect().await
        });
        let (linked, _) = (linked.await.unwrap(), collected.await.unwrap());
        f.collect().await;
        let removed = f.chunks.removed.lock().contains(&InodeId(file));
        match linked {
            Ok(_) => {
                assert!(!removed, "deleted under its name");
                assert_eq!(f.lookup(ROOT, &name).await.unwrap().nlink, 1);
                assert_eq!(f.chunks.end_of(file), Some(10));
            }
            Err(error) => {
                assert!(matches!(error.code, NotFound | Stale), "{error}");
                assert!(removed);
                assert_eq!(code(f.lookup(ROOT, &name).await), NotFound);
            }
        }
        assert_eq!(f.summary().await.garbage, 0);
    }
}
