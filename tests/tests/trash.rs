//! Trash on a real mount: what programs remove comes back by one command, or goes when its time is over.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, wait};

const SOON: Duration = Duration::from_secs(5);

/// Nothing is collected for one lease after a start of the metadata server.
fn cluster() -> Result<TestCluster> {
    TestCluster::with(ClusterOptions {
        settings: vec![
            "meta.client_lease_ms=3000".to_owned(),
            "meta.gc_interval_ms=100".to_owned(),
        ],
        ..ClusterOptions::new(1, 1)
    })
}

/// What a verb of trash says.
fn trash(cluster: &TestCluster, arguments: &[&str]) -> Result<String> {
    Ok(cluster.emberfs("trash", arguments)?.expect_code(0)?.stdout)
}

/// Paths in the trash, the newest first.
fn listed(cluster: &TestCluster, arguments: &[&str]) -> Result<Vec<String>> {
    let arguments = [&["list", "--json"], arguments].concat();
    let json = cluster
        .emberfs("trash", &arguments)?
        .expect_code(0)?
        .json()?;
    let entries = json["entries"].as_array().cloned().unwrap_or_default();
    let paths = entries.iter().filter_map(|entry| entry["path"].as_str());
    Ok(paths.map(str::to_owned).collect())
}

fn make_tree(top: &Path) -> Result<()> {
    for dir in ["a", "a/b", "empty"] {
        fs::create_dir_all(top.join(dir))?;
    }
    for (file, bytes) in [
        ("one", "first"),
        ("a/two", "second"),
        ("a/b/three", "third"),
    ] {
        fs::write(top.join(file), bytes)?;
    }
    std::os::unix::fs::symlink("a/two", top.join("link"))?;
    Ok(())
}

fn check_tree(top: &Path) -> Result<()> {
    for (file, bytes) in [("one", "first"), ("link", "second"), ("a/b/three", "third")] {
        ensure!(fs::read(top.join(file))? == bytes.as_bytes(), "{file}");
    }
    ensure!(fs::read_dir(top.join("empty"))?.next().is_none());
    ensure!(fs::read_dir(top)?.count() == 4);
    Ok(())
}

fn rm(path: &Path) -> Result<()> {
    let status = Command::new("rm").arg("-r").arg(path).status()?;
    ensure!(status.success(), "rm -r: {status}");
    Ok(())
}

#[test]
fn what_programs_remove_comes_back_on_every_mount() -> Result<()> {
    let cluster = cluster()?;
    let second = cluster.mount_again("")?;
    let (here, there) = (cluster.mount().join("data"), second.path().join("data"));
    let tree = here.join("tree");
    make_tree(&tree)?;
    let said = trash(&cluster, &["on", "/data", "--keep", "7d"])?;
    ensure!(said.contains("stays in the trash for 7 d"), "{said}");
    let said = trash(&cluster, &["status", "/data/tree"])?;
    ensure!(said.contains("as /data says"), "{said}");

    // 1. A tree, name by name; the other mount has it in its caches.
    check_tree(&there.join("tree"))?;
    // A kernel lets nobody into a directory that it removed; somebody's shell may be in it all the while.
    let held = [File::open(&tree)?, File::open(there.join("tree"))?];
    rm(&tree)?;
    wait(SOON, || Ok(!there.join("tree").exists()))?;
    ensure!(listed(&cluster, &["/data"])? == ["/data/tree"]);
    ensure!(listed(&cluster, &["--all"])?.len() == 8);
    let inside = cluster.emberfs("trash", &["restore", "/data/tree/one"])?;
    inside.expect_refusal(&["restore /data/tree first", "--to"])?;
    let said = trash(&cluster, &["restore", "/data/tree"])?;
    ensure!(said.contains("/data/tree restored"), "{said}");
    wait(SOON, || Ok(there.join("tree").exists() && tree.exists()))?;
    check_tree(&there.join("tree"))?;
    check_tree(&tree)?;
    fs::write(tree.join("new"), "bytes")?;
    fs::remove_file(tree.join("new"))?;
    drop(held);
    trash(&cluster, &["empty", "/data/tree/new"])?;
    ensure!(listed(&cluster, &["--all"])?.is_empty());

    // 2. A tree, by one request.
    let removed = cluster.emberfs("rm", &["-r", "/data/tree"])?;
    let said = removed.expect_code(0)?.stdout;
    ensure!(said.contains("emberfs trash empty"), "{said}");
    wait(SOON, || Ok(!tree.exists()))?;
    ensure!(listed(&cluster, &["--all"])? == ["/data/tree"]);
    fs::create_dir(&tree)?;
    let taken = cluster.emberfs("trash", &["restore", "/data/tree"])?;
    taken.expect_refusal(&["/data/tree exists", "--to"])?;
    trash(&cluster, &["restore", "/data/tree/", "--to", "/data/again"])?;
    wait(SOON, || Ok(here.join("again").exists()))?;
    check_tree(&here.join("again"))?;

    // 3. A file that another one replaces, with and without something open.
    let file = here.join("file");
    for text in ["old", "newer", "newest"] {
        fs::write(here.join("temporary"), text)?;
        fs::rename(here.join("temporary"), &file)?;
    }
    ensure!(fs::read(&file)? == b"newest");
    ensure!(listed(&cluster, &["/data"])? == ["/data/file", "/data/file"]);
    trash(&cluster, &["restore", "/data/file", "--to", "/data/again"])?;
    wait(SOON, || Ok(here.join("again/file").exists()))?;
    ensure!(fs::read(here.join("again/file"))? == b"newer");

    // 4. All of it is sound to fsck; emptied, it is gone.
    rm(&here.join("again"))?;
    cluster.fsck()?.expect_code(0)?;
    let said = trash(&cluster, &["empty", "/data"])?;
    ensure!(said.contains("2 entries removed"), "{said}");
    ensure!(trash(&cluster, &["list", "--all"])?.contains("Nothing"));
    wait(Duration::from_secs(30), || {
        let fsck = cluster.fsck()?.expect_code(0)?.json()?;
        Ok(fsck["chunks"].as_u64() == Some(1))
    })
}

#[test]
fn what_nobody_wants_back_goes_when_its_time_is_over() -> Result<()> {
    let cluster = cluster()?;
    let mount = cluster.mount();
    make_tree(&mount.join("short/tree"))?;
    make_tree(&mount.join("long/tree"))?;
    trash(&cluster, &["on", "/short", "--keep", "2s"])?;
    trash(&cluster, &["on", "/long", "--keep", "1h"])?;
    rm(&mount.join("short/tree"))?;
    rm(&mount.join("long/tree"))?;
    ensure!(listed(&cluster, &["/short"])? == ["/short/tree"]);
    wait(Duration::from_secs(30), || {
        let fsck = cluster.fsck()?.expect_code(0)?.json()?;
        let gone = listed(&cluster, &["/short", "--all"])?.is_empty();
        Ok(gone && fsck["chunks"].as_u64() == Some(3))
    })?;
    let gone = cluster.emberfs("trash", &["restore", "/short/tree"])?;
    gone.expect_refusal(&["/short/tree", "emberfs trash list"])?;

    // What is kept outlives the server, and a change of mind.
    trash(&cluster, &["off", "/long"])?;
    cluster.kill9("meta-1")?;
    cluster.start_process("meta-1")?;
    trash(&cluster, &["restore", "/long/tree"])?;
    wait(SOON, || Ok(mount.join("long/tree").exists()))?;
    check_tree(&mount.join("long/tree"))?;
    rm(&mount.join("long/tree"))?;
    ensure!(listed(&cluster, &["--all"])?.is_empty());

    // Paths of the host are no paths of the cluster.
    let on_mount = mount.join("long").display().to_string();
    let refused = cluster.emberfs("trash", &["on", &on_mount, "--keep", "1d"])?;
    refused.expect_refusal(&[&on_mount, "is /long"])?;
    let refused = cluster.emberfs("trash", &["restore", "long/tree"])?;
    refused.expect_refusal(&["such as /long/tree"])?;
    cluster
        .emberfs("trash", &["on", "/long", "--keep", "1y"])?
        .expect_code(2)?;
    Ok(())
}
