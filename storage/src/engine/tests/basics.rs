use super::*;
use crate::engine::PendingKind;
use emberfs_proto::ids::{ChunkIndex, InodeId};

#[tokio::test]
async fn a_prepared_version_is_invisible_until_its_commit_and_survives_a_reopen() {
    let (_dir, config, engine) = fresh().await;
    let (a, b) = (pattern(100_000, 1), pattern(50_000, 2));
    assert_eq!(engine.meta(T, key(1)).await.unwrap(), None);
    let meta = engine.prepare(T, key(1), write(1, 0, &a)).await.unwrap();
    assert_eq!(meta.committed, ChunkVersion(0));
    assert_eq!(
        code(engine.read(T, key(1), ReadVersion::Committed, 0, 1).await),
        ErrorCode::ChunkNotFound
    );
    assert_eq!(
        content(&engine, key(1), ReadVersion::Pending)
            .await
            .unwrap(),
        a
    );
    commit(&engine, key(1), 1).await;
    engine
        .prepare(T, key(1), write(2, 30_000, &b))
        .await
        .unwrap();
    engine.shutdown().await;
    assert_eq!(code(engine.meta(T, key(1)).await), ErrorCode::NotServing);

    let engine = open(&config).await;
    let meta = engine.meta(T, key(1)).await.unwrap().unwrap();
    assert_eq!(
        (meta.committed, meta.committed_len, meta.tag),
        (ChunkVersion(1), 100_000, tag(1))
    );
    let pending = meta.pending.clone().unwrap();
    assert_eq!(
        (pending.version, pending.len, pending.kind),
        (ChunkVersion(2), 100_000, PendingKind::Write)
    );
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        a
    );
    let mut mixed = a.clone();
    mixed[30_000..80_000].copy_from_slice(&b);
    let exactly = ReadVersion::Exactly(ChunkVersion(2));
    assert_eq!(content(&engine, key(1), exactly).await.unwrap(), mixed);
    let meta = commit(&engine, key(1), 2).await.unwrap();
    assert_eq!(
        meta.checksum, pending.checksum,
        "the chain compares this before it commits"
    );
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        mixed
    );
    let past = engine
        .read(T, key(1), ReadVersion::Exactly(ChunkVersion(1)), 0, 1)
        .await;
    assert_eq!(past.unwrap_err().newer_version, 2);
    let future = engine
        .read(T, key(1), ReadVersion::Exactly(ChunkVersion(3)), 0, 1)
        .await;
    assert_eq!(code(future), ErrorCode::MissingVersion);
    sound(&engine).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn versions_out_of_turn_are_refused_and_a_repeated_write_is_answered() {
    let (_dir, _, engine) = fresh().await;
    let k = key(1);
    assert_eq!(
        code(engine.prepare(T, k, write(2, 0, b"x")).await),
        ErrorCode::MissingVersion
    );
    assert_eq!(
        code(engine.commit(T, k, 1.into(), 1.into()).await),
        ErrorCode::ChunkNotFound
    );
    let first = engine.prepare(T, k, write(1, 0, b"abc")).await.unwrap();
    assert_eq!(
        engine.prepare(T, k, write(1, 0, b"abc")).await.unwrap(),
        first
    );
    let other = Prepare {
        tag: tag(99),
        ..write(1, 0, b"xyz")
    };
    assert_eq!(
        code(engine.prepare(T, k, other).await),
        ErrorCode::PendingExists
    );
    assert_eq!(
        code(engine.commit(T, k, 2.into(), 1.into()).await),
        ErrorCode::MissingVersion
    );
    let meta = engine
        .commit(T, k, 1.into(), 9.into())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(meta.committed_chain, ChainVersion(9));
    assert_eq!(
        engine.commit(T, k, 1.into(), 9.into()).await.unwrap(),
        Some(meta)
    );
    let late = engine.prepare(T, k, write(1, 0, b"abc")).await.unwrap_err();
    assert_eq!(
        (late.code, late.newer_version),
        (ErrorCode::StaleChunkVersion, 1)
    );
    assert_eq!(
        content(&engine, k, ReadVersion::Committed).await.unwrap(),
        b"abc"
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let (_dir, _, engine) = fresh().await;
    let bad = [
        Prepare {
            page_size: 5000,
            ..write(1, 0, b"x")
        },
        Prepare {
            chunk_size: 128 << 20,
            ..write(1, 0, b"x")
        },
        write(0, 0, b"x"),
        write(1, CHUNK - 1, b"xy"),
        prepare(1, PrepareKind::Truncate { len: CHUNK + 1 }),
        prepare(
            1,
            PrepareKind::Replace {
                data: Bytes::from_static(b"x"),
                checksums: vec![],
                recent: Arc::default(),
            },
        ),
    ];
    for request in bad {
        assert_eq!(
            code(engine.prepare(T, key(1), request).await),
            ErrorCode::InvalidArgument
        );
    }
    put(&engine, key(1), write(1, 0, b"x")).await;
    let other_page = Prepare {
        page_size: 4096,
        ..write(2, 0, b"x")
    };
    assert_eq!(
        code(engine.prepare(T, key(1), other_page).await),
        ErrorCode::InvalidArgument
    );
    let elsewhere = engine.prepare(TargetId(8), key(1), write(1, 0, b"x")).await;
    assert_eq!(code(elsewhere), ErrorCode::NotServing);
    engine.shutdown().await;
}

#[tokio::test]
async fn reads_return_what_exists_with_a_checksum_per_fragment() {
    let (_dir, _, engine) = fresh().await;
    let bytes = pattern(100_001, 5);
    put(&engine, key(1), write(1, 0, &bytes)).await;
    for (offset, len) in [
        (0, 100_001),
        (0, 1),
        (16_383, 2),
        (16_384, 16_384),
        (100_000, 50),
        (99_000, u32::MAX),
        (100_001, 5),
        (CHUNK, 5),
        (5, 0),
    ] {
        let read = engine
            .read(T, key(1), ReadVersion::Committed, offset, len)
            .await
            .unwrap();
        let end = (offset as usize)
            .saturating_add(len as usize)
            .min(bytes.len());
        assert_eq!(
            read.data,
            bytes.get(offset as usize..end).unwrap_or(&[]),
            "{offset} {len}"
        );
        assert_eq!((read.chunk_len, read.version), (100_001, ChunkVersion(1)));
        verified(offset, &read);
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn replicas_with_equal_bytes_have_equal_checksums_whatever_their_history() {
    let (_dir, _, engine) = fresh().await;
    let bytes = pattern(90_000, 5);
    let whole = put(&engine, key(1), write(1, 0, &bytes)).await.unwrap();
    put(&engine, key(2), write(1, 0, &bytes[..10_000])).await;
    put(&engine, key(2), write(2, 60_000, &bytes[60_000..])).await;
    let grown = put(&engine, key(2), write(3, 10_000, &bytes[10_000..60_000]))
        .await
        .unwrap();
    assert_eq!(whole.checksum, grown.checksum);
    let other = put(&engine, key(2), write(4, 5, b"!")).await.unwrap();
    assert_ne!(whole.checksum, other.checksum);
    engine.shutdown().await;
}

#[tokio::test]
async fn resync_can_replace_abort_and_drop_in_any_state() {
    let (_dir, _, engine) = fresh().await;
    let k = key(1);
    // A replacement by an older version, over a pending write.
    put(&engine, k, write(1, 0, &pattern(50_000, 1))).await;
    put(&engine, k, write(2, 0, &pattern(50_000, 2))).await;
    engine
        .prepare(T, k, write(3, 0, &pattern(70_000, 3)))
        .await
        .unwrap();
    put(&engine, k, replace(2, &pattern(9_000, 4))).await;
    let meta = engine.meta(T, k).await.unwrap().unwrap();
    assert_eq!(
        (meta.committed, meta.committed_len, meta.pending),
        (ChunkVersion(2), 9_000, None)
    );
    assert_eq!(
        content(&engine, k, ReadVersion::Committed).await.unwrap(),
        pattern(9_000, 4)
    );
    // A pending version given up.
    engine
        .prepare(T, k, write(3, 9_000, b"tail"))
        .await
        .unwrap();
    assert!(
        engine
            .abort(T, k, 4.into())
            .await
            .unwrap()
            .unwrap()
            .pending
            .is_some()
    );
    assert!(
        engine
            .abort(T, k, 3.into())
            .await
            .unwrap()
            .unwrap()
            .pending
            .is_none()
    );
    assert_eq!(
        content(&engine, k, ReadVersion::Pending).await.unwrap(),
        pattern(9_000, 4)
    );
    engine
        .prepare(T, key(2), write(1, 0, b"only pending"))
        .await
        .unwrap();
    assert_eq!(engine.abort(T, key(2), 1.into()).await.unwrap(), None);
    // Gone, whatever it was.
    engine.prepare(T, k, write(3, 0, b"x")).await.unwrap();
    engine.drop_chunk(T, k).await.unwrap();
    engine.drop_chunk(T, k).await.unwrap();
    assert_eq!(engine.meta(T, k).await.unwrap(), None);
    let report = sound(&engine).await;
    assert_eq!(
        (report.chunks, report.blocks, engine.space().used),
        (0, 0, 0)
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn listings_are_paged_sorted_and_bounded_to_their_file_and_target() {
    let (_dir, _, engine) = fresh().await;
    engine.create_target(TargetId(8)).await.unwrap();
    engine.create_target(TargetId(8)).await.unwrap();
    assert_eq!(engine.targets().await.unwrap(), [T, TargetId(8)]);
    for inode in 1..=3 {
        for index in [5, 0, 3] {
            let write = write(1, 0, &pattern(100 + index as usize, inode));
            put(&engine, ChunkKey::new(inode, index), write).await;
        }
    }
    engine
        .prepare(
            TargetId(8),
            ChunkKey::new(2, 9),
            write(1, 0, b"other target"),
        )
        .await
        .unwrap();
    let all = engine.list(T, None, 100).await.unwrap();
    assert_eq!(all.len(), 9);
    assert!(all.is_sorted_by_key(|(k, _)| *k));
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = engine.list(T, after, 2).await.unwrap();
        after = page.last().map(|(k, _)| *k);
        paged.extend(page);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, all);
    let two = engine.list_inode(T, InodeId(2), None, 100).await.unwrap();
    let indexes: Vec<u32> = two.iter().map(|(k, _)| k.index.0).collect();
    assert_eq!(indexes, [0, 3, 5]);
    let rest = engine
        .list_inode(T, InodeId(2), Some(ChunkKey::new(2, 0)), 1)
        .await
        .unwrap();
    assert_eq!(rest[0].0, ChunkKey::new(2, 3));
    assert!(engine.list(T, None, 0).await.unwrap().is_empty());
    engine.shutdown().await;
}

#[tokio::test]
async fn the_last_chunk_with_bytes_is_found_from_the_end() {
    let (_dir, _, engine) = fresh().await;
    let inode = InodeId(4);
    assert_eq!(engine.last_chunk(T, inode).await.unwrap(), None);
    for index in [0, 2, 9] {
        put(
            &engine,
            ChunkKey::new(4, index),
            write(1, 0, &pattern(1000 + index as usize, 0)),
        )
        .await;
    }
    put(&engine, ChunkKey::new(5, 0), write(1, 0, b"another file")).await;
    assert_eq!(
        engine.last_chunk(T, inode).await.unwrap(),
        Some((ChunkIndex(9), 1009))
    );
    put(
        &engine,
        ChunkKey::new(4, 9),
        prepare(2, PrepareKind::Truncate { len: 0 }),
    )
    .await;
    assert_eq!(
        engine.last_chunk(T, inode).await.unwrap(),
        Some((ChunkIndex(2), 1002))
    );
    engine
        .prepare(T, ChunkKey::new(4, 2), write(2, 5000, b"pending"))
        .await
        .unwrap();
    assert_eq!(
        engine.last_chunk(T, inode).await.unwrap(),
        Some((ChunkIndex(2), 5007))
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn dropping_a_target_frees_all_of_it_and_nothing_else_even_if_interrupted() {
    let (_dir, config, engine) = fresh().await;
    let other = TargetId(8);
    engine.create_target(other).await.unwrap();
    for n in 0..30 {
        put(&engine, key(n), write(1, 0, &pattern(20_000, n))).await;
    }
    engine
        .prepare(T, key(99), write(1, 0, b"pending"))
        .await
        .unwrap();
    engine
        .prepare(other, key(1), write(1, 0, b"stays"))
        .await
        .unwrap();
    engine.drop_target(T).await.unwrap();
    engine.drop_target(T).await.unwrap();
    assert_eq!(engine.targets().await.unwrap(), [other]);
    assert_eq!(code(engine.meta(T, key(1)).await), ErrorCode::NotServing);
    assert_eq!(sound(&engine).await.chunks, 1);
    assert_eq!(engine.space().used, 4096);
    engine.create_target(T).await.unwrap();
    assert_eq!(
        engine.meta(T, key(1)).await.unwrap(),
        None,
        "no ghost in the cache"
    );
    put(&engine, key(1), write(1, 0, b"again")).await;
    // As if the process had died in the middle of another drop.
    let mark = crate::engine::index::Op::PutTarget(T, crate::engine::index::TargetState::Dropping);
    engine.core.change_index(vec![mark], vec![]).await.unwrap();
    engine.shutdown().await;
    let engine = open(&config).await;
    assert_eq!(engine.targets().await.unwrap(), [other]);
    assert_eq!(sound(&engine).await.chunks, 1);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_disk_has_one_engine_at_a_time() {
    let (_dir, config, engine) = fresh().await;
    let second = config.clone();
    let error = tokio::task::spawn_blocking(move || Engine::open(second))
        .await
        .unwrap();
    assert_eq!(code(error), ErrorCode::NodeConflict);
    engine.shutdown().await;
    engine.shutdown().await;
    open(&config).await.shutdown().await;
}

#[tokio::test]
async fn space_is_counted_exactly_and_returns_to_zero() {
    let (_dir, config, engine) = fresh().await;
    let before = engine.space();
    assert_eq!((before.used, before.capacity), (0, before.free));
    for n in 0..20 {
        put(&engine, key(n), write(1, 0, &pattern(70_000, n))).await;
        put(&engine, key(n), write(2, 10, &pattern(10, n))).await;
    }
    assert_eq!(engine.space().used, 20 * (80 << 10));
    engine.shutdown().await;
    let engine = open(&config).await;
    assert_eq!(engine.space().used, 20 * (80 << 10));
    for n in 0..20 {
        remove(&engine, key(n), 3).await;
    }
    assert_eq!(engine.space().used, 0);
    assert_eq!(sound(&engine).await.bytes, 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_index() {
    let (_dir, config, mut engine) = fresh().await;
    for version in 1..20 {
        let change = write(version, 0, &pattern(9000, version));
        engine.prepare(T, key(1), change).await.unwrap();
        commit(&engine, key(1), version).await.unwrap();
        drop(engine);
        engine = open(&config).await;
    }
}
