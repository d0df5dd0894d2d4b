//! A loss of power that takes the bytes of a change but not its record.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

/// Wipes `len` bytes at `at` of the first block of a class, as if they had never reached the disk.
fn wipe(disk: &Path, class_kib: u32, at: u64, len: usize) {
    let path = disk.join("blocks").join(format!("{class_kib:05}k.blk"));
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; len], at).unwrap();
    file.sync_all().unwrap();
}

async fn reopened(config: &EngineConfig, engine: Engine) -> Engine {
    engine.shutdown().await;
    drop(engine);
    open(config).await
}

#[tokio::test]
async fn a_pending_version_without_its_bytes_is_dropped_and_the_committed_one_stays() {
    let (dir, config, engine) = fresh().await;
    let old = pattern(10_000, 1);
    put(&engine, key(1), write(1, 0, &old)).await;
    // Overwrites committed bytes, so it goes to another block, of another class.
    let new = write(2, 0, &pattern(40_000, 2));
    engine.prepare(T, key(1), new.clone()).await.unwrap();
    engine
        .prepare(T, key(2), write(1, 0, &old[..100]))
        .await
        .unwrap();
    wipe(dir.path(), 40, 36_864, 4096);
    let engine = reopened(&config, engine).await;
    let meta = engine.meta(T, key(1)).await.unwrap().unwrap();
    assert_eq!((meta.committed, meta.pending), (ChunkVersion(1), None));
    let kept = content(&engine, key(1), ReadVersion::Committed).await;
    assert_eq!(kept.unwrap(), old);
    // Nothing was wrong with this one.
    let other = engine.meta(T, key(2)).await.unwrap().unwrap();
    assert!(other.pending.is_some());
    sound(&engine).await;
    // The same version again is a new beginning.
    put(&engine, key(1), new).await;
    sound(&engine).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn a_first_version_without_its_bytes_leaves_no_chunk() {
    let (dir, config, engine) = fresh().await;
    let bytes = pattern(3000, 1);
    engine
        .prepare(T, key(1), write(1, 0, &bytes))
        .await
        .unwrap();
    wipe(dir.path(), 4, 0, 4096);
    let engine = reopened(&config, engine).await;
    assert_eq!(engine.meta(T, key(1)).await.unwrap(), None);
    assert_eq!(sound(&engine).await.blocks, 0);
    assert_eq!(engine.space().used, 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn an_append_is_judged_by_the_pages_that_it_brought() {
    for (damaged, pending_stays) in [(0, true), (16_384, false)] {
        let (dir, config, engine) = fresh().await;
        let bytes = pattern(20_480, 1);
        let first = write(1, 0, &bytes[..16_384]);
        let kind = match first.kind {
            PrepareKind::Write {
                offset,
                data,
                checksums,
                ..
            } => PrepareKind::Write {
                offset,
                data,
                checksums,
                size_hint: 20_480,
            },
            other => other,
        };
        put(&engine, key(1), Prepare { kind, ..first }).await;
        engine
            .prepare(T, key(1), write(2, 16_384, &bytes[16_384..]))
            .await
            .unwrap();
        wipe(dir.path(), 20, damaged, 4096);
        let engine = reopened(&config, engine).await;
        let meta = engine.meta(T, key(1)).await.unwrap().unwrap();
        assert_eq!(meta.committed, ChunkVersion(1));
        assert_eq!(meta.pending.is_some(), pending_stays, "damage at {damaged}");
        engine.shutdown().await;
    }
}
