//! Read-ahead: the blocks fetched before they are asked for.
//!
//! Which reads continue a stream [`streams`] tells: forward, backward, or with gaps of one size, in which
//! case the gaps are not fetched. The window doubles with each further read, up to what [`pace`] finds
//! useful, the configured limit, and the stream's share of the memory. A read that continues nothing fetches
//! nothing but itself.
//!
//! Blocks hold bytes as they were when fetched. They are dropped when this client writes or truncates,
//! when the file is opened again and has changed, when they have been read, and when their stream
//! stands still. A block is only registered while no write is buffered, under the same lock that a
//! write takes to drop blocks after it was buffered: so a block never survives a write it does not hold.

mod pace;
mod streams;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use emberfs_proto::Result;
use futures::future::{BoxFuture, Shared};
use tokio::sync::OwnedSemaphorePermit;

use pace::Delay;
use streams::{Kind, Stream, Streams};

/// Blocks are this long, and aligned to it, but for the last of a file.
pub(crate) const BLOCK: u64 = 1 << 20;
/// Items that a strided stream stays ahead, at most.
const ITEMS: u64 = 32;
/// A stream that stood still this long is forgotten, and its blocks with it.
const IDLE: Duration = Duration::from_secs(10);

/// A block's bytes, on their way or here.
pub(crate) type Fetch = Shared<BoxFuture<'static, Result<Bytes>>>;

struct Block {
    len: u64,
    /// Bytes handed out so far.
    served: u64,
    fetch: Fetch,
    /// Fetched while the file was opened.
    early: bool,
    touched: Instant,
    _permit: OwnedSemaphorePermit,
}

/// Read-ahead of one file.
#[derive(Default)]
pub(crate) struct ReadAhead {
    streams: Streams,
    blocks: Blocks,
    delay: Delay,
}

/// Blocks by offset; no two overlap.
#[derive(Default)]
struct Blocks(BTreeMap<u64, Block>);

/// A part of a read that a block answers.
pub(crate) struct Hit {
    /// Offset in the file.
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Offset in the block.
    pub(crate) skip: usize,
    pub(crate) fetch: Fetch,
    /// The first use of what was fetched while the file was opened.
    pub(crate) early: bool,
}

/// What surrounds one read.
pub(crate) struct Surroundings {
    /// The file's size.
    pub(crate) size: u64,
    /// Most bytes to stay ahead, which the streams of the file share: more only wait for each other; 0: no
    /// read-ahead.
    pub(crate) limit: u64,
    /// Bytes of memory that all streams share.
    pub(crate) memory: u64,
    pub(crate) now: Instant,
    /// Something is buffered for writing: nothing may be fetched ahead.
    pub(crate) dirty: bool,
}

impl ReadAhead {
    /// Registers a read of `[offset, offset + len)`, which lies within the file: what blocks answer of it,
    /// in order. `fetch` starts fetching a block, or declines for want of memory.
    pub(crate) fn access(
        &mut self,
        offset: u64,
        len: u64,
        around: &Surroundings,
        fetch: impl FnMut(u64, u64) -> Option<(Fetch, OwnedSemaphorePermit)>,
    ) -> Vec<Hit> {
        if around.limit == 0 {
            return Vec::new();
        }
        let now = around.now;
        let known = self.streams.known().max(1);
        let share = around.memory / known;
        if let Some(stream) = self.streams.follow(offset, len, now)
            && !around.dirty
        {
            // The block that is being read takes memory too.
            let share = share.saturating_sub(BLOCK).max(BLOCK);
            let limit = (around.limit / known).max(pace::FLOOR).min(share);
            let useful = self.delay.window(&stream.pace, limit);
            stream.window = (stream.window * 2).max(len * 2).min(useful);
            let fetch = Fetcher { now, fetch };
            match stream.kind {
                Kind::New => {}
                Kind::Forward => self.blocks.forward(stream, around.size, fetch),
                Kind::Backward => self.blocks.backward(stream, fetch),
                Kind::Strided { stride, len } => {
                    self.blocks.items(stream, stride, len, around.size, fetch);
                }
            }
        }
        self.blocks.hits(offset, offset + len, now)
    }

    /// The file's `len` bytes, fetched while it was opened. Another open of it may have got there first.
    pub(crate) fn put(&mut self, len: u64, fetch: Fetch, permit: OwnedSemaphorePermit) {
        if self.blocks.0.is_empty() {
            let block = Block {
                len,
                served: 0,
                fetch,
                early: true,
                touched: Instant::now(),
                _permit: permit,
            };
            self.blocks.0.insert(0, block);
        }
    }

    /// A block was fetched in this time.
    pub(crate) fn fetched(&mut self, took: Duration) {
        self.delay.fetched(took);
    }

    /// Drops blocks that overlap a range: it was written.
    pub(crate) fn invalidate(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        self.blocks
            .0
            .retain(|&start, block| start >= end || start + block.len <= offset);
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.blocks.0.clear();
        self.streams.clear();
    }

    /// Drops streams that stand still, and blocks that nobody came for.
    pub(crate) fn expire(&mut self, now: Instant) {
        let live = |touched: Instant| now.saturating_duration_since(touched) < IDLE;
        self.streams.all.retain(|stream| live(stream.touched));
        let ahead = |s: &Stream| match s.kind {
            Kind::Backward => s.ahead..s.low,
            _ => s.next.min(s.ahead)..s.next.max(s.ahead),
        };
        let busy: Vec<_> = self.streams.all.iter().map(ahead).collect();
        self.blocks.0.retain(|&start, block| {
            live(block.touched) || busy.iter().any(|ahead| ahead.contains(&start))
        });
    }
}

/// Starts fetching blocks.
struct Fetcher<F> {
    now: Instant,
    fetch: F,
}

impl<F: FnMut(u64, u64) -> Option<(Fetch, OwnedSemaphorePermit)>> Fetcher<F> {
    fn block(&mut self, offset: u64, len: u64) -> Option<Block> {
        let (fetch, permit) = (self.fetch)(offset, len)?;
        Some(Block {
            len,
            served: 0,
            fetch,
            early: false,
            touched: self.now,
            _permit: permit,
        })
    }
}

/// While a window is smaller than a block, as at the start of a stream that may be none, no more than the
/// window is fetched; but not for each read anew.
fn small(stream: &Stream, ahead: u64) -> bool {
    stream.window < BLOCK && ahead > stream.window / 2
}

impl Blocks {
    /// The block that begins last among those that begin before `end`: where it lies.
    fn last_before(&self, end: u64) -> Option<(u64, u64)> {
        let (&start, block) = self.0.range(..end).next_back()?;
        Some((start, start + block.len))
    }

    fn forward<F>(&mut self, stream: &mut Stream, size: u64, mut fetch: Fetcher<F>)
    where
        F: FnMut(u64, u64) -> Option<(Fetch, OwnedSemaphorePermit)>,
    {
        stream.ahead = stream.ahead.max(stream.next);
        let goal = stream.next.saturating_add(stream.window).min(size);
        if small(stream, stream.ahead - stream.next) {
            return;
        }
        while stream.ahead < goal {
            let end = (stream.ahead - stream.ahead % BLOCK + BLOCK).min(size);
            let end = if stream.window < BLOCK {
                end.min(goal)
            } else {
                end
            };
            // A block that another stream fetches already serves this one as well.
            if let Some((_, covered)) = self.last_before(stream.ahead + 1)
                && covered > stream.ahead
            {
                stream.ahead = covered;
                continue;
            }
            let next = self.0.range(stream.ahead..end).next();
            let end = next.map_or(end, |(&start, _)| start);
            let Some(block) = fetch.block(stream.ahead, end - stream.ahead) else {
                break;
            };
            self.0.insert(stream.ahead, block);
            stream.ahead = end;
        }
    }

    fn backward<F>(&mut self, stream: &mut Stream, mut fetch: Fetcher<F>)
    where
        F: FnMut(u64, u64) -> Option<(Fetch, OwnedSemaphorePermit)>,
    {
        stream.ahead = stream.ahead.min(stream.low);
        let goal = stream.low.saturating_sub(stream.window);
        if small(stream, stream.low - stream.ahead) {
            return;
        }
        while stream.ahead > goal {
            let mut start = (stream.ahead - 1) / BLOCK * BLOCK;
            if stream.window < BLOCK {
                start = start.max(goal);
            }
            if let Some((other, end)) = self.last_before(stream.ahead) {
                if end >= stream.ahead {
                    stream.ahead = other;
                    continue;
                }
                start = start.max(end);
            }
            let Some(block) = fetch.block(start, stream.ahead - start) else {
                break;
            };
            self.0.insert(start, block);
            stream.ahead = start;
        }
    }

    /// The next items of a strided stream, without the gaps.
    fn items<F>(
        &mut self,
        stream: &mut Stream,
        stride: i64,
        len: u64,
        size: u64,
        mut fetch: Fetcher<F>,
    ) where
        F: FnMut(u64, u64) -> Option<(Fetch, OwnedSemaphorePermit)>,
    {
        let items = (stream.window / len.max(1)).min(ITEMS);
        let before = |item: u64| stream.next.abs_diff(item) / stride.unsigned_abs() < items;
        let mut ahead = stream.ahead;
        while before(ahead) && ahead.saturating_add(len) <= size {
            let free = self
                .last_before(ahead + len)
                .is_none_or(|(_, end)| end <= ahead);
            if free {
                let Some(block) = fetch.block(ahead, len) else {
                    break;
                };
                self.0.insert(ahead, block);
            }
            match ahead.checked_add_signed(stride) {
                Some(next) => ahead = next,
                None => break,
            }
        }
        stream.ahead = ahead;
    }

    fn hits(&mut self, offset: u64, end: u64, now: Instant) -> Vec<Hit> {
        let from = self
            .0
            .range(..=offset)
            .next_back()
            .map_or(offset, |(&start, _)| start);
        let mut hits = Vec::new();
        let mut read = Vec::new();
        for (&start, block) in self.0.range_mut(from..end) {
            let (first, last) = (start.max(offset), (start + block.len).min(end));
            if first >= last {
                continue;
            }
            let early = block.early && block.served == 0;
            block.served += last - first;
            block.touched = now;
            if block.served >= block.len {
                read.push(start);
            }
            hits.push(Hit {
                offset: first,
                len: (last - first) as usize,
                skip: (first - start) as usize,
                fetch: block.fetch.clone(),
                early,
            });
        }
        for start in read {
            self.0.remove(&start);
        }
        hits
    }
}

#[cfg(test)]
mod tests;
