//! Read-ahead: recognising sequential streams, and the blocks fetched before they are asked for.
//!
//! Streams are recognised by their offsets, whichever handle reads: a read that begins where another
//! ended, give or take what the kernel reorders, continues it. The second read of a stream starts the
//! read-ahead; the window doubles with each further read, up to the limit. A read that continues nothing
//! fetches nothing but itself.
//!
//! Blocks hold bytes as they were when fetched. They are dropped when this client writes or truncates,
//! when the file is opened again and has changed, when they have been read, and when their stream
//! stands still. A block is only registered while no write is buffered, under the same lock that a
//! write takes to drop blocks after it was buffered: so a block never survives a write it does not hold.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use emberfs_proto::Result;
use futures::future::{BoxFuture, Shared};
use tokio::sync::OwnedSemaphorePermit;

/// Streams recognised per file.
const STREAMS: usize = 8;
/// Blocks are this long, and aligned to it, but for the last of a file.
pub(crate) const BLOCK: u64 = 1 << 20;
/// How many of its own lengths a read may be off and still continue a stream: the kernel sends the
/// parts of its own read-ahead side by side.
const REORDER: u64 = 8;
/// A stream that stood still this long is forgotten, and its blocks with it.
const IDLE: Duration = Duration::from_secs(10);

/// A block's bytes, on their way or here.
pub(crate) type Fetch = Shared<BoxFuture<'static, Result<Bytes>>>;

struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Bytes to stay ahead.
    window: u64,
    /// Up to here blocks were asked for.
    ahead: u64,
    touched: Instant,
}

struct Block {
    len: u64,
    /// Bytes handed out so far.
    served: u64,
    fetch: Fetch,
    touched: Instant,
    _permit: OwnedSemaphorePermit,
}

/// Read-ahead of one file.
#[derive(Default)]
pub(crate) struct ReadAhead {
    streams: Vec<Stream>,
    blocks: BTreeMap<u64, Block>,
}

/// A part of a read that a block answers.
pub(crate) struct Hit {
    /// Offset in the file.
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Offset in the block.
    pub(crate) skip: usize,
    pub(crate) fetch: Fetch,
}

/// What surrounds one read.
pub(crate) struct Surroundings {
    /// The file's size.
    pub(crate) size: u64,
    /// Most bytes to stay ahead; 0: no read-ahead.
    pub(crate) limit: u64,
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
        let now = Instant::now();
        let continued = self.follow(offset, len, around.limit, now);
        if let Some(stream) = continued
            && !around.dirty
        {
            self.extend(stream, around.size, now, fetch);
        }
        self.hits(offset, offset + len, now)
    }

    /// The stream that this read moves on; one that continues none begins one.
    fn follow(&mut self, offset: u64, len: u64, limit: u64, now: Instant) -> Option<usize> {
        let slack = len * REORDER;
        let near = |s: &Stream| offset <= s.next + slack && offset + slack >= s.next;
        let found = (0..self.streams.len())
            .filter(|&i| near(&self.streams[i]))
            .min_by_key(|&i| self.streams[i].next.abs_diff(offset));
        if let Some(i) = found {
            let stream = &mut self.streams[i];
            stream.touched = now;
            if offset + len <= stream.next {
                return None;
            }
            stream.next = offset + len;
            stream.window = (stream.window * 2).max(len * 2).min(limit);
            return Some(i);
        }
        if self.streams.len() == STREAMS {
            let oldest = (0..STREAMS).min_by_key(|&i| self.streams[i].touched)?;
            self.streams.swap_remove(oldest);
        }
        let next = offset + len;
        self.streams.push(Stream {
            next,
            window: 0,
            ahead: next,
            touched: now,
        });
        None
    }

    fn extend(
        &mut self,
        stream: usize,
        size: u64,
        now: Instant,
        mut fetch: impl FnMut(u64, u64) -> Option<(Fetch, OwnedSemaphorePermit)>,
    ) {
        let stream = &mut self.streams[stream];
        stream.ahead = stream.ahead.max(stream.next);
        let goal = (stream.next + stream.window).min(size);
        while stream.ahead < goal {
            let end = (stream.ahead - stream.ahead % BLOCK + BLOCK).min(size);
            // A block that another stream fetches already serves this one as well.
            let covered = self.blocks.range(..=stream.ahead).next_back();
            if let Some((start, block)) = covered
                && start + block.len > stream.ahead
            {
                stream.ahead = start + block.len;
                continue;
            }
            let end = self
                .blocks
                .range(stream.ahead..end)
                .next()
                .map_or(end, |(&start, _)| start);
            let len = end - stream.ahead;
            let Some((fetch, permit)) = fetch(stream.ahead, len) else {
                break;
            };
            let block = Block {
                len,
                served: 0,
                fetch,
                touched: now,
                _permit: permit,
            };
            self.blocks.insert(stream.ahead, block);
            stream.ahead = end;
        }
    }

    fn hits(&mut self, offset: u64, end: u64, now: Instant) -> Vec<Hit> {
        let from = self
            .blocks
            .range(..=offset)
            .next_back()
            .map_or(offset, |(&start, _)| start);
        let mut hits = Vec::new();
        let mut read = Vec::new();
        for (&start, block) in self.blocks.range_mut(from..end) {
            let (first, last) = (start.max(offset), (start + block.len).min(end));
            if first >= last {
                continue;
            }
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
            });
        }
        for start in read {
            self.blocks.remove(&start);
        }
        hits
    }

    /// Drops blocks that overlap a range: it was written.
    pub(crate) fn invalidate(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        self.blocks
            .retain(|&start, block| start >= end || start + block.len <= offset);
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.streams.clear();
    }

    /// Drops streams that stand still, and blocks that nobody came for.
    pub(crate) fn expire(&mut self, now: Instant) {
        let live = |touched: Instant| now.saturating_duration_since(touched) < IDLE;
        self.streams.retain(|stream| live(stream.touched));
        let busy = self
            .streams
            .iter()
            .map(|s| s.next..s.ahead)
            .collect::<Vec<_>>();
        self.blocks.retain(|&start, block| {
            live(block.touched) || busy.iter().any(|ahead| ahead.contains(&start))
        });
    }
}

#[cfg(test)]
mod tests;
