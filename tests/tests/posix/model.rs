//! Random operations on a mount and on a local file system at the same time: after each of them both must have
//! answered the same and look the same.

use std::ffi::CStr;
use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, scale};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustix::fs::{CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;

/// Few names, so that operations meet.
const NAMES: &[&str] = &["a", "b", "c", "d", "e"];
/// Depth of the tree.
const DEPTH: usize = 3;
/// Files stay below this, bytes.
const LARGEST: u64 = 300_000;

/// What an operation answered, as far as it can be compared.
type Answer = std::result::Result<String, Errno>;

/// One operation; paths are relative.
#[derive(Clone, Debug)]
enum Op {
    Mkdir(PathBuf, u32),
    Rmdir(PathBuf),
    Create(PathBuf, u32, bool),
    Mknod(PathBuf, FileType),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, RenameFlags),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, String),
    Readlink(PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    Truncate(PathBuf, u64),
    Write(PathBuf, u64, usize, u8),
    Append(PathBuf, usize, u8),
    Allocate(PathBuf, FallocateFlags, u64, u64),
    Read(PathBuf),
    List(PathBuf),
    SetXattr(PathBuf, usize, XattrFlags),
    RemoveXattr(PathBuf, usize),
    GetXattr(PathBuf, usize),
}

const XATTRS: &[&CStr] = &[c"user.one", c"user.two", c"trusted.three"];

impl Op {
    fn random(rng: &mut StdRng) -> Self {
        let a = path(rng);
        match rng.random_range(0..26) {
            0..=2 => Self::Mkdir(a, mode(rng)),
            3 => Self::Rmdir(a),
            4..=6 => Self::Create(a, mode(rng), rng.random()),
            7 => {
                let kinds = [FileType::Fifo, FileType::Socket, FileType::RegularFile];
                Self::Mknod(a, *kinds.choose(rng).expect("three of them"))
            }
            8 => Self::Unlink(a),
            9..=11 => {
                let flags = [
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                ];
                Self::Rename(a, path(rng), *flags.choose(rng).expect("three of them"))
            }
            12 => Self::Link(a, path(rng)),
            13 => {
                let target = path(rng).display().to_string();
                Self::Symlink(a, target)
            }
            14 => Self::Readlink(a),
            15 => Self::Chmod(a, mode(rng)),
            16 => Self::Chown(a, rng.random_range(0..3), rng.random_range(0..3)),
            17 => Self::Truncate(a, rng.random_range(0..LARGEST)),
            18 | 19 => {
                let len = rng.random_range(0..20_000);
                Self::Write(a, rng.random_range(0..LARGEST - 20_000), len, rng.random())
            }
            20 => Self::Append(a, rng.random_range(0..5_000), rng.random()),
            21 => {
                let keep = FallocateFlags::KEEP_SIZE;
                let how = [
                    FallocateFlags::empty(),
                    keep,
                    FallocateFlags::PUNCH_HOLE | keep,
                    FallocateFlags::ZERO_RANGE,
                    FallocateFlags::ZERO_RANGE | keep,
                ];
                let how = *how.choose(rng).expect("five of them");
                let (offset, len) = (
                    rng.random_range(0..LARGEST / 2),
                    rng.random_range(0..LARGEST / 2),
                );
                Self::Allocate(a, how, offset, len)
            }
            22 => Self::Read(a),
            23 => Self::List(a),
            24 => {
                let flags = [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE];
                let flags = *flags.choose(rng).expect("three of them");
                Self::SetXattr(a, rng.random_range(0..XATTRS.len()), flags)
            }
            _ if rng.random() => Self::RemoveXattr(a, rng.random_range(0..XATTRS.len())),
            _ => Self::GetXattr(a, rng.random_range(0..XATTRS.len())),
        }
    }

    /// Carries it out below `root`.
    fn run(&self, root: &Path) -> Answer {
        let at = |path: &Path| root.join(path);
        let done = |()| String::new();
        match self {
            Self::Mkdir(path, mode) => {
                rustix::fs::mkdir(at(path), Mode::from_raw_mode(*mode)).map(done)
            }
            Self::Rmdir(path) => rustix::fs::rmdir(at(path)).map(done),
            Self::Create(path, mode, exclusive) => {
                let mut flags = OFlags::CREATE | OFlags::RDWR | OFlags::NONBLOCK;
                flags.set(OFlags::EXCL, *exclusive);
                rustix::fs::open(at(path), flags, Mode::from_raw_mode(*mode)).map(|_| String::new())
            }
            Self::Mknod(path, kind) => {
                rustix::fs::mknodat(CWD, at(path), *kind, Mode::RWXU, 0).map(done)
            }
            Self::Unlink(path) => rustix::fs::unlink(at(path)).map(done),
            Self::Rename(from, to, flags) => {
                let (from, to) = (at(from), at(to));
                let rename = || rustix::fs::renameat_with(CWD, &from, CWD, &to, *flags).map(done);
                rename().or_else(|error| {
                    // Another mount moved a directory a moment ago: a look finds it at its new place (docs/posix.md).
                    if error != Errno::STALE {
                        return Err(error);
                    }
                    let _ = (fs::symlink_metadata(&from), fs::symlink_metadata(&to));
                    rename()
                })
            }
            Self::Link(from, to) => rustix::fs::link(at(from), at(to)).map(done),
            Self::Symlink(path, target) => rustix::fs::symlink(target.as_str(), at(path)).map(done),
            Self::Readlink(path) => rustix::fs::readlink(at(path), Vec::new())
                .map(|target| target.to_string_lossy().into_owned()),
            Self::Chmod(path, mode) => {
                rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode)).map(done)
            }
            Self::Chown(path, uid, gid) => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                rustix::fs::chown(at(path), Some(uid), Some(gid)).map(done)
            }
            Self::Truncate(path, len) => {
                let file = rustix::fs::open(at(path), writing(), Mode::empty())?;
                rustix::fs::ftruncate(&file, *len).map(done)
            }
            Self::Write(path, offset, len, byte) => {
                let file = fs::File::from(rustix::fs::open(at(path), writing(), Mode::empty())?);
                let wrote = file.write_all_at(&vec![*byte; *len], *offset);
                wrote.map(done).map_err(errno)
            }
            Self::Append(path, len, byte) => {
                let flags = writing() | OFlags::APPEND;
                let file = rustix::fs::open(at(path), flags, Mode::empty())?;
                rustix::io::write(&file, &vec![*byte; *len]).map(|len| len.to_string())
            }
            Self::Allocate(path, how, offset, len) => {
                let file = rustix::fs::open(at(path), writing(), Mode::empty())?;
                rustix::fs::fallocate(&file, *how, *offset, *len).map(done)
            }
            Self::Read(path) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let file = fs::File::from(rustix::fs::open(at(path), flags, Mode::empty())?);
                if file.metadata().map_err(errno)?.is_file() {
                    contents(&file).map_err(errno)
                } else {
                    Ok("no file".to_owned())
                }
            }
            Self::List(path) => {
                let mut names = Vec::new();
                for entry in fs::read_dir(at(path)).map_err(errno)? {
                    names.push(entry.map_err(errno)?.file_name());
                }
                names.sort();
                Ok(format!("{names:?}"))
            }
            Self::SetXattr(path, name, flags) => {
                let value = name.to_string().repeat(100);
                rustix::fs::setxattr(at(path), XATTRS[*name], value.as_bytes(), *flags).map(done)
            }
            Self::RemoveXattr(path, name) => {
                rustix::fs::removexattr(at(path), XATTRS[*name]).map(done)
            }
            Self::GetXattr(path, name) => {
                let mut value = [0_u8; 1000];
                let len = rustix::fs::getxattr(at(path), XATTRS[*name], &mut value)?;
                Ok(String::from_utf8_lossy(&value[..len]).into_owned())
            }
        }
    }
}

fn writing() -> OFlags {
    // Nobody reads a fifo here: an open must not wait.
    OFlags::WRONLY | OFlags::NONBLOCK
}

fn errno(error: impl std::borrow::Borrow<std::io::Error>) -> Errno {
    Errno::from_io_error(error.borrow()).unwrap_or(Errno::IO)
}

fn path(rng: &mut StdRng) -> PathBuf {
    let depth = rng.random_range(1..=DEPTH);
    (0..depth)
        .map(|_| *NAMES.choose(rng).expect("there are names"))
        .collect()
}

fn mode(rng: &mut StdRng) -> u32 {
    rng.random_range(0..0o10000)
}

/// Length and a digest of the bytes.
fn contents(file: &fs::File) -> std::io::Result<String> {
    let mut data = vec![0; LARGEST as usize * 2];
    let mut len = 0;
    loop {
        match file.read_at(&mut data[len..], len as u64)? {
            0 => break,
            more => len += more,
        }
    }
    let digest = data[..len].iter().fold(17_u64, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    Ok(format!("{len} bytes, digest {digest:x}"))
}

/// Everything that `stat` says and that two file systems agree on, of every name below `root`.
fn picture(root: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            let attributes = fs::symlink_metadata(&path)?;
            let name = path
                .strip_prefix(root)?
                .as_os_str()
                .as_bytes()
                .escape_ascii()
                .to_string();
            let mut line = format!(
                "{name}: mode {:o}, links {}, owner {}:{}",
                attributes.mode(),
                attributes.nlink(),
                attributes.uid(),
                attributes.gid()
            );
            if attributes.is_file() {
                let read = fs::File::open(&path).and_then(|file| contents(&file));
                write!(line, ", {} long, {read:?}", attributes.len())?;
            }
            lines.push(line);
            if attributes.is_dir() {
                left.push(path);
            }
        }
    }
    lines.sort();
    Ok(lines)
}

/// Runs operations on the mounts in turn, and on a local file system.
fn compare(mounts: &[PathBuf], seed: u64, operations: usize) -> Result<()> {
    let local = tempfile::tempdir()?;
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0..operations {
        let op = Op::random(&mut rng);
        let mount = &mounts[number % mounts.len()];
        let (here, there) = (op.run(local.path()), op.run(mount));
        ensure!(
            here == there,
            "seed {seed}, operation {number}, {op:?}: local {here:?}, mount {there:?}"
        );
        if number % 100 == 99 || number + 1 == operations {
            let wanted = picture(local.path())?;
            for mount in mounts {
                let seen = picture(mount)?;
                let differs = wanted.iter().zip(&seen).find(|(a, b)| a != b);
                ensure!(
                    wanted == seen,
                    "seed {seed}, after operation {number}: {} and {} names, first difference {differs:?}",
                    wanted.len(),
                    seen.len()
                );
            }
        }
    }
    Ok(())
}

/// Operations per seed: `EMBERFS_OPERATIONS`.
fn operations() -> usize {
    scale("EMBERFS_OPERATIONS", 3000) as usize
}

/// `EMBERFS_SEED` runs one seed only.
fn seeds(count: u64) -> Vec<u64> {
    let chosen = std::env::var("EMBERFS_SEED").ok();
    chosen
        .and_then(|seed| seed.parse().ok())
        .map_or_else(|| (1..=count).collect(), |seed| vec![seed])
}

#[test]
fn random_operations_give_what_a_local_file_system_gives() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    rustix::process::umask(Mode::empty());
    for seed in seeds(2) {
        let dir = cluster.mount().join(format!("seed-{seed}"));
        fs::create_dir(&dir)?;
        compare(&[dir], seed, operations())?;
    }
    Ok(())
}

#[test]
fn two_mounts_give_what_a_local_file_system_gives() -> Result<()> {
    let options = ClusterOptions {
        mount_options: "attr_timeout=0,entry_timeout=0".to_owned(),
        ..ClusterOptions::new(1, 1)
    };
    let cluster = TestCluster::with(options)?;
    rustix::process::umask(Mode::empty());
    let second = cluster.mount_again("attr_timeout=0,entry_timeout=0")?;
    for seed in seeds(1) {
        let name = format!("seed-{seed}");
        fs::create_dir(cluster.mount().join(&name))?;
        let mounts = [cluster.mount().join(&name), second.path().join(&name)];
        compare(&mounts, seed, operations())?;
    }
    Ok(())
}
