//! Bytes: sizes, holes, appends, mappings, copies, files without names.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use emberfs_tests::{Checks, TestCluster, drop_cache, pattern};
use rustix::fs::SeekFrom::{Data, Hole};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, copy_file_range, fallocate, ftruncate, linkat, open,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use super::on_a_mount;

/// Size of a chunk, and so of what a hole may be as small as.
const CHUNK: u64 = 4 << 20;

fn file(path: &Path) -> File {
    File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)
        .expect("a new file")
}

fn contents(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).expect("opened");
    drop_cache(&file).expect("dropped");
    let mut data = Vec::new();
    file.read_to_end(&mut data).expect("read");
    data
}

#[test]
fn sizes_holes_and_space() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("file");
        let f = file(&path);
        let len = |f: &File| f.metadata().map_or(0, |m| m.len());
        checks.works("grow", ftruncate(&f, 10));
        checks.equal("zeros", contents(&path), vec![0; 10]);
        f.write_all_at(b"0123456789", 0).expect("written");
        checks.works("shrink", ftruncate(&f, 4));
        checks.works("grow again", ftruncate(&f, 8));
        checks.equal(
            "what was cut is zeros",
            contents(&path),
            b"0123\0\0\0\0".to_vec(),
        );
        checks.fails("less than nothing", ftruncate(&f, u64::MAX), Errno::INVAL);

        checks.works("space", fallocate(&f, FallocateFlags::empty(), 0, 100));
        checks.equal("grows", len(&f), 100);
        checks.works(
            "kept size",
            fallocate(&f, FallocateFlags::KEEP_SIZE, 0, 1000),
        );
        checks.equal("does not", len(&f), 100);
        for how in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
            let times = |meta: fs::Metadata| (meta.mtime_nsec(), meta.ctime_nsec());
            let before = times(f.metadata().expect("stat"));
            checks.works("space that is there", fallocate(&f, how, 0, 10));
            let after = times(f.metadata().expect("stat"));
            checks.holds(
                "moves both times",
                before.0 != after.0 && before.1 != after.1,
            );
        }
        let none = fallocate(&f, FallocateFlags::empty(), 0, 0);
        checks.fails("no space", none, Errno::INVAL);
        let reader = File::open(&path).expect("opened");
        let through = fallocate(&reader, FallocateFlags::empty(), 0, 10);
        checks.fails("through a reader", through, Errno::BADF);

        let big = dir.join("big");
        let f = file(&big);
        let mut model = pattern(3 * CHUNK as usize + 12_345, 7);
        f.write_all_at(&model, 0).expect("written");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE;
        let ranges = [
            (punch, 100, 50),
            (punch, 4096, 8192),
            (punch, CHUNK - 10, CHUNK + 20),
            (zero, 2 * CHUNK + 1000, 70_000),
            (punch, 3 * CHUNK, 2 * CHUNK),
        ];
        for (how, offset, len) in ranges {
            checks.works(
                &format!("{how:?} {offset} {len}"),
                fallocate(&f, how, offset, len),
            );
            let end = (offset + len).min(model.len() as u64) as usize;
            model[offset as usize..end].fill(0);
        }
        checks.holds("zeros and nothing else", contents(&big) == model);
        let longer = fallocate(&f, zero, model.len() as u64 - 10, 100);
        checks.works("zeros beyond the end", longer);
        checks.equal("grow", len(&f), model.len() as u64 + 90);
        let alone = fallocate(&f, FallocateFlags::PUNCH_HOLE, 0, 10);
        checks.fails(
            "a hole that does not keep the size",
            alone,
            Errno::OPNOTSUPP,
        );

        let sparse = file(&dir.join("sparse"));
        let far = (16 << 40) - 1;
        sparse.write_all_at(b"x", far).expect("written");
        checks.equal("16 TiB", len(&sparse), 16 << 40);
        let mut byte = [7; 2];
        let got = sparse.read_at(&mut byte, far - 1).expect("read");
        checks.equal("its end", (got, byte), (2, [0, b'x']));
        checks.works("cut", ftruncate(&sparse, 1));
    })
}

/// Programs read a file to its end again and again while another one appends to it.
#[test]
fn what_is_appended_is_never_seen_as_zeros() -> Result<()> {
    const RECORDS: usize = 400;
    const LEN: usize = 700;
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let data = pattern(RECORDS * LEN, 7);
    for round in 0..4 {
        let name = format!("log-{round}");
        let (here, there) = (cluster.mount().join(&name), second.path().join(&name));
        fs::write(&here, "")?;
        std::thread::scope(|scope| {
            let follow = |path: &Path| -> Result<()> {
                let mut file = File::open(path)?;
                let (mut at, mut buf) = (0, [0; 3333]);
                let deadline = Instant::now() + Duration::from_secs(30);
                while at < data.len() {
                    ensure!(
                        Instant::now() < deadline,
                        "{at} bytes of {} came",
                        data.len()
                    );
                    let got = file.read(&mut buf)?;
                    ensure!(buf[..got] == data[at..at + got], "wrong bytes at {at}");
                    at += got;
                }
                Ok(())
            };
            let readers = [&here, &here, &there].map(|path| scope.spawn(move || follow(path)));
            let mut log = File::options().append(true).open(&here)?;
            data.chunks(LEN)
                .try_for_each(|record| log.write_all(record))?;
            drop(log);
            readers
                .into_iter()
                .try_for_each(|reader| reader.join().expect("no panic"))
        })?;
    }
    Ok(())
}

/// What a program has seen of a file that it wrote is the same after others have opened it.
#[test]
fn times_stay_as_they_were_seen_after_a_write() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("f");
        let mut written = file(&path);
        written.write_all(b"data").expect("written");
        written.sync_all().expect("synced");
        written.write_all(b"more").expect("written");
        let seen = written.metadata().expect("stat");
        drop(written);
        let times = |meta: &fs::Metadata| {
            let mtime = (meta.mtime(), meta.mtime_nsec());
            (mtime, (meta.ctime(), meta.ctime_nsec()))
        };
        let now = File::open(&path).and_then(|file| file.metadata());
        checks.equal("mtime, ctime", times(&now.expect("stat")), times(&seen));
    })
}

#[test]
fn data_and_holes_are_found() -> Result<()> {
    on_a_mount(|dir, checks| {
        let f = file(&dir.join("file"));
        f.write_all_at(b"data", 2 * CHUNK).expect("written");
        f.write_all_at(b"data", 5 * CHUNK).expect("written");
        let size = f.metadata().expect("attributes").len();
        let seek = |from| rustix::fs::seek(&f, from);
        checks.equal("data after a hole", seek(Data(0)), Ok(2 * CHUNK));
        checks.equal("data in data", seek(Data(2 * CHUNK + 2)), Ok(2 * CHUNK + 2));
        checks.equal("the next", seek(Data(3 * CHUNK)), Ok(5 * CHUNK));
        checks.equal("a hole at the start", seek(Hole(0)), Ok(0));
        let hole = seek(Hole(2 * CHUNK));
        let near = 2 * CHUNK + 4..=3 * CHUNK;
        checks.holds("a hole after data", hole.is_ok_and(|at| near.contains(&at)));
        checks.equal("the end is a hole", seek(Hole(5 * CHUNK + 1)), Ok(size));
        checks.fails("data beyond the end", seek(Data(size)), Errno::NXIO);
        checks.fails("a hole beyond the end", seek(Hole(size + 1)), Errno::NXIO);
        let mut f = &f;
        f.seek(SeekFrom::Start(3)).expect("sought");
        checks.equal("an ordinary seek", f.stream_position().ok(), Some(3));
    })
}

#[test]
fn copies_between_files_stay_in_the_cluster() -> Result<()> {
    on_a_mount(|dir, checks| {
        let (a, b) = (file(&dir.join("a")), file(&dir.join("b")));
        let data = pattern(2 * CHUNK as usize + 777, 3);
        a.write_all_at(&data, 0).expect("written");
        a.write_all_at(b"end", 6 * CHUNK).expect("written");
        let size = a.metadata().expect("attributes").len();
        let (mut from, mut to) = (5, 0);
        while let Some(copied) = checks.works(
            "copy",
            copy_file_range(&a, Some(&mut from), &b, Some(&mut to), usize::MAX >> 1),
        ) {
            if copied == 0 {
                break;
            }
        }
        checks.equal("all but five", to, size - 5);
        let copy = contents(&dir.join("b"));
        checks.holds("its bytes", copy[..data.len() - 5] == data[5..]);
        checks.holds(
            "its hole",
            copy[data.len() - 5..copy.len() - 3]
                .iter()
                .all(|byte| *byte == 0),
        );
        checks.holds("its end", copy.ends_with(b"end"));
        let mut past = size + 10;
        let none = copy_file_range(&a, Some(&mut past), &b, None, 10);
        checks.equal("beyond the end", none, Ok(0));
    })
}

#[test]
fn appends_mappings_and_files_without_names() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("log");
        let open_log = || {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND;
            open(&path, flags, Mode::RWXU).expect("opened")
        };
        let (first, second) = (open_log(), open_log());
        for _ in 0..100 {
            rustix::io::write(&first, b"first;").expect("written");
            rustix::io::write(&second, b"other;").expect("written");
        }
        let wanted = b"first;other;".repeat(100);
        checks.holds("appends take turns", contents(&path) == wanted);

        mappings(dir, checks);

        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let made = checks.works("O_TMPFILE", open(dir, flags, Mode::from_raw_mode(0o640)));
        if let Some(unnamed) = made {
            let mut unnamed = File::from(unnamed);
            unnamed.write_all(b"appears whole").expect("written");
            checks.equal("no name", unnamed.metadata().map_or(9, |m| m.nlink()), 0);
            let link = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
            let name = dir.join("appeared");
            let linked = linkat(CWD, link.as_str(), CWD, &name, AtFlags::SYMLINK_FOLLOW);
            checks.works("linkat", linked);
            checks.equal("one name", unnamed.metadata().map_or(9, |m| m.nlink()), 1);
            drop(unnamed);
            checks.equal("its bytes", contents(&name), b"appears whole".to_vec());
        }
        let exclusive = open(dir, flags | OFlags::EXCL, Mode::RWXU);
        if let Some(unnamed) = checks.works("O_TMPFILE with O_EXCL", exclusive) {
            let link = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
            let name = dir.join("never");
            let linked = linkat(CWD, link.as_str(), CWD, &name, AtFlags::SYMLINK_FOLLOW);
            checks.fails("never gets a name", linked, Errno::NOENT);
        }

        let gone = dir.join("gone");
        let mut f = file(&gone);
        f.write_all(b"still here").expect("written");
        f.sync_all().expect("synced");
        fs::remove_file(&gone).expect("removed");
        drop_cache(&f).expect("dropped");
        let mut back = String::new();
        f.seek(SeekFrom::Start(0)).expect("sought");
        f.read_to_string(&mut back).expect("read");
        checks.equal("an unlinked file lives", back.as_str(), "still here");
        checks.works("and grows", f.write_all(b"!").map_err(|_| Errno::IO));
        checks.equal("without names", f.metadata().map_or(9, |m| m.nlink()), 0);
    })
}

/// Writes through a shared mapping are seen by read and reach the servers.
fn mappings(dir: &Path, checks: &mut Checks) {
    const LEN: usize = 1 << 20;
    let path = dir.join("mapped");
    let f = file(&path);
    f.set_len(LEN as u64).expect("grown");
    // SAFETY: a fresh mapping that nothing else refers to.
    let base = unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        rustix::mm::mmap(
            std::ptr::null_mut(),
            LEN,
            protection,
            MapFlags::SHARED,
            f.as_fd(),
            0,
        )
    };
    let Some(base) = checks.works("a shared mapping", base) else {
        return;
    };
    // SAFETY: the mapping has LEN bytes, stays until the unmap below, and the file is not cut.
    let memory = unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), LEN) };
    memory[5000..5005].copy_from_slice(b"early");
    let mut read = [0; 5];
    f.read_exact_at(&mut read, 5000).expect("read");
    checks.equal("read sees the mapping", &read, b"early");
    f.write_all_at(b"later", 9000).expect("written");
    checks.equal("the mapping sees a write", &memory[9000..9005], b"later");
    // SAFETY: within the mapping.
    let synced = unsafe { rustix::mm::msync(base, LEN, MsyncFlags::SYNC) };
    checks.works("msync", synced);
    // SAFETY: the mapping made above; `memory` is not used any more.
    unsafe { rustix::mm::munmap(base, LEN).expect("unmapped") };
    drop(f);
    let data = contents(&path);
    checks.equal(
        "the server has both",
        (&data[5000..5005], &data[9000..9005]),
        (&b"early"[..], &b"later"[..]),
    );
}
