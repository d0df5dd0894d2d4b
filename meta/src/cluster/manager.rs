//! The manager itself: takes events in, evaluates, makes the result durable, publishes it.
//!
//! Three pieces of state, always locked in this order: the writer's lock (asynchronous, held over
//! a whole evaluation including its transaction), the members (held for moments only), and the
//! published map (a watch channel). Heartbeats therefore never wait for the disk, and watchers
//! never make the manager wait: a slow one skips to the newest map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::ClusterId;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::evaluate::{Layout, evaluate};
use super::members::{Members, Suspect};
use super::placement::DEFAULT_TARGETS_PER_DISK;
use super::probe::{self, Prober};
use super::service::ClusterService;
use super::store::Store;
use crate::kv::Engine;

mod requests;

pub(super) use requests::stopping;

/// How often leases are looked at. A death by lease is noticed this much late at most.
const TICK: Duration = Duration::from_millis(100);
/// Complaints that repeat are logged this often at most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

/// What an operator may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerConfig {
    /// Replicas of each chain, when chains are first created.
    pub replicas: u32,
    /// Chains are created as soon as so many nodes with disks have registered.
    pub expected_nodes: u32,
    /// Targets on each disk, when chains are first created.
    pub targets_per_disk: u32,
    /// How long a node may serve after its last answered heartbeat.
    pub lease: Duration,
    /// How often nodes are to send heartbeats.
    pub heartbeat: Duration,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            replicas: 3,
            expected_nodes: 1,
            targets_per_disk: DEFAULT_TARGETS_PER_DISK,
            lease: Duration::from_secs(5),
            heartbeat: Duration::from_secs(1),
        }
    }
}

impl ManagerConfig {
    fn validate(&self) -> Result<()> {
        let counts = [self.replicas, self.expected_nodes, self.targets_per_disk];
        let what = if counts.contains(&0) {
            "replicas, expected_nodes and targets_per_disk must be at least 1"
        } else if self.heartbeat.is_zero() || self.lease < 2 * self.heartbeat {
            "the lease must be at least two heartbeats long, so that one lost heartbeat costs nothing"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorCode::InvalidArgument, what))
    }
}

/// The cluster manager.
pub struct Manager {
    config: ManagerConfig,
    cluster: ClusterId,
    store: Arc<Store>,
    /// Held over an evaluation.
    writer: tokio::sync::Mutex<()>,
    members: Mutex<Members>,
    published: watch::Sender<Arc<ClusterMap>>,
    /// Wakes the background loop.
    wake: Notify,
    /// Wakes those who wait for a member's change or for the end of settling.
    moved: watch::Sender<()>,
    /// Ends every stream when the background loop ends.
    closing: CancellationToken,
    prober: Prober,
    /// How many nodes were there when a shortage was last logged.
    shortage_logged: AtomicU64,
}

impl Manager {
    /// Opens the stored cluster, or founds a new one, and becomes primary. Nothing is judged
    /// before [`Self::run`] runs.
    pub async fn open(engine: Arc<dyn Engine>, config: ManagerConfig) -> Result<Arc<Self>> {
        Self::open_with(engine, config, probe::tcp()).await
    }

    pub(super) async fn open_with(
        engine: Arc<dyn Engine>,
        config: ManagerConfig,
        prober: Prober,
    ) -> Result<Arc<Self>> {
        config.validate()?;
        let replicas = config.replicas;
        let (store, map) = blocking(move || Store::open(engine, replicas)).await?;
        if !map.chains.is_empty() && map.replicas != replicas {
            tracing::warn!(
                "replicas = {replicas} is ignored: the chains were created with {}",
                map.replicas
            );
        }
        let members = Members::from_map(&map, config.lease, Instant::now());
        Ok(Arc::new(Self {
            config,
            cluster: map.cluster,
            store: Arc::new(store),
            writer: tokio::sync::Mutex::new(()),
            members: Mutex::new(members),
            published: watch::Sender::new(Arc::new(map)),
            wake: Notify::new(),
            moved: watch::Sender::new(()),
            closing: CancellationToken::new(),
            prober,
            shortage_logged: AtomicU64::new(0),
        }))
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The map in force, and every later one. A slow receiver skips to the newest.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.published.subscribe()
    }

    /// The map in force.
    pub fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.published.borrow())
    }

    /// The gRPC service.
    pub fn service(self: &Arc<Self>) -> ClusterService {
        ClusterService::new(Arc::clone(self))
    }

    /// Raw bytes over all disks of live nodes, as last reported; replication is not divided out.
    pub fn space(&self) -> pb::Space {
        let members = self.members.lock();
        let live = members.sessions().filter(|s| s.node.alive);
        let spaces = live.flat_map(|s| &s.disks).filter_map(|d| d.space);
        spaces.fold(pb::Space::default(), |sum, space| pb::Space {
            capacity: sum.capacity.saturating_add(space.capacity),
            used: sum.used.saturating_add(space.used),
            free: sum.free.saturating_add(space.free),
        })
    }

    /// The background loop: leases, probes, evaluations. Returns after `stop`, or with an error
    /// when this manager can no longer be primary and the process should restart. Either way
    /// every stream of the service ends.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<()> {
        let _close = self.closing.clone().drop_guard();
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probes = JoinSet::new();
        let mut complained: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.wake.notified() => {}
                _ = ticker.tick() => {}
                Some(_) = probes.join_next() => {}
            }
            for suspect in self.tick() {
                // One per node and interval, each bounded by the probe's own timeout.
                let this = Arc::clone(&self);
                probes.spawn(async move { this.probe(suspect).await });
            }
            match self.evaluate().await {
                Err(error) if matches!(error.code, ErrorCode::NotPrimary | ErrorCode::Internal) => {
                    tracing::error!("the cluster manager stops: {error}");
                    return Err(error);
                }
                Err(error) if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) => {
                    tracing::error!("the cluster map cannot be changed, trying again: {error}");
                    complained = Some(Instant::now());
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    fn tick(&self) -> Vec<Suspect> {
        let map = self.map();
        let tick = self.members.lock().tick(&map, Instant::now());
        for node in &tick.expired {
            tracing::warn!(%node, "the lease ran out: the node counts as dead");
        }
        tick.suspects
    }

    /// Probes, and buries on a refusal.
    async fn probe(&self, suspect: Suspect) -> bool {
        if !(self.prober)(suspect.addr.clone()).await {
            return false;
        }
        let map = self.map();
        let dead = self.members.lock().refused(&suspect, &map);
        if dead {
            tracing::warn!(node = %suspect.node, addr = suspect.addr, "connection refused: the node is dead");
            self.stir();
        }
        dead
    }

    /// Something changed: evaluate, and let those who wait look again.
    fn stir(&self) {
        self.wake.notify_one();
        self.moved.send_replace(());
    }

    /// Evaluates if anything changed, makes the outcome durable, publishes it.
    async fn evaluate(&self) -> Result<()> {
        let _writer = self.writer.lock().await;
        let old = self.map();
        let layout = Layout {
            replicas: self.config.replicas,
            expected_nodes: self.config.expected_nodes,
            targets_per_disk: self.config.targets_per_disk,
        };
        let outcome = {
            let mut members = self.members.lock();
            if members.is_settling() || !members.take_dirty() {
                return Ok(());
            }
            evaluate(&old, &members, &layout)
        };
        if let Some(shortage) = &outcome.shortage {
            self.log_shortage(shortage);
        }
        if let Some(new) = outcome.map
            && let Err(error) = self.publish(&old, new).await
        {
            self.members.lock().set_dirty();
            return Err(error);
        }
        self.moved.send_replace(());
        Ok(())
    }

    /// Makes `new`, which follows `old`, durable, then lets everybody see it. For holders of the writer's lock.
    async fn publish(&self, old: &Arc<ClusterMap>, new: ClusterMap) -> Result<()> {
        let new = Arc::new(new);
        let (store, before, next) = (Arc::clone(&self.store), Arc::clone(old), Arc::clone(&new));
        blocking(move || store.save(&before, &next)).await?;
        tracing::info!(version = %new.version, "new cluster map");
        let mut members = self.members.lock();
        members.adopt(&new);
        self.published.send_replace(new);
        Ok(())
    }

    fn log_shortage(&self, shortage: &Error) {
        let nodes = self
            .members
            .lock()
            .sessions()
            .filter(|s| s.node.alive)
            .count() as u64;
        if self.shortage_logged.swap(nodes, Ordering::Relaxed) != nodes {
            tracing::error!("no chains can be created: {shortage}");
        }
    }

    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    pub(super) fn config(&self) -> &ManagerConfig {
        &self.config
    }
}

/// Runs store calls off the runtime's workers.
async fn blocking<T: Send + 'static>(
    body: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(body)
        .await
        .unwrap_or_else(|error| {
            Err(Error::new(
                ErrorCode::Internal,
                format!("a cluster store call failed: {error}"),
            ))
        })
}

#[cfg(test)]
mod tests;
