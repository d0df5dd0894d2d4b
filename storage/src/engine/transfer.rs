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
use super::cache::Writing;
use super::classes::{Class, Loc};
use super::core::{Core, Gate, Hold, Touch};
use super::plan::{Edit, Placement, Plan, plan};
use super::record::{Content, Stamp};
use super::ring::BlockWrite;
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

/// What [`Core::store`] has prepared.
pub(super) struct Stored {
    pub(super) content: Content,
    /// Pins the content's block until a record owns it.
    pub(super) block: Option<Arc<Block>>,
    /// What is to be written to it.
    pub(super) bytes: Option<Unwritten>,
}

/// Bytes that are yet to be written to a block. Keeps the chunk's gate.
pub(super) struct Unwritten {
    target: TargetId,
    chunk: ChunkKey,
    /// Of a version whose record may come before them; given up before the gate.
    writing: Option<Writing>,
    gate: Gate,
    block: Arc<Block>,
    /// Where in the block, whole sectors.
    pieces: Vec<(u32, Bytes)>,
}

/// A single piece of at most so many bytes is written and flushed by one request: two would cost a change of threads more.
/// Larger ones share flushes.
const MAX_FLUSHED_AT_ONCE: usize = 64 << 10;

impl Core {
    /// Finds the new content its place on the disk; [`Self::write_durably`] writes it. Committed bytes stay as they are.
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
        let pieces = pieces(&plan, buffers, &data);
        let bytes = block.as_ref().filter(|_| !pieces.is_empty());
        let bytes = bytes.map(|block| Unwritten {
            target: touch.target,
            chunk: touch.chunk,
            writing: Some(Writing::begin(&touch.entry)),
            gate: Arc::clone(&hold.gate),
            block: Arc::clone(block),
            pieces,
        });
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
            bytes,
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

    /// Writes all of a fresh block's bytes, whole sectors, as durably as the engine is.
    pub(super) async fn write_block(
        &self,
        hold: &Hold,
        bytes: Bytes,
        block: &Arc<Block>,
    ) -> Result<()> {
        let Touch { target, chunk, .. } = hold.touch;
        self.write_durably(Unwritten {
            target,
            chunk,
            writing: None,
            gate: Arc::clone(&hold.gate),
            block: Arc::clone(block),
            pieces: vec![(0, bytes)],
        })
        .await
    }

    /// Writes, as durably as the engine is.
    pub(super) async fn write_durably(&self, bytes: Unwritten) -> Result<()> {
        let Unwritten {
            target,
            chunk,
            writing,
            gate,
            block,
            pieces,
        } = bytes;
        let loc = block.loc();
        let file = self.file(loc.class)?;
        let at_once = matches!(&pieces[..], [(_, bytes)] if bytes.len() <= MAX_FLUSHED_AT_ONCE);
        let durable = at_once && self.durability == Durability::Power;
        let failed = |e: std::io::Error| {
            self.health
                .write_failed(format_args!("target {target} chunk {chunk} to {loc}"), &e)
        };
        try_join_all(pieces.into_iter().map(|(at, data)| {
            let (block, gate) = (&block, &gate);
            async move {
                let write = BlockWrite {
                    at: loc.start() + u64::from(at),
                    data,
                    durable,
                };
                let written = self.ring.write(file, write, block, Some(gate)).await?;
                written.map_err(failed)
            }
        }))
        .await?;
        drop((writing, gate));
        if durable {
            return Ok(());
        }
        self.flush_block(target, chunk, loc).await
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

    fn file(&self, class: Class) -> Result<&Arc<std::fs::File>> {
        self.map.files.get(class).ok_or_else(|| {
            let what = format!("disk {}: a block of an unopened file", self.health.disk());
            Error::new(ErrorCode::Internal, what)
        })
    }
}

/// What a plan writes to its block, and where.
fn pieces(plan: &Plan, buffers: Vec<AlignedBuf>, data: &Bytes) -> Vec<(u32, Bytes)> {
    let mut pieces = Vec::with_capacity(3);
    for (region, mut buf) in plan.regions.iter().zip(buffers) {
        if !region.write.is_empty() {
            plan.fill(region, &mut buf, data);
            let bytes = buf.freeze().slice(within(&region.write, region.buf.start));
            pieces.push((region.write.start, bytes));
        }
    }
    if !plan.direct.is_empty() {
        let bytes = data.slice(within(&plan.direct, plan.data().start));
        pieces.push((plan.direct.start, bytes));
    }
    pieces
}

/// Where `range` lies in a buffer that begins at `base`.
pub(super) fn within(range: &Range<u32>, base: u32) -> Range<usize> {
    (range.start - base) as usize..(range.end - base) as usize
}
