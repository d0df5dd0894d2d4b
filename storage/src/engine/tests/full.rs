//! Disks that run full.

use std::process::Command;

use super::*;

async fn fill(engine: &Engine, from: u64, len: usize) -> u64 {
    for n in from.. {
        match engine
            .prepare(T, key(n), replace(1, &pattern(len, n)))
            .await
        {
            Ok(_) => commit(engine, key(n), 1).await,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::NoSpace, "{error}");
                return n;
            }
        };
        assert!(n < 100_000, "the disk never fills");
    }
    unreachable!("the loop ends with an error")
}

#[tokio::test]
async fn at_the_configured_capacity_writes_are_refused_and_deletes_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        capacity_bytes: Some(1 << 20),
        durability: Durability::Power,
        ..config(dir.path())
    };
    let engine = open(&config).await;
    engine.create_target(T).await.unwrap();
    assert_eq!(engine.space().capacity, 1 << 20);
    let n = fill(&engine, 0, 128 << 10).await;
    assert_eq!((n, engine.space().free), (8, 0));
    // An overwrite needs a block of its own; what is there stays readable.
    assert_eq!(
        code(engine.prepare(T, key(0), write(2, 0, b"x")).await),
        ErrorCode::NoSpace
    );
    assert_eq!(
        content(&engine, key(0), ReadVersion::Committed)
            .await
            .unwrap(),
        pattern(128 << 10, 0)
    );
    // A commit's old block waits for a flush before its reuse; a full disk must not be full for that.
    remove(&engine, key(7), 2).await;
    for version in 2..6 {
        put(&engine, key(0), write(version, 0, b"y")).await;
    }
    assert_eq!(engine.space().used, 7 * (128 << 10));
    sound(&engine).await;
    engine.shutdown().await;
}

/// A file system of its own, unmounted on drop.
struct LoopDisk(tempfile::TempDir);

impl LoopDisk {
    fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        let disk = dir.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        let must = |command: &mut Command| {
            let output = command.output().expect("mkfs.ext4 and mount are installed");
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                output.status.success(),
                "this test needs root and loop devices: {error}"
            );
        };
        must(
            Command::new("mkfs.ext4")
                .args(["-q", "-m", "0"])
                .arg(&image),
        );
        must(
            Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &disk]),
        );
        Self(dir)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg(self.0.path().join("disk"))
            .status();
        assert!(unmounted.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

/// Needs root and loop devices, and fails without.
#[tokio::test]
async fn a_full_ext4_keeps_what_was_acknowledged_and_gives_space_back() {
    let disk = LoopDisk::new(200);
    let config = config(&disk.0.path().join("disk"));
    let engine = open(&config).await;
    engine.create_target(T).await.unwrap();
    let n = fill(&engine, 0, 1 << 20).await;
    assert!(n > 80, "only {n} MiB of 200 were usable");
    assert!(engine.space().free < 2 << 20, "{:?}", engine.space());
    assert_eq!(engine.health().state, crate::engine::DiskState::Healthy);
    engine.shutdown().await;

    let engine = open(&config).await;
    for k in 0..n {
        engine.verify(T, key(k)).await.unwrap();
        assert_eq!(
            engine.meta(T, key(k)).await.unwrap().unwrap().committed,
            ChunkVersion(1)
        );
    }
    // Another size class gets the space of the deleted chunks.
    for k in 0..n {
        remove(&engine, key(k), 2).await;
    }
    assert_eq!(engine.space().used, 0);
    assert!(engine.space().free > (n - 10) << 20, "{:?}", engine.space());
    let small = fill(&engine, 10_000, 224 << 10).await - 10_000;
    assert!(
        small * 224 > (n - 10) * 1024,
        "{small} chunks of 224 KiB after {n} of 1 MiB"
    );
    sound(&engine).await;
    engine.shutdown().await;
    drop(engine);
}
