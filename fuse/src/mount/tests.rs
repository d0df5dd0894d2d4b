//! Through the kernel; they need root and `/dev/fuse` and pass emptily elsewhere.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::*;
use crate::testing::{Memory, PANIC};

struct Fixture {
    memory: Memory,
    mounted: Mounted,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

async fn mounted_with(transport: Transport, memory: Memory, options: &str) -> Option<Fixture> {
    let root = rustix::process::geteuid().is_root();
    if !root
        || File::options()
            .read(true)
            .write(true)
            .open(preflight::FUSE_DEVICE)
            .is_err()
    {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut options = MountOptions::parse(options).unwrap();
    options.transport = transport;
    let rings = transport == Transport::Ring;
    let possible = !rings || fs::write(ring::PARAMETER, "Y").is_ok();
    let mounted = mount_backend(memory.clone(), dir.path(), options).await;
    if !possible {
        let refused = mounted.err().unwrap();
        assert_eq!(refused.code, ErrorCode::Unsupported);
        assert!(refused.message.contains("6.14"), "{}", refused.message);
        return None;
    }
    let mounted = mounted.unwrap();
    assert_eq!(mounted.transport(), transport);
    Some(Fixture {
        memory,
        path: mounted.path().to_owned(),
        mounted,
        _dir: dir,
    })
}

/// Runs each of the functions below through every transport.
macro_rules! through_each_transport {
    ($($name:ident)*) => {
        $(mod $name {
            use crate::Transport;

            #[tokio::test(flavor = "multi_thread")]
            async fn classic() {
                super::$name(Transport::Classic).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn ring() {
                super::$name(Transport::Ring).await;
            }
        })*
    };
}

through_each_transport! {
    programs_can_use_it
    large_directories_are_listed_and_removed
    an_open_sees_what_another_machine_closed
    what_was_written_here_is_read_from_memory
    direct_io_bypasses_the_page_cache
    a_panic_fails_its_request_and_nothing_else
    failed_write_back_is_reported_by_fsync
    unmounting_is_refused_while_in_use_and_then_closes_everything
    an_unmount_from_outside_ends_the_wait
    a_dead_mount_is_replaced
    options_reach_the_kernel
    copying_tools_work
    a_shared_mapping_is_written_back
}

mod coherence;
mod ends;
mod helper;
mod verbs;
mod virtual_dir;

/// System calls block; the runtime that serves them must not.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn programs_can_use_it(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.clone();
    off(move || {
        let data: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251) as u8).collect();
        fs::create_dir_all(path.join("a/b")).unwrap();
        let file = path.join("a/b/file");
        fs::write(&file, &data).unwrap();
        assert_eq!(fs::read(&file).unwrap(), data);
        assert_eq!(fs::metadata(&file).unwrap().len(), data.len() as u64);

        let mut open = OpenOptions::new()
            .read(true)
            .append(true)
            .open(&file)
            .unwrap();
        open.write_all(b"tail").unwrap();
        open.seek(SeekFrom::End(-4)).unwrap();
        let mut tail = String::new();
        open.read_to_string(&mut tail).unwrap();
        assert_eq!(tail, "tail");
        open.set_len(10).unwrap();
        open.set_len(20).unwrap();
        assert_eq!(fs::read(&file).unwrap(), [&data[..10], &[0; 10]].concat());
        open.set_permissions(fs::Permissions::from_mode(0o640))
            .unwrap();
        open.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        open.sync_all().unwrap();
        drop(open);
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.mtime(), meta.len()),
            (0o640, 0, 20)
        );

        fs::rename(&file, path.join("moved")).unwrap();
        fs::hard_link(path.join("moved"), path.join("linked")).unwrap();
        assert_eq!(fs::metadata(path.join("linked")).unwrap().nlink(), 2);
        symlink("moved", path.join("link")).unwrap();
        assert_eq!(
            fs::read_link(path.join("link")).unwrap(),
            PathBuf::from("moved")
        );
        assert_eq!(fs::read(path.join("link")).unwrap().len(), 20);
        fs::remove_file(path.join("moved")).unwrap();
        assert_eq!(fs::read(path.join("linked")).unwrap().len(), 20);

        let deleted = File::create_new(path.join("deleted")).unwrap();
        fs::remove_file(path.join("deleted")).unwrap();
        deleted.write_all_at(b"still here", 0).unwrap();
        fs::remove_dir_all(path.join("a")).unwrap();
        assert!(!path.join("a").exists());
        let attribute = rustix::fs::getxattr(&path, "user.x", &mut [0u8; 8]);
        assert_eq!(attribute.unwrap_err(), rustix::io::Errno::NODATA);
        assert_eq!(rustix::fs::statvfs(&path).unwrap().f_blocks, 1 << 28);
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
    if transport == Transport::Ring {
        let through_rings = ring::arrived();
        assert!(
            through_rings > 20,
            "{through_rings}: the rest by the device"
        );
    }
}

async fn large_directories_are_listed_and_removed(transport: Transport) {
    let memory = Memory::new();
    for number in 0..5000 {
        memory.create_elsewhere(1, &format!("file-{number}"), b"x");
    }
    let Some(mut fixture) = mounted_with(transport, memory, "").await else {
        return;
    };
    let path = fixture.path.clone();
    off(move || {
        let count = || fs::read_dir(&path).unwrap().map(Result::unwrap).count();
        assert_eq!(count(), 5000);
        // Removing while listing, as simple programs do.
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().len(), 1);
            fs::remove_file(entry.path()).unwrap();
        }
        assert_eq!(count(), 0);
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

async fn an_open_sees_what_another_machine_closed(transport: Transport) {
    let memory = Memory::new();
    let inode = memory.create_elsewhere(1, "f", b"before");
    let Some(mut fixture) =
        mounted_with(transport, memory, "attr_timeout=3600,entry_timeout=3600").await
    else {
        return;
    };
    let file = fixture.path.join("f");
    let read = |file: PathBuf| off(move || fs::read_to_string(file).unwrap());
    assert_eq!(read(file.clone()).await, "before");
    let reads = fixture.memory.reads.load(Ordering::Relaxed);
    assert_eq!(read(file.clone()).await, "before");
    assert_eq!(
        fixture.memory.reads.load(Ordering::Relaxed),
        reads,
        "the page cache was kept"
    );
    for (contents, what) in [
        ("behind", "same size"),
        ("much longer than before", "longer"),
        ("x", "shorter"),
    ] {
        fixture.memory.write_elsewhere(inode, contents.as_bytes());
        assert_eq!(read(file.clone()).await, contents, "{what}");
    }
    fixture.mounted.unmount().await.unwrap();
}

async fn what_was_written_here_is_read_from_memory(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let file = fixture.path.join("f");
    let data = vec![7u8; 1 << 20];
    let (path, copy) = (file.clone(), data.clone());
    off(move || fs::write(path, copy).unwrap()).await;
    assert!(off(move || fs::read(file).unwrap()).await == data);
    assert_eq!(fixture.memory.reads.load(Ordering::Relaxed), 0);
    fixture.mounted.unmount().await.unwrap();
}

async fn direct_io_bypasses_the_page_cache(transport: Transport) {
    let memory = Memory::new();
    memory.create_elsewhere(1, "f", b"contents");
    let Some(mut fixture) = mounted_with(transport, memory, "direct_io").await else {
        return;
    };
    let file = fixture.path.join("f");
    for _ in 0..2 {
        let file = file.clone();
        let before = fixture.memory.reads.load(Ordering::Relaxed);
        assert_eq!(off(move || fs::read(file).unwrap()).await, b"contents");
        assert!(fixture.memory.reads.load(Ordering::Relaxed) > before);
    }
    fixture.mounted.unmount().await.unwrap();
}

async fn a_panic_fails_its_request_and_nothing_else(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.clone();
    off(move || {
        for _ in 0..8 {
            let error = fs::metadata(path.join(PANIC)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
        fs::write(path.join("fine"), "fine").unwrap();
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

async fn failed_write_back_is_reported_by_fsync(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    fixture.memory.fail_sync.store(true, Ordering::Relaxed);
    let path = fixture.path.clone();
    off(move || {
        let mut file = File::create(path.join("f")).unwrap();
        file.write_all(b"lost").unwrap();
        assert_eq!(
            file.sync_all().unwrap_err().raw_os_error(),
            Some(libc::ENOSPC)
        );
    })
    .await;
    fixture.memory.fail_sync.store(false, Ordering::Relaxed);
    fixture.mounted.unmount().await.unwrap();
}

async fn unmounting_is_refused_while_in_use_and_then_closes_everything(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let file = fixture.path.join("f");
    let open = off(move || File::create(file).unwrap()).await;
    let error = fixture.mounted.unmount().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Busy);
    assert!(error.message.contains("fuser -vm"), "{}", error.message);
    let again = mount_backend(Memory::new(), &fixture.path, MountOptions::default()).await;
    let error = again.err().unwrap();
    assert_eq!(error.code, ErrorCode::Exists);
    assert!(
        error.message.contains("already a mount"),
        "{}",
        error.message
    );
    off(move || drop(open)).await;
    fixture.mounted.unmount().await.unwrap();
    assert!(fixture.memory.shut_down.load(Ordering::Relaxed));
    assert_eq!(fixture.memory.open_files.load(Ordering::Relaxed), 0);
    assert_eq!(mountinfo::find(&fixture.path).unwrap(), None);
}

async fn an_unmount_from_outside_ends_the_wait(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.clone();
    off(move || crate::unmount(&path).unwrap()).await;
    fixture.mounted.wait().await.unwrap();
    fixture.mounted.unmount().await.unwrap();
    assert!(fixture.memory.shut_down.load(Ordering::Relaxed));
}

async fn a_dead_mount_is_replaced(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    device::leave_dead_mount(&path);
    let stat = fs::metadata(&path).unwrap_err();
    assert_eq!(stat.raw_os_error(), Some(libc::ENOTCONN));
    let options = MountOptions::default();
    let mut mounted = mount_backend(Memory::new(), &path, options).await.unwrap();
    let probe = path.clone();
    off(move || fs::write(probe.join("f"), "alive").unwrap()).await;
    mounted.unmount().await.unwrap();
    fixture.mounted.unmount().await.unwrap();
}

async fn options_reach_the_kernel(transport: Transport) {
    let memory = Memory::new();
    let me = Creds::default();
    let sub = memory
        .mkdir(&me, InodeId::ROOT, b"sub", 0o755.into())
        .await
        .unwrap();
    memory.create_elsewhere(sub.inode, "inside", b"x");
    let options = "ro,subdir=/sub,fsname=cluster-a,read_ahead_kb=2048,noexec";
    let Some(mut fixture) = mounted_with(transport, memory, options).await else {
        return;
    };
    let mount = mountinfo::find(&fixture.path).unwrap().unwrap();
    assert_eq!(
        (&*mount.fs_type, &*mount.source),
        ("fuse.emberfs", "cluster-a")
    );
    let ahead = fs::read_to_string(format!("/sys/class/bdi/{}/read_ahead_kb", mount.device));
    assert_eq!(ahead.unwrap().trim(), "2048");
    let path = fixture.path.clone();
    off(move || {
        assert_eq!(fs::metadata(&path).unwrap().ino(), 1);
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"x");
        let refused = fs::write(path.join("new"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let ring = MountOptions::parse("transport=ring,auto_unmount").unwrap();
    let error = mount_backend(Memory::new(), dir.path(), ring)
        .await
        .err()
        .unwrap();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(
        error.message.contains("transport=classic"),
        "{}",
        error.message
    );
    let nowhere = MountOptions::parse("subdir=no/where").unwrap();
    let error = mount_backend(Memory::new(), dir.path(), nowhere)
        .await
        .err()
        .unwrap();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(
        error.message.contains("subdir=no/where"),
        "{}",
        error.message
    );
}

async fn copying_tools_work(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.clone();
    let script = r"
        set -e; cd $0; mkdir -p src/deep/er; seq 50000 > src/deep/numbers; : > src/empty
        ln -s deep/numbers src/link; ln src/empty src/hard; chmod 600 src/empty
        touch -d 2001-02-03T04:05:06 src/deep/er; truncate -s 1M src/hole
        cp -a src copy; diff -r src copy; test $(stat -c %Y copy/deep/er) = $(stat -c %Y src/deep/er)
        tar cf - src | (mkdir untar; cd untar; tar xpf -); diff -r src untar/src
        test $(stat -c %Y untar/src/deep/er) = $(stat -c %Y src/deep/er)
        dd if=src/hole of=direct bs=64k oflag=direct status=none; cmp direct src/hole
        dd if=src/deep/numbers of=synced bs=64k oflag=dsync status=none; cmp synced src/deep/numbers
        echo one > log; echo two >> log; test $(wc -l < log) = 2
        rm -r src copy untar";
    let output = off(move || {
        std::process::Command::new("sh")
            .args(["-c", script])
            .arg(path)
            .output()
    })
    .await;
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fixture.mounted.unmount().await.unwrap();
}

/// Tells the child process below which file to map.
const MAP_FILE: &str = "EMBERFS_TEST_MAP_FILE";

/// Another process must map the file: a process that serves its own mapping locks up, since munmap
/// waits for the write-back while it holds the lock that the serving threads need for their buffers.
async fn a_shared_mapping_is_written_back(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.join("f");
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "mount::tests::child_writes_through_a_mapping",
            "--ignored",
        ])
        .env(MAP_FILE, &path)
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    assert!(off(move || child.wait()).await.unwrap().success());
    let contents = off(move || fs::read(&path).unwrap()).await;
    assert_eq!((contents.len(), contents[5000]), (8192, 42));
    fixture.mounted.unmount().await.unwrap();
    assert!(
        fixture.memory.syncs.load(Ordering::Relaxed) > 0,
        "the mapped write was synced"
    );
}

#[test]
#[ignore = "a part of a_shared_mapping_is_written_back"]
fn child_writes_through_a_mapping() {
    use rustix::mm::{MapFlags, ProtFlags};

    let Some(path) = std::env::var_os(MAP_FILE) else {
        return;
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(8192).unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice; it is not used after the munmap,
    // and nobody truncates the file meanwhile.
    unsafe {
        let all = ProtFlags::READ | ProtFlags::WRITE;
        let null = std::ptr::null_mut();
        let map = rustix::mm::mmap(null, 8192, all, MapFlags::SHARED, &file, 0).unwrap();
        map.cast::<u8>().add(5000).write(42);
        rustix::mm::munmap(map, 8192).unwrap();
    }
}
