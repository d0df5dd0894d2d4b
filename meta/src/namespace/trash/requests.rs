//! Requests about trash, and the sweep of what has expired.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::{check_root, expire, list, parse_spot, policy, remove, restore};
use crate::gc::Window;
use crate::namespace::core::{Operation, Who};
use crate::namespace::tx::Tx;
use crate::namespace::{Namespace, time};

/// Most entries that one request removes.
const MAX_PURGED: usize = 500;

impl Namespace {
    pub(crate) async fn set_trash(&self, req: pb::SetTrashRequest) -> Result<pb::TrashPolicy> {
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| policy::set(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::SetTrash, body)
            .await
    }

    pub(crate) async fn get_trash(&self, req: pb::GetAttrRequest) -> Result<pb::TrashPolicy> {
        let inode = InodeId(req.inode);
        self.look(req.caller.as_ref(), move |tx, _| policy::get(tx, inode))
            .await
    }

    pub(crate) async fn list_trash(&self, req: pb::ListTrashRequest) -> Result<pb::ListTrashReply> {
        let caller = req.caller.clone();
        self.look(caller.as_ref(), move |tx, who| {
            list::list(tx, &who.cred, &req)
        })
        .await
    }

    /// Answers once everything is back.
    pub(crate) async fn restore_trash(
        &self,
        req: pb::RestoreTrashRequest,
    ) -> Result<pb::RestoreTrashReply> {
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| restore::restore(tx, &who.cred, &req);
        let reply = self
            .change(caller.as_ref(), Operation::RestoreTrash, body)
            .await?;
        self.sweep_refills().await?;
        Ok(reply)
    }

    pub(crate) async fn purge_trash(
        &self,
        req: pb::PurgeTrashRequest,
    ) -> Result<pb::PurgeTrashReply> {
        if req.spots.len() > MAX_PURGED {
            let what = format!(
                "{} names in one request; at most {MAX_PURGED}",
                req.spots.len()
            );
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| {
            check_root(&who.cred)?;
            let mut purged = 0;
            for spot in &req.spots {
                let spot = parse_spot(spot)?;
                if let Some(entry) = tx.get(&spot.entry())? {
                    remove(tx, &spot, &entry, true)?;
                    purged += 1;
                }
            }
            Ok(pb::PurgeTrashReply { purged })
        };
        let reply = self
            .change(caller.as_ref(), Operation::PurgeTrash, body)
            .await?;
        self.core.garbage.notify_one();
        Ok(reply)
    }

    /// Refills directories that were restored.
    pub(crate) async fn sweep_refills(&self) -> Result<()> {
        while self.blocking(|core| core.write(restore::refill)).await? {}
        Ok(())
    }

    /// Removes what has expired.
    pub(crate) async fn sweep_trash(&self, window: &mut Window) -> Result<()> {
        let (from, until) = (window.begin(), time::nanos(time::now()));
        while self
            .blocking(move |core| core.write(|tx| expire(tx, from, until)))
            .await?
        {}
        window.seen(until);
        Ok(())
    }
}
