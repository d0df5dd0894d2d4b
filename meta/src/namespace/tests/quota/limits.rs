//! What a limit refuses, and what gives room back.

use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::QuotaKind::{Group, Tree, User};
use emberfs_proto::pb::{self, QuotaKind};

use super::*;

#[tokio::test]
async fn every_kind_of_inode_counts_once_and_gives_its_place_back() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    // The directory itself and five in it.
    limit(&f, Tree, dir, NONE, Some(6)).await;
    let file = f.file(dir, "file").await.inode;
    f.mkdir(dir, "sub").await;
    let symlink = pb::SymlinkRequest {
        caller: f.root(),
        parent: dir,
        name: bytes("symlink"),
        target: bytes("to"),
    };
    f.ns.symlink(symlink.clone()).await.unwrap();
    let mknod = pb::MknodRequest {
        caller: f.root(),
        parent: dir,
        name: bytes("fifo"),
        kind: pb::FileKind::Fifo.into(),
        mode: 0o644,
        ..Default::default()
    };
    f.ns.mknod(mknod.clone()).await.unwrap();
    let unnamed = pb::CreateUnnamedRequest {
        caller: f.root(),
        parent: dir,
        mode: 0o644,
        ..Default::default()
    };
    let opened = f.ns.create_unnamed(unnamed.clone()).await.unwrap();
    assert_eq!(used(&f, Tree, dir).await, (0, 6, false));

    let new = "one-more";
    let refused = f.create(f.root(), dir, new, 0o644).await.unwrap_err();
    assert_eq!(refused.code, QuotaExceeded);
    let label = format!("the quota of directory {} is 6 files", InodeId(dir));
    assert!(refused.message.contains(&label), "{refused}");
    assert_eq!(
        code(f.try_mkdir(f.root(), dir, new, 0o755).await),
        QuotaExceeded
    );
    let again = pb::SymlinkRequest {
        caller: f.root(),
        name: bytes(new),
        ..symlink
    };
    assert_eq!(code(f.ns.symlink(again).await), QuotaExceeded);
    let again = pb::MknodRequest {
        caller: f.root(),
        name: bytes(new),
        ..mknod
    };
    assert_eq!(code(f.ns.mknod(again).await), QuotaExceeded);
    let again = pb::CreateUnnamedRequest {
        caller: f.root(),
        ..unnamed
    };
    assert_eq!(code(f.ns.create_unnamed(again).await), QuotaExceeded);
    assert_eq!(
        f.summary().await.sessions,
        1,
        "a refused open leaves no session"
    );
    // A further name is no further inode.
    let link = pb::LinkRequest {
        caller: f.root(),
        inode: file,
        parent: dir,
        name: bytes("link"),
    };
    f.ns.link(link).await.unwrap();

    f.unlink(dir, "fifo").await.unwrap();
    f.unlink(dir, "symlink").await.unwrap();
    f.rmdir(dir, "sub").await.unwrap();
    assert_eq!(used(&f, Tree, dir).await.1, 3);
    // A file goes when its chunks are gone.
    f.unlink(dir, "file").await.unwrap();
    f.unlink(dir, "link").await.unwrap();
    f.close(opened.attr.unwrap().inode, opened.session).await;
    assert_eq!(used(&f, Tree, dir).await.1, 3);
    f.collect().await;
    assert_eq!(used(&f, Tree, dir).await, (0, 1, false));
    check_counters(&f);
}

#[tokio::test]
async fn users_and_groups_are_counted_wherever_their_files_are() {
    let f = Fixture::new();
    let open_dir = f
        .try_mkdir(f.root(), ROOT, "dir", 0o777)
        .await
        .unwrap()
        .inode;
    limit(&f, User, 7, Some(100), NONE).await;
    limit(&f, Group, 8, NONE, Some(2)).await;
    written_as(&f, f.user(7), open_dir, "a", 60).await.unwrap();
    let refused = written_as(&f, f.user(7), open_dir, "b", 41).await;
    assert!(
        refused
            .unwrap_err()
            .message
            .contains("user 7 is 100 bytes, 60")
    );
    written_as(&f, f.user(7), open_dir, "c", 40).await.unwrap();
    assert_eq!(used(&f, User, 7).await, (100, 3, false));
    for name in ["d", "e"] {
        written_as(&f, f.user(8), open_dir, name, 1000)
            .await
            .unwrap();
    }
    let refused = written_as(&f, f.user(8), open_dir, "f", 1).await;
    assert!(refused.unwrap_err().message.contains("group 8 is 2 files"));
    // Others go on.
    written_as(&f, f.user(9), open_dir, "g", 1 << 30)
        .await
        .unwrap();
    check_counters(&f);
}

#[tokio::test]
async fn a_change_of_owner_moves_what_is_used_if_it_fits() {
    let f = Fixture::new();
    limit(&f, User, 7, Some(100), Some(1)).await;
    limit(&f, Group, 7, Some(1000), NONE).await;
    let big = written(&f, ROOT, "big", 101).await.unwrap();
    let small = written(&f, ROOT, "small", 100).await.unwrap();
    let chown = |inode, uid, gid| {
        f.ns.setattr(pb::SetAttrRequest {
            caller: f.root(),
            inode,
            uid,
            gid,
            ..Default::default()
        })
    };
    assert_eq!(code(chown(big, Some(7), None).await), QuotaExceeded);
    assert_eq!(f.attr(big).await.unwrap().uid, 0);
    chown(small, Some(7), Some(7)).await.unwrap();
    assert_eq!(used(&f, User, 7).await, (100, 1, false));
    assert_eq!(used(&f, Group, 7).await, (100, 1, false));
    chown(big, None, Some(7)).await.unwrap();
    assert_eq!(used(&f, Group, 7).await, (201, 2, false));
    chown(small, Some(0), None).await.unwrap();
    assert_eq!(used(&f, User, 7).await, (0, 0, false));
    check_counters(&f);
}

#[tokio::test]
async fn truncation_takes_and_gives_room() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    limit(&f, Tree, dir, Some(1000), NONE).await;
    let file = written(&f, dir, "file", 600).await.unwrap();
    assert_eq!(code(f.truncate(file, 1001).await), QuotaExceeded);
    assert_eq!(f.attr(file).await.unwrap().size, 600);
    f.truncate(file, 1000).await.unwrap();
    assert_eq!(used(&f, Tree, dir).await.0, 1000);
    f.truncate(file, 10).await.unwrap();
    written(&f, dir, "other", 990).await.unwrap();
    let opened = f.open_as(f.root(), file, true, true).await.unwrap();
    assert_eq!(used(&f, Tree, dir).await.0, 990);
    f.close(file, opened.session).await;
    check_counters(&f);
}

#[tokio::test]
async fn limits_change_at_any_time_and_go_again() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    limit(&f, Tree, dir, Some(100), Some(10)).await;
    written(&f, dir, "a", 90).await.unwrap();
    // Below what is used nothing is taken away, and nothing more fits.
    limit(&f, Tree, dir, Some(50), NONE).await;
    assert_eq!(code(written(&f, dir, "b", 1).await), QuotaExceeded);
    f.unlink(dir, "b").await.unwrap();
    limit(&f, Tree, dir, Some(0), Some(2)).await;
    assert_eq!(code(written(&f, dir, "c", 1).await), QuotaExceeded);
    limit(&f, Tree, dir, Some(0), Some(0)).await;
    written(&f, dir, "c", 1 << 40).await.unwrap();
    check_counters(&f);
    clear(&f, Tree, dir).await;
    assert!(counters(&f).is_empty());
    written(&f, dir, "d", 1).await.unwrap();
    assert!(counters(&f).is_empty());
    // Another quota counts anew.
    limit(&f, Tree, dir, NONE, NONE).await;
    f.collect().await;
    assert_eq!(used(&f, Tree, dir).await, (90 + (1 << 40) + 1, 4, false));

    for _ in 0..2 {
        limit(&f, User, 0, NONE, NONE).await;
        check_counters(&f);
        assert_eq!(used(&f, User, 0).await.1, 5);
        clear(&f, User, 0).await;
    }
    clear(&f, Tree, dir).await;
    assert!(counters(&f).is_empty());
}

#[tokio::test]
async fn only_root_sets_quotas_and_directories_with_one_do_not_nest() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    let inner = f.mkdir(dir, "inner").await.inode;
    let deep = f.mkdir(inner, "deep").await.inode;
    let file = f.file(ROOT, "file").await.inode;
    let as_user = pb::SetQuotaRequest {
        caller: f.user(7),
        ..quota(&f, Tree, dir, NONE, NONE)
    };
    assert_eq!(code(f.ns.set_quota(as_user).await), NotPermitted);
    let refused = |kind, id| f.ns.set_quota(quota(&f, kind, id, Some(1), NONE));
    assert_eq!(code(refused(Tree, file).await), NotDirectory);
    assert_eq!(code(refused(Tree, 999_999).await), NotFound);
    assert_eq!(
        code(refused(QuotaKind::Unspecified, 1).await),
        InvalidArgument
    );
    assert_eq!(code(refused(User, 1 << 32).await), InvalidArgument);

    limit(&f, Tree, inner, Some(10), NONE).await;
    for (nested, why) in [(deep, "is below"), (dir, "is above"), (ROOT, "is above")] {
        let error = refused(Tree, nested).await.unwrap_err();
        assert_eq!(error.code, InvalidArgument);
        assert!(error.message.contains(why), "{error}");
    }
    clear(&f, Tree, inner).await;
    limit(&f, Tree, ROOT, Some(10), NONE).await;
    assert_eq!(used(&f, Tree, ROOT).await, (0, 5, false));
}

#[tokio::test]
async fn the_quota_of_a_removed_directory_goes_with_it() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    f.mkdir(dir, "sub").await;
    limit(&f, Tree, dir, Some(100), NONE).await;
    written(&f, dir, "a", 10).await.unwrap();
    f.ns.remove_tree(f.named(ROOT, "dir")).await.unwrap();
    f.ns.sweep_quotas().await.unwrap();
    assert_eq!(used(&f, Tree, dir).await, (10, 3, false));
    f.ns.sweep_trees().await.unwrap();
    f.collect().await;
    check_counters(&f);
    f.ns.sweep_quotas().await.unwrap();
    let request = pb::ListQuotasRequest { caller: f.root() };
    assert!(f.ns.list_quotas(request).await.unwrap().quotas.is_empty());
    assert!(counters(&f).is_empty());
}

#[tokio::test]
async fn many_at_once_fill_a_quota_exactly() {
    let f = std::sync::Arc::new(Fixture::new());
    let dir = f.mkdir(ROOT, "dir").await.inode;
    limit(&f, Tree, dir, NONE, Some(51)).await;
    let tasks = (0..4).map(|task| {
        let f = f.clone();
        tokio::spawn(async move {
            let mut created = 0;
            for file in 0..20 {
                let name = format!("{task}-{file}");
                match f.create(f.root(), dir, &name, 0o644).await {
                    Ok(_) => created += 1,
                    Err(error) => assert_eq!(error.code, QuotaExceeded, "{error}"),
                }
            }
            created
        })
    });
    let mut created = 0;
    for task in tasks.collect::<Vec<_>>() {
        created += task.await.unwrap();
    }
    assert_eq!(created, 50);
    assert_eq!(used(&f, Tree, dir).await.1, 51);
}

#[tokio::test]
async fn quotas_and_usage_survive_a_restart() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    limit(&f, Tree, dir, Some(100), NONE).await;
    limit(&f, User, 0, NONE, Some(5)).await;
    written(&f, dir, "a", 60).await.unwrap();
    let f = f.restart();
    assert_eq!(used(&f, Tree, dir).await, (60, 2, false));
    assert_eq!(code(written(&f, dir, "b", 41).await), QuotaExceeded);
    f.file(ROOT, "c").await;
    assert_eq!(
        code(f.create(f.root(), ROOT, "d", 0o644).await),
        QuotaExceeded
    );
    check_counters(&f);
}
