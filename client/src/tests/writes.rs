//! Writes: gathering, order, retries, errors, bounds.

use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::ErrorCode;
use emberfs_proto::wire::Opcode;
use proptest::prelude::*;

use crate::testing::*;
use crate::{Client, ClientConfig, OpenFlags, SetAttr};

const CHUNK: usize = 64 << 10;

#[tokio::test]
async fn one_mebibyte_writes_reach_storage_as_whole_chunks() {
    let cluster = Cluster::with_chunks(4 << 20).await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let data = pattern(16 << 20, 1);
    for offset in (0..data.len()).step_by(1 << 20) {
        file.write(offset as u64, data.slice(offset..offset + (1 << 20)))
            .await
            .unwrap();
    }
    let attr = file.sync().await.unwrap();
    assert_eq!(attr.size, data.len() as u64);
    let writes = cluster.storage.writes();
    assert_eq!(writes.len(), 4);
    assert!(
        writes
            .iter()
            .all(|w| (w.offset, w.len, w.size_hint) == (0, 4 << 20, 4 << 20))
    );
    assert!(writes.iter().all(|w| w.node == 1), "writes go to the heads");
    assert!(
        cluster
            .storage
            .contents(file.inode().0, 4 << 20, data.len())
            == data
    );
    assert_eq!(cluster.meta.attr(file.inode().0).size, data.len() as u64);
}

#[tokio::test]
async fn a_small_file_is_one_small_write_and_one_report() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let inode = file.inode().0;
    for i in 0..100u64 {
        file.write(i * 10, pattern(10, i as u8)).await.unwrap();
    }
    assert_eq!(
        (
            file.size(),
            client.getattr(file.inode()).await.unwrap().size
        ),
        (1000, 1000)
    );
    assert!(
        cluster.storage.writes().is_empty(),
        "nothing asked for it yet"
    );
    file.close().await.unwrap();
    let writes = cluster.storage.writes();
    assert_eq!(
        (writes.len(), writes[0].len, writes[0].size_hint),
        (1, 1000, 0)
    );
    assert_eq!(cluster.meta.state.lock().ends, vec![(inode, Some(1000))]);
    assert!(cluster.meta.state.lock().sessions.is_empty());
}

#[tokio::test]
async fn a_read_sees_every_write_before_it_through_any_handle() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let writer = create(&client, "f").await;
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let reader = client.open(&me(), writer.inode(), flags).await.unwrap().1;
    let mut model = vec![0; 3 * CHUNK];
    for i in 0..60usize {
        let at = (i * 7919) % (2 * CHUNK);
        let data = pattern(CHUNK / 3, i as u8);
        model[at..at + data.len()].copy_from_slice(&data);
        writer.write(at as u64, data).await.unwrap();
        let size = writer.size() as usize;
        assert!(
            reader.read(0, model.len()).await.unwrap() == model[..size],
            "after write {i}"
        );
    }
}

#[tokio::test]
async fn a_retried_write_keeps_its_tag_and_happens_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    cluster
        .storage
        .fault(1, Opcode::Write, Fault::Error(ErrorCode::Busy), 1);
    cluster
        .storage
        .fault(1, Opcode::Write, Fault::Lost(ErrorCode::Unreachable), 1);
    cluster
        .storage
        .fault(1, Opcode::Write, Fault::Lost(ErrorCode::PendingExists), 1);
    file.write(0, pattern(100, 1)).await.unwrap();
    file.sync().await.unwrap();
    let writes = cluster.storage.writes();
    assert_eq!(
        writes.iter().map(|w| w.applied).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert!(writes.iter().all(|w| w.tag == writes[0].tag));
    file.write(0, pattern(100, 2)).await.unwrap();
    file.sync().await.unwrap();
    let next = cluster.storage.writes().pop().unwrap();
    assert_ne!(next.tag, writes[0].tag);
    assert!(next.applied);
    assert_eq!(client.stats().write_retries, 3);
}

#[tokio::test]
async fn a_write_waits_for_its_head_to_come_back() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    file.write(0, pattern(10, 0)).await.unwrap();
    file.sync().await.unwrap();
    cluster.storage.kill(1);
    let data = pattern(3 * CHUNK, 1);
    file.write(0, data.clone()).await.unwrap();
    let sync = tokio::spawn(async move { file.sync().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!sync.is_finished());
    cluster.storage.revive(1).await;
    let attr = sync.await.unwrap().unwrap();
    assert!(
        cluster
            .storage
            .contents(attr.inode, CHUNK as u32, data.len())
            == data
    );
}

#[tokio::test]
async fn a_write_follows_the_map_under_the_same_tag() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    cluster.storage.next_version();
    file.write(0, pattern(10, 0)).await.unwrap();
    let sync = tokio::spawn(async move { file.sync().await });
    eventually("a refused write", || !cluster.storage.writes().is_empty()).await;
    cluster.next_map();
    sync.await.unwrap().unwrap();
    let writes = cluster.storage.writes();
    assert!(writes.iter().all(|w| w.tag == writes[0].tag));
    assert_eq!(writes.iter().filter(|w| w.applied).count(), 1);
}

#[tokio::test]
async fn a_hanging_head_is_left_as_soon_as_the_map_says_so() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    cluster
        .storage
        .fault(1, Opcode::Write, Fault::Slow(Duration::from_mins(1)), 1);
    file.write(0, pattern(10, 0)).await.unwrap();
    let sync = tokio::spawn(async move { file.sync().await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.next_map_without(1);
    let sync = tokio::time::timeout(Duration::from_secs(5), sync).await;
    sync.expect("waited for the time-out").unwrap().unwrap();
    assert!(cluster.storage.writes().iter().all(|w| w.node == 2));
}

#[tokio::test]
async fn each_handle_hears_of_a_failure_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let flags = OpenFlags {
        write: true,
        ..OpenFlags::default()
    };
    let other = client.open(&me(), file.inode(), flags).await.unwrap().1;
    cluster
        .storage
        .fault(1, Opcode::Write, Fault::Error(ErrorCode::NoSpace), 1);
    file.write(0, pattern(100, 1)).await.unwrap();
    let error = file.sync().await.unwrap_err();
    assert_eq!(error.errno(), 28, "{error}");
    assert_eq!(
        file.sync().await.unwrap().size,
        0,
        "the lost write does not count"
    );
    // A write tells, but the kernel may turn that into a short count: only a sync settles it.
    for _ in 0..2 {
        assert_eq!(
            other.write(0, pattern(1, 1)).await.unwrap_err().code,
            ErrorCode::NoSpace
        );
    }
    assert_eq!(other.sync().await.unwrap_err().code, ErrorCode::NoSpace);
    other.write(0, pattern(1, 1)).await.unwrap();
    other.close().await.unwrap();
    let late = client.open(&me(), file.inode(), flags).await.unwrap().1;
    late.close().await.unwrap();
}

#[tokio::test]
async fn buffered_bytes_stay_within_the_budget() {
    let cluster = Cluster::start().await;
    let config = ClientConfig {
        memory_bytes: 1 << 20,
        ..cluster.config()
    };
    let client = Client::connect(config).await.unwrap();
    let (a, b) = (create(&client, "a").await, create(&client, "b").await);
    // Runs that never fill their chunk rest in the buffer until memory is short.
    let most = std::sync::atomic::AtomicUsize::new(0);
    let write = |file: crate::File, seed: u8| {
        let (client, most) = (client.clone(), &most);
        async move {
            for i in 0..200u64 {
                file.write(i * CHUNK as u64, pattern(20_000, seed))
                    .await
                    .unwrap();
                most.fetch_max(client.memory_used().0, std::sync::atomic::Ordering::Relaxed);
            }
            file.sync().await.unwrap();
        }
    };
    let both = async { tokio::join!(write(a, 1), write(b, 2)) };
    tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .expect("writers wait for ever");
    assert!(most.into_inner() <= 512 << 10);
    assert_eq!(client.memory_used().0, 0);
    assert_eq!(cluster.storage.writes().len(), 400);
}

#[tokio::test]
async fn several_chunks_are_in_flight_and_one_write_per_chunk() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    file.write(0, pattern(64 * CHUNK, 1)).await.unwrap();
    file.sync().await.unwrap();
    let most = cluster.storage.state.lock().most_writing;
    assert!((4..=16).contains(&most), "{most} at once");
    cluster.storage.state.lock().most_writing = 0;
    for i in 0..20u64 {
        // Each leaves a gap, so each is a run of its own.
        file.write(i * 1000, pattern(500, i as u8)).await.unwrap();
    }
    file.sync().await.unwrap();
    assert_eq!(cluster.storage.state.lock().most_writing, 1);
}

#[tokio::test]
async fn old_data_and_lengths_go_out_without_being_asked_for() {
    let cluster = Cluster::start().await;
    let config = ClientConfig {
        write_back: Duration::from_millis(200),
        ..cluster.config()
    };
    let client = Client::connect(config).await.unwrap();
    let file = create(&client, "f").await;
    file.write(0, pattern(100, 1)).await.unwrap();
    let inode = file.inode().0;
    eventually("written back", || cluster.storage.writes().len() == 1).await;
    eventually("reported", || cluster.meta.attr(inode).size == 100).await;
}

#[tokio::test]
async fn truncate_comes_after_all_writes_and_drops_those_beyond() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let data = pattern(3 * CHUNK, 1);
    file.write(0, data.clone()).await.unwrap();
    file.write(3 * CHUNK as u64, pattern(5000, 2))
        .await
        .unwrap();
    let size = 2 * CHUNK as u64 + 100;
    let changes = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    let attr = client
        .setattr(&me(), file.inode(), changes, Some(&file))
        .await
        .unwrap();
    assert_eq!((attr.size, file.size()), (size, size));
    let beyond = cluster.storage.writes().iter().any(|w| w.key.index.0 == 3);
    assert!(!beyond, "the last chunk was dropped before it was sent");
    // The length was reported before the truncate: the server must know what there is to cut.
    assert_eq!(cluster.meta.state.lock().ends.len(), 1);
    file.sync().await.unwrap();
    assert_eq!(client.getattr(file.inode()).await.unwrap().size, size);
    file.write(0, pattern(10, 3)).await.unwrap();
    assert_eq!(file.sync().await.unwrap().size, size);
}

#[tokio::test]
async fn an_mtime_that_was_set_survives_earlier_writes() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let inode = file.inode();
    file.write(0, pattern(10, 3)).await.unwrap();
    let then = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let changes = SetAttr {
        mtime: Some(crate::TimeSet::At(then)),
        ..SetAttr::default()
    };
    client.setattr(&me(), inode, changes, None).await.unwrap();
    let reported = cluster.meta.state.lock().ends.len();
    assert_eq!(reported, 0, "it need not wait for them");
    let seen = client.getattr(inode).await.unwrap();
    assert_eq!((seen.size, seen.mtime), (10, Some(then.into())));
    file.sync().await.unwrap();
    assert_eq!(cluster.meta.attr(inode.0).mtime, Some(then.into()));
    // Later writes count.
    client.setattr(&me(), inode, changes, None).await.unwrap();
    file.write(0, pattern(20, 4)).await.unwrap();
    file.close().await.unwrap();
    let mtime = cluster.meta.attr(inode.0).mtime.unwrap();
    assert!(mtime.seconds > 1_000_000, "{mtime:?}");
}

#[tokio::test]
async fn appends_of_many_tasks_never_overlap() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "log").await;
    let tasks: Vec<_> = (0..8u8)
        .map(|task| {
            let file = file.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let at = file.append(Bytes::from(vec![task + 1; 777])).await.unwrap();
                    assert_eq!(at % 777, 0);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let all = file.read(0, 1 << 20).await.unwrap();
    assert_eq!(all.len(), 8 * 20 * 777);
    assert!(
        all.chunks(777)
            .all(|record| record.iter().all(|&b| b == record[0] && b > 0))
    );
}

#[tokio::test]
async fn direct_and_sync_handles_return_when_the_replicas_have_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let made = create(&client, "f").await;
    let direct = OpenFlags {
        write: true,
        direct: true,
        ..OpenFlags::default()
    };
    let file = client.open(&me(), made.inode(), direct).await.unwrap().1;
    file.write(0, pattern(100, 1)).await.unwrap();
    assert_eq!(cluster.storage.writes().len(), 1);
    assert_eq!(cluster.meta.attr(made.inode().0).size, 0);
    let file = client
        .open(
            &me(),
            made.inode(),
            OpenFlags {
                sync: true,
                ..direct
            },
        )
        .await
        .unwrap()
        .1;
    file.write(100, pattern(100, 1)).await.unwrap();
    assert_eq!(cluster.meta.attr(made.inode().0).size, 200);
    cluster
        .storage
        .fault(1, Opcode::Write, Fault::Error(ErrorCode::NoSpace), 1);
    assert_eq!(
        file.write(0, pattern(1, 1)).await.unwrap_err().code,
        ErrorCode::NoSpace
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    /// Any mix of writes, reads, truncates and syncs behaves like a local file.
    #[test]
    fn a_file_behaves_like_a_local_one(
        ops in proptest::collection::vec((0u8..8, 0usize..4 * CHUNK, 1usize..CHUNK, any::<u8>()), 1..40),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::start().await;
            let client = cluster.client().await;
            let file = create(&client, "f").await;
            let mut model: Vec<u8> = Vec::new();
            for (op, at, len, seed) in ops {
                match op {
                    0..4 => {
                        let data = pattern(len, seed);
                        model.resize(model.len().max(at + len), 0);
                        model[at..at + len].copy_from_slice(&data);
                        file.write(at as u64, data).await.unwrap();
                    }
                    4..6 => {
                        let end = (at + len).min(model.len());
                        let got = file.read(at as u64, len).await.unwrap();
                        assert!(got == model[at.min(end)..end]);
                    }
                    6 => {
                        // The fake server cuts no chunks; so only grow, as far as zeros are concerned.
                        let size = Some((model.len() + at) as u64);
                        let changes = SetAttr { size, ..SetAttr::default() };
                        client.setattr(&me(), file.inode(), changes, Some(&file)).await.unwrap();
                        model.resize(model.len() + at, 0);
                    }
                    _ => assert_eq!(file.sync().await.unwrap().size, model.len() as u64),
                }
                assert_eq!(file.size(), model.len() as u64);
            }
            let inode = file.inode();
            file.close().await.unwrap();
            assert!(cluster.storage.contents(inode.0, CHUNK as u32, model.len()) == model);
            assert_eq!(client.getattr(inode).await.unwrap().size, model.len() as u64);
        });
    }
}
