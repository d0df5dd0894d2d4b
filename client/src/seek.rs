//! Where data and holes are (lseek's `SEEK_DATA` and `SEEK_HOLE`), and how much of a file is stored.
//!
//! Chunks tell: a chunk that is not there is a hole, and so is what lies behind a chunk's bytes, and the end of the
//! file. A smaller hole, within a chunk's bytes, counts as data. What it costs depends on how many chunks there
//! are, not on how long the file is.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emberfs_proto::convert::required;
use emberfs_proto::ids::{ChunkIndex, InodeId};
use emberfs_proto::layout::Layout;
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result};

use crate::attr::AttrExt;
use crate::core::Core;
use crate::inode_state::InodeState;
use crate::read::{REFRESH_EVERY, settle_before};
use crate::write_buffer::Why;
use crate::{Attr, Client, File};

/// Chunks that a search for a hole looks at at once.
const WINDOW: u32 = 16_384;

/// What [`File::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// `SEEK_DATA`: bytes that are stored.
    Data,
    /// `SEEK_HOLE`: bytes that are not, or the end of the file.
    Hole,
}

impl File {
    /// The first offset, in bytes, from `offset` on where there is what is looked for. This client's buffered
    /// writes are sent to their chains first.
    ///
    /// [`ErrorCode::BeyondEnd`] (`ENXIO`): `offset` is not within the file, or only a hole follows.
    pub async fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        self.open()?;
        let (core, state) = (self.core(), self.state());
        let mut size = state.size();
        let known_for = state.length.lock().refreshed().elapsed();
        if known_for >= REFRESH_EVERY {
            core.refresh(state).await?;
            size = state.size();
        }
        if offset >= size {
            return Err(beyond_end(state, offset));
        }
        settle_before(core, state, offset, (size - offset) as usize).await?;
        match whence {
            Whence::Data => data(core, state, offset, size).await,
            Whence::Hole => hole(core, state, offset, size).await,
        }
    }

    /// Bytes that are stored, in each replica: the lengths of all chunks, for a true `st_blocks`. This
    /// client's buffered writes are sent first. Costs a request per chain of the file and 4096 chunks.
    pub async fn allocated(&self) -> Result<u64> {
        self.open()?;
        let (core, state) = (self.core(), self.state());
        core.settle(state, Why::Flush).await;
        allocated(core, state).await
    }
}

impl Client {
    /// As [`File::allocated`], of a file that need not be open; what this client has buffered for it is not sent
    /// first.
    pub async fn allocated(&self, inode: InodeId, layout: Layout) -> Result<u64> {
        if let Some(state) = self.core.known(inode) {
            return allocated(&self.core, &state).await;
        }
        let attr = Attr {
            inode: inode.0,
            kind: FileKind::File.into(),
            layout: Some(pb::LayoutMsg::from(layout)),
            ..Attr::default()
        };
        allocated(&self.core, &InodeState::new(&attr, false)?).await
    }
}

impl Client {
    /// What a file takes, in blocks of 512 bytes, as `st_blocks` counts them. Chains are asked only if the file
    /// may have holes; see [`Client::allocated`].
    pub async fn blocks(&self, attr: &Attr) -> Result<u64> {
        if !attr.is_file() || !attr.sparse {
            return Ok(attr.blocks());
        }
        let layout = Layout::try_from(required(attr.layout.as_ref(), "layout")?)?;
        let bytes = self.allocated(attr.id(), layout).await?;
        Ok(bytes.div_ceil(512))
    }
}

async fn allocated(core: &Core, state: &InodeState) -> Result<u64> {
    let sum = AtomicU64::new(0);
    let count = |page: Vec<crate::chunk_list::Stored>| {
        let bytes = page.iter().map(|chunk| u64::from(chunk.len)).sum();
        sum.fetch_add(bytes, Ordering::Relaxed);
        std::future::ready(Ok(()))
    };
    core.each_stored(state, 0..=u32::MAX, count).await?;
    Ok(sum.into_inner())
}

/// `offset` lies before `size`, as in [`hole`].
async fn data(core: &Arc<Core>, state: &InodeState, offset: u64, size: u64) -> Result<u64> {
    let layout = &state.layout;
    let (first, last) = (layout.chunk_of(offset).0, layout.chunk_of(size - 1).0);
    // Mostly the answer is at hand, and one chain knows it.
    if let [here] = core.stored(state, first..=first).await?.as_slice()
        && offset - layout.chunk_start(ChunkIndex(first)) < u64::from(here.len)
    {
        return Ok(offset);
    }
    let next = core.first_stored(state, first + 1..=last).await?;
    match next {
        Some(chunk) => Ok(layout.chunk_start(ChunkIndex(chunk.index))),
        None => Err(beyond_end(state, offset)),
    }
}

async fn hole(core: &Arc<Core>, state: &InodeState, offset: u64, size: u64) -> Result<u64> {
    let layout = &state.layout;
    let (first, last) = (layout.chunk_of(offset).0, layout.chunk_of(size - 1).0);
    let mut window = first..=first;
    loop {
        let stored = core.stored(state, window.clone()).await?;
        let mut lens = stored.iter().map(|chunk| (chunk.index, chunk.len));
        let mut chunk = lens.next();
        for index in window.clone() {
            let len = match chunk {
                Some((stored, len)) if stored == index => {
                    chunk = lens.next();
                    len
                }
                _ => 0,
            };
            if len < layout.chunk_size {
                let start = layout.chunk_start(ChunkIndex(index));
                return Ok((start + u64::from(len)).max(offset).min(size));
            }
        }
        match after(&window, last) {
            Some(next) => window = next,
            None => return Ok(size),
        }
    }
}

/// The next chunks to look at, up to `last`.
fn after(window: &RangeInclusive<u32>, last: u32) -> Option<RangeInclusive<u32>> {
    let first = window.end().checked_add(1).filter(|&first| first <= last)?;
    Some(first..=first.saturating_add(WINDOW - 1).min(last))
}

fn beyond_end(state: &InodeState, offset: u64) -> Error {
    let what = format!(
        "inode {} has nothing to be found from offset {offset} on",
        state.inode
    );
    Error::new(ErrorCode::BeyondEnd, what)
}
