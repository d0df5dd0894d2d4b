//! copy_file_range.

use emberfs_proto::ErrorCode;
use emberfs_proto::wire::Opcode;

use crate::testing::*;
use crate::{Allocate, OpenFlags, Whence};

const CHUNK: u64 = 64 << 10;

#[tokio::test]
async fn bytes_are_copied_to_any_offset_and_buffered_ones_too() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (from, to) = (create(&client, "a").await, create(&client, "b").await);
    let data = pattern(5 * CHUNK as usize + 77, 1);
    from.write(0, data.clone()).await.unwrap();
    let copied = client.copy_range(&from, 100, &to, 7000, 4 * CHUNK).await;
    assert_eq!(copied, Ok(4 * CHUNK));
    let mut want = vec![0; 7000];
    want.extend_from_slice(&data[100..100 + 4 * CHUNK as usize]);
    assert!(to.read(0, want.len() + 1).await.unwrap() == want);
    assert_eq!(to.sync().await.unwrap().size, want.len() as u64);
}

#[tokio::test]
async fn a_copy_ends_at_the_end_of_the_source() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (from, to) = (create(&client, "a").await, create(&client, "b").await);
    from.write(0, pattern(1000, 1)).await.unwrap();
    let copied = client.copy_range(&from, 900, &to, 0, u64::MAX).await;
    assert_eq!(copied, Ok(100));
    for offset in [1000, 5000, u64::MAX] {
        assert_eq!(client.copy_range(&from, offset, &to, 0, 10).await, Ok(0));
    }
    assert_eq!(client.copy_range(&from, 0, &to, 0, 0).await, Ok(0));
    assert_eq!(to.size(), 100);
}

#[tokio::test]
async fn holes_stay_holes_and_take_the_place_of_what_was_there() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (from, to) = (create(&client, "a").await, create(&client, "b").await);
    from.write(2 * CHUNK, pattern(CHUNK as usize, 1))
        .await
        .unwrap();
    from.write(7 * CHUNK, pattern(10, 2)).await.unwrap();
    let size = 20 * CHUNK;
    from.allocate(0, size, Allocate::Extend).await.unwrap();
    to.write(0, pattern(9 * CHUNK as usize, 3)).await.unwrap();
    let copied = client.copy_range(&from, 0, &to, 0, size).await;
    assert_eq!(copied, Ok(size));
    let want = from.read(0, size as usize).await.unwrap();
    assert!(to.read(0, size as usize + 1).await.unwrap() == want);
    assert_eq!(to.sync().await.unwrap().size, size, "the hole at the end");
    assert_eq!(to.seek(0, Whence::Data).await, Ok(2 * CHUNK));
    assert_eq!(to.seek(3 * CHUNK, Whence::Data).await, Ok(7 * CHUNK));
    let stored = from.allocated().await.unwrap();
    assert!(to.allocated().await.unwrap() <= stored + CHUNK);

    let fresh = create(&client, "c").await;
    let copied = client.copy_range(&from, 0, &fresh, 0, size).await;
    assert_eq!(copied, Ok(size));
    assert_eq!(fresh.allocated().await, Ok(stored));
    assert!(fresh.read(0, size as usize + 1).await.unwrap() == want);
}

#[tokio::test]
async fn a_long_hole_costs_little() {
    let cluster = Cluster::with_chunks(4 << 20).await;
    let client = cluster.client().await;
    let (from, to) = (create(&client, "a").await, create(&client, "b").await);
    let long = 16 << 40;
    from.write(long - 5, pattern(5, 1)).await.unwrap();
    assert_eq!(client.copy_range(&from, 0, &to, 0, long).await, Ok(long));
    assert_eq!(to.sync().await.unwrap().size, long);
    assert!(to.read(long - 5, 9).await.unwrap() == pattern(5, 1));
    assert!(cluster.storage.state.lock().lists < 20);
}

#[tokio::test]
async fn within_one_file_ranges_must_not_overlap() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "a").await;
    let data = pattern(1000, 1);
    file.write(0, data.clone()).await.unwrap();
    for (from, to, len) in [(0, 0, 10), (0, 9, 10), (9, 0, 10), (500, 999, 5000)] {
        let refused = client.copy_range(&file, from, &file, to, len).await;
        assert_eq!(refused.unwrap_err().errno(), 22, "{from} {to} {len}");
    }
    let copied = client.copy_range(&file, 500, &file, 1000, 5000).await;
    assert_eq!(copied, Ok(500));
    let want = [&data[..], &data[500..]].concat();
    assert!(file.read(0, 2000).await.unwrap() == want);
}

#[tokio::test]
async fn handles_and_limits_are_checked() {
    let cluster = Cluster::start().await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let file = create(&client, "a").await;
    file.write(0, pattern(1000, 1)).await.unwrap();
    file.sync().await.unwrap();
    let (read, append) = (
        OpenFlags {
            read: true,
            ..OpenFlags::default()
        },
        OpenFlags {
            write: true,
            append: true,
            ..OpenFlags::default()
        },
    );
    let reader = client.open(&me(), file.inode(), read).await.unwrap().1;
    let appender = client.open(&me(), file.inode(), append).await.unwrap().1;
    let theirs = other.open(&me(), file.inode(), read).await.unwrap().1;
    let to = create(&client, "b").await;
    let max = to.state().layout.max_file_size();
    for (from, to, offset, errno) in [
        (&file, &reader, 0, 9),
        (&file, &appender, 0, 9),
        (&appender, &to, 0, 9),
        (&theirs, &to, 0, 18),
        (&file, &to, max, 27),
    ] {
        let refused = client.copy_range(from, 0, to, offset, 10).await;
        assert_eq!(refused.unwrap_err().errno(), errno);
    }
    let copied = client.copy_range(&file, 0, &to, max - 3, 10).await;
    assert_eq!(copied, Ok(3), "as much as fits");
}

#[tokio::test]
async fn an_error_after_a_part_is_a_short_copy() {
    let cluster = Cluster::with_chunks(4 << 20).await;
    let client = cluster.client().await;
    let (from, to) = (create(&client, "a").await, create(&client, "b").await);
    let piece = 4 << 20;
    from.write(0, pattern(3 * piece as usize, 1)).await.unwrap();
    from.sync().await.unwrap();
    // The third chunk cannot be read.
    let third = emberfs_proto::ids::ChunkKey::new(from.inode(), 2u32);
    cluster.storage.state.lock().broken = Some(third);
    let copied = client.copy_range(&from, 0, &to, 0, 3 * piece).await;
    assert_eq!(copied, Ok(2 * piece));
    assert_eq!(to.size(), 2 * piece);
    let copied = client.copy_range(&from, 2 * piece, &to, 0, piece).await;
    assert_eq!(copied.unwrap_err().code, ErrorCode::NoSpace);
    to.sync().await.unwrap();
    let failed = Fault::Error(ErrorCode::NoSpace);
    cluster.storage.fault(1, Opcode::Write, failed, 1);
    client.copy_range(&from, 0, &to, 0, 10).await.unwrap();
    assert_eq!(to.sync().await.unwrap_err().code, ErrorCode::NoSpace);
}
