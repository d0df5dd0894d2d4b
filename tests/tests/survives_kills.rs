//! Any process may be killed at any moment: the application sees a pause, never an error, and nothing that
//! was acknowledged is lost.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use emberfs_proto::layout::splitmix64;
use emberfs_tests::{TestCluster, drop_cache, pattern, scale, wait};
use rustix::process::Signal;

const MIB: usize = 1 << 20;
/// How long a cluster may take to be whole again after a server returned.
const HEAL: Duration = Duration::from_mins(1);

fn block(index: u64) -> Vec<u8> {
    pattern(MIB, index)
}

/// Writes block after block, waiting a little between them, until told to stop and `blocks` are there.
fn write_blocks(path: &Path, blocks: u64, pace: Duration) -> Result<Duration> {
    let file = File::create(path)?;
    let mut worst = Duration::ZERO;
    for index in 0..blocks {
        let data = block(index);
        let start = Instant::now();
        file.write_all_at(&data, index * MIB as u64)?;
        if index % 8 == 7 {
            file.sync_all()?;
        }
        worst = worst.max(start.elapsed());
        thread::sleep(pace);
    }
    file.sync_all()?;
    Ok(worst)
}

fn read_blocks(path: &Path, blocks: u64, stop: &AtomicBool) -> Result<(u64, Duration)> {
    let mut buffer = vec![0; MIB];
    let mut worst = Duration::ZERO;
    let mut read = 0;
    while !stop.load(Ordering::Relaxed) {
        let file = File::open(path)?;
        drop_cache(&file)?;
        for index in (0..blocks).take_while(|_| !stop.load(Ordering::Relaxed)) {
            let start = Instant::now();
            file.read_exact_at(&mut buffer, index * MIB as u64)?;
            worst = worst.max(start.elapsed());
            ensure!(buffer == block(index), "block {index} is wrong");
            read += 1;
        }
    }
    Ok((read, worst))
}

/// `EMBERFS_TEST_MIB=2048` makes both files 2 GiB.
#[test]
fn killing_each_storage_server_under_load_costs_no_error_and_no_byte() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let blocks = scale("EMBERFS_TEST_MIB", 192);
    let (old, new) = (cluster.mount().join("old"), cluster.mount().join("new"));
    write_blocks(&old, blocks, Duration::ZERO)?;
    // Each kill must happen while both are at work.
    let pace = Duration::from_millis(12_000 / blocks);
    let stop = AtomicBool::new(false);
    let (worst_write, worst_read) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_blocks(&new, blocks, pace));
        let reader = scope.spawn(|| read_blocks(&old, blocks, &stop));
        let killer = || -> Result<()> {
            for victim in ["storage-1", "storage-2", "storage-3"] {
                thread::sleep(Duration::from_secs(1));
                cluster.kill9(victim)?;
                cluster.wait_status(1, Duration::from_secs(5))?;
                thread::sleep(Duration::from_secs(1));
                cluster.start_process(victim)?;
                cluster.wait_status(0, HEAL)?;
            }
            Ok(())
        };
        let killed = killer();
        let writer = writer.join().expect("the writer does not panic");
        stop.store(true, Ordering::Relaxed);
        let reader = reader.join().expect("the reader does not panic");
        killed?;
        let (read, worst_read) = reader.context("read")?;
        ensure!(read > 0, "nothing was read");
        Ok((writer.context("write")?, worst_read))
    })?;
    println!("longest write {worst_write:?}, longest read {worst_read:?}");
    for path in [&old, &new] {
        let file = File::open(path)?;
        drop_cache(&file)?;
        let mut buffer = vec![0; MIB];
        for index in 0..blocks {
            file.read_exact_at(&mut buffer, index * MIB as u64)?;
            ensure!(
                buffer == block(index),
                "{}: block {index} is wrong",
                path.display()
            );
        }
    }
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

#[test]
fn killing_the_metadata_server_during_a_copy_is_a_pause() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let source = tempfile::tempdir()?;
    for directory in 0..10 {
        let path = source.path().join(format!("d{directory}"));
        fs::create_dir(&path)?;
        for file in 0..30 {
            let salt = directory * 100 + file;
            fs::write(
                path.join(format!("f{file}")),
                pattern(1000 + 3000 * file as usize, salt),
            )?;
        }
        std::os::unix::fs::symlink("f0", path.join("link"))?;
    }
    let copy = cluster.mount().join("copy");
    let mut child = Command::new("cp")
        .arg("-a")
        .arg(source.path())
        .arg(&copy)
        .spawn()?;
    wait(Duration::from_secs(20), || Ok(copy.join("d1").exists()))?;
    cluster.kill9("meta-1")?;
    thread::sleep(Duration::from_secs(1));
    ensure!(
        child.try_wait()?.is_none(),
        "cp ended without its metadata server"
    );
    cluster.start_process("meta-1")?;
    ensure!(child.wait()?.success(), "cp reports an error");
    let same = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(source.path())
        .arg(&copy)
        .status()?;
    ensure!(same.success(), "the copy differs");
    cluster.wait_status(0, HEAL)
}

/// What one writer did to its file: acknowledged writes in order, and the one that was not answered.
#[derive(Default)]
struct Log {
    acknowledged: Vec<Write>,
    open: Option<Write>,
}

#[derive(Clone, Copy)]
struct Write {
    offset: u64,
    length: usize,
    salt: u64,
}

impl Write {
    fn apply(self, bytes: &mut Vec<u8>) {
        let end = self.offset as usize + self.length;
        bytes.resize(bytes.len().max(end), 0);
        bytes[self.offset as usize..end].copy_from_slice(&pattern(self.length, self.salt));
    }
}

/// Appends and overwrites with fsync until the file system fails; tells of each write before and after.
fn fsync_load(path: &Path, seed: u64, tell: &mpsc::Sender<(bool, Write)>) {
    let mut state = seed;
    let Ok(file) = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
    else {
        return;
    };
    loop {
        let Ok(size) = file.metadata().map(|m| m.len()) else {
            return;
        };
        let random = splitmix64(&mut state);
        let offset = if random.is_multiple_of(3) && size > 0 {
            (random >> 8) % size
        } else {
            size
        };
        let length = [100, 4096, 70_000, MIB, 5 * MIB][(random >> 40) as usize % 5];
        let write = Write {
            offset,
            length,
            salt: random,
        };
        if tell.send((false, write)).is_err() {
            return;
        }
        let done = file
            .write_all_at(&pattern(length, random), offset)
            .and_then(|()| file.sync_all());
        if done.is_err() || tell.send((true, write)).is_err() {
            return;
        }
    }
}

#[test]
fn killing_everything_at_once_ten_times_keeps_all_that_was_acknowledged() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let mut logs: BTreeMap<String, Log> = BTreeMap::new();
    let mut dice = 7;
    let mut acknowledged = 0;
    for round in 0..10u64 {
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let name = format!("file-{round}-{writer}");
                let (tell, told) = mpsc::channel();
                let path = cluster.mount().join(&name);
                let seed = round * 10 + writer;
                (
                    name,
                    told,
                    thread::spawn(move || fsync_load(&path, seed, &tell)),
                )
            })
            .collect();
        thread::sleep(Duration::from_millis(200 + splitmix64(&mut dice) % 1500));
        for pid in cluster.pids() {
            rustix::process::kill_process(pid, Signal::KILL)?;
        }
        for (name, told, thread) in writers {
            thread.join().expect("the writer does not panic");
            let log = logs.entry(name).or_default();
            for (done, write) in told.try_iter() {
                log.open = Some(write);
                if done {
                    log.open = None;
                    log.acknowledged.push(write);
                    acknowledged += 1;
                }
            }
        }
        cluster.up()?;
        for (name, log) in &logs {
            check(&cluster.mount().join(name), log)
                .with_context(|| format!("round {round}, {name}"))?;
        }
    }
    ensure!(
        acknowledged > 30,
        "only {acknowledged} writes were acknowledged"
    );
    cluster.wait_status(0, HEAL)?;
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

/// The file holds every acknowledged byte; the unanswered write may show in its own range, or not.
fn check(path: &Path, log: &Log) -> Result<()> {
    if log.acknowledged.is_empty() {
        return Ok(());
    }
    let mut want = Vec::new();
    for write in &log.acknowledged {
        write.apply(&mut want);
    }
    let got = fs::read(path)?;
    ensure!(
        got.len() >= want.len(),
        "{} bytes of {} are there",
        got.len(),
        want.len()
    );
    let open = log
        .open
        .map_or(0..0, |w| w.offset as usize..w.offset as usize + w.length);
    let wrong = (0..want.len()).find(|&i| got[i] != want[i] && !open.contains(&i));
    ensure!(
        wrong.is_none(),
        "byte {} of {} is wrong",
        wrong.unwrap_or(0),
        want.len()
    );
    Ok(())
}
