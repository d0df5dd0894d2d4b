//! flock and fcntl locks, between processes of one mount and between two mounts.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use emberfs_tests::{Checks, TestCluster};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Long enough to tell that something does not happen.
const WHILE: Duration = Duration::from_millis(300);
/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(20);

/// An OFD lock: one owner per open file, so that threads can play processes.
fn lock(file: &File, kind: i32, start: i64, len: i64, wait: bool) -> rustix::io::Result<()> {
    let mut request = description(kind, start, len);
    let command = if wait {
        libc::F_OFD_SETLKW
    } else {
        libc::F_OFD_SETLK
    };
    control(file, command, &mut request)
}

fn description(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn control(file: &File, command: i32, request: &mut libc::flock) -> rustix::io::Result<()> {
    // SAFETY: the descriptor is open and the kernel reads and writes no more than the structure.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(request)) };
    if result == -1 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}

fn open(path: &Path) -> File {
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    options.expect("opened")
}

/// What holds for two open files of one file, wherever they are.
fn table(checks: &mut Checks, one: &Path, other: &Path, between: &str) {
    let (a, b) = (open(one), open(other));
    let say = |what: &str| format!("{between}: {what}");
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    let shared = FlockOperation::NonBlockingLockShared;
    checks.works(&say("flock"), flock(&a, exclusive));
    checks.fails(&say("flock twice"), flock(&b, exclusive), Errno::WOULDBLOCK);
    checks.fails(&say("a shared one"), flock(&b, shared), Errno::WOULDBLOCK);
    checks.works(&say("downgrade"), flock(&a, shared));
    checks.works(&say("two shared"), flock(&b, shared));
    checks.fails(&say("upgrade"), flock(&a, exclusive), Errno::WOULDBLOCK);
    // As everywhere on Linux it has cost the lock that was to be converted.
    checks.works(&say("the other's upgrade"), flock(&b, exclusive));
    checks.works(&say("unlock"), flock(&b, FlockOperation::Unlock));
    checks.works(&say("shared again"), flock(&a, shared));
    checks.works(&say("upgrade alone"), flock(&a, exclusive));

    // The two kinds do not meet.
    checks.works(&say("fcntl"), lock(&b, libc::F_WRLCK, 100, 100, false));
    for (start, len, free) in [
        (0, 100, true),
        (200, 0, true),
        (199, 1, false),
        (50, 51, false),
        (0, 0, false),
    ] {
        let outcome = lock(&a, libc::F_WRLCK, start, len, false);
        let what = say(&format!("fcntl at {start} for {len}"));
        if free {
            checks.works(&what, outcome);
            lock(&a, libc::F_UNLCK, start, len, false).expect("unlocked");
        } else {
            checks.fails(&what, outcome, Errno::AGAIN);
        }
    }
    let mut asked = description(libc::F_WRLCK, 0, 0);
    checks.works(
        &say("a question"),
        control(&a, libc::F_OFD_GETLK, &mut asked),
    );
    checks.equal(
        &say("what is in the way"),
        (i32::from(asked.l_type), asked.l_start, asked.l_len),
        (libc::F_WRLCK, 100, 100),
    );
    checks.works(
        &say("the middle is free"),
        lock(&b, libc::F_UNLCK, 140, 20, false),
    );
    checks.works(&say("and taken"), lock(&a, libc::F_RDLCK, 140, 20, false));
    checks.fails(
        &say("the rest is not"),
        lock(&a, libc::F_RDLCK, 139, 1, false),
        Errno::AGAIN,
    );

    // A waiter gets it when it is free, and not before.
    let (tell, told) = mpsc::channel();
    let waiter = open(other);
    let waiting = thread::spawn(move || {
        let got = flock(&waiter, FlockOperation::LockExclusive);
        tell.send(got).expect("somebody listens");
    });
    checks.holds(&say("it waits"), told.recv_timeout(WHILE).is_err());
    drop(a);
    let got = told.recv_timeout(SOON).unwrap_or(Err(Errno::TIMEDOUT));
    checks.works(&say("and gets it when the file is closed"), got);
    waiting.join().expect("ended");
}

/// Two who share a lock and both want it alone: neither keeps the other from it.
fn upgrades(checks: &mut Checks, one: &Path, other: &Path, between: &str) {
    let (tell, told) = mpsc::channel();
    let (a, b) = (open(one), open(other));
    for file in [&a, &b] {
        flock(file, FlockOperation::LockShared).expect("shared");
    }
    let upgraders = [a, b].map(|file| {
        let tell = tell.clone();
        thread::spawn(move || {
            let got = flock(&file, FlockOperation::LockExclusive);
            tell.send(got).expect("somebody listens");
        })
    });
    for n in 0..2 {
        let got = told.recv_timeout(SOON).unwrap_or(Err(Errno::TIMEDOUT));
        checks.works(&format!("{between}: upgrade {n}"), got);
    }
    for upgrader in upgraders {
        upgrader.join().expect("ended");
    }
}

#[test]
fn locks_hold_within_a_mount_and_between_two() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let mut checks = Checks::default();
    let path = cluster.mount().join("within");
    table(&mut checks, &path, &path, "one mount");
    upgrades(&mut checks, &path, &path, "one mount");

    let second = cluster.mount_again("")?;
    let (one, other) = (
        cluster.mount().join("between"),
        second.path().join("between"),
    );
    table(&mut checks, &one, &other, "two mounts");
    upgrades(&mut checks, &one, &other, "two mounts");
    closing_any_descriptor_ends_them(&mut checks, &path);
    waits_can_be_interrupted(&mut checks, &one);
    deadlocks_are_told(&mut checks, &one, &other);
    checks.finish()
}

/// Those of fcntl that a process has on a file, though it closes another descriptor, which cannot even write.
fn closing_any_descriptor_ends_them(checks: &mut Checks, path: &Path) {
    let (held, other) = (open(path), open(path));
    let mut request = description(libc::F_WRLCK, 0, 0);
    let locked = control(&held, libc::F_SETLK, &mut request);
    checks.works("F_SETLK", locked);
    let taken = lock(&other, libc::F_WRLCK, 0, 0, false);
    checks.fails("it holds", taken, Errno::AGAIN);
    drop(File::open(path));
    let free = lock(&other, libc::F_WRLCK, 0, 0, false);
    checks.works("a reader's close ends it", free);
}

/// A program that waits for a lock can be killed.
fn waits_can_be_interrupted(checks: &mut Checks, path: &Path) {
    let held = open(path);
    flock(&held, FlockOperation::LockExclusive).expect("free");
    let waiter = Command::new("flock").arg(path).arg("true").spawn();
    let mut waiter = waiter.expect("flock(1) of util-linux");
    thread::sleep(WHILE);
    waiter.kill().expect("killed");
    let began = std::time::Instant::now();
    let status = waiter.wait().expect("ended");
    checks.holds(
        "a killed waiter ends at once",
        began.elapsed() < SOON && !status.success(),
    );
    drop(held);
    let next = open(path);
    let free = flock(&next, FlockOperation::NonBlockingLockExclusive);
    checks.works("and leaves nothing behind", free);
}

/// Two that wait for each other: one of them hears of it.
fn deadlocks_are_told(checks: &mut Checks, one: &Path, other: &Path) {
    let (a, b) = (open(one), open(other));
    lock(&a, libc::F_WRLCK, 0, 10, false).expect("free");
    lock(&b, libc::F_WRLCK, 10, 10, false).expect("free");
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let outcome = lock(&a, libc::F_WRLCK, 10, 10, true);
            // Whoever was refused lets the other one through.
            lock(&a, libc::F_UNLCK, 0, 0, false).expect("unlocked");
            outcome
        });
        let second = scope.spawn(|| {
            let outcome = lock(&b, libc::F_WRLCK, 0, 10, true);
            lock(&b, libc::F_UNLCK, 0, 0, false).expect("unlocked");
            outcome
        });
        let outcomes = [first.join(), second.join()].map(|o| o.expect("no panic"));
        let deadlocks = outcomes
            .iter()
            .filter(|o| **o == Err(Errno::DEADLK))
            .count();
        checks.equal("one deadlock is told", deadlocks, 1);
        checks.holds("the other goes on", outcomes.contains(&Ok(())));
    });
}
