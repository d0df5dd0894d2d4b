//! What POSIX and Linux promise, call by call and errno by errno, on a real mount.
//!
//! Each test brings up one cluster and checks a table of calls on it; every line that fails is named. They run as root, which
//! a mount for several users needs anyway, and take other users' places on threads of their own.

mod attributes;
mod coherence;
mod data;
mod locks;
mod model;
mod names;
mod quotas;
mod removed;
mod xattrs;

use std::path::{Path, PathBuf};

use anyhow::Result;
use emberfs_tests::{Checks, TestCluster};
use rustix::fs::{Mode, OFlags};

/// Runs a table in a directory of its own that everybody may write.
fn on_a_mount(table: impl FnOnce(&Path, &mut Checks)) -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    // Modes are given in full by each call.
    rustix::process::umask(Mode::empty());
    let dir = cluster.mount().join("posix");
    rustix::fs::mkdir(&dir, Mode::from_raw_mode(0o777))?;
    let mut checks = Checks::default();
    table(&dir, &mut checks);
    checks.finish()
}

/// Makes a file with this mode and these bytes.
fn make(path: &Path, mode: u32, data: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(mode))?;
    let mut rest = data;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    Ok(())
}

/// Makes a directory with this mode.
fn make_dir(path: &Path, mode: u32) -> PathBuf {
    rustix::fs::mkdir(path, Mode::from_raw_mode(mode)).expect("a new directory");
    path.to_owned()
}
