//! New files whose close may come before the server knows of them.

use emberfs_proto::pb;
use tokio::sync::mpsc;

use crate::testing::*;
use crate::{CacheEvent, Client, ClientConfig, OpenFlags};

const ROOM: u64 = 1 << 39;

/// A client that may be given delegations, and where it hears of recalls.
async fn watching(cluster: &Cluster) -> (Client, mpsc::Receiver<CacheEvent>) {
    cluster.meta.state.lock().free = ROOM;
    let client = Client::connect(ClientConfig {
        delegations: true,
        ..cluster.config()
    });
    let client = client.await.unwrap();
    let mut events = client.watch();
    assert!(matches!(
        events.recv().await,
        Some(CacheEvent::Watching { .. })
    ));
    (client, events)
}

/// Waits until it is known how much room there is.
async fn settled(client: &Client) {
    client.core.hears_recalls(true);
    client.core.look_for_room().await;
}

async fn recall(cluster: &Cluster, inode: u64) {
    let message = pb::Invalidation {
        recalled: vec![inode],
        ..pb::Invalidation::default()
    };
    let sender = cluster.meta.state.lock().watchers.last().unwrap().clone();
    sender.send(Ok(message)).await.unwrap();
}

#[tokio::test]
async fn a_recall_is_answered_once_everything_is_stored_and_reported() {
    let cluster = Cluster::start().await;
    let (client, _events) = watching(&cluster).await;
    settled(&client).await;
    let file = create(&client, "f").await;
    file.write(0, pattern(5000, 1)).await.unwrap();
    assert!(file.may_close_late());
    assert!(cluster.meta.state.lock().ends.is_empty());
    let inode = file.inode().0;
    recall(&cluster, inode).await;
    let returned = || cluster.meta.state.lock().returned.clone();
    eventually("it is returned", || !returned().is_empty()).await;
    assert_eq!(returned(), [(inode, 1)], "after one report");
    assert_eq!(cluster.meta.attr(inode).size, 5000);
    assert!(!file.may_close_late(), "from now on its close waits");
    let other = cluster.client().await;
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let (_, opened) = other.open(&me(), file.inode(), flags).await.unwrap();
    assert_eq!(opened.read(0, 5000).await.unwrap(), pattern(5000, 1));
    // One that is not open here, and perhaps never was.
    recall(&cluster, 999).await;
    eventually("it is returned", || returned().len() == 2).await;
}

#[tokio::test]
async fn when_recalls_are_not_heard_any_more_all_are_returned() {
    let cluster = Cluster::start().await;
    let (client, mut events) = watching(&cluster).await;
    settled(&client).await;
    let file = create(&client, "f").await;
    file.write(0, pattern(5000, 1)).await.unwrap();
    cluster.meta.state.lock().watchers.clear();
    while events.recv().await != Some(CacheEvent::Blind) {}
    let inode = file.inode().0;
    let returned = || cluster.meta.state.lock().returned.clone();
    eventually("it is returned", || returned() == [(inode, 1)]).await;
    assert!(!file.may_close_late());
    // And after messages were lost.
    while !matches!(events.recv().await, Some(CacheEvent::Watching { .. })) {}
    let file = create(&client, "g").await;
    assert!(file.may_close_late());
    let lost = pb::Invalidation {
        everything: true,
        ..pb::Invalidation::default()
    };
    let sender = cluster.meta.state.lock().watchers.last().unwrap().clone();
    sender.send(Ok(lost)).await.unwrap();
    eventually("it is returned", || returned().len() == 2).await;
    assert!(!file.may_close_late());
}

#[tokio::test]
async fn close_waits_where_a_program_might_miss_something() {
    let cluster = Cluster::start().await;
    let (client, _events) = watching(&cluster).await;
    settled(&client).await;
    // A large file.
    let file = create(&client, "large").await;
    file.write(0, pattern(1 << 20, 1)).await.unwrap();
    assert!(file.may_close_late());
    file.write(1 << 20, pattern(1, 1)).await.unwrap();
    assert!(!file.may_close_late());
    // A file that was there before.
    drop(create(&client, "old").await);
    assert!(!create(&client, "old").await.may_close_late());
    // A cluster that is nearly full.
    cluster.meta.state.lock().free = ROOM >> 5;
    settled(&client).await;
    assert!(!create(&client, "full").await.may_close_late());
    cluster.meta.state.lock().free = ROOM;
    settled(&client).await;
    assert!(create(&client, "roomy").await.may_close_late());
}

#[tokio::test]
async fn who_does_not_want_delegations_asks_for_none() {
    let cluster = Cluster::start().await;
    cluster.meta.state.lock().free = ROOM;
    let client = cluster.client().await;
    let mut events = client.watch();
    events.recv().await;
    client.core.look_for_room().await;
    assert!(!create(&client, "f").await.may_close_late());
}
