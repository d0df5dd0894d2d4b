//! fallocate(2): length ahead of the bytes, and holes.
//!
//! Space is not reserved: chains take room when bytes come, and a hole costs nothing. A hole is made by cutting
//! chunks: one that lies within it to nothing, one whose bytes end in it to where it begins; where bytes follow it
//! zeros are written. A cut names the longest chunk that it may hit, and the chain's head refuses a longer one: so
//! bytes that another client has written behind the hole meanwhile are not lost, and zeros are written after all.

use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use bytes::Bytes;
use emberfs_proto::ids::{ChunkIndex, ChunkKey};
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, Result};
use futures::StreamExt;

use crate::File;
use crate::chunk_list::Stored;
use crate::chunk_write::{ChunkCut, ChunkWrite};
use crate::core::Core;
use crate::inode_state::{Handle, InodeState};

/// Chunks of one chain that are cut at once.
const CUTS_PER_CHAIN: usize = 4;
/// How often a new length is reported again because somebody truncates the file all the time.
const REPORTS: usize = 16;
/// What holes are written with where they cannot be cut. Shared: zeros take no memory per write.
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; 1 << 20]));

/// What [`File::allocate`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Mode 0: the file is at least as long as the range.
    Extend,
    /// `FALLOC_FL_KEEP_SIZE`: space is not reserved, only the times move.
    KeepSize,
    /// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`: the range reads as zeros and takes no space; the
    /// length stays.
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`: as [`Self::PunchHole`], then as [`Self::Extend`].
    ZeroRange,
    /// `FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE`: as [`Self::PunchHole`].
    ZeroRangeKeepSize,
}

impl Allocate {
    /// From the mode of fallocate(2); [`ErrorCode::Unsupported`] for all others, such as the collapse and the
    /// insertion of a range.
    pub fn from_mode(mode: u32) -> Result<Self> {
        const KEEP_SIZE: u32 = 0x01;
        const PUNCH_HOLE: u32 = 0x02;
        const ZERO_RANGE: u32 = 0x10;
        const PUNCH_AND_KEEP: u32 = PUNCH_HOLE | KEEP_SIZE;
        const ZERO_AND_KEEP: u32 = ZERO_RANGE | KEEP_SIZE;
        match mode {
            0 => Ok(Self::Extend),
            KEEP_SIZE => Ok(Self::KeepSize),
            PUNCH_AND_KEEP => Ok(Self::PunchHole),
            ZERO_RANGE => Ok(Self::ZeroRange),
            ZERO_AND_KEEP => Ok(Self::ZeroRangeKeepSize),
            _ => {
                let what = format!("fallocate with mode {mode:#x} is not supported");
                Err(Error::new(ErrorCode::Unsupported, what))
            }
        }
    }
}

impl File {
    /// Changes a range of the file, in bytes, without writing it; see [`Allocate`]. This client's writes
    /// before it come before it. Returns when the chains and the metadata server have it.
    ///
    /// [`ErrorCode::InvalidArgument`]: the range is empty. [`ErrorCode::FileTooLarge`]: it ends beyond the
    /// maximum file size. [`ErrorCode::QuotaExceeded`]: a quota leaves no room for the new length. [`ErrorCode::NoSession`]: the handle may not write. After any other error a hole may be
    /// there in part, and may still be completed.
    pub async fn allocate(&self, offset: u64, len: u64, what: Allocate) -> Result<()> {
        self.writable()?;
        let end = end_of(&self.state().layout, offset, len)?;
        self.check_failure()?;
        match what {
            Allocate::KeepSize => self.touch().await,
            Allocate::Extend => self.extend_to(end).await,
            Allocate::PunchHole | Allocate::ZeroRangeKeepSize => self.punch(offset..end).await,
            Allocate::ZeroRange => {
                // What does not fit is refused before anything is cleared.
                self.make_room(end).await?;
                self.punch(offset..end).await?;
                self.extend_to(end).await
            }
        }
    }

    /// Makes the file at least `end` bytes long, as a writer would: the truncate epoch stays.
    async fn extend_to(&self, end: u64) -> Result<()> {
        let (core, state) = (self.core(), self.state());
        let _gate = state.gate.read().await;
        core.make_room(state, self.handle(), end).await?;
        let mut attr = core.refresh(state).await?;
        if attr.size >= end {
            return self.touch().await;
        }
        for _ in 0..REPORTS {
            if attr.size >= end {
                return Ok(());
            }
            state.length.lock().changed(end, SystemTime::now());
            // An end from before a truncation that this client has not heard of counts for nothing; the
            // answer brings the new epoch.
            attr = match core.report(state, self.handle()).await? {
                Some(attr) => attr,
                None => core.refresh(state).await?,
            };
        }
        if attr.size >= end {
            return Ok(());
        }
        let what = format!(
            "inode {} is truncated all the time: it does not stay at {end} bytes",
            state.inode
        );
        Err(Error::new(ErrorCode::Busy, what))
    }

    /// The times say that the file was changed.
    async fn touch(&self) -> Result<()> {
        let (core, state) = (self.core(), self.state());
        state.length.lock().touched(SystemTime::now());
        core.report(state, self.handle()).await.map(drop)
    }

    async fn make_room(&self, end: u64) -> Result<()> {
        let (core, state) = (self.core(), self.state());
        let _gate = state.gate.read().await;
        core.make_room(state, self.handle(), end).await
    }

    /// Makes a hole. Goes on in its own task when the caller stops waiting: a cut that came late would hit what is
    /// written after it.
    async fn punch(&self, hole: Range<u64>) -> Result<()> {
        let core = self.core().clone();
        let (state, handle) = (self.state().clone(), self.handle().clone());
        let inode = state.inode;
        let task = self
            .core()
            .runtime
            .spawn(async move { punch(&core, &state, &handle, hole).await });
        task.await.unwrap_or_else(|_| {
            let what = format!("making a hole in inode {inode} was interrupted; try again");
            Err(Error::new(ErrorCode::Unavailable, what))
        })
    }
}

fn end_of(layout: &Layout, offset: u64, len: u64) -> Result<u64> {
    if len == 0 {
        let what = format!("a range of no bytes at offset {offset}");
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let max = layout.max_file_size();
    let end = offset.checked_add(len).filter(|&end| end <= max);
    end.ok_or_else(|| {
        let what = format!("offset {offset} + {len} bytes exceeds the maximum file size {max}");
        Error::new(ErrorCode::FileTooLarge, what)
    })
}

async fn punch(
    core: &Arc<Core>,
    state: &Arc<InodeState>,
    handle: &Handle,
    hole: Range<u64>,
) -> Result<()> {
    let _gate = state.gate.write().await;
    core.settle_range(state, hole.start, (hole.end - hole.start) as usize)
        .await;
    // How far bytes were written must not be known from chunks alone when these are cut.
    if core.report(state, handle).await?.is_none() {
        core.refresh(state).await?;
    }
    let hole = hole.start..hole.end.min(state.size());
    if hole.is_empty() {
        return Ok(());
    }
    let cleared = clear(core, state, &hole).await;
    // Whatever became of it: other clients tell from the time that the contents are not what they were.
    let len = hole.end - hole.start;
    state.read_ahead.lock().invalidate(hole.start, len);
    state.length.lock().changed(0, SystemTime::now());
    cleared?;
    core.report(state, handle).await?;
    Ok(())
}

/// Clears a range that is not empty on the chains.
async fn clear(core: &Core, state: &InodeState, hole: &Range<u64>) -> Result<()> {
    let first = state.layout.chunk_of(hole.start).0;
    let last = state.layout.chunk_of(hole.end - 1).0;
    let visit = |page| clear_page(core, state, page, hole);
    core.each_stored(state, first..=last, visit).await
}

/// Each change runs to its end even if another fails: see [`crate::chunk_io::ChunkIo::write`].
async fn clear_page(
    core: &Core,
    state: &InodeState,
    page: Vec<Stored>,
    hole: &Range<u64>,
) -> Result<()> {
    futures::stream::iter(page)
        .map(|chunk| clear_chunk(core, state, chunk, hole))
        .buffer_unordered(CUTS_PER_CHAIN)
        .fold(Ok(()), |all, one| std::future::ready(all.and(one)))
        .await
}

async fn clear_chunk(
    core: &Core,
    state: &InodeState,
    chunk: Stored,
    hole: &Range<u64>,
) -> Result<()> {
    let layout = state.layout;
    let index = ChunkIndex(chunk.index);
    let start = layout.chunk_start(index);
    // Both within the chunk, whose size is 32 bits.
    let from = hole.start.saturating_sub(start) as u32;
    let to = (hole.end - start).min(u64::from(layout.chunk_size)) as u32;
    if chunk.len <= from {
        return Ok(());
    }
    let inode = state.inode;
    let key = ChunkKey { inode, index };
    let chain = state.chain(&core.io, index).await?;
    if chunk.len <= to {
        let cut = ChunkCut {
            key,
            chain,
            layout,
            len: from,
            within: to,
        };
        match core.io.cut(&cut).await {
            // It has grown behind the hole since it was listed.
            Err(error) if error.code == ErrorCode::StaleChunkVersion => {}
            done => return done,
        }
    }
    let zeros = ChunkWrite {
        key,
        chain,
        layout,
        offset: from,
        pieces: zeros((to - from) as usize),
        size_hint: 0,
    };
    core.io.write(&zeros).await.map(drop)
}

fn zeros(mut len: usize) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(len.div_ceil(ZEROS.len()));
    while len > 0 {
        let piece = len.min(ZEROS.len());
        pieces.push(ZEROS.slice(..piece));
        len -= piece;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_linux() {
        for (mode, meant) in [
            (0x00, Allocate::Extend),
            (0x01, Allocate::KeepSize),
            (0x03, Allocate::PunchHole),
            (0x10, Allocate::ZeroRange),
            (0x11, Allocate::ZeroRangeKeepSize),
        ] {
            assert_eq!(Allocate::from_mode(mode), Ok(meant));
        }
        // A hole that changes the length; collapse, insert, unshare; what does not exist.
        for mode in [0x02, 0x08, 0x20, 0x40, 0x13, 0x100] {
            let refused = Allocate::from_mode(mode).unwrap_err();
            assert_eq!(refused.errno(), 95, "{mode:#x}");
        }
    }

    #[test]
    fn zeros_are_as_many_as_asked_for() {
        for len in [1, 1 << 20, (1 << 20) + 1, 5 << 20] {
            let pieces = zeros(len);
            assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), len);
            assert!(pieces.iter().all(|p| p.iter().all(|&b| b == 0)));
        }
    }
}
