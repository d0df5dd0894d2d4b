//! A cluster grows, shrinks, heals and restarts by one command each, while programs read and write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_proto::layout::splitmix64;
use emberfs_tests::{ClusterOptions, TestCluster, drop_cache, is_alive, pattern, rot_blocks, wait};
use serde_json::Value;

const BLOCK: usize = 256 << 10;
/// Blocks of the file that is written all the time.
const SLOTS: u64 = 64;
/// Blocks of the file that is read all the time.
const OLD: u64 = 64;
/// How long a cluster may take to be whole again.
const HEAL: Duration = Duration::from_mins(1);

fn cluster(nodes: u32, replicas: u32, mount: bool) -> Result<TestCluster> {
    TestCluster::with(ClusterOptions {
        mount,
        settings: vec!["storage.durability=process".to_owned()],
        ..ClusterOptions::new(nodes, replicas)
    })
}

/// Reads and writes that are checked, for as long as `work` takes: a file that was there before is read
/// over and over; in another, blocks in no order are overwritten and flushed.
fn under_load<T>(cluster: &TestCluster, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (old, new) = (cluster.mount().join("old"), cluster.mount().join("new"));
    let file = File::create(&old)?;
    for index in 0..OLD {
        file.write_all_at(&pattern(BLOCK, index), index * BLOCK as u64)?;
    }
    file.sync_all()?;
    let stop = AtomicBool::new(false);
    let (done, written) = thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&old, &stop));
        let writer = scope.spawn(|| overwrite(&new, &stop));
        let done = work();
        if let Err(failure) = &done {
            eprintln!("the work failed: {failure:#}");
            // Reads and writes wait for servers for ever: what failed must not become a hang.
            for name in cluster.names().iter().filter(|name| *name != "mount") {
                let _ = cluster.start_process(name);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let read = reader
            .join()
            .expect("the reader does not panic")
            .context("read")?;
        let written = writer
            .join()
            .expect("the writer does not panic")
            .context("write")?;
        ensure!(read > 0 && !written.is_empty(), "there was no load");
        Ok((done?, written))
    })?;
    let file = File::open(&new)?;
    drop_cache(&file)?;
    let mut buffer = vec![0; BLOCK];
    for (slot, salt) in written {
        file.read_exact_at(&mut buffer, slot * BLOCK as u64)?;
        ensure!(
            buffer == pattern(BLOCK, salt),
            "block {slot} is not what was acknowledged"
        );
    }
    read_once(&old)?;
    Ok(done)
}

fn read_once(path: &Path) -> Result<u64> {
    let file = File::open(path)?;
    drop_cache(&file)?;
    let mut buffer = vec![0; BLOCK];
    for index in 0..OLD {
        file.read_exact_at(&mut buffer, index * BLOCK as u64)?;
        ensure!(buffer == pattern(BLOCK, index), "block {index} is wrong");
    }
    Ok(OLD)
}

fn read_all(path: &Path, stop: &AtomicBool) -> Result<u64> {
    let mut read = 0;
    while !stop.load(Ordering::Relaxed) {
        read += read_once(path)?;
    }
    Ok(read)
}

/// What each block holds in the end.
fn overwrite(path: &Path, stop: &AtomicBool) -> Result<BTreeMap<u64, u64>> {
    let file = File::create(path)?;
    let mut written = BTreeMap::new();
    let mut dice = 5;
    while !stop.load(Ordering::Relaxed) {
        let salt = splitmix64(&mut dice);
        let slot = salt % SLOTS;
        file.write_all_at(&pattern(BLOCK, salt), slot * BLOCK as u64)?;
        file.sync_data()?;
        written.insert(slot, salt);
    }
    Ok(written)
}

/// Replicas on each node that is there.
fn held(status: &Value) -> BTreeMap<u64, usize> {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    let mut held: BTreeMap<u64, usize> =
        nodes.filter_map(|n| Some((n["id"].as_u64()?, 0))).collect();
    let chains = status["chains"].as_array().into_iter().flatten();
    for target in chains.flat_map(|c| c["targets"].as_array().into_iter().flatten()) {
        *held
            .entry(target["node"].as_u64().unwrap_or(0))
            .or_default() += 1;
    }
    held
}

fn assert_even(cluster: &TestCluster, nodes: usize) -> Result<()> {
    let held = held(&cluster.status_json()?);
    ensure!(held.len() == nodes, "{held:?}");
    let even = held.values().sum::<usize>() as f64 / nodes as f64;
    let off = |&n: &usize| (n as f64 - even).abs() > even * 0.1;
    ensure!(
        !held.values().any(off),
        "not within 10 % of {even}: {held:?}"
    );
    Ok(())
}

fn disk_of(cluster: &TestCluster, node: usize) -> Result<(String, String)> {
    let status = cluster.status_json()?;
    let nodes = status["nodes"].as_array().context("no nodes")?;
    let node = nodes
        .iter()
        .find(|n| n["id"] == node)
        .context("no such node")?;
    let disk = &node["disks"][0];
    let text = |key: &str| disk[key].as_str().map(str::to_owned).context("no disk");
    Ok((text("id")?, text("path")?))
}

/// Damages what is read all the time, server by server until one meets it; a read or the scrub repairs it.
fn damage_is_repaired(cluster: &TestCluster, nodes: usize) -> Result<()> {
    let mut mark = [0; 32];
    mark.copy_from_slice(&pattern(BLOCK, 3)[..32]);
    for node in 1..=nodes as u32 {
        // What was overwritten or moved away left its bytes behind: nobody misses those.
        if rot_blocks(cluster, node, &mark)? == 0 {
            continue;
        }
        cluster
            .emberfs("scrub", &["--start", "--wait"])?
            .expect_code(0)?;
        let status = cluster.status_json()?;
        let nodes = status["nodes"].as_array().into_iter().flatten();
        let disks = nodes.flat_map(|n| n["disks"].as_array().into_iter().flatten());
        if disks.filter_map(|d| d["repaired"].as_u64()).sum::<u64>() > 0 {
            return Ok(());
        }
    }
    anyhow::bail!("no damage was repaired")
}

#[test]
fn moves_are_paused_slowed_and_resumed_by_the_verb_that_asked_for_them() -> Result<()> {
    let cluster = cluster(3, 2, false)?;
    let drain = |extra: &[&str]| cluster.emberfs("drain", &[&["storage-3"], extra].concat());
    let before = held(&cluster.status_json()?);
    drain(&["--pause", "--dry-run"])?.expect_code(2)?;
    cluster
        .emberfs("drain", &["everything", "--pause"])?
        .expect_refusal(&["node/1 or disk/ID"])?;
    drain(&["--pause"])?.expect_code(0)?;
    drain(&["--detach", "--rate", "64M"])?.expect_code(0)?;
    let settings = cluster.emberfs("settings", &["--json"])?.json()?;
    ensure!(
        settings["migrations_paused"] == true && settings["resync_bytes_per_second"] == 64 << 20,
        "{settings}"
    );
    // The manager has heard of the drain and moves nothing.
    let plan = drain(&["--dry-run"])?.expect_code(0)?;
    ensure!(plan.stdout.contains("to move"), "{plan:?}");
    let paused = held(&cluster.status_json()?);
    ensure!(paused == before, "moved although paused: {paused:?}");
    drain(&["--resume", "--rate", "0"])?.expect_code(0)?;
    let after = held(&cluster.status_json()?);
    ensure!(after[&3] == 0, "{after:?}");
    let settings = cluster.emberfs("settings", &["--json"])?.json()?;
    ensure!(
        settings["migrations_paused"] == false && settings["resync_bytes_per_second"] == 0,
        "{settings}"
    );
    Ok(())
}

#[test]
fn three_servers_grow_shrink_heal_and_restart_under_load() -> Result<()> {
    live_through_everything(3)
}

#[test]
fn five_servers_grow_shrink_heal_and_restart_under_load() -> Result<()> {
    live_through_everything(5)
}

/// Adds two servers one by one, drains and removes two, replaces a disk, repairs damage, restarts all.
fn live_through_everything(nodes: usize) -> Result<()> {
    let cluster = cluster(nodes as u32, 3, true)?;
    let name = |node: usize| format!("storage-{node}");
    under_load(&cluster, || {
        damage_is_repaired(&cluster, nodes)?;
        let plan = cluster
            .emberfs("node", &["add", "--dry-run"])?
            .expect_code(0)?;
        ensure!(
            plan.stdout.contains("replicas to move") && plan.stdout.contains(&name(nodes + 1)),
            "{plan:?}"
        );
        ensure!(
            held(&cluster.status_json()?).len() == nodes,
            "a dry run made a node"
        );
        for more in 1..=2 {
            cluster.emberfs("node", &["add"])?.expect_code(0)?;
            assert_even(&cluster, nodes + more)?;
        }
        for (gone, node) in [(1, 1), (2, 3)] {
            cluster.emberfs("drain", &[&name(node)])?.expect_code(0)?;
            ensure!(
                held(&cluster.status_json()?)[&(node as u64)] == 0,
                "not empty"
            );
            cluster
                .emberfs("node", &["remove", &name(node)])?
                .expect_code(0)?;
            assert_even(&cluster, nodes + 2 - gone)?;
            ensure!(
                !cluster
                    .dir()
                    .join(format!("conf/{}.toml", name(node)))
                    .exists(),
                "not cleaned up"
            );
        }

        let (disk, path) = disk_of(&cluster, 2)?;
        cluster.stop_process(&name(2))?;
        fs::remove_dir_all(&path)?;
        fs::create_dir(&path)?;
        cluster
            .emberfs("start", &[&name(2)])?
            .expect_refusal(&["emberfs replace", &disk])?;
        cluster
            .emberfs("replace", &[&disk, &path])?
            .expect_code(0)?;
        assert_even(&cluster, nodes)?;
        ensure!(
            disk_of(&cluster, 2)?.0 != disk,
            "the dead disk is still there"
        );

        for node in (1..=nodes + 2).filter(|node| ![1, 3].contains(node)) {
            cluster.stop_process(&name(node))?;
            cluster.start_process(&name(node))?;
            cluster.wait_status(0, HEAL)?;
        }
        Ok(())
    })?;
    cluster.wait_status(0, HEAL)?;
    cluster.fsck()?.expect_code(0)?;
    let pids = cluster.pids();
    cluster.down()?;
    ensure!(!pids.into_iter().any(is_alive), "something is left running");
    Ok(())
}

/// The load is another program's: a process that holds files of the mount open cannot start the server that
/// its own closing of them waits for.
#[test]
fn a_drain_survives_the_death_of_manager_source_and_destination() -> Result<()> {
    const COPIES: u64 = 12;
    let cluster = cluster(3, 2, true)?;
    let source = tempfile::NamedTempFile::new()?;
    let data = pattern(8 << 20, 9);
    fs::write(source.path(), &data)?;
    let script = format!(
        "for i in $(seq {COPIES}); do cp '{0}' '{1}'/copy-$i && sync '{1}'/copy-$i || exit 1; done",
        source.path().display(),
        cluster.mount().display()
    );
    let mut load = Command::new("sh").arg("-c").arg(script).spawn()?;
    cluster
        .emberfs("drain", &["storage-3", "--detach"])?
        .expect_code(0)?;
    for victim in ["meta-1", "storage-3", "storage-1", "meta-1", "storage-2"] {
        cluster.kill9(victim)?;
        cluster.start_process(victim)?;
    }
    // Typed again it goes on and waits.
    cluster.emberfs("drain", &["storage-3"])?.expect_code(0)?;
    ensure!(held(&cluster.status_json()?)[&3] == 0, "not empty");
    cluster
        .emberfs("node", &["remove", "storage-3"])?
        .expect_code(0)?;
    ensure!(load.wait()?.success(), "the load failed");
    for copy in 1..=COPIES {
        let path = cluster.mount().join(format!("copy-{copy}"));
        drop_cache(&File::open(&path)?)?;
        ensure!(fs::read(&path)? == data, "{} differs", path.display());
    }
    cluster.wait_status(0, HEAL)?;
    cluster.fsck()?.expect_code(0)?;
    // The number is free again, for a new and empty server.
    cluster
        .emberfs("node", &["add", "storage-3"])?
        .expect_code(0)?;
    assert_even(&cluster, 3)?;
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_second_disk_takes_half_and_data_that_moved_away_is_deleted() -> Result<()> {
    let cluster = cluster(2, 2, true)?;
    under_load(&cluster, || {
        let disk = cluster.dir().join("second");
        let shown = disk.display().to_string();
        cluster
            .emberfs("disk", &["add", "storage-1", &shown])?
            .expect_refusal(&[&shown, "no directory", "mkdir"])?;
        fs::create_dir(&disk)?;
        let dry = cluster
            .emberfs("disk", &["add", "storage-1", &shown, "--dry-run"])?
            .expect_code(0)?;
        ensure!(dry.stdout.contains("10 replicas to move"), "{dry:?}");
        cluster
            .emberfs("disk", &["add", "storage-1", &shown])?
            .expect_code(0)?;
        let status = cluster.status_json()?;
        let mut held: BTreeMap<String, usize> = BTreeMap::new();
        let chains = status["chains"].as_array().into_iter().flatten();
        for target in chains.flat_map(|c| c["targets"].as_array().into_iter().flatten()) {
            *held
                .entry(target["disk"].as_str().unwrap_or("").to_owned())
                .or_default() += 1;
        }
        let mut counts: Vec<_> = held.into_values().collect();
        counts.sort_unstable();
        ensure!(counts == [10, 10, 20], "{counts:?}");
        let (first, _) = disk_of(&cluster, 1)?;
        cluster
            .emberfs("drain", &[&format!("disk/{first}")])?
            .expect_code(0)?;
        Ok(())
    })?;
    // What the first disk held is gone from it, not only from the map.
    wait(HEAL, || {
        let status = cluster.status_json()?;
        let used: Vec<_> = (0..2)
            .map(|d| status["nodes"][0]["disks"][d]["used"].as_u64().unwrap_or(0))
            .collect();
        Ok(used.iter().min() < Some(&(4 << 20)) && used.iter().max() > Some(&(16 << 20)))
    })
    .context("the drained disk still holds data")?;
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

#[test]
fn wishes_that_would_cost_data_are_refused_with_the_right_command() -> Result<()> {
    let cluster = cluster(2, 2, false)?;
    let (disk, path) = disk_of(&cluster, 1)?;
    let refused = |verb: &str, arguments: &[&str], needles: &[&str]| -> Result<()> {
        let outcome = cluster.emberfs(verb, arguments)?.expect_refusal(needles);
        outcome
            .map(drop)
            .with_context(|| format!("{verb} {arguments:?}"))
    };
    // The last replicas.
    let room = ["1 nodes left for 2 replicas", "emberfs node add"];
    refused("drain", &["storage-1"], &room)?;
    refused("drain", &[&format!("disk/{disk}"), "--dry-run"], &room)?;
    // A live disk.
    let works = [disk.as_str(), "works", "emberfs drain disk/"];
    refused("replace", &[&disk, &path], &works)?;
    // A node that still serves.
    let holds = ["node 2 holds 20 replicas", "emberfs drain node/2"];
    refused("node", &["remove", "storage-2"], &holds)?;
    refused("node", &["remove", "storage-2", "--dry-run"], &holds)?;
    // A disk that is fine although its server is down.
    cluster.stop_process("storage-1")?;
    refused(
        "replace",
        &[&disk, &path],
        &["only its server is down", "emberfs start storage-1"],
    )?;
    cluster.start_process("storage-1")?;
    // What is not there.
    refused("drain", &["storage-9"], &["no node 9", "1, 2"])?;
    refused("drain", &["disk/123456"], &["no disk", "emberfs status"])?;
    refused("drain", &["everything"], &["node/1 or disk/ID"])?;
    refused(
        "node",
        &["add", "storage-7"],
        &["next storage server of this host is storage-3"],
    )?;
    let other = cluster.dir().join("storage-2/disk-1").display().to_string();
    refused("disk", &["add", "storage-1", &other], &["disk of node 2"])?;
    cluster.wait_status(0, HEAL)?;
    ensure!(
        held(&cluster.status_json()?).values().all(|&n| n == 20),
        "something moved"
    );
    Ok(())
}
