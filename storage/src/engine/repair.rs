//! Damage: finding pages whose bytes are not those that were written, and putting the right ones back.
//!
//! A chunk's record is trusted (the index checks itself) and knows the checksum of every page. So a
//! repair needs no protocol along the chain: bytes from anywhere are the right ones exactly when
//! they match the record. It works like any other change: the whole block is written to a fresh one,
//! durably, and only then does the record name the new one, in one step and under the chunk's gate.
//! Readers keep the old block; a crash leaves either. A write that came first makes the repair void.
//!
//! Rejected: writing the page in place. A torn write would damage its neighbours in the same
//! sector, and a reader could see half of it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::checksum::crc32;
use emberfs_proto::ids::{ChunkKey, ChunkVersion, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};

use super::alloc::Block;
use super::classes::{Loc, sector_up};
use super::core::{Core, Touch};
use super::record::{Content, Pending, Record};
use super::transfer::within;
use super::types::{BadPage, Damage, ReadVersion};

/// The bytes of a block, and which pages the device would not give.
struct Image {
    buf: AlignedBuf,
    unreadable: Vec<u32>,
}

impl Core {
    /// See [`Engine::damage`](super::Engine::damage).
    pub(super) async fn damage(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        which: ReadVersion,
    ) -> Result<Damage> {
        let touch = self.touch(target, chunk).await?;
        let picked = self.pick(&touch, which).await?;
        touch.settled(&picked).await;
        let (content, page) = (&picked.content, picked.page);
        let mut damage = Damage {
            version: content.stamp.version,
            len: content.len,
            page_size: page,
            pages: Vec::new(),
        };
        let Some(block) = &picked.block else {
            return Ok(damage);
        };
        let image = self.read_image(&touch, block, content.len, page).await?;
        for (n, &checksum) in (0u32..).zip(content.sums.iter()) {
            let range = n * page..((n + 1) * page).min(content.len);
            let unreadable = image.unreadable.contains(&n);
            if unreadable || crc32(&image.buf[within(&range, 0)]) != checksum {
                damage.pages.push(BadPage { range, checksum });
            }
        }
        if picked.pending && !self.is_current(&touch, content) {
            // Its bytes may have been overwritten meanwhile: nothing is known of what is there now.
            let what = format!("{touch}: its pending version has just changed");
            return Err(Error::new(ErrorCode::Busy, what).retry_after_ms(10));
        }
        if let Some(first) = damage.pages.first() {
            let (count, page) = (damage.pages.len(), first.range.start / page);
            // Counted and logged; the caller decides what becomes of it.
            let _ = self.health.mismatch(format_args!(
                "{touch} {count} pages from page {page} in {}",
                block.loc()
            ));
        }
        Ok(damage)
    }

    /// See [`Engine::repair`](super::Engine::repair).
    pub(super) async fn repair(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        version: ChunkVersion,
        pages: &[(u32, Bytes)],
    ) -> Result<bool> {
        self.health.writable()?;
        let hold = self.hold(target, chunk).await?;
        let Some(old) = hold.record.clone() else {
            return Ok(false);
        };
        let Some((content, loc)) = old.content(version).and_then(|c| Some((c, c.block?))) else {
            return Ok(false);
        };
        let page = old.page_size;
        for (offset, bytes) in pages {
            let end = offset.saturating_add(page).min(content.len);
            let whole = offset.is_multiple_of(page) && *offset < end;
            let sum = whole.then(|| content.sums[(offset / page) as usize]);
            if bytes.len() != (end - offset.min(&end)) as usize || sum != Some(crc32(bytes)) {
                let what = format!(
                    "{}: the bytes at {offset} are not those of {version}",
                    hold.touch
                );
                return Err(Error::new(ErrorCode::ChecksumMismatch, what));
            }
        }
        let end = old.end_in(loc);
        let old_block = Arc::new(self.map.allocator.pin(loc));
        let Image {
            mut buf,
            unreadable,
        } = self.read_image(&hold.touch, &old_block, end, page).await?;
        for (offset, bytes) in pages {
            let range = *offset..*offset + bytes.len() as u32;
            buf[within(&range, 0)].copy_from_slice(bytes);
        }
        let given = |n: u32| {
            let until = ((n + 1) * page).min(end);
            let covers =
                |(at, bytes): &(u32, Bytes)| *at == n * page && *at + bytes.len() as u32 == until;
            pages.iter().any(covers)
        };
        if let Some(n) = unreadable.into_iter().find(|&n| !given(n)) {
            let what = format!("{} page {n} in {loc} cannot be read", hold.touch);
            return Err(Error::new(ErrorCode::DiskError, what));
        }
        let block = Arc::new(self.allocate(loc.class).await?);
        self.write_block(&hold, buf.freeze(), &block).await?;
        let new = old.moved(loc, block.loc());
        self.set_record(hold, Some(new), true, Some(block)).await?;
        Ok(true)
    }

    /// Reads the first `len` bytes of a block. Where the device fails, page by page, so that one bad
    /// sector costs one page.
    async fn read_image(
        &self,
        touch: &Touch,
        block: &Arc<Block>,
        len: u32,
        page: u32,
    ) -> Result<Image> {
        let end = sector_up(len);
        match self.read_block(touch, block, 0..end).await {
            Err(error) if error.code == ErrorCode::DiskError => {}
            read => {
                return Ok(Image {
                    buf: read?,
                    unreadable: Vec::new(),
                });
            }
        }
        let mut image = Image {
            buf: AlignedBuf::new(end as usize),
            unreadable: Vec::new(),
        };
        for n in 0..end.div_ceil(page) {
            let range: Range<u32> = n * page..((n + 1) * page).min(end);
            match self.read_block(touch, block, range.clone()).await {
                Ok(bytes) => image.buf[within(&range, 0)].copy_from_slice(&bytes),
                Err(error) if error.code == ErrorCode::DiskError => image.unreadable.push(n),
                Err(error) => return Err(error),
            }
        }
        Ok(image)
    }
}

impl Record {
    /// The bytes of a version, committed or pending.
    fn content(&self, version: ChunkVersion) -> Option<&Content> {
        self.contents().find(|c| c.stamp.version == version)
    }

    fn contents(&self) -> impl Iterator<Item = &Content> {
        let pending = match &self.pending {
            Some(Pending::Write(content)) => Some(content),
            _ => None,
        };
        self.committed.iter().chain(pending)
    }

    /// Where the last byte that a version has in a block ends: a pending append lies behind the
    /// committed bytes of the same block.
    fn end_in(&self, loc: Loc) -> u32 {
        let ends = self.contents().filter(|c| c.block == Some(loc));
        ends.map(|c| c.len).max().unwrap_or(0)
    }

    /// The same versions, with another block in the place of `from`. Nobody reads the new one yet, so
    /// its high water is what these versions need.
    fn moved(&self, from: Loc, to: Loc) -> Self {
        let committed = self.committed.as_ref().filter(|c| c.block == Some(from));
        let floor = committed.map_or(0, |c| c.len);
        let moved = |c: &Content| {
            if c.block == Some(from) {
                Content {
                    block: Some(to),
                    high_water: c.len.max(floor),
                    ..c.clone()
                }
            } else {
                c.clone()
            }
        };
        Self {
            page_size: self.page_size,
            chunk_size: self.chunk_size,
            committed: self.committed.as_ref().map(moved),
            pending: self.pending.as_ref().map(|pending| match pending {
                Pending::Write(content) => Pending::Write(moved(content)),
                Pending::Remove(stamp) => Pending::Remove(*stamp),
            }),
        }
    }
}
