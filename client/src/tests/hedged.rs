//! Slow replicas: a second one is asked, for a bounded share of the reads.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use emberfs_proto::wire::Opcode;
use emberfs_proto::{ErrorCode, pb};
use futures::StreamExt;

use crate::testing::*;
use crate::{Client, ClientConfig, File, OpenFlags, ReadItem};

const LEN: usize = 10_000;
const HANGS: Fault = Fault::Slow(Duration::from_mins(1));
/// Less than one attempt may last: only a hedge ends a read on a hanging replica so early.
const SOON: Duration = Duration::from_secs(8);

async fn client(cluster: &Cluster, hedge_percent: u32) -> Client {
    let config = ClientConfig {
        hedge_percent,
        hedge_after_max: Duration::from_millis(20),
        ..cluster.config()
    };
    Client::connect(config).await.unwrap()
}

async fn planted(cluster: &Cluster, client: &Client, data: &Bytes) -> File {
    let inode = cluster
        .meta
        .plant("f", pb::FileKind::File, data.len() as u64, "");
    cluster.storage.plant(inode, 0, data);
    let flags = OpenFlags {
        read: true,
        direct: true,
        ..OpenFlags::default()
    };
    client.open(&me(), inode.into(), flags).await.unwrap().1
}

#[tokio::test]
async fn a_hanging_replica_does_not_hold_up_reads() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 100).await;
    let data = pattern(LEN, 1);
    let file = planted(&cluster, &client, &data).await;
    cluster.storage.fault(2, Opcode::Read, HANGS, 1000);
    for _ in 0..12 {
        let read = tokio::time::timeout(SOON, file.read(0, LEN)).await;
        assert!(read.expect("waited for the hanging replica").unwrap() == data);
    }
    let stats = client.stats();
    assert!(stats.hedge_wins >= 2, "{stats:?}");
    assert_eq!(stats.read_retries, 0);
}

#[tokio::test]
async fn without_hedging_nobody_else_is_asked() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 0).await;
    let data = pattern(LEN, 1);
    let file = planted(&cluster, &client, &data).await;
    let slow = Fault::Slow(Duration::from_millis(60));
    (1..=3).for_each(|node| cluster.storage.fault(node, Opcode::Read, slow.clone(), 1));
    assert!(file.read(0, LEN).await.unwrap() == data);
    assert_eq!(client.stats().hedges, 0);
    assert_eq!(cluster.storage.reads().len(), 1);
}

#[tokio::test]
async fn a_cluster_that_is_slow_everywhere_is_not_asked_twice_for_everything() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 5).await;
    let data = pattern(LEN, 1);
    let file = planted(&cluster, &client, &data).await;
    let slow = Fault::Slow(Duration::from_millis(60));
    (1..=3).for_each(|node| {
        cluster
            .storage
            .fault(node, Opcode::Read, slow.clone(), 1000);
    });
    let reads = (0..100).map(|_| file.read(0, LEN));
    for read in futures::future::join_all(reads).await {
        assert!(read.unwrap() == data);
    }
    let hedges = client.stats().hedges;
    // The burst, and 5 of 100 reads.
    assert!((1..=15).contains(&hedges), "{hedges} hedges");
}

#[tokio::test]
async fn when_both_fail_the_read_is_retried() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 100).await;
    let data = pattern(LEN, 1);
    let file = planted(&cluster, &client, &data).await;
    (1..=3).for_each(|node| cluster.storage.fault(node, Opcode::Read, HANGS, 1));
    let read = tokio::spawn(async move { file.read(0, LEN).await });
    eventually("a hedge", || client.stats().hedges == 1).await;
    (1..=3).for_each(|node| cluster.storage.kill(node));
    eventually("both failed", || client.stats().read_retries > 0).await;
    for node in 1..=3 {
        cluster.storage.revive(node).await;
    }
    assert!(read.await.unwrap().unwrap() == data);
}

#[tokio::test]
async fn one_of_two_may_fail() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 100).await;
    let data = pattern(LEN, 1);
    let file = planted(&cluster, &client, &data).await;
    let slow = Fault::Slow(Duration::from_millis(300));
    (1..=3).for_each(|node| cluster.storage.fault(node, Opcode::Read, slow.clone(), 1));
    // The hedge meets this one on whatever replica it asks, if that is still slow.
    for node in 1..=3 {
        cluster
            .storage
            .fault(node, Opcode::Read, Fault::Error(ErrorCode::DiskError), 1);
    }
    let reads = (0..3).map(|_| file.read(0, LEN));
    for read in futures::future::join_all(reads).await {
        assert!(read.unwrap() == data);
    }
    assert!(client.stats().hedges >= 3);
}

#[tokio::test]
async fn a_late_answer_never_lands_in_what_was_returned() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 100).await;
    let data = pattern(LEN, 1);
    let file = planted(&cluster, &client, &data).await;
    let slow = Fault::Slow(Duration::from_millis(200));
    for seed in 2..8 {
        let before = cluster.storage.reads().len();
        let data = pattern(LEN, seed);
        cluster.storage.plant(file.inode().0, 0, &data);
        cluster.storage.fault(2, Opcode::Read, slow.clone(), 1);
        let mut buf = BytesMut::with_capacity(LEN + 5);
        buf.extend_from_slice(b"head:");
        let buf = file.read_into(0, buf).await.unwrap();
        // The slow replica, if it was asked, answers with these.
        let other = pattern(LEN, seed ^ 0x80);
        cluster.storage.plant(file.inode().0, 0, &other);
        let hedged = client.stats().hedges > 0;
        if hedged {
            eventually("the late answer", || {
                cluster.storage.reads().len() > before + 1
            })
            .await;
        }
        // Behind the late answer on the same connections.
        for _ in 0..12 {
            assert!(file.read(0, LEN).await.unwrap() == other);
        }
        assert!(buf[..5] == *b"head:" && buf[5..] == data);
        if hedged {
            return;
        }
        assert!(seed < 7, "never hedged");
    }
}

#[tokio::test]
async fn a_hanging_replica_does_not_hold_up_many_ranges() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 100).await;
    let data = pattern(LEN, 1);
    let mut files = Vec::new();
    for _ in 0..30 {
        files.push(planted(&cluster, &client, &data).await);
    }
    cluster.storage.fault(2, Opcode::Read, HANGS, 1000);
    let range = |i: usize| (i * 17 % 9000, 1000);
    let items = (0..600).map(|i| ReadItem::new(&files[i % 30], range(i).0 as u64, range(i).1));
    let read = client.read_many(items.collect()).collect::<Vec<_>>();
    let read = tokio::time::timeout(SOON, read).await;
    for (i, result) in read.expect("waited for the hanging replica") {
        let (offset, len) = range(i);
        assert!(result.unwrap() == data[offset..offset + len], "range {i}");
    }
    let stats = client.stats();
    assert!(stats.hedge_wins >= 1, "{stats:?}");
    let frames = cluster.storage.reads().len();
    assert!(
        frames <= 8,
        "{frames} requests: ranges were read one by one"
    );
}

#[tokio::test]
async fn many_ranges_survive_the_failure_of_both() {
    let cluster = Cluster::start().await;
    let client = client(&cluster, 100).await;
    let data = pattern(LEN, 1);
    let file = planted(&cluster, &client, &data).await;
    let slow = Fault::Slow(Duration::from_millis(100));
    (1..=3).for_each(|node| cluster.storage.fault(node, Opcode::Read, slow.clone(), 1));
    let items = (0..50).map(|i| ReadItem::new(&file, i * 100, 200));
    let read = tokio::spawn(client.read_many(items.collect()).collect::<Vec<_>>());
    eventually("a hedge", || client.stats().hedges == 1).await;
    (1..=3).for_each(|node| cluster.storage.kill(node));
    for node in 1..=3 {
        cluster.storage.revive(node).await;
    }
    for (i, result) in read.await.unwrap() {
        assert!(result.unwrap() == data[i * 100..i * 100 + 200], "range {i}");
    }
}
