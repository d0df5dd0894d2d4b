use super::fixture::*;
use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb;

#[tokio::test]
async fn a_repeated_request_has_one_effect_and_one_answer() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "d").await.inode;

    let create = pb::CreateRequest {
        caller: f.root(),
        parent: dir,
        name: bytes("a"),
        mode: 0o644,
        exclusive: true,
        write: true,
        truncate: false,
        ..Default::default()
    };
    let first = f.ns.create(create.clone()).await.unwrap();
    assert_eq!(f.ns.create(create.clone()).await, Ok(first));
    assert_eq!(f.summary().await.sessions, 1);

    let unlink = f.named(dir, "a");
    let gone = f.ns.unlink(unlink.clone()).await.unwrap();
    f.file(dir, "a").await;
    assert_eq!(
        f.ns.unlink(unlink).await,
        Ok(gone),
        "the new file of that name is not touched"
    );
    assert_eq!(f.names(dir).await, ["a"]);

    let rename = pb::RenameRequest {
        caller: f.root(),
        parent: dir,
        name: bytes("a"),
        new_parent: dir,
        new_name: bytes("b"),
        ..Default::default()
    };
    let moved = f.ns.rename(rename.clone()).await.unwrap();
    f.file(dir, "a").await;
    assert_eq!(f.ns.rename(rename).await, Ok(moved));
    assert_eq!(f.names(dir).await, ["a", "b"]);

    let truncate = pb::SetAttrRequest {
        caller: f.root(),
        inode: f.lookup(dir, "b").await.unwrap().inode,
        size: Some(7),
        ..Default::default()
    };
    let cut = f.ns.setattr(truncate.clone()).await.unwrap();
    assert_eq!(f.ns.setattr(truncate).await, Ok(cut));

    let rmdir = f.named(ROOT, "d2");
    f.mkdir(ROOT, "d2").await;
    let removed = f.ns.rmdir(rmdir.clone()).await.unwrap();
    f.mkdir(ROOT, "d2").await;
    assert_eq!(f.ns.rmdir(rmdir).await, Ok(removed));
    f.lookup(ROOT, "d2").await.unwrap();
}

#[tokio::test]
async fn answers_outlive_a_restart_and_go_when_acknowledged() {
    let f = Fixture::new();
    let request = pb::MkdirRequest {
        caller: f.root(),
        parent: ROOT,
        name: bytes("d"),
        mode: 0o755,
        ..Default::default()
    };
    let first = f.ns.mkdir(request.clone()).await.unwrap();
    let f = f.restart();
    assert_eq!(f.ns.mkdir(request.clone()).await, Ok(first));

    let mut caller = f.root();
    let number = request.caller.as_ref().unwrap().request;
    caller.as_mut().unwrap().acknowledged = number;
    f.ns.keep_alive(pb::KeepAliveRequest { caller })
        .await
        .unwrap();
    let key = crate::namespace::keys::answer(emberfs_proto::ids::ClientId(1), number);
    let mut txn = f.engine.begin();
    assert_eq!(txn.get(&key).unwrap(), None, "forgotten");
    // A late copy is refused rather than carried out again.
    assert_eq!(code(f.ns.mkdir(request).await), InvalidArgument);
}

#[tokio::test]
async fn copies_that_run_at_once_have_one_effect() {
    let f = Fixture::new();
    let request = pb::CreateRequest {
        caller: f.root(),
        parent: ROOT,
        name: bytes("a"),
        mode: 0o644,
        exclusive: true,
        write: true,
        truncate: false,
        ..Default::default()
    };
    let copies = (0..8).map(|_| f.ns.create(request.clone()));
    let replies = futures::future::join_all(copies).await;
    let first = replies[0].clone().unwrap();
    for reply in replies {
        assert_eq!(reply.unwrap(), first);
    }
    let summary = f.summary().await;
    assert_eq!((summary.inodes, summary.sessions), (2, 1));
}

/// Makes a request with a copy beside it and another one after it; answers what all three were told.
macro_rules! thrice {
    ($f:ident.$method:ident($request:expr)) => {{
        let request = $request;
        let copies = tokio::join!(
            $f.ns.$method(request.clone()),
            $f.ns.$method(request.clone())
        );
        let answer = copies.0.expect(stringify!($method));
        assert_eq!(copies.1.as_ref(), Ok(&answer), stringify!($method));
        let later = $f.ns.$method(request).await;
        assert_eq!(later.as_ref(), Ok(&answer), stringify!($method));
        answer
    }};
}

#[tokio::test]
async fn every_change_may_be_repeated_while_it_is_made_and_after() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "dir").await.inode;
    let file = f.file(dir, "file").await.inode;
    let (parent, inode, mode) = (dir, file, 0o644);
    let name = |name: &str| pb::NameRequest {
        parent,
        ..f.named(dir, name)
    };
    thrice!(f.mkdir(pb::MkdirRequest {
        caller: f.root(),
        parent,
        name: bytes("sub"),
        mode,
        ..Default::default()
    }));
    thrice!(f.symlink(pb::SymlinkRequest {
        caller: f.root(),
        parent,
        name: bytes("symlink"),
        target: bytes("x"),
    }));
    thrice!(f.mknod(pb::MknodRequest {
        caller: f.root(),
        parent,
        name: bytes("fifo"),
        kind: pb::FileKind::Fifo.into(),
        mode,
        ..Default::default()
    }));
    let linked = thrice!(f.link(pb::LinkRequest {
        caller: f.root(),
        inode,
        parent,
        name: bytes("link"),
    }));
    assert_eq!(linked.attr.unwrap().nlink, 2);
    assert_eq!(f.attr(file).await.unwrap().nlink, 2);
    thrice!(f.rename(pb::RenameRequest {
        caller: f.root(),
        parent,
        name: bytes("link"),
        new_parent: dir,
        new_name: bytes("renamed"),
        no_replace: true,
        exchange: false,
    }));
    thrice!(f.unlink(name("renamed")));
    thrice!(f.rmdir(name("sub")));
    thrice!(f.set_xattr(pb::SetXattrRequest {
        caller: f.root(),
        inode,
        name: bytes("user.a"),
        value: bytes("b"),
        create: true,
        replace: false,
    }));
    thrice!(f.remove_xattr(pb::XattrRequest {
        caller: f.root(),
        inode,
        name: bytes("user.a"),
    }));
    thrice!(f.setattr(pb::SetAttrRequest {
        caller: f.root(),
        inode,
        size: Some(7),
        mtime_now: true,
        ..Default::default()
    }));
    assert_eq!(f.names(dir).await, ["fifo", "file", "symlink"]);

    let sessions = f.summary().await.sessions;
    thrice!(f.create(pb::CreateRequest {
        caller: f.root(),
        parent,
        name: bytes("new"),
        mode,
        exclusive: true,
        write: true,
        ..Default::default()
    }));
    thrice!(f.create_unnamed(pb::CreateUnnamedRequest {
        caller: f.root(),
        parent,
        mode,
        ..Default::default()
    }));
    for truncate in [false, true] {
        thrice!(f.open_inode(pb::OpenRequest {
            execute: false,
            caller: f.root(),
            inode,
            read: true,
            write: true,
            truncate,
        }));
    }
    let summary = f.summary().await;
    assert_eq!(summary.sessions, sessions + 4, "one for each");
    assert_eq!(summary.write_sessions, 4);
    thrice!(f.remove_tree(f.named(ROOT, "dir")));
    assert!(f.names(ROOT).await.is_empty());
}

#[tokio::test]
async fn numbers_are_required_and_belong_to_one_operation() {
    let f = Fixture::new();
    let mut unlink = f.named(ROOT, "d");
    let request = pb::MkdirRequest {
        caller: unlink.caller.clone(),
        parent: ROOT,
        name: bytes("d"),
        mode: 0,
        ..Default::default()
    };
    f.ns.mkdir(request).await.unwrap();
    assert_eq!(code(f.ns.rmdir(unlink.clone()).await), InvalidArgument);
    unlink.caller.as_mut().unwrap().request = 0;
    assert_eq!(code(f.ns.rmdir(unlink.clone()).await), InvalidArgument);
    unlink.caller.as_mut().unwrap().client = bytes("short");
    assert_eq!(code(f.ns.rmdir(unlink.clone()).await), InvalidArgument);
    unlink.caller = None;
    assert_eq!(code(f.ns.rmdir(unlink).await), InvalidArgument);
}

#[tokio::test]
async fn an_unknown_commit_outcome_is_settled_without_a_second_effect() {
    let engine = std::sync::Arc::new(crate::kv::MemoryEngine::new());
    let f = Fixture::over(engine.clone(), std::sync::Arc::default());
    f.mkdir(ROOT, "warm-up").await;
    // Every third commit or so fails in one of the ways of the contract.
    engine.inject_randomly(42, 3);
    for i in 0..40 {
        f.mkdir(ROOT, &format!("d{i:02}")).await;
    }
    engine.inject_randomly(42, 0);
    assert_eq!(f.names(ROOT).await.len(), 41);
    assert_eq!(
        f.attr(ROOT).await.unwrap().nlink,
        43,
        "no link counted twice"
    );
    assert_eq!(f.summary().await.inodes, 42);
}
