//! Writes on their way from the application to the chains: the pure part.
//!
//! Per chunk there is at most one *open* run, to which a write that continues it is added; *sealed* runs
//! wait in a queue, in the order of their writes; at most one is *in flight*. So writes to one chunk
//! reach it in order, and sequential small writes reach it as one.
//!
//! A run is sealed when it reaches the end of its chunk, when a write does not continue it, when
//! someone waits for it (sync, close, a read of the same chunk), when it is old, or when memory is
//! short. Sealed runs are numbered; whoever waits, waits until all up to a number are done.
//!
//! Small pieces are copied together. Where somebody else reads the caller's memory if this process dies
//! ([`crate::ClientConfig::keep_pieces`]), the run holds on to them nevertheless until it is dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use emberfs_proto::Error;
use emberfs_proto::layout::Layout;
use tokio::sync::OwnedSemaphorePermit;

/// Smaller pieces are copied together; larger ones travel as they are.
const COPY_BELOW: usize = 64 << 10;
/// Small pieces are gathered up to this size.
const GATHER: usize = 1 << 20;

/// Why a run is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Something waits for it, and more may follow.
    Flush,
    /// The file is being closed: probably nothing follows.
    Close,
}

/// Contiguous bytes of one chunk.
pub(crate) struct Run {
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) size_hint: u32,
    pub(crate) number: u64,
    gather: BytesMut,
    /// Pieces whose bytes were copied, and where they begin in this run.
    kept: Vec<(u32, Bytes)>,
    permit: Option<OwnedSemaphorePermit>,
    born: Instant,
}

#[derive(Default)]
struct Chunk {
    open: Option<Run>,
    sealed: VecDeque<Run>,
    /// Number and file offset of the end of the run in flight.
    flight: Option<(u64, u64)>,
    /// A worker looks after this chunk.
    worker: bool,
    /// The worker takes the open run too, when it has nothing else.
    hurry: bool,
}

/// Buffered writes of one file.
pub(crate) struct Buffers {
    layout: Layout,
    /// See [`crate::ClientConfig::keep_pieces`].
    keep: bool,
    chunks: BTreeMap<u32, Chunk>,
    last: u64,
    outstanding: BTreeSet<u64>,
    failures: u64,
    failure: Option<Error>,
}

impl Run {
    fn end(&self) -> u32 {
        self.offset + self.len
    }

    fn push(&mut self, data: Bytes, permit: Option<OwnedSemaphorePermit>, keep: bool) {
        let start = self.len;
        self.len += data.len() as u32;
        match (&mut self.permit, permit) {
            (Some(mine), Some(more)) => mine.merge(more),
            (mine, more) => *mine = mine.take().or(more),
        }
        if data.len() >= COPY_BELOW {
            self.gathered();
            self.pieces.push(data);
        } else {
            self.gather.extend_from_slice(&data);
            if self.gather.len() >= GATHER {
                self.gathered();
            }
            if keep {
                self.kept.push((start, data));
            }
        }
    }

    fn gathered(&mut self) {
        if !self.gather.is_empty() {
            self.pieces.push(self.gather.split().freeze());
        }
    }

    /// Keeps the first `len` bytes.
    fn cut(&mut self, len: u32) {
        self.gathered();
        let mut left = len as usize;
        self.pieces.retain_mut(|piece| {
            piece.truncate(left);
            left -= piece.len();
            !piece.is_empty()
        });
        self.kept.retain_mut(|(start, piece)| {
            piece.truncate(len.saturating_sub(*start) as usize);
            !piece.is_empty()
        });
        self.len = len;
    }
}

impl Buffers {
    pub(crate) fn new(layout: Layout, keep: bool) -> Self {
        Self {
            layout,
            keep,
            chunks: BTreeMap::new(),
            last: 0,
            outstanding: BTreeSet::new(),
            failures: 0,
            failure: None,
        }
    }

    /// Takes a write to one chunk. True if the chunk now needs a worker.
    pub(crate) fn add(
        &mut self,
        index: u32,
        offset: u32,
        data: Bytes,
        permit: Option<OwnedSemaphorePermit>,
    ) -> bool {
        let chunk = self.chunks.entry(index).or_default();
        if chunk.open.as_ref().is_some_and(|open| open.end() != offset) {
            self.close_run(index, Why::Flush);
        }
        let chunk = self.chunks.entry(index).or_default();
        let run = chunk.open.get_or_insert_with(|| Run {
            offset,
            len: 0,
            pieces: Vec::new(),
            size_hint: 0,
            number: 0,
            gather: BytesMut::new(),
            kept: Vec::new(),
            permit: None,
            born: Instant::now(),
        });
        run.push(data, permit, self.keep);
        if run.end() == self.layout.chunk_size {
            self.close_run(index, Why::Flush);
        }
        self.needs_worker(index)
    }

    /// Seals the open run of a chunk. True if the chunk now needs a worker.
    pub(crate) fn seal(&mut self, index: u32, why: Why) -> bool {
        self.close_run(index, why);
        self.needs_worker(index)
    }

    fn close_run(&mut self, index: u32, why: Why) {
        let Some(chunk) = self.chunks.get_mut(&index) else {
            return;
        };
        if let Some(mut run) = chunk.open.take() {
            run.gathered();
            let whole = self.layout.chunk_size;
            // Later chunks belong to a file that grew past its first one: expect this one to fill up.
            let grows = run.end() == whole || (index > 0 && why == Why::Flush);
            run.size_hint = if grows { whole } else { 0 };
            self.last += 1;
            run.number = self.last;
            self.outstanding.insert(run.number);
            chunk.sealed.push_back(run);
        }
    }

    /// Seals everything. The chunks that need a worker, and the number to wait for.
    pub(crate) fn seal_all(&mut self, why: Why) -> (Vec<u32>, u64) {
        let indices: Vec<u32> = self.chunks.keys().copied().collect();
        let ready = indices
            .into_iter()
            .filter(|&index| self.seal(index, why))
            .collect();
        (ready, self.last)
    }

    /// Seals what overlaps chunks `first..=last`. The chunks that need a worker, and the number to wait
    /// for: 0 if those chunks are clean.
    pub(crate) fn seal_range(&mut self, first: u32, last: u32) -> (Vec<u32>, u64) {
        let indices: Vec<u32> = self.chunks.range(first..=last).map(|(&i, _)| i).collect();
        let ready = indices
            .iter()
            .copied()
            .filter(|&i| self.seal(i, Why::Flush))
            .collect();
        let numbers = self.chunks.range(first..=last).flat_map(|(_, chunk)| {
            let sealed = chunk.sealed.iter().map(|run| run.number);
            sealed.chain(chunk.flight.map(|(number, _)| number))
        });
        (ready, numbers.max().unwrap_or(0))
    }

    /// Sends open runs that are at least as old as `born` on their way, without making one run of each
    /// small write: a chunk whose worker is busy goes on gathering until it is free. The chunks that
    /// need a worker.
    pub(crate) fn hurry(&mut self, born: Instant) -> Vec<u32> {
        let indices: Vec<u32> = self.chunks.keys().copied().collect();
        let old = |chunk: &Chunk| chunk.open.as_ref().is_some_and(|run| run.born <= born);
        let mut ready = Vec::new();
        for index in indices {
            let Some(chunk) = self.chunks.get_mut(&index).filter(|chunk| old(chunk)) else {
                continue;
            };
            if chunk.worker {
                chunk.hurry = true;
            } else if self.seal(index, Why::Flush) {
                ready.push(index);
            }
        }
        ready
    }

    /// Marks the chunk as looked after, if it has work and no worker.
    fn needs_worker(&mut self, index: u32) -> bool {
        let Some(chunk) = self.chunks.get_mut(&index) else {
            return false;
        };
        let needed = !chunk.worker && !chunk.sealed.is_empty();
        chunk.worker |= needed;
        needed
    }

    /// The worker's next run. `None`: the worker is done with this chunk.
    pub(crate) fn next(&mut self, index: u32) -> Option<Run> {
        let start = self.layout.chunk_start(index.into());
        let chunk = self.chunks.get_mut(&index)?;
        if chunk.sealed.is_empty() && std::mem::take(&mut chunk.hurry) {
            self.close_run(index, Why::Flush);
        }
        let chunk = self.chunks.get_mut(&index)?;
        if let Some(run) = chunk.sealed.pop_front() {
            chunk.flight = Some((run.number, start + u64::from(run.end())));
            return Some(run);
        }
        chunk.worker = false;
        if chunk.open.is_none() {
            self.chunks.remove(&index);
        }
        None
    }

    /// The run in flight has ended.
    pub(crate) fn done(&mut self, index: u32, number: u64, failure: Option<Error>) {
        if let Some(chunk) = self.chunks.get_mut(&index) {
            chunk.flight = None;
        }
        self.outstanding.remove(&number);
        if let Some(failure) = failure {
            self.failures += 1;
            self.failure = Some(failure);
        }
    }

    /// Drops what lies at or beyond byte `size` and is not in flight yet.
    pub(crate) fn discard_from(&mut self, size: u64) {
        let Self {
            layout,
            chunks,
            outstanding,
            ..
        } = self;
        for (&index, chunk) in chunks.iter_mut() {
            let start = layout.chunk_start(index.into());
            let keep = size.saturating_sub(start).min(u64::from(layout.chunk_size)) as u32;
            let mut stays = |run: &mut Run| {
                if run.offset >= keep {
                    outstanding.remove(&run.number);
                    return false;
                }
                if run.end() > keep {
                    run.cut(keep - run.offset);
                }
                true
            };
            if let Some(mut open) = chunk.open.take()
                && stays(&mut open)
            {
                chunk.open = Some(open);
            }
            chunk.sealed.retain_mut(stays);
        }
        chunks.retain(|_, chunk| chunk.worker || chunk.open.is_some() || !chunk.sealed.is_empty());
    }

    /// All runs up to this number are done.
    pub(crate) fn watermark(&self) -> u64 {
        self.outstanding
            .first()
            .map_or(self.last, |first| first - 1)
    }

    /// Nothing is buffered or in flight.
    pub(crate) fn is_clean(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Highest file offset + 1 of what is buffered or in flight; 0: nothing.
    pub(crate) fn end(&self) -> u64 {
        let ends = self.chunks.iter().flat_map(|(&index, chunk)| {
            let start = self.layout.chunk_start(index.into());
            let waiting = chunk.sealed.iter().chain(&chunk.open);
            let waiting = waiting.map(move |run| start + u64::from(run.end()));
            waiting.chain(chunk.flight.map(|(_, end)| end))
        });
        ends.max().unwrap_or(0)
    }

    /// Failures so far, and the last.
    pub(crate) fn failures(&self) -> (u64, Option<&Error>) {
        (self.failures, self.failure.as_ref())
    }
}

#[cfg(test)]
mod tests;
