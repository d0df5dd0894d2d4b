//! One storage node at work: its targets, its lease, its view of the cluster.

mod admin;
mod care;
mod data;
mod host;
pub(crate) mod lease;
mod manager;
mod moved;
mod pace;
mod repair;
pub(crate) mod resync;
mod scrub;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use emberfs_proto::cluster::{ClusterMap, LocalState};
use emberfs_proto::ids::{
    ChainId, ChainVersion, ClientId, ClusterId, DiskId, IncarnationId, MapVersion, NodeId, TargetId,
};
use emberfs_proto::wire::client::{Identity, PeerPool};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::{Mutex, RwLock};
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
pub(crate) use scrub::run as scrub;

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

/// Which of a node's targets of one chain a request is for.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// Whichever serves.
    Any,
    /// The one whose word decides what is committed.
    Tail,
    /// The one after this target.
    SuccessorOf(TargetId),
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

/// Whether a map knows this run of the node. Until it does, it speaks of the run before, which may have
/// held leases and data that this one must not rely on.
pub(crate) fn names(map: &ClusterMap, node: NodeId, incarnation: IncarnationId) -> bool {
    map.nodes
        .get(&node)
        .is_some_and(|me| me.incarnation == incarnation)
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
    /// Version of the map that every target has adopted.
    adopted: watch::Sender<MapVersion>,
    peers: PeerPool,
    pacer: Pacer,
    /// Wakes the heartbeat: something changed that the manager should know now.
    report: Notify,
    read_budget: Arc<Semaphore>,
    repairs: repair::Repairs,
    /// Targets whose data is being deleted.
    deleting: Mutex<HashSet<TargetId>>,
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
            instance: 0,
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
            adopted: watch::Sender::new(MapVersion::default()),
            peers: PeerPool::new(identity, CONNECTIONS_PER_PEER),
            report: Notify::new(),
            repairs: repair::Repairs::default(),
            deleting: Mutex::default(),
        })
    }

    /// The newest map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.map.read().clone()
    }

    /// Takes a newer map: opens new targets, tells every target its chain.
    pub async fn adopt(self: &Arc<Self>, map: ClusterMap) {
        let newest = self.map().version;
        if map.version < newest {
            tracing::error!(version = %map.version, %newest,
                "the metadata store is older than the cluster: its map is older than one that this node has adopted and is ignored; \
                 give the metadata server the newest copy of its `data_dir`");
        }
        if map.version <= newest {
            return;
        }
        if !names(&map, self.id, self.incarnation) {
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
                if map.is_leaving(host.id()) {
                    moved::stop_serving(&host, &view);
                } else {
                    host.drive(Event::Adopt { view });
                    host.set_stopped(false);
                }
            }
        }
        self.delete_moved(&map).await;
        self.peers
            .retain(|addr| map.nodes.values().any(|n| n.data_addr == addr));
        self.lease.adopted(map.version);
        // Its settings may differ.
        self.repairs.wake();
        self.adopted.send_replace(map.version);
        tracing::debug!(version = %map.version, "adopted cluster map");
    }

    /// The caller names version `version` of a chain: waits for the map in which it is, for a while. Maps are
    /// pushed to all at once, so it can only be moments away; a refusal would cost the caller a back-off.
    async fn reached(&self, chain: ChainId, version: ChainVersion) {
        self.chain_at(chain, |here| here >= version, MAP_WAIT).await;
    }

    /// Ends when the chain has moved on from `version`.
    async fn moved_on(&self, chain: ChainId, version: ChainVersion) {
        self.chain_at(chain, |here| here > version, Duration::MAX)
            .await;
    }

    /// Waits, no longer than `limit`, until the version of a chain is as wanted. That of one that no map has
    /// shown yet is 0.
    async fn chain_at(
        &self,
        chain: ChainId,
        wanted: impl Fn(ChainVersion) -> bool,
        limit: Duration,
    ) {
        // Handed in: to look at the watched value from within a wait for it would be to lock it twice.
        let there = |adopted: MapVersion| {
            let map = self.map();
            let here = map
                .chains
                .get(&chain)
                .map_or(ChainVersion(0), |c| c.version);
            // Not that of the map that is being adopted: its targets may not have heard of it.
            map.version <= adopted && wanted(here)
        };
        if there(*self.adopted.borrow()) {
            return;
        }
        let mut adopted = self.adopted.subscribe();
        // The sender lives as long as this node. If the time is over the caller hears what is wrong.
        let _ = tokio::time::timeout(limit, adopted.wait_for(|adopted| there(*adopted))).await;
    }

    /// Time from the beginning of one scrub pass to that of the next; zero: there are none.
    fn scrub_interval(&self) -> Duration {
        Duration::from_secs(self.map().settings.scrub_interval_seconds)
    }

    /// Pace of the scrub of each disk; 0: as fast as it can.
    fn scrub_bytes_per_second(&self) -> u64 {
        self.map().settings.scrub_bytes_per_second
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

    /// This node's target of a chain. While a replica changes disks within the node there are two: then
    /// `wanted` decides, and without it the one that serves.
    fn host_of_chain(&self, chain: ChainId, wanted: Wanted) -> Result<Arc<TargetHost>> {
        let map = self.map();
        let found = map.chains.get(&chain);
        let wanted = found.and_then(|found| match wanted {
            Wanted::Any => None,
            Wanted::Tail => map.tail(found).map(|t| t.id),
            Wanted::SuccessorOf(target) => map.successor(found, target).map(|t| t.id),
        });
        let here = |id: &TargetId| map.targets.get(id).is_some_and(|t| t.node == self.id);
        let mine = found
            .into_iter()
            .flat_map(|c| &c.targets)
            .copied()
            .filter(here)
            .min_by_key(|&id| (Some(id) != wanted, map.is_leaving(id)));
        match mine {
            Some(target) => self.host(target),
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
        let hosts = self.hosts();
        let now = tokio::time::Instant::now();
        let targets = hosts.iter().map(|host| {
            if host.engine().health().state != DiskState::Healthy {
                // Before the manager hears of it.
                host.drive(Event::Failed);
            }
            let (state, version) = host.local();
            let state = if host.is_stopped() {
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
                care: Some(self.repairs.care(disk.id).message(self.scrub_interval())),
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
