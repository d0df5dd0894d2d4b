//! Nodes and disks that die, in each way, and return.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refused_connection_fails_over_at_once() {
    let cluster = Cluster::start(3, 3).await;
    let mut nodes = cluster.boot(1..=3).await;
    cluster.until(SECOND, all_serving).await;
    cluster.refuse(&nodes[0]);
    nodes.remove(0).kill();
    let took = cluster.until(SECOND, |map| is_out(map, 1)).await;
    assert!(took < Duration::from_millis(20), "{took:?}");
    assert_eq!(cluster.state(2), only(PublicState::Serving));
    assert!(
        cluster
            .manager
            .map()
            .chains
            .values()
            .all(|c| c.version == ChainVersion(2))
    );
}

#[tokio::test]
async fn on_a_real_network_a_killed_process_is_out_long_before_its_lease() {
    let config = ManagerConfig {
        replicas: 2,
        expected_nodes: 2,
        ..ManagerConfig::default()
    };
    let manager = Manager::open(Arc::new(MemoryEngine::new()), config)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&manager).run(stop.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let first = SimNode::start_at(&manager, 1, 1, &addr).await.unwrap();
    let _second = SimNode::start(&manager, 2, 1).await.unwrap();
    let mut maps = manager.watch();
    maps.wait_for(|map| all_serving(map)).await.unwrap();
    // Its stream breaks while its port still answers: nothing is proved.
    first.kill();
    let early = tokio::time::timeout(
        Duration::from_millis(300),
        maps.wait_for(|map| is_out(map, 1)),
    );
    assert!(early.await.is_err());
    drop(listener);
    let soon = tokio::time::timeout(SECOND, maps.wait_for(|map| is_out(map, 1)));
    soon.await.unwrap().unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_out_only_after_its_lease() {
    let cluster = Cluster::start(2, 2).await;
    let nodes = cluster.boot(1..=2).await;
    cluster.until(SECOND, all_serving).await;
    nodes[0].freeze();
    tokio::time::sleep(Duration::from_millis(3800)).await;
    assert_eq!(cluster.state(1), only(PublicState::Serving));
    let took = cluster.until(2 * SECOND, |map| is_out(map, 1)).await;
    assert!(took > Duration::from_millis(200), "{took:?}");
    // Thawed, it learns that it was buried, registers again, syncs and serves.
    nodes[0].thaw();
    cluster.until(5 * SECOND, all_serving).await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_without_a_refusal_costs_the_lease() {
    let cluster = Cluster::start(2, 2).await;
    let mut nodes = cluster.boot(1..=2).await;
    cluster.until(SECOND, all_serving).await;
    nodes.remove(0).kill();
    tokio::time::sleep(Duration::from_millis(3800)).await;
    assert_eq!(cluster.state(1), only(PublicState::Serving));
    cluster.until(2 * SECOND, |map| is_out(map, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_syncs_before_it_serves() {
    let cluster = Cluster::start(3, 3).await;
    let mut nodes = cluster.boot(1..=3).await;
    cluster.until(SECOND, all_serving).await;
    // It is back on its port before anybody could be refused there, and says nothing yet.
    nodes.remove(0).kill();
    let again = node::registration(1, 2, "host1:1");
    cluster.manager.register(again).await.unwrap();
    let is_back = |map: &ClusterMap| map.nodes[&NodeId(1)].incarnation.0 == 2;
    cluster.until(SECOND, is_back).await;
    assert_eq!(cluster.state(1), only(PublicState::Syncing));
    assert_eq!(cluster.state(2), only(PublicState::Serving));
    let _again = SimNode::start(&cluster.manager, 1, 2).await.unwrap();
    cluster.until(5 * SECOND, all_serving).await;
}

#[tokio::test(start_paused = true)]
async fn a_single_replica_is_revived_under_a_new_chain_version() {
    let cluster = Cluster::start(1, 1).await;
    let mut nodes = cluster.boot(1..=1).await;
    cluster.until(SECOND, all_serving).await;
    assert_eq!(cluster.manager.map().chains.len(), 8);
    cluster.refuse(&nodes[0]);
    nodes.remove(0).kill();
    cluster
        .until(SECOND, |map| !map.nodes[&NodeId(1)].alive)
        .await;
    assert_eq!(cluster.state(1), only(PublicState::LastServing));
    let _again = SimNode::start(&cluster.manager, 1, 2).await.unwrap();
    cluster.until(SECOND, all_serving).await;
    assert_eq!(
        cluster.manager.map().chains[&ChainId(1)].version,
        ChainVersion(3)
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_disk_takes_its_targets_out_and_they_return_when_it_heals() {
    let cluster = Cluster::start(2, 2).await;
    let nodes = cluster.boot(1..=2).await;
    cluster.until(SECOND, all_serving).await;
    nodes[0].fail_disk(true);
    let out = |map: &ClusterMap| {
        map.targets
            .values()
            .all(|t| (t.node == NodeId(1)) == (t.state == PublicState::Offline))
    };
    cluster.until(2 * SECOND, out).await;
    assert!(cluster.manager.map().nodes[&NodeId(1)].alive);
    nodes[0].fail_disk(false);
    cluster.until(5 * SECOND, all_serving).await;
}
