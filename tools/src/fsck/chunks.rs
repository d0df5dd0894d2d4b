//! Chunks of a chain, read from all its replicas at once, in key order.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use emberfs_proto::cluster::{ClusterMap, PublicState};
use emberfs_proto::convert::chunk_key;
use emberfs_proto::ids::{ChainId, ChunkKey};
use emberfs_proto::pb;
use emberfs_proto::pb::storage_admin_client::StorageAdminClient;
use futures::Stream;
use futures::future::join_all;
use std::time::Duration;
use tokio::sync::Mutex;
use tonic::transport::Channel;

use crate::failure::Result;
use crate::rpc;

use super::compare::{Chunk, Content, View};

/// Chunks per page.
const PAGE: u32 = 1024;
/// How long a page may take.
const PAGE_LIMIT: Duration = Duration::from_secs(30);
/// How long reading one chunk may take: 64 MiB from a busy disk.
const VERIFY_LIMIT: Duration = Duration::from_mins(1);

type Admin = StorageAdminClient<Channel>;

/// The cluster as it is now, and connections to its storage servers.
pub(super) struct Cluster {
    map: ClusterMap,
    admins: Mutex<HashMap<u32, Admin>>,
}

impl Cluster {
    pub(super) async fn load(address: &str) -> Result<Self> {
        let map = ClusterMap::try_from(&rpc::map(address).await?)?;
        Ok(Self {
            map,
            admins: Mutex::default(),
        })
    }

    pub(super) fn chains(&self) -> Vec<u32> {
        self.map.chains.keys().map(|id| id.0).collect()
    }

    pub(super) fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// Opens all replicas of a chain that have something to compare.
    pub(super) async fn reader(&self, chain: u32) -> Result<ChainReader> {
        let chain = self.map.chain(ChainId(chain))?;
        let mut replicas = Vec::new();
        for target in self.map.writable(chain) {
            let admin = self.admin(target.node.0).await?;
            replicas.push(Replica {
                target: target.id.0,
                node: target.node.0,
                serving: target.state == PublicState::Serving,
                admin,
            });
        }
        let skipped = (chain.targets.len() - replicas.len()) as u64;
        Ok(ChainReader { replicas, skipped })
    }

    async fn admin(&self, node: u32) -> Result<Admin> {
        let mut admins = self.admins.lock().await;
        if let Some(admin) = admins.get(&node) {
            return Ok(admin.clone());
        }
        let address = self
            .map
            .nodes
            .get(&node.into())
            .map(|node| node.admin_addr.as_str());
        let admin = rpc::storage_admin(address.unwrap_or_default()).await?;
        admins.insert(node, admin.clone());
        Ok(admin)
    }
}

struct Replica {
    target: u64,
    node: u32,
    serving: bool,
    admin: Admin,
}

/// All replicas of one chain.
pub(super) struct ChainReader {
    replicas: Vec<Replica>,
    skipped: u64,
}

impl ChainReader {
    /// Replicas that are down.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Every chunk that any replica has, in key order, with each replica's view of it.
    pub(super) fn merged(&self) -> impl Stream<Item = Result<(ChunkKey, Vec<View>)>> + '_ {
        let pagers: Vec<_> = self.replicas.iter().map(Pager::new).collect();
        futures::stream::try_unfold(pagers, |mut pagers| async move {
            for outcome in join_all(pagers.iter_mut().map(Pager::fill)).await {
                outcome?;
            }
            let next = pagers.iter().filter_map(Pager::peek).min();
            let Some(key) = next else { return Ok(None) };
            let views = pagers
                .iter_mut()
                .map(|pager| pager.replica.view(pager.take(key)));
            let views = views.collect();
            Ok(Some(((key, views), pagers)))
        })
    }

    /// Each replica's view of one chunk, asked now.
    pub(super) async fn one(&self, key: ChunkKey) -> Result<Vec<View>> {
        let looks = self.replicas.iter().map(|replica| async move {
            let after = predecessor(key);
            let (chunks, _) = replica.page(after, 1).await?;
            let chunk = chunks.into_iter().find(|chunk| chunk.key == key);
            Ok(replica.view(chunk))
        });
        join_all(looks).await.into_iter().collect()
    }

    /// Has every replica that has the chunk read its bytes.
    pub(super) async fn verify(&self, key: ChunkKey, views: &mut [View]) {
        let reads = self
            .replicas
            .iter()
            .zip(views)
            .map(|(replica, view)| async move {
                if view.chunk.is_some_and(|chunk| chunk.committed != 0) {
                    view.content = Some(replica.read(key).await);
                }
            });
        join_all(reads).await;
    }
}

impl Replica {
    fn view(&self, chunk: Option<Chunk>) -> View {
        View {
            target: self.target,
            node: self.node,
            serving: self.serving,
            chunk,
            content: None,
        }
    }

    async fn page(&self, after: Bytes, limit: u32) -> Result<(Vec<Chunk>, bool)> {
        let request = pb::ListChunksRequest {
            target: self.target,
            after,
            limit,
        };
        let mut admin = self.admin.clone();
        let name = crate::cluster_dir::storage_name(self.node as usize);
        let reply = rpc::answer(&name, PAGE_LIMIT, admin.list_chunks(request)).await?;
        let chunks = reply.chunks.iter().map(|info| {
            Ok(Chunk {
                key: chunk_key(&info.key)?,
                committed: info.committed,
                len: info.len,
                checksum: info.checksum,
                pending: info.pending,
            })
        });
        Ok((chunks.collect::<Result<_>>()?, reply.end))
    }

    async fn read(&self, key: ChunkKey) -> Result<Content, String> {
        let key = Bytes::copy_from_slice(&key.encode());
        let request = pb::VerifyChunkRequest {
            target: self.target,
            key,
        };
        let mut admin = self.admin.clone();
        let reply = tokio::time::timeout(VERIFY_LIMIT, admin.verify_chunk(request)).await;
        match reply {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                let (committed, len, crc) = (reply.committed, reply.len, reply.content_crc);
                Ok(Content {
                    committed,
                    len,
                    crc,
                })
            }
            Ok(Err(status)) => Err(emberfs_proto::Error::from(status).to_string()),
            Err(_) => Err(format!("not read within {} s", VERIFY_LIMIT.as_secs())),
        }
    }
}

/// Reads one replica's chunks page by page.
struct Pager<'a> {
    replica: &'a Replica,
    buffer: VecDeque<Chunk>,
    after: Bytes,
    end: bool,
}

impl<'a> Pager<'a> {
    fn new(replica: &'a Replica) -> Self {
        Self {
            replica,
            buffer: VecDeque::new(),
            after: Bytes::new(),
            end: false,
        }
    }

    async fn fill(&mut self) -> Result<()> {
        while self.buffer.is_empty() && !self.end {
            let (chunks, end) = self.replica.page(self.after.clone(), PAGE).await?;
            // A page without chunks that is not the last would never end.
            self.end = end || chunks.is_empty();
            if let Some(last) = chunks.last() {
                self.after = Bytes::copy_from_slice(&last.key.encode());
            }
            self.buffer = chunks.into();
        }
        Ok(())
    }

    fn peek(&self) -> Option<ChunkKey> {
        self.buffer.front().map(|chunk| chunk.key)
    }

    fn take(&mut self, key: ChunkKey) -> Option<Chunk> {
        self.buffer.pop_front_if(|chunk| chunk.key == key)
    }
}

/// The key just before: listing after it starts with `key`.
fn predecessor(key: ChunkKey) -> Bytes {
    let mut bytes = key.encode();
    if bytes.iter().all(|&byte| byte == 0) {
        return Bytes::new();
    }
    for byte in bytes.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            break;
        }
    }
    Bytes::copy_from_slice(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_predecessor_is_the_largest_smaller_key() {
        let cases = [
            ((5u64, 7u32), (5u64, 6u32)),
            ((5, 0), (4, u32::MAX)),
            ((1, 0), (0, u32::MAX)),
        ];
        for ((inode, index), (before, at)) in cases {
            let found = predecessor(ChunkKey::new(inode, index));
            assert_eq!(ChunkKey::decode(&found), Some(ChunkKey::new(before, at)));
        }
        assert!(predecessor(ChunkKey::new(0u64, 0u32)).is_empty());
    }
}
