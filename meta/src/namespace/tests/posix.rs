//! What each operation answers, errors included.

use super::fixture::*;
use emberfs_proto::ErrorCode::{self, *};
use emberfs_proto::pb::{self, FileKind};

fn later(a: &pb::Attr, b: &pb::Attr) -> bool {
    let key = |t: Option<pb::Time>| t.map(|t| (t.seconds, t.nanos));
    key(b.mtime) > key(a.mtime) && key(b.ctime) > key(a.ctime)
}

#[tokio::test]
async fn an_empty_store_has_a_root() {
    let f = Fixture::new();
    let root = f.attr(ROOT).await.unwrap();
    assert_eq!(root.kind(), FileKind::Directory);
    assert_eq!(
        (root.mode, root.uid, root.gid, root.nlink),
        (0o755, 0, 0, 2)
    );
    assert_eq!(root.layout.unwrap().stripe_width, 4);
    assert_eq!(f.summary().await.inodes, 1);
    assert!(f.names(ROOT).await.is_empty());
}

#[tokio::test]
async fn a_created_file_is_found_with_its_layout() {
    let f = Fixture::new();
    let before = f.attr(ROOT).await.unwrap();
    let opened = f.create(f.root(), ROOT, "a", 0o640).await.unwrap();
    assert!(opened.created);
    assert_ne!(opened.session, 0);
    let attr = opened.attr.unwrap();
    assert_eq!(attr.kind(), FileKind::File);
    assert_eq!(
        (attr.mode, attr.nlink, attr.size, attr.truncate_epoch),
        (0o640, 1, 0, 0)
    );
    let layout = attr.layout.unwrap();
    assert_eq!(
        (layout.table, layout.table_version, layout.stripe_width),
        (1, 3, 4)
    );
    assert_eq!(f.lookup(ROOT, "a").await, Ok(attr));
    assert!(
        later(&before, &f.attr(ROOT).await.unwrap()),
        "the directory's times move"
    );
    assert_eq!(
        f.attr(ROOT).await.unwrap().nlink,
        2,
        "files are no subdirectories"
    );
}

#[tokio::test]
async fn create_on_an_existing_name() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await;
    f.mkdir(ROOT, "d").await;
    let create = |name: &str, exclusive, truncate| {
        f.ns.create(pb::CreateRequest {
            caller: f.root(),
            parent: ROOT,
            name: bytes(name),
            mode: 0,
            exclusive,
            truncate,
            write: true,
            ..Default::default()
        })
    };
    assert_eq!(code(create("a", true, false).await), Exists);
    assert_eq!(code(create("d", false, false).await), IsDirectory);
    let opened = create("a", false, false).await.unwrap();
    assert!(!opened.created);
    assert_eq!(opened.attr.unwrap().inode, file.inode);
    assert_eq!(opened.attr.unwrap().mode, 0o644);
    f.sync(file.inode, opened.session, 100, 0).await.unwrap();
    let cut = create("a", false, true).await.unwrap().attr.unwrap();
    assert_eq!((cut.size, cut.truncate_epoch), (0, 1));
}

#[tokio::test]
async fn without_chains_directories_can_be_made_but_no_files() {
    let f = Fixture::new();
    f.map
        .send_modify(|map| std::sync::Arc::make_mut(map).tables.clear());
    let dir = f.mkdir(ROOT, "d").await;
    let error = f.create(f.root(), dir.inode, "a", 0o644).await.unwrap_err();
    assert_eq!(error.code, NoChains);
    assert!(error.retry_after_ms > 0);
}

#[tokio::test]
async fn names_are_checked_everywhere() {
    let f = Fixture::new();
    f.file(ROOT, "a").await;
    let long = "x".repeat(256);
    for (name, expected) in [
        ("", InvalidArgument),
        (".", InvalidArgument),
        ("..", InvalidArgument),
        ("a/b", InvalidArgument),
        ("a\0", InvalidArgument),
        (&long, NameTooLong),
    ] {
        let caller = f.root();
        assert_eq!(code(f.lookup(ROOT, name).await), expected);
        assert_eq!(code(f.create(caller, ROOT, name, 0).await), expected);
        assert_eq!(code(f.try_mkdir(f.root(), ROOT, name, 0).await), expected);
        assert_eq!(code(f.unlink(ROOT, name).await), expected);
        assert_eq!(code(f.rmdir(ROOT, name).await), expected);
        assert_eq!(code(f.rename(ROOT, "a", ROOT, name).await), expected);
        assert_eq!(code(f.rename(ROOT, name, ROOT, "b").await), expected);
        assert_eq!(code(link(&f, 5, ROOT, name).await), expected);
        assert_eq!(code(symlink(&f, ROOT, name, "t").await), expected);
    }
    f.file(ROOT, &"x".repeat(255)).await;
}

async fn link(
    f: &Fixture,
    inode: u64,
    parent: u64,
    name: &str,
) -> emberfs_proto::Result<pb::AttrReply> {
    let name = bytes(name);
    f.ns.link(pb::LinkRequest {
        caller: f.root(),
        inode,
        parent,
        name,
    })
    .await
}

async fn symlink(
    f: &Fixture,
    parent: u64,
    name: &str,
    target: &str,
) -> emberfs_proto::Result<pb::AttrReply> {
    let (name, target) = (bytes(name), bytes(target));
    f.ns.symlink(pb::SymlinkRequest {
        caller: f.root(),
        parent,
        name,
        target,
    })
    .await
}

#[tokio::test]
async fn parents_must_be_directories_that_exist() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    for (parent, expected) in [(file, NotDirectory), (999_999, NotFound)] {
        assert_eq!(code(f.lookup(parent, "x").await), expected);
        assert_eq!(code(f.create(f.root(), parent, "x", 0).await), expected);
        assert_eq!(code(f.try_mkdir(f.root(), parent, "x", 0).await), expected);
        assert_eq!(code(f.unlink(parent, "x").await), expected);
        assert_eq!(code(f.rmdir(parent, "x").await), expected);
        assert_eq!(code(f.rename(parent, "x", ROOT, "y").await), expected);
        assert_eq!(code(f.rename(ROOT, "a", parent, "y").await), expected);
        let request = pb::ReadDirRequest {
            caller: f.root(),
            inode: parent,
            ..Default::default()
        };
        assert_eq!(code(f.ns.readdir(request).await), expected);
    }
    assert_eq!(code(f.attr(999_999).await), Stale);
    assert_eq!(code(f.lookup(ROOT, "nothing").await), NotFound);
    assert_eq!(code(f.unlink(ROOT, "nothing").await), NotFound);
    assert_eq!(code(f.rmdir(ROOT, "nothing").await), NotFound);
    assert_eq!(code(f.rename(ROOT, "nothing", ROOT, "b").await), NotFound);
}

#[tokio::test]
async fn directories_count_their_subdirectories() {
    let f = Fixture::new();
    let a = f.mkdir(ROOT, "a").await;
    assert_eq!(a.nlink, 2);
    let b = f.mkdir(a.inode, "b").await;
    f.file(a.inode, "f").await;
    assert_eq!(f.attr(ROOT).await.unwrap().nlink, 3);
    assert_eq!(f.attr(a.inode).await.unwrap().nlink, 3);
    assert_eq!(code(f.rmdir(ROOT, "a").await), NotEmpty);
    assert_eq!(code(f.rmdir(a.inode, "f").await), NotDirectory);
    assert_eq!(code(f.unlink(a.inode, "b").await), IsDirectory);
    assert_eq!(f.rmdir(a.inode, "b").await.unwrap().nlink, 0);
    assert_eq!(f.attr(a.inode).await.unwrap().nlink, 2);
    assert_eq!(code(f.attr(b.inode).await), Stale);
    f.unlink(a.inode, "f").await.unwrap();
    f.rmdir(ROOT, "a").await.unwrap();
    assert_eq!(f.attr(ROOT).await.unwrap().nlink, 2);
    assert_eq!(code(f.create(f.root(), a.inode, "x", 0).await), NotFound);
}

#[tokio::test]
async fn hard_links_share_an_inode() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await;
    let dir = f.mkdir(ROOT, "d").await.inode;
    let linked = link(&f, file.inode, dir, "b").await.unwrap().attr.unwrap();
    assert_eq!((linked.inode, linked.nlink), (file.inode, 2));
    assert_eq!(code(link(&f, file.inode, dir, "b").await), Exists);
    assert_eq!(code(link(&f, dir, ROOT, "e").await), NotPermitted);
    assert_eq!(code(link(&f, 999_999, ROOT, "e").await), Stale);
    assert_eq!(f.unlink(ROOT, "a").await.unwrap().nlink, 1);
    assert_eq!(f.lookup(dir, "b").await.unwrap().nlink, 1);
    assert_eq!(f.unlink(dir, "b").await.unwrap().nlink, 0);
    assert_eq!(code(link(&f, file.inode, ROOT, "e").await), NotFound);
}

#[tokio::test]
async fn symbolic_links_keep_their_target() {
    let f = Fixture::new();
    let attr = symlink(&f, ROOT, "l", "../x y")
        .await
        .unwrap()
        .attr
        .unwrap();
    assert_eq!(
        (attr.kind(), attr.mode, attr.size),
        (FileKind::Symlink, 0o777, 6)
    );
    let read = pb::GetAttrRequest {
        caller: f.root(),
        inode: attr.inode,
    };
    assert_eq!(f.ns.readlink(read).await.unwrap().target, bytes("../x y"));
    let root = pb::GetAttrRequest {
        caller: f.root(),
        inode: ROOT,
    };
    assert_eq!(code(f.ns.readlink(root).await), InvalidArgument);
    assert_eq!(
        code(symlink(&f, ROOT, "m", &"x".repeat(4096)).await),
        NameTooLong
    );
    symlink(&f, ROOT, "m", &"x".repeat(4095)).await.unwrap();
    assert_eq!(code(symlink(&f, ROOT, "n", "").await), NotFound);
    assert_eq!(code(symlink(&f, ROOT, "l", "x").await), Exists);
    assert_eq!(code(f.open(attr.inode, false).await), Loop);
    f.unlink(ROOT, "l").await.unwrap();
    assert_eq!(code(f.attr(attr.inode).await), Stale);
}

#[tokio::test]
async fn pages_of_a_directory_are_complete_and_in_order() {
    let f = Fixture::new();
    let mut expected: Vec<String> = (0..10).map(|i| format!("n{i}")).collect();
    for name in &expected {
        f.file(ROOT, name).await;
    }
    f.mkdir(ROOT, "m").await;
    expected.insert(0, "m".to_owned());
    assert_eq!(f.names(ROOT).await, expected);
    let request = pb::ReadDirRequest {
        caller: f.root(),
        inode: ROOT,
        ..Default::default()
    };
    let page = f.ns.readdir(request).await.unwrap();
    assert!(page.end);
    assert_eq!(page.parent, ROOT);
    for entry in &page.entries {
        let name = std::str::from_utf8(&entry.name).unwrap();
        assert_eq!(entry.attr, f.lookup(ROOT, name).await.ok());
    }
}

#[tokio::test]
async fn statfs_divides_by_the_copies_and_fsck_pages_through_files() {
    let f = Fixture::new();
    let request = pb::StatFsRequest {
        caller: f.root(),
        inode: ROOT,
    };
    let space = f.ns.statfs(request).await.unwrap();
    assert_eq!((space.capacity, space.free), (500, 300));
    let mut files = Vec::new();
    for i in 0..5 {
        f.mkdir(ROOT, &format!("d{i}")).await;
        files.push(f.file(ROOT, &format!("f{i}")).await.inode);
    }
    let mut found = Vec::new();
    let mut after = 0;
    loop {
        let request = pb::ListInodesRequest { after, limit: 2 };
        let page = f.ns.list_inodes(request).await.unwrap();
        found.extend(page.attrs.iter().map(|a| a.inode));
        if page.end {
            break;
        }
        after = *found.last().unwrap();
    }
    assert_eq!(found, files);
    assert_eq!(f.summary().await.inodes, 11);
}

#[tokio::test]
async fn attach_refuses_other_clusters_and_versions() {
    let f = Fixture::new();
    let attach = |cluster: bytes::Bytes, protocol_version| {
        let host = "host:1".to_owned();
        f.ns.attach(pb::AttachRequest {
            caller: f.root(),
            cluster,
            protocol_version,
            host,
        })
    };
    let reply = attach(CLUSTER.to_bytes(), 1).await.unwrap();
    assert_eq!(reply.lease_ms, 30_000);
    assert_eq!(reply.root.unwrap().inode, ROOT);
    attach(bytes::Bytes::new(), 1).await.unwrap();
    let other = emberfs_proto::ids::ClusterId(1).to_bytes();
    let expect: Vec<(_, ErrorCode)> = vec![
        (attach(other, 1).await, WrongCluster),
        (attach(CLUSTER.to_bytes(), 99).await, IncompatibleVersion),
    ];
    for (result, expected) in expect {
        assert_eq!(code(result), expected);
    }
    assert_eq!(
        code(f.ns.attach(pb::AttachRequest::default()).await),
        InvalidArgument
    );
}
