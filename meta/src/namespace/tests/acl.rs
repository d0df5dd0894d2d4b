//! Access control lists: whom they admit, how they and the mode follow each other, what is inherited.

use bytes::Bytes;
use emberfs_proto::ErrorCode;
use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb;

use super::attributes::*;
use super::fixture::*;
use crate::namespace::acl::tests::{acl, raw};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// The next request of a user who is in further groups.
fn member(f: &Fixture, uid: u32, groups: &[u32]) -> Option<pb::Caller> {
    f.user(uid).map(|caller| pb::Caller {
        groups: groups.to_vec(),
        ..caller
    })
}

async fn put(f: &Fixture, inode: u64, name: &str, text: &str) -> pb::Attr {
    set(f, f.root(), inode, name, &acl(text)).await.unwrap()
}

/// A directory that anybody may change, with a default ACL.
async fn dir_with(f: &Fixture, name: &str, default: &str) -> u64 {
    let dir = f
        .try_mkdir(f.root(), ROOT, name, 0o777)
        .await
        .unwrap()
        .inode;
    put(f, dir, DEFAULT, default).await;
    dir
}

#[tokio::test]
async fn an_acl_admits_by_name_within_its_mask() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    chown(&f, file, 5, 50).await;
    let text = "u::rw- u:7:rw- u:8:--- g::r-- g:60:-w- g:70:rw- m::rw- o::---";
    let attr = put(&f, file, ACCESS, text).await;
    assert_eq!((attr.mode, attr.has_acl), (0o660, true));
    // Who, in which further groups, may read, may write.
    let table: [(u32, &[u32], bool, bool); 9] = [
        (5, &[], true, true),
        (7, &[], true, true),
        (8, &[70], false, false),
        (9, &[50], true, false),
        (9, &[60], false, true),
        (9, &[50, 60], true, true),
        (9, &[70], true, true),
        (9, &[], false, false),
        (0, &[], true, true),
    ];
    for (uid, groups, reads, writes) in table {
        let read = f.open_as(member(&f, uid, groups), file, false, false).await;
        let write = f.open_as(member(&f, uid, groups), file, true, false).await;
        let expect = |granted| {
            if granted {
                Ok(())
            } else {
                Err(PermissionDenied)
            }
        };
        assert_eq!(
            read.map(|_| ()).map_err(|e| e.code),
            expect(reads),
            "{uid} {groups:?}"
        );
        assert_eq!(
            write.map(|_| ()).map_err(|e| e.code),
            expect(writes),
            "{uid} {groups:?}"
        );
    }
    // The mask bounds everybody but the owner and the others.
    put(
        &f,
        file,
        ACCESS,
        "u::rw- u:7:rw- g::r-- g:70:rw- m::-w- o::r--",
    )
    .await;
    for (uid, groups, reads) in [(5, vec![], true), (7, vec![], false), (9, vec![70], false)] {
        let read = f
            .open_as(member(&f, uid, &groups), file, false, false)
            .await;
        assert_eq!(read.is_ok(), reads, "{uid}");
    }
    // One that grants nothing turns the list off, as everywhere on Linux: only the group itself has less than others.
    put(
        &f,
        file,
        ACCESS,
        "u::rw- u:7:rw- g::r-- g:70:rw- m::--- o::r--",
    )
    .await;
    for (uid, groups, reads) in [(7, vec![], true), (9, vec![70], true), (9, vec![50], false)] {
        let read = f
            .open_as(member(&f, uid, &groups), file, false, false)
            .await;
        assert_eq!(read.is_ok(), reads, "{uid}");
    }
    f.open_as(f.user(9), file, false, false).await.unwrap();
}

#[tokio::test]
async fn an_acl_guards_directories() {
    let f = Fixture::new();
    let dir = f.mkdir(ROOT, "d").await.inode;
    put(
        &f,
        dir,
        ACCESS,
        "u::rwx u:7:rwx u:8:r-x g::--- m::rwx o::---",
    )
    .await;
    f.create(f.user(7), dir, "a", 0o644).await.unwrap();
    let name = |uid| pb::NameRequest {
        caller: f.user(uid),
        parent: dir,
        name: bytes("a"),
    };
    f.ns.lookup(name(8)).await.unwrap();
    assert_eq!(code(f.ns.lookup(name(9)).await), PermissionDenied);
    assert_eq!(
        code(f.create(f.user(8), dir, "b", 0o644).await),
        PermissionDenied
    );
    assert_eq!(code(f.ns.unlink(name(8)).await), PermissionDenied);
    f.ns.unlink(name(7)).await.unwrap();
    // Attributes of the contents follow it too.
    assert_eq!(
        code(set(&f, f.user(8), dir, "user.a", b"").await),
        PermissionDenied
    );
    set(&f, f.user(7), dir, "user.a", b"").await.unwrap();
    assert_eq!(
        code(get(&f, f.user(9), dir, "user.a").await),
        PermissionDenied
    );
    assert_eq!(get(&f, f.user(8), dir, "user.a").await.unwrap(), b""[..]);
}

#[tokio::test]
async fn mode_and_acl_follow_each_other() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await;
    let inode = file.inode;
    let see = || async { get(&f, f.root(), inode, ACCESS).await };
    assert_eq!(code(see().await), NoAttribute);
    let after = put(&f, inode, ACCESS, "u::rwx u:7:rwx g::r-x m::rw- o::--x").await;
    assert_eq!(after.mode, 0o761);
    assert_ne!(after.ctime, file.ctime);
    assert_eq!(f.attr(inode).await.unwrap().mode, 0o761);
    assert_eq!(chmod(&f, inode, 0o4650).await.mode, 0o4650);
    assert_eq!(
        see().await.unwrap(),
        acl("u::rw- u:7:rwx g::r-x m::r-x o::---")
    );
    f.open_as(f.user(7), inode, false, false).await.unwrap();
    assert_eq!(
        code(f.open_as(f.user(7), inode, true, false).await),
        PermissionDenied
    );

    // One that a mode tells is stored as the mode.
    let plain = put(&f, inode, ACCESS, "u::rw- g::r-- o::---").await;
    assert_eq!((plain.mode, plain.has_acl), (0o4640, false));
    assert_eq!(code(see().await), NoAttribute);
    assert_eq!(
        code(f.open_as(f.user(7), inode, false, false).await),
        PermissionDenied
    );

    // Each way to remove one; the mode stays.
    let no_entries = Bytes::from_static(&[2, 0, 0, 0]);
    for nothing in [None, Some(Bytes::new()), Some(no_entries)] {
        put(&f, inode, ACCESS, "u::rw- u:7:rwx g::r-- m::rwx o::---").await;
        let after = match nothing {
            None => remove(&f, f.root(), inode, ACCESS).await.unwrap(),
            Some(value) => set(&f, f.root(), inode, ACCESS, &value).await.unwrap(),
        };
        assert_eq!((after.mode & 0o777, after.has_acl), (0o670, false));
        assert_eq!(code(see().await), NoAttribute);
    }
    remove(&f, f.root(), inode, ACCESS).await.unwrap();
}

#[tokio::test]
async fn acls_are_for_owners_and_of_what_has_a_mode() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let dir = f.mkdir(ROOT, "d").await.inode;
    let link = symlink(&f, ROOT, "l").await;
    let fifo = mknod(&f, ROOT, "p", 0o600, 0).await.inode;
    for inode in [file, dir, fifo] {
        chown(&f, inode, 5, 5).await;
    }
    let value = acl("u::rwx u:7:rwx g::r-x m::rwx o::r-x");
    for (inode, name) in [
        (file, ACCESS),
        (fifo, ACCESS),
        (dir, ACCESS),
        (dir, DEFAULT),
    ] {
        assert_eq!(
            code(set(&f, f.user(6), inode, name, &value).await),
            NotPermitted
        );
        set(&f, f.user(5), inode, name, &value).await.unwrap();
        assert_eq!(code(remove(&f, f.user(6), inode, name).await), NotPermitted);
        assert_eq!(get(&f, f.user(6), inode, name).await.unwrap(), value);
        assert_eq!(list(&f, f.user(6), inode).await.last().unwrap(), name);
        remove(&f, f.user(5), inode, name).await.unwrap();
        assert!(list(&f, f.user(6), inode).await.is_empty());
    }
    for inode in [file, fifo] {
        assert_eq!(
            code(set(&f, f.root(), inode, DEFAULT, &value).await),
            PermissionDenied
        );
        assert_eq!(code(get(&f, f.root(), inode, DEFAULT).await), NoAttribute);
        remove(&f, f.root(), inode, DEFAULT).await.unwrap();
    }
    for name in [ACCESS, DEFAULT] {
        assert_eq!(
            code(set(&f, f.root(), link, name, &value).await),
            Unsupported
        );
        assert_eq!(code(get(&f, f.root(), link, name).await), Unsupported);
        assert_eq!(code(remove(&f, f.root(), link, name).await), Unsupported);
    }
    let no_mask = raw(&[(1, 7, 0), (2, 7, 7), (4, 7, 0), (32, 0, 0)]);
    let too_large = vec![0; (64 << 10) + 1];
    let bad: [(&[u8], ErrorCode); 4] = [
        (&no_mask, InvalidArgument),
        (b"bad", InvalidArgument),
        (&[1, 0, 0, 0], Unsupported),
        (&too_large, ValueTooLarge),
    ];
    for (value, expected) in bad {
        for name in [ACCESS, DEFAULT] {
            assert_eq!(code(set(&f, f.root(), dir, name, value).await), expected);
        }
    }
}

#[tokio::test]
async fn setting_an_acl_takes_setgid_from_those_outside_the_group() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let value = acl("u::rwx u:7:r-x g::r-x m::r-x o::---");
    chown(&f, file, 5, 50).await;
    let table = [
        (f.user(5), 0o4750),
        (member(&f, 5, &[50]), 0o6750),
        (f.root(), 0o6750),
    ];
    for (caller, expected) in table {
        chmod(&f, file, 0o6755).await;
        let attr = set(&f, caller, file, ACCESS, &value).await.unwrap();
        assert_eq!(attr.mode, expected, "{expected:o}");
    }
}

#[tokio::test]
async fn a_default_acl_replaces_the_umask() {
    let f = Fixture::new();
    let dir = dir_with(&f, "d", "u::rwx u:7:rwx g::r-x m::rwx o::---").await;
    let create = |parent, name: &str| {
        f.ns.create(pb::CreateRequest {
            caller: f.root(),
            parent,
            name: bytes(name),
            mode: 0o666,
            umask: 0o077,
            ..Default::default()
        })
    };
    let mkdir = |parent, name: &str| {
        f.ns.mkdir(pb::MkdirRequest {
            caller: f.root(),
            parent,
            name: bytes(name),
            mode: 0o777,
            umask: 0o077,
        })
    };
    let file = create(dir, "f").await.unwrap().attr.unwrap();
    assert_eq!((file.mode, file.has_acl), (0o660, true));
    let expected = acl("u::rw- u:7:rwx g::r-x m::rw- o::---");
    assert_eq!(
        get(&f, f.root(), file.inode, ACCESS).await.unwrap(),
        expected
    );
    assert_eq!(
        code(get(&f, f.root(), file.inode, DEFAULT).await),
        NoAttribute
    );
    f.open_as(f.user(7), file.inode, true, false).await.unwrap();

    let sub = mkdir(dir, "s").await.unwrap().attr.unwrap();
    assert_eq!((sub.mode, sub.has_acl), (0o770, true));
    let default = get(&f, f.root(), dir, DEFAULT).await.unwrap();
    assert_eq!(get(&f, f.root(), sub.inode, ACCESS).await.unwrap(), default);
    assert_eq!(
        get(&f, f.root(), sub.inode, DEFAULT).await.unwrap(),
        default
    );
    // The grandchildren inherit as well.
    let deep = create(sub.inode, "f").await.unwrap().attr.unwrap();
    assert_eq!(
        get(&f, f.root(), deep.inode, ACCESS).await.unwrap(),
        expected
    );

    let fifo = mknod(&f, dir, "p", 0o644, 0o077).await;
    assert_eq!((fifo.mode, fifo.has_acl), (0o640, true));
    let link = symlink(&f, dir, "l").await;
    let link = f.attr(link).await.unwrap();
    assert_eq!((link.mode, link.has_acl), (0o777, false));

    // Where there is none, the umask counts, with the mode that the caller masked himself as before.
    assert_eq!(create(ROOT, "f").await.unwrap().attr.unwrap().mode, 0o600);
    assert_eq!(mkdir(ROOT, "s").await.unwrap().attr.unwrap().mode, 0o700);
    assert_eq!(mknod(&f, ROOT, "p", 0o644, 0o027).await.mode, 0o640);
    assert_eq!(f.file(ROOT, "g").await.mode, 0o644);
    remove(&f, f.root(), dir, DEFAULT).await.unwrap();
    let plain = create(dir, "plain").await.unwrap().attr.unwrap();
    assert_eq!((plain.mode, plain.has_acl), (0o600, false));
}

#[tokio::test]
async fn a_default_acl_without_names_is_a_mask_for_modes() {
    let f = Fixture::new();
    let dir = dir_with(&f, "d", "u::rwx g::r-x o::---").await;
    assert!(f.attr(dir).await.unwrap().has_acl);
    let file = f.create(f.root(), dir, "f", 0o666).await.unwrap();
    let file = file.attr.unwrap();
    assert_eq!((file.mode, file.has_acl), (0o640, false));
    let sub = f.try_mkdir(f.root(), dir, "s", 0o777).await.unwrap();
    assert_eq!(sub.mode, 0o750);
    assert_eq!(
        code(get(&f, f.root(), sub.inode, ACCESS).await),
        NoAttribute
    );
    let expected = acl("u::rwx g::r-x o::---");
    assert_eq!(
        get(&f, f.root(), sub.inode, DEFAULT).await.unwrap(),
        expected
    );
}

#[tokio::test]
async fn groups_and_set_ids_are_inherited_beside_acls() {
    let f = Fixture::new();
    let dir = dir_with(&f, "d", "u::rwx u:7:rwx g::rwx m::rwx o::r-x").await;
    chown(&f, dir, 1, 50).await;
    chmod(&f, dir, 0o2777).await;
    let sub = f.try_mkdir(f.user(5), dir, "s", 0o755).await.unwrap();
    assert_eq!((sub.uid, sub.gid, sub.mode), (5, 50, 0o2755));
    // A setgid program of a foreign group stays impossible, although the ACL takes the x bit away anyhow.
    put(&f, dir, DEFAULT, "u::rwx u:7:rwx g::rw- m::rw- o::r-x").await;
    let file = f.create(f.user(5), dir, "f", 0o2775).await.unwrap();
    assert_eq!(file.attr.unwrap().mode, 0o765);
}

#[tokio::test]
async fn acls_outlive_a_restart_and_move_with_their_inode() {
    let f = Fixture::new();
    let dir = dir_with(&f, "d", "u::rwx u:7:rwx g::r-x m::rwx o::---").await;
    let inode = f.file(dir, "f").await.inode;
    let before = get(&f, f.root(), inode, ACCESS).await.unwrap();
    f.rename(dir, "f", ROOT, "g").await.unwrap();
    f.truncate(inode, 10).await.unwrap();
    let f = f.restart();
    assert_eq!(get(&f, f.root(), inode, ACCESS).await.unwrap(), before);
    assert_eq!(
        get(&f, f.root(), dir, DEFAULT).await.unwrap().len(),
        4 + 5 * 8
    );
    assert_eq!(list(&f, f.root(), dir).await, [DEFAULT]);
    // A new owner is judged by the owner's entry.
    chown(&f, inode, 8, 8).await;
    f.open_as(f.user(8), inode, true, false).await.unwrap();
    f.open_as(f.user(7), inode, false, false).await.unwrap();
}

#[tokio::test]
async fn a_repeated_acl_has_one_effect_and_one_answer() {
    let f = Fixture::new();
    let inode = f.file(ROOT, "a").await.inode;
    let request = pb::SetXattrRequest {
        caller: f.root(),
        inode,
        name: bytes(ACCESS),
        value: acl("u::rwx u:7:rwx g::r-x m::rwx o::---"),
        ..Default::default()
    };
    let first = f.ns.set_xattr(request.clone()).await.unwrap();
    let changed = chmod(&f, inode, 0o600).await;
    assert_eq!(f.ns.set_xattr(request).await, Ok(first));
    assert_eq!(f.attr(inode).await.unwrap(), changed);
}
