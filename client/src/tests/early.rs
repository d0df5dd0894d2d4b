//! Small files that are read while they are opened.

use bytes::Bytes;
use emberfs_proto::pb;

use crate::testing::*;
use crate::{Attr, Client, File, MAX_EARLY_READ, OpenFlags};

const READ: OpenFlags = OpenFlags {
    read: true,
    write: false,
    execute: false,
    truncate: false,
    append: false,
    direct: false,
    sync: false,
};

/// A file of one chunk, and what a lookup says of it.
async fn small(cluster: &Cluster, client: &Client, name: &str, data: &Bytes) -> Attr {
    let inode = cluster
        .meta
        .plant(name, pb::FileKind::File, data.len() as u64, "");
    cluster.storage.plant(inode, 0, data);
    client.getattr(inode.into()).await.unwrap()
}

async fn open(client: &Client, flags: OpenFlags, believed: &Attr) -> File {
    let (me, inode) = (me(), believed.inode.into());
    let opened = client.open_to_read(&me, inode, flags, believed).await;
    opened.unwrap().1
}

/// Waits until the servers have seen a read since `before`.
async fn reads_early(cluster: &Cluster, before: usize) {
    let read = || cluster.storage.reads().len() > before;
    eventually("it is read early", read).await;
}

/// Reads the whole file; what it holds, and how many reads the servers have seen since `before`.
async fn read(cluster: &Cluster, file: &File, before: usize) -> (Bytes, usize) {
    let data = file.read(0, 1 << 20).await.unwrap();
    (data, cluster.storage.reads().len() - before)
}

#[tokio::test]
async fn one_read_serves_the_open_and_the_read() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(5000, 1);
    let attr = small(&cluster, &client, "f", &data).await;
    let before = cluster.storage.reads().len();
    let file = open(&client, READ, &attr).await;
    reads_early(&cluster, before).await;
    assert_eq!(read(&cluster, &file, before).await, (data.clone(), 1));
    // It has been used up, as every block of read-ahead.
    assert_eq!(read(&cluster, &file, before).await, (data, 2));
}

#[tokio::test]
async fn what_was_believed_wrongly_does_not_count() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let wrong: [fn(&mut Attr); 4] = [
        |attr| attr.size -= 1,
        |attr| attr.truncate_epoch += 1,
        |attr| attr.mtime = Some(pb::Time::default()),
        |attr| attr.ctime = Some(pb::Time::default()),
    ];
    for (n, spoil) in wrong.into_iter().enumerate() {
        let data = pattern(5000, n as u8);
        let attr = small(&cluster, &client, &n.to_string(), &data).await;
        let mut believed = attr;
        spoil(&mut believed);
        let before = cluster.storage.reads().len();
        let file = open(&client, READ, &believed).await;
        reads_early(&cluster, before).await;
        assert_eq!(read(&cluster, &file, before).await, (data, 2), "{n}");
    }
}

#[tokio::test]
async fn a_write_after_the_open_is_seen() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(5000, 1);
    let attr = small(&cluster, &client, "f", &data).await;
    let reader = open(&client, READ, &attr).await;
    let write = OpenFlags {
        write: true,
        ..READ
    };
    let opened = client.open(&me(), attr.inode.into(), write).await;
    let writer = opened.unwrap().1;
    writer.write(100, Bytes::from_static(b"new")).await.unwrap();
    let expected = [&data[..100], b"new", &data[103..]].concat();
    assert_eq!(reader.read(0, 5000).await.unwrap(), expected);
}

#[tokio::test]
async fn only_what_fits_is_read_early() {
    let cluster = Cluster::with_chunks(1 << 20).await;
    let client = cluster.client().await;
    let empty = small(&cluster, &client, "empty", &Bytes::new()).await;
    let large = pattern(MAX_EARLY_READ as usize + 1, 1);
    let large = small(&cluster, &client, "large", &large).await;
    let data = pattern(5000, 1);
    let plain = small(&cluster, &client, "plain", &data).await;
    let held = open(&client, READ, &plain).await;
    held.read(0, 5000).await.unwrap();
    let direct = OpenFlags {
        direct: true,
        ..READ
    };
    let before = cluster.storage.reads().len();
    let mut files = Vec::new();
    for (attr, flags) in [(empty, READ), (large, READ), (plain, READ)] {
        files.push(open(&client, flags, &attr).await);
    }
    let other = small(&cluster, &client, "other", &data).await;
    let file = open(&client, direct, &other).await;
    assert_eq!(read(&cluster, &file, before).await, (data, 1));
}
