//! Registration, heartbeats, leaving, the first chains.

use super::*;

#[tokio::test(start_paused = true)]
async fn chains_are_created_when_the_expected_nodes_are_here() {
    let cluster = Cluster::start(3, 3).await;
    let mut nodes = cluster.boot(1..=2).await;
    tokio::time::sleep(SECOND).await;
    assert!(cluster.manager.map().chains.is_empty());
    assert_eq!(cluster.manager.map().nodes.len(), 2);
    nodes.extend(cluster.boot(3..=3).await);
    cluster.until(SECOND, all_serving).await;
    let map = cluster.manager.map();
    assert_eq!(
        (map.chains.len(), map.targets.len(), map.replicas),
        (8, 24, 3)
    );
    assert_eq!(map.tables.values().next().unwrap().len(), 8);
    assert!(map.chains.values().all(|c| c.version == ChainVersion(1)));
    // What is published is what is stored.
    let stored = Store::open(Arc::clone(&cluster.engine), 1).unwrap().1;
    assert_eq!(stored, *map);
}

#[tokio::test(start_paused = true)]
async fn too_few_nodes_for_the_replication_create_nothing_and_are_reported() {
    let cluster = Cluster::start(3, 1).await;
    let _nodes = cluster.boot(1..=2).await;
    tokio::time::sleep(SECOND).await;
    assert!(cluster.manager.map().chains.is_empty());
    let report = cluster.manager.report();
    assert_eq!((report.expected_nodes, report.settling), (3, false));
    assert_eq!(report.nodes.iter().filter(|n| n.registered).count(), 2);
    let _third = cluster.boot(3..=3).await;
    cluster.until(SECOND, all_serving).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_process_of_a_node_is_refused_while_the_first_sends_heartbeats() {
    let cluster = Cluster::start(2, 2).await;
    let _nodes = cluster.boot(1..=2).await;
    cluster.until(SECOND, all_serving).await;
    let before = cluster.manager.map();
    let error = SimNode::start(&cluster.manager, 1, 2).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::NodeConflict);
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(
        cluster.manager.map(),
        before,
        "the first goes on undisturbed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_moved_waits_for_its_old_process_to_be_certainly_gone() {
    let cluster = Cluster::start(2, 2).await;
    let nodes = cluster.boot(1..=2).await;
    cluster.until(SECOND, all_serving).await;
    nodes[0].freeze();
    let started = Instant::now();
    let _moved = SimNode::start_at(&cluster.manager, 1, 2, "elsewhere:1")
        .await
        .unwrap();
    assert!(started.elapsed() > 3 * SECOND, "{:?}", started.elapsed());
    // With a refusal there is nothing to wait for.
    cluster.refuse(&nodes[1]);
    nodes[1].freeze();
    nodes[1].disconnect();
    let started = Instant::now();
    let _moved = SimNode::start_at(&cluster.manager, 2, 2, "elsewhere:2")
        .await
        .unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(20),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_out_before_the_answer_and_stays_out() {
    let cluster = Cluster::start(2, 2).await;
    let nodes = cluster.boot(1..=2).await;
    cluster.until(SECOND, all_serving).await;
    nodes[0].freeze();
    let version = cluster
        .manager
        .leave(&nodes[0].leave_request())
        .await
        .unwrap();
    let map = cluster.manager.map();
    assert!(is_out(&map, 1));
    assert_eq!(map.version, version);
    let error = nodes[0].beat_once(&cluster.manager).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownNode);
    tokio::time::sleep(10 * SECOND).await;
    assert!(is_out(&cluster.manager.map(), 1));
    let again = cluster.manager.leave(&nodes[0].leave_request()).await;
    assert_eq!(again.unwrap_err().code, ErrorCode::UnknownNode);
    nodes[0].thaw();
    cluster.until(5 * SECOND, all_serving).await;
}

#[tokio::test(start_paused = true)]
async fn strangers_are_refused_with_the_reason() {
    let cluster = Cluster::start(1, 1).await;
    let good = node::registration(1, 1, "host:1");
    let register = |request| cluster.manager.register(request);
    let foreign = pb::RegisterRequest {
        cluster: ClusterId(5).to_bytes(),
        ..good.clone()
    };
    let error = register(foreign).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongCluster);
    assert!(
        error
            .message
            .contains(&cluster.manager.cluster().to_string()),
        "{error}"
    );
    assert!(error.message.contains(&ClusterId(5).to_string()), "{error}");
    let future = pb::RegisterRequest {
        protocol_version: MAX_VERSION + 1,
        ..good.clone()
    };
    assert_eq!(
        register(future).await.unwrap_err().code,
        ErrorCode::IncompatibleVersion
    );
    let bad = [
        pb::RegisterRequest {
            node: 0,
            ..good.clone()
        },
        pb::RegisterRequest {
            incarnation: bytes::Bytes::new(),
            ..good.clone()
        },
        pb::RegisterRequest {
            data_addr: String::new(),
            ..good.clone()
        },
        pb::RegisterRequest {
            disks: [good.disks.clone(), good.disks.clone()].concat(),
            ..good.clone()
        },
    ];
    for request in bad {
        assert_eq!(
            register(request).await.unwrap_err().code,
            ErrorCode::InvalidArgument
        );
    }
    assert!(cluster.manager.map().nodes.is_empty());
    let known = pb::RegisterRequest {
        cluster: cluster.manager.cluster().to_bytes(),
        ..good
    };
    let reply = register(known).await.unwrap();
    assert_eq!((reply.lease_ms, reply.heartbeat_ms), (5000, 1000));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_answered_with_their_sequence_the_lease_and_the_map_in_force() {
    let cluster = Cluster::start(1, 1).await;
    let nodes = cluster.boot(1..=1).await;
    cluster.until(SECOND, all_serving).await;
    nodes[0].freeze();
    let reply = nodes[0].beat_once(&cluster.manager).await.unwrap();
    assert_eq!((reply.sequence, reply.lease_ms), (4711, 5000));
    assert_eq!(reply.map_version, cluster.manager.map().version.0);
    let space = cluster.manager.space();
    assert_eq!((space.capacity, space.free), (1 << 30, 1 << 29));
}

#[tokio::test(start_paused = true)]
async fn contradictory_configuration_is_refused() {
    let zero = ManagerConfig {
        replicas: 0,
        ..ManagerConfig::default()
    };
    let short = ManagerConfig {
        lease: SECOND,
        ..ManagerConfig::default()
    };
    for config in [zero, short] {
        let opened = Manager::open(Arc::new(MemoryEngine::new()), config).await;
        assert_eq!(opened.err().unwrap().code, ErrorCode::InvalidArgument);
    }
}

#[tokio::test(start_paused = true)]
async fn the_mark_of_a_disk_is_durable_before_its_node_hears_that_it_was_accepted() {
    let cluster = Cluster::start(1, 1).await;
    let register = async |incarnation, last_opening, opening| {
        let mut request = node::registration(1, incarnation, "host1:1");
        request.disks[0].last_opening = last_opening;
        request.disks[0].opening = opening;
        cluster.manager.register(request).await
    };
    let reply = register(1, 0, 70).await.unwrap();
    let stored = Store::open(Arc::clone(&cluster.engine), 1).unwrap().1;
    assert_eq!(stored.openings.values().collect::<Vec<_>>(), [&70]);
    assert!(reply.map_version >= 1 && reply.map_version <= stored.version.0);
    let error = register(2, 69, 71).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ForeignDisk);
    assert!(error.message.contains("older copy"), "{error}");
    let shown = cluster.manager.report().refusals;
    assert_eq!((shown.len(), shown[0].node), (1, 1));
    assert_eq!(shown[0].error, error.message);
}

#[tokio::test(start_paused = true)]
async fn a_metadata_store_older_than_its_nodes_is_obeyed_by_none() {
    let cluster = Cluster::start(1, 1).await;
    let nodes = cluster.boot(1..=1).await;
    cluster.until(SECOND, all_serving).await;
    let newest = cluster.manager.map().version.0;
    let mut request = node::registration(2, 1, "host2:1");
    request.map_version = newest + 1;
    let error = cluster.manager.register(request.clone()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::MetadataTooOld);
    request.map_version = newest;
    cluster.manager.register(request).await.unwrap();
    // Also without a registration, which a running node need not make.
    nodes[0].knows(cluster.manager.map().version.0 + 5);
    let error = nodes[0].beat_once(&cluster.manager).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::MetadataTooOld);
    assert_eq!(cluster.manager.report().refusals[0].node, 1);
}
