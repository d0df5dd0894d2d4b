//! Brings a SYNCING successor up to date: compares records, sends only what differs.
//!
//! One pass runs under one chain version and ends with SYNC_DONE; a change of the chain ends the
//! pass and the new version begins another. Writes that happen meanwhile reach the successor as
//! whole chunks by the ordinary path, so the pass only has to bring what was there before.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use emberfs_proto::convert::chunk_key;
use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, TargetId};
use emberfs_proto::wire::{Call, Channel, Opcode};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use futures::{StreamExt, TryStreamExt, stream};

use super::TargetHost;
use crate::chain::Event;
use crate::engine::ChunkMeta;

/// Chunks per page of a listing.
const PAGE: usize = 1024;
/// Longest wait for one answer of the successor.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest wait after a failed pass.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// Repeats passes until one succeeds or the chain changes.
pub(super) async fn run(
    host: Arc<TargetHost>,
    version: ChainVersion,
    to: TargetId,
    busy: Vec<ChunkKey>,
) {
    let mut wait = BACK_OFF[0];
    loop {
        let pass = Pass {
            host: &host,
            version,
            to,
        };
        match pass.run(&busy).await {
            Ok(sent) => {
                tracing::info!(target = %host.id(), %to, %version, sent, "resync complete");
                return;
            }
            Err(error) => {
                tracing::debug!(target = %host.id(), %to, %version, %error, "resync pass failed");
            }
        }
        if host.view().is_none_or(|view| view.version != version) {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF[1]);
    }
}

struct Pass<'a> {
    host: &'a Arc<TargetHost>,
    version: ChainVersion,
    to: TargetId,
}

impl Pass<'_> {
    /// Returns the number of chunks sent.
    async fn run(&self, busy: &[ChunkKey]) -> Result<u64> {
        self.host.sync_done.store(0, Relaxed);
        self.host.sync_total.store(0, Relaxed);
        let mut sent = self.send(busy.to_vec()).await?;
        let mut ours = Listing::default();
        let mut theirs = Listing::default();
        loop {
            if ours.needs_page() {
                let page = self
                    .host
                    .engine()
                    .list(self.host.id(), ours.after, PAGE)
                    .await?;
                let end = page.len() < PAGE;
                ours.extend(
                    page.into_iter().map(|(key, meta)| (key, Copy::ours(&meta))),
                    end,
                );
            }
            if theirs.needs_page() {
                let reply = self.list(theirs.after).await?;
                let page = reply
                    .chunks
                    .iter()
                    .map(|c| Ok((chunk_key(&c.key)?, Copy::theirs(c))));
                theirs.extend(page.collect::<Result<Vec<_>>>()?.into_iter(), reply.end);
            }
            let (differing, compared) = differing(&mut ours, &mut theirs);
            self.host.sync_total.fetch_add(compared, Relaxed);
            sent += self.send(differing).await?;
            self.host.sync_done.fetch_add(compared, Relaxed);
            if ours.is_done() && theirs.is_done() {
                break;
            }
        }
        let chain_version = self.version;
        self.host.drive(Event::HandOver { chain_version });
        let body = pb::SyncDoneRequest {
            chain: Some(self.chain()),
            target: self.to.0,
        };
        self.call(Opcode::SyncDone, &body).await?;
        Ok(sent)
    }

    async fn send(&self, keys: Vec<ChunkKey>) -> Result<u64> {
        let parallel = self.host.node()?.config.resync_parallel.max(1);
        let count = keys.len() as u64;
        stream::iter(keys.into_iter().map(|key| {
            let chain_version = self.version;
            self.host.request(move |request| Event::Resync {
                request,
                chain_version,
                key,
            })
        }))
        .buffer_unordered(parallel)
        .try_for_each(|_| async { Ok(()) })
        .await?;
        Ok(count)
    }

    async fn list(&self, after: Option<ChunkKey>) -> Result<pb::SyncListReply> {
        let body = pb::SyncListRequest {
            chain: Some(self.chain()),
            target: self.to.0,
            after: after
                .map(|key| key.encode().to_vec().into())
                .unwrap_or_default(),
            limit: PAGE as u32,
        };
        self.call(Opcode::SyncList, &body).await?.decode()
    }

    fn chain(&self) -> pb::ChainRef {
        let chain = self.host.view().map_or(ChainId(0), |view| view.chain);
        pb::ChainRef::of(chain, self.version)
    }

    async fn call(
        &self,
        opcode: Opcode,
        body: &impl prost::Message,
    ) -> Result<emberfs_proto::wire::Reply> {
        let node = self.host.node()?;
        let map = node.map();
        let target = map.targets.get(&self.to).and_then(|t| map.node_of(t));
        let Some(peer) = target else {
            let what = format!("target {} is not in the map", self.to);
            return Err(Error::new(ErrorCode::StaleChainVersion, what));
        };
        let call = Call::new(opcode, body, Instant::now() + CALL_TIMEOUT);
        node.peers.peer(&peer.data_addr).call(call).await
    }
}

/// What a comparison looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    committed: u64,
    len: u32,
    checksum: u32,
    pending: bool,
}

impl Copy {
    pub(crate) fn ours(meta: &ChunkMeta) -> Self {
        // What is pending here is a live write, which travels by itself.
        Self {
            committed: meta.committed.0,
            len: meta.committed_len,
            checksum: meta.checksum,
            pending: false,
        }
    }

    pub(crate) fn theirs(info: &pb::ChunkInfo) -> Self {
        Self {
            committed: info.committed,
            len: info.len,
            checksum: info.checksum,
            pending: info.pending != 0,
        }
    }
}

/// A sorted listing that is read page by page.
#[derive(Default)]
pub(crate) struct Listing {
    page: std::collections::VecDeque<(ChunkKey, Copy)>,
    pub(crate) after: Option<ChunkKey>,
    end: bool,
}

impl Listing {
    pub(crate) fn needs_page(&self) -> bool {
        self.page.is_empty() && !self.end
    }

    pub(crate) fn is_done(&self) -> bool {
        self.page.is_empty() && self.end
    }

    pub(crate) fn extend(&mut self, page: impl Iterator<Item = (ChunkKey, Copy)>, end: bool) {
        self.page.extend(page);
        self.after = self.page.back().map(|&(key, _)| key).or(self.after);
        self.end = end;
    }
}

/// Keys on which both sides differ, as far as the pages at hand tell, and how many were compared.
pub(crate) fn differing(ours: &mut Listing, theirs: &mut Listing) -> (Vec<ChunkKey>, u64) {
    let mut keys = Vec::new();
    let mut compared = 0;
    loop {
        let order = match (ours.page.front(), theirs.page.front()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) if theirs.end => Ordering::Less,
            (None, Some(_)) if ours.end => Ordering::Greater,
            _ => return (keys, compared),
        };
        let mine = if order == Ordering::Greater {
            None
        } else {
            ours.page.pop_front()
        };
        let other = if order == Ordering::Less {
            None
        } else {
            theirs.page.pop_front()
        };
        compared += 1;
        let same = matches!((mine, other), (Some((_, a)), Some((_, b))) if a == b);
        // A chunk that is only being created here has nothing committed to send.
        let nothing = other.is_none() && mine.is_some_and(|(_, copy)| copy.committed == 0);
        if let Some((key, _)) = mine.or(other)
            && !same
            && !nothing
        {
            keys.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(committed: u64, checksum: u32) -> Copy {
        Copy {
            committed,
            len: 10,
            checksum,
            pending: false,
        }
    }

    fn listing(items: &[(u32, Copy)], end: bool) -> Listing {
        let page = items
            .iter()
            .map(|&(index, copy)| (ChunkKey::new(1, index), copy))
            .collect();
        Listing {
            page,
            after: None,
            end,
        }
    }

    fn keys(mut ours: Listing, mut theirs: Listing) -> Vec<u32> {
        differing(&mut ours, &mut theirs)
            .0
            .into_iter()
            .map(|key| key.index.0)
            .collect()
    }

    #[test]
    fn only_what_differs_is_sent() {
        let ours = listing(
            &[
                (1, copy(3, 7)),
                (2, copy(4, 7)),
                (3, copy(1, 7)),
                (5, copy(1, 1)),
            ],
            true,
        );
        let pending = Copy {
            pending: true,
            ..copy(1, 7)
        };
        let theirs = listing(
            &[
                (1, copy(3, 7)),
                (2, copy(4, 8)),
                (3, pending),
                (4, copy(9, 9)),
                (5, copy(1, 1)),
            ],
            true,
        );
        assert_eq!(keys(ours, theirs), [2, 3, 4]);
    }

    #[test]
    fn a_chunk_that_is_being_created_is_left_to_its_write() {
        assert_eq!(
            keys(listing(&[(1, copy(0, 0))], true), listing(&[], true)),
            [0; 0]
        );
        let theirs = listing(&[(1, copy(2, 2))], true);
        assert_eq!(keys(listing(&[(1, copy(0, 0))], true), theirs), [1]);
    }

    #[test]
    fn an_unfinished_page_decides_nothing_beyond_its_end() {
        let mut ours = listing(&[(1, copy(1, 1)), (9, copy(1, 1))], true);
        let mut theirs = listing(&[(1, copy(1, 1))], false);
        let (keys, compared) = differing(&mut ours, &mut theirs);
        assert!(keys.is_empty() && compared == 1 && theirs.needs_page() && ours.page.len() == 1);
    }
}
