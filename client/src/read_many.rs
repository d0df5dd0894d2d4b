//! Many small ranges at once: one request per storage node carries many of them.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use emberfs_proto::Result;
use emberfs_proto::ids::NodeId;
use emberfs_proto::layout::ChunkSpan;
use futures::StreamExt;

use crate::File;
use crate::chunk_io::Replica;
use crate::chunk_read::ChunkRange;
use crate::read::prepare;

/// Most ranges of one request.
const BATCH_ITEMS: usize = 256;
/// Most bytes of one request, unless a single range is larger.
const BATCH_BYTES: usize = 8 << 20;
/// Requests of one call in flight.
const BATCHES_IN_FLIGHT: usize = 16;
/// Ranges of one call that are prepared, or read again on their own, at the same time.
const RANGES_IN_FLIGHT: usize = 32;

/// One span of one of the ranges.
struct Part {
    range: usize,
    span: ChunkSpan,
}

#[derive(Default)]
struct Batch {
    parts: Vec<usize>,
    wants: Vec<(ChunkRange, Replica)>,
    bytes: usize,
}

/// As [`File::read_many`].
pub(crate) async fn read_many(file: &File, ranges: &[(u64, usize)]) -> Vec<Result<Bytes>> {
    let (core, state) = (file.core(), file.state());
    let prepared = futures::stream::iter(
        ranges
            .iter()
            // By value, so that the future of a read is Send and can be spawned.
            .copied()
            .map(|(offset, len)| prepare(file, offset, len)),
    );
    let lens: Vec<Result<usize>> = prepared.buffered(RANGES_IN_FLIGHT).collect().await;

    let mut parts = Vec::new();
    for (range, (&(offset, _), len)) in ranges.iter().zip(&lens).enumerate() {
        let spans = len.clone().and_then(|len| state.layout.spans(offset, len));
        parts.extend(
            spans
                .unwrap_or_default()
                .into_iter()
                .map(|span| Part { range, span }),
        );
    }
    let batches = plan(file, &parts).await;
    let mut data: Vec<Option<Bytes>> = vec![None; parts.len()];
    let reads = batches.into_iter().map(|batch| async move {
        let results = core.io.read_batch(&batch.wants).await;
        (batch.parts, results)
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(BATCHES_IN_FLIGHT);
    while let Some((indices, results)) = reads.next().await {
        // A part that failed, for whatever reason, is read again below, with all retries.
        for (part, result) in indices.into_iter().zip(results.unwrap_or_default()) {
            data[part] = result.ok();
        }
    }

    let mut pieces: Vec<Vec<(ChunkSpan, Option<Bytes>)>> =
        ranges.iter().map(|_| Vec::new()).collect();
    for (part, bytes) in parts.into_iter().zip(data) {
        pieces[part.range].push((part.span, bytes));
    }
    let joined = pieces
        .into_iter()
        .zip(lens)
        .map(|(pieces, len)| join(file, pieces, len));
    futures::stream::iter(joined)
        .buffered(RANGES_IN_FLIGHT)
        .collect()
        .await
}

/// Which request asks for which part. Parts with no replica now are left out.
async fn plan(file: &File, parts: &[Part]) -> Vec<Batch> {
    let (core, state) = (file.core(), file.state());
    let map = core.io.map.current();
    // All ranges of one chunk go to one replica, chunks of one chain spread over its replicas.
    let mut replicas: HashMap<u32, Option<Replica>> = HashMap::new();
    let mut open: HashMap<NodeId, Batch> = HashMap::new();
    let mut batches = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let Ok(want) = state.range(&core.io, &part.span).await else {
            continue;
        };
        let replica = replicas
            .entry(part.span.index.0)
            .or_insert_with(|| core.io.reader(&map, want.chain, &[]).ok().flatten());
        let Some(replica) = replica.clone() else {
            continue;
        };
        let batch = open.entry(replica.node).or_default();
        let len = part.span.len as usize;
        let full = batch.parts.len() >= BATCH_ITEMS || batch.bytes + len > BATCH_BYTES;
        if full && !batch.parts.is_empty() {
            batches.push(std::mem::take(batch));
        }
        batch.bytes += len;
        batch.parts.push(index);
        batch.wants.push((want, replica));
    }
    batches.extend(open.into_values());
    batches
}

/// One range from its parts: the very bytes of the reply if one part has it all.
async fn join(
    file: &File,
    mut pieces: Vec<(ChunkSpan, Option<Bytes>)>,
    len: Result<usize>,
) -> Result<Bytes> {
    let (core, state) = (file.core(), file.state());
    let len = len?;
    if let [(span, Some(bytes))] = pieces.as_mut_slice()
        && bytes.len() == span.len as usize
    {
        return Ok(std::mem::take(bytes));
    }
    let mut whole = BytesMut::with_capacity(len);
    for (span, bytes) in pieces {
        let end = span.at + span.len as usize;
        if let Some(bytes) = bytes {
            whole.extend_from_slice(&bytes);
        } else {
            let want = state.range(&core.io, &span).await?;
            let buf = BytesMut::with_capacity(span.len as usize);
            whole.extend_from_slice(&core.io.read(want, buf).await?);
        }
        whole.resize(end, 0);
    }
    Ok(whole.freeze())
}
