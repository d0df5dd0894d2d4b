//! Many ranges of many files in few requests.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use emberfs_proto::wire::Opcode;
use emberfs_proto::{ErrorCode, Result, pb};
use futures::StreamExt;

use crate::testing::*;
use crate::{Client, File, OpenFlags, ReadItem};

const CHUNK: usize = 64 << 10;

async fn open(client: &Client, inode: u64) -> File {
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    client.open(&me(), inode.into(), flags).await.unwrap().1
}

async fn planted(cluster: &Cluster, client: &Client, name: &str, data: &Bytes) -> File {
    let size = data.len() as u64;
    let inode = cluster.meta.plant(name, pb::FileKind::File, size, "");
    for (index, part) in data.chunks(CHUNK).enumerate() {
        let part = Bytes::copy_from_slice(part);
        cluster.storage.plant(inode, index as u32, &part);
    }
    open(client, inode).await
}

async fn all(client: &Client, items: Vec<ReadItem>) -> HashMap<usize, Result<BytesMut>> {
    let len = items.len();
    let results: HashMap<_, _> = client.read_many(items).collect().await;
    assert_eq!(results.len(), len, "each item is answered once");
    results
}

#[tokio::test]
async fn ten_thousand_ranges_of_many_files_some_of_them_bad() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data: Vec<Bytes> = (0..50)
        .map(|i| pattern(3 * CHUNK + i * 100, i as u8))
        .collect();
    let mut files = Vec::new();
    for (i, data) in data.iter().enumerate() {
        files.push(planted(&cluster, &client, &format!("f{i}"), data).await);
    }
    let closed = planted(&cluster, &client, "closed", &data[0]).await;
    closed.clone().close().await.unwrap();
    let write = OpenFlags {
        write: true,
        ..OpenFlags::default()
    };
    let unreadable = client.open(&me(), files[0].inode(), write).await.unwrap().1;
    let foreign = open(&cluster.client().await, files[0].inode().0).await;
    let item = |i: usize| {
        let file = &files[i % 50];
        let offset = (i * 7919 % (4 * CHUNK)) as u64;
        match i % 1000 {
            7 => ReadItem::new(&closed, offset, 100),
            17 => ReadItem::new(&unreadable, offset, 100),
            27 => ReadItem::new(&foreign, offset, 100),
            37 => ReadItem::new(file, u64::MAX - 3, usize::MAX),
            47 => ReadItem::new(file, offset, usize::MAX),
            57 => ReadItem::new(file, offset, 0),
            _ => ReadItem::new(file, offset, 500 + i % 3000),
        }
    };
    let before = cluster.storage.reads().len();
    let results = all(&client, (0..10_000).map(item).collect()).await;
    let frames = cluster.storage.reads().len() - before;
    for (i, result) in results {
        match i % 1000 {
            7 | 17 => assert_eq!(result.unwrap_err().code, ErrorCode::NoSession),
            27 => assert_eq!(result.unwrap_err().code, ErrorCode::InvalidArgument),
            _ => {
                let (item, data) = (item(i), &data[i % 50]);
                let start = data.len().min(item.offset.min(1 << 40) as usize);
                let end = start.saturating_add(item.len).min(data.len());
                assert!(result.unwrap() == data[start..end], "item {i}");
            }
        }
    }
    assert!(frames <= 10_500 / 256 + 3, "{frames} requests");
}

#[tokio::test]
async fn bytes_land_behind_what_the_callers_memory_holds() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(40 * CHUNK, 1);
    let file = planted(&cluster, &client, "f", &data).await;
    // Within a chunk, over chunks, and large.
    let ranges = [(5, 100), (CHUNK - 10, 20), (100, 20 * CHUNK)];
    let mut memory = Vec::new();
    let items = ranges.iter().map(|&(offset, len)| {
        let mut buf = BytesMut::with_capacity(len + 4);
        buf.extend_from_slice(b"head");
        memory.push(buf.as_ptr());
        let offset = offset as u64;
        let file = file.clone();
        ReadItem {
            file,
            offset,
            len,
            buf,
        }
    });
    let items = items.collect();
    for (i, result) in all(&client, items).await {
        let ((offset, len), buf) = (ranges[i], result.unwrap());
        assert_eq!(buf.as_ptr(), memory[i], "range {i} was moved");
        assert!(buf[..4] == *b"head" && buf[4..] == data[offset..offset + len]);
    }
}

#[tokio::test]
async fn holes_are_zeros_and_one_absurd_range_fails_alone() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let inode = cluster.meta.plant("f", pb::FileKind::File, 1 << 40, "");
    let data = pattern(CHUNK, 3);
    cluster.storage.plant(inode, 1, &data.slice(..100));
    let file = open(&client, inode).await;
    let items = vec![
        ReadItem::new(&file, 10, 1000),
        ReadItem::new(&file, CHUNK as u64 - 50, 200),
        ReadItem::new(&file, 0, usize::MAX),
        ReadItem::new(&file, 1 << 30, 1 << 20),
    ];
    let mut results = all(&client, items).await;
    let mut take = |i| results.remove(&i).unwrap();
    assert!(take(0).unwrap() == vec![0; 1000]);
    let expected = [&[0; 50][..], &data[..100], &[0; 50]].concat();
    assert!(take(1).unwrap() == expected);
    assert_eq!(take(2).unwrap_err().code, ErrorCode::InvalidArgument);
    assert!(take(3).unwrap() == vec![0; 1 << 20]);
}

#[tokio::test]
async fn damage_refusals_and_a_dead_node_cost_only_further_requests() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(32 * CHUNK, 8);
    let file = planted(&cluster, &client, "f", &data).await;
    cluster.storage.fault(1, Opcode::Read, Fault::Corrupt, 1);
    let busy = Fault::Error(ErrorCode::Busy);
    cluster.storage.fault(2, Opcode::Read, busy, 1);
    cluster.storage.kill(3);
    let range = |i: usize| ((i * 7919 * 131) % (data.len() - 3000), 3000);
    let items = (0..300).map(|i| ReadItem::new(&file, range(i).0 as u64, range(i).1));
    for (i, result) in all(&client, items.collect()).await {
        let (offset, len) = range(i);
        assert!(result.unwrap() == data[offset..offset + len], "range {i}");
    }
}

#[tokio::test]
async fn a_range_sees_this_clients_buffered_writes() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (a, b) = (create(&client, "a").await, create(&client, "b").await);
    a.write(0, pattern(5000, 1)).await.unwrap();
    b.write(100, pattern(5000, 2)).await.unwrap();
    let items = vec![ReadItem::new(&a, 0, 9999), ReadItem::new(&b, 100, 50)];
    let mut results = all(&client, items).await;
    assert!(results.remove(&0).unwrap().unwrap() == pattern(5000, 1));
    assert!(results.remove(&1).unwrap().unwrap() == pattern(5000, 2).slice(..50));
}

#[tokio::test]
async fn a_caller_that_takes_no_results_stops_the_requests() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(64 * CHUNK, 8);
    let file = planted(&cluster, &client, "f", &data).await;
    let ranges = (0..20_000).map(|i| ReadItem::new(&file, (i * 97 % (63 * CHUNK)) as u64, 1000));
    let mut results = client.read_many(ranges.collect());
    results.next().await.unwrap().1.unwrap();
    // Whatever was in flight is answered, and nothing follows.
    eventually("the requests in flight", || {
        cluster.storage.reads().len() >= 16
    })
    .await;
    let requests = cluster.storage.reads().len();
    assert!(requests < 40, "{requests} requests for one result");
    drop(results);
    assert!(file.read(5, 10).await.unwrap() == data.slice(5..15));
}
