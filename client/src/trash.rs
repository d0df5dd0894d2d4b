//! Trash: what directories keep of what is removed from them. All of it is for root, but the question what holds for one.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Result, pb};

use crate::meta_rpc::rpc;
use crate::{Client, Creds};

impl Client {
    /// Says for how many seconds what is removed from a directory, or from below it, is kept: 0: not at all; `None`: as its
    /// parent says. Holds for what is removed from now on.
    pub async fn set_trash(
        &self,
        creds: &Creds,
        directory: InodeId,
        keep: Option<u64>,
    ) -> Result<pb::TrashPolicy> {
        let request = pb::SetTrashRequest {
            caller: None,
            inode: directory.0,
            keep,
        };
        rpc!(self.core.meta, creds, Changes, set_trash, request)
    }

    /// What holds for a directory.
    pub async fn trash_policy(&self, creds: &Creds, directory: InodeId) -> Result<pb::TrashPolicy> {
        let request = pb::GetAttrRequest {
            caller: None,
            inode: directory.0,
        };
        rpc!(self.core.meta, creds, Reads, get_trash, request)
    }

    /// A page of what is in the trash. `caller` is filled in.
    pub async fn list_trash(
        &self,
        creds: &Creds,
        request: pb::ListTrashRequest,
    ) -> Result<pb::ListTrashReply> {
        rpc!(self.core.meta, creds, Reads, list_trash, request)
    }

    /// Gives a removed name back, and a directory what had been removed from it before. `to`: another directory and name.
    pub async fn restore_trash(
        &self,
        creds: &Creds,
        spot: pb::TrashSpot,
        to: Option<(InodeId, &[u8])>,
    ) -> Result<pb::RestoreTrashReply> {
        let (to_parent, to_name) = to.unwrap_or((InodeId(0), b""));
        let request = pb::RestoreTrashRequest {
            caller: None,
            spot: Some(spot),
            to_parent: to_parent.0,
            to_name: bytes::Bytes::copy_from_slice(to_name),
        };
        rpc!(self.core.meta, creds, Changes, restore_trash, request)
    }

    /// Removes entries for good, at most 500; answers how many were still there.
    pub async fn purge_trash(&self, creds: &Creds, spots: Vec<pb::TrashSpot>) -> Result<u64> {
        let request = pb::PurgeTrashRequest {
            caller: None,
            spots,
        };
        Ok(rpc!(self.core.meta, creds, Changes, purge_trash, request)?.purged)
    }
}
