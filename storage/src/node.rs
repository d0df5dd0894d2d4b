//! One storage node at work: its targets, its lease, its view of the cluster.

mod admin;
mod data;
mod host;
mod lease;
mod manager;
mod pace;
mod resync;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use emberfs_proto::cluster::{ClusterMap, LocalState};
use emberfs_proto::ids::{ChainId, ClientId, ClusterId, DiskId, IncarnationId, NodeId, TargetId};
use emberfs_proto::wire::client::{Identity, PeerPool};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::RwLock;
use tokio::sync::{Notify, Semaphore, watch};

use crate::chain::{Event, View};
use crate::config::StorageConfig;
use crate::engine::{DiskState, Engine};

pub use admin::Admin;
pub use data::Data;
pub(crate) use host::TargetHost;
pub use lease::Lease;
pub use manager::{Membership, Registration};
use pace::Pacer;

/// Connections to each other storage node.
const CONNECTIONS_PER_PEER: usize = 4;

/// Longest wait for a cluster map that a caller has and this node does not have yet.
const MAP_WAIT: Duration = Duration::from_millis(500);

/// A disk of this node, open.
pub struct OpenDisk {
    /// Its id.
    pub id: DiskId,
    /// Its directory.
    pub path: std::path::PathBuf,
    /// Its engine.
    pub engine: Engine,
}

/// Counters since the start, for `status` and metrics.
#[derive(Default)]
pub struct Counters {
    /// Chunk reads answered.
    pub reads: AtomicU64,
    /// Client writes answered.
    pub writes: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Bytes written by clients.
    pub written_bytes: AtomicU64,
}

/// The state that all parts of a storage server share.
pub struct Node {
    /// This node.
    pub id: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// This run of the process.
    pub incarnation: IncarnationId,
    /// Its lease.
    pub lease: Lease,
    /// Counters.
    pub counters: Counters,
    config: StorageConfig,
    disks: Vec<OpenDisk>,
    map: RwLock<Arc<ClusterMap>>,
    targets: RwLock<HashMap<TargetId, Arc<TargetHost>>>,
    /// A first map has been adopted.
    has_map: watch::Sender<bool>,
    peers: PeerPool,
    pacer: Pacer,
    /// Wakes the heartbeat: something changed that the manager should know now.
    report: Notify,
    read_budget: Arc<Semaphore>,
}

impl Node {
    /// A node that has registered but not seen the cluster map yet.
    pub fn new(
        config: StorageConfig,
        cluster: ClusterId,
        incarnation: IncarnationId,
        disks: Vec<OpenDisk>,
    ) -> Arc<Self> {
        // The incarnation is unique, so it names this process as a caller too.
        let identity = Identity {
            cluster: Some(cluster),
            client: ClientId(incarnation.0),
        };
        Arc::new(Self {
            id: NodeId(config.node),
            cluster,
            incarnation,
            lease: Lease::new(),
            counters: Counters::default(),
            pacer: Pacer::new(config.resync_parallel),
            read_budget: Arc::new(Semaphore::new(config.read_bytes / data::BUDGET_UNIT)),
            config,
            disks,
            map: RwLock::default(),
            targets: RwLock::default(),
            has_map: watch::Sender::new(false),
            peers: PeerPool::new(identity, CONNECTIONS_PER_PEER),
            report: Notify::new(),
        })
    }

    /// The newest map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.map.read().clone()
    }

    /// Takes a newer map: opens new targets, tells every target its chain.
    pub async fn adopt(self: &Arc<Self>, map: ClusterMap) {
        if map.version <= self.map().version {
            return;
        }
        // Until the manager has taken note of this incarnation, the map speaks of the one before,
        // which may have held leases and data that this one must not rely on.
        let known = map
            .nodes
            .get(&self.id)
            .is_some_and(|me| me.incarnation == self.incarnation);
        if !known {
            tracing::debug!(version = %map.version, "map does not know this incarnation yet");
            return;
        }
        let mine: Vec<_> = map
            .targets
            .values()
            .filter(|t| t.node == self.id)
            .cloned()
            .collect();
        for target in &mine {
            if self.targets.read().contains_key(&target.id) {
                continue;
            }
            let Some(disk) = self.disks.iter().find(|d| d.id == target.disk) else {
                tracing::error!(target = %target.id, disk = %target.disk, "the map names a disk that this node does not have");
                continue;
            };
            if let Err(error) = disk.engine.create_target(target.id).await {
                tracing::error!(target = %target.id, %error, "cannot open target");
                continue;
            }
            let host = TargetHost::new(self, target.id, disk.engine.clone());
            self.targets.write().insert(target.id, host);
        }
        self.pacer.configure(&map.settings);
        let map = Arc::new(map);
        *self.map.write() = map.clone();
        for host in self.hosts() {
            if let Some(view) = View::of(&map, host.id()) {
                host.drive(Event::Adopt { view });
            }
        }
        self.peers
            .retain(|addr| map.nodes.values().any(|n| n.data_addr == addr));
        self.lease.adopted(map.version);
        self.has_map
            .send_if_modified(|has| !std::mem::replace(has, true));
        tracing::debug!(version = %map.version, "adopted cluster map");
    }

    /// Waits for the first map, for a while: others have the map that names this process already and may
    /// call before it does.
    async fn first_map(&self) {
        if !*self.has_map.borrow() {
            let mut has_map = self.has_map.subscribe();
            // If it does not come the caller hears that the chain is not here.
            let _ = tokio::time::timeout(MAP_WAIT, has_map.wait_for(|has| *has)).await;
        }
    }

    fn hosts(&self) -> Vec<Arc<TargetHost>> {
        self.targets.read().values().cloned().collect()
    }

    fn host(&self, target: TargetId) -> Result<Arc<TargetHost>> {
        self.targets.read().get(&target).cloned().ok_or_else(|| {
            let what = format!(
                "target {target} is not on node {}; refresh the map",
                self.id
            );
            Error::new(ErrorCode::NotServing, what)
        })
    }

    /// This node's target of a chain.
    fn host_of_chain(&self, chain: ChainId) -> Result<Arc<TargetHost>> {
        let map = self.map();
        let mine = map
            .chains
            .get(&chain)
            .into_iter()
            .flat_map(|c| &c.targets)
            .find(|id| map.targets.get(id).is_some_and(|t| t.node == self.id));
        match mine {
            Some(&target) => self.host(target),
            None => {
                let what = format!(
                    "node {} has no target of chain {chain}; refresh the map",
                    self.id
                );
                Err(Error::new(ErrorCode::NotServing, what).newer_version(map.version.0))
            }
        }
    }

    /// What the next heartbeat says.
    fn heartbeat(&self, sequence: u64) -> pb::HeartbeatRequest {
        let failed = |target: &TargetHost| target.engine().health().state != DiskState::Healthy;
        let hosts = self.hosts();
        let now = tokio::time::Instant::now();
        let targets = hosts.iter().map(|host| {
            let (state, version) = host.local();
            let state = if failed(host) {
                LocalState::Offline
            } else {
                state
            };
            let resync = host.progress.snapshot(now);
            pb::TargetReport {
                target: host.id().0,
                state: state as i32,
                chain_version: version.0,
                sync_done: resync.chunks,
                sync_total: resync.chunks_total,
                sync_bytes: resync.bytes,
                sync_bytes_total: resync.bytes_total,
                sync_bytes_per_second: resync.bytes_per_second,
                resync_sent_bytes: resync.sent,
            }
        });
        let disks = self.disks.iter().map(|disk| {
            let space = disk.engine.space();
            pb::DiskReport {
                disk: disk.id.to_bytes(),
                space: Some(pb::Space {
                    capacity: space.capacity,
                    used: space.used,
                    free: space.free,
                }),
                error: disk.engine.health().reason.unwrap_or_default(),
            }
        });
        pb::HeartbeatRequest {
            node: self.id.0,
            incarnation: self.incarnation.to_bytes(),
            sequence,
            targets: targets.collect(),
            disks: disks.collect(),
            map_version: self.map().version.0,
        }
    }

    /// Requests refused by chain version, role, state or lease since the start.
    fn refused(&self) -> u64 {
        self.hosts().iter().map(|host| host.refused()).sum()
    }

    /// Bytes sent to bring other replicas up to date, since the start.
    fn resync_bytes(&self) -> u64 {
        self.hosts().iter().map(|host| host.progress.sent()).sum()
    }

    /// Closes every engine; nothing is served afterwards.
    pub async fn shutdown(&self) {
        for disk in &self.disks {
            disk.engine.shutdown().await;
        }
    }

    fn count_write(&self, bytes: u64) {
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        self.counters
            .written_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    fn count_read(&self, bytes: u64) {
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
