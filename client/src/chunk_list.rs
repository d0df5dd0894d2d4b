//! Which chunks of a file hold bytes: asked of any SERVING replica of each chain that the file is striped over.
//!
//! What it costs depends on how many chunks there are, not on how long the file is.

use std::ops::RangeInclusive;

use emberfs_proto::ids::{ChainId, InodeId};
use emberfs_proto::wire::{Call, Opcode};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use futures::StreamExt;
use parking_lot::Mutex;

use crate::chunk_io::ChunkIo;
use crate::core::Core;
use crate::inode_state::InodeState;
use crate::plan::{READ_ATTEMPT, Role, elsewhere};

/// Chains of one file asked at once.
const CHAINS_AT_ONCE: usize = 16;
/// Chunks of one answer.
const PAGE: u32 = 4096;

/// A chunk that holds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stored {
    pub(crate) index: u32,
    /// Bytes; not 0.
    pub(crate) len: u32,
}

impl ChunkIo {
    /// At most `limit` of the chunks `range` of a file that hold bytes on one chain, in order, and where to go
    /// on, if there may be more.
    async fn chunks(
        &self,
        chain: ChainId,
        inode: InodeId,
        range: &RangeInclusive<u32>,
        limit: u32,
    ) -> Result<(Vec<Stored>, Option<u32>)> {
        let mut tried = Vec::new();
        let mut patience = self.patience();
        loop {
            let map = self.map.current();
            let error = match self.reader(&map, chain, &tried) {
                Ok(Some(replica)) => {
                    tried.push(replica.target);
                    let body = pb::InodeChunksRequest {
                        chain: Some(pb::ChainRef::of(chain, replica.version)),
                        inode: inode.0,
                        first: *range.start(),
                        last: *range.end(),
                        limit,
                    };
                    let deadline = patience.attempt(READ_ATTEMPT);
                    let call = Call::new(Opcode::InodeChunks, &body, deadline);
                    let reply = self.call(&replica, Role::Reader, call).await;
                    let reply = reply.and_then(|reply| reply.decode());
                    match reply.and_then(|reply| checked(&reply, range, &replica.addr)) {
                        Ok(page) => return Ok(page),
                        Err(error) => error,
                    }
                }
                Ok(None) => Error::new(ErrorCode::Unreachable, "every replica failed"),
                Err(error) => error,
            };
            tracing::debug!(%inode, %chain, %error, "listing chunks failed");
            if elsewhere(&error) && matches!(self.reader(&map, chain, &tried), Ok(Some(_))) {
                continue;
            }
            tried.clear();
            let what = || format!("listing the chunks of inode {inode} on chain {chain}");
            let wake = self.wake(error.retry(), map.version);
            patience.wait(error, what, wake).await?;
        }
    }
}

/// The content of an answer about `range`, which must be in order, within it, and lead on.
fn checked(
    reply: &pb::InodeChunksReply,
    range: &RangeInclusive<u32>,
    from: &str,
) -> Result<(Vec<Stored>, Option<u32>)> {
    let chunks: Vec<_> = reply
        .chunks
        .iter()
        .map(|chunk| Stored {
            index: chunk.index,
            len: chunk.len,
        })
        .collect();
    let next = reply.more.then_some(reply.next);
    let good = chunks
        .iter()
        .all(|c| range.contains(&c.index) && c.len > 0 && next.is_none_or(|next| c.index < next))
        && chunks.is_sorted_by(|a, b| a.index < b.index)
        && next.is_none_or(|next| next > *range.start() && next <= *range.end());
    if !good {
        let what = format!("{from} sent a malformed list of chunks");
        return Err(Error::new(ErrorCode::Protocol, what));
    }
    Ok((chunks, next))
}

impl Core {
    /// Calls `visit` with all of the chunks `range` that hold bytes, page by page, several chains side by side.
    /// A failure ends nothing that was begun: the first one comes back when all is done.
    pub(crate) async fn each_stored<F>(
        &self,
        state: &InodeState,
        range: RangeInclusive<u32>,
        visit: impl Fn(Vec<Stored>) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let chains = state.chains_of(&self.io, &range).await?;
        let chains = futures::stream::iter(chains).map(|chain| {
            let (visit, mut rest) = (&visit, range.clone());
            async move {
                loop {
                    let (page, next) = self.io.chunks(chain, state.inode, &rest, PAGE).await?;
                    if !page.is_empty() {
                        visit(page).await?;
                    }
                    match next {
                        Some(next) => rest = next..=*rest.end(),
                        None => return Ok(()),
                    }
                }
            }
        });
        chains
            .buffer_unordered(CHAINS_AT_ONCE)
            .fold(Ok(()), |all, one| std::future::ready(all.and(one)))
            .await
    }

    /// All of the chunks `range` that hold bytes, in order. The caller bounds the range, and with it the memory.
    pub(crate) async fn stored(
        &self,
        state: &InodeState,
        range: RangeInclusive<u32>,
    ) -> Result<Vec<Stored>> {
        let found = Mutex::new(Vec::new());
        let visit = |page: Vec<Stored>| {
            found.lock().extend(page);
            std::future::ready(Ok(()))
        };
        self.each_stored(state, range, visit).await?;
        let mut found = found.into_inner();
        found.sort_unstable();
        Ok(found)
    }

    /// The first of the chunks `range` that holds bytes.
    pub(crate) async fn first_stored(
        &self,
        state: &InodeState,
        range: RangeInclusive<u32>,
    ) -> Result<Option<Stored>> {
        let chains = state.chains_of(&self.io, &range).await?;
        let firsts = futures::stream::iter(chains).map(|chain| {
            let mut rest = range.clone();
            async move {
                loop {
                    let (page, next) = self.io.chunks(chain, state.inode, &rest, 1).await?;
                    match (page.first(), next) {
                        (Some(&first), _) => return Ok(Some(first)),
                        (None, Some(next)) => rest = next..=*rest.end(),
                        (None, None) => return Ok::<_, Error>(None),
                    }
                }
            }
        });
        let firsts: Vec<_> = firsts.buffer_unordered(CHAINS_AT_ONCE).collect().await;
        let firsts: Vec<_> = firsts.into_iter().collect::<Result<_>>()?;
        Ok(firsts.into_iter().flatten().min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(indices: &[u32], next: Option<u32>) -> pb::InodeChunksReply {
        pb::InodeChunksReply {
            chunks: indices
                .iter()
                .map(|&index| pb::InodeChunk { index, len: 1 })
                .collect(),
            more: next.is_some(),
            next: next.unwrap_or(0),
        }
    }

    #[test]
    fn an_answer_that_would_lead_astray_is_refused() {
        let range = 5..=9;
        let good = |indices: &[u32], next| checked(&reply(indices, next), &range, "x").is_ok();
        assert!(good(&[5, 7, 9], None));
        assert!(good(&[5, 7], Some(8)));
        assert!(good(&[], Some(6)));
        assert!(!good(&[4], None), "not asked for");
        assert!(!good(&[10], None), "not asked for");
        assert!(!good(&[7, 6], None), "out of order");
        assert!(!good(&[7, 7], None), "twice");
        assert!(!good(&[], Some(5)), "no progress");
        assert!(!good(&[], Some(10)), "beyond the end");
        assert!(!good(&[8], Some(8)), "would come again");
        let empty = pb::InodeChunk { index: 5, len: 0 };
        let chunks = vec![empty];
        let reply = pb::InodeChunksReply {
            chunks,
            ..pb::InodeChunksReply::default()
        };
        assert!(checked(&reply, &range, "x").is_err(), "no bytes");
    }
}
