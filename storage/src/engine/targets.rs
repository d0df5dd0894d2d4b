//! Targets: creating, dropping, listing what they hold; and the end of the engine.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use emberfs_proto::ids::{ChunkIndex, ChunkKey, InodeId, TargetId};
use emberfs_proto::{ErrorCode, Result};
use tokio::sync::RwLock as AsyncRwLock;

use super::core::{Alive, Core};
use super::index::{self, Op, TargetState};
use super::types::ChunkMeta;

/// Chunks that are dropped in one batch.
pub(super) const DROP_BATCH: usize = 1000;

impl Core {
    pub(super) async fn create_target(&self, target: TargetId) -> Result<()> {
        if self.targets.read().contains_key(&target) {
            return Ok(());
        }
        self.health.writable()?;
        self.change_index(vec![Op::PutTarget(target, TargetState::Live)], Vec::new())
            .await?;
        if let Entry::Vacant(entry) = self.targets.write().entry(target) {
            entry.insert(Arc::new(AsyncRwLock::new(Alive(true))));
        }
        Ok(())
    }

    pub(super) async fn drop_target(&self, target: TargetId) -> Result<()> {
        let mut alive = match self.enter_alone(target).await {
            Err(error) if error.code == ErrorCode::NotServing => return Ok(()),
            other => other?,
        };
        self.change_index(
            vec![Op::PutTarget(target, TargetState::Dropping)],
            Vec::new(),
        )
        .await?;
        alive.0 = false;
        self.cache.forget(target);
        let (from, to) = bounds(target);
        loop {
            let (from, to) = (from.clone(), to.clone());
            let found = self
                .query(move |i| i.list(&from, to.as_deref(), DROP_BATCH))
                .await?;
            let last = found.len() < DROP_BATCH;
            let frees = found
                .iter()
                .flat_map(|(_, record)| record.blocks())
                .collect();
            let mut ops: Vec<Op> = found
                .iter()
                .map(|(chunk, _)| Op::Delete(index::key(target, *chunk)))
                .collect();
            if last {
                ops.push(Op::DeleteTarget(target));
            }
            self.change_index(ops, frees).await?;
            if last {
                break;
            }
        }
        self.targets.write().remove(&target);
        Ok(())
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the answer may come from the disk one day"
    )]
    pub(super) fn list_targets(&self) -> Result<Vec<TargetId>> {
        let mut all: Vec<TargetId> = self.targets.read().keys().copied().collect();
        all.sort_unstable();
        Ok(all)
    }

    pub(super) async fn list(
        &self,
        target: TargetId,
        after: Option<ChunkKey>,
        limit: usize,
    ) -> Result<Vec<(ChunkKey, ChunkMeta)>> {
        let (from, to) = bounds(target);
        let from = after.map_or(from, |chunk| behind(target, chunk));
        self.page(target, from, to, limit).await
    }

    pub(super) async fn list_inode(
        &self,
        target: TargetId,
        inode: InodeId,
        after: Option<ChunkKey>,
        limit: usize,
    ) -> Result<Vec<(ChunkKey, ChunkMeta)>> {
        let first = ChunkKey::new(inode, 0);
        let after = after.filter(|&chunk| chunk >= first);
        let from = after.map_or(index::key(target, first).to_vec(), |c| behind(target, c));
        let to = behind(target, ChunkKey::new(inode, u32::MAX));
        self.page(target, from, Some(to), limit).await
    }

    async fn page(
        &self,
        target: TargetId,
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<(ChunkKey, ChunkMeta)>> {
        let _alive = self.enter(target).await?;
        let found = self
            .query(move |index| index.list(&from, to.as_deref(), limit))
            .await?;
        Ok(found
            .into_iter()
            .map(|(chunk, record)| (chunk, record.meta()))
            .collect())
    }

    pub(super) async fn last_chunk(
        &self,
        target: TargetId,
        inode: InodeId,
    ) -> Result<Option<(ChunkIndex, u32)>> {
        let _alive = self.enter(target).await?;
        self.query(move |index| index.last_chunk(target, inode))
            .await
    }

    pub(super) async fn shutdown(&self) {
        let locks: Vec<_> = std::mem::take(&mut *self.targets.write())
            .into_values()
            .collect();
        for lock in locks {
            // Operations in work hold it; those that wait for it find the target gone.
            lock.write_owned().await.0 = false;
        }
        self.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the disk engine panicked");
                }
            }
        });
        // Fails only when the runtime itself ends.
        let _ = joined.await;
    }
}

/// All keys of a target; no end for the last possible target.
pub(super) fn bounds(target: TargetId) -> (Vec<u8>, Option<Vec<u8>>) {
    let end = target
        .0
        .checked_add(1)
        .map(|next| next.to_be_bytes().to_vec());
    (target.0.to_be_bytes().to_vec(), end)
}

/// The first possible key after a chunk's.
fn behind(target: TargetId, chunk: ChunkKey) -> Vec<u8> {
    let mut key = index::key(target, chunk).to_vec();
    key.push(0);
    key
}
