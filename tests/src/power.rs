//! A file system of its own whose power can be cut.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::ioctl::{Setter, ioctl, opcode};
use tempfile::TempDir;

use crate::cluster::wait;
use crate::command::run;

/// `EXT4_IOC_SHUTDOWN` of the kernel's `include/uapi/linux/ext4.h`.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
/// Its argument: without writing the journal first.
const NO_LOG_FLUSH: u32 = 2;
/// How long the processes that had files there may take to be gone.
const BUSY: Duration = Duration::from_secs(10);

/// An ext4 on a loop device, mounted; dropping it takes it away.
///
/// A cut of its power loses what was written to files and not flushed, names included: the kernel's memory of it is dropped and its journal
/// ends where it is. What a device had in a cache of its own is not lost: loop devices have none.
///
/// Needs root and loop devices, and fails without.
#[derive(Debug)]
pub struct PowerDisk {
    temp: TempDir,
}

impl PowerDisk {
    /// An empty one of so many MiB.
    pub fn new(mib: u64) -> Result<Self> {
        let temp = tempfile::Builder::new()
            .prefix("emberfs-power-")
            .tempdir()?;
        let disk = Self { temp };
        File::create(disk.image())?.set_len(mib << 20)?;
        fs::create_dir(disk.path())?;
        let mut make = Command::new("mkfs.ext4");
        run(make.args(["-q", "-m", "0"]).arg(disk.image()))?.expect_code(0)?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.temp.path().join("disk")
    }

    fn image(&self) -> PathBuf {
        self.temp.path().join("image")
    }

    fn mount(&self) -> Result<()> {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).args([self.image(), self.path()]);
        run(&mut mount)?.expect_code(0).map(drop)
    }

    /// From now on nothing is stored, and every call says EIO.
    pub fn cut(&self) -> Result<()> {
        let dir = File::open(self.path())?;
        // SAFETY: the kernel reads one 32-bit number through the pointer that this type passes.
        unsafe { ioctl(dir, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
            .context("the file system cannot be shut down")
    }

    /// Power is back: what was stored is found again. Nobody may have files of it open any more.
    pub fn restore(&self) -> Result<()> {
        unmount(&self.path())?;
        self.mount()
    }
}

fn unmount(path: &Path) -> Result<()> {
    let unmounted = || Ok(run(Command::new("umount").arg(path))?.code == 0);
    wait(BUSY, unmounted).with_context(|| format!("{} is busy", path.display()))
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path()) {
            eprintln!("{error:#}");
        }
    }
}
