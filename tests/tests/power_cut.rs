//! What was acknowledged is there after a loss of power: of all servers, with the host that mounts or without it.
//!
//! Threads change files and names of their own until the cut, and note what they were promised: a file by fsync or close, names by an
//! fsync of their directory, a rename by its return. After the cut all of that must be as noted, and everything else whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, PowerDisk, TestCluster, pattern, scale};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::mount::UnmountFlags;

/// Programs that change something.
const WRITERS: u64 = 4;
/// How long they do so at most, milliseconds.
const LOAD_MS: u64 = 1500;
/// How long the cluster may take to be whole again.
const HEAL: Duration = Duration::from_mins(1);
/// One in so many files has more than one chunk.
const LARGE: u64 = 40;

/// What was promised of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Promise {
    File { data: Vec<u8>, mode: u32 },
    Directory,
    Absent,
}

/// One program's directory, and what it was promised.
struct Writer {
    dir: PathBuf,
    rng: StdRng,
    promises: BTreeMap<String, Promise>,
    /// What an fsync of the directory will promise.
    unsynced: Vec<(String, Promise)>,
    /// The directory, open from the beginning.
    names: File,
}

impl Writer {
    /// In a directory that is on disk.
    fn new(dir: PathBuf, seed: u64) -> io::Result<Self> {
        Ok(Self {
            names: File::open(&dir)?,
            dir,
            rng: StdRng::seed_from_u64(seed),
            promises: BTreeMap::new(),
            unsynced: Vec::new(),
        })
    }

    /// Changes things until a call fails, which is when the host has lost its power.
    fn run(&mut self) -> u64 {
        let mut done = 0;
        while self.step(done).is_ok() {
            done += 1;
        }
        done
    }

    /// Changes things until told to stop, also where the servers have lost what was not promised yet; answers how often a call said so.
    fn run_on(&mut self, stop: &AtomicBool) -> Result<u64> {
        let mut lost = 0;
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if let Err(error) = self.step(number) {
                let told = [libc::ESTALE, libc::EIO].map(Some);
                ensure!(
                    told.contains(&error.raw_os_error()),
                    "step {number} in {}: {error}",
                    self.dir.display()
                );
                println!("step {number} in {}: {error}", self.dir.display());
                lost += 1;
            }
        }
        Ok(lost)
    }

    fn step(&mut self, number: u64) -> io::Result<()> {
        match self.rng.random_range(0..10) {
            0..4 => self.make(number),
            4 => self.rename(number),
            5 => {
                let name = format!("d{number}");
                fs::create_dir(self.dir.join(&name))?;
                self.promise(name, Promise::Directory)
            }
            6 => self.remove(),
            7 => self.change(|file, data, rng| {
                let more = pattern(rng.random_range(1..9000), rng.random());
                file.write_all_at(&more, data.len() as u64)?;
                data.extend(more);
                Ok(())
            }),
            8 => self.change(|file, data, rng| {
                let offset = rng.random_range(0..=data.len());
                let new = pattern(rng.random_range(0..=data.len() - offset), rng.random());
                file.write_all_at(&new, offset as u64)?;
                data[offset..offset + new.len()].copy_from_slice(&new);
                Ok(())
            }),
            _ => self.change(|file, data, rng| {
                let len = rng.random_range(0..=data.len() + 5000);
                file.set_len(len as u64)?;
                data.resize(len, 0);
                Ok(())
            }),
        }
    }

    fn make(&mut self, number: u64) -> io::Result<()> {
        let name = format!("f{number}");
        let len = if number % LARGE == LARGE - 1 {
            self.rng.random_range(4 << 20..6 << 20)
        } else {
            self.rng.random_range(0..20_000)
        };
        let data = pattern(len, self.rng.random());
        let mut file = File::create_new(self.dir.join(&name))?;
        let mode = self.rng.random_range(0o600..0o700);
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(&data)?;
        if self.rng.random() {
            file.sync_all()?;
            drop(file);
        } else {
            close(file)?;
        }
        self.promises.insert(name, Promise::File { data, mode });
        Ok(())
    }

    /// A promise is taken out while something else may come of it.
    fn rename(&mut self, number: u64) -> io::Result<()> {
        let Some((name, file)) = self.take() else {
            return Ok(());
        };
        let to = format!("r{number}");
        fs::rename(self.dir.join(&name), self.dir.join(&to))?;
        self.promises.insert(name, Promise::Absent);
        self.promises.insert(to, file);
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        let Some((name, _)) = self.take() else {
            return Ok(());
        };
        fs::remove_file(self.dir.join(&name))?;
        self.promise(name, Promise::Absent)
    }

    fn change(
        &mut self,
        how: impl FnOnce(&File, &mut Vec<u8>, &mut StdRng) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some((name, Promise::File { mut data, mode })) = self.take() else {
            return Ok(());
        };
        let file = OpenOptions::new().write(true).open(self.dir.join(&name))?;
        how(&file, &mut data, &mut self.rng)?;
        file.sync_all()?;
        self.promises.insert(name, Promise::File { data, mode });
        Ok(())
    }

    fn take(&mut self) -> Option<(String, Promise)> {
        let is_file = |promise: &Promise| matches!(promise, Promise::File { .. });
        let files = self.promises.iter().filter(|(_, it)| is_file(it));
        let names: Vec<_> = files.map(|(name, _)| name.clone()).collect();
        let name = names.get(self.rng.random_range(0..names.len().max(1)))?;
        self.promises.remove_entry(name)
    }

    /// By an fsync of the directory, now or together with later ones.
    fn promise(&mut self, name: String, what: Promise) -> io::Result<()> {
        self.unsynced.push((name, what));
        if self.rng.random() {
            return Ok(());
        }
        let unsynced = std::mem::take(&mut self.unsynced);
        if self.rng.random() {
            self.names.sync_all()?;
        } else {
            File::open(&self.dir)?.sync_all()?;
        }
        self.promises.extend(unsynced);
        Ok(())
    }

    /// Everything promised is there, and everything that is there can be read.
    fn check(&self) -> Result<()> {
        for (name, promise) in &self.promises {
            let path = self.dir.join(name);
            let found = look(&path).with_context(|| format!("{}", path.display()))?;
            ensure!(
                found == *promise,
                "{}: {}, promised {}",
                path.display(),
                brief(&found),
                brief(promise)
            );
        }
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            look(&path).with_context(|| format!("{}", path.display()))?;
        }
        Ok(())
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    File::open(dir)?.sync_all()
}

/// The error that drop would hide.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was owned by `file` alone, which has given it up.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn look(path: &Path) -> io::Result<Promise> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Promise::Absent),
        Ok(attributes) if attributes.is_dir() => Ok(Promise::Directory),
        Ok(attributes) => Ok(Promise::File {
            data: fs::read(path)?,
            mode: attributes.mode() & 0o7777,
        }),
        Err(error) => Err(error),
    }
}

fn brief(what: &Promise) -> String {
    match what {
        Promise::File { data, mode } => {
            let zero = if data.iter().all(|byte| *byte == 0) {
                ", all zero"
            } else {
                ""
            };
            format!("{} bytes{zero}, mode {mode:o}", data.len())
        }
        other => format!("{other:?}"),
    }
}

fn cluster_on(disk: &PowerDisk, mount: bool) -> Result<TestCluster> {
    TestCluster::with(ClusterOptions {
        dir: Some(disk.path().join("data")),
        mount,
        ..ClusterOptions::new(3, 3)
    })
}

/// A file whose name was not on disk yet may have left chunks: `fsck` finds nothing else, and removes them. Answers how many.
fn remove_orphans(cluster: &TestCluster) -> Result<usize> {
    let found = cluster.fsck()?.json()?;
    let faults = found["faults"].as_array().context("no faults")?;
    ensure!(
        faults.iter().all(|fault| fault["code"] == "orphan"),
        "{found}"
    );
    if !faults.is_empty() {
        cluster.emberfs("fsck", &["--repair", "--json"])?;
    }
    cluster.fsck()?.expect_code(0)?;
    Ok(faults.len())
}

/// `EMBERFS_ROUNDS` cuts the power more often, `EMBERFS_SEED` differently.
#[test]
fn what_was_acknowledged_survives_a_loss_of_power() -> Result<()> {
    let disk = PowerDisk::new(6 << 10)?;
    let cluster = cluster_on(&disk, true)?;
    let seed = scale("EMBERFS_SEED", 1);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all: Vec<Writer> = Vec::new();
    for round in 0..scale("EMBERFS_ROUNDS", 3) {
        let writers = (0..WRITERS).map(|number| {
            let dir = cluster.mount().join(format!("{round}-{number}"));
            make_dir(&dir)?;
            Ok(Writer::new(dir, rng.random())?)
        });
        let mut writers = writers.collect::<Result<Vec<_>>>()?;
        let load = Duration::from_millis(rng.random_range(LOAD_MS / 3..LOAD_MS));
        let done = thread::scope(|scope| {
            let running = writers.iter_mut().map(|it| scope.spawn(|| it.run()));
            let running: Vec<_> = running.collect();
            // A time, because what it meets is to be left to chance.
            thread::sleep(load);
            let cut = cluster.lose_power(&disk);
            let done = running.into_iter().map(|it| it.join().unwrap_or(0));
            cut.map(|()| done.sum::<u64>())
        })?;
        ensure!(done > 0, "nothing was done before the cut");
        cluster.up()?;
        cluster.wait_status(0, HEAL)?;
        all.extend(writers);
        for writer in &all {
            writer
                .check()
                .with_context(|| format!("seed {seed}, round {round}"))?;
        }
        let orphans = remove_orphans(&cluster)?;
        println!("round {round}: power cut after {load:?}, {done} changes, {orphans} orphans");
    }
    Ok(())
}

/// Where [`programs`] work.
const MOUNT: &str = "EMBERFS_POWER_CUT_MOUNT";
/// Where they look afterwards: at a mount that remembers nothing of it.
const OTHER: &str = "EMBERFS_POWER_CUT_OTHER";

/// The mount is on a host that keeps its power: its programs go on, and are told what was lost before they were promised it.
#[test]
fn programs_go_on_when_all_servers_have_lost_their_power() -> Result<()> {
    let disk = PowerDisk::new(6 << 10)?;
    let cluster = cluster_on(&disk, false)?;
    let (mount, other) = (cluster.mount_again("")?, cluster.mount_again("")?);
    for number in 0..WRITERS {
        make_dir(&mount.path().join(format!("{number}")))?;
    }
    let mut rng = StdRng::seed_from_u64(scale("EMBERFS_SEED", 1));
    // A process of their own: one that has files open there cannot start another while the servers are away, because the kernel flushes
    // them for it.
    let mut programs = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "programs", "--nocapture"])
        .env(MOUNT, mount.path())
        .env(OTHER, other.path())
        .stdin(Stdio::piped())
        .spawn()?;
    let mut cuts = || -> Result<()> {
        for _ in 0..scale("EMBERFS_ROUNDS", 2) {
            // A time, because what it meets is to be left to chance.
            thread::sleep(Duration::from_millis(
                rng.random_range(LOAD_MS / 3..LOAD_MS),
            ));
            cluster.lose_power(&disk)?;
            cluster.up()?;
            cluster.wait_status(0, HEAL)?;
        }
        Ok(())
    };
    let cuts = cuts();
    if cuts.is_err() {
        // Or they would wait for servers that nobody brings back.
        let how = UnmountFlags::FORCE | UnmountFlags::DETACH;
        rustix::mount::unmount(mount.path(), how)?;
    }
    // Closes their input, which tells them to stop.
    let outcome = programs.wait()?;
    cuts?;
    ensure!(outcome.success(), "programs: {outcome}");
    println!("{} orphans", remove_orphans(&cluster)?);
    Ok(())
}

/// Works until its input ends; then everything promised must be there.
#[test]
#[ignore = "a child of programs_go_on_when_all_servers_have_lost_their_power"]
fn programs() -> Result<()> {
    let path = |name| std::env::var_os(name).map(PathBuf::from).context(name);
    let (mount, other) = (path(MOUNT)?, path(OTHER)?);
    let seed = scale("EMBERFS_SEED", 1);
    let mut writers = (0..WRITERS)
        .map(|number| Writer::new(mount.join(format!("{number}")), seed * WRITERS + number))
        .collect::<io::Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    let lost: u64 = thread::scope(|scope| {
        let running = writers.iter_mut();
        let running: Vec<_> = running.map(|it| scope.spawn(|| it.run_on(&stop))).collect();
        io::stdin().read_to_end(&mut Vec::new())?;
        stop.store(true, Ordering::Relaxed);
        let lost = running
            .into_iter()
            .map(|it| it.join().expect("a writer does not panic"));
        lost.sum::<Result<u64>>()
    })?;
    for (number, writer) in writers.iter_mut().enumerate() {
        writer.dir = other.join(format!("{number}"));
        writer.check().with_context(|| format!("seed {seed}"))?;
    }
    let promises: usize = writers.iter().map(|it| it.promises.len()).sum();
    ensure!(promises > 0, "nothing was done");
    println!("{promises} promises kept, {lost} calls told of a loss");
    Ok(())
}
