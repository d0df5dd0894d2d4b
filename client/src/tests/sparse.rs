//! Where data and holes are, what is stored, and very long files.

use bytes::Bytes;

use crate::testing::*;
use crate::{Allocate, File, OpenFlags, SetAttr, Whence};

const CHUNK: u64 = 64 << 10;

async fn seek(file: &File, offset: u64, whence: Whence) -> Option<u64> {
    match file.seek(offset, whence).await {
        Ok(found) => Some(found),
        Err(error) => {
            assert_eq!(error.errno(), 6, "{error}");
            None
        }
    }
}

#[tokio::test]
async fn data_and_holes_are_found_from_any_offset() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    // Data: chunk 2 and the beginning of chunk 3; the beginning of chunk 9. The end is a hole in chunk 11.
    file.write(2 * CHUNK, pattern(CHUNK as usize + 100, 1))
        .await
        .unwrap();
    file.write(9 * CHUNK, pattern(10, 1)).await.unwrap();
    let size = 11 * CHUNK + 50;
    file.allocate(0, size, Allocate::Extend).await.unwrap();
    for page in [None, Some(1)] {
        cluster.storage.state.lock().list_page = page;
        let (data, hole) = (Whence::Data, Whence::Hole);
        let first_end = 3 * CHUNK + 100;
        for (offset, whence, found) in [
            (0, data, Some(2 * CHUNK)),
            (2 * CHUNK - 1, data, Some(2 * CHUNK)),
            (2 * CHUNK + 5, data, Some(2 * CHUNK + 5)),
            (first_end - 1, data, Some(first_end - 1)),
            (first_end, data, Some(9 * CHUNK)),
            (9 * CHUNK + 9, data, Some(9 * CHUNK + 9)),
            (9 * CHUNK + 10, data, None),
            (size - 1, data, None),
            (size, data, None),
            (0, hole, Some(0)),
            (CHUNK + 3, hole, Some(CHUNK + 3)),
            (2 * CHUNK, hole, Some(first_end)),
            (first_end + 7, hole, Some(first_end + 7)),
            (9 * CHUNK, hole, Some(9 * CHUNK + 10)),
            (size - 1, hole, Some(size - 1)),
            (size, hole, None),
            (u64::MAX, hole, None),
        ] {
            let at = seek(&file, offset, whence).await;
            assert_eq!(at, found, "{whence:?} from {offset}");
        }
        assert_eq!(file.allocated().await.unwrap(), CHUNK + 110);
    }
}

#[tokio::test]
async fn a_full_file_has_its_hole_at_the_end() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    for chunks in [1, 5] {
        let len = chunks * CHUNK;
        file.write(0, pattern(len as usize, 1)).await.unwrap();
        assert_eq!(seek(&file, 0, Whence::Hole).await, Some(len));
        assert_eq!(seek(&file, len - 1, Whence::Hole).await, Some(len));
        assert_eq!(seek(&file, len - 1, Whence::Data).await, Some(len - 1));
        assert_eq!(seek(&file, len, Whence::Data).await, None);
    }
}

#[tokio::test]
async fn what_is_buffered_is_data_and_handles_that_cannot_read_may_ask() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    file.write(3 * CHUNK, pattern(10, 1)).await.unwrap();
    assert_eq!(seek(&file, 0, Whence::Data).await, Some(3 * CHUNK));
    let flags = OpenFlags {
        write: true,
        ..OpenFlags::default()
    };
    let writer = client.open(&me(), file.inode(), flags).await.unwrap().1;
    assert_eq!(seek(&writer, 0, Whence::Data).await, Some(3 * CHUNK));
    writer.write(CHUNK, pattern(10, 1)).await.unwrap();
    assert_eq!(seek(&file, 0, Whence::Data).await, Some(CHUNK));
}

#[tokio::test]
async fn a_search_at_hand_costs_one_request_and_a_long_one_not_more_for_a_longer_file() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let lists = || std::mem::take(&mut cluster.storage.state.lock().lists);
    file.write(0, pattern(100, 1)).await.unwrap();
    seek(&file, 0, Whence::Data).await.unwrap();
    assert_eq!(lists(), 1);
    seek(&file, 0, Whence::Hole).await.unwrap();
    assert_eq!(lists(), 1);
    let long = file.state().layout.max_file_size();
    file.write(long - 1, pattern(1, 1)).await.unwrap();
    let last = (long - 1) / CHUNK * CHUNK;
    assert_eq!(seek(&file, 100, Whence::Data).await, Some(last));
    assert_eq!(lists(), 1 + CHAINS as usize);
    assert_eq!(seek(&file, last, Whence::Hole).await, Some(long));
}

#[tokio::test]
async fn what_is_stored_is_known_of_files_that_are_not_open() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let file = create(&one, "f").await;
    file.write(2 * CHUNK, pattern(1000, 1)).await.unwrap();
    file.sync().await.unwrap();
    let layout = file.state().layout;
    let stored = two.allocated(file.inode(), layout).await.unwrap();
    assert_eq!(stored, 1000);
    assert_eq!(one.allocated(file.inode(), layout).await.unwrap(), 1000);
}

#[tokio::test]
async fn only_files_that_may_have_holes_cost_a_look_at_their_blocks() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    for i in 0..5 {
        file.write(i * 1000, pattern(1000, 1)).await.unwrap();
    }
    let attr = file.sync().await.unwrap();
    assert_eq!(client.blocks(&attr).await.unwrap(), 10);
    assert_eq!(cluster.storage.state.lock().lists, 0);
    file.write(9 * CHUNK, pattern(512, 1)).await.unwrap();
    let unsynced = client.getattr(file.inode()).await.unwrap();
    assert!(unsynced.sparse);
    let attr = file.sync().await.unwrap();
    assert!(cluster.meta.attr(file.inode().0).sparse);
    assert_eq!(client.blocks(&attr).await.unwrap(), 11);

    let punched = create(&client, "g").await;
    punched.write(0, pattern(5120, 1)).await.unwrap();
    let start = punched.allocate(1024, 9999, Allocate::PunchHole);
    start.await.unwrap();
    let attr = client.getattr(punched.inode()).await.unwrap();
    assert_eq!(client.blocks(&attr).await.unwrap(), 2);
}

#[tokio::test]
async fn sixteen_tebibytes_are_written_read_and_truncated_at_the_end() {
    let cluster = Cluster::with_chunks(4 << 20).await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let long: u64 = 16 << 40;
    assert!(file.state().layout.max_file_size() >= long);
    let byte = Bytes::from_static(b"x");
    file.write(long - 1, byte.clone()).await.unwrap();
    assert_eq!(file.sync().await.unwrap().size, long);
    assert_eq!(file.read(long - 1, 10).await.unwrap(), byte);
    assert!(file.read(long - 100, 99).await.unwrap() == [0; 99][..]);
    assert!(file.read(5 << 40, 10).await.unwrap() == [0; 10][..]);
    assert_eq!(cluster.storage.writes().len(), 1);
    for size in [long / 2, long, 7, 0, long] {
        let size = Some(size);
        let changes = SetAttr {
            size,
            ..SetAttr::default()
        };
        let set = client
            .setattr(&me(), file.inode(), changes, Some(&file))
            .await;
        assert_eq!(Some(set.unwrap().size), size);
        assert_eq!(Some(file.size()), size);
    }
    // Appended at the end of a hole of sixteen tebibytes.
    assert_eq!(file.append(byte).await.unwrap(), long);
    assert_eq!(file.sync().await.unwrap().size, long + 1);
}
