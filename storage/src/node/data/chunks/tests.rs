use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::checksum::fragment_checksums;
use emberfs_proto::cluster::{Chain, ClusterMap, LocalState, Node as MapNode, PublicState, Target};
use emberfs_proto::ids::{
    ChainId, ChainVersion, ChunkVersion, ClientId, ClusterId, DiskId, IncarnationId, MapVersion,
    NodeId, WriteTag,
};
use emberfs_proto::wire::decode;
use emberfs_proto::{ErrorCode, Result, pb};

use super::*;
use crate::chain::{Event, Outcome, Update, UpdateKind};
use crate::config::StorageConfig;
use crate::engine::{Durability, EngineConfig, Prepare, PrepareKind};
use crate::node::{Node, OpenDisk, lease};

const CHUNK: u32 = 64 << 10;
const PAGE: u32 = 4096;
const TARGET: TargetId = TargetId(11);

/// A node with one target, which is a chain by itself.
struct Fixture {
    _dir: tempfile::TempDir,
    node: Arc<Node>,
    data: Data,
    sequence: u64,
}

fn map(version: u64, state: PublicState) -> ClusterMap {
    let mut map = ClusterMap {
        version: MapVersion(version),
        cluster: ClusterId(1),
        replicas: 1,
        ..ClusterMap::default()
    };
    let node = MapNode {
        id: NodeId(1),
        data_addr: "127.0.0.1:1".to_owned(),
        admin_addr: String::new(),
        incarnation: IncarnationId(1),
        alive: true,
        disks: Vec::new(),
    };
    map.nodes.insert(node.id, node);
    let target = Target {
        id: TARGET,
        chain: ChainId(1),
        node: NodeId(1),
        disk: DiskId(1),
        state,
    };
    map.targets.insert(TARGET, target);
    let chain = Chain {
        id: ChainId(1),
        version: ChainVersion(version),
        targets: vec![TARGET],
    };
    map.chains.insert(chain.id, chain);
    map
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig {
            durability: Durability::Process,
            index_cache_bytes: 1 << 20,
            ..EngineConfig::new(dir.path())
        };
        let engine = tokio::task::spawn_blocking(move || Engine::open(config))
            .await
            .unwrap()
            .unwrap();
        let disk = OpenDisk {
            id: DiskId(1),
            path: dir.path().to_owned(),
            engine,
        };
        let config = StorageConfig::new(1, "127.0.0.1:1", vec![dir.path().to_owned()]);
        let node = Node::new(config, ClusterId(1), IncarnationId(1), vec![disk]);
        node.adopt(map(1, PublicState::Serving)).await;
        let lease = Duration::from_mins(1);
        node.lease.granted(lease::now(), lease, MapVersion(1));
        while node.host(TARGET).unwrap().local().0 != LocalState::UpToDate {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let data = Data::new(node.clone());
        Self {
            _dir: dir,
            node,
            data,
            sequence: 0,
        }
    }

    async fn change(&mut self, inode: u64, index: u32, kind: UpdateKind) -> Result<Outcome> {
        self.sequence += 1;
        let update = Update {
            key: ChunkKey::new(inode, index),
            tag: Some(WriteTag {
                client: ClientId(5),
                channel: 0,
                sequence: self.sequence,
            }),
            kind,
            chunk_size: CHUNK,
            page_size: PAGE,
        };
        let event = |request| Event::Write {
            request,
            chain_version: ChainVersion(1),
            update,
            trim: None,
        };
        self.node.host(TARGET).unwrap().request(event).await
    }

    async fn write(&mut self, inode: u64, index: u32, len: usize) {
        let data = Bytes::from(vec![7; len]);
        let kind = UpdateKind::Write {
            offset: 0,
            checksums: fragment_checksums(0, &data, PAGE),
            data,
            size_hint: 0,
        };
        self.change(inode, index, kind).await.unwrap();
    }

    async fn ask(&self, inode: u64, range: (u32, u32), limit: u32) -> Result<pb::InodeChunksReply> {
        let request = pb::InodeChunksRequest {
            chain: Some(pb::ChainRef::of(ChainId(1), ChainVersion(1))),
            inode,
            first: range.0,
            last: range.1,
            limit,
        };
        decode(self.data.inode_chunks(request).await?.body)
    }

    /// Index and length of each chunk, and where to go on.
    async fn list(
        &self,
        inode: u64,
        range: (u32, u32),
        limit: u32,
    ) -> (Vec<(u32, u32)>, Option<u32>) {
        let reply = self.ask(inode, range, limit).await.unwrap();
        let chunks = reply.chunks.iter().map(|c| (c.index, c.len)).collect();
        (chunks, reply.more.then_some(reply.next))
    }
}

#[tokio::test]
async fn chunks_with_bytes_are_listed_in_order_and_page_by_page() {
    let mut f = Fixture::new().await;
    for (inode, index, len) in [
        (1, 0, 9),
        (2, 0, 100),
        (2, 7, 200),
        (2, 8, 300),
        (2, u32::MAX - 1, 400),
        (3, 1, 9),
    ] {
        f.write(inode, index, len).await;
    }
    let all = vec![(0, 100), (7, 200), (8, 300), (u32::MAX - 1, 400)];
    assert_eq!(f.list(2, (0, u32::MAX), 0).await, (all, None));
    assert_eq!(f.list(2, (1, 7), 0).await, (vec![(7, 200)], None));
    assert_eq!(f.list(2, (1, 6), 0).await, (vec![], None));
    assert_eq!(f.list(2, (9, 5), 0).await, (vec![], None));
    assert_eq!(f.list(4, (0, u32::MAX), 0).await, (vec![], None));
    let first = (vec![(0, 100), (7, 200)], Some(8));
    assert_eq!(f.list(2, (0, u32::MAX), 2).await, first);
    let rest = (vec![(8, 300), (u32::MAX - 1, 400)], Some(u32::MAX));
    assert_eq!(f.list(2, (8, u32::MAX), 2).await, rest);
    assert_eq!(f.list(2, (u32::MAX, u32::MAX), 2).await, (vec![], None));
}

#[tokio::test]
async fn chunks_that_were_cut_to_nothing_are_left_out() {
    let mut f = Fixture::new().await;
    for index in 0..6 {
        f.write(2, index, 50).await;
    }
    for index in [0, 1, 3] {
        let (len, within) = (0, u32::MAX);
        f.change(2, index, UpdateKind::Truncate { len, within })
            .await
            .unwrap();
    }
    // What was cut costs no place in the answer.
    let two = (vec![(2, 50), (4, 50)], Some(5));
    assert_eq!(f.list(2, (0, u32::MAX), 2).await, two);
}

#[tokio::test]
async fn a_change_in_progress_counts_with_the_larger_length() {
    let mut f = Fixture::new().await;
    f.write(2, 0, 50).await;
    f.write(2, 1, 50).await;
    let host = f.node.host(TARGET).unwrap();
    // Durable, and neither committed nor given up yet.
    for (index, version, data) in [(0, 2, vec![1; 80]), (1, 2, Vec::new()), (2, 1, vec![1; 9])] {
        let kind = if data.is_empty() {
            PrepareKind::Truncate { len: 0 }
        } else {
            PrepareKind::Write {
                offset: 0,
                checksums: fragment_checksums(0, &data, PAGE),
                data: Bytes::from(data),
                size_hint: 0,
            }
        };
        let prepare = Prepare {
            version: ChunkVersion(version),
            chain_version: ChainVersion(1),
            tag: WriteTag::default(),
            kind,
            page_size: PAGE,
            chunk_size: CHUNK,
        };
        let key = ChunkKey::new(2u64, index);
        host.engine().prepare(TARGET, key, prepare).await.unwrap();
    }
    let larger = vec![(0, 80), (1, 50), (2, 9)];
    assert_eq!(f.list(2, (0, u32::MAX), 0).await, (larger, None));
}

#[tokio::test]
async fn only_a_serving_target_under_a_lease_and_the_right_chain_version_answers() {
    let f = Fixture::new().await;
    assert!(f.ask(2, (0, 9), 0).await.is_ok());
    f.node.adopt(map(2, PublicState::Serving)).await;
    let stale = f.ask(2, (0, 9), 0).await.unwrap_err();
    assert_eq!(stale.code, ErrorCode::StaleChainVersion);

    let f = Fixture::new().await;
    f.node.lease.resign();
    let expired = f.ask(2, (0, 9), 0).await.unwrap_err();
    assert_eq!(expired.code, ErrorCode::LeaseExpired);

    let f = Fixture::new().await;
    let host = f.node.host(TARGET).unwrap();
    host.drive(Event::Failed);
    let failed = f.ask(2, (0, 9), 0).await.unwrap_err();
    assert_eq!(failed.code, ErrorCode::NotServing);
}

#[tokio::test]
async fn a_chunk_is_cut_only_if_it_is_no_longer_than_it_may_be() {
    let mut f = Fixture::new().await;
    f.write(2, 0, 50).await;
    let cut = |len, within| UpdateKind::Truncate { len, within };
    let refused = f.change(2, 0, cut(10, 49)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StaleChunkVersion);
    assert_eq!(f.list(2, (0, 9), 0).await.0, [(0, 50)]);
    f.change(2, 0, cut(10, 50)).await.unwrap();
    assert_eq!(f.list(2, (0, 9), 0).await.0, [(0, 10)]);
    // As short as asked, or not there at all: nothing to do.
    f.change(2, 0, cut(10, 5)).await.unwrap();
    f.change(2, 7, cut(0, 5)).await.unwrap();
    assert_eq!(f.list(2, (0, 9), 0).await.0, [(0, 10)]);
}
