//! The C interface on a real cluster: the documented program, and what its ring refuses.

use std::ffi::{CStr, CString, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use anyhow::{Context, Result, ensure};
use emberfs_c::abi::{Cqe, OP_FSYNC, OP_NOP, OP_READ, OP_WRITE, Sqe, Stat};
use emberfs_c::exports::*;
use emberfs_tests::{ClusterOptions, TestCluster, pattern};

/// A file that is in no one's way: an odd length, more than one piece.
const LEN: usize = (1 << 20) + 4_321;
const FOREVER: i64 = -1;

fn said() -> String {
    // SAFETY: this thread's last error, until its next failure.
    let text = unsafe { CStr::from_ptr(emberfs_last_error()) };
    text.to_string_lossy().into_owned()
}

fn ok(result: i64) -> Result<u64> {
    u64::try_from(result).with_context(|| format!("{result}: {}", said()))
}

fn connect(address: &str) -> Result<u64> {
    let (address, mut client) = (CString::new(address)?, 0);
    // SAFETY: pointers to live locals, or NULL.
    ok(unsafe { emberfs_connect(address.as_ptr(), ptr::null(), &raw mut client) }.into())?;
    Ok(client)
}

fn open(client: u64, path: &CStr, flags: c_int) -> Result<u64, c_int> {
    let mut file = 0;
    // SAFETY: pointers to live locals.
    match unsafe { emberfs_open(client, path.as_ptr(), flags, 0o644, &raw mut file) } {
        0 => Ok(file),
        errno => Err(errno),
    }
}

fn ring(client: u64, entries: u32) -> Result<u64> {
    let mut ring = 0;
    // SAFETY: a pointer to a live local.
    ok(unsafe { emberfs_ring_create(client, entries, &raw mut ring) }.into())?;
    Ok(ring)
}

fn register(ring: u64, memory: &mut [u8]) -> Result<u32> {
    // SAFETY: each test destroys its ring before it touches or drops the memory.
    let index = unsafe { emberfs_ring_register(ring, memory.as_mut_ptr().cast(), memory.len()) };
    Ok(ok(index.into())? as u32)
}

fn submit(ring: u64, sqes: &[Sqe]) -> c_int {
    // SAFETY: a live slice.
    unsafe { emberfs_ring_submit(ring, sqes.as_ptr(), sqes.len() as u32) }
}

fn wait(ring: u64, count: u32) -> Result<Vec<Cqe>> {
    let mut cqes = vec![Cqe::default(); count as usize];
    // SAFETY: a live vector.
    let got = unsafe { emberfs_ring_wait(ring, cqes.as_mut_ptr(), count, count, FOREVER) };
    ensure!(ok(got.into())? == u64::from(count), "{got} of {count}");
    cqes.sort_by_key(|cqe| cqe.user_data);
    Ok(cqes)
}

fn results(ring: u64, count: u32) -> Result<Vec<i64>> {
    Ok(wait(ring, count)?.iter().map(|cqe| cqe.result).collect())
}

fn unmounted() -> Result<TestCluster> {
    TestCluster::with(ClusterOptions {
        mount: false,
        ..ClusterOptions::new(3, 3)
    })
}

/// Where cargo put the library: beside this test.
fn library_dir() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2);
    let mut found = found.filter(|dir| dir.join("libemberfs_c.so").is_file());
    let dir = found.next().context("no libemberfs_c.so beside the test")?;
    Ok(dir.to_owned())
}

#[test]
fn the_documented_program_reads_back_what_it_wrote() -> Result<()> {
    let cluster = unmounted()?;
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/c");
    let temp = tempfile::tempdir()?;
    let program = temp.path().join("loader");
    let libraries = library_dir()?;
    let compiled = Command::new("clang")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(crate_dir.join("include"))
        .arg(crate_dir.join("examples/loader.c"))
        .arg("-L")
        .arg(&libraries)
        .arg(format!("-Wl,-rpath,{}", libraries.display()))
        .arg("-lemberfs_c")
        .arg("-o")
        .arg(&program)
        .output()?;
    ensure!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let address = cluster.address()?;
    let ran = Command::new(&program)
        .args([&address, "/records"])
        .output()?;
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    ensure!(ran.status.success(), "{err}");
    ensure!(out == "512 records of 4096 bytes are right\n", "{out}");
    let refused = Command::new(&program)
        .args([&address, "/no/such/dir"])
        .output()?;
    let err = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        refused.status.code() == Some(1) && err.contains("emberfs_open"),
        "{err}"
    );
    Ok(())
}

#[test]
fn a_ring_moves_right_bytes_and_refuses_wrong_requests_one_by_one() -> Result<()> {
    let cluster = unmounted()?;
    let client = connect(&cluster.address()?)?;
    ensure!(open(client, c"/none", libc::O_RDONLY) == Err(-libc::ENOENT));
    ensure!(said().contains("none"), "{}", said());
    let path = c"/file";
    let file = open(client, path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
    let file = file.ok().with_context(said)?;
    ensure!(open(client, path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) == Err(-libc::EEXIST));

    let data = pattern(LEN, 1);
    let mut source = data.clone();
    let mut target = vec![0; LEN + 10];
    let io = ring(client, 8)?;
    let (from, to) = (register(io, &mut source)?, register(io, &mut target)?);
    let write = Sqe {
        op: OP_WRITE,
        file,
        buffer: from,
        length: LEN as u64,
        ..Sqe::default()
    };
    ensure!(submit(io, &[write]) == 1);
    ensure!(results(io, 1)? == [LEN as i64]);
    ensure!(
        submit(
            io,
            &[Sqe {
                op: OP_FSYNC,
                file,
                ..Sqe::default()
            }]
        ) == 1
    );
    ensure!(results(io, 1)? == [0]);
    let mut stat = Stat {
        size: size_of::<Stat>() as u32,
        ..Stat::default()
    };
    // SAFETY: pointers to a literal and a live local.
    ok(unsafe { emberfs_stat(client, path.as_ptr(), &raw mut stat) }.into())?;
    ensure!(
        stat.length == LEN as u64 && stat.mode == libc::S_IFREG | 0o644,
        "{stat:?}"
    );

    // Good and bad ones in one batch; more than fit are left with the caller.
    let read = Sqe {
        op: OP_READ,
        file,
        buffer: to,
        length: LEN as u64 + 10,
        ..Sqe::default()
    };
    let wrong = [
        read,
        Sqe { op: 99, ..read },
        Sqe { file: io, ..read },
        Sqe { buffer: 7, ..read },
        Sqe {
            length: LEN as u64 + 11,
            ..read
        },
        Sqe {
            buffer_offset: u64::MAX,
            length: 1,
            ..read
        },
        Sqe { flags: 1, ..read },
        Sqe {
            op: OP_NOP,
            ..Sqe::default()
        },
        read,
    ];
    let numbered: Vec<Sqe> = (0..)
        .zip(wrong)
        .map(|(user_data, sqe)| Sqe { user_data, ..sqe })
        .collect();
    ensure!(submit(io, &numbered) == 8, "a full ring took more");
    ensure!(submit(io, &numbered) == 0, "a full ring took more");
    let errnos = [
        libc::EINVAL,
        libc::EBADF,
        libc::EINVAL,
        libc::EFAULT,
        libc::EFAULT,
        libc::EINVAL,
    ];
    let mut expected = vec![LEN as i64];
    expected.extend(errnos.map(|errno| -i64::from(errno)));
    expected.push(0);
    let got = results(io, 8)?;
    ensure!(got == expected, "{got:?}");
    let mut none = Cqe::default();
    // SAFETY: a pointer to a live local.
    let late = unsafe { emberfs_ring_wait(io, &raw mut none, 1, 1, 1_000_000) };
    ensure!(late == -libc::ETIMEDOUT, "{late}");

    ensure!(emberfs_ring_unregister(io, from) == 0);
    ensure!(emberfs_ring_unregister(io, from) == -libc::EINVAL);
    ensure!(emberfs_disconnect(client) == -libc::EBUSY, "files are open");
    ok(emberfs_ring_destroy(io).into())?;
    ensure!(
        target[..LEN] == data && target[LEN..] == [0; 10],
        "read other bytes than written"
    );
    ok(emberfs_close(file).into())?;
    ensure!(emberfs_close(file) == -libc::EBADF);
    ok(emberfs_disconnect(client).into())?;
    ensure!(open(client, path, libc::O_RDONLY) == Err(-libc::EBADF));
    Ok(())
}

#[test]
fn threads_share_a_client_and_a_destroyed_ring_leaves_memory_alone() -> Result<()> {
    const THREADS: u64 = 4;
    const BLOCK: u64 = 4096;
    let cluster = unmounted()?;
    let client = connect(&cluster.address()?)?;
    let file = open(client, c"/file", libc::O_RDWR | libc::O_CREAT)
        .ok()
        .with_context(said)?;
    let data = pattern(256 * BLOCK as usize, 5);
    // SAFETY: a live vector.
    ok(unsafe { emberfs_pwrite(file, data.as_ptr().cast(), data.len(), 0) })?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let data = &data;
                scope.spawn(move || -> Result<()> {
                    let io = ring(client, 128)?;
                    let mut memory = vec![0; 128 * BLOCK as usize];
                    let buffer = register(io, &mut memory)?;
                    let block = |slot: u64| (slot * 37 + thread * 64) % 256 * BLOCK;
                    let reads: Vec<Sqe> = (0..128)
                        .map(|slot| Sqe {
                            op: OP_READ,
                            file,
                            buffer,
                            buffer_offset: slot * BLOCK,
                            length: BLOCK,
                            offset: block(slot),
                            user_data: slot,
                            ..Sqe::default()
                        })
                        .collect();
                    ensure!(submit(io, &reads) == 128);
                    // Half of them wait for all, half destroy the ring under way.
                    if thread % 2 == 0 {
                        ensure!(results(io, 128)?.iter().all(|&n| n == BLOCK as i64));
                    }
                    ok(emberfs_ring_destroy(io).into())?;
                    for slot in 0..128 {
                        let at = block(slot) as usize;
                        let mine = (slot * BLOCK) as usize;
                        let (mine, theirs) = (&memory[mine..], &data[at..]);
                        ensure!(mine[..BLOCK as usize] == theirs[..BLOCK as usize], "{slot}");
                    }
                    Ok(())
                })
            })
            .collect();
        let mut joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.try_for_each(|end| end.map_err(|_| anyhow::anyhow!("panicked"))?)
    })?;
    ok(emberfs_close(file).into())?;
    ok(emberfs_disconnect(client).into())?;
    Ok(())
}
