//! The first thing that anyone does with EmberFS, from the first command to the last.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, drop_cache, is_alive, pattern};

/// Not a multiple of any block, page or chunk size.
const ODD_SIZE: usize = (9 << 20) + 12_345;

#[test]
fn up_write_read_status_down_and_nothing_is_left() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let path = cluster.mount().join("directory/file");
    fs::create_dir(cluster.mount().join("directory"))?;
    let data = pattern(ODD_SIZE, 1);
    let mut file = fs::File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)?;
    file.write_all(&data)?;
    file.sync_all()?;
    drop_cache(&file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut back = Vec::new();
    file.read_to_end(&mut back)?;
    ensure!(back == data, "read other bytes than written");
    drop(file);

    cluster.wait_status(0, Duration::from_secs(10))?;
    let status = cluster.status_json()?;
    ensure!(status["status"] == "healthy" && status["nodes"].as_array().map(Vec::len) == Some(3));
    let fsck = cluster.fsck()?.expect_code(0)?.json()?;
    ensure!(
        fsck["status"] == "clean" && fsck["chunks"].as_u64() >= Some(3),
        "{fsck}"
    );
    ensure!(
        fsck["replicas"].as_u64() == fsck["chunks"].as_u64().map(|chunks| chunks * 3),
        "{fsck}"
    );

    let pids = cluster.pids();
    ensure!(pids.len() == 5, "pid files: {pids:?}");
    cluster.purge()?;
    ensure!(!cluster.is_mounted()?, "still mounted");
    ensure!(
        !cluster.mount().exists(),
        "the mount point that `up` made is still there"
    );
    ensure!(!cluster.dir().exists(), "data is still there");
    for pid in pids {
        ensure!(!is_alive(pid), "{pid:?} still runs");
    }
    Ok(())
}

#[test]
fn data_survives_down_and_up_and_up_is_idempotent() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let data = pattern(ODD_SIZE, 2);
    fs::write(cluster.mount().join("kept"), &data)?;
    let before = cluster.pids();
    let again = cluster.up()?;
    ensure!(again.stdout.contains("Already up"), "{}", again.stdout);
    ensure!(
        cluster.pids() == before,
        "a second `up` restarted something"
    );

    cluster.down()?;
    ensure!(!cluster.is_mounted()?, "still mounted");
    ensure!(cluster.pids().is_empty(), "pid files are left");
    ensure!(
        cluster.status_code()? == 2,
        "a stopped cluster is not reported as broken"
    );
    cluster.up()?;
    ensure!(
        fs::read(cluster.mount().join("kept"))? == data,
        "read other bytes than written"
    );
    cluster.wait_status(0, Duration::from_secs(30))
}

#[test]
fn a_killed_server_degrades_the_cluster_and_the_command_that_status_prints_brings_it_back()
-> Result<()> {
    let options = ClusterOptions {
        mount: false,
        ..ClusterOptions::new(3, 3)
    };
    let cluster = TestCluster::with(options)?;
    cluster.wait_status(0, Duration::from_secs(10))?;
    cluster.kill9("storage-2")?;
    cluster.wait_status(1, Duration::from_secs(10))?;
    let status = cluster.status_json()?;
    let next = status["problems"][0]["next"]
        .as_str()
        .context("no next command")?;
    ensure!(
        next.contains("start") && next.contains("storage-2"),
        "{next}"
    );
    // The printed command is run as a user would, with the binary under test.
    let arguments: Vec<_> = next.split(' ').skip(1).collect();
    let binary = emberfs_tests::emberfs_binary()?;
    ensure!(
        Command::new(binary).args(arguments).status()?.success(),
        "{next} failed"
    );
    cluster.wait_status(0, Duration::from_secs(30))
}

#[test]
fn a_dead_mount_is_replaced() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    fs::write(cluster.mount().join("kept"), b"x")?;
    cluster.kill9("mount")?;
    cluster.up()?;
    ensure!(
        fs::read(cluster.mount().join("kept"))? == b"x",
        "read other bytes than written"
    );
    Ok(())
}

#[test]
fn a_busy_mount_is_not_taken_away_unless_forced() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let held = fs::File::create(cluster.mount().join("held"))?;
    let refused = cluster.emberfs("down", &[])?.expect_code(1)?;
    ensure!(
        refused.stderr.contains("in use") && refused.stderr.contains("--force"),
        "{}",
        refused.stderr
    );
    ensure!(
        cluster.pids().len() == 3,
        "a refused `down` stopped something"
    );
    drop(held);
    cluster.down()?;
    Ok(())
}

#[test]
fn a_wrong_request_is_refused_in_one_line_that_says_what_to_do() -> Result<()> {
    let options = ClusterOptions {
        mount: false,
        ..ClusterOptions::new(1, 1)
    };
    let cluster = TestCluster::with(options)?;
    for (verb, arguments, hint) in [
        ("up", &["--no-mount", "--storage", "2"][..], "another --dir"),
        ("start", &["storage-7"][..], "storage-1"),
        ("stop", &["mount"][..], "meta-1"),
    ] {
        let refused = cluster.emberfs(verb, arguments)?.expect_code(1)?;
        ensure!(refused.stderr.lines().count() == 1, "{}", refused.stderr);
        ensure!(
            refused.stderr.starts_with("emberfs: ") && refused.stderr.contains(hint),
            "{}",
            refused.stderr
        );
    }
    Ok(())
}
