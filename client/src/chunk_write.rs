//! Changing chunks, by writes and cuts: at the head, under one tag until it is acknowledged.

use bytes::{Buf, Bytes};
use emberfs_proto::checksum::fragments;
use emberfs_proto::ids::{ChainId, ChunkKey};
use emberfs_proto::layout::Layout;
use emberfs_proto::wire::{Call, Opcode};
use emberfs_proto::{Error, ErrorCode, Result, pb};

use crate::chunk_io::ChunkIo;
use crate::plan::{Role, WRITE_ATTEMPT};
use crate::stats::add;

/// A write that is refused this often because of damage (on the way, or of a page that it would keep a
/// part of and that no replica has the bytes for) fails: time will not bring the bytes back.
const MAX_DAMAGED: u32 = 5;

/// A write to one chunk.
#[derive(Clone, Debug)]
pub(crate) struct ChunkWrite {
    pub(crate) key: ChunkKey,
    pub(crate) chain: ChainId,
    pub(crate) layout: Layout,
    pub(crate) offset: u32,
    /// The bytes, in order; not empty.
    pub(crate) pieces: Vec<Bytes>,
    /// Expected final length of the chunk, 0: unknown.
    pub(crate) size_hint: u32,
}

/// A cut of one chunk, which may not be there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkCut {
    pub(crate) key: ChunkKey,
    pub(crate) chain: ChainId,
    pub(crate) layout: Layout,
    /// Bytes that stay.
    pub(crate) len: u32,
    /// Refused if the chunk is longer than this, which is not 0.
    pub(crate) within: u32,
}

impl ChunkIo {
    /// Writes until every replica of the chain has it, or for good reason never will. Runs to its end
    /// in its own task: a write that is dropped half-way would leave its channel's number in doubt.
    pub(crate) async fn write(&self, write: &ChunkWrite) -> Result<pb::WriteReply> {
        let len: usize = write.pieces.iter().map(Bytes::len).sum();
        let request = pb::WriteRequest {
            kind: pb::WriteKind::Write.into(),
            offset: write.offset,
            len: len as u32,
            checksums: checksums(write.offset, &write.pieces, write.layout.page_size),
            size_hint: write.size_hint,
            ..request(write.key, &write.layout)
        };
        let reply = self.change(write.chain, request, &write.pieces).await?;
        add(&self.counters.chunk_writes, 1);
        add(&self.counters.written_bytes, len as u64);
        Ok(reply)
    }

    /// As [`Self::write`], of a cut. A chunk that is not there, or shorter, stays as it is;
    /// [`ErrorCode::StaleChunkVersion`]: it is longer than it may be, and nothing is cut.
    pub(crate) async fn cut(&self, cut: &ChunkCut) -> Result<()> {
        let request = pb::WriteRequest {
            kind: pb::WriteKind::Truncate.into(),
            len: cut.len,
            within: cut.within,
            ..request(cut.key, &cut.layout)
        };
        self.change(cut.chain, request, &[]).await.map(drop)
    }

    async fn change(
        &self,
        chain: ChainId,
        mut request: pb::WriteRequest,
        pieces: &[Bytes],
    ) -> Result<pb::WriteReply> {
        let lease = self.channels.acquire().await;
        let key = request.key();
        request.tag = Some(lease.tag().into());
        let mut patience = self.patience();
        let mut damaged = 0;
        loop {
            let map = self.map.current();
            let attempt = async {
                let head = Self::head(&map, chain)?;
                request.chain = Some(pb::ChainRef::of(chain, head.version));
                let deadline = patience.attempt(WRITE_ATTEMPT);
                let mut call = Call::new(Opcode::Write, &request, deadline);
                call.payload = pieces.to_vec();
                self.call(&head, Role::Head, call)
                    .await?
                    .decode::<pb::WriteReply>()
            };
            let error: Error = match attempt.await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            add(&self.counters.write_retries, 1);
            if error.code == ErrorCode::ChecksumMismatch {
                damaged += 1;
                if damaged == MAX_DAMAGED {
                    return Err(error);
                }
            }
            tracing::debug!(chunk = %key, tag = %lease.tag(), %error, "chunk write failed");
            let what = || format!("writing chunk {key} of chain {chain}");
            let wake = self.wake(error.retry(), map.version);
            patience.wait(error, what, wake).await?;
        }
    }
}

/// What all changes of a chunk say.
fn request(key: ChunkKey, layout: &Layout) -> pb::WriteRequest {
    pb::WriteRequest {
        inode: key.inode.0,
        index: key.index.0,
        chunk_size: layout.chunk_size,
        page_size: layout.page_size,
        ..pb::WriteRequest::default()
    }
}

/// One checksum per fragment of the pieces, which lie one after the other at `offset` of the chunk.
fn checksums(offset: u32, pieces: &[Bytes], page_size: u32) -> Vec<u32> {
    let len: usize = pieces.iter().map(Bytes::len).sum();
    let mut pieces = pieces.iter().cloned();
    let mut piece = Bytes::new();
    let sum = |fragment: std::ops::Range<u32>| {
        let mut hasher = crc32fast::Hasher::new();
        let mut left = fragment.len();
        while left > 0 {
            if piece.is_empty() {
                let Some(next) = pieces.next() else { break };
                piece = next;
                continue;
            }
            let part = left.min(piece.len());
            hasher.update(&piece[..part]);
            piece.advance(part);
            left -= part;
        }
        hasher.finalize()
    };
    fragments(offset, len as u32, page_size).map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberfs_proto::checksum::fragment_checksums;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_have_the_checksums_of_the_whole(
            data in proptest::collection::vec(any::<u8>(), 1..40_000),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
            offset in 0u32..20_000,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(data.len())).collect();
            cuts.sort_unstable();
            let mut whole = Bytes::from(data.clone());
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts {
                pieces.push(whole.split_to(cut - at));
                at = cut;
            }
            pieces.push(whole);
            prop_assert_eq!(checksums(offset, &pieces, 4096), fragment_checksums(offset, &data, 4096));
        }
    }
}
