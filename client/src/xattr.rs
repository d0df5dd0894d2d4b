//! Extended attributes. Access control lists are two of them, in Linux's binary form:
//! `system.posix_acl_access` and `system.posix_acl_default`.

use bytes::Bytes;
use emberfs_proto::ids::InodeId;
use emberfs_proto::xattr::MAX_VALUE_BYTES;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use crate::meta_rpc::rpc;
use crate::write_buffer::Why;
use crate::{Client, Creds, XattrFlags};

/// What a program may do beyond what its user may.
const CAPABILITY: &[u8] = b"security.capability";

fn request(inode: InodeId, name: &[u8]) -> pb::XattrRequest {
    pb::XattrRequest {
        caller: None,
        inode: inode.0,
        name: Bytes::copy_from_slice(name),
    }
}

impl Client {
    /// The value of an attribute; `name` with its prefix (`user.`, `trusted.`, `security.` or an ACL's whole
    /// name). [`ErrorCode::NoAttribute`] if there is none that the caller may know of,
    /// [`ErrorCode::PermissionDenied`], [`ErrorCode::Unsupported`] for any other prefix.
    pub async fn get_xattr(&self, creds: &Creds, inode: InodeId, name: &[u8]) -> Result<Bytes> {
        let request = request(inode, name);
        Ok(rpc!(self.core.meta, creds, Reads, get_xattr, request)?.value)
    }

    /// Sets an attribute. An ACL of no bytes removes it; an access ACL changes the mode as well.
    /// [`ErrorCode::Exists`] and [`ErrorCode::NoAttribute`] as the flags ask for,
    /// [`ErrorCode::ValueTooLarge`] for more than 64 KiB, [`ErrorCode::NoSpace`] when the inode has too
    /// many, [`ErrorCode::NotPermitted`] or [`ErrorCode::PermissionDenied`], [`ErrorCode::InvalidArgument`]
    /// for a name or an ACL that can be none, [`ErrorCode::Unsupported`] for any other prefix.
    pub async fn set_xattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        // Here as well: a message that exceeds what the server reads at all would look like a broken connection.
        if value.len() > MAX_VALUE_BYTES {
            let what = format!(
                "a value of {} bytes for `{}` exceeds {MAX_VALUE_BYTES}",
                value.len(),
                name.escape_ascii()
            );
            return Err(Error::new(ErrorCode::ValueTooLarge, what));
        }
        // Writes take them away; those before this one must not come after it.
        if name == CAPABILITY
            && let Some(state) = self.core.known(inode)
            && let Some(writer) = state.writer()
        {
            self.core.settle(&state, Why::Flush).await;
            self.core.report(&state, &writer).await?;
        }
        let request = pb::SetXattrRequest {
            caller: None,
            inode: inode.0,
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
            create: flags.create,
            replace: flags.replace,
        };
        rpc!(self.core.meta, creds, Changes, set_xattr, request)?;
        Ok(())
    }

    /// Removes an attribute; errors as of [`Self::get_xattr`] and [`Self::set_xattr`]. An ACL need not be there.
    pub async fn remove_xattr(&self, creds: &Creds, inode: InodeId, name: &[u8]) -> Result<()> {
        let request = request(inode, name);
        rpc!(self.core.meta, creds, Changes, remove_xattr, request)?;
        Ok(())
    }

    /// The names of all attributes that the caller may know of, in byte order. Each followed by a NUL, they are at
    /// most 64 KiB.
    pub async fn list_xattr(&self, creds: &Creds, inode: InodeId) -> Result<Vec<Bytes>> {
        let request = pb::GetAttrRequest {
            caller: None,
            inode: inode.0,
        };
        Ok(rpc!(self.core.meta, creds, Reads, list_xattr, request)?.names)
    }
}
