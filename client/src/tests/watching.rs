//! Hearing of changes by others.

use std::time::Duration;

use emberfs_proto::pb;

use crate::CacheEvent;
use crate::testing::*;

/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(20);

fn changed(inode: u64) -> pb::Invalidation {
    pb::Invalidation {
        inodes: vec![inode],
        ..pb::Invalidation::default()
    }
}

#[tokio::test]
async fn changes_are_passed_on_and_a_lost_stream_is_opened_again() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut events = client.watch();
    for round in 0..2 {
        let event = tokio::time::timeout(SOON, events.recv()).await.unwrap();
        assert_eq!(
            event,
            Some(CacheEvent::Watching {
                term: Duration::from_millis(300),
                long_term: Duration::from_millis(300),
            })
        );
        let sender = cluster.meta.state.lock().watchers.pop().unwrap();
        sender.send(Ok(changed(round))).await.unwrap();
        let event = events.recv().await;
        assert_eq!(event, Some(CacheEvent::Changed(changed(round))));
        drop(sender);
        let event = tokio::time::timeout(SOON, events.recv()).await.unwrap();
        assert_eq!(event, Some(CacheEvent::Blind), "round {round}");
    }
    client.shutdown().await;
    let end = async { while events.recv().await.is_some() {} };
    tokio::time::timeout(SOON, end)
        .await
        .expect("it ends with the client");
}
