//! Completing truncations on the chains.
//!
//! Whoever needs an inode whose truncation is not complete completes it; a restart or a caller
//! that went away leaves it to the next one, and to a sweep. Per inode one completes at a time,
//! and looks at the intent again when it is its turn: a cut that ran twice could, the second time, hit bytes
//! written after the first had been answered. For the same reason a cut is not abandoned when its
//! caller goes away.

use std::collections::HashMap;
use std::sync::Arc;

use emberfs_proto::ids::InodeId;
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, Result};
use futures::StreamExt;
use parking_lot::Mutex;

use super::{Namespace, keys};

/// Intents that one sweep looks at.
const SWEEP: usize = 256;
/// Inodes cut at once by a sweep.
const PARALLEL: usize = 16;

/// One turn per inode at a time.
#[derive(Default)]
pub(crate) struct Turns {
    inodes: Mutex<HashMap<InodeId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    fn of(&self, inode: InodeId) -> Arc<tokio::sync::Mutex<()>> {
        self.inodes.lock().entry(inode).or_default().clone()
    }

    /// Forgets a lock that nobody holds or waits for.
    fn tidy(&self, inode: InodeId, turn: Arc<tokio::sync::Mutex<()>>) {
        let mut inodes = self.inodes.lock();
        drop(turn);
        if inodes
            .get(&inode)
            .is_some_and(|turn| Arc::strong_count(turn) == 1)
        {
            inodes.remove(&inode);
        }
    }
}

impl Namespace {
    /// Completes the truncation of an inode, if there is one.
    pub(crate) async fn finish_trim(self: &Arc<Self>, inode: InodeId) -> Result<()> {
        let this = self.clone();
        let work = tokio::spawn(async move {
            let turn = this.trims.of(inode);
            let result = {
                let _turn = turn.lock().await;
                this.cut(inode).await
            };
            this.trims.tidy(inode, turn);
            result
        });
        work.await.unwrap_or_else(|_| {
            let what =
                format!("the truncation of inode {inode} was interrupted; it will be completed");
            Err(Error::new(ErrorCode::Unavailable, what))
        })
    }

    async fn cut(&self, inode: InodeId) -> Result<()> {
        let intent = self
            .blocking(move |core| core.read(|tx| tx.trim_intent(inode)))
            .await?;
        let Some(intent) = intent else {
            return Ok(());
        };
        let layout = Layout::try_from(&intent.layout)?;
        self.chunks.cut(inode, layout, intent.size).await?;
        self.blocking(move |core| {
            core.write(|tx| {
                if tx
                    .trim_intent(inode)?
                    .is_some_and(|now| now.epoch == intent.epoch)
                {
                    tx.delete(&keys::trim(inode));
                }
                Ok(())
            })
        })
        .await
    }

    /// Completes truncations that nobody waits for any more; answers how many could not be.
    pub(crate) async fn sweep_trims(self: &Arc<Self>) -> Result<u64> {
        let found = self
            .blocking(|core| core.read(|tx| tx.scan(&keys::trims(), SWEEP)))
            .await?;
        let keys = found.iter();
        let inodes: Vec<_> = keys.filter_map(|(key, _)| keys::parse_trim(key)).collect();
        let results: Vec<_> = futures::stream::iter(inodes)
            .map(|inode| self.finish_trim(inode))
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let failed = results.iter().filter_map(|result| result.as_ref().err());
        Ok(failed
            .inspect(|error| tracing::debug!(%error, "cannot complete a truncation yet"))
            .count() as u64)
    }

    /// How many inodes are being cut, for tests.
    #[cfg(test)]
    pub(crate) fn trims_in_progress(&self) -> usize {
        self.trims.inodes.lock().len()
    }
}
