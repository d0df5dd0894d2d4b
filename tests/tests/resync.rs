//! A replica that missed writes is brought up to date while clients go on: only what it missed moves, at
//! the pace that the settings allow, and either side may die half-way.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use emberfs_proto::layout::splitmix64;
use emberfs_tests::{ClusterOptions, TestCluster, drop_cache, pattern, wait};
use serde_json::Value;

const MIB: usize = 1 << 20;
/// Default size of a chunk.
const CHUNK: usize = 4 * MIB;
/// How long a cluster may take to be whole again.
const HEAL: Duration = Duration::from_mins(1);

/// Three servers with a single chain: one is its head, one its middle, one its tail.
fn one_chain() -> Result<TestCluster> {
    TestCluster::with(ClusterOptions {
        settings: vec!["meta.targets_per_disk=1".to_owned()],
        ..ClusterOptions::new(3, 3)
    })
}

fn set(cluster: &TestCluster, setting: &str) -> Result<()> {
    cluster.emberfs("settings", &[setting])?.expect_code(0)?;
    Ok(())
}

/// Servers of the only chain that are in this state, in the order of the chain.
fn servers(status: &Value, state: &str) -> Vec<String> {
    let targets = status["chains"][0]["targets"].as_array();
    targets
        .into_iter()
        .flatten()
        .filter(|target| target["state"] == state)
        .map(|target| format!("storage-{}", target["node"]))
        .collect()
}

/// Waits until a resync has sent something and is not done, and answers the status of that moment.
fn wait_moving(cluster: &TestCluster) -> Result<Value> {
    let mut last = Value::Null;
    wait(HEAL, || {
        last = cluster.status_json()?;
        let resync = &last["resync"];
        ensure!(last["status"] != "healthy", "the resync is done already");
        Ok(resync["bytes"].as_u64() > Some(0)
            && resync["bytes"].as_u64() < resync["bytes_total"].as_u64())
    })
    .with_context(|| format!("no resync is on its way: {last}"))?;
    Ok(last)
}

fn resync_sent(cluster: &TestCluster) -> Result<u64> {
    let status = cluster.status_json()?;
    let nodes = status["nodes"].as_array().context("no nodes")?;
    Ok(nodes
        .iter()
        .filter_map(|n| n["resync_sent_bytes"].as_u64())
        .sum())
}

#[test]
fn a_pass_moves_only_what_differs_at_the_pace_that_is_set_and_shows_how_far_it_is() -> Result<()> {
    let cluster = one_chain()?;
    let path = cluster.mount().join("file");
    let mut content = pattern(40 * CHUNK, 1);
    fs::write(&path, &content)?;
    File::open(&path)?.sync_all()?;
    let victim = servers(&cluster.status_json()?, "serving").remove(1);
    cluster.stop_process(&victim)?;
    // Every fourth chunk, a little of it.
    let file = OpenOptions::new().write(true).open(&path)?;
    for chunk in (0..40).step_by(4) {
        let at = chunk * CHUNK + 5000;
        let bytes = pattern(10_000, chunk as u64);
        file.write_all_at(&bytes, at as u64)?;
        content[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    file.sync_all()?;
    let differs = (10 * CHUNK) as u64;

    // So slow that it takes far longer than what is looked at meanwhile.
    let rate = MIB as u64 / 2;
    set(&cluster, &format!("resync_bytes_per_second={rate}"))?;
    let before = resync_sent(&cluster)?;
    let start = Instant::now();
    cluster.start_process(&victim)?;
    let moving = wait_moving(&cluster)?;
    let resync = &moving["resync"];
    ensure!(
        resync["targets"] == 1 && resync["chunks_total"] == 40,
        "{resync}"
    );
    ensure!(resync["bytes_total"] == differs, "{resync}");
    // The rate needs two looks at the counters.
    wait(HEAL, || {
        let status = cluster.status_json()?;
        ensure!(status["status"] != "healthy", "faster than allowed");
        let rate = status["resync"]["bytes_per_second"].as_u64();
        Ok(rate > Some(0) && status["resync"]["eta_seconds"].is_u64())
    })
    .context("no time left is shown")?;
    let human = cluster.emberfs("status", &[])?.stdout;
    ensure!(
        human.contains("resync   1 replica: ") && human.contains(" left"),
        "{human}"
    );
    // Live writes go on in chunks that the pass has to bring, and in others.
    for chunk in [1, 36] {
        let bytes = pattern(10_000, 100 + chunk as u64);
        file.write_all_at(&bytes, (chunk * CHUNK) as u64)?;
        content[chunk * CHUNK..chunk * CHUNK + bytes.len()].copy_from_slice(&bytes);
    }
    file.sync_all()?;
    let slow = start.elapsed();
    set(&cluster, "resync_bytes_per_second=0")?;
    cluster.wait_status(0, HEAL)?;
    // All of it would have taken this long.
    let limited = Duration::from_secs(differs / rate);
    ensure!(
        slow < limited && start.elapsed() < limited,
        "a higher limit did not take effect at once"
    );
    let mut moved = 0;
    // One chunk of them was brought by a live write. The counter comes with the heartbeats.
    wait(HEAL, || {
        moved = resync_sent(&cluster)? - before;
        Ok(moved >= differs - CHUNK as u64)
    })
    .with_context(|| format!("{moved} bytes moved, {differs} differ"))?;
    println!("{moved} bytes moved of {differs} that differ");
    ensure!(
        moved * 10 <= differs * 11,
        "{moved} bytes moved, {differs} differ"
    );
    drop_cache(&File::open(&path)?)?;
    ensure!(fs::read(&path)? == content, "the file is wrong");
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

/// Files and what must be in them.
#[derive(Default)]
struct Model {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Model {
    /// One random write, append, truncation, extension, or removal; some are followed by fsync.
    fn step(&mut self, dir: &Path, dice: &mut u64) -> Result<()> {
        let roll = splitmix64(dice);
        let path = dir.join(format!("live-{}", roll % 5));
        if (roll >> 8).is_multiple_of(16) && self.files.remove(&path).is_some() {
            fs::remove_file(&path)?;
            return Ok(());
        }
        let content = self.files.entry(path.clone()).or_default();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        let most = 3 * CHUNK;
        let at = (roll >> 16) as usize % (content.len() + 1);
        if (roll >> 12).is_multiple_of(8) || content.len() > most {
            let to = (roll >> 16) as usize % most;
            file.set_len(to as u64)?;
            content.resize(to, 0);
        } else {
            let at = if (roll >> 12).is_multiple_of(2) {
                content.len()
            } else {
                at
            };
            let bytes = pattern(1 + (roll >> 20) as usize % (2 * MIB), roll);
            file.write_all_at(&bytes, at as u64)?;
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        if (roll >> 32).is_multiple_of(4) {
            file.sync_all()?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        for (path, content) in &self.files {
            drop_cache(&File::open(path)?)?;
            let got = fs::read(path)?;
            if &got != content {
                let at = got.iter().zip(content).position(|(a, b)| a != b);
                bail!(
                    "{}: {} bytes, not {}; first difference at {at:?}",
                    path.display(),
                    got.len(),
                    content.len()
                );
            }
        }
        Ok(())
    }
}

#[test]
fn either_side_may_die_during_a_pass_while_clients_write_append_truncate_and_remove() -> Result<()>
{
    let cluster = one_chain()?;
    let path = cluster.mount().join("old");
    let mut old = pattern(16 * CHUNK, 1);
    fs::write(&path, &old)?;
    let victim = servers(&cluster.status_json()?, "serving").remove(0);
    cluster.stop_process(&victim)?;
    old[..12 * CHUNK].copy_from_slice(&pattern(12 * CHUNK, 2));
    let file = OpenOptions::new().write(true).open(&path)?;
    file.write_all_at(&old[..12 * CHUNK], 0)?;
    file.sync_all()?;

    let stop = AtomicBool::new(false);
    let model = thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<Model> {
            let mut model = Model::default();
            let mut dice = 3;
            while !stop.load(Ordering::Relaxed) {
                model.step(&cluster.mount(), &mut dice)?;
            }
            Ok(model)
        });
        let faults = || -> Result<()> {
            // Slow enough that every pass is met half-way.
            set(&cluster, &format!("resync_bytes_per_second={}", 2 * MIB))?;
            cluster.start_process(&victim)?;
            let moving = wait_moving(&cluster)?;
            let source = servers(&moving, "serving").pop().context("nobody serves")?;
            cluster.kill9(&source)?;
            wait(HEAL, || {
                Ok(!servers(&cluster.status_json()?, "serving").contains(&source))
            })
            .context("the source's death goes unnoticed")?;
            let moving = wait_moving(&cluster)?;
            ensure!(servers(&moving, "syncing") == [victim.clone()], "{moving}");
            cluster.kill9(&victim)?;
            wait(HEAL, || {
                Ok(servers(&cluster.status_json()?, "syncing").is_empty())
            })
            .context("the destination's death goes unnoticed")?;
            cluster.start_process(&victim)?;
            cluster.start_process(&source)?;
            wait_moving(&cluster)?;
            set(&cluster, "resync_bytes_per_second=0")?;
            cluster.wait_status(0, HEAL)
        };
        let outcome = faults();
        stop.store(true, Ordering::Relaxed);
        let model = load.join().expect("the load does not panic");
        outcome?;
        model.context("under load")
    })?;
    model.check()?;
    drop_cache(&file)?;
    ensure!(fs::read(&path)? == old, "the old file is wrong");
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}
