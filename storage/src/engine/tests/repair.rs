//! Damaged pages are put right in one step, whatever else happens to the chunk.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::crash::{DISK, run_and_kill};
use super::*;

const LEN: usize = 60_000;

/// Changes a byte in each of `pages`, in every block of the class that has data there.
fn damage(disk: &Path, class_kib: u32, pages: &[u64]) {
    let path = disk.join("blocks").join(format!("{class_kib:05}k.blk"));
    let file = File::options().read(true).write(true).open(path).unwrap();
    let blocks = file.metadata().unwrap().len() / (u64::from(class_kib) << 10);
    for block in 0..blocks {
        for page in pages {
            let at = block * (u64::from(class_kib) << 10) + page * u64::from(PAGE) + 5;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
        }
    }
    file.sync_all().unwrap();
}

fn page_of(bytes: &[u8], n: u32) -> (u32, Bytes) {
    let at = (n * PAGE) as usize;
    let end = (at + PAGE as usize).min(bytes.len());
    (n * PAGE, Bytes::copy_from_slice(&bytes[at..end]))
}

async fn bad_pages(engine: &Engine, k: ChunkKey, which: ReadVersion) -> Vec<u32> {
    let damage = engine.damage(T, k, which).await.unwrap();
    damage.pages.iter().map(|p| p.range.start / PAGE).collect()
}

async fn committed(engine: &Engine, k: ChunkKey) -> Vec<u8> {
    content(engine, k, ReadVersion::Committed).await.unwrap()
}

#[tokio::test]
async fn damaged_pages_are_put_right_and_stay_right() {
    let (dir, config, engine) = fresh().await;
    let bytes = pattern(LEN, 1);
    put(&engine, key(1), write(1, 0, &bytes)).await;
    assert!(
        bad_pages(&engine, key(1), ReadVersion::Committed)
            .await
            .is_empty()
    );
    damage(dir.path(), 64, &[0, 3]);
    assert_eq!(
        bad_pages(&engine, key(1), ReadVersion::Committed).await,
        [0, 3]
    );
    // One at a time: what is not given stays damaged, and is still known to be.
    let one = [page_of(&bytes, 3)];
    assert!(engine.repair(T, key(1), 1.into(), &one).await.unwrap());
    assert_eq!(
        bad_pages(&engine, key(1), ReadVersion::Committed).await,
        [0]
    );
    let other = [page_of(&bytes, 0)];
    assert!(engine.repair(T, key(1), 1.into(), &other).await.unwrap());
    assert_eq!(committed(&engine, key(1)).await, bytes);
    assert_eq!(sound(&engine).await.blocks, 1);
    engine.shutdown().await;
    let engine = open(&config).await;
    assert_eq!(committed(&engine, key(1)).await, bytes);
    // The next write finds nothing wrong with it.
    put(&engine, key(1), write(2, 10, b"new")).await;
    engine.verify(T, key(1)).await.unwrap();
    engine.shutdown().await;
}

#[tokio::test]
async fn wrong_bytes_and_other_versions_change_nothing() {
    let (dir, _, engine) = fresh().await;
    let bytes = pattern(LEN, 1);
    put(&engine, key(1), write(1, 0, &bytes)).await;
    damage(dir.path(), 64, &[1]);
    let (at, good) = page_of(&bytes, 1);
    let wrong = [
        (at, page_of(&bytes, 2).1),
        (at, good.slice(1..)),
        (at + 1, good.clone()),
        (16 * PAGE, good.clone()),
    ];
    for page in wrong {
        let refused = engine.repair(T, key(1), 1.into(), &[page]).await;
        assert_eq!(code(refused), ErrorCode::ChecksumMismatch);
    }
    let right = [(at, good)];
    assert!(!engine.repair(T, key(1), 2.into(), &right).await.unwrap());
    assert!(!engine.repair(T, key(2), 1.into(), &right).await.unwrap());
    assert_eq!(
        bad_pages(&engine, key(1), ReadVersion::Committed).await,
        [1]
    );
    sound(&engine).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn a_pending_append_in_the_same_block_moves_along() {
    let (dir, _, engine) = fresh().await;
    let bytes = pattern(LEN, 4);
    let mut first = write(1, 0, &bytes[..40_000]);
    if let PrepareKind::Write { size_hint, .. } = &mut first.kind {
        *size_hint = LEN as u32;
    }
    put(&engine, key(1), first).await;
    engine
        .prepare(T, key(1), write(2, 40_000, &bytes[40_000..]))
        .await
        .unwrap();
    assert_eq!(engine.space().used, 64 << 10, "the append went in place");
    damage(dir.path(), 64, &[0, 2]);
    assert_eq!(
        bad_pages(&engine, key(1), ReadVersion::Pending).await,
        [0, 2]
    );
    // Repaired as a part of the committed version; page 2 is cut by its end.
    let pages = [page_of(&bytes[..40_000], 0), page_of(&bytes[..40_000], 2)];
    assert!(engine.repair(T, key(1), 1.into(), &pages).await.unwrap());
    let pending = content(&engine, key(1), ReadVersion::Pending)
        .await
        .unwrap();
    assert_eq!(pending, bytes);
    commit(&engine, key(1), 2).await;
    assert_eq!(committed(&engine, key(1)).await, bytes);
    sound(&engine).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn a_reader_that_holds_the_old_block_keeps_it() {
    let (dir, _, engine) = fresh().await;
    let bytes = pattern(LEN, 6);
    put(&engine, key(1), write(1, 0, &bytes)).await;
    damage(dir.path(), 64, &[0]);
    let whole = |engine: Engine| async move {
        let read = engine.read(T, key(1), ReadVersion::Committed, 0, CHUNK);
        read.await.unwrap().data
    };
    let mut reads = Vec::new();
    for _ in 0..8 {
        reads.push(tokio::spawn(whole(engine.clone())));
        tokio::task::yield_now().await;
    }
    let pages = [page_of(&bytes, 0)];
    assert!(engine.repair(T, key(1), 1.into(), &pages).await.unwrap());
    for read in reads {
        // Right or damaged as it was, never a mixture.
        let data = read.await.unwrap();
        let differing = data.iter().zip(&bytes).filter(|(a, b)| a != b).count();
        assert!(differing <= 1, "{differing} bytes differ");
    }
    assert_eq!(committed(&engine, key(1)).await, bytes);
    sound(&engine).await;
    engine.shutdown().await;
}

/// Overwrites, appends, cuts and removals run against repairs of the same chunk; each version must
/// read as it was written.
#[test]
fn concurrent_changes_win_over_repairs() {
    runtime().block_on(async {
        let (_dir, _, engine) = fresh().await;
        let stop = Arc::new(AtomicBool::new(false));
        let now = Arc::new(parking_lot::Mutex::new((0u64, Vec::new())));
        let repairer = tokio::spawn({
            let (engine, stop, now) = (engine.clone(), stop.clone(), now.clone());
            async move {
                let (mut done, mut void) = (0u64, 0u64);
                while !stop.load(Ordering::SeqCst) {
                    let (version, bytes) = now.lock().clone();
                    if bytes.is_empty() {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    let pages = [page_of(&bytes, 0)];
                    if engine
                        .repair(T, key(1), version.into(), &pages)
                        .await
                        .unwrap()
                    {
                        done += 1;
                    } else {
                        void += 1;
                    }
                }
                (done, void)
            }
        });
        let deadline = std::time::Instant::now() + Duration::from_millis(1500);
        let (mut version, mut bytes) = (0u64, Vec::new());
        let mut n = 0u64;
        while std::time::Instant::now() < deadline {
            n += 1;
            version += 1;
            let change = match n % 7 {
                0 if version > 1 => prepare(version, PrepareKind::Remove),
                1 | 2 if bytes.len() > 30_000 => {
                    bytes.truncate(20_000);
                    prepare(version, PrepareKind::Truncate { len: 20_000 })
                }
                3 | 4 => {
                    let more = pattern(7000, n);
                    let at = bytes.len() as u32;
                    bytes.extend(&more);
                    write(version, at, &more)
                }
                _ => {
                    bytes = pattern(50_000, n);
                    replace(version, &bytes)
                }
            };
            let removes = matches!(change.kind, PrepareKind::Remove);
            engine.prepare(T, key(1), change).await.unwrap();
            if !removes {
                let pending = content(&engine, key(1), ReadVersion::Pending)
                    .await
                    .unwrap();
                assert!(pending == bytes, "pending {version} at {n}");
            }
            commit(&engine, key(1), version).await;
            if removes {
                // Its version number goes on: a repair of the old chunk must not meet it on the new one.
                bytes = Vec::new();
            } else {
                assert!(
                    committed(&engine, key(1)).await == bytes,
                    "version {version} at {n}"
                );
            }
            *now.lock() = (version, bytes.clone());
        }
        stop.store(true, Ordering::SeqCst);
        let (done, void) = repairer.await.unwrap();
        assert!(
            done > 10 && void > 0,
            "{done} repairs, {void} void, {n} changes"
        );
        sound(&engine).await;
        engine.shutdown().await;
    });
}

/// The process that is killed: damages its chunk and repairs it, again and again.
#[test]
#[ignore = "run by the crash test as a process of its own"]
fn child() {
    let disk = PathBuf::from(std::env::var_os(DISK).expect("only run by its parent"));
    let config = EngineConfig {
        durability: Durability::Power,
        ..config(&disk)
    };
    runtime().block_on(async {
        let engine = open(&config).await;
        engine.create_target(T).await.unwrap();
        let bytes = pattern(LEN, 8);
        if engine.meta(T, key(1)).await.unwrap().is_none() {
            put(&engine, key(1), write(1, 0, &bytes)).await;
        }
        for n in 1u64.. {
            damage(&disk, 64, &[n % 4]);
            let pages: Vec<_> = (0..4).map(|n| page_of(&bytes, n)).collect();
            assert!(engine.repair(T, key(1), 1.into(), &pages).await.unwrap());
            let mut out = std::io::stdout().lock();
            writeln!(out, "\n@r 1 {n}").unwrap();
            out.flush().unwrap();
        }
    });
}

#[test]
fn a_repair_that_is_killed_leaves_the_chunk_damaged_or_right_and_never_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(LEN, 8);
    for round in 0..4 {
        run_and_kill(
            "engine::tests::repair::child",
            dir.path(),
            true,
            5 + round * 7,
            &mut std::collections::HashMap::new(),
        );
        runtime().block_on(async {
            let engine = open(&config(dir.path())).await;
            sound(&engine).await;
            let bad = bad_pages(&engine, key(1), ReadVersion::Committed).await;
            assert!(bad.len() <= 1, "{bad:?}");
            let pages: Vec<_> = bad.into_iter().map(|n| page_of(&bytes, n)).collect();
            assert!(engine.repair(T, key(1), 1.into(), &pages).await.unwrap());
            assert_eq!(committed(&engine, key(1)).await, bytes);
            sound(&engine).await;
            engine.shutdown().await;
        });
    }
}
