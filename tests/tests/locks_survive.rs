//! Locks while the metadata server, which alone knows them, is killed, and while the mount that holds one is suspended.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, wait};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

/// Long enough to tell that something does not happen.
const WHILE: Duration = Duration::from_millis(500);
/// Far more than anything here takes.
const SOON: Duration = Duration::from_mins(1);
/// How long a silent client keeps what it has, milliseconds.
const LEASE_MS: u64 = 4000;

fn cluster() -> Result<TestCluster> {
    let mut options = ClusterOptions::new(1, 1);
    options
        .settings
        .push(format!("meta.client_lease_ms={LEASE_MS}"));
    TestCluster::with(options)
}

fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).context("opening the file with the lock")
}

/// Waits in a thread of its own for the lock; tells when it has it.
fn waiter(path: &Path) -> Result<mpsc::Receiver<rustix::io::Result<File>>> {
    let file = open(path)?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let got = flock(&file, FlockOperation::LockExclusive);
        // Nobody listens any more if the test has failed.
        let _ = tell.send(got.map(|()| file));
    });
    Ok(told)
}

#[test]
fn a_killed_metadata_server_takes_no_lock_from_who_holds_it_and_no_place_from_who_waits()
-> Result<()> {
    let cluster = cluster()?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount().join("f"), second.path().join("f"));
    let holder = open(&one)?;
    flock(&holder, FlockOperation::LockExclusive)?;
    let waits = waiter(&other)?;
    ensure!(waits.recv_timeout(WHILE).is_err(), "it is held");
    for _ in 0..3 {
        cluster.kill9("meta-1")?;
        cluster.start_process("meta-1")?.expect_code(0)?;
        let taken = flock(open(&other)?, FlockOperation::NonBlockingLockExclusive);
        ensure!(taken == Err(Errno::WOULDBLOCK), "{taken:?} after a restart");
        ensure!(waits.recv_timeout(WHILE).is_err(), "it is still held");
    }
    cluster.kill9("meta-1")?;
    // Nobody hears of this before the server is back.
    let unlocking = thread::spawn(move || flock(&holder, FlockOperation::Unlock));
    ensure!(
        waits.recv_timeout(WHILE).is_err(),
        "nobody can give it away"
    );
    cluster.start_process("meta-1")?.expect_code(0)?;
    unlocking.join().expect("no panic")?;
    let got = waits
        .recv_timeout(SOON)
        .context("who waited got nothing")??;
    let taken = flock(open(&one)?, FlockOperation::NonBlockingLockShared);
    ensure!(
        taken == Err(Errno::WOULDBLOCK),
        "{taken:?} beside the next holder"
    );
    drop(got);
    wait(SOON, || {
        Ok(flock(open(&one)?, FlockOperation::NonBlockingLockShared).is_ok())
    })
}

#[test]
fn the_lock_of_a_suspended_mount_goes_to_others_after_its_lease_and_only_then() -> Result<()> {
    let cluster = cluster()?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount().join("f"), second.path().join("f"));
    let holder = open(&one)?;
    flock(&holder, FlockOperation::LockExclusive)?;
    let waits = waiter(&other)?;
    let worker = cluster.mount_worker()?;
    kill_process(worker, Signal::STOP)?;
    let early = waits.recv_timeout(Duration::from_millis(LEASE_MS / 2));
    ensure!(
        early.is_err(),
        "the lease of the suspended one has not run out"
    );
    let got = waits.recv_timeout(SOON);
    kill_process(worker, Signal::CONT)?;
    let got = got.context("a suspended mount keeps its lock for ever")??;
    // The first mount hears that it has lost it: from now on it is an outsider as any other.
    let again = flock(open(&one)?, FlockOperation::NonBlockingLockExclusive);
    ensure!(
        again == Err(Errno::WOULDBLOCK),
        "{again:?} while the other holds it"
    );
    flock(&holder, FlockOperation::Unlock)?;
    let again = flock(open(&one)?, FlockOperation::NonBlockingLockExclusive);
    ensure!(
        again == Err(Errno::WOULDBLOCK),
        "{again:?}: the loser's unlock frees nothing of the other's"
    );
    drop(got);
    let next = open(&one)?;
    wait(SOON, || {
        Ok(flock(&next, FlockOperation::NonBlockingLockExclusive).is_ok())
    })
}
