//! Places that cannot be mounted on, and hosts that cannot mount: each is named in one line with what
//! to do next, and a live mount is never taken away.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, Outcome, TestCluster, emberfs_binary, is_alive, run, wait};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

fn small() -> ClusterOptions {
    ClusterOptions {
        settings: vec!["storage.durability=process".to_owned()],
        ..ClusterOptions::new(1, 1)
    }
}

/// `emberfs mount` and `umount` with a place of their own for pid files and logs.
struct Mounter {
    temp: tempfile::TempDir,
    address: String,
}

impl Mounter {
    fn new(cluster: &TestCluster) -> Result<Self> {
        Ok(Self {
            temp: tempfile::tempdir()?,
            address: cluster.address()?,
        })
    }

    fn place(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("EMBERFS_STATE_DIR", self.temp.path().join("state"));
        command
    }

    fn mount(&self, place: &Path) -> Result<Outcome> {
        let mut command = self.command(emberfs_binary()?);
        run(command.args(["mount", &self.address]).arg(place))
    }

    fn umount(&self, place: &Path) -> Result<Outcome> {
        run(self.command(emberfs_binary()?).arg("umount").arg(place))
    }

    /// Processes of mounts that have not ended.
    fn pids(&self) -> Result<Vec<Pid>> {
        let Ok(entries) = fs::read_dir(self.temp.path().join("state")) else {
            return Ok(Vec::new());
        };
        let mut pids = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension() == Some("pid".as_ref()) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                pids.extend(text.trim().parse().ok().and_then(Pid::from_raw));
            }
        }
        Ok(pids)
    }
}

impl Drop for Mounter {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        while rustix::mount::unmount(self.place("place"), flags).is_ok() {}
    }
}

#[test]
fn a_place_that_cannot_be_mounted_on_is_named_and_left_as_it_is() -> Result<()> {
    let cluster = TestCluster::with(small())?;
    let other = TestCluster::with(ClusterOptions {
        mount: false,
        ..small()
    })?;
    fs::write(cluster.mount().join("kept"), b"text")?;
    let mounter = Mounter::new(&other)?;
    let refused = |place: &Path, needles: &[&str]| -> Result<()> {
        let shown = place.display().to_string();
        let needles = [&[shown.as_str()], needles].concat();
        mounter.mount(place)?.expect_refusal(&needles)?;
        Ok(())
    };
    let missing = mounter.place("missing");
    refused(&missing, &["does not exist", "mkdir -p"])?;
    ensure!(!missing.exists());
    let file = mounter.place("file");
    fs::write(&file, b"text")?;
    refused(&file, &["is not a directory"])?;
    refused(&file.join("below"), &["not a directory"])?;
    // A live mount of another cluster, by hand and by `up`.
    let taken = cluster.mount();
    let shown = taken.display().to_string();
    refused(
        &taken,
        &["already a mount", &cluster.address()?, "unmount it first"],
    )?;
    let up = |place: &Path| other.emberfs("up", &["--mount", &place.display().to_string()]);
    up(&taken)?.expect_refusal(&[&shown, &cluster.address()?, "unmount it"])?;
    ensure!(
        fs::read(taken.join("kept"))? == b"text" && cluster.is_mounted()?,
        "the live mount was taken away"
    );
    // Stopping the cluster that wanted it does not take it either.
    other.down()?;
    ensure!(
        fs::read(taken.join("kept"))? == b"text",
        "`down` took the live mount away"
    );
    up(&file)?.expect_refusal(&["not a directory", "another place"])?;
    let full = mounter.place("full");
    fs::create_dir(&full)?;
    fs::write(full.join("x"), b"x")?;
    up(&full)?.expect_refusal(&["not empty", "another place"])?;
    ensure!(fs::read(full.join("x"))? == b"x" && fs::read(&file)? == b"text");
    Ok(())
}

#[test]
fn a_mount_in_use_stays_and_a_dead_one_is_cleared() -> Result<()> {
    let cluster = TestCluster::with(small())?;
    fs::write(cluster.mount().join("kept"), b"text")?;
    let mounter = Mounter::new(&cluster)?;
    let place = mounter.place("place");
    fs::create_dir(&place)?;
    mounter.mount(&place)?.expect_code(0)?;
    mounter
        .mount(&place)?
        .expect_refusal(&["mounted already"])?;
    let held = File::open(place.join("kept"))?;
    mounter
        .umount(&place)?
        .expect_refusal(&["in use", "fuser"])?;
    ensure!(fs::read(place.join("kept"))? == b"text");
    drop(held);

    let pids = mounter.pids()?;
    let [pid] = pids.as_slice() else {
        anyhow::bail!("processes {pids:?}");
    };
    rustix::process::kill_process(*pid, Signal::KILL)?;
    wait(Duration::from_secs(10), || Ok(!is_alive(*pid)))?;
    // Attributes may be answered from the kernel's memory for minutes; nothing can be opened.
    let dead = |error: io::Error| error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error());
    wait(Duration::from_secs(10), || {
        Ok(File::open(place.join("kept")).is_err_and(dead))
    })
    .context("a dead mount answers")?;
    mounter.mount(&place)?.expect_code(0)?;
    ensure!(fs::read(place.join("kept"))? == b"text");
    mounter.umount(&place)?.expect_code(0)?;
    ensure!(
        fs::read_dir(&place)?.count() == 0,
        "the dead mount is still below"
    );
    mounter.umount(&place)?.expect_refusal(&["not mounted"])?;
    wait(Duration::from_secs(10), || Ok(mounter.pids()?.is_empty()))
}

/// In a mount namespace of its own, whose /dev holds nothing but /dev/null and /dev/urandom.
#[test]
fn without_the_fuse_device_the_ways_to_get_it_are_named() -> Result<()> {
    let cluster = TestCluster::with(small())?;
    let mounter = Mounter::new(&cluster)?;
    let place = mounter.place("place");
    fs::create_dir(&place)?;
    let script = "set -e; mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; \
                  mknod -m 666 /dev/urandom c 1 9; exec \"$@\"";
    let mut command = mounter.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command
        .arg(emberfs_binary()?)
        .args(["mount", &mounter.address]);
    run(command.arg(&place))?.expect_refusal(&["/dev/fuse", "modprobe fuse", "--device"])?;
    let mut mount = Mounter::new(&cluster)?;
    mount.address = "no-port".to_owned();
    fs::create_dir(mount.place("place"))?;
    mount
        .mount(&mount.place("place"))?
        .expect_refusal(&["no-port"])?;
    Ok(())
}
