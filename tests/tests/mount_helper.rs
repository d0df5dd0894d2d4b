//! Mounts beside the one that `up` makes: by hand, and as mount(8) does from /etc/fstab.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, emberfs_binary, wait};

#[test]
fn the_mount_helper_mounts_a_subdirectory_read_only_and_umount_takes_it_away() -> Result<()> {
    let options = ClusterOptions {
        settings: fast(),
        ..ClusterOptions::new(1, 1)
    };
    let cluster = TestCluster::with(options)?;
    fs::create_dir(cluster.mount().join("sub"))?;
    fs::write(cluster.mount().join("sub/file"), b"text")?;

    let temp = tempfile::tempdir()?;
    let helper = temp.path().join("mount.emberfs");
    symlink(emberfs_binary()?, &helper)?;
    let place = temp.path().join("second");
    fs::create_dir(&place)?;
    let address = cluster.address()?;
    let state = temp.path().join("state");
    let mounted = Command::new(&helper)
        .env("EMBERFS_STATE_DIR", &state)
        .arg(&address)
        .arg(&place)
        .args(["-n", "-o", "ro,_netdev,subdir=sub"])
        .status()?;
    ensure!(mounted.success(), "the helper failed");
    ensure!(fs::read(place.join("file"))? == b"text");
    ensure!(
        fs::write(place.join("other"), b"x").is_err(),
        "wrote through a read-only mount"
    );
    let table = fs::read_to_string("/proc/mounts")?;
    let line = format!("{address} {} fuse.emberfs ro", place.display());
    ensure!(table.contains(&line), "{table}");
    let pid_files = || -> Result<usize> {
        let entries = fs::read_dir(&state)?.filter_map(Result::ok);
        Ok(entries
            .filter(|entry| entry.path().extension() == Some("pid".as_ref()))
            .count())
    };
    ensure!(pid_files()? == 1, "the mount's process is not to be found");

    let unmounted = Command::new(emberfs_binary()?)
        .arg("umount")
        .arg(&place)
        .status()?;
    ensure!(unmounted.success(), "umount failed");
    ensure!(fs::read_dir(&place)?.count() == 0, "still mounted");
    // Its process flushes and goes.
    wait(Duration::from_secs(10), || Ok(pid_files()? == 0))
}

fn fast() -> Vec<String> {
    vec!["storage.durability=process".to_owned()]
}
