//! The manager with simulated nodes: registration, streams and death as a storage server does
//! them, in virtual time unless a test is about the real network.

mod deaths;
mod growth;
mod grpc;
mod node;
mod requests;
mod restarts;

use std::collections::HashSet;

use emberfs_proto::cluster::PublicState;
use emberfs_proto::ids::{ChainId, ChainVersion, NodeId};
use emberfs_proto::wire::MAX_VERSION;
use node::SimNode;

use super::*;
use crate::kv::MemoryEngine;

const SECOND: Duration = Duration::from_secs(1);

/// A cluster whose network is a set of addresses that refuse connections.
struct Cluster {
    engine: Arc<dyn Engine>,
    config: ManagerConfig,
    refusing: Arc<Mutex<HashSet<String>>>,
    manager: Arc<Manager>,
    stop: CancellationToken,
    loop_: tokio::task::JoinHandle<Result<()>>,
}

impl Cluster {
    async fn start(replicas: u32, expected_nodes: u32) -> Self {
        let config = ManagerConfig {
            replicas,
            expected_nodes,
            targets_per_disk: 8,
            ..ManagerConfig::default()
        };
        Self::start_on(Arc::new(MemoryEngine::new()), config).await
    }

    async fn start_on(engine: Arc<dyn Engine>, config: ManagerConfig) -> Self {
        let refusing = Arc::new(Mutex::new(HashSet::new()));
        let known: Arc<Mutex<HashSet<String>>> = Arc::clone(&refusing);
        let prober: Prober = Arc::new(move |addr| {
            let refused = known.lock().contains(&addr);
            Box::pin(async move { refused })
        });
        let manager = Manager::open_with(Arc::clone(&engine), config.clone(), prober)
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let loop_ = tokio::spawn(Arc::clone(&manager).run(stop.clone()));
        Self {
            engine,
            config,
            refusing,
            manager,
            stop,
            loop_,
        }
    }

    /// A new manager process over the same store. All streams break.
    async fn restart(&mut self) {
        self.stop.cancel();
        (&mut self.loop_).await.unwrap().unwrap();
        *self = Self::start_on(Arc::clone(&self.engine), self.config.clone()).await;
    }

    fn refuse(&self, node: &SimNode) {
        self.refusing.lock().insert(node.addr());
    }

    async fn boot(&self, nodes: std::ops::RangeInclusive<u32>) -> Vec<SimNode> {
        let mut all = Vec::new();
        for id in nodes {
            all.push(SimNode::start(&self.manager, id, 1).await.unwrap());
        }
        all
    }

    /// Waits until the map satisfies `wanted`, in at most `limit` of virtual time; answers how
    /// long it took.
    async fn until(&self, limit: Duration, wanted: impl Fn(&ClusterMap) -> bool) -> Duration {
        let started = Instant::now();
        let mut maps = self.manager.watch();
        let found = tokio::time::timeout(limit, maps.wait_for(|map| wanted(map))).await;
        assert!(
            found.is_ok(),
            "not within {limit:?}: {:#?}",
            self.manager.map()
        );
        started.elapsed()
    }

    fn state(&self, node: u32) -> HashSet<PublicState> {
        let map = self.manager.map();
        map.targets
            .values()
            .filter(|t| t.node == NodeId(node))
            .map(|t| t.state)
            .collect()
    }
}

fn only(state: PublicState) -> HashSet<PublicState> {
    HashSet::from([state])
}

fn all_serving(map: &ClusterMap) -> bool {
    !map.chains.is_empty()
        && map
            .targets
            .values()
            .all(|t| t.state == PublicState::Serving)
}

fn is_out(map: &ClusterMap, node: u32) -> bool {
    let mut own = map.targets.values().filter(|t| t.node == NodeId(node));
    own.all(|t| t.state == PublicState::Offline) && !map.nodes[&NodeId(node)].alive
}
