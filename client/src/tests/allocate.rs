//! fallocate: lengths without bytes, and holes.

use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::ErrorCode;
use emberfs_proto::ids::ChunkKey;
use emberfs_proto::wire::Opcode;

use crate::testing::*;
use crate::{Allocate, Client, File, OpenFlags, SetAttr};

const CHUNK: u64 = 64 << 10;

/// Lengths of a file's chunks, in order.
fn chunks(cluster: &Cluster, file: &File) -> Vec<(u32, usize)> {
    let state = cluster.storage.state.lock();
    let mine = state.chunks.iter();
    let mine = mine.filter(|(key, _)| key.inode == file.inode());
    let mut mine: Vec<_> = mine.map(|(key, c)| (key.index.0, c.len())).collect();
    mine.sort_unstable();
    mine
}

async fn written(client: &Client, name: &str, len: u64) -> (File, Vec<u8>) {
    let file = create(client, name).await;
    let data = pattern(len as usize, 1);
    file.write(0, data.clone()).await.unwrap();
    file.sync().await.unwrap();
    (file, data.to_vec())
}

#[tokio::test]
async fn an_extension_is_known_to_the_server_and_reads_as_zeros() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, mut data) = written(&client, "f", 100).await;
    let before = cluster.meta.attr(file.inode().0);
    file.allocate(50, 1000, Allocate::Extend).await.unwrap();
    let attr = cluster.meta.attr(file.inode().0);
    assert_eq!(attr.size, 1050);
    assert_eq!(attr.truncate_epoch, before.truncate_epoch);
    data.resize(1050, 0);
    assert!(file.read(0, 2000).await.unwrap() == data);
    let reports = cluster.meta.state.lock().ends.len();
    for how in [Allocate::Extend, Allocate::KeepSize] {
        let before = cluster.meta.attr(file.inode().0);
        file.allocate(0, 1050, how).await.unwrap();
        let after = cluster.meta.attr(file.inode().0);
        assert!(after.mtime != before.mtime, "{how:?} moves the times");
        assert_eq!((after.size, after.sparse), (1050, before.sparse));
    }
    assert_eq!(cluster.meta.state.lock().ends.len(), reports + 2);
    assert_eq!(chunks(&cluster, &file), [(0, 100)], "no bytes");
}

#[tokio::test]
async fn an_extension_counts_although_another_client_truncated_meanwhile() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let (file, _) = written(&one, "f", 500).await;
    let size = Some(10);
    let changes = SetAttr {
        size,
        ..SetAttr::default()
    };
    two.setattr(&me(), file.inode(), changes, None)
        .await
        .unwrap();
    // What this client believes is longer than that.
    file.allocate(0, 400, Allocate::Extend).await.unwrap();
    assert_eq!(cluster.meta.attr(file.inode().0).size, 400);
    assert_eq!(file.size(), 400);
}

#[tokio::test]
async fn arguments_and_handles_are_checked() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, _) = written(&client, "f", 100).await;
    let max = file.state().layout.max_file_size();
    let all = [
        Allocate::Extend,
        Allocate::KeepSize,
        Allocate::PunchHole,
        Allocate::ZeroRange,
        Allocate::ZeroRangeKeepSize,
    ];
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let reader = client.open(&me(), file.inode(), flags).await.unwrap().1;
    for what in all {
        let errno = async |file: &File, offset, len| {
            let result = file.allocate(offset, len, what).await;
            result.unwrap_err().errno()
        };
        assert_eq!(errno(&file, 5, 0).await, 22, "{what:?}: EINVAL");
        assert_eq!(errno(&file, max, 1).await, 27, "{what:?}: EFBIG");
        assert_eq!(errno(&file, u64::MAX, 2).await, 27, "{what:?}: EFBIG");
        assert_eq!(errno(&reader, 0, 1).await, 9, "{what:?}: EBADF");
    }
    file.allocate(0, max, Allocate::KeepSize).await.unwrap();
    file.allocate(0, max, Allocate::PunchHole).await.unwrap();
    assert_eq!(cluster.meta.attr(file.inode().0).size, 100);
}

#[tokio::test]
async fn a_hole_takes_chunks_away_and_leaves_what_is_around_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, mut data) = written(&client, "f", 5 * CHUNK + 500).await;
    let (start, end) = (CHUNK / 2, 4 * CHUNK + 7);
    let len = end - start;
    // Read ahead, so that a block is there to be dropped.
    assert!(file.read(0, data.len()).await.unwrap() == data);
    file.allocate(start, len, Allocate::PunchHole)
        .await
        .unwrap();
    data[start as usize..end as usize].fill(0);
    assert!(file.read(0, data.len() + 9).await.unwrap() == data);
    let whole = CHUNK as usize;
    let left = [(0, whole / 2), (1, 0), (2, 0), (3, 0), (4, whole), (5, 500)];
    assert_eq!(chunks(&cluster, &file), left);
    let last = cluster.storage.writes().pop().unwrap();
    assert_eq!((last.key.index.0, last.offset, last.len), (4, 0, 7));

    // Up to the end of the file and beyond it: the end goes too, the size stays.
    let from = 5 * CHUNK + 100;
    file.allocate(from, 10 * CHUNK, Allocate::PunchHole)
        .await
        .unwrap();
    data[from as usize..].fill(0);
    assert!(file.read(0, data.len() + 9).await.unwrap() == data);
    assert_eq!(chunks(&cluster, &file)[5], (5, 100));
    assert_eq!(file.size(), data.len() as u64);
    let size = cluster.meta.attr(file.inode().0).size;
    assert_eq!(size, data.len() as u64);
}

#[tokio::test]
async fn any_hole_reads_as_a_model_says() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, mut model) = written(&client, "f", 4 * CHUNK + 999).await;
    for i in 0..40u64 {
        let start = i * 7919 * 31 % (5 * CHUNK);
        let len = 1 + i * 104_729 % (2 * CHUNK);
        let what = if i % 3 == 0 {
            Allocate::ZeroRange
        } else {
            Allocate::PunchHole
        };
        file.allocate(start, len, what).await.unwrap();
        let end = (start + len) as usize;
        if what == Allocate::ZeroRange && end > model.len() {
            model.resize(end, 0);
        }
        let range = (start as usize).min(model.len())..end.min(model.len());
        model[range].fill(0);
        let refill = pattern(3000, i as u8);
        let at = (i * 50_021 % (4 * CHUNK)) as usize;
        model.resize(model.len().max(at + 3000), 0);
        file.write(at as u64, refill.clone()).await.unwrap();
        model[at..at + 3000].copy_from_slice(&refill);
        let read = file.read(0, model.len() + 1).await.unwrap();
        assert!(read == model, "after step {i}");
    }
    assert_eq!(file.sync().await.unwrap().size, model.len() as u64);
}

#[tokio::test]
async fn writes_before_a_hole_do_not_fill_it_again() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    file.write(0, pattern(1000, 1)).await.unwrap();
    file.allocate(100, 800, Allocate::PunchHole).await.unwrap();
    let attr = file.sync().await.unwrap();
    let mut data = pattern(1000, 1).to_vec();
    data[100..900].fill(0);
    assert!(cluster.storage.contents(attr.inode, CHUNK as u32, 1000) == data);
    file.write(200, pattern(10, 2)).await.unwrap();
    data[200..210].copy_from_slice(&pattern(10, 2));
    assert!(file.read(0, 1000).await.unwrap() == data);
}

#[tokio::test]
async fn bytes_that_appear_behind_a_hole_meanwhile_stay() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, _) = written(&client, "f", 1000).await;
    let inode = file.inode().0;
    // The head says that the chunk has grown since it was listed: zeros are written instead.
    let grown = Fault::Error(ErrorCode::StaleChunkVersion);
    cluster.storage.fault(1, Opcode::Write, grown, 1);
    file.allocate(200, 800, Allocate::PunchHole).await.unwrap();
    assert!(cluster.storage.state.lock().cuts.is_empty());
    let mut data = pattern(1000, 1).to_vec();
    data[200..].fill(0);
    assert!(cluster.storage.contents(inode, CHUNK as u32, 1000) == data);
}

#[tokio::test]
async fn a_cut_names_the_longest_chunk_that_it_may_hit() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, _) = written(&client, "f", 1000).await;
    let key = ChunkKey::new(file.inode(), 0u32);
    let slow = Fault::Slow(Duration::from_millis(300));
    cluster.storage.fault(1, Opcode::Write, slow, 1);
    let punch = file.allocate(200, 800, Allocate::PunchHole);
    let other = async {
        eventually("listed", || cluster.storage.state.lock().lists == 1).await;
        // Between the look and the cut another client writes behind the hole.
        let mut state = cluster.storage.state.lock();
        state.chunks.get_mut(&key).unwrap().resize(3000, 9);
    };
    let (punched, ()) = tokio::join!(punch, other);
    punched.unwrap();
    let mut data = pattern(1000, 1).to_vec();
    data[200..].fill(0);
    data.resize(3000, 9);
    let contents = cluster.storage.contents(file.inode().0, CHUNK as u32, 3000);
    assert!(contents == data);
}

#[tokio::test]
async fn a_hole_is_made_once_whatever_happens_on_the_way() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, mut data) = written(&client, "f", 3 * CHUNK).await;
    for node in 1..=NODES {
        let storage = &cluster.storage;
        storage.fault(
            node,
            Opcode::InodeChunks,
            Fault::Error(ErrorCode::DiskError),
            1,
        );
    }
    let lost = Fault::Lost(ErrorCode::Unreachable);
    cluster.storage.fault(1, Opcode::Write, lost, 1);
    cluster.next_map();
    file.allocate(0, 2 * CHUNK, Allocate::PunchHole)
        .await
        .unwrap();
    data[..2 * CHUNK as usize].fill(0);
    assert!(file.read(0, data.len()).await.unwrap() == data);
    assert_eq!(cluster.storage.state.lock().cuts.len(), 2);
}

#[tokio::test]
async fn a_hole_whose_caller_went_away_is_made_before_later_writes() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, mut data) = written(&client, "f", 2 * CHUNK).await;
    let slow = Fault::Slow(Duration::from_millis(300));
    cluster.storage.fault(1, Opcode::Write, slow, 1);
    let punch = file.allocate(0, CHUNK, Allocate::PunchHole);
    let waited = tokio::time::timeout(Duration::from_millis(100), punch).await;
    assert!(waited.is_err());
    file.write(10, pattern(100, 3)).await.unwrap();
    data[..CHUNK as usize].fill(0);
    data[10..110].copy_from_slice(&pattern(100, 3));
    assert!(file.read(0, data.len()).await.unwrap() == data);
}

#[tokio::test]
async fn zeros_beyond_the_end_make_the_file_longer_unless_told_not_to() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, mut data) = written(&client, "f", 1000).await;
    let kept = file.allocate(500, CHUNK, Allocate::ZeroRangeKeepSize);
    kept.await.unwrap();
    assert_eq!(file.size(), 1000);
    file.allocate(500, CHUNK, Allocate::ZeroRange)
        .await
        .unwrap();
    data[500..].fill(0);
    data.resize(500 + CHUNK as usize, 0);
    assert_eq!(cluster.meta.attr(file.inode().0).size, data.len() as u64);
    assert!(file.read(0, data.len()).await.unwrap() == data);
}

#[tokio::test]
async fn other_clients_see_from_the_time_that_there_is_a_hole() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (file, _) = written(&client, "f", 1000).await;
    let before = cluster.meta.attr(file.inode().0);
    file.allocate(0, 10, Allocate::PunchHole).await.unwrap();
    let after = cluster.meta.attr(file.inode().0);
    assert_ne!(before.mtime, after.mtime);
    assert_eq!(before.truncate_epoch, after.truncate_epoch);
}

#[tokio::test]
async fn a_hole_in_a_long_empty_file_costs_a_request_per_chain() {
    let cluster = Cluster::with_chunks(4 << 20).await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let long = 16 << 40;
    file.allocate(0, long, Allocate::Extend).await.unwrap();
    let byte = Bytes::from_static(b"x");
    file.write(long - 1, byte).await.unwrap();
    file.sync().await.unwrap();
    file.allocate(0, long, Allocate::PunchHole).await.unwrap();
    {
        let state = cluster.storage.state.lock();
        assert_eq!(state.lists, CHAINS as usize);
        assert_eq!(state.cuts.len(), 1);
    }
    assert_eq!(file.allocated().await.unwrap(), 0);
    assert_eq!(cluster.meta.attr(file.inode().0).size, long);
}
