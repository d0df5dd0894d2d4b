//! At the limits of space, names and sizes the caller gets the right errno and nothing else is harmed.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, drop_cache, pattern, wait};

const MIB: usize = 1 << 20;

/// Writes until an error comes, or the file is far larger than any disk of the test.
fn fill(path: &std::path::Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let block = pattern(MIB, 3);
    for _ in 0..400 {
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[test]
fn a_full_disk_is_enospc_to_the_writer_and_harms_nothing_else() -> Result<()> {
    let options = ClusterOptions {
        settings: vec![
            "storage.capacity_bytes=100000000".to_owned(),
            // Deleted files are collected soon after the start.
            "meta.client_lease_ms=2000".to_owned(),
            "meta.gc_interval_ms=200".to_owned(),
        ],
        ..ClusterOptions::new(3, 3)
    };
    let cluster = TestCluster::with(options)?;
    let (kept, big) = (cluster.mount().join("kept"), cluster.mount().join("big"));
    let data = pattern(5 * MIB + 7, 1);
    fs::write(&kept, &data)?;

    let error = fill(&big)
        .err()
        .context("400 MiB fit on a disk of 100 MB")?;
    ensure!(
        error.kind() == ErrorKind::StorageFull,
        "not ENOSPC: {error}"
    );

    drop_cache(&File::open(&kept)?)?;
    ensure!(fs::read(&kept)? == data, "another file was harmed");
    // How much is left depends on which chunks found room last; nothing else may be wrong.
    wait(Duration::from_secs(5), || {
        let status = cluster.status_json()?;
        let problems = status["problems"].as_array().context("no problems")?;
        Ok(problems.iter().all(|p| p["code"] == "disk-full"))
    })
    .context("a full disk is not all that is wrong")?;
    cluster.fsck()?.expect_code(0)?;

    fs::remove_file(&big)?;
    let again = cluster.mount().join("again");
    let data = pattern(20 * MIB, 2);
    // The errors of a handle are told to that handle.
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&again)?;
        file.write_all(&data)?;
        file.sync_all()
    };
    wait(Duration::from_secs(30), || Ok(write().is_ok())).context("deleting frees nothing")?;
    drop_cache(&File::open(&again)?)?;
    let got = fs::read(&again)?;
    let wrong = got.iter().zip(&data).position(|(got, want)| got != want);
    ensure!(
        got == data,
        "read {} of {} bytes, the first wrong one is {wrong:?}",
        got.len(),
        data.len()
    );
    Ok(())
}

#[test]
fn names_and_sizes_beyond_the_limits_are_refused_with_their_errno() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let errno = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    let name = |length| cluster.mount().join("n".repeat(length));
    fs::write(name(255), b"x")?;
    ensure!(errno(fs::write(name(256), b"x")) == Some(libc::ENAMETOOLONG));
    ensure!(errno(fs::create_dir(name(256))) == Some(libc::ENAMETOOLONG));

    let path = cluster.mount().join("file");
    let file = File::create(&path)?;
    file.write_all_at(b"first", 0)?;
    // 2^32 - 1 chunks of 4 MiB.
    let most = (u64::from(u32::MAX)) * (4 << 20);
    ensure!(
        errno(file.set_len(most + 1)) == Some(libc::EFBIG),
        "set_len"
    );
    ensure!(
        errno(file.write_all_at(b"x", most)) == Some(libc::EFBIG),
        "write"
    );
    file.set_len(most)?;
    file.set_len(5)?;
    drop(file);
    ensure!(fs::read(&path)? == b"first");
    Ok(())
}
