//! Many ranges of many files at once: one request per storage node carries many of them.
//!
//! 1. Every range is cut to its file's length, and this client's own writes to it are sent first.
//! 2. Ranges are cut into spans of chunks. All spans of a chunk go to one replica, chunks spread over
//!    the nodes that hold them by bytes; spans of one node share requests.
//! 3. Requests are answered in any order; for one that is slow, other replicas are asked as well. A range is finished as soon as all its spans are here.
//! 4. What a request did not bring (a damaged replica, a dead node) is read on its own, with all
//!    checks and retries of a single read. So is a large range, whose bytes then land in the caller's
//!    memory straight from the socket.
//!
//! Memory: replies in flight ([`BATCHES_IN_FLIGHT`] of [`BATCH_BYTES`]) and what the caller gave. Nobody
//! works ahead of a caller that does not take results.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use emberfs_proto::ids::{ChunkKey, NodeId};
use emberfs_proto::layout::ChunkSpan;
use emberfs_proto::{Error, ErrorCode, Result};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};

use crate::chunk_io::Replica;
use crate::chunk_read::ChunkRange;
use crate::core::Core;
use crate::inode_state::InodeState;
use crate::read::{prepare, read_chunks};
use crate::{Client, File};

/// Most ranges of one request.
const BATCH_ITEMS: usize = 256;
/// Most bytes of one request.
const BATCH_BYTES: usize = 8 << 20;
/// Requests of one call in flight.
const BATCHES_IN_FLIGHT: usize = 16;
/// Ranges of one call that are prepared, or finished, at the same time.
const RANGES_IN_FLIGHT: usize = 32;
/// From this length on a range gains nothing from sharing a request.
pub(crate) const LARGE: usize = 512 << 10;
/// Longest range.
pub(crate) const MAX_RANGE: usize = 1 << 30;

/// One range of [`Client::read_many`].
#[derive(Clone)]
pub struct ReadItem {
    /// Open for reading, by the client that is asked.
    pub file: File,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// Bytes wanted, at most 1 GiB.
    pub len: usize,
    /// The bytes are appended to this. It grows if its spare capacity is too small.
    pub buf: BytesMut,
}

impl ReadItem {
    /// A range that comes back in memory of its own.
    pub fn new(file: &File, offset: u64, len: usize) -> Self {
        Self {
            file: file.clone(),
            offset,
            len,
            buf: BytesMut::new(),
        }
    }
}

impl Client {
    /// Reads many ranges of many files with few requests per storage node: the call of a training
    /// loader. Answers `(index, bytes)` in the order in which ranges are complete; each as
    /// [`File::read`] would answer, with an error of its own: bytes are fewer than asked only at the
    /// end of the file, and holes are zeros.
    ///
    /// Dropping the stream cancels what is left.
    pub fn read_many(&self, items: Vec<ReadItem>) -> BoxStream<'static, (usize, Result<BytesMut>)> {
        let own = self.core.clone();
        let check = move |file: &File| {
            if Arc::ptr_eq(file.core(), &own) {
                return Ok(());
            }
            let what = format!("inode {} was opened by another client", file.inode());
            Err(Error::new(ErrorCode::InvalidArgument, what))
        };
        let wants = items.into_iter().map(|item| Want {
            usable: check(&item.file),
            file: item.file,
            offset: item.offset,
            len: item.len,
            to: item.buf,
        });
        run(self.core.clone(), wants.collect(), fill).boxed()
    }
}

/// As [`File::read_many`].
pub(crate) async fn read_many(file: &File, ranges: &[(u64, usize)]) -> Vec<Result<Bytes>> {
    let wants = ranges.iter().map(|&(offset, len)| Want {
        usable: Ok(()),
        file: file.clone(),
        offset,
        len,
        to: (),
    });
    let done = run(file.core().clone(), wants.collect(), |core, got, ()| {
        whole(core, got)
    });
    in_order(ranges.len(), done).await
}

/// Results in the order of their indices.
pub(crate) async fn in_order<T>(
    len: usize,
    results: impl Stream<Item = (usize, Result<T>)>,
) -> Vec<Result<T>> {
    let mut ordered: Vec<Option<Result<T>>> = (0..len).map(|_| None).collect();
    let mut results = std::pin::pin!(results);
    while let Some((index, result)) = results.next().await {
        ordered[index] = Some(result);
    }
    let missing = || Err(Error::new(ErrorCode::Internal, "a range was not answered"));
    ordered
        .into_iter()
        .map(|result| result.unwrap_or_else(missing))
        .collect()
}

/// A range that someone wants, before it is known whether and how far it can be read.
struct Want<T> {
    usable: Result<()>,
    file: File,
    offset: u64,
    len: usize,
    to: T,
}

/// A range within a file.
pub(crate) struct Range {
    pub(crate) state: Arc<InodeState>,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// One span of a range.
pub(crate) struct Part {
    pub(crate) span: ChunkSpan,
    /// What the chunk holds of it, which may be less. `None`: to be read on its own.
    pub(crate) data: Option<Bytes>,
}

/// A range and its spans.
pub(crate) struct Got {
    pub(crate) range: Range,
    pub(crate) parts: Vec<Part>,
}

fn run<T, R, F, Fut>(
    core: Arc<Core>,
    wants: Vec<Want<T>>,
    finish: F,
) -> impl Stream<Item = (usize, Result<R>)> + Send + 'static
where
    T: Send + Sync + 'static,
    R: Send + 'static,
    F: Fn(Arc<Core>, Got, T) -> Fut + Send + 'static,
    Fut: Future<Output = Result<R>> + Send + 'static,
{
    let prepared = async move {
        let lens = stream::iter(wants).map(|want| async move {
            let len = within(&want).await;
            (want, len)
        });
        let wants: Vec<_> = lens.buffered(RANGES_IN_FLIGHT).collect().await;
        let (mut failed, mut ranges) = (Vec::new(), Vec::with_capacity(wants.len()));
        for (index, (want, len)) in wants.into_iter().enumerate() {
            match len {
                Err(error) => failed.push((index, Err(error))),
                Ok(len) => {
                    let (state, offset) = (want.file.state().clone(), want.offset);
                    ranges.push(((index, want.to), Range { state, offset, len }));
                }
            }
        }
        let finished = fetch(core.clone(), ranges).map(move |((index, to), got)| {
            let done = got.map(|got| finish(core.clone(), got, to));
            async move {
                match done {
                    Ok(done) => (index, done.await),
                    Err(error) => (index, Err(error)),
                }
            }
        });
        stream::iter(failed).chain(finished.buffer_unordered(RANGES_IN_FLIGHT))
    };
    prepared.flatten_stream()
}

/// How much of a range lies within its file.
async fn within<T>(want: &Want<T>) -> Result<usize> {
    want.usable.clone()?;
    want.file.readable()?;
    let len = prepare(&want.file, want.offset, want.len).await?;
    if len > MAX_RANGE {
        let what = format!(
            "{len} bytes of inode {} in one range; read at most {MAX_RANGE} at once",
            want.file.inode()
        );
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    Ok(len)
}

/// Reads ranges, each with a tag of the caller's, in few requests.
pub(crate) fn fetch<T: Send + 'static>(
    core: Arc<Core>,
    ranges: Vec<(T, Range)>,
) -> impl Stream<Item = (T, Result<Got>)> + Send + 'static {
    async move {
        let (batches, mut gather, ready) = plan(&core, ranges).await;
        let reads = stream::iter(batches).map(move |batch| {
            let core = core.clone();
            async move {
                let results = crate::batch::read(&core.io, &batch.wants).await;
                (batch.places, results)
            }
        });
        let done = reads
            .buffer_unordered(BATCHES_IN_FLIGHT)
            .flat_map(move |(places, results)| stream::iter(gather.take(&places, results)));
        stream::select(stream::iter(ready), done)
    }
    .flatten_stream()
}

/// Where a span belongs: which range, which of its parts.
type Place = (usize, usize);

#[derive(Default)]
struct Batch {
    places: Vec<Place>,
    wants: Vec<(ChunkRange, Arc<Replica>)>,
    bytes: usize,
}

/// Ranges that wait for spans.
struct Gather<T> {
    slots: Vec<Option<Slot<T>>>,
}

struct Slot<T> {
    tag: T,
    got: Got,
    waiting: usize,
}

impl<T> Gather<T> {
    /// Puts the results of a request in their places; answers the ranges that are complete now.
    fn take(
        &mut self,
        places: &[Place],
        results: Result<Vec<Result<Bytes>>>,
    ) -> Vec<(T, Result<Got>)> {
        // A part that failed, for whatever reason, is read again later, with all retries.
        let results = results.unwrap_or_default().into_iter().map(Result::ok);
        let mut complete = Vec::new();
        for (&(range, part), data) in places.iter().zip(results.chain(std::iter::repeat(None))) {
            let Some(slot) = &mut self.slots[range] else {
                continue;
            };
            let alone = slot.got.parts.len() == 1;
            // A part that waits for others must not keep the whole reply in memory.
            slot.got.parts[part].data = match data {
                Some(data) if !alone => Some(Bytes::copy_from_slice(&data)),
                data => data,
            };
            slot.waiting -= 1;
            if slot.waiting == 0 {
                let done = self.slots[range].take();
                complete.extend(done.map(|slot| (slot.tag, Ok(slot.got))));
            }
        }
        complete
    }
}

/// Which request asks for which span; and the ranges that need none. Spans with no replica now are left out.
async fn plan<T>(
    core: &Core,
    ranges: Vec<(T, Range)>,
) -> (Vec<Batch>, Gather<T>, Vec<(T, Result<Got>)>) {
    let map = core.io.map.current();
    let mut replicas: HashMap<ChunkKey, Option<Arc<Replica>>> = HashMap::new();
    let mut planned: HashMap<NodeId, usize> = HashMap::new();
    let mut open: HashMap<NodeId, Batch> = HashMap::new();
    let (mut batches, mut slots, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    for (tag, range) in ranges {
        let spans = match range.state.layout.spans(range.offset, range.len) {
            // The offset may be anywhere then.
            _ if range.len == 0 => Vec::new(),
            Ok(spans) => spans,
            Err(error) => {
                ready.push((tag, Err(error)));
                continue;
            }
        };
        let mut waiting = 0;
        for (part, span) in spans.iter().enumerate() {
            if range.len >= LARGE {
                break;
            }
            let Ok(want) = range.state.range(&core.io, span).await else {
                continue;
            };
            let replica = replicas.entry(want.key).or_insert_with(|| {
                let weight = |node| planned.get(&node).copied().unwrap_or(0);
                let replica = core.io.reader_by(&map, want.chain, &[], weight);
                replica.ok().flatten().map(Arc::new)
            });
            let Some(replica) = replica.clone() else {
                continue;
            };
            let len = span.len as usize;
            *planned.entry(replica.node).or_default() += len;
            let batch = open.entry(replica.node).or_default();
            let full = batch.places.len() >= BATCH_ITEMS || batch.bytes + len > BATCH_BYTES;
            if full && !batch.places.is_empty() {
                batches.push(std::mem::take(batch));
            }
            batch.bytes += len;
            batch.places.push((slots.len(), part));
            batch.wants.push((want, replica));
            waiting += 1;
        }
        let parts = spans.into_iter().map(|span| Part { span, data: None });
        let got = Got {
            range,
            parts: parts.collect(),
        };
        if waiting == 0 {
            ready.push((tag, Ok(got)));
        } else {
            slots.push(Some(Slot { tag, got, waiting }));
        }
    }
    batches.extend(open.into_values());
    (batches, Gather { slots }, ready)
}

/// Appends a range to `buf`.
async fn fill(core: Arc<Core>, got: Got, mut buf: BytesMut) -> Result<BytesMut> {
    let Got { range, parts } = got;
    buf.reserve(range.len);
    let before = buf.len();
    if range.len == 0 {
        return Ok(buf);
    }
    if parts.iter().all(|part| part.data.is_none()) {
        let spare = buf.split_off(before);
        let filled = read_chunks(&core, &range.state, range.offset, range.len, spare).await?;
        buf.unsplit(filled);
        return Ok(buf);
    }
    for Part { span, data } in parts {
        let data = match data {
            Some(data) => data,
            None => read_part(&core, &range.state, &span).await?,
        };
        buf.extend_from_slice(&data);
        buf.resize(before + span.at + span.len as usize, 0);
    }
    Ok(buf)
}

/// What a chunk holds of a span, with all retries.
pub(crate) async fn read_part(core: &Core, state: &InodeState, span: &ChunkSpan) -> Result<Bytes> {
    let want = state.range(&core.io, span).await?;
    let buf = BytesMut::with_capacity(span.len as usize);
    Ok(core.io.read(want, buf).await?.freeze())
}

/// A range as it is: the very bytes of the reply if one span has it all.
async fn whole(core: Arc<Core>, mut got: Got) -> Result<Bytes> {
    if let [part] = got.parts.as_mut_slice()
        && let Some(data) = part.data.take_if(|data| data.len() == got.range.len)
    {
        return Ok(data);
    }
    Ok(fill(core, got, BytesMut::new()).await?.freeze())
}
