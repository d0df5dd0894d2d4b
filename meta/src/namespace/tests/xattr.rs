//! Extended attributes: namespaces, flags, limits, and what becomes of them.

use emberfs_proto::ErrorCode::*;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;

use super::attributes::*;
use super::fixture::*;
use crate::namespace::keys;

/// How many attribute records an inode has in the store.
fn stored(f: &Fixture, inode: u64) -> usize {
    let mut txn = f.engine.begin();
    let span = keys::xattrs(InodeId(inode));
    txn.get_range(span.range(), 100_000, false).unwrap().len()
}

#[tokio::test]
async fn attributes_are_set_listed_read_and_removed() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await;
    let other = f.file(ROOT, "b").await.inode;
    assert!(!file.has_xattrs);
    assert_eq!(
        code(get(&f, f.root(), file.inode, "user.a").await),
        NoAttribute
    );
    assert_eq!(
        code(remove(&f, f.root(), file.inode, "user.a").await),
        NoAttribute
    );

    let after = set(&f, f.root(), file.inode, "user.b", b"1\0\xff")
        .await
        .unwrap();
    assert_ne!(after.ctime, file.ctime);
    assert_eq!((after.mtime, after.has_xattrs), (file.mtime, true));
    set(&f, f.root(), file.inode, "user.a", b"").await.unwrap();
    set(&f, f.root(), file.inode, "user.b", b"2").await.unwrap();
    assert_eq!(
        get(&f, f.root(), file.inode, "user.a").await.unwrap(),
        b""[..]
    );
    assert_eq!(
        get(&f, f.root(), file.inode, "user.b").await.unwrap(),
        b"2"[..]
    );
    assert_eq!(list(&f, f.root(), file.inode).await, ["user.a", "user.b"]);
    assert!(list(&f, f.root(), other).await.is_empty());

    let f = f.restart();
    let before = f.attr(file.inode).await.unwrap();
    let after = remove(&f, f.root(), file.inode, "user.b").await.unwrap();
    assert_ne!(after.ctime, before.ctime);
    assert_eq!(list(&f, f.root(), file.inode).await, ["user.a"]);
    let last = remove(&f, f.root(), file.inode, "user.a").await.unwrap();
    assert!(!last.has_xattrs);
    assert_eq!(stored(&f, file.inode), 0);

    let gone = 999_999;
    assert_eq!(code(get(&f, f.root(), gone, "user.a").await), Stale);
    assert_eq!(code(set(&f, f.root(), gone, "user.a", b"").await), Stale);
    assert_eq!(code(remove(&f, f.root(), gone, "user.a").await), Stale);
}

#[tokio::test]
async fn flags_ask_for_a_new_or_an_old_attribute() {
    let f = Fixture::new();
    let inode = f.file(ROOT, "a").await.inode;
    let set = |create, replace| {
        f.ns.set_xattr(pb::SetXattrRequest {
            caller: f.root(),
            inode,
            name: bytes("user.a"),
            create,
            replace,
            ..Default::default()
        })
    };
    assert_eq!(code(set(false, true).await), NoAttribute);
    set(true, false).await.unwrap();
    assert_eq!(code(set(true, false).await), Exists);
    assert_eq!(code(set(true, true).await), Exists);
    set(false, true).await.unwrap();
}

#[tokio::test]
async fn names_and_values_have_linuxs_limits() {
    let f = Fixture::new();
    let inode = f.file(ROOT, "a").await.inode;
    let longest = format!("user.{}", "x".repeat(250));
    set(&f, f.root(), inode, &longest, b"").await.unwrap();
    let too_long = format!("{longest}x");
    for bad in ["", "user.", "trusted.", "security.", "user.\0", &too_long] {
        assert_eq!(
            code(set(&f, f.root(), inode, bad, b"").await),
            InvalidArgument
        );
        assert_eq!(code(get(&f, f.root(), inode, bad).await), InvalidArgument);
        assert_eq!(
            code(remove(&f, f.root(), inode, bad).await),
            InvalidArgument
        );
    }
    for unknown in ["system.nfs4_acl", "btrfs.compression", "nothing"] {
        assert_eq!(
            code(set(&f, f.root(), inode, unknown, b"").await),
            Unsupported
        );
        assert_eq!(code(get(&f, f.root(), inode, unknown).await), Unsupported);
        assert_eq!(
            code(remove(&f, f.root(), inode, unknown).await),
            Unsupported
        );
    }
    let value = vec![7; 64 << 10];
    set(&f, f.root(), inode, "user.a", &value).await.unwrap();
    assert_eq!(get(&f, f.root(), inode, "user.a").await.unwrap(), value);
    let value = vec![7; (64 << 10) + 1];
    assert_eq!(
        code(set(&f, f.root(), inode, "user.a", &value).await),
        ValueTooLarge
    );
}

#[tokio::test]
async fn an_inode_holds_a_mebibyte_of_values() {
    let f = Fixture::new();
    let inode = f.file(ROOT, "a").await.inode;
    let value = vec![7; 64 << 10];
    for i in 0..16 {
        set(&f, f.root(), inode, &format!("user.{i}"), &value)
            .await
            .unwrap();
    }
    assert_eq!(
        code(set(&f, f.root(), inode, "user.more", b"x").await),
        NoSpace
    );
    set(&f, f.root(), inode, "user.empty", b"").await.unwrap();
    // What is replaced or removed makes room.
    set(&f, f.root(), inode, "user.3", &value).await.unwrap();
    set(&f, f.root(), inode, "user.3", &value[1..])
        .await
        .unwrap();
    set(&f, f.root(), inode, "user.more", b"x").await.unwrap();
    assert_eq!(
        code(set(&f, f.root(), inode, "user.3", &value).await),
        NoSpace
    );
    remove(&f, f.root(), inode, "user.more").await.unwrap();
    set(&f, f.root(), inode, "user.3", &value).await.unwrap();
    assert_eq!(list(&f, f.root(), inode).await.len(), 17);
}

#[tokio::test]
async fn all_names_of_an_inode_fit_into_one_list() {
    let f = Fixture::new();
    let inode = f.mkdir(ROOT, "d").await.inode;
    let acl = crate::namespace::acl::tests::acl("u::rwx g::r-x m::rwx o::r-x");
    set(&f, f.root(), inode, "system.posix_acl_access", &acl)
        .await
        .unwrap();
    set(&f, f.root(), inode, "system.posix_acl_default", &acl)
        .await
        .unwrap();
    let mut count = 0;
    let refused = loop {
        let name = format!("user.{count:0250}");
        match set(&f, f.root(), inode, &name, b"").await {
            Ok(_) => count += 1,
            Err(error) => break error.code,
        }
    };
    assert_eq!(refused, NoSpace);
    let names = list(&f, f.root(), inode).await;
    assert_eq!(names.len(), count + 2);
    let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
    assert!((65_000..=65_536).contains(&bytes), "{bytes} bytes");
}

#[tokio::test]
async fn user_attributes_follow_the_permission_bits() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let as_user = |uid| f.user(uid);
    chown(&f, file, 5, 5).await;
    set(&f, as_user(5), file, "user.a", b"1").await.unwrap();
    assert_eq!(get(&f, as_user(6), file, "user.a").await.unwrap(), b"1"[..]);
    assert_eq!(
        code(set(&f, as_user(6), file, "user.a", b"2").await),
        PermissionDenied
    );
    assert_eq!(
        code(remove(&f, as_user(6), file, "user.a").await),
        PermissionDenied
    );
    chmod(&f, file, 0o602).await;
    assert_eq!(
        code(get(&f, as_user(6), file, "user.a").await),
        PermissionDenied
    );
    for uid in [5, 6] {
        assert_eq!(list(&f, as_user(uid), file).await, ["user.a"]);
    }
    set(&f, as_user(6), file, "user.a", b"2").await.unwrap();
    remove(&f, as_user(6), file, "user.a").await.unwrap();
}

#[tokio::test]
async fn user_attributes_are_for_files_and_directories() {
    let f = Fixture::new();
    let link = symlink(&f, ROOT, "l").await;
    let fifo = mknod(&f, ROOT, "p", 0o666, 0).await.inode;
    for inode in [link, fifo] {
        assert_eq!(
            code(set(&f, f.root(), inode, "user.a", b"").await),
            NotPermitted
        );
        assert_eq!(
            code(remove(&f, f.root(), inode, "user.a").await),
            NotPermitted
        );
        assert_eq!(code(get(&f, f.root(), inode, "user.a").await), NoAttribute);
        set(&f, f.root(), inode, "trusted.a", b"").await.unwrap();
        set(&f, f.root(), inode, "security.a", b"").await.unwrap();
        assert_eq!(list(&f, f.root(), inode).await, ["security.a", "trusted.a"]);
    }
    let dir = f.try_mkdir(f.root(), ROOT, "d", 0o777).await.unwrap().inode;
    chown(&f, dir, 5, 5).await;
    set(&f, f.user(6), dir, "user.a", b"").await.unwrap();
    chmod(&f, dir, 0o1777).await;
    assert_eq!(
        code(set(&f, f.user(6), dir, "user.a", b"").await),
        NotPermitted
    );
    assert_eq!(
        code(remove(&f, f.user(6), dir, "user.a").await),
        NotPermitted
    );
    assert_eq!(get(&f, f.user(6), dir, "user.a").await.unwrap(), b""[..]);
    set(&f, f.user(5), dir, "user.b", b"").await.unwrap();
    set(&f, f.root(), dir, "user.c", b"").await.unwrap();
    remove(&f, f.user(5), dir, "user.a").await.unwrap();
}

#[tokio::test]
async fn trusted_attributes_are_roots_and_security_attributes_everybodys_to_read() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    chown(&f, file, 5, 5).await;
    chmod(&f, file, 0o600).await;
    for name in ["trusted.t", "security.s"] {
        set(&f, f.root(), file, name, b"1").await.unwrap();
        for uid in [5, 6] {
            assert_eq!(
                code(set(&f, f.user(uid), file, name, b"2").await),
                NotPermitted
            );
            assert_eq!(
                code(remove(&f, f.user(uid), file, name).await),
                NotPermitted
            );
        }
        assert_eq!(get(&f, f.root(), file, name).await.unwrap(), b"1"[..]);
    }
    for uid in [5, 6] {
        assert_eq!(
            code(get(&f, f.user(uid), file, "trusted.t").await),
            NoAttribute
        );
        assert_eq!(
            get(&f, f.user(uid), file, "security.s").await.unwrap(),
            b"1"[..]
        );
        assert_eq!(list(&f, f.user(uid), file).await, ["security.s"]);
    }
    assert_eq!(list(&f, f.root(), file).await, ["security.s", "trusted.t"]);
}

#[tokio::test]
async fn capabilities_go_with_a_change_of_contents_or_owner() {
    const NAME: &str = "security.capability";
    let f = Fixture::new();
    let file = f.create(f.root(), ROOT, "a", 0o666).await.unwrap();
    let inode = file.attr.unwrap().inode;
    let has = || async { list(&f, f.root(), inode).await == [NAME] };
    let arm = || async {
        set(&f, f.root(), inode, NAME, b"caps").await.unwrap();
        assert!(has().await);
    };
    arm().await;
    f.sync(inode, file.session, 10, 0).await.unwrap();
    assert!(!has().await, "written");
    arm().await;
    f.sync(inode, file.session, 10, 0).await.unwrap();
    assert!(has().await, "reported again, not written again");
    f.truncate(inode, 20).await.unwrap();
    assert!(!has().await, "extended");
    f.close(inode, file.session).await;
    arm().await;
    f.open_as(f.root(), inode, true, true).await.unwrap();
    assert!(!has().await, "opened with O_TRUNC");
    arm().await;
    assert!(!chown(&f, inode, 5, 5).await.has_xattrs);
    assert!(!has().await, "given away");
    // A kernel takes them away on behalf of the writer, before it writes.
    arm().await;
    chmod(&f, inode, 0o444).await;
    assert!(has().await, "chmod leaves them");
    assert_eq!(code(remove(&f, f.user(6), inode, NAME).await), NotPermitted);
    remove(&f, f.user(5), inode, NAME).await.unwrap();
    chmod(&f, inode, 0o446).await;
    arm().await;
    assert_eq!(
        code(set(&f, f.user(6), inode, NAME, b"more").await),
        NotPermitted
    );
    remove(&f, f.user(6), inode, NAME).await.unwrap();
}

#[tokio::test]
async fn a_repeated_change_has_one_effect_and_one_answer() {
    let f = Fixture::new();
    let inode = f.file(ROOT, "a").await.inode;
    let create = pb::SetXattrRequest {
        caller: f.root(),
        inode,
        name: bytes("user.a"),
        value: bytes("1"),
        create: true,
        ..Default::default()
    };
    let first = f.ns.set_xattr(create.clone()).await.unwrap();
    assert_eq!(f.ns.set_xattr(create.clone()).await, Ok(first.clone()));
    set(&f, f.root(), inode, "user.a", b"2").await.unwrap();
    let f = f.restart();
    assert_eq!(f.ns.set_xattr(create.clone()).await, Ok(first));
    assert_eq!(get(&f, f.root(), inode, "user.a").await.unwrap(), b"2"[..]);

    let gone = request(f.root(), inode, "user.a");
    let removed = f.ns.remove_xattr(gone.clone()).await.unwrap();
    set(&f, f.root(), inode, "user.a", b"3").await.unwrap();
    assert_eq!(f.ns.remove_xattr(gone.clone()).await, Ok(removed));
    assert_eq!(get(&f, f.root(), inode, "user.a").await.unwrap(), b"3"[..]);
    // A number belongs to one operation.
    let caller = create.caller;
    assert_eq!(
        code(f.ns.remove_xattr(pb::XattrRequest { caller, ..gone }).await),
        InvalidArgument
    );
}

#[tokio::test]
async fn changes_at_once_are_all_counted() {
    let f = Fixture::new();
    let inode = f.file(ROOT, "a").await.inode;
    let names: Vec<_> = (0..20).map(|i| format!("user.{i:02}")).collect();
    let sets = names
        .iter()
        .map(|name| set(&f, f.root(), inode, name, b"value"));
    for result in futures::future::join_all(sets).await {
        result.unwrap();
    }
    assert_eq!(list(&f, f.root(), inode).await, names);
    for name in &names {
        remove(&f, f.root(), inode, name).await.unwrap();
    }
    assert!(!f.attr(inode).await.unwrap().has_xattrs);
}

#[tokio::test]
async fn attributes_live_as_long_as_their_inode() {
    let f = Fixture::new();
    // A file that is open keeps them after its last name.
    let file = f.create(f.root(), ROOT, "a", 0o644).await.unwrap();
    let inode = file.attr.unwrap().inode;
    let next = f.file(ROOT, "b").await.inode;
    for inode in [inode, next] {
        set(&f, f.root(), inode, "user.a", b"1").await.unwrap();
    }
    f.unlink(ROOT, "a").await.unwrap();
    f.collect().await;
    set(&f, f.root(), inode, "user.b", b"2").await.unwrap();
    assert_eq!(list(&f, f.root(), inode).await, ["user.a", "user.b"]);
    remove(&f, f.root(), inode, "user.a").await.unwrap();
    f.close(inode, file.session).await;
    assert_eq!(f.collect().await.removed, 1);
    assert_eq!(code(get(&f, f.root(), inode, "user.b").await), Stale);
    assert_eq!((stored(&f, inode), stored(&f, next)), (0, 1));

    // What has no chunks goes at once, by each of the ways.
    let dir = f.mkdir(ROOT, "d").await.inode;
    let replaced = f.mkdir(ROOT, "e").await.inode;
    let link = symlink(&f, ROOT, "l").await;
    f.mkdir(ROOT, "n").await;
    for inode in [dir, replaced, link] {
        set(&f, f.root(), inode, "trusted.a", b"1").await.unwrap();
        assert_eq!(stored(&f, inode), 1);
    }
    f.rmdir(ROOT, "d").await.unwrap();
    f.rename(ROOT, "n", ROOT, "e").await.unwrap();
    f.unlink(ROOT, "l").await.unwrap();
    for inode in [dir, replaced, link] {
        assert_eq!(stored(&f, inode), 0);
    }
    assert_eq!(get(&f, f.root(), next, "user.a").await.unwrap(), b"1"[..]);
}
