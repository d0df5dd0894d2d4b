//! The manager itself goes away and comes back.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_manager_restart_changes_nothing_for_nodes_that_never_died() {
    let mut cluster = Cluster::start(3, 3).await;
    let nodes = cluster.boot(1..=3).await;
    cluster.until(SECOND, all_serving).await;
    tokio::time::sleep(2 * SECOND).await;
    let before = cluster.manager.map();
    cluster.restart().await;
    assert!(cluster.manager.report().settling);
    for node in &nodes {
        node.follow(&cluster.manager);
    }
    tokio::time::sleep(10 * SECOND).await;
    assert!(!cluster.manager.report().settling);
    assert_eq!(cluster.manager.map(), before);
}

#[tokio::test(start_paused = true)]
async fn after_a_manager_restart_a_missing_node_is_out_after_the_longest_lease() {
    let mut cluster = Cluster::start(3, 3).await;
    let nodes = cluster.boot(1..=3).await;
    cluster.until(SECOND, all_serving).await;
    cluster.restart().await;
    nodes[0].follow(&cluster.manager);
    nodes[1].follow(&cluster.manager);
    nodes[2].freeze();
    tokio::time::sleep(Duration::from_millis(5800)).await;
    assert_eq!(
        cluster.state(3),
        only(PublicState::Serving),
        "its lease might still run"
    );
    cluster.until(SECOND, |map| is_out(map, 3)).await;
    assert_eq!(cluster.state(1), only(PublicState::Serving));
}

#[tokio::test(start_paused = true)]
async fn a_crash_of_everything_revives_each_chain_once_from_a_replica_that_served() {
    let mut cluster = Cluster::start(3, 3).await;
    let nodes = cluster.boot(1..=3).await;
    cluster.until(SECOND, all_serving).await;
    let before = cluster.manager.map();
    nodes.into_iter().for_each(SimNode::kill);
    cluster.restart().await;
    let mut maps = cluster.manager.watch();
    // One after the other; node 1 stays away. Their registration takes until they are judged.
    let mut returning = Vec::new();
    for id in [3, 2] {
        let manager = Arc::clone(&cluster.manager);
        returning.push(tokio::spawn(async move {
            SimNode::start(&manager, id, 2).await
        }));
        tokio::time::sleep(SECOND).await;
        assert!(!returning.iter().any(tokio::task::JoinHandle::is_finished));
    }
    assert_eq!(
        *cluster.manager.map(),
        *before,
        "nobody is judged while node 1 may still serve"
    );
    let settled = maps
        .wait_for(|map| map.version > before.version)
        .await
        .unwrap()
        .clone();
    for chain in settled.chains.values() {
        assert_eq!(
            settled.serving(chain).count(),
            1,
            "one revives, the other syncs: {chain:?}"
        );
        assert_eq!(chain.version.0, before.chains[&chain.id].version.0 + 1);
        assert_eq!(
            settled.state(*chain.targets.last().unwrap()),
            PublicState::Offline
        );
    }
    let _first = SimNode::start(&cluster.manager, 1, 2).await.unwrap();
    cluster.until(10 * SECOND, all_serving).await;
}

#[tokio::test(start_paused = true)]
async fn a_deposed_manager_stops() {
    let cluster = Cluster::start(1, 1).await;
    let _usurper = Store::open(Arc::clone(&cluster.engine), 1).unwrap();
    let refused = SimNode::start(&cluster.manager, 1, 1).await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    let error = cluster.loop_.await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::NotPrimary);
    assert!(
        cluster.manager.map().nodes.is_empty(),
        "what is not durable is not published"
    );
    assert!(cluster.manager.closing().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn settings_are_pushed_at_once_and_survive_a_restart() {
    let mut cluster = Cluster::start(3, 3).await;
    let _nodes = cluster.boot(1..=3).await;
    cluster.until(SECOND, all_serving).await;
    let before = cluster.manager.map();
    let changes = pb::SettingsMsg {
        migrations: Some(17),
        ..Default::default()
    };
    let answer = cluster.manager.configure(&changes).await.unwrap();
    let map = cluster.manager.map();
    assert_eq!((answer.migrations, map.settings), (17, answer));
    assert_eq!(map.version.0, before.version.0 + 1);
    assert_eq!(map.chains, before.chains);
    // What changes nothing makes no new map, and nonsense is refused.
    cluster.manager.configure(&changes).await.unwrap();
    let nonsense = pb::SettingsMsg {
        migrations: Some(0),
        ..Default::default()
    };
    let refused = cluster.manager.configure(&nonsense).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    assert_eq!(cluster.manager.map().version, map.version);
    cluster.restart().await;
    assert_eq!(cluster.manager.map().settings.migrations, 17);
}
