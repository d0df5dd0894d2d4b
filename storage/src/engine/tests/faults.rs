//! I/O errors: what is answered, and what stays whole.

use std::sync::atomic::Ordering;

use super::*;
use crate::engine::DiskState;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

#[tokio::test]
async fn a_full_file_system_refuses_the_write_and_harms_nothing() {
    let (_dir, config, engine) = fresh().await;
    put(&engine, key(1), write(1, 0, b"safe")).await;
    config.faults.writes.store(ENOSPC, Ordering::SeqCst);
    assert_eq!(
        code(engine.prepare(T, key(1), write(2, 0, b"lost")).await),
        ErrorCode::NoSpace
    );
    config.faults.writes.store(0, Ordering::SeqCst);
    assert_eq!(engine.health().state, DiskState::Healthy);
    assert_eq!(engine.space().used, 4096);
    put(&engine, key(1), write(2, 0, b"well")).await;
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        b"well"
    );
    sound(&engine).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn a_flush_without_space_takes_the_write_back() {
    let (dir, config, engine) = fresh().await;
    engine.shutdown().await;
    let config = EngineConfig {
        durability: Durability::Power,
        ..config
    };
    let engine = open(&config).await;
    put(&engine, key(1), write(1, 0, b"safe")).await;
    config.faults.flushes.store(ENOSPC, Ordering::SeqCst);
    assert_eq!(
        code(engine.prepare(T, key(1), write(2, 0, b"lost")).await),
        ErrorCode::NoSpace
    );
    config.faults.flushes.store(0, Ordering::SeqCst);
    let meta = engine.meta(T, key(1)).await.unwrap().unwrap();
    assert_eq!((meta.committed, meta.pending), (ChunkVersion(1), None));
    put(&engine, key(1), write(2, 0, b"well")).await;
    sound(&engine).await;
    engine.shutdown().await;
    drop(dir);
}

#[tokio::test]
async fn a_read_only_file_system_refuses_writes_and_serves_reads() {
    let (_dir, config, engine) = fresh().await;
    put(&engine, key(1), write(1, 0, b"safe")).await;
    config.faults.writes.store(EROFS, Ordering::SeqCst);
    for _ in 0..2 {
        let refused = engine.prepare(T, key(1), write(2, 0, b"lost")).await;
        assert_eq!(code(refused), ErrorCode::DiskReadOnly);
        config.faults.writes.store(0, Ordering::SeqCst);
    }
    assert_eq!(engine.health().state, DiskState::ReadOnly);
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        b"safe"
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn a_failed_write_takes_the_disk_out_of_service_but_not_its_reads() {
    let (_dir, config, engine) = fresh().await;
    put(&engine, key(1), write(1, 0, b"safe")).await;
    config.faults.writes.store(EIO, Ordering::SeqCst);
    assert_eq!(
        code(engine.prepare(T, key(1), write(2, 0, b"lost")).await),
        ErrorCode::DiskError
    );
    config.faults.writes.store(0, Ordering::SeqCst);
    assert_eq!(
        code(engine.prepare(T, key(2), write(1, 0, b"late")).await),
        ErrorCode::DiskError
    );
    let health = engine.health();
    assert_eq!((health.state, health.write_errors), (DiskState::Failed, 1));
    assert!(health.reason.unwrap().contains("os error 5"));
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        b"safe"
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn a_failed_read_is_an_answer_and_no_verdict() {
    let (_dir, config, engine) = fresh().await;
    put(&engine, key(1), write(1, 0, b"safe")).await;
    config.faults.reads.store(EIO, Ordering::SeqCst);
    let read = engine.read(T, key(1), ReadVersion::Committed, 0, 1).await;
    assert_eq!(code(read), ErrorCode::DiskError);
    config.faults.reads.store(0, Ordering::SeqCst);
    let health = engine.health();
    assert_eq!((health.state, health.read_errors), (DiskState::Healthy, 1));
    put(&engine, key(1), write(2, 0, b"well")).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn after_an_index_failure_nothing_is_written_and_no_block_is_reused() {
    let (_dir, config, engine) = fresh().await;
    put(&engine, key(1), write(1, 0, b"safe")).await;
    config.faults.index.store(1, Ordering::SeqCst);
    assert_eq!(
        code(engine.prepare(T, key(1), write(2, 0, b"unknown")).await),
        ErrorCode::DiskError
    );
    config.faults.index.store(0, Ordering::SeqCst);
    assert_eq!(engine.health().state, DiskState::Failed);
    assert_eq!(
        code(engine.prepare(T, key(2), write(1, 0, b"late")).await),
        ErrorCode::DiskError
    );
    assert_eq!(
        code(engine.create_target(TargetId(9)).await),
        ErrorCode::DiskError
    );
    // The record may be on the disk all the same, so its block counts as taken.
    assert_eq!(engine.space().used, 2 * 4096);
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        b"safe"
    );
    engine.shutdown().await;
    let engine = open(&config).await;
    assert_eq!(engine.health().state, DiskState::Healthy);
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        b"safe"
    );
    assert_eq!(sound(&engine).await.blocks, 1);
    engine.shutdown().await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A commit is not flushed, so a power cut may take it back; meanwhile nothing may have been written over the version before.
#[tokio::test]
async fn a_power_cut_that_takes_a_commit_back_finds_the_old_version_whole() {
    let dir = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        durability: Durability::Power,
        ..config(dir.path())
    };
    let engine = open(&config).await;
    engine.create_target(T).await.unwrap();
    config.faults.no_idle_flush.store(true, Ordering::SeqCst);
    let (old, new) = (pattern(60_000, 1), pattern(60_000, 2));
    put(&engine, key(1), write(1, 0, &old)).await;
    engine.prepare(T, key(1), replace(2, &new)).await.unwrap();
    // What a power cut now would leave of the index.
    let (index, cut) = (dir.path().join("index"), dir.path().join("cut"));
    copy(&index, &cut);
    commit(&engine, key(1), 2).await;
    // More data reaches the disk, but no record of it does before the cut.
    config.faults.index.store(1, Ordering::SeqCst);
    let unlucky = engine
        .prepare(T, key(2), replace(1, &pattern(60_000, 3)))
        .await;
    assert_eq!(code(unlucky), ErrorCode::DiskError);
    config.faults.index.store(0, Ordering::SeqCst);
    engine.shutdown().await;
    std::fs::remove_dir_all(&index).unwrap();
    copy(&cut, &index);

    let engine = open(&config).await;
    assert_eq!(
        engine.meta(T, key(1)).await.unwrap().unwrap().committed,
        ChunkVersion(1)
    );
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        old
    );
    assert_eq!(
        content(&engine, key(1), ReadVersion::Pending)
            .await
            .unwrap(),
        new
    );
    sound(&engine).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn a_change_is_acknowledged_only_after_the_flush_of_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        durability: Durability::Power,
        ..config(dir.path())
    };
    let engine = open(&config).await;
    engine.create_target(T).await.unwrap();
    put(&engine, key(1), write(1, 0, b"safe")).await;
    config.faults.flushes.store(EIO, Ordering::SeqCst);
    // The second time as well, although the record of the first is there.
    for _ in 0..2 {
        assert_eq!(
            code(engine.prepare(T, key(1), write(2, 0, b"lost")).await),
            ErrorCode::DiskError
        );
    }
    assert_eq!(engine.health().state, DiskState::Failed);
    engine.shutdown().await;
    config.faults.flushes.store(0, Ordering::SeqCst);
    let engine = open(&config).await;
    let meta = engine.meta(T, key(1)).await.unwrap().unwrap();
    assert_eq!(meta.committed, ChunkVersion(1));
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        b"safe"
    );
    engine.shutdown().await;
}
