//! More requests than fit, and every way in which a mount ends while requests are running.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::testing::HANG;

through_each_transport! {
    requests_beyond_the_bounds_wait_their_turn
    parallel_programs_read_what_they_wrote
    an_abort_ends_the_mount_and_its_requests
    a_killed_server_hangs_nobody
}

/// More than any transport takes at a time, on any CPU.
const MANY: u64 = 100;

/// Far more than anything here takes, and less than the limit of a hanging test.
const SOON: Duration = Duration::from_secs(20);

async fn stat_many(path: &Path) -> Vec<std::io::Result<fs::Metadata>> {
    let stats = (0..MANY).map(|number| {
        let path = path.join(format!("{HANG}-{number}"));
        off(move || fs::metadata(path))
    });
    futures::future::join_all(stats).await
}

async fn requests_beyond_the_bounds_wait_their_turn(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let (path, memory) = (fixture.path.clone(), fixture.memory.clone());
    let stats = tokio::spawn(async move { stat_many(&path).await });
    let mut hanging = memory.hanging.subscribe();
    // As many as the smallest transport takes at least.
    hanging.wait_for(|count| *count >= 2).await.unwrap();
    memory.released.send_replace(true);
    for outcome in stats.await.unwrap() {
        let error = outcome.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
    fixture.mounted.unmount().await.unwrap();
    assert_eq!(*memory.hanging.borrow(), MANY);
}

async fn parallel_programs_read_what_they_wrote(transport: Transport) {
    // Direct: every read and write is a request.
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "direct_io").await else {
        return;
    };
    let programs = (0..16u8).map(|number| {
        let path = fixture.path.join(format!("file-{number}"));
        off(move || {
            let file = File::options()
                .create_new(true)
                .read(true)
                .write(true)
                .open(path);
            let file = file.unwrap();
            let mut back = vec![0; 1 << 20];
            // Up to the largest request; not all are whole pages.
            for len in [1, 4095, 100_001, (1 << 20) - 1, 1 << 20] {
                let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ number).collect();
                file.write_all_at(&data, 4096).unwrap();
                file.read_exact_at(&mut back[..len], 4096).unwrap();
                assert!(back[..len] == data, "{len} bytes of file {number}");
            }
        })
    });
    futures::future::join_all(programs).await;
    fixture.mounted.unmount().await.unwrap();
}

async fn an_abort_ends_the_mount_and_its_requests(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let (path, memory) = (fixture.path.clone(), fixture.memory.clone());
    let stats = tokio::spawn(async move { stat_many(&path).await });
    let mut hanging = memory.hanging.subscribe();
    hanging.wait_for(|count| *count >= 2).await.unwrap();
    let path = fixture.path.clone();
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
    off(move || rustix::mount::unmount(path, flags).unwrap()).await;
    // No program waits, although nothing has been answered.
    for outcome in stats.await.unwrap() {
        outcome.unwrap_err();
    }
    memory.released.send_replace(true);
    let began = Instant::now();
    let _ = fixture.mounted.wait().await;
    assert!(began.elapsed() < SOON);
    assert!(memory.shut_down.load(Ordering::Relaxed));
}

const SERVE_AT: &str = "EMBERFS_TEST_SERVE_AT";
const SERVE_WITH: &str = "EMBERFS_TEST_SERVE_WITH";
const READY: &str = "child is ready";
const HANGING: &str = "child has a request";

async fn a_killed_server_hangs_nobody(transport: Transport) {
    // Says whether this machine has the transport.
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (mut child, lines) = start_child(&path, transport);
    let mut lines = off(move || wait_for(lines, READY)).await;
    let probe = path.join(HANG);
    let stat = tokio::spawn(off(move || fs::metadata(probe)));
    lines = off(move || wait_for(lines, HANGING)).await;
    child.kill().unwrap();
    off(move || child.wait()).await.unwrap();
    let error = tokio::time::timeout(SOON, stat).await.unwrap().unwrap();
    error.unwrap_err();
    drop(lines);
    let options = MountOptions {
        transport,
        ..MountOptions::default()
    };
    let again = mount_backend(Memory::new(), &path, options).await;
    let mut again = again.unwrap();
    let probe = path.join("f");
    off(move || fs::write(probe, "alive").unwrap()).await;
    again.unmount().await.unwrap();
    fixture.mounted.unmount().await.unwrap();
}

type Lines = BufReader<std::process::ChildStdout>;

fn start_child(path: &Path, transport: Transport) -> (Child, Lines) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mount::tests::ends::child_serves"])
        .args(["--ignored", "--nocapture"])
        .env(SERVE_AT, path)
        .env(SERVE_WITH, format!("{transport:?}").to_lowercase())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

fn wait_for(mut lines: Lines, what: &str) -> Lines {
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the child is gone");
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of a_killed_server_hangs_nobody"]
async fn child_serves() {
    let Some(path) = std::env::var_os(SERVE_AT) else {
        return;
    };
    let transport = std::env::var(SERVE_WITH).unwrap();
    let options = MountOptions::parse(&format!("transport={transport}")).unwrap();
    let memory = Memory::new();
    let mut hanging = memory.hanging.subscribe();
    let mounted = mount_backend(memory, Path::new(&path), options).await;
    let mut mounted = mounted.unwrap();
    println!("{READY}");
    hanging.wait_for(|count| *count > 0).await.unwrap();
    println!("{HANGING}");
    mounted.wait().await.unwrap();
}
