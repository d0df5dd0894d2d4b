//! EDQUOT: call by call, and by two mounts that write into one quota.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use emberfs_tests::{ALICE, Checks, TestCluster, as_user, pattern, wait};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, chown,
    copy_file_range, fallocate, ftruncate, linkat, mkdir, mknodat, open, rename, renameat_with,
    symlink,
};
use rustix::io::{Errno, pwrite};

use super::{make, make_dir};

const MIB: usize = 1 << 20;

fn file(path: &Path) -> File {
    File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)
        .expect("a new file")
}

/// truncate(2).
fn cut(path: &Path, len: u64) -> rustix::io::Result<()> {
    ftruncate(open(path, OFlags::WRONLY, Mode::empty())?, len)
}

fn set(cluster: &TestCluster, arguments: &[&str]) -> Result<()> {
    let arguments = [&["set"], arguments].concat();
    cluster.emberfs("quota", &arguments)?.expect_code(0)?;
    Ok(())
}

/// Bytes used of the quota of a path.
fn used(cluster: &TestCluster, path: &str) -> Result<u64> {
    let shown = cluster.emberfs("quota", &["show", path, "--json"])?;
    let shown = shown.expect_code(0)?.json()?;
    Ok(shown["bytes_used"].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn calls_that_do_not_fit_fail_and_what_fits_stays() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    rustix::process::umask(Mode::empty());
    let mut checks = Checks::default();
    bytes(&cluster, &mut checks)?;
    inodes(&cluster, &mut checks)?;
    owners(&cluster, &mut checks)?;
    checks.finish()
}

fn bytes(cluster: &TestCluster, checks: &mut Checks) -> Result<()> {
    let dir = make_dir(&cluster.mount().join("bytes"), 0o777);
    set(cluster, &["/bytes", "--bytes", "3M"])?;
    let data = pattern(3 * MIB, 1);
    let path = dir.join("full");
    let full = file(&path);
    for piece in 0..3 {
        let at = piece * MIB;
        full.write_all_at(&data[at..at + MIB], at as u64)?;
    }
    let end = 3 * MIB as u64;
    checks.fails("a byte too much", pwrite(&full, b"x", end), Errno::DQUOT);
    checks.fails("a growth", ftruncate(&full, end + 1), Errno::DQUOT);
    let space = fallocate(&full, FallocateFlags::empty(), 0, end + 1);
    checks.fails("space", space, Errno::DQUOT);
    let mut append = File::options().append(true).open(&path)?;
    let appended = append.write(b"x").map_err(|e| e.raw_os_error());
    checks.equal(
        "an append",
        appended,
        Err(Some(Errno::DQUOT.raw_os_error())),
    );
    let source = file(&cluster.mount().join("source"));
    source.write_all_at(b"source", 0)?;
    let mut to = end;
    let copied = copy_file_range(&source, None, &full, Some(&mut to), 6);
    checks.fails("a copy", copied, Errno::DQUOT);
    let other = file(&dir.join("other"));
    checks.fails("another file", pwrite(&other, b"x", 0), Errno::DQUOT);
    checks.works("what was there", pwrite(&full, b"x", 0));
    checks.works("fsync", rustix::fs::fsync(&full));
    drop(full);
    let mut wanted = data.clone();
    wanted[0] = b'x';
    checks.holds("nothing is lost", fs::read(&path)? == wanted);
    checks.equal("used", used(cluster, "/bytes/full")?, end);

    // Room comes back, through the same descriptors.
    checks.works("cut", cut(&path, MIB as u64));
    checks.works("write", pwrite(&other, &data[..MIB], 0));
    checks.works("append", append.write(b"x").map_err(|_| Errno::IO));
    drop((append, other));
    let out = cluster.mount().join("bytes-out");
    checks.works("out of it", rename(&path, &out));
    // What writers were granted comes back when the kernel lets go of their files, a moment after their close.
    let given_back = wait(Duration::from_secs(5), || {
        Ok(used(cluster, "/bytes")? == MIB as u64)
    });
    checks.holds("used", given_back.is_ok());
    checks.works("into it", rename(&out, &path));
    let big = cluster.mount().join("big");
    make(&big, 0o666, &data)?;
    let into = rename(&big, dir.join("big"));
    checks.fails("too big to come in", into, Errno::DQUOT);
    // Raised, it fits.
    set(cluster, &["/bytes", "--bytes", "1G"])?;
    checks.works("with more room", rename(&big, dir.join("big")));
    Ok(())
}

fn inodes(cluster: &TestCluster, checks: &mut Checks) -> Result<()> {
    let dir = make_dir(&cluster.mount().join("inodes"), 0o777);
    // The directory itself, and three.
    set(cluster, &["/inodes", "--inodes", "4"])?;
    make_dir(&dir.join("sub"), 0o777);
    make(&dir.join("sub/a"), 0o666, b"a")?;
    make(&dir.join("b"), 0o666, b"b")?;
    let new = dir.join("new");
    let create = OFlags::CREATE | OFlags::WRONLY;
    checks.fails("open", open(&new, create, Mode::RWXU), Errno::DQUOT);
    checks.fails("mkdir", mkdir(&new, Mode::RWXU), Errno::DQUOT);
    checks.fails("symlink", symlink("to", &new), Errno::DQUOT);
    let fifo = mknodat(CWD, &new, FileType::Fifo, Mode::RWXU, 0);
    checks.fails("mknod", fifo, Errno::DQUOT);
    let unnamed = open(&dir, OFlags::TMPFILE | OFlags::RDWR, Mode::RWXU);
    checks.fails("O_TMPFILE", unnamed, Errno::DQUOT);
    let link = |from: &Path, to: &Path| linkat(CWD, from, CWD, to, AtFlags::empty());
    checks.works("a further name", link(&dir.join("b"), &dir.join("sub/b")));
    let outside = cluster.mount().join("outside");
    make(&outside, 0o666, b"")?;
    checks.fails("come in", rename(&outside, &new), Errno::DQUOT);
    // Borders.
    let across = link(&outside, &new);
    checks.fails("a name across", across, Errno::XDEV);
    let sub = cluster.mount().join("moved-sub");
    let moved = rename(dir.join("sub"), &sub);
    checks.fails("a directory that is not empty", moved, Errno::XDEV);
    let full = make_dir(&cluster.mount().join("full"), 0o777);
    make(&full.join("x"), 0o666, b"")?;
    let exchanged = renameat_with(CWD, &full, CWD, dir.join("sub"), RenameFlags::EXCHANGE);
    checks.fails("an exchange", exchanged, Errno::XDEV);
    fs::remove_file(dir.join("sub/b"))?;
    let exchanged = renameat_with(CWD, &outside, CWD, dir.join("b"), RenameFlags::EXCHANGE);
    checks.works("an exchange of files", exchanged);
    // mv copies what may not cross.
    fs::remove_file(dir.join("b"))?;
    let mv = Command::new("mv").arg(dir.join("sub")).arg(&sub).status()?;
    checks.holds("mv", mv.success() && sub.join("a").exists());
    Ok(())
}

fn owners(cluster: &TestCluster, checks: &mut Checks) -> Result<()> {
    let dir = make_dir(&cluster.mount().join("owners"), 0o777);
    let (uid, gid) = (ALICE.uid.to_string(), ALICE.gid.to_string());
    set(cluster, &["--user", &uid, "--bytes", "1M"])?;
    set(cluster, &["--group", &gid, "--bytes", "2M"])?;
    let data = pattern(MIB, 2);
    let refused = as_user(ALICE, || {
        let f = file(&dir.join("hers"));
        f.write_all_at(&data, 0).expect("it fits");
        pwrite(&f, b"x", MIB as u64)
    });
    checks.fails("her own", refused, Errno::DQUOT);
    make(&dir.join("given"), 0o666, b"x")?;
    let to = |uid: Option<u32>, gid: Option<u32>| {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        chown(dir.join("given"), uid, gid)
    };
    checks.fails("a present", to(Some(ALICE.uid), None), Errno::DQUOT);
    checks.equal("whose", fs::metadata(dir.join("given"))?.uid(), 0);
    checks.works("for her group", to(None, Some(ALICE.gid)));
    let made = as_user(ALICE, || mkdir(dir.join("sub"), Mode::RWXU));
    checks.works("inodes are not limited", made);
    cluster
        .emberfs("quota", &["clear", "--user", &uid])?
        .expect_code(0)?;
    checks.works("a present, now", to(Some(ALICE.uid), None));
    Ok(())
}

/// Writes files in small pieces until nothing fits; how many bytes were taken.
fn fill(dir: &Path, who: usize) -> Result<u64> {
    const PIECE: usize = 4096;
    let data = pattern(PIECE, who as u64);
    let mut total = 0;
    for number in 0.. {
        let path = dir.join(format!("{who}-{number}"));
        let f = file(&path);
        let mut len = 0;
        let refused = loop {
            match pwrite(&f, &data, len) {
                Ok(written) => len += written as u64,
                Err(errno) => break Some(errno),
            }
            if len >= 300 * PIECE as u64 {
                break None;
            }
        };
        rustix::fs::fsync(&f)?;
        drop(f);
        ensure!(
            fs::metadata(&path)?.len() == len,
            "{}: {len}",
            path.display()
        );
        total += len;
        match refused {
            None => {}
            Some(Errno::DQUOT) => return Ok(total),
            Some(errno) => anyhow::bail!("{errno:?}, not EDQUOT"),
        }
    }
    Ok(total)
}

#[test]
fn two_mounts_fill_one_quota_and_never_exceed_it() -> Result<()> {
    const LIMIT: u64 = 20 << 20;
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let dir = make_dir(&cluster.mount().join("shared"), 0o777);
    set(&cluster, &["/shared", "--bytes", "20M"])?;
    let totals = thread::scope(|scope| {
        let dirs = [
            dir.clone(),
            dir.clone(),
            second.path().join("shared"),
            second.path().join("shared"),
        ];
        let writers: Vec<_> = dirs
            .into_iter()
            .enumerate()
            .map(|(who, dir)| scope.spawn(move || fill(&dir, who)))
            .collect();
        let joined = writers.into_iter().map(|w| w.join().expect("no panic"));
        joined.collect::<Result<Vec<_>>>()
    })?;
    let written: u64 = totals.iter().sum();
    ensure!(written <= LIMIT, "{written} of {LIMIT}: {totals:?}");
    wait(Duration::from_secs(10), || {
        Ok(used(&cluster, "/shared")? == written)
    })?;
    // What open files had ahead of them is there for whoever writes now.
    let last = fill(&dir, 9)?;
    ensure!(written + last == LIMIT, "{written} + {last} of {LIMIT}");

    // The servers remember.
    cluster.kill9("meta-1")?;
    cluster.start_process("meta-1")?.expect_code(0)?;
    let f = file(&dir.join("after"));
    ensure!(
        pwrite(&f, b"x", 0) == Err(Errno::DQUOT),
        "full after a restart"
    );
    drop(f);
    fs::remove_file(dir.join("9-0"))?;
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}
