//! The service over a real connection, in real time.

use emberfs_proto::pb::cluster_client::ClusterClient;
use emberfs_proto::pb::cluster_server::ClusterServer;
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;

use super::*;

#[tokio::test]
async fn a_node_lives_and_dies_and_watchers_see_it_until_the_manager_stops() {
    let config = ManagerConfig {
        replicas: 1,
        ..ManagerConfig::default()
    };
    let manager = Manager::open(Arc::new(MemoryEngine::new()), config)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&manager).run(stop.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    let serving = tonic::transport::Server::builder()
        .add_service(ClusterServer::new(manager.service()))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.clone().cancelled_owned());
    let serving = tokio::spawn(serving);

    let mut watcher = ClusterClient::connect(addr.clone()).await.unwrap();
    let watched = watcher
        .watch_cluster(pb::WatchRequest::default())
        .await
        .unwrap();
    let mut watched = watched.into_inner();
    let first = watched.next().await.unwrap().unwrap();
    assert_eq!(
        (first.version, first.nodes.len()),
        (1, 0),
        "the map in force comes at once"
    );
    let foreign = pb::WatchRequest {
        cluster: ClusterId(5).to_bytes(),
        known_version: 0,
    };
    let refused = Error::from(watcher.watch_cluster(foreign).await.err().unwrap());
    assert_eq!(refused.code, ErrorCode::WrongCluster);

    let mut node = ClusterClient::connect(addr).await.unwrap();
    // Nobody listens there: as soon as the stream breaks, the node is provably dead.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let registration = node::registration(1, 1, &closed.to_string());
    node.register(registration.clone()).await.unwrap();
    let (send, requests) = mpsc::channel(1);
    let heartbeat = pb::HeartbeatRequest {
        node: 1,
        incarnation: registration.incarnation,
        sequence: 7,
        ..Default::default()
    };
    let mut replies = node
        .heartbeat(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    send.send(heartbeat).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap().sequence, 7);
    while watched.next().await.unwrap().unwrap().chains.is_empty() {}

    let died = std::time::Instant::now();
    drop((node, replies, send));
    loop {
        let map = watched.next().await.unwrap().unwrap();
        if !map.nodes[0].alive {
            let last = |t: &pb::TargetMsg| t.state() == PublicState::LastServing;
            assert!(map.targets.iter().all(last));
            break;
        }
    }
    assert!(died.elapsed() < 2 * SECOND, "{:?}", died.elapsed());

    stop.cancel();
    running.await.unwrap().unwrap();
    let left: Vec<_> = watched.collect().await;
    assert!(
        left.iter().all(Result::is_ok),
        "the stream ends, it does not fail"
    );
    serving.await.unwrap().unwrap();
}
