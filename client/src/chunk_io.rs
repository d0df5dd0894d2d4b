//! The way to storage servers: which replica, which connection, how many at once.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ChainId, ChainVersion, MapVersion, NodeId, TargetId};
use emberfs_proto::wire::client::{Identity as WireIdentity, Peer, PeerPool};
use emberfs_proto::wire::{Call, Channel as _, Reply};
use emberfs_proto::{Error, ErrorCode, Result, RetryClass};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::channels::Channels;
use crate::chunk_read::SUSPICIONS;
use crate::hedge::{self, Hedge};
use crate::map_watch::MapWatch;
use crate::plan::{self, Role, holds};
use crate::retry::Patience;
use crate::stats::Counters;
use crate::window::Gate;
use crate::{ClientConfig, Identity, Verify};

/// Read requests of one client in flight, or waiting for a node's window; more wait here rather than in
/// servers' queues.
const READS_IN_FLIGHT: usize = 256;

/// Storage servers, as seen by one client.
pub(crate) struct ChunkIo {
    pub(crate) map: MapWatch,
    pub(crate) channels: Channels,
    pub(crate) counters: Arc<Counters>,
    pub(crate) reads: Semaphore,
    pub(crate) suspicions: Arc<Semaphore>,
    pub(crate) hedge: Hedge,
    pub(crate) verify: Verify,
    /// Of requests for many ranges, which take longer than one range of as many bytes.
    pub(crate) batch_hedge: Hedge,
    peers: PeerPool,
    loads: Mutex<HashMap<NodeId, Arc<AtomicUsize>>>,
    gates: Mutex<HashMap<NodeId, Arc<Gate>>>,
    turn: AtomicUsize,
    /// Patience of one request with all its attempts.
    limit: Option<Duration>,
    stop: CancellationToken,
}

/// Where an attempt goes.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) target: TargetId,
    pub(crate) node: NodeId,
    pub(crate) addr: String,
    pub(crate) chain: ChainId,
    pub(crate) version: ChainVersion,
}

/// Counts one request at a node.
struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ChunkIo {
    pub(crate) fn new(
        map: MapWatch,
        identity: Identity,
        config: &ClientConfig,
        stop: CancellationToken,
    ) -> Self {
        let caller = WireIdentity {
            cluster: Some(map.current().cluster),
            client: identity.client,
            instance: identity.instance,
        };
        let hedging = hedge::Limits {
            percent: config.hedge_percent,
            shortest: config.hedge_after_min,
            longest: config.hedge_after_max,
        };
        Self {
            map,
            channels: Channels::new(identity),
            counters: Arc::default(),
            reads: Semaphore::new(READS_IN_FLIGHT),
            suspicions: Arc::new(Semaphore::new(SUSPICIONS)),
            peers: PeerPool::new(caller, config.connections_per_node),
            loads: Mutex::default(),
            gates: Mutex::default(),
            turn: AtomicUsize::new(0),
            verify: config.verify,
            hedge: Hedge::new(hedging),
            batch_hedge: Hedge::new(hedging),
            limit: config.io_timeout,
            stop,
        }
    }

    /// A fresh patience.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.limit, &self.stop)
    }

    /// Connects to a server, if there is no connection.
    pub(crate) async fn greet(&self, addr: &str, deadline: Instant) -> Result<()> {
        self.peers.peer(addr).greet(deadline).await
    }

    /// Forgets peers that the map does not name any more.
    pub(crate) fn prune(&self, map: &ClusterMap) {
        self.peers
            .retain(|addr| map.nodes.values().any(|n| n.data_addr == addr));
        self.loads
            .lock()
            .retain(|node, _| map.nodes.contains_key(node));
        self.gates
            .lock()
            .retain(|node, _| map.nodes.contains_key(node));
    }

    /// A SERVING replica that is not among `tried`: the one with the fewest requests of this client
    /// in flight, in turn among equals. `None`: all were tried.
    pub(crate) fn reader(
        &self,
        map: &ClusterMap,
        chain: ChainId,
        tried: &[TargetId],
    ) -> Result<Option<Replica>> {
        let loads = self.loads.lock();
        let load = |node| {
            loads
                .get(&node)
                .map_or(0, |load| load.load(Ordering::Relaxed))
        };
        self.reader_by(map, chain, tried, load)
    }

    /// As [`Self::reader`]: the one whose node weighs least.
    pub(crate) fn reader_by(
        &self,
        map: &ClusterMap,
        chain: ChainId,
        tried: &[TargetId],
        weight: impl Fn(NodeId) -> usize,
    ) -> Result<Option<Replica>> {
        let of = map.chain(chain)?;
        let serving: Vec<_> = map.serving(of).collect();
        if serving.is_empty() {
            return Err(unavailable(map, chain));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let target = plan::readers(&serving, turn, tried).min_by_key(|t| weight(t.node));
        target
            .map(|target| replica(map, chain, of.version, target))
            .transpose()
    }

    /// The head: where writes enter.
    pub(crate) fn head(map: &ClusterMap, chain: ChainId) -> Result<Replica> {
        let of = map.chain(chain)?;
        let target = map.head(of).ok_or_else(|| unavailable(map, chain))?;
        replica(map, chain, of.version, target)
    }

    /// One attempt. Ends early when the map takes `role` away from the replica.
    pub(crate) async fn call(&self, to: &Replica, role: Role, call: Call) -> Result<Reply> {
        let peer = self.peers.peer(&to.addr);
        self.while_holding(to, role, peer.call(call)).await
    }

    /// As [`Self::call`], of a read of so many bytes: waits until the node's window lets it go.
    pub(crate) async fn call_read(&self, to: &Replica, call: Call, bytes: u64) -> Result<Reply> {
        let (peer, gate) = (self.peers.peer(&to.addr), self.gate(to.node));
        let deadline = call.deadline;
        let exchange = async {
            let pass = tokio::time::timeout_at(deadline.into(), gate.enter(bytes)).await;
            let pass = pass.map_err(|_| {
                let what = format!("storage server {} has too much to send", to.addr);
                Error::new(ErrorCode::DeadlineExceeded, what)
            })?;
            let begun = Instant::now();
            let reply = peer.call(call).await;
            if reply.is_ok() {
                pass.answered(begun);
            }
            reply
        };
        self.while_holding(to, Role::Reader, exchange).await
    }

    async fn while_holding(
        &self,
        to: &Replica,
        role: Role,
        exchange: impl Future<Output = Result<Reply>>,
    ) -> Result<Reply> {
        let _counted = self.count(to.node);
        let deposed = self.map.until(|map| !holds(map, to.chain, to.target, role));
        tokio::select! {
            biased;
            reply = exchange => reply,
            () = deposed => {
                let what = format!("target {} lost its place in chain {}", to.target, to.chain);
                Err(Error::new(ErrorCode::NotServing, what))
            }
        }
    }

    /// The connections to a replica's node.
    pub(crate) fn peer(&self, to: &Replica) -> Arc<Peer> {
        self.peers.peer(&to.addr)
    }

    /// What ends a pause early: a map that may change the outcome.
    pub(crate) async fn wake(&self, class: RetryClass, used: MapVersion) {
        if plan::map_wakes(class) {
            self.map.newer(used).await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    fn gate(&self, node: NodeId) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        gates.entry(node).or_insert_with(Gate::new).clone()
    }

    fn count(&self, node: NodeId) -> InFlight {
        let load = self.loads.lock().entry(node).or_default().clone();
        load.fetch_add(1, Ordering::Relaxed);
        InFlight(load)
    }
}

fn replica(
    map: &ClusterMap,
    chain: ChainId,
    version: ChainVersion,
    target: &emberfs_proto::cluster::Target,
) -> Result<Replica> {
    let node = map.node_of(target).ok_or_else(|| {
        let what = format!(
            "cluster map {} names no node for target {}",
            map.version, target.id
        );
        Error::new(ErrorCode::ChainUnavailable, what)
    })?;
    let addr = node.data_addr.clone();
    Ok(Replica {
        target: target.id,
        node: node.id,
        addr,
        chain,
        version,
    })
}

fn unavailable(map: &ClusterMap, chain: ChainId) -> Error {
    let what = format!(
        "no replica of chain {chain} is SERVING in cluster map {}; start its storage servers (`emberfs health` names them)",
        map.version
    );
    Error::new(ErrorCode::ChainUnavailable, what)
}
