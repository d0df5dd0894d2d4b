//! Reads.
//!
//! The pages that cover the range are read whole. A page that is returned whole goes out with its
//! stored checksum, unlooked at: the reading client verifies it. A page that is returned in
//! part is verified here, and its fragment gets a checksum of its own; with [`Verify::Transfer`] only
//! the sectors of the fragment are read, and nothing is verified.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use emberfs_proto::checksum::{crc32, fragments, verify_fragments};
use emberfs_proto::ids::{ChunkKey, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};

use super::alloc::Block;
use super::cache::Slot;
use super::classes::{SECTOR, sector_up};
use super::core::{Core, Touch};
use super::record::{Content, Pending, Record};
use super::transfer::within;
use super::types::{ReadData, ReadVersion, Verify};

/// A pending version that is replaced under a reader this often in a row makes it come back later.
const ATTEMPTS: usize = 4;

/// One version of a chunk, pinned.
pub(super) struct Picked {
    pub(super) content: Content,
    pub(super) page: u32,
    pub(super) block: Option<Arc<Block>>,
    pub(super) pending: bool,
}

impl Touch {
    /// Waits until the bytes of what was picked are on their way no more.
    pub(super) async fn settled(&self, picked: &Picked) {
        if picked.pending && self.entry.writing.load(Ordering::Acquire) {
            drop(self.entry.gate.lock().await);
        }
    }
}

impl Core {
    /// See [`Engine::read`](super::Engine::read).
    pub(super) async fn read(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        which: ReadVersion,
        bytes: Range<u32>,
        verify: Verify,
    ) -> Result<ReadData> {
        let touch = self.touch(target, chunk).await?;
        for _ in 0..ATTEMPTS {
            let picked = self.pick(&touch, which).await?;
            touch.settled(&picked).await;
            let result = self
                .read_picked(&touch, &picked, bytes.clone(), verify)
                .await;
            // Bytes of a pending version may be overwritten once it is discarded or replaced.
            if !picked.pending || self.is_current(&touch, &picked.content) {
                return result;
            }
        }
        let what = format!("{touch}: its pending version changes all the time");
        Err(Error::new(ErrorCode::Busy, what).retry_after_ms(10))
    }

    /// Chooses the version and pins its block, in one step.
    pub(super) async fn pick(&self, touch: &Touch, which: ReadVersion) -> Result<Picked> {
        if let Slot::Known(record) = &*touch.entry.slot.lock() {
            return self.pick_from(touch, record.as_deref(), which);
        }
        self.record(touch).await?;
        match &*touch.entry.slot.lock() {
            Slot::Known(record) => self.pick_from(touch, record.as_deref(), which),
            Slot::Unknown => Err(self.no_chunk(touch)),
        }
    }

    fn no_chunk(&self, touch: &Touch) -> Error {
        let what = format!("disk {}: {touch} does not exist", self.health.disk());
        Error::new(ErrorCode::ChunkNotFound, what)
    }

    fn pick_from(
        &self,
        touch: &Touch,
        record: Option<&Record>,
        which: ReadVersion,
    ) -> Result<Picked> {
        let none = || self.no_chunk(touch);
        let record = record.ok_or_else(none)?;
        let (content, pending) = match (which, &record.pending) {
            (ReadVersion::Committed, _) | (ReadVersion::Pending, None) => {
                (record.committed.as_ref(), false)
            }
            (ReadVersion::Pending, Some(Pending::Write(content))) => (Some(content), true),
            (ReadVersion::Pending, Some(Pending::Remove(_))) => (None, true),
            (ReadVersion::Exactly(version), pending) => {
                return match pending {
                    Some(Pending::Write(c)) if c.stamp.version == version => {
                        Ok(self.pin(record, c, true))
                    }
                    Some(Pending::Remove(stamp)) if stamp.version == version => Err(none()),
                    _ => match &record.committed {
                        Some(c) if c.stamp.version == version => Ok(self.pin(record, c, false)),
                        _ => Err(not_here(touch, record, version.0)),
                    },
                };
            }
        };
        content
            .map(|c| self.pin(record, c, pending))
            .ok_or_else(none)
    }

    fn pin(&self, record: &Record, content: &Content, pending: bool) -> Picked {
        let block = content
            .block
            .map(|loc| Arc::new(self.map.allocator.pin(loc)));
        Picked {
            content: content.clone(),
            page: record.page_size,
            block,
            pending,
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a step of read()")]
    pub(super) fn is_current(&self, touch: &Touch, content: &Content) -> bool {
        let slot = touch.entry.slot.lock();
        let Slot::Known(Some(record)) = &*slot else {
            return false;
        };
        let same = |c: &Content| Arc::ptr_eq(&c.sums, &content.sums) && c.block == content.block;
        record.committed.as_ref().is_some_and(same)
            || matches!(&record.pending, Some(Pending::Write(c)) if same(c))
    }

    async fn read_picked(
        &self,
        touch: &Touch,
        picked: &Picked,
        bytes: Range<u32>,
        verify: Verify,
    ) -> Result<ReadData> {
        let Picked {
            content,
            page,
            block,
            ..
        } = picked;
        let page = *page;
        let offset = bytes.start;
        let end = content.len.min(bytes.end);
        let answer = |data, checksums| ReadData {
            data,
            checksums,
            chunk_len: content.len,
            version: content.stamp.version,
            page_size: page,
        };
        let Some(block) = block.as_ref().filter(|_| offset < end) else {
            return Ok(answer(Bytes::new(), Vec::new()));
        };
        let unit = match verify {
            Verify::Page => page,
            Verify::Transfer => SECTOR,
        };
        let first = offset - offset % unit;
        let last = end.next_multiple_of(unit).min(sector_up(content.len));
        let buf = self.read_block(touch, block, first..last).await?;
        let mut checksums = Vec::with_capacity(((last - first) / page + 1) as usize);
        for range in fragments(offset, end - offset, page) {
            let n = range.start / page;
            let stored = content.sums[n as usize];
            let valid = n * page..((n + 1) * page).min(content.len);
            if range == valid {
                checksums.push(stored);
                continue;
            }
            if verify == Verify::Page && crc32(&buf[within(&valid, first)]) != stored {
                return Err(self
                    .health
                    .mismatch(format_args!("{touch} page {n} in {}", block.loc())));
            }
            checksums.push(crc32(&buf[within(&range, first)]));
        }
        let data = buf.freeze().slice(within(&(offset..end), first));
        Ok(answer(data, checksums))
    }

    /// See [`Engine::verify`](super::Engine::verify).
    pub(super) async fn verify(&self, target: TargetId, chunk: ChunkKey) -> Result<()> {
        let read = self
            .read(
                target,
                chunk,
                ReadVersion::Committed,
                0..u32::MAX,
                Verify::Page,
            )
            .await?;
        verify_fragments(0, &read.data, read.page_size, &read.checksums).map_err(|bad| {
            let n = bad.start / read.page_size;
            self.health
                .mismatch(format_args!("target {target} chunk {chunk} page {n}"))
        })
    }
}

fn not_here(touch: &Touch, record: &Record, version: u64) -> Error {
    let committed = record.committed_version().0;
    let what = format!("{touch} is at v{committed}, not v{version}");
    if version <= committed {
        Error::new(ErrorCode::StaleChunkVersion, what).newer_version(committed)
    } else {
        Error::new(ErrorCode::MissingVersion, what)
    }
}
