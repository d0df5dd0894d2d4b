//! Reading byte ranges: read-ahead blocks where there are any, chunks in parallel where not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use emberfs_proto::ids::InodeId;
use emberfs_proto::layout::ChunkSpan;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use futures::{FutureExt, StreamExt, TryStreamExt};

use crate::core::Core;
use crate::inode_state::InodeState;
use crate::meta_rpc::{attr_of, rpc};
use crate::read_ahead::{BLOCK, Fetch, Hit, Surroundings};
use crate::stats::add;
use crate::{Attr, Creds, File};

/// Chunk ranges of one read in flight.
const SPANS_IN_FLIGHT: usize = 16;
/// A read past the end asks the server for a newer length, but not more often than this.
pub(crate) const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// As [`File::read`].
pub(crate) async fn read(file: &File, offset: u64, len: usize) -> Result<Bytes> {
    let len = prepare(file, offset, len).await?;
    if len == 0 {
        return Ok(Bytes::new());
    }
    let hits = look_ahead(file, offset, len);
    // One block has it all: no copy.
    if let [hit] = hits.as_slice()
        && hit.len == len
        && let Some(bytes) = take(file.core(), hit).await
    {
        return Ok(bytes);
    }
    let buf = BytesMut::with_capacity(len);
    Ok(gather(file, offset, len, hits, buf).await?.freeze())
}

/// As [`File::read_into`].
pub(crate) async fn read_into(file: &File, offset: u64, mut buf: BytesMut) -> Result<BytesMut> {
    let room = buf.capacity() - buf.len();
    let len = prepare(file, offset, room).await?;
    if len == 0 {
        return Ok(buf);
    }
    let hits = look_ahead(file, offset, len);
    let spare = buf.split_off(buf.len());
    let filled = gather(file, offset, len, hits, spare).await?;
    buf.unsplit(filled);
    Ok(buf)
}

/// How much of the range lies within the file; this client's own writes to it are on the chains then.
pub(crate) async fn prepare(file: &File, offset: u64, len: usize) -> Result<usize> {
    let (core, state) = (file.core(), file.state());
    let mut size = state.size();
    if offset >= size && len > 0 && state.length.lock().refreshed().elapsed() >= REFRESH_EVERY {
        core.refresh(state).await?;
        size = state.size();
    }
    let len = (size.saturating_sub(offset)).min(len as u64) as usize;
    settle_before(core, state, offset, len).await?;
    Ok(len)
}

/// Puts this client's own writes to a range on the chains, before it is looked at there.
pub(crate) async fn settle_before(
    core: &Arc<Core>,
    state: &Arc<InodeState>,
    offset: u64,
    len: usize,
) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let failures = || state.buffers.lock().failures().0;
    let before = failures();
    if core.settle_range(state, offset, len).await && failures() > before {
        let buffers = state.buffers.lock();
        if let (_, Some(error)) = buffers.failures() {
            return Err(error
                .clone()
                .context("a buffered write before this read was lost"));
        }
    }
    Ok(())
}

impl Core {
    /// Asks the server for attributes; they are learnt, not overlaid.
    pub(crate) async fn refresh(&self, state: &InodeState) -> Result<Attr> {
        let attr = self.fetch_attr(state.inode).await?;
        state.learn(&attr);
        Ok(attr)
    }

    /// Attributes as the server has them.
    pub(crate) async fn fetch_attr(&self, inode: InodeId) -> Result<Attr> {
        let request = pb::GetAttrRequest {
            caller: None,
            inode: inode.0,
        };
        attr_of(rpc!(self.meta, &Creds::default(), Reads, get_attr, request)?.attr)
    }
}

/// Tells the read-ahead of this read, and starts what it asks for.
fn look_ahead(file: &File, offset: u64, len: usize) -> Vec<Hit> {
    let (core, state) = (file.core(), file.state());
    let limit = if file.flags().direct {
        0
    } else {
        core.config.read_ahead_bytes as u64
    };
    let size = state.size();
    let mut ahead = state.read_ahead.lock();
    let around = Surroundings {
        size,
        limit,
        memory: (core.config.memory_bytes / 2) as u64,
        now: Instant::now(),
        dirty: !state.buffers.lock().is_clean(),
    };
    let hits = ahead.access(offset, len as u64, &around, |offset, len| {
        let permit = core.budget.for_read(len as usize)?;
        add(&core.io.counters.prefetched_bytes, len);
        Some((prefetch(core, state, offset, len as usize), permit))
    });
    if hits.iter().any(|hit| hit.early) {
        core.early.earn();
    }
    hits
}

fn prefetch(core: &Arc<Core>, state: &Arc<InodeState>, offset: u64, len: usize) -> Fetch {
    let (weak, state) = (Arc::downgrade(core), state.clone());
    let task = core.runtime.spawn(async move {
        let Some(core) = weak.upgrade() else {
            return Err(Error::new(ErrorCode::Unavailable, "the client is gone"));
        };
        let begun = Instant::now();
        let data = read_block(&core, &state, offset, len).await?;
        state.read_ahead.lock().fetched(begun.elapsed());
        Ok(data)
    });
    let joined = task.map(|joined| match joined {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorCode::Unavailable,
            "the read-ahead was cancelled",
        )),
    });
    joined.boxed().shared()
}

/// The bytes of a hit; `None` if they have to be read after all.
async fn take(core: &Core, hit: &Hit) -> Option<Bytes> {
    let block = hit.fetch.clone().await.ok()?;
    let end = hit.skip + hit.len;
    (end <= block.len()).then(|| {
        add(&core.io.counters.prefetch_hit_bytes, hit.len as u64);
        block.slice(hit.skip..end)
    })
}

/// Fills the empty `buf` with a range, from blocks and from chunks.
async fn gather(
    file: &File,
    offset: u64,
    len: usize,
    hits: Vec<Hit>,
    buf: BytesMut,
) -> Result<BytesMut> {
    let (core, state) = (file.core(), file.state());
    if hits.is_empty() {
        return read_chunks(core, state, offset, len, buf).await;
    }
    // Hits and the gaps around them, in order.
    let mut parts: Vec<(u64, usize, Option<Hit>)> = Vec::with_capacity(hits.len() * 2 + 1);
    let mut at = offset;
    for hit in hits {
        if hit.offset > at {
            parts.push((at, (hit.offset - at) as usize, None));
        }
        at = hit.offset + hit.len as u64;
        parts.push((hit.offset, hit.len, Some(hit)));
    }
    let end = offset + len as u64;
    if at < end {
        parts.push((at, (end - at) as usize, None));
    }
    let lens = parts.iter().map(|part| part.1).collect::<Vec<_>>();
    let reads = parts.into_iter().zip(split(buf, &lens)).map(
        |((offset, len, hit), mut piece)| async move {
            if let Some(hit) = hit
                && let Some(bytes) = take(core, &hit).await
            {
                piece.extend_from_slice(&bytes);
                return Ok(piece);
            }
            read_chunks(core, state, offset, len, piece).await
        },
    );
    join(futures::stream::iter(reads).buffered(SPANS_IN_FLIGHT)).await
}

/// A block of read-ahead. Those of the common size come in buffers that were used before: the kernel would clear each
/// page of a fresh one first, which costs as much as receiving it.
pub(crate) async fn read_block(
    core: &Core,
    state: &InodeState,
    offset: u64,
    len: usize,
) -> Result<Bytes> {
    if len as u64 == BLOCK
        && let [span] = state.layout.spans(offset, len)?.as_slice()
    {
        let range = state.range(&core.io, span).await?;
        let data = core.io.read_pooled(range).await?;
        if data.len() == len {
            return Ok(data);
        }
        let mut padded = BytesMut::from(data);
        padded.resize(len, 0);
        return Ok(padded.freeze());
    }
    let buf = BytesMut::with_capacity(len);
    Ok(read_chunks(core, state, offset, len, buf).await?.freeze())
}

/// Fills the empty `buf` with a range from the chains; what no chunk holds is zeros.
pub(crate) async fn read_chunks(
    core: &Core,
    state: &InodeState,
    offset: u64,
    len: usize,
    buf: BytesMut,
) -> Result<BytesMut> {
    let spans = state.layout.spans(offset, len)?;
    if let [span] = spans.as_slice() {
        return read_span(core, state, *span, buf).await;
    }
    let lens = spans
        .iter()
        .map(|span| span.len as usize)
        .collect::<Vec<_>>();
    let pieces = split(buf, &lens);
    let reads = spans
        .into_iter()
        .zip(pieces)
        .map(|(span, piece)| read_span(core, state, span, piece));
    join(futures::stream::iter(reads).buffered(SPANS_IN_FLIGHT)).await
}

async fn read_span(
    core: &Core,
    state: &InodeState,
    span: ChunkSpan,
    buf: BytesMut,
) -> Result<BytesMut> {
    let range = state.range(&core.io, &span).await?;
    let mut data = core.io.read(range, buf).await?;
    // A hole, or the end of a chunk that is shorter than the file says.
    data.resize(span.len as usize, 0);
    Ok(data)
}

/// Cuts the spare capacity of an empty buffer into pieces that touch each other.
fn split(mut buf: BytesMut, lens: &[usize]) -> Vec<BytesMut> {
    let mut pieces = Vec::with_capacity(lens.len());
    for &len in lens {
        let rest = buf.split_off(len.min(buf.capacity()));
        pieces.push(std::mem::replace(&mut buf, rest));
    }
    pieces
}

/// Joins full pieces again: no copy if they still touch each other.
async fn join(pieces: impl futures::Stream<Item = Result<BytesMut>>) -> Result<BytesMut> {
    let pieces: Vec<BytesMut> = pieces.try_collect().await?;
    let mut pieces = pieces.into_iter();
    let mut whole = pieces.next().unwrap_or_default();
    for piece in pieces {
        whole.unsplit(piece);
    }
    Ok(whole)
}
