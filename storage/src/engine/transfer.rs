//! Carries plans out: moves a chunk's bytes between memory, its old block and its new one.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::checksum::crc32;
use emberfs_proto::ids::{ChunkKey, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};
use futures::future::try_join_all;

use super::alloc::Block;
use super::classes::{Class, Loc};
use super::core::{Core, Hold, Touch};
use super::plan::{Edit, Placement, Plan, plan};
use super::record::{Content, Stamp};
use super::types::{Durability, Mark};

/// New bytes for a chunk.
pub(super) struct Change<'a> {
    pub(super) base: Option<&'a Content>,
    pub(super) edit: Edit,
    pub(super) data: Bytes,
    /// One per fragment of the data.
    pub(super) sums: &'a [u32],
    pub(super) stamp: Stamp,
    /// Writes before this one.
    pub(super) recent: Arc<[Mark]>,
    pub(super) page: u32,
    pub(super) chunk: u32,
}

/// What [`Core::store`] has done.
pub(super) struct Stored {
    pub(super) content: Content,
    /// Pins the content's block until a record owns it.
    pub(super) block: Option<Arc<Block>>,
    /// The block that was written to and not flushed.
    pub(super) unflushed: Option<Loc>,
}

impl Core {
    /// Writes the new content to the disk, which [`Self::flush_block`] makes durable. Committed bytes stay as they are.
    pub(super) async fn store(&self, hold: &Hold, change: Change<'_>) -> Result<Stored> {
        let touch = &hold.touch;
        let Change {
            base,
            edit,
            data,
            sums,
            stamp,
            recent,
            page,
            chunk,
        } = change;
        let Some(plan) = plan(base, edit, data.as_ptr() as usize, page, chunk) else {
            let what = format!("{touch} would exceed the largest chunk");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        };
        let old_block = base
            .and_then(|b| b.block)
            .map(|loc| Arc::new(self.map.allocator.pin(loc)));
        let block = match plan.placement {
            Placement::Nothing => None,
            Placement::Keep(_) | Placement::InPlace(_) => old_block.clone(),
            Placement::Fresh(class) => Some(Arc::new(self.allocate(class).await?)),
        };
        let old_sums: &[u32] = base.map_or(&[], |b| &b.sums);
        let buffers = self
            .read_regions(touch, &plan, old_sums, old_block.as_ref())
            .await?;
        let sums = plan.sums(old_sums, sums, |range| {
            let found = plan.regions.iter().zip(&buffers).find(|(region, _)| {
                region.read.start <= range.start && range.end <= region.read.end
            });
            let (region, buf) = found.expect("the plan reads every page that it cuts");
            crc32(&buf[within(&range, region.buf.start)])
        });
        let mut unflushed = None;
        if let Some(block) = &block
            && self
                .write_regions(hold, &plan, buffers, &data, block)
                .await?
        {
            unflushed = Some(block.loc());
        }
        let content = Content {
            stamp,
            len: plan.len(),
            high_water: plan.high_water,
            block: block.as_ref().map(|block| block.loc()),
            sums: sums.into(),
            recent,
        };
        Ok(Stored {
            content,
            block,
            unflushed,
        })
    }

    pub(super) async fn allocate(&self, class: Class) -> Result<Block> {
        match self.map.allocate(&self.space, class).await {
            Err(error) if error.code == ErrorCode::NoSpace => {
                // Blocks that commits freed may wait for a flush.
                self.flush_index().await?;
                self.map.allocate(&self.space, class).await
            }
            other => other,
        }
    }

    async fn read_regions(
        &self,
        touch: &Touch,
        plan: &Plan,
        sums: &[u32],
        old_block: Option<&Arc<Block>>,
    ) -> Result<Vec<AlignedBuf>> {
        try_join_all(plan.regions.iter().map(|region| async move {
            let Some(block) = old_block.filter(|_| !region.read.is_empty()) else {
                return Ok(AlignedBuf::new(region.buf.len()));
            };
            let old = self.read_block(touch, block, region.read.clone()).await?;
            for (n, valid) in plan.pages_to_verify(region) {
                if crc32(&old[within(&valid, region.read.start)]) != sums[n as usize] {
                    return Err(self.health.mismatch(format_args!("{touch} page {n}")));
                }
            }
            if region.read == region.buf {
                return Ok(old);
            }
            let mut buf = AlignedBuf::new(region.buf.len());
            buf[within(&region.read, region.buf.start)].copy_from_slice(&old);
            Ok(buf)
        }))
        .await
    }

    /// Reads a range of a block, whole sectors.
    pub(super) async fn read_block(
        &self,
        touch: &Touch,
        block: &Arc<Block>,
        range: Range<u32>,
    ) -> Result<AlignedBuf> {
        let loc = block.loc();
        let file = self.file(loc.class)?;
        let buf = AlignedBuf::new(range.len());
        let read = self
            .ring
            .read(file, loc.start() + u64::from(range.start), buf, block)
            .await?;
        read.map_err(|error| {
            self.health
                .read_failed(format_args!("{touch} in {loc}"), &error)
        })
    }

    async fn write_regions(
        &self,
        hold: &Hold,
        plan: &Plan,
        buffers: Vec<AlignedBuf>,
        data: &Bytes,
        block: &Arc<Block>,
    ) -> Result<bool> {
        let mut writes: Vec<(u32, Bytes)> = Vec::with_capacity(3);
        for (region, mut buf) in plan.regions.iter().zip(buffers) {
            if !region.write.is_empty() {
                plan.fill(region, &mut buf, data);
                let bytes = buf.freeze().slice(within(&region.write, region.buf.start));
                writes.push((region.write.start, bytes));
            }
        }
        if !plan.direct.is_empty() {
            let bytes = data.slice(within(&plan.direct, plan.data().start));
            writes.push((plan.direct.start, bytes));
        }
        if writes.is_empty() {
            return Ok(false);
        }
        self.write_pieces(hold, writes, block).await?;
        Ok(true)
    }

    /// Writes all of a fresh block's bytes, whole sectors, as durably as the engine is.
    pub(super) async fn write_block(
        &self,
        hold: &Hold,
        bytes: Bytes,
        block: &Arc<Block>,
    ) -> Result<()> {
        self.write_pieces(hold, vec![(0, bytes)], block).await?;
        let Touch { target, chunk, .. } = hold.touch;
        self.flush_block(target, chunk, block.loc()).await
    }

    /// Makes what was written to a block durable, if the engine is.
    pub(super) async fn flush_block(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        loc: Loc,
    ) -> Result<()> {
        if self.durability == Durability::Power {
            let flushed = self.ring.flush(loc.class, self.file(loc.class)?).await?;
            flushed.map_err(|e| {
                self.health
                    .write_failed(format_args!("target {target} chunk {chunk} to {loc}"), &e)
            })?;
        }
        Ok(())
    }

    async fn write_pieces(
        &self,
        hold: &Hold,
        writes: Vec<(u32, Bytes)>,
        block: &Arc<Block>,
    ) -> Result<()> {
        let loc = block.loc();
        let file = self.file(loc.class)?;
        let touch = &hold.touch;
        let failed = |e: std::io::Error| {
            self.health
                .write_failed(format_args!("{touch} to {loc}"), &e)
        };
        try_join_all(writes.into_iter().map(|(at, bytes)| async move {
            let at = loc.start() + u64::from(at);
            self.ring
                .write(file, at, bytes, block, Some(&hold.gate))
                .await?
                .map_err(failed)
        }))
        .await?;
        Ok(())
    }

    fn file(&self, class: Class) -> Result<&Arc<std::fs::File>> {
        self.map.files.get(class).ok_or_else(|| {
            let what = format!("disk {}: a block of an unopened file", self.health.disk());
            Error::new(ErrorCode::Internal, what)
        })
    }
}

/// Where `range` lies in a buffer that begins at `base`.
pub(super) fn within(range: &Range<u32>, base: u32) -> Range<usize> {
    (range.start - base) as usize..(range.end - base) as usize
}
