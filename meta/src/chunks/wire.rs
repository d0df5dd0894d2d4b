//! [`ChunkStore`] over the data plane.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use emberfs_proto::cluster::{ClusterMap, Target};
use emberfs_proto::ids::{ChainId, ClientId, ClusterId, InodeId, WriteTag};
use emberfs_proto::layout::Layout;
use emberfs_proto::wire::client::{Identity, PeerPool};
use emberfs_proto::wire::{Call, Channel, Opcode};
use emberfs_proto::{Error, ErrorCode, Result, RetryClass, pb};
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::ChunkStore;

/// Connections to each storage server: control traffic needs few.
const CONNECTIONS: usize = 2;
/// Chains of one file asked at once.
const PARALLEL_CHAINS: usize = 16;
/// Write channels, that is, cuts and removals in progress on all chains together.
const CHANNELS: u32 = 256;
/// Chunks that one request cuts or removes: each is a replicated write, and all must fit the
/// time limit of one call.
const TRIM_BATCH: u32 = 256;
/// First wait before a repetition; doubles up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// Longest wait before a repetition.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How long to try.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one request to one server.
    pub call: Duration,
    /// For one request to one chain, repetitions included. Then the caller hears
    /// [`ErrorCode::Unavailable`] and tries again itself.
    pub chain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(10),
            chain: Duration::from_secs(30),
        }
    }
}

/// Asks the storage servers that the cluster map names.
pub struct WireChunks {
    pool: PeerPool,
    map: watch::Receiver<Arc<ClusterMap>>,
    client: ClientId,
    /// Free channels and their last sequence numbers, the longest unused first: a request that was
    /// abandoned on a channel has had the most time to end.
    free: Mutex<VecDeque<(u32, u64)>>,
    permits: Semaphore,
    /// Version of the map after which peers were last tidied.
    tidied: AtomicU64,
    patience: Patience,
    /// Ends waits, not requests in progress.
    stop: CancellationToken,
}

/// A write channel in use: at most one request is in flight on it.
struct Numbering<'a> {
    owner: &'a WireChunks,
    channel: u32,
    sequence: u64,
    _permit: SemaphorePermit<'a>,
}

impl Numbering<'_> {
    /// Names a new request. A repetition keeps its name.
    fn next(&mut self) -> WriteTag {
        self.sequence += 1;
        WriteTag {
            client: self.owner.client,
            channel: self.channel,
            sequence: self.sequence,
        }
    }
}

impl Drop for Numbering<'_> {
    fn drop(&mut self) {
        self.owner
            .free
            .lock()
            .push_back((self.channel, self.sequence));
    }
}

/// Which replica answers.
#[derive(Clone, Copy)]
enum Ask {
    Head,
    Any,
}

impl WireChunks {
    /// Calls in the name of `client`, which must be fresh for every start of the server. After
    /// `stop` nothing is tried again.
    pub fn new(
        cluster: ClusterId,
        client: ClientId,
        map: watch::Receiver<Arc<ClusterMap>>,
        patience: Patience,
        stop: CancellationToken,
    ) -> Self {
        let identity = Identity {
            cluster: Some(cluster),
            client,
            instance: 0,
        };
        Self {
            pool: PeerPool::new(identity, CONNECTIONS),
            map,
            client,
            free: Mutex::new((0..CHANNELS).map(|channel| (channel, 0)).collect()),
            permits: Semaphore::new(CHANNELS as usize),
            tidied: AtomicU64::new(0),
            patience,
            stop,
        }
    }

    async fn channel(&self) -> Result<Numbering<'_>> {
        let permit = self.permits.acquire().await.map_err(|_| stopping())?;
        let (channel, sequence) = self.free.lock().pop_front().ok_or_else(stopping)?;
        Ok(Numbering {
            owner: self,
            channel,
            sequence,
            _permit: permit,
        })
    }

    /// The chains that hold a file.
    async fn stripe(&self, layout: Layout) -> Result<Vec<ChainId>> {
        let mut map = self.map.clone();
        let known = |map: &Arc<ClusterMap>| map.table(layout.table, layout.table_version).is_ok();
        // Right after a start the map may not be loaded yet.
        let waited = tokio::time::timeout(self.patience.chain, map.wait_for(known));
        let found = tokio::select! {
            found = waited => found,
            () = self.stop.cancelled() => return Err(stopping()),
        };
        let map = match found {
            Ok(Ok(map)) => map.clone(),
            _ => self.map.borrow().clone(),
        };
        layout.stripe(map.table(layout.table, layout.table_version)?)
    }

    /// Cuts or removes the chunks of one chain, batch by batch.
    async fn trim(&self, chain: ChainId, inode: InodeId, from: Option<(u32, u32)>) -> Result<()> {
        let mut numbering = self.channel().await?;
        let (from_index, from_len) = from.unwrap_or_default();
        loop {
            let tag = numbering.next();
            let request = |chain| pb::TrimRequest {
                chain: Some(chain),
                inode: inode.0,
                tag: Some(tag.into()),
                remove: from.is_none(),
                from_index,
                from_len,
                limit: TRIM_BATCH,
            };
            let reply: pb::TrimReply = self.ask(chain, Ask::Head, Opcode::Trim, request).await?;
            if !reply.more {
                return Ok(());
            }
        }
    }

    async fn trim_all(
        &self,
        inode: InodeId,
        layout: Layout,
        from: Option<(u32, u32)>,
    ) -> Result<()> {
        let chains = futures::stream::iter(self.stripe(layout).await?);
        chains
            .map(|chain| self.trim(chain, inode, from))
            .buffer_unordered(PARALLEL_CHAINS)
            .try_collect::<()>()
            .await
    }

    /// The end of a file's data on one chain.
    async fn chain_end(&self, chain: ChainId, inode: InodeId, layout: Layout) -> Result<u64> {
        let request = |chain| pb::LastChunkRequest {
            chain: Some(chain),
            inode: inode.0,
        };
        let reply: pb::LastChunkReply = self
            .ask(chain, Ask::Any, Opcode::LastChunk, request)
            .await?;
        let data = reply.found && reply.len > 0;
        let start = layout.chunk_start(reply.index.into());
        Ok(if data {
            start + u64::from(reply.len)
        } else {
            0
        })
    }

    /// Asks a chain until it answers, its answer is final, or patience runs out.
    async fn ask<Q: prost::Message, R: prost::Message + Default>(
        &self,
        chain: ChainId,
        which: Ask,
        opcode: Opcode,
        request: impl Fn(pb::ChainRef) -> Q,
    ) -> Result<R> {
        let deadline = Instant::now() + self.patience.chain;
        let mut updates = self.map.clone();
        let mut wait = FIRST_WAIT;
        for attempt in 0.. {
            let map = updates.borrow_and_update().clone();
            self.tidy(&map);
            let limit = deadline.min(Instant::now() + self.patience.call);
            let error = match self
                .once(&map, chain, which, attempt, opcode, &request, limit)
                .await
            {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let class = error.retry();
            if class == RetryClass::Never && error.code != ErrorCode::DeadlineExceeded {
                return Err(error.context(format!("chain {chain}")));
            }
            let hint = Duration::from_millis(error.retry_after_ms.into());
            let pause = wait.max(hint);
            if Instant::now() + pause >= deadline {
                let what =
                    format!("chain {chain} does not answer; check its storage servers: {error}");
                return Err(Error::new(ErrorCode::Unavailable, what).retry_after_ms(1000));
            }
            wait = (wait * 2).min(MAX_WAIT);
            // A new map is likely what is missing, unless the server named a time.
            let news = async {
                if !hint.is_zero() || updates.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = news => {}
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
        let what = format!("chain {chain} was asked too often");
        Err(Error::new(ErrorCode::Unavailable, what))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one attempt of `ask`, split for reading"
    )]
    async fn once<Q: prost::Message, R: prost::Message + Default>(
        &self,
        map: &ClusterMap,
        id: ChainId,
        which: Ask,
        attempt: usize,
        opcode: Opcode,
        request: impl Fn(pb::ChainRef) -> Q,
        limit: Instant,
    ) -> Result<R> {
        let chain = map.chain(id)?;
        let serving: Vec<&Target> = map.serving(chain).collect();
        let target = match which {
            Ask::Head => serving.first(),
            Ask::Any => serving.get(attempt % serving.len().max(1)),
        };
        let node = target.and_then(|target| map.node_of(target));
        let node = node.ok_or_else(|| {
            let what = format!(
                "chain {id} has no serving replica in cluster map {}",
                map.version
            );
            Error::new(ErrorCode::ChainUnavailable, what)
        })?;
        let body = request(pb::ChainRef::of(id, chain.version));
        let call = Call::new(opcode, &body, limit);
        self.pool.peer(&node.data_addr).call(call).await?.decode()
    }

    /// Drops connections to servers that the map does not name any more.
    fn tidy(&self, map: &ClusterMap) {
        if self.tidied.swap(map.version.0, Ordering::Relaxed) != map.version.0 {
            let named: HashSet<&str> = map.nodes.values().map(|n| n.data_addr.as_str()).collect();
            self.pool.retain(|addr| named.contains(addr));
        }
    }
}

fn stopping() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the metadata server is stopping; try again",
    )
}

impl ChunkStore for WireChunks {
    fn cut(&self, inode: InodeId, layout: Layout, size: u64) -> BoxFuture<'_, Result<()>> {
        let index = layout.chunk_of(size);
        // Less than the chunk size, which is 32 bits.
        let rest = (size - layout.chunk_start(index)) as u32;
        Box::pin(self.trim_all(inode, layout, Some((index.0, rest))))
    }

    fn remove(&self, inode: InodeId, layout: Layout) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.trim_all(inode, layout, None))
    }

    fn end(&self, inode: InodeId, layout: Layout) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let chains = futures::stream::iter(self.stripe(layout).await?);
            chains
                .map(|chain| self.chain_end(chain, inode, layout))
                .buffer_unordered(PARALLEL_CHAINS)
                .try_fold(0, async |end, other| Ok(u64::max(end, other)))
                .await
        })
    }
}

#[cfg(test)]
mod tests;
