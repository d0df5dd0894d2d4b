//! A mount outlives the process that serves it: killed or replaced under load, programs notice a pause.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use emberfs_tests::{
    ClusterOptions, TestCluster, drop_cache, emberfs_binary, pattern, run, scale, wait,
};
use rustix::fs::FlockOperation;

/// Bytes of one large write.
const BLOCK: usize = 256 << 10;
/// Files of the directory that is listed all the time.
const LISTED: usize = 700;

fn record(index: u64) -> Vec<u8> {
    format!("{index:07}\n").into_bytes()
}

fn records(count: u64) -> Vec<u8> {
    (0..count).flat_map(record).collect()
}

/// Large writes that nothing waits for, read back from the servers.
fn writes_blocks(dir: &Path, stop: &AtomicBool) -> Result<u64> {
    let path = dir.join("blocks");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        file.write_all_at(&pattern(BLOCK, count), count * BLOCK as u64)?;
        count += 1;
        // The disks need not be filled for this.
        thread::sleep(Duration::from_millis(2));
    }
    ensure!(
        file.metadata()?.len() == count * BLOCK as u64,
        "its length is wrong"
    );
    file.sync_all()?;
    drop_cache(&file)?;
    let mut buffer = vec![0; BLOCK];
    for index in 0..count {
        file.read_exact_at(&mut buffer, index * BLOCK as u64)?;
        ensure!(buffer == pattern(BLOCK, index), "block {index} is wrong");
    }
    Ok(count)
}

/// Small writes, to the end or by O_APPEND: each is there once.
fn writes_records(path: &Path, append: bool, stop: &AtomicBool) -> Result<u64> {
    let mut file = OpenOptions::new()
        .write(true)
        .append(append)
        .create(true)
        .open(path)?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        file.write_all(&record(count))?;
        count += 1;
    }
    drop(file);
    let (found, expected) = (fs::read(path)?, records(count));
    let same = found.iter().zip(&expected).take_while(|(a, b)| a == b);
    ensure!(
        found == expected,
        "{}: records are missing or twice from byte {} of {} on, {} bytes are expected",
        path.display(),
        same.count(),
        found.len(),
        expected.len()
    );
    Ok(count)
}

/// Every change of names succeeds, so each is made once.
fn changes_names(dir: &Path, stop: &AtomicBool) -> Result<u64> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let own = dir.join(format!("d{count}"));
        let (first, second, third) = (own.join("1"), own.join("2"), own.join("3"));
        fs::create_dir(&own).context("mkdir")?;
        let mut file = File::create_new(&first).context("create")?;
        file.write_all(&record(count))?;
        drop(file);
        fs::rename(&first, &second).context("rename")?;
        fs::hard_link(&second, &third).context("link")?;
        fs::remove_file(&second).context("unlink")?;
        let meta = fs::metadata(&third)?;
        ensure!(
            (meta.nlink(), meta.len()) == (1, 8),
            "{} links, {} bytes",
            meta.nlink(),
            meta.len()
        );
        rustix::fs::setxattr(&third, "user.once", b"x", rustix::fs::XattrFlags::CREATE)
            .context("setxattr")?;
        fs::remove_file(&third).context("second unlink")?;
        fs::remove_dir(&own).context("rmdir")?;
        count += 1;
    }
    Ok(count)
}

/// What was closed is there, stored or not.
fn closes_files(dir: &Path, stop: &AtomicBool) -> Result<u64> {
    let own = dir.join("closed");
    fs::create_dir(&own)?;
    let path = |index: u64| own.join(index.to_string());
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        fs::write(path(count), records(count % 500)).context("write")?;
        count += 1;
    }
    let listed = fs::read_dir(&own)?.count() as u64;
    ensure!(listed == count, "{listed} files instead of {count}");
    for index in 0..count {
        ensure!(
            fs::read(path(index))? == records(index % 500),
            "{} holds other bytes",
            path(index).display()
        );
    }
    Ok(count)
}

fn lists(dir: &Path, stop: &AtomicBool) -> Result<u64> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut names = fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        names.dedup();
        ensure!(
            names.len() == LISTED,
            "{} names instead of {LISTED}",
            names.len()
        );
        count += 1;
    }
    Ok(count)
}

/// A file without a name lives as long as it is open.
fn reads_unlinked(dir: &Path, stop: &AtomicBool) -> Result<u64> {
    let path = dir.join("unlinked");
    fs::write(&path, pattern(4 * BLOCK, 77))?;
    let file = File::open(&path)?;
    fs::remove_file(&path)?;
    let mut buffer = vec![0; 4 * BLOCK];
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        drop_cache(&file)?;
        file.read_exact_at(&mut buffer, 0)?;
        ensure!(buffer == pattern(4 * BLOCK, 77), "other bytes");
        count += 1;
    }
    Ok(count)
}

/// Runs all of the above while `disturb` is called again and again.
fn under_load(cluster: &TestCluster, disturb: impl Fn() -> Result<()>) -> Result<()> {
    let dir = cluster.mount();
    let listed = dir.join("listed");
    fs::create_dir(&listed)?;
    for index in 0..LISTED {
        File::create_new(listed.join(format!("a file with number {index}")))?;
    }
    let lock = File::create_new(dir.join("lock"))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let others = cluster.mount_again("")?;
    let their_lock = File::open(others.path().join("lock"))?;
    let is_locked = || {
        let refused = rustix::fs::flock(&their_lock, FlockOperation::NonBlockingLockExclusive);
        refused == Err(rustix::io::Errno::WOULDBLOCK)
    };
    ensure!(is_locked(), "not locked at the start");
    let stop = AtomicBool::new(false);
    let (plain, log) = (dir.join("plain"), dir.join("log"));
    thread::scope(|scope| {
        let work = [
            ("blocks", scope.spawn(|| writes_blocks(&dir, &stop))),
            (
                "records",
                scope.spawn(|| writes_records(&plain, false, &stop)),
            ),
            ("log", scope.spawn(|| writes_records(&log, true, &stop))),
            ("files", scope.spawn(|| closes_files(&dir, &stop))),
            ("names", scope.spawn(|| changes_names(&dir, &stop))),
            ("listings", scope.spawn(|| lists(&listed, &stop))),
            ("unlinked", scope.spawn(|| reads_unlinked(&dir, &stop))),
        ];
        let start = Instant::now();
        let times = scale("EMBERFS_TEST_TAKEOVERS", 4);
        let disturbed = (0..times).try_for_each(|_| {
            thread::sleep(Duration::from_millis(700));
            disturb()?;
            ensure!(is_locked(), "the lock is lost");
            Ok(())
        });
        thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
        for (name, thread) in work {
            let count = thread.join().expect("it does not panic");
            let failed = || {
                format!(
                    "{name}, after {:?}; {}",
                    start.elapsed(),
                    cluster.log("mount")
                )
            };
            let count = count.with_context(failed)?;
            println!("{name}: {count}");
        }
        disturbed
    })?;
    drop(lock);
    // The kernel tells of the last close when close(2) has returned.
    wait(Duration::from_secs(5), || Ok(!is_locked())).context("the lock outlives its file")?;
    drop(their_lock);
    drop(others);
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

fn closing_late() -> ClusterOptions {
    ClusterOptions {
        mount_options: "late_close".to_owned(),
        ..ClusterOptions::new(3, 3)
    }
}

#[test]
fn a_worker_that_is_killed_is_replaced_and_nothing_is_lost_or_done_twice() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    under_load(&cluster, || cluster.kill_mount_worker())
}

#[test]
fn nor_is_what_was_closed_and_not_stored_yet() -> Result<()> {
    let cluster = TestCluster::with(closing_late())?;
    under_load(&cluster, || cluster.kill_mount_worker())
}

#[test]
fn a_worker_is_replaced_under_load_without_an_error() -> Result<()> {
    let cluster = TestCluster::with(closing_late())?;
    let mount = cluster.mount();
    let path = mount.to_str().context("a path that is text")?;
    under_load(&cluster, || {
        let old = cluster.mount_worker()?;
        run(Command::new(emberfs_binary()?).args(["takeover", path]))?.expect_code(0)?;
        ensure!(cluster.mount_worker()? != old, "the same process goes on");
        Ok(())
    })?;
    let refused = run(Command::new(emberfs_binary()?).args(["takeover", "/proc"]))?;
    refused.expect_refusal(&["/proc", "no keeper"])?;
    Ok(())
}

#[test]
fn a_mount_whose_cluster_is_down_waits_and_goes_on_or_can_be_killed() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let path = cluster.mount().join("f");
    fs::write(&path, "before")?;
    cluster.stop_process("meta-1")?;
    cluster.kill_mount_worker()?;
    // Nobody serves the mount now. A program that waits can be killed.
    let mut reader = Command::new("cat").arg(&path).spawn()?;
    thread::sleep(Duration::from_millis(500));
    ensure!(reader.try_wait()?.is_none(), "it does not wait");
    reader.kill()?;
    wait(Duration::from_secs(5), || Ok(reader.try_wait()?.is_some()))
        .context("it cannot be killed")?;
    cluster.start_process("meta-1")?;
    ensure!(fs::read_to_string(&path)? == "before", "other bytes");
    Ok(())
}
