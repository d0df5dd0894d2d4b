//! Which chunks of a file hold bytes here: where it has holes, and how much of it is stored.
//!
//! A write is acknowledged only when every SERVING target of the chain has it in its index, pending or
//! committed, so any of them may answer. Of a chunk with a change in progress the larger length counts: a
//! caller may take a hole for data, which reads as zeros, but never data for a hole.

use emberfs_proto::ids::{ChunkKey, InodeId, TargetId};
use emberfs_proto::wire::server::Outgoing;
use emberfs_proto::{Result, pb};

use super::Data;
use crate::engine::Engine;
use crate::node::Wanted;

/// Most chunks in one answer.
const MAX_CHUNKS: usize = 4096;
/// Records looked at for one answer, about. Chunks that were cut to nothing keep their records, and a file may
/// have millions of those: the answer then says where to go on.
const MAX_RECORDS: usize = 16_384;

impl Data {
    pub(super) async fn inode_chunks(&self, request: pb::InodeChunksRequest) -> Result<Outgoing> {
        let (host, version) = self.chain(request.chain.as_ref(), Wanted::Any).await?;
        host.check_serving(version)?;
        let reply = page(host.engine(), host.id(), &request).await?;
        // A process that slept between the check and the look must not answer.
        host.check_serving(version)?;
        Ok(Outgoing::new(&reply))
    }
}

async fn page(
    engine: &Engine,
    target: TargetId,
    request: &pb::InodeChunksRequest,
) -> Result<pb::InodeChunksReply> {
    let inode = InodeId(request.inode);
    let limit = match request.limit as usize {
        0 => MAX_CHUNKS,
        limit => limit.min(MAX_CHUNKS),
    };
    let mut reply = pb::InodeChunksReply::default();
    let (mut next, mut looked) = (request.first, 0);
    while next <= request.last {
        if reply.chunks.len() == limit || looked >= MAX_RECORDS {
            reply.more = true;
            reply.next = next;
            break;
        }
        let range = (request.last - next) as usize + 1;
        let wanted = range.min(limit - reply.chunks.len());
        let after = next.checked_sub(1).map(|last| ChunkKey::new(inode, last));
        let found = engine.list_inode(target, inode, after, wanted).await?;
        looked += found.len();
        let within = found
            .iter()
            .take_while(|(key, _)| key.index.0 <= request.last);
        let with_bytes = within.filter(|(_, meta)| meta.max_len() > 0);
        reply
            .chunks
            .extend(with_bytes.map(|(key, meta)| pb::InodeChunk {
                index: key.index.0,
                len: meta.max_len(),
            }));
        let last = found.last().filter(|_| found.len() == wanted);
        match last.and_then(|(key, _)| key.index.0.checked_add(1)) {
            Some(after) => next = after,
            None => break,
        }
    }
    Ok(reply)
}

#[cfg(test)]
mod tests;
