//! A cluster small enough for unit tests: real sockets, real frames and gRPC, chunks in a map.

mod locks;
mod meta;
mod storage;
mod xattr;

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::cluster::{Chain, ClusterMap, Node, Target};
use emberfs_proto::ids::*;
use emberfs_proto::layout::Layout;
use emberfs_proto::pb::PublicState;

pub(crate) use meta::FakeMeta;
pub(crate) use storage::{FakeStorage, Fault};

use crate::{Client, ClientConfig, CreateFlags, Creds, File};

pub(crate) const CLUSTER: ClusterId = ClusterId(77);
pub(crate) const TABLE: ChainTableId = ChainTableId(1);
pub(crate) const VERSION: ChainTableVersion = ChainTableVersion(1);
pub(crate) const CHAINS: u32 = 4;
pub(crate) const NODES: u32 = 3;

/// Three storage nodes, four chains over all of them, one metadata server.
pub(crate) struct Cluster {
    pub(crate) storage: FakeStorage,
    pub(crate) meta: FakeMeta,
}

impl Cluster {
    /// With 64 KiB chunks.
    pub(crate) async fn start() -> Self {
        Self::with_chunks(64 << 10).await
    }

    pub(crate) async fn with_chunks(chunk_size: u32) -> Self {
        let storage = FakeStorage::start(NODES).await;
        let layout = Layout {
            chunk_size,
            page_size: 4096,
            table: TABLE,
            table_version: VERSION,
            stripe_width: CHAINS,
            seed: 5,
        };
        let map = map(&storage, 1, None);
        let chains = map.table(TABLE, VERSION).unwrap();
        storage.state.lock().stripe = layout.stripe(chains).unwrap();
        let meta = FakeMeta::start(layout, map).await;
        Self { storage, meta }
    }

    pub(crate) fn config(&self) -> ClientConfig {
        ClientConfig {
            meta: self.meta.addr().to_owned(),
            io_timeout: Some(Duration::from_secs(10)),
            connect_timeout: Duration::from_secs(10),
            // Tests count requests; on a busy machine any of them may be slow.
            hedge_percent: 0,
            ..ClientConfig::default()
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    /// Publishes a map in which every chain has its next version, to the servers and, after that, to
    /// the clients.
    pub(crate) fn next_map(&self) {
        let version = self.storage.next_version();
        self.meta.publish(map(&self.storage, version, None));
    }

    /// As [`Self::next_map`], without a node.
    pub(crate) fn next_map_without(&self, node: u32) {
        let version = self.storage.next_version();
        self.meta.publish(map(&self.storage, version, Some(node)));
    }
}

pub(crate) fn me() -> Creds {
    Creds {
        uid: 1000,
        gid: 1000,
        groups: vec![4, 24],
    }
}

/// A new file, open for reading and writing.
pub(crate) async fn create(client: &Client, name: &str) -> File {
    let flags = CreateFlags {
        read: true,
        write: true,
        ..CreateFlags::default()
    };
    client
        .create(&me(), client.root(), name.as_bytes(), 0o644, flags)
        .await
        .unwrap()
        .1
}

/// Bytes that differ from each other and from seed to seed.
pub(crate) fn pattern(len: usize, seed: u8) -> bytes::Bytes {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed)
        .collect()
}

/// The map at a chain version; targets of chain c are c*10+1… on nodes 1…
fn map(storage: &FakeStorage, version: u64, down: Option<u32>) -> ClusterMap {
    let mut map = ClusterMap {
        version: MapVersion(version),
        cluster: CLUSTER,
        replicas: NODES,
        ..ClusterMap::default()
    };
    for node in 1..=NODES {
        let addr = storage.addr(node);
        let node = Node {
            id: NodeId(node),
            data_addr: addr,
            admin_addr: String::new(),
            incarnation: IncarnationId(1),
            alive: down != Some(node),
            disks: Vec::new(),
        };
        map.nodes.insert(node.id, node);
    }
    for chain in 1..=CHAINS {
        let ids: Vec<_> = (1..=NODES)
            .map(|n| TargetId(u64::from(chain * 10 + n)))
            .collect();
        for (&id, node) in ids.iter().zip(1u32..) {
            let target = Target {
                id,
                chain: ChainId(chain),
                node: NodeId(node),
                disk: DiskId(u128::from(node)),
                state: if down == Some(node) {
                    PublicState::Offline
                } else {
                    PublicState::Serving
                },
            };
            map.targets.insert(id, target);
        }
        let chain = Chain {
            id: ChainId(chain),
            version: ChainVersion(version),
            targets: ids,
        };
        map.chains.insert(chain.id, chain);
    }
    map.tables
        .insert((TABLE, VERSION), (1..=CHAINS).map(ChainId).collect());
    map
}

/// Waits until `condition` holds, or fails the test.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

pub(crate) type Shared<T> = Arc<parking_lot::Mutex<T>>;
