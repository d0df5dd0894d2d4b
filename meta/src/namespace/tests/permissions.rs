//! Who may do what, and what changes of attributes do.

use super::fixture::*;
use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::{self, FileKind};

#[tokio::test]
async fn special_files() {
    let f = Fixture::new();
    let mknod = |caller, kind: FileKind, name: &str| {
        let (kind, name) = (kind as i32, bytes(name));
        f.ns.mknod(pb::MknodRequest {
            caller,
            parent: ROOT,
            name,
            kind,
            mode: 0o600,
            rdev: 0x103,
            ..Default::default()
        })
    };
    let fifo = mknod(f.root(), FileKind::Fifo, "p")
        .await
        .unwrap()
        .attr
        .unwrap();
    assert_eq!((fifo.kind(), fifo.rdev), (FileKind::Fifo, 0));
    let device = mknod(f.root(), FileKind::CharDevice, "c")
        .await
        .unwrap()
        .attr
        .unwrap();
    assert_eq!(device.rdev, 0x103);
    let file = mknod(f.root(), FileKind::File, "f")
        .await
        .unwrap()
        .attr
        .unwrap();
    assert!(file.layout.is_some());
    assert_eq!(
        code(mknod(f.root(), FileKind::Directory, "d").await),
        InvalidArgument
    );
    assert_eq!(code(mknod(f.root(), FileKind::Fifo, "p").await), Exists);
    assert_eq!(
        code(mknod(f.user(5), FileKind::Fifo, "q").await),
        PermissionDenied
    );
    chmod(&f, f.root(), ROOT, 0o777).await.unwrap();
    assert_eq!(
        code(mknod(f.user(5), FileKind::BlockDevice, "q").await),
        NotPermitted
    );
    mknod(f.user(5), FileKind::Fifo, "q").await.unwrap();
    assert_eq!(code(f.open(fifo.inode, false).await), Unsupported);
}

async fn chmod(
    f: &Fixture,
    caller: Option<pb::Caller>,
    inode: u64,
    mode: u32,
) -> emberfs_proto::Result<pb::Attr> {
    let request = pb::SetAttrRequest {
        caller,
        inode,
        mode: Some(mode),
        ..Default::default()
    };
    Ok(f.ns.setattr(request).await?.attr.unwrap())
}

async fn chown(
    f: &Fixture,
    caller: Option<pb::Caller>,
    inode: u64,
    uid: Option<u32>,
    gid: Option<u32>,
) -> emberfs_proto::Result<pb::Attr> {
    let request = pb::SetAttrRequest {
        caller,
        inode,
        uid,
        gid,
        ..Default::default()
    };
    Ok(f.ns.setattr(request).await?.attr.unwrap())
}

#[tokio::test]
async fn permissions_guard_directories() {
    let f = Fixture::new();
    let dir = f.try_mkdir(f.root(), ROOT, "d", 0o755).await.unwrap().inode;
    f.file(dir, "a").await;
    let name = |caller| pb::NameRequest {
        caller,
        parent: dir,
        name: bytes("a"),
    };
    assert_eq!(
        code(f.create(f.user(5), dir, "x", 0o644).await),
        PermissionDenied
    );
    assert_eq!(
        code(f.try_mkdir(f.user(5), dir, "x", 0o755).await),
        PermissionDenied
    );
    assert_eq!(code(f.ns.unlink(name(f.user(5))).await), PermissionDenied);
    f.ns.lookup(name(f.user(5))).await.unwrap();
    chmod(&f, f.root(), dir, 0o744).await.unwrap();
    assert_eq!(
        code(f.ns.lookup(name(f.user(5))).await),
        PermissionDenied,
        "no search"
    );
    let list = |caller| pb::ReadDirRequest {
        caller,
        inode: dir,
        ..Default::default()
    };
    f.ns.readdir(list(f.user(5))).await.unwrap();
    chmod(&f, f.root(), dir, 0o711).await.unwrap();
    assert_eq!(code(f.ns.readdir(list(f.user(5))).await), PermissionDenied);
    f.ns.lookup(name(f.user(5))).await.unwrap();
    chmod(&f, f.root(), dir, 0o1777).await.unwrap();
    assert_eq!(
        code(f.ns.unlink(name(f.user(5))).await),
        NotPermitted,
        "sticky"
    );
    let mine = f.create(f.user(5), dir, "mine", 0o644).await.unwrap();
    assert_eq!((mine.attr.unwrap().uid, mine.attr.unwrap().gid), (5, 5));
}

#[tokio::test]
async fn opening_needs_the_mode_bits() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let open = |uid, write, truncate| f.open_as(f.user(uid), file, write, truncate);
    open(5, false, false).await.unwrap();
    assert_eq!(code(open(5, true, false).await), PermissionDenied);
    assert_eq!(code(open(5, false, true).await), PermissionDenied);
    chmod(&f, f.root(), file, 0o600).await.unwrap();
    assert_eq!(code(open(5, false, false).await), PermissionDenied);
    let dir = f.mkdir(ROOT, "d").await.inode;
    f.open(dir, false).await.unwrap();
    assert_eq!(code(f.open(dir, true).await), IsDirectory);
}

#[tokio::test]
async fn chmod_is_for_owners_and_drops_foreign_setgid() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    assert_eq!(code(chmod(&f, f.user(5), file, 0o777).await), NotPermitted);
    chown(&f, f.root(), file, Some(5), Some(9)).await.unwrap();
    assert_eq!(
        chmod(&f, f.user(5), file, 0o2755).await.unwrap().mode,
        0o755
    );
    assert_eq!(
        chmod(&f, f.root(), file, 0o6755).await.unwrap().mode,
        0o6755
    );
    // A writer's kernel takes set-id bits away; nothing else is allowed to it.
    chmod(&f, f.root(), file, 0o6757).await.unwrap();
    assert_eq!(code(chmod(&f, f.user(6), file, 0o756).await), NotPermitted);
    assert_eq!(chmod(&f, f.user(6), file, 0o757).await.unwrap().mode, 0o757);
}

#[tokio::test]
async fn chown_clears_set_ids_and_is_mostly_for_root() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    chmod(&f, f.root(), file, 0o6755).await.unwrap();
    let attr = chown(&f, f.root(), file, Some(5), Some(5)).await.unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode), (5, 5, 0o755));
    assert_eq!(
        code(chown(&f, f.user(5), file, Some(6), None).await),
        NotPermitted
    );
    assert_eq!(
        code(chown(&f, f.user(5), file, None, Some(6)).await),
        NotPermitted
    );
    assert_eq!(
        code(chown(&f, f.user(6), file, None, Some(6)).await),
        NotPermitted
    );
    chown(&f, f.user(5), file, Some(5), Some(5)).await.unwrap();
    let mut member = f.user(5);
    member.as_mut().unwrap().groups = vec![60];
    assert_eq!(
        chown(&f, member, file, None, Some(60)).await.unwrap().gid,
        60
    );
}

#[tokio::test]
async fn times_are_for_owners_and_now_for_writers() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await;
    let time = pb::Time {
        seconds: 1_000_000,
        nanos: 123_456_789,
    };
    let set = |caller, inode, mtime: Option<pb::Time>, mtime_now| {
        let request = pb::SetAttrRequest {
            caller,
            inode,
            mtime,
            mtime_now,
            ..Default::default()
        };
        f.ns.setattr(request)
    };
    assert_eq!(
        code(set(f.user(5), file.inode, Some(time), false).await),
        NotPermitted
    );
    assert_eq!(
        code(set(f.user(5), file.inode, None, true).await),
        PermissionDenied
    );
    let attr = set(f.root(), file.inode, Some(time), false)
        .await
        .unwrap()
        .attr
        .unwrap();
    assert_eq!(attr.mtime, Some(time));
    assert_ne!(attr.ctime, file.ctime);
    chmod(&f, f.root(), file.inode, 0o666).await.unwrap();
    let attr = set(f.user(5), file.inode, None, true)
        .await
        .unwrap()
        .attr
        .unwrap();
    assert_ne!(attr.mtime, Some(time));
    let broken = pb::Time {
        seconds: 1,
        nanos: 1_000_000_000,
    };
    assert_eq!(
        code(set(f.root(), file.inode, Some(broken), false).await),
        InvalidArgument
    );
    // A directory's times: set, then moved by the next entry.
    let dir = f.mkdir(ROOT, "d").await.inode;
    set(f.root(), dir, Some(time), false).await.unwrap();
    assert_eq!(f.attr(dir).await.unwrap().mtime, Some(time));
    let changed = chmod(&f, f.root(), dir, 0o700).await.unwrap();
    assert_eq!(changed.mtime, Some(time), "chmod moves only ctime");
    f.file(dir, "x").await;
    assert_ne!(f.attr(dir).await.unwrap().mtime, Some(time));
}

#[tokio::test]
async fn setgid_directories_hand_down_their_group() {
    let f = Fixture::new();
    let dir = f
        .try_mkdir(f.root(), ROOT, "d", 0o2777)
        .await
        .unwrap()
        .inode;
    chown(&f, f.root(), dir, None, Some(50)).await.unwrap();
    let sub = f.try_mkdir(f.user(5), dir, "s", 0o755).await.unwrap();
    assert_eq!((sub.gid, sub.mode), (50, 0o2755));
    let file = f
        .create(f.user(5), dir, "f", 0o644)
        .await
        .unwrap()
        .attr
        .unwrap();
    assert_eq!((file.gid, file.uid), (50, 5));
}

#[tokio::test]
async fn truncate_checks_kind_permission_and_size() {
    let f = Fixture::new();
    let opened = f.create(f.root(), ROOT, "a", 0o644).await.unwrap();
    let file = opened.attr.unwrap().inode;
    let dir = f.mkdir(ROOT, "d").await.inode;
    assert_eq!(code(f.truncate(dir, 0).await), IsDirectory);
    let max = (1u64 << 32).wrapping_sub(1) * (4 << 20);
    assert_eq!(f.truncate(file, max).await.unwrap().size, max);
    assert_eq!(code(f.truncate(file, max + 1).await), FileTooLarge);
    let as_user = |session| pb::SetAttrRequest {
        caller: f.user(5),
        inode: file,
        size: Some(1),
        session,
        ..Default::default()
    };
    assert_eq!(code(f.ns.setattr(as_user(0)).await), PermissionDenied);
    // A file open for writing stays writable whatever the mode says.
    f.ns.setattr(as_user(opened.session)).await.unwrap();
    let fifo = pb::MknodRequest {
        caller: f.root(),
        parent: ROOT,
        name: bytes("p"),
        kind: FileKind::Fifo as i32,
        ..Default::default()
    };
    let fifo = f.ns.mknod(fifo).await.unwrap().attr.unwrap().inode;
    assert_eq!(code(f.truncate(fifo, 0).await), InvalidArgument);
}

#[tokio::test]
async fn many_names_are_looked_up_as_if_each_was_opened_for_reading() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "d").await.inode;
    let open = f.file(dir, "open").await;
    let secret = f.file(dir, "secret").await;
    chmod(&f, f.root(), secret.inode, 0o600).await.unwrap();
    let sub = f.mkdir(dir, "sub").await;
    let link = pb::SymlinkRequest {
        caller: f.root(),
        parent: dir,
        name: bytes("link"),
        target: bytes("open"),
    };
    f.ns.symlink(link).await.unwrap();
    let many = |caller, names: &[&str]| pb::LookupManyRequest {
        caller,
        parent: dir,
        names: names.iter().map(|name| bytes(name)).collect(),
    };
    let names = [
        "open", "none", "secret", "sub", "link", "..", "open", "open/",
    ];
    let found = f.ns.lookup_many(many(f.user(5), &names)).await.unwrap();
    let found = found.results.into_iter().map(|result| match result.attr {
        Some(attr) => Ok(attr.inode),
        None => Err(emberfs_proto::ErrorCode::from_number(result.status)),
    });
    let expected = [
        Ok(open.inode),
        Err(NotFound),
        Err(PermissionDenied),
        Ok(sub.inode),
        Err(Loop),
        Err(InvalidArgument),
        Ok(open.inode),
        Err(InvalidArgument),
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected);
    let found = f.ns.lookup_many(many(f.root(), &["secret"])).await.unwrap();
    assert_eq!(
        found.results[0].attr,
        Some(f.attr(secret.inode).await.unwrap())
    );

    let too_many = vec!["x"; 4097];
    assert_eq!(
        code(f.ns.lookup_many(many(f.root(), &too_many)).await),
        InvalidArgument
    );
    chmod(&f, f.root(), dir, 0o744).await.unwrap();
    assert_eq!(
        code(f.ns.lookup_many(many(f.user(5), &["open"])).await),
        PermissionDenied,
        "no search"
    );
    let no_dir = pb::LookupManyRequest {
        parent: open.inode,
        ..many(f.root(), &["x"])
    };
    assert_eq!(code(f.ns.lookup_many(no_dir).await), NotDirectory);
}

#[tokio::test]
async fn a_file_that_is_being_truncated_is_not_read_without_an_open() {
    let f = Fixture::new();
    let file = f.create(f.root(), ROOT, "f", 0o644).await.unwrap();
    let inode = file.attr.unwrap().inode;
    f.chunks.write(inode, 100);
    f.sync(inode, file.session, 100, 0).await.unwrap();
    *f.chunks.down.lock() = true;
    f.truncate(inode, 10).await.unwrap_err();
    let look = || async {
        let request = pb::LookupManyRequest {
            caller: f.root(),
            parent: ROOT,
            names: vec![bytes("f")],
        };
        f.ns.lookup_many(request).await.unwrap().results.remove(0)
    };
    assert_eq!(look().await.status, Busy as u32);
    *f.chunks.down.lock() = false;
    f.open(inode, false).await.unwrap();
    assert_eq!(look().await.attr.unwrap().size, 10);
}
