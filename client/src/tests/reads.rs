//! Reads: spans, holes, ends, fail-over, read-ahead.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use emberfs_proto::wire::Opcode;
use emberfs_proto::{ErrorCode, pb};

use crate::testing::*;
use crate::{Client, ClientConfig, File, OpenFlags, Verify};

const CHUNK: usize = 64 << 10;

/// A file whose chunks were written by someone else.
async fn planted(cluster: &Cluster, client: &Client, data: &Bytes, chunk: usize) -> File {
    let inode = cluster
        .meta
        .plant("f", pb::FileKind::File, data.len() as u64, "");
    for (index, part) in data.chunks(chunk).enumerate() {
        cluster
            .storage
            .plant(inode, index as u32, &Bytes::copy_from_slice(part));
    }
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    client.open(&me(), inode.into(), flags).await.unwrap().1
}

#[tokio::test]
async fn ranges_over_many_chunks_come_back_whole_and_in_order() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(10 * CHUNK + 1234, 1);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    for (offset, len) in [
        (0, data.len()),
        (1, 2),
        (CHUNK - 1, 2),
        (3 * CHUNK + 5, 4 * CHUNK),
    ] {
        let got = file.read(offset as u64, len).await.unwrap();
        assert!(got == data.slice(offset..offset + len), "{offset}+{len}");
    }
    let nodes: std::collections::HashSet<_> = cluster
        .storage
        .reads()
        .iter()
        .map(|read| read.node)
        .collect();
    assert_eq!(nodes.len(), 3, "reads spread over all replicas");
}

#[tokio::test]
async fn reads_land_in_the_callers_own_memory() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(3 * CHUNK, 2);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    let mut buf = BytesMut::with_capacity(100 + data.len());
    buf.extend_from_slice(&[9; 100]);
    let at = buf.as_ptr();
    let buf = file.read_into(0, buf).await.unwrap();
    assert_eq!(buf.as_ptr(), at);
    assert!(buf[..100] == [9; 100] && buf[100..] == data);
}

#[tokio::test]
async fn holes_are_zeros_and_the_end_is_short() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let size = 3 * CHUNK as u64 + 10;
    let inode = cluster.meta.plant("f", pb::FileKind::File, size, "");
    // Chunk 0 is missing, chunk 1 ends early, chunk 2 is whole, chunk 3 is missing.
    cluster.storage.plant(inode, 1, &Bytes::from(vec![1; 100]));
    cluster
        .storage
        .plant(inode, 2, &Bytes::from(vec![2; CHUNK]));
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let file = client.open(&me(), inode.into(), flags).await.unwrap().1;
    let mut expected = vec![0; size as usize];
    expected[CHUNK..CHUNK + 100].fill(1);
    expected[2 * CHUNK..3 * CHUNK].fill(2);
    assert!(file.read(0, 1 << 20).await.unwrap() == expected);
    assert_eq!(file.read(size - 5, 100).await.unwrap().len(), 5);
    assert!(file.read(size, 100).await.unwrap().is_empty());
    assert!(file.read(u64::MAX - 5, 100).await.unwrap().is_empty());
    let many = file
        .read_many(&[(0, 10), (CHUNK as u64 + 90, 20), (size - 5, 100), (size, 1)])
        .await;
    let many: Vec<_> = many.into_iter().map(Result::unwrap).collect();
    assert_eq!(many[0], vec![0; 10]);
    assert_eq!(many[1], [vec![1; 10], vec![0; 10]].concat());
    assert_eq!((many[2].len(), many[3].len()), (5, 0));
}

#[tokio::test]
async fn blocks_read_ahead_show_nothing_of_what_their_memory_held_before() {
    const LARGE: usize = 1 << 20;
    let cluster = Cluster::with_chunks(LARGE as u32).await;
    let client = cluster.client().await;
    let full = pattern(8 * LARGE, 5);
    let file = planted(&cluster, &client, &full, LARGE).await;
    scan(&file, &full).await;
    let used = client.stats().prefetch_hit_bytes;
    assert!(used >= 4 * LARGE as u64, "{used} bytes were read ahead");

    // Every third chunk is missing, every third ends early.
    let mut holes = vec![0; full.len()];
    let size = holes.len() as u64;
    let inode = cluster.meta.plant("g", pb::FileKind::File, size, "");
    for (index, chunk) in holes.chunks_mut(LARGE).enumerate() {
        let len = [LARGE, 0, 12_345][index % 3];
        chunk[..len].fill(1);
        if len > 0 {
            let bytes = Bytes::copy_from_slice(&chunk[..len]);
            cluster.storage.plant(inode, index as u32, &bytes);
        }
    }
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let file = client.open(&me(), inode.into(), flags).await.unwrap().1;
    scan(&file, &holes).await;
    assert!(client.stats().prefetch_hit_bytes >= used + 4 * LARGE as u64);
}

#[tokio::test]
async fn what_was_read_ahead_goes_when_somebody_else_has_written() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(20 * CHUNK, 5);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    scan(&file, &data[..10 * CHUNK]).await;
    assert!(client.stats().prefetched_bytes > 0);
    let inode = file.inode();
    let new = pattern(20 * CHUNK, 6);
    for (index, part) in new.chunks(CHUNK).enumerate() {
        let part = Bytes::copy_from_slice(part);
        cluster.storage.plant(inode.0, index as u32, &part);
    }
    {
        let mut state = cluster.meta.state.lock();
        let attr = state.files.get_mut(&inode.0).unwrap();
        attr.mtime = Some(pb::Time {
            seconds: 1_900_000_000,
            nanos: 0,
        });
    }
    // What a mount does when it hears that the file has changed.
    client.getattr(inode).await.unwrap();
    scan(&file, &new).await;
}

/// Reads from start to end and compares.
async fn scan(file: &File, expected: &[u8]) {
    for (n, part) in expected.chunks(CHUNK).enumerate() {
        let got = file.read((n * CHUNK) as u64, CHUNK).await.unwrap();
        assert!(got == part, "piece {n}");
    }
}

#[tokio::test]
async fn a_damaged_replica_costs_a_second_request_and_never_wrong_bytes() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(CHUNK, 3);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    for node in 1..=2 {
        cluster.storage.fault(node, Opcode::Read, Fault::Corrupt, 1);
    }
    for _ in 0..6 {
        assert!(file.read(0, CHUNK).await.unwrap() == data);
    }
    assert_eq!(client.stats().checksum_failures, 2);
}

#[tokio::test]
async fn refusals_and_dead_nodes_are_passed_over() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(4 * CHUNK, 4);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    for node in 1..=3 {
        cluster
            .storage
            .fault(node, Opcode::Read, Fault::Error(ErrorCode::Busy), 2);
        cluster
            .storage
            .fault(node, Opcode::Read, Fault::Error(ErrorCode::LeaseExpired), 1);
        cluster
            .storage
            .fault(node, Opcode::Read, Fault::Error(ErrorCode::DiskError), 1);
    }
    assert!(file.read(0, data.len()).await.unwrap() == data);
    cluster.storage.kill(1);
    cluster.storage.kill(2);
    for _ in 0..3 {
        assert!(file.read(0, data.len()).await.unwrap() == data);
    }
}

#[tokio::test]
async fn a_client_behind_the_servers_waits_for_the_newer_map() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(CHUNK, 5);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    cluster.storage.next_version();
    let read = tokio::spawn(async move { file.read(0, CHUNK).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!read.is_finished(), "answered under a stale chain version");
    // The second bump is what the clients hear of.
    cluster.next_map();
    assert!(read.await.unwrap().unwrap() == data);
}

#[tokio::test]
async fn a_replica_that_hangs_is_left_as_soon_as_the_map_says_so() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(CHUNK, 5);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    for node in 1..=3 {
        cluster
            .storage
            .fault(node, Opcode::Read, Fault::Slow(Duration::from_mins(1)), 1);
    }
    let reads: Vec<_> = (0..3)
        .map(|_| {
            let file = file.clone();
            tokio::spawn(async move { file.read(0, CHUNK).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = std::time::Instant::now();
    for node in 1..=3 {
        cluster.next_map_without(node);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for read in reads {
        assert!(read.await.unwrap().unwrap() == data);
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "waited for the time-out"
    );
}

#[tokio::test]
async fn patience_ends_with_a_message_that_names_the_cause() {
    let cluster = Cluster::start().await;
    let config = ClientConfig {
        io_timeout: Some(Duration::from_millis(300)),
        ..cluster.config()
    };
    let client = Client::connect(config).await.unwrap();
    let file = planted(&cluster, &client, &pattern(10, 0), CHUNK).await;
    (1..=3).for_each(|node| cluster.storage.kill(node));
    let error = file.read(0, 10).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(
        error.message.contains("gave up") && error.message.contains("unreachable"),
        "{error}"
    );
}

#[tokio::test]
async fn sequential_reads_are_answered_ahead_and_random_ones_are_not() {
    let cluster = Cluster::with_chunks(1 << 20).await;
    let client = cluster.client().await;
    let data = pattern(16 << 20, 6);
    let file = planted(&cluster, &client, &data, 1 << 20).await;
    // Random first: far apart, in no order.
    for i in [13u64, 2, 9, 5, 15, 0, 11, 7] {
        let offset = (i << 20) + i * 10_000;
        let got = file.read(offset, 4096).await.unwrap();
        assert!(got == data.slice(offset as usize..offset as usize + 4096));
    }
    assert_eq!(client.stats().prefetched_bytes, 0);
    let step = 256 << 10;
    for offset in (0..data.len()).step_by(step) {
        assert!(file.read(offset as u64, step).await.unwrap() == data.slice(offset..offset + step));
    }
    let stats = client.stats();
    assert!(stats.prefetch_hit_bytes > 14 << 20, "{stats:?}");
    assert!(
        stats.read_bytes < 18 << 20,
        "nothing is fetched twice: {stats:?}"
    );
    assert!(
        client.memory_used().1 < 4 << 20,
        "what was read has been given back"
    );
}

#[tokio::test]
async fn read_ahead_never_serves_bytes_from_before_a_write() {
    let cluster = Cluster::with_chunks(1 << 20).await;
    let client = cluster.client().await;
    let data = pattern(8 << 20, 7);
    let reader = planted(&cluster, &client, &data, 1 << 20).await;
    let flags = OpenFlags {
        write: true,
        ..OpenFlags::default()
    };
    let writer = client.open(&me(), reader.inode(), flags).await.unwrap().1;
    let mut model = data.to_vec();
    let step = 128 << 10;
    for (i, offset) in (0..data.len()).step_by(step).enumerate() {
        let got = reader.read(offset as u64, step).await.unwrap();
        assert!(got == model[offset..offset + step], "step {i}");
        // Into what has just been read ahead.
        let at = offset + step + (i * 7919) % (3 * step);
        if at + 100 <= model.len() {
            let bytes = pattern(100, i as u8);
            model[at..at + 100].copy_from_slice(&bytes);
            writer.write(at as u64, bytes).await.unwrap();
        }
    }
}

#[tokio::test]
async fn many_small_reads_share_requests() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(32 * CHUNK, 8);
    let file = planted(&cluster, &client, &data, CHUNK).await;
    let ranges: Vec<(u64, usize)> = (0..500u64)
        .map(|i| ((i * 7919 * 131) % (data.len() as u64 - 3000), 3000))
        .collect();
    // One bad answer costs only the ranges in it.
    cluster.storage.fault(2, Opcode::Read, Fault::Corrupt, 1);
    cluster
        .storage
        .fault(3, Opcode::Read, Fault::Error(ErrorCode::Busy), 1);
    let got = file.read_many(&ranges).await;
    for (&(offset, len), bytes) in ranges.iter().zip(got) {
        assert!(bytes.unwrap() == data.slice(offset as usize..offset as usize + len));
    }
    let before = cluster.storage.reads().len();
    file.read_many(&ranges).await;
    let frames = cluster.storage.reads().len() - before;
    assert!(frames <= 6, "{frames} requests for 500 ranges over 3 nodes");
}

#[tokio::test]
async fn a_reader_at_the_end_sees_the_file_grow() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = planted(&cluster, &client, &pattern(100, 0), CHUNK).await;
    cluster.storage.plant(file.inode().0, 0, &pattern(200, 0));
    cluster
        .meta
        .state
        .lock()
        .files
        .get_mut(&file.inode().0)
        .unwrap()
        .size = 200;
    assert!(
        file.read(100, 100).await.unwrap().is_empty(),
        "asked a moment ago"
    );
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(file.read(100, 100).await.unwrap().len(), 100);
}

#[tokio::test]
async fn every_read_says_how_it_is_to_be_checked() {
    for (verify, transfers) in [(Verify::Page, 0), (Verify::Transfer, 1)] {
        let cluster = Cluster::start().await;
        let config = ClientConfig {
            verify,
            ..cluster.config()
        };
        let client = Client::connect(config).await.unwrap();
        let data = pattern(CHUNK, 1);
        let file = planted(&cluster, &client, &data, CHUNK).await;
        assert_eq!(file.read(100, 200).await.unwrap(), data[100..300]);
        let many = file.read_many(&[(5000, 10)]).await;
        assert_eq!(many[0].as_ref().unwrap(), &data[5000..5010]);
        let seen = cluster.storage.reads();
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(|read| read.transfers == transfers));
    }
}
