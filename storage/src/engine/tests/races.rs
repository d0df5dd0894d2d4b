//! Readers, writers, removers and vanishing callers on the same chunk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::*;

/// A chunk whose every byte tells its version.
fn uniform(version: u64) -> Vec<u8> {
    vec![version as u8; 60_000 + (version as usize % 7) * 5_000]
}

async fn read_until(stop: Arc<AtomicBool>, engine: Engine, k: ChunkKey, which: ReadVersion) -> u64 {
    let mut reads = 0;
    while !stop.load(Ordering::SeqCst) {
        match engine.read(T, k, which, 0, u32::MAX).await {
            Ok(read) => {
                verified(0, &read);
                let version = read.version.0;
                assert_eq!(read.data, uniform(version), "a mix of versions");
                reads += 1;
            }
            Err(error) => assert_eq!(error.code, ErrorCode::ChunkNotFound, "{error}"),
        }
    }
    reads
}

#[test]
fn readers_during_overwrites_and_removals_see_one_whole_version() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        // Room for few blocks: freed ones are reused at once, as harmfully as can be.
        let config = EngineConfig {
            capacity_bytes: Some(640 << 10),
            ..config(dir.path())
        };
        let engine = open(&config).await;
        engine.create_target(T).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut readers = Vec::new();
        for which in [
            ReadVersion::Committed,
            ReadVersion::Pending,
            ReadVersion::Committed,
        ] {
            for k in [key(1), key(2)] {
                readers.push(tokio::spawn(read_until(
                    stop.clone(),
                    engine.clone(),
                    k,
                    which,
                )));
            }
        }
        let deadline = std::time::Instant::now() + Duration::from_millis(1500);
        let (mut versions, mut n) = ([0; 2], 0);
        while std::time::Instant::now() < deadline {
            n += 1;
            let (k, version) = (key(1 + n % 2), &mut versions[(n % 2) as usize]);
            *version += 1;
            let change = match n % 13 {
                12 if *version > 1 => prepare(*version, PrepareKind::Remove),
                _ => replace(*version, &uniform(*version)),
            };
            let removal = matches!(change.kind, PrepareKind::Remove);
            match engine.prepare(T, k, change).await {
                Ok(_) if n % 5 == 0 => {
                    engine.abort(T, k, (*version).into()).await.unwrap();
                    *version -= 1;
                }
                Ok(_) => {
                    commit(&engine, k, *version).await;
                    if removal {
                        *version = 0;
                    }
                }
                // The readers hold what little there is.
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::NoSpace, "{error}");
                    *version -= 1;
                    tokio::task::yield_now().await;
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
        let mut reads = 0;
        for reader in readers {
            reads += reader.await.unwrap();
        }
        assert!(
            reads > 50 && n > 50,
            "{reads} reads, {n} writes: nothing was tested"
        );
        sound(&engine).await;
        engine.shutdown().await;
    });
}

#[test]
fn appends_do_not_disturb_readers_of_the_committed_part() {
    runtime().block_on(async {
        let (_dir, _, engine) = fresh().await;
        let bytes = pattern(CHUNK as usize, 3);
        let mut first = write(1, 0, &bytes[..3000]);
        if let PrepareKind::Write { size_hint, .. } = &mut first.kind {
            *size_hint = CHUNK;
        }
        put(&engine, key(1), first).await;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn({
            let (engine, stop, bytes) = (engine.clone(), stop.clone(), bytes.clone());
            async move {
                let mut reads = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    let read = engine
                        .read(T, key(1), ReadVersion::Committed, 0, u32::MAX)
                        .await
                        .unwrap();
                    verified(0, &read);
                    assert_eq!(read.data, bytes[..read.data.len()]);
                    reads += 1;
                }
                reads
            }
        });
        let (mut at, mut version) = (3000, 1);
        while at < 400_000 {
            let end = at + 1 + (at * 7) % 5000;
            version += 1;
            put(&engine, key(1), write(version, at as u32, &bytes[at..end])).await;
            at = end;
        }
        stop.store(true, Ordering::SeqCst);
        assert!(reader.await.unwrap() > 10);
        assert_eq!(
            engine.space().used,
            u64::from(CHUNK),
            "all appends went in place"
        );
        sound(&engine).await;
        engine.shutdown().await;
    });
}

/// A cut followed by appends must not write over bytes that a reader of the longer version has.
#[tokio::test]
async fn an_append_after_a_cut_leaves_the_older_bytes_alone() {
    let (_dir, _, engine) = fresh().await;
    let bytes = pattern(40_000, 1);
    put(&engine, key(1), write(1, 0, &bytes)).await;
    put(
        &engine,
        key(1),
        prepare(2, PrepareKind::Truncate { len: 35_000 }),
    )
    .await;
    let before = engine.space().used;
    engine
        .prepare(T, key(1), write(3, 35_000, b"new"))
        .await
        .unwrap();
    assert!(
        engine.space().used > before,
        "the append went to a fresh block"
    );
    assert_eq!(
        content(&engine, key(1), ReadVersion::Committed)
            .await
            .unwrap(),
        bytes[..35_000]
    );
    engine.shutdown().await;
}

#[test]
fn a_caller_that_goes_away_leaves_the_chunk_whole_and_no_block_behind() {
    runtime().block_on(async {
        let (_dir, _, engine) = fresh().await;
        let (mut finished, mut abandoned) = (0u32, 0u32);
        for round in 0..300u64 {
            let k = key(round % 4);
            let meta = engine.meta(T, k).await.unwrap();
            let (committed, len) = meta
                .as_ref()
                .map_or((0, 0), |m| (m.committed.0, m.committed_len));
            if committed > 0 {
                // Each page against its checksum.
                engine.verify(T, k).await.unwrap();
            }
            if let Some(pending) = meta.and_then(|m| m.pending) {
                content(&engine, k, ReadVersion::Pending).await.unwrap();
                if round % 3 == 0 {
                    engine.abort(T, k, pending.version).await.unwrap();
                } else {
                    commit(&engine, k, pending.version.0).await;
                }
                continue;
            }
            let version = committed + 1;
            // Half of them append in place: a late write must not land on the next one's bytes.
            let change = match (round % 4 < 2, len) {
                (true, 1..500_000) => write(version, len, &pattern(30_000, round)),
                _ => replace(version, &pattern(60_000, round)),
            };
            let mut change = std::pin::pin!(engine.prepare(T, k, change));
            if round % 3 == 0 {
                change.await.unwrap();
                finished += 1;
                continue;
            }
            // Counted in polls and not in time: how far it came before its caller went away differs
            // from round to round, that most are abandoned does not depend on the machine.
            let mut done = false;
            for _ in 0..round % 40 {
                done = done || futures::poll!(change.as_mut()).is_ready();
                tokio::task::yield_now().await;
                if done {
                    break;
                }
            }
            finished += u32::from(done);
            abandoned += u32::from(!done);
        }
        assert!(
            finished > 10 && abandoned > 10,
            "{finished} finished, {abandoned} abandoned"
        );
        sound(&engine).await;
        engine.shutdown().await;
    });
}

#[test]
fn operations_in_work_finish_before_a_target_is_dropped_or_the_engine_ends() {
    runtime().block_on(async {
        let (_dir, config, engine) = fresh().await;
        let done = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..16)
            .map(|n| {
                let (engine, done) = (engine.clone(), done.clone());
                tokio::spawn(async move {
                    for version in 1.. {
                        match engine
                            .prepare(T, key(n), replace(version, &uniform(version)))
                            .await
                        {
                            Ok(_) => {}
                            Err(error) => {
                                let gone = [ErrorCode::NotServing, ErrorCode::Unavailable];
                                assert!(gone.contains(&error.code), "{error}");
                                return;
                            }
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        while done.load(Ordering::SeqCst) < 50 {
            tokio::task::yield_now().await;
        }
        engine.drop_target(T).await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        let report = sound(&engine).await;
        assert_eq!((report.chunks, engine.space().used), (0, 0));
        engine.create_target(T).await.unwrap();
        let late = tokio::spawn({
            let engine = engine.clone();
            async move { engine.prepare(T, key(1), replace(1, &uniform(1))).await }
        });
        engine.shutdown().await;
        let acknowledged = late.await.unwrap().is_ok();
        let engine = open(&config).await;
        assert!(!acknowledged || engine.meta(T, key(1)).await.unwrap().is_some());
        sound(&engine).await;
        engine.shutdown().await;
    });
}
