//! What goes wrong at the mount: places that cannot be mounted on are named in one line, and programs
//! get the error number that POSIX has for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_client::{Client, ClientConfig, Creds};
use emberfs_proto::ErrorCode;
use emberfs_proto::layout::Layout;
use emberfs_tests::{
    ClusterOptions, Outcome, TestCluster, drop_cache, emberfs_binary, pattern, run, wait,
};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

const MIB: usize = 1 << 20;

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

    fn place(&self, name: &str) -> std::path::PathBuf {
        self.temp.path().join(name)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
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
    wait(Duration::from_secs(10), || {
        Ok(!emberfs_tests::is_alive(*pid))
    })?;
    let dead = fs::metadata(&place).err().context("a dead mount answers")?;
    ensure!(dead.raw_os_error() == Some(libc::ENOTCONN), "{dead}");
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

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_name_over_255_bytes_is_too_long_for_every_call() -> Result<()> {
    let cluster = TestCluster::with(small())?;
    let root = cluster.mount();
    // 255 bytes in fewer characters: it is bytes that count.
    let longest = format!("{}x", "é".repeat(127));
    fs::write(root.join(&longest), b"text")?;
    let long = root.join(format!("{longest}x"));
    let source = root.join(&longest);
    for (call, found) in [
        ("create", errno(File::create(&long))),
        ("open", errno(File::open(&long))),
        ("stat", errno(fs::metadata(&long))),
        ("mkdir", errno(fs::create_dir(&long))),
        ("rename", errno(fs::rename(&source, &long))),
        ("link", errno(fs::hard_link(&source, &long))),
        ("symlink", errno(std::os::unix::fs::symlink("x", &long))),
        ("unlink", errno(fs::remove_file(&long))),
    ] {
        ensure!(found == Some(libc::ENAMETOOLONG), "{call}: {found:?}");
    }
    ensure!(fs::read(&source)? == b"text" && fs::read_dir(&root)?.count() == 1);

    let config = ClientConfig {
        meta: cluster.address()?,
        ..ClientConfig::default()
    };
    let name = vec![b'x'; 256];
    let error = tokio::runtime::Runtime::new()?.block_on(async {
        let client = Client::connect(config).await?;
        let made = client
            .mkdir(&Creds::default(), client.root(), &name, 0o755)
            .await;
        client.shutdown().await;
        Ok::<_, emberfs_proto::Error>(made.err())
    })?;
    let error = error.context("made")?;
    ensure!(
        error.code == ErrorCode::NameTooLong && error.message.contains("255"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_file_ends_at_the_maximum_size_and_what_was_in_it_stays() -> Result<()> {
    let mut options = small();
    options.settings.push("meta.chunk_size=65536".to_owned());
    let cluster = TestCluster::with(options)?;
    let layout = Layout {
        chunk_size: 65536,
        ..Layout::default()
    };
    let max = layout.max_file_size();
    let path = cluster.mount().join("file");
    let data = pattern(100_000, 5);
    fs::write(&path, &data)?;
    let file = File::options().read(true).write(true).open(&path)?;
    for offset in [max, max - 1, i64::MAX as u64 - 10, max + 1] {
        let found = errno(file.write_all_at(b"ab", offset));
        ensure!(found == Some(libc::EFBIG), "pwrite at {offset}: {found:?}");
    }
    for length in [max + 1, i64::MAX as u64] {
        let found = errno(file.set_len(length));
        ensure!(
            found == Some(libc::EFBIG),
            "ftruncate to {length}: {found:?}"
        );
    }
    file.sync_all()?;
    drop_cache(&file)?;
    ensure!(file.metadata()?.len() == data.len() as u64 && fs::read(&path)? == data);
    // The limit itself is allowed.
    file.set_len(max)?;
    file.write_all_at(b"z", max - 1)?;
    file.sync_all()?;
    drop_cache(&file)?;
    let mut last = [0; 2];
    ensure!(
        file.read_at(&mut last, max - 2)? == 2 && &last == b"\0z",
        "{last:?}"
    );
    file.set_len(data.len() as u64)?;
    ensure!(fs::read(&path)? == data, "read other bytes than written");
    Ok(())
}

#[test]
fn a_full_disk_is_told_to_the_writer_harms_nothing_else_and_deleting_makes_room() -> Result<()> {
    let cluster = TestCluster::with(ClusterOptions {
        nodes: 2,
        replicas: 2,
        settings: [
            "storage.durability=process",
            "storage.capacity_bytes=64000000",
            "meta.chunk_size=1048576",
            // Nothing is collected for one client lease after a start.
            "meta.client_lease_ms=1000",
            "meta.gc_interval_ms=100",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..small()
    })?;
    let pids = cluster.pids();
    let kept = pattern(8 * MIB + 77, 6);
    let root = cluster.mount();
    fs::write(root.join("kept"), &kept)?;
    File::open(root.join("kept"))?.sync_all()?;

    let filler = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(root.join("filler"))?;
    let mut synced = 0;
    let failure = loop {
        ensure!(synced < 100, "100 MiB fit into 64 MB");
        let block = pattern(MIB, 1000 + synced);
        let written = filler
            .write_all_at(&block, synced * MIB as u64)
            .and_then(|()| filler.sync_all());
        match written {
            Ok(()) => synced += 1,
            Err(error) => break error,
        }
    };
    ensure!(failure.raw_os_error() == Some(libc::ENOSPC), "{failure}");
    ensure!(synced > 20, "full after {synced} MiB");
    // Without fsync, the loss is told at the latest by close.
    let late = File::create(root.join("late"))?;
    let told = late
        .write_all_at(&pattern(4 * MIB, 7), 0)
        .map_err(|error| error.raw_os_error())
        .and_then(|()| close(late).map_err(|errno| Some(errno.raw_os_error())));
    ensure!(told == Err(Some(libc::ENOSPC)), "{told:?}");

    // Everything that was acknowledged is there, and everyone is alive and agrees.
    let file = File::open(root.join("kept"))?;
    drop_cache(&file)?;
    ensure!(
        fs::read(root.join("kept"))? == kept,
        "a full disk harmed another file"
    );
    drop_cache(&filler)?;
    let mut buffer = vec![0; MIB];
    for block in 0..synced {
        filler.read_exact_at(&mut buffer, block * MIB as u64)?;
        ensure!(
            buffer == pattern(MIB, 1000 + block),
            "block {block} is wrong"
        );
    }
    fs::create_dir(root.join("names-still-fit"))?;
    ensure!(cluster.pids() == pids, "something died");
    let nearly_full = cluster.emberfs("status", &[])?;
    ensure!(nearly_full.code < 2, "{}", nearly_full.stdout);
    cluster.fsck()?.expect_code(0)?;

    drop(filler);
    fs::remove_file(root.join("filler"))?;
    fs::remove_file(root.join("late"))?;
    let again = pattern(16 * MIB, 8);
    wait(Duration::from_secs(20), || {
        let path = root.join("again");
        let file = File::create(&path)?;
        match file.write_all_at(&again, 0).and_then(|()| file.sync_all()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .context("deleting makes no room")?;
    let file = File::open(root.join("again"))?;
    drop_cache(&file)?;
    ensure!(fs::read(root.join("again"))? == again && fs::read(root.join("kept"))? == kept);
    cluster.wait_status(0, Duration::from_secs(10))?;
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

/// Closes and says what close(2) answered, which dropping a file does not.
fn close(file: File) -> Result<(), Errno> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was just released by its only owner and is used no more.
    unsafe { rustix::io::try_close(file.into_raw_fd()) }
}
