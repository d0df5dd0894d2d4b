//! Nodes that are added, drained, replaced and removed while the manager lives and dies.

use emberfs_proto::cluster::DiskRole;
use emberfs_proto::ids::{DiskId, TargetId};
use emberfs_proto::pb::change_request::Verb;

use super::*;

fn wish(verb: Verb, node: u32) -> pb::ChangeRequest {
    pb::ChangeRequest {
        verb: verb.into(),
        node,
        ..Default::default()
    }
}

fn held(map: &ClusterMap, node: u32) -> usize {
    map.targets
        .values()
        .filter(|t| t.node == NodeId(node))
        .count()
}

fn at_rest(map: &ClusterMap) -> bool {
    all_serving(map) && map.moves.is_empty() && !map.rebalance
}

/// Three nodes with eight chains, and a fourth that has registered.
async fn grown() -> (Cluster, Vec<SimNode>) {
    let cluster = Cluster::start(3, 3).await;
    let mut nodes = cluster.boot(1..=3).await;
    cluster.until(SECOND, all_serving).await;
    nodes.extend(cluster.boot(4..=4).await);
    (cluster, nodes)
}

#[tokio::test(start_paused = true)]
async fn a_node_takes_replicas_once_it_is_added_and_gives_them_back_when_it_is_drained() {
    let (cluster, nodes) = grown().await;
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(held(&cluster.manager.map(), 4), 0, "nobody has added it");
    let plan = cluster
        .manager
        .change(&wish(Verb::AddNode, 4))
        .await
        .unwrap();
    assert_eq!((plan.moves.len(), plan.stuck), (6, 0));
    cluster.until(60 * SECOND, at_rest).await;
    assert!((1..=4).all(|node| held(&cluster.manager.map(), node) == 6));
    assert!(cluster.manager.plan().moves.is_empty());
    let before = cluster.manager.map();
    cluster
        .manager
        .change(&wish(Verb::AddNode, 4))
        .await
        .unwrap();
    assert_eq!(cluster.manager.map(), before, "said again, nothing changes");

    cluster
        .manager
        .change(&wish(Verb::DrainNode, 4))
        .await
        .unwrap();
    cluster
        .until(60 * SECOND, |map| held(map, 4) == 0 && map.moves.is_empty())
        .await;
    let runs = cluster
        .manager
        .change(&wish(Verb::RemoveNode, 4))
        .await
        .unwrap_err();
    assert!(runs.message.contains("still runs"), "{runs}");
    nodes[3].freeze();
    cluster
        .manager
        .leave(&nodes[3].leave_request())
        .await
        .unwrap();
    cluster
        .manager
        .change(&wish(Verb::RemoveNode, 4))
        .await
        .unwrap();
    tokio::time::sleep(SECOND).await;
    let map = cluster.manager.map();
    assert!(!map.nodes.contains_key(&NodeId(4)));
    assert!(!map.roles.contains_key(&DiskId(4)), "nothing is left of it");
    // The same id may come again, as a new and empty node.
    let _again = SimNode::start(&cluster.manager, 4, 9).await.unwrap();
    assert_eq!(cluster.manager.map().role(DiskId(4)), DiskRole::Unspecified);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_shows_the_plan_and_changes_nothing_even_for_a_node_that_does_not_exist() {
    let (cluster, _nodes) = grown().await;
    let before = cluster.manager.map();
    let dry_run = pb::ChangeRequest {
        dry_run: true,
        ..wish(Verb::AddNode, 4)
    };
    let plan = cluster.manager.change(&dry_run).await.unwrap();
    assert_eq!(plan.moves.len(), 6);
    assert!(plan.moves.iter().all(|m| m.to_node == 4 && m.target == 0));
    let imagined = pb::NodeMsg {
        id: 5,
        incarnation: DiskId(0).to_bytes(),
        alive: true,
        disks: vec![pb::DiskMsg {
            id: DiskId(5).to_bytes(),
            path: "/d".into(),
            capacity: 1 << 30,
            ..Default::default()
        }],
        ..Default::default()
    };
    let imagined = pb::ChangeRequest {
        as_if: vec![imagined],
        ..pb::ChangeRequest { node: 5, ..dry_run }
    };
    let plan = cluster.manager.change(&imagined).await.unwrap();
    assert!(plan.moves.len() == 6 && plan.moves.iter().all(|m| m.to_node == 5));
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(cluster.manager.map(), before);
}

#[tokio::test(start_paused = true)]
async fn the_manager_may_die_after_every_single_step() {
    let (mut cluster, nodes) = grown().await;
    cluster
        .manager
        .change(&wish(Verb::AddNode, 4))
        .await
        .unwrap();
    let (mut deaths, mut ids) = (0, 0);
    while !at_rest(&cluster.manager.map()) {
        let version = cluster.manager.map().version;
        // At most: a sync takes a heartbeat, settling a lease and a second.
        cluster
            .until(20 * SECOND, |map| map.version > version || at_rest(map))
            .await;
        cluster.restart().await;
        for node in &nodes {
            node.follow(&cluster.manager);
        }
        let map = cluster.manager.map();
        assert!(map.last_target.0 >= ids, "an id was given out twice");
        ids = map.last_target.0;
        deaths += 1;
        assert!(deaths < 200, "does not come to rest");
    }
    assert!(deaths >= 3, "{deaths}");
    let map = cluster.manager.map();
    assert!((1..=4).all(|node| held(&map, node) == 6));
    assert_eq!(map.last_target, TargetId(30), "six were moved, each once");
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_restarts_in_between_is_filled_all_the_same() {
    let (cluster, mut nodes) = grown().await;
    cluster
        .manager
        .change(&wish(Verb::AddNode, 4))
        .await
        .unwrap();
    cluster.until(SECOND, |map| map.moves.len() == 4).await;
    let fourth = nodes.pop().unwrap();
    cluster.refuse(&fourth);
    fourth.kill();
    cluster.until(5 * SECOND, |map| is_out(map, 4)).await;
    assert!(!cluster.manager.plan().waits_for.is_empty());
    cluster.refusing.lock().clear();
    let _again = SimNode::start(&cluster.manager, 4, 2).await.unwrap();
    cluster.until(60 * SECOND, at_rest).await;
    assert_eq!(held(&cluster.manager.map(), 4), 6);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_leaves_only_when_its_lease_is_over() {
    let (cluster, nodes) = grown().await;
    cluster
        .manager
        .change(&wish(Verb::AddNode, 4))
        .await
        .unwrap();
    cluster.until(20 * SECOND, |map| map.moves.len() == 4).await;
    let moving = *cluster.manager.map().moves.values().next().unwrap();
    let source = cluster.manager.map().targets[&moving.replaces].node;
    let hung = &nodes[source.0 as usize - 1];
    hung.freeze();
    let gone = |map: &ClusterMap| !map.targets.contains_key(&moving.replaces);
    let took = cluster.until(60 * SECOND, gone).await;
    assert!(
        took > 3 * SECOND,
        "it might still have answered reads: {took:?}"
    );
    hung.thaw();
    cluster.until(60 * SECOND, at_rest).await;
}

#[tokio::test(start_paused = true)]
async fn right_after_a_start_a_wish_waits_until_it_is_known_who_lives() {
    let (mut cluster, nodes) = grown().await;
    cluster.restart().await;
    let manager = Arc::clone(&cluster.manager);
    let asked = tokio::spawn(async move { manager.change(&wish(Verb::AddNode, 4)).await });
    tokio::time::sleep(SECOND).await;
    assert!(!asked.is_finished());
    for node in &nodes {
        node.follow(&cluster.manager);
    }
    assert_eq!(asked.await.unwrap().unwrap().moves.len(), 6);
    cluster.until(60 * SECOND, at_rest).await;
}
