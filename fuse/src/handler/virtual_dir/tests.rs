use emberfs_client::{NewMode, SetAttr};

use super::*;
use crate::testing::Memory;

const MODE: NewMode = NewMode {
    mode: 0o755,
    umask: 0,
};

fn handler() -> (Handler<Memory>, Memory, Creds) {
    let memory = Memory::new();
    let handler = Handler::new(memory.clone(), InodeId::ROOT, false);
    (handler, memory, Creds::default())
}

fn refused<T: std::fmt::Debug>(outcome: Result<T>) {
    assert_eq!(outcome.unwrap_err().code, ErrorCode::NotPermitted);
}

#[tokio::test]
async fn it_is_found_by_name_and_not_listed() {
    let (handler, _, me) = handler();
    let hidden = handler.lookup(&me, ROOT_NODE, b".emberfs").await.unwrap();
    assert_eq!(hidden.inode, HIDDEN);
    let remover = handler.lookup(&me, HIDDEN, b"rm-r").await.unwrap();
    assert_eq!((remover.inode, remover.mode), (REMOVER, 0o700));
    assert_eq!(handler.getattr(HIDDEN).await.unwrap().0, hidden);
    let lists = async |node| {
        let handle = handler.opendir(node);
        let items = handler.readdir(handle, 0, true).await.unwrap();
        let items = items.into_iter().map(|item| (item.node, item.name));
        items.collect::<Vec<_>>()
    };
    let dots = |own, parent| {
        let name = |name: &'static str| Bytes::from_static(name.as_bytes());
        vec![(own, name(".")), (parent, name(".."))]
    };
    assert_eq!(lists(ROOT_NODE).await, dots(1, 1));
    let mut expected = dots(HIDDEN, ROOT_NODE);
    expected.push((REMOVER, Bytes::from_static(b"rm-r")));
    assert_eq!(lists(HIDDEN).await, expected);
    assert_eq!(lists(REMOVER).await, dots(REMOVER, HIDDEN));
    for (parent, name) in [(HIDDEN, &b"x"[..]), (REMOVER, b"rm-r"), (REMOVER, b"x")] {
        let missing = handler.lookup(&me, parent, name).await.unwrap_err();
        assert_eq!(missing.code, ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn a_real_one_comes_first_and_only_in_the_root_is_there_another() {
    let (handler, _, me) = handler();
    let dir = handler.mkdir(&me, ROOT_NODE, b"dir", MODE).await.unwrap();
    let missing = handler.lookup(&me, dir.inode, b".emberfs").await;
    assert_eq!(missing.unwrap_err().code, ErrorCode::NotFound);
    let real = handler.mkdir(&me, ROOT_NODE, b".emberfs", MODE).await;
    let real = real.unwrap().inode;
    let found = handler.lookup(&me, ROOT_NODE, b".emberfs").await.unwrap();
    assert_eq!(found.inode, real);
    handler.rmdir(&me, ROOT_NODE, b".emberfs").await.unwrap();
}

#[tokio::test]
async fn a_rename_into_it_removes_and_nothing_else_is_allowed() {
    let (handler, memory, me) = handler();
    let plain = RenameFlags::default();
    let dir = handler.mkdir(&me, ROOT_NODE, b"dir", MODE).await.unwrap();
    memory.create_elsewhere(dir.inode, "in", b"x");
    memory.create_elsewhere(1, "file", b"x");
    for name in [&b"dir"[..], b"file"] {
        let vanished = handler.rename(&me, (ROOT_NODE, name), (REMOVER, b"new"), plain);
        let expected = Vanished {
            parent: REMOVER,
            name: Bytes::from_static(b"new"),
        };
        assert_eq!(vanished.await, Ok(Some(expected)));
        let gone = handler.lookup(&me, ROOT_NODE, name).await.unwrap_err();
        assert_eq!(gone.code, ErrorCode::NotFound);
    }

    let (handler, me) = (&handler, &me);
    let file = memory.create_elsewhere(1, "file", b"x");
    let rename = async |from: (u64, &[u8]), to: (u64, &[u8])| {
        let outcome = handler.rename(me, from, to, RenameFlags::default()).await;
        refused(outcome);
    };
    rename((ROOT_NODE, b"file"), (HIDDEN, b"x")).await;
    rename((REMOVER, b"x"), (ROOT_NODE, b"y")).await;
    rename((HIDDEN, b"rm-r"), (ROOT_NODE, b"y")).await;
    rename((ROOT_NODE, b".emberfs"), (ROOT_NODE, b"y")).await;
    rename((ROOT_NODE, b"file"), (ROOT_NODE, b".emberfs")).await;
    let exchange = RenameFlags {
        exchange: true,
        ..plain
    };
    refused(
        handler
            .rename(me, (1, b"file"), (REMOVER, b"x"), exchange)
            .await,
    );
    for node in [HIDDEN, REMOVER] {
        refused(handler.mkdir(me, node, b"x", MODE).await);
        refused(handler.mknod(me, node, b"x", MODE, 0).await);
        refused(handler.symlink(me, node, b"x", b"y").await);
        refused(handler.link(me, file, node, b"x").await);
        refused(handler.unlink(me, node, b"x").await);
        refused(handler.rmdir(me, node, b"rm-r").await);
        refused(handler.create(me, node, b"x", MODE, libc::O_CREAT).await);
        refused(handler.create_unnamed(me, node, MODE, libc::O_RDWR).await);
        refused(handler.setattr(me, node, SetAttr::default(), None).await);
        refused(handler.set_xattr(me, node, b"user.x", b"", 0).await);
        refused(handler.remove_xattr(me, node, b"user.x").await);
        let none = handler.get_xattr(me, node, b"user.x").await.unwrap_err();
        assert_eq!(none.code, ErrorCode::NoAttribute);
        assert!(handler.list_xattr(me, node).await.unwrap().is_empty());
    }
    refused(handler.rmdir(me, ROOT_NODE, b".emberfs").await);
    assert_eq!(memory.contents(file), b"x");
}

#[tokio::test]
async fn only_who_may_remove_trees_may_do_it_this_way() {
    let (handler, memory, _) = handler();
    memory.create_elsewhere(1, "file", b"x");
    let user = Creds {
        uid: 7,
        ..Creds::default()
    };
    let (from, to) = ((ROOT_NODE, &b"file"[..]), (REMOVER, &b"file"[..]));
    refused(
        handler
            .rename(&user, from, to, RenameFlags::default())
            .await,
    );
}
