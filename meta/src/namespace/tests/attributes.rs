//! What tests of extended attributes and ACLs do again and again.

use bytes::Bytes;
use emberfs_proto::Result;
use emberfs_proto::pb::{self, FileKind};

use super::fixture::*;

pub(super) async fn set(
    f: &Fixture,
    caller: Option<pb::Caller>,
    inode: u64,
    name: &str,
    value: &[u8],
) -> Result<pb::Attr> {
    let request = pb::SetXattrRequest {
        caller,
        inode,
        name: bytes(name),
        value: Bytes::copy_from_slice(value),
        ..Default::default()
    };
    Ok(f.ns.set_xattr(request).await?.attr.unwrap())
}

pub(super) fn request(caller: Option<pb::Caller>, inode: u64, name: &str) -> pb::XattrRequest {
    let name = bytes(name);
    pb::XattrRequest {
        caller,
        inode,
        name,
    }
}

pub(super) async fn get(
    f: &Fixture,
    caller: Option<pb::Caller>,
    inode: u64,
    name: &str,
) -> Result<Bytes> {
    let request = request(caller, inode, name);
    Ok(f.ns.get_xattr(request).await?.value)
}

pub(super) async fn remove(
    f: &Fixture,
    caller: Option<pb::Caller>,
    inode: u64,
    name: &str,
) -> Result<pb::Attr> {
    let request = request(caller, inode, name);
    Ok(f.ns.remove_xattr(request).await?.attr.unwrap())
}

pub(super) async fn list(f: &Fixture, caller: Option<pb::Caller>, inode: u64) -> Vec<String> {
    let request = pb::GetAttrRequest { caller, inode };
    let names = f.ns.list_xattr(request).await.unwrap().names;
    let names = names.iter();
    names
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}

async fn setattr(f: &Fixture, request: pb::SetAttrRequest) -> pb::Attr {
    f.ns.setattr(request).await.unwrap().attr.unwrap()
}

pub(super) async fn chmod(f: &Fixture, inode: u64, mode: u32) -> pb::Attr {
    let request = pb::SetAttrRequest {
        caller: f.root(),
        inode,
        mode: Some(mode),
        ..Default::default()
    };
    setattr(f, request).await
}

pub(super) async fn chown(f: &Fixture, inode: u64, uid: u32, gid: u32) -> pb::Attr {
    let request = pb::SetAttrRequest {
        caller: f.root(),
        inode,
        uid: Some(uid),
        gid: Some(gid),
        ..Default::default()
    };
    setattr(f, request).await
}

pub(super) async fn symlink(f: &Fixture, parent: u64, name: &str) -> u64 {
    let request = pb::SymlinkRequest {
        caller: f.root(),
        parent,
        name: bytes(name),
        target: bytes("target"),
    };
    f.ns.symlink(request).await.unwrap().attr.unwrap().inode
}

pub(super) async fn mknod(f: &Fixture, parent: u64, name: &str, mode: u32, umask: u32) -> pb::Attr {
    let request = pb::MknodRequest {
        caller: f.root(),
        parent,
        name: bytes(name),
        kind: FileKind::Fifo as i32,
        mode,
        umask,
        ..Default::default()
    };
    f.ns.mknod(request).await.unwrap().attr.unwrap()
}
