//! Extended attributes, ACLs among them: the kernel asks for those by name as well.

use bytes::{BufMut, Bytes, BytesMut};
use emberfs_client::{Creds, Result, XattrFlags};
use emberfs_proto::{Error, ErrorCode};

use super::{Handler, virtual_dir};
use crate::backend::Backend;

impl<B: Backend> Handler<B> {
    pub(crate) async fn get_xattr(&self, creds: &Creds, node: u64, name: &[u8]) -> Result<Bytes> {
        let inode = self.inode(node);
        let plain = may_exist(name) && self.inodes.is_plain(inode.0);
        if virtual_dir::is_virtual(node) || plain {
            let what = format!("inode {inode} has no extended attributes");
            return Err(Error::new(ErrorCode::NoAttribute, what));
        }
        self.backend.get_xattr(creds, inode, name).await
    }

    /// `flags` as of setxattr(2).
    pub(crate) async fn set_xattr(
        &self,
        creds: &Creds,
        node: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        let create = flags & libc::XATTR_CREATE.cast_unsigned() != 0;
        let replace = flags & libc::XATTR_REPLACE.cast_unsigned() != 0;
        let flags = XattrFlags { create, replace };
        let inode = self.real(node)?;
        let _changing = self.parents.change(inode.0);
        let result = self
            .backend
            .set_xattr(creds, inode, name, value, flags)
            .await;
        // Its change time moved; an ACL moves the mode, too.
        self.inodes.touched(inode.0);
        self.inodes.decorated(inode.0);
        result
    }

    pub(crate) async fn remove_xattr(&self, creds: &Creds, node: u64, name: &[u8]) -> Result<()> {
        let inode = self.real(node)?;
        let _changing = self.parents.change(inode.0);
        let result = self.backend.remove_xattr(creds, inode, name).await;
        self.inodes.touched(inode.0);
        result
    }

    /// Names, each with a zero byte behind it.
    pub(crate) async fn list_xattr(&self, creds: &Creds, node: u64) -> Result<Bytes> {
        let inode = self.inode(node);
        if virtual_dir::is_virtual(node) || self.inodes.is_plain(inode.0) {
            return Ok(Bytes::new());
        }
        let names = self.backend.list_xattr(creds, inode).await?;
        let mut list = BytesMut::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            list.extend_from_slice(&name);
            list.put_u8(0);
        }
        Ok(list.freeze())
    }
}

/// Whether some inode may have such an attribute. What is wrong with other names is for the server to say.
fn may_exist(name: &[u8]) -> bool {
    let kinds: [&[u8]; 4] = [b"security.", b"user.", b"trusted.", b"system.posix_acl_"];
    kinds
        .iter()
        .any(|kind| name.starts_with(kind) && name != *kind)
}
