//! Clients that went away: their sessions, the length of what they wrote, their records.

use std::sync::Arc;
use std::time::Instant;

use emberfs_proto::Result;
use emberfs_proto::ids::ClientId;
use futures::StreamExt;

use super::core::Core;
use super::length;
use super::ops::sync::Settled;
use super::records::ClientRecord;
use super::{Namespace, keys, usage};
use crate::sessions::Orphan;

/// Orphaned sessions settled at once.
const PARALLEL: usize = 16;

impl Namespace {
    /// Ends what departed clients left. What cannot be ended now (no replica of a chain answers) stays
    /// for the next call.
    pub(crate) async fn expire(self: &Arc<Self>, now: Instant) -> Result<()> {
        let orphans = self.core.sessions.expire(now);
        self.expire_locks(now).await?;
        let ends = futures::stream::iter(orphans).map(|orphan| async move {
            if let Err(error) = self.end_orphan(orphan).await {
                let Orphan { inode, session, .. } = orphan;
                tracing::warn!(%inode, %session, %error, "cannot settle a departed client's file yet");
            }
        });
        ends.buffer_unordered(PARALLEL).collect::<()>().await;
        for (client, attach) in self.core.sessions.gone() {
            self.blocking(move |core| core.forget_client(client, attach))
                .await?;
        }
        Ok(())
    }

    async fn end_orphan(self: &Arc<Self>, orphan: Orphan) -> Result<()> {
        if orphan.write {
            while !self.settle_orphan(orphan).await? {}
        }
        if self.core.sessions.remove(orphan.inode, orphan.session) {
            self.core.garbage.notify_one();
        }
        Ok(())
    }

    /// Sets the length to what the chunks say and ends the session; false if a truncation came
    /// between.
    async fn settle_orphan(self: &Arc<Self>, orphan: Orphan) -> Result<bool> {
        let Orphan { inode, session, .. } = orphan;
        self.finish_trim(inode).await?;
        let file = self
            .blocking(move |core| core.read(|tx| tx.inode(inode)))
            .await?;
        let settled = match &file {
            // Without names the length interests nobody.
            Some(file) if file.nlink > 0 => {
                let end = self.chunks.end(inode, file.file_layout()?).await?;
                let epoch = file.epoch();
                Some(Settled { epoch, end })
            }
            _ => None,
        };
        self.blocking(move |core| {
            core.write(|tx| {
                // The bytes are there already.
                tx.ignore_limits();
                let file = tx.inode(inode)?;
                if settled.is_none() && file.as_ref().is_some_and(|file| file.nlink > 0) {
                    // It was given its first name meanwhile.
                    return Ok(false);
                }
                if let (Some(settled), Some(mut file)) = (settled, file) {
                    if file.epoch() != settled.epoch || tx.trim_intent(inode)?.is_some() {
                        return Ok(false);
                    }
                    let before = file.size;
                    let told = length::Told {
                        end: settled.end,
                        epoch: file.epoch,
                        settle: false,
                    };
                    length::report(&mut file, told, None)?;
                    if file.size > before {
                        // The writer cannot say any more what it left out.
                        file.sparse = true;
                        file.mtime = tx.now;
                        file.ctime = tx.now;
                        tx.put_inode(&file);
                    }
                }
                tx.delete(&keys::session(inode, session));
                usage::give_back(tx, [inode])?;
                Ok(true)
            })
        })
        .await
    }
}

impl Core {
    /// Forgets the answers to requests that the client has acknowledged.
    pub(crate) fn forget_answers(&self, client: ClientId, upto: u64) -> Result<()> {
        self.write(|tx| {
            tx.delete_span(&keys::answers_up_to(client, upto));
            if let Some(mut record) = tx.get::<ClientRecord>(&keys::client(client))? {
                record.acknowledged = upto;
                tx.put(&keys::client(client), &record);
            }
            Ok(())
        })?;
        self.sessions.pruned(client, upto);
        Ok(())
    }

    /// Forgets a departed client, unless it is back.
    fn forget_client(&self, client: ClientId, attach: u64) -> Result<()> {
        if !self.sessions.is_present(client) {
            self.write(|tx| {
                let record: Option<ClientRecord> = tx.get(&keys::client(client))?;
                if record.is_none_or(|record| record.attach == attach) {
                    tx.delete(&keys::client(client));
                    tx.delete_span(&keys::answers_up_to(client, u64::MAX));
                }
                Ok(())
            })?;
        }
        self.sessions.forget(client);
        Ok(())
    }
}
