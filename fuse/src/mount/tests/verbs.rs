//! Operations beyond reading, writing and names, as the kernel asks for them.

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, XattrFlags, flock, linkat,
};
use rustix::io::Errno;

use super::*;

through_each_transport! {
    extended_attributes_reach_the_server
    locks_are_kept_by_the_server_and_end_with_their_files
    holes_copies_and_files_without_names
    an_append_goes_to_the_real_end
    a_write_by_a_user_takes_set_id_bits
}

async fn extended_attributes_reach_the_server(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.join("f");
    off(move || {
        fs::write(&path, "x").unwrap();
        let get = |name: &str, room: usize| {
            let mut value = vec![0; room];
            rustix::fs::getxattr(&path, name, &mut value[..]).map(|len| value[..len].to_vec())
        };
        let set = |flags| rustix::fs::setxattr(&path, "user.a", b"value", flags);
        assert_eq!(get("user.a", 100), Err(Errno::NODATA));
        assert_eq!(set(XattrFlags::REPLACE), Err(Errno::NODATA));
        set(XattrFlags::CREATE).unwrap();
        assert_eq!(set(XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(get("user.a", 100).unwrap(), b"value");
        assert_eq!(get("user.a", 4), Err(Errno::RANGE));
        let mut names = [0_u8; 100];
        let len = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
        assert_eq!(&names[..len], b"user.a\0");
        rustix::fs::removexattr(&path, "user.a").unwrap();
        assert_eq!(get("user.a", 100), Err(Errno::NODATA));
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

async fn locks_are_kept_by_the_server_and_end_with_their_files(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let (path, memory) = (fixture.path.join("f"), fixture.memory.clone());
    off(move || {
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(&path).unwrap()
        };
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        let (a, b) = (open(), open());
        flock(&a, exclusive).unwrap();
        assert_eq!(flock(&b, exclusive), Err(Errno::WOULDBLOCK));
        assert_eq!(memory.locks.held(), 1);
        drop(a);
        // A release is not waited for.
        let began = std::time::Instant::now();
        while flock(&b, exclusive).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "it never ends");
        }

        // A waiter is let in when the file is closed, and one that is killed leaves.
        let mut waiter = std::process::Command::new("flock")
            .arg(&path)
            .arg("true")
            .spawn()
            .unwrap();
        let mut killed = std::process::Command::new("flock")
            .arg(&path)
            .arg("true")
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(waiter.try_wait().unwrap().is_none(), "it waits");
        killed.kill().unwrap();
        assert!(!killed.wait().unwrap().success());
        drop(b);
        assert!(waiter.wait().unwrap().success());
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
    assert_eq!(fixture.memory.locks.held(), 0);
}

async fn holes_copies_and_files_without_names(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let dir = fixture.path.clone();
    off(move || {
        let open = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            options.open(dir.join(name)).unwrap()
        };
        let a = open("a");
        a.write_all_at(&[7; 12_288], 0).unwrap();
        a.sync_all().unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&a, punch, 4096, 4096).unwrap();
        rustix::fs::fallocate(&a, FallocateFlags::empty(), 0, 20_000).unwrap();
        assert_eq!(a.metadata().unwrap().len(), 20_000);
        let odd = FallocateFlags::COLLAPSE_RANGE;
        assert_eq!(
            rustix::fs::fallocate(&a, odd, 0, 4096),
            Err(Errno::OPNOTSUPP)
        );
        let seek = |from| rustix::fs::seek(&a, from);
        assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), Ok(4096));
        assert_eq!(seek(rustix::fs::SeekFrom::Data(4096)), Ok(8192));
        assert_eq!(seek(rustix::fs::SeekFrom::Data(12_288)), Err(Errno::NXIO));

        let b = open("b");
        let (mut from, mut to) = (8192, 0);
        let copied = rustix::fs::copy_file_range(&a, Some(&mut from), &b, Some(&mut to), 4096);
        assert_eq!(copied, Ok(4096));
        let mut back = [0; 4096];
        b.read_exact_at(&mut back, 0).unwrap();
        assert!(back == [7; 4096]);

        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let unnamed = rustix::fs::open(&dir, flags, Mode::RUSR).unwrap();
        let unnamed = File::from(unnamed);
        assert_eq!(unnamed.metadata().unwrap().nlink(), 0);
        let link = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&unnamed)
        );
        let name = dir.join("named");
        linkat(CWD, link.as_str(), CWD, &name, AtFlags::SYMLINK_FOLLOW).unwrap();
        assert!(name.exists());
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

async fn an_append_goes_to_the_real_end(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let (path, memory) = (fixture.path.join("log"), fixture.memory.clone());
    off(move || {
        fs::write(&path, "one ").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let mut log = File::options().append(true).read(true).open(&path).unwrap();
        log.write_all(b"two ").unwrap();
        log.sync_all().unwrap();
        // Another machine has appended, and the kernel does not know it.
        memory.write_elsewhere(inode, b"one two three ");
        log.write_all(b"four").unwrap();
        assert_eq!(memory.contents(inode), b"one two three four");
        assert_eq!(log.metadata().unwrap().len(), 18);
        let mut text = String::new();
        log.seek(SeekFrom::Start(0)).unwrap();
        log.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three four");
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

async fn a_write_by_a_user_takes_set_id_bits(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.join("program");
    off(move || {
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        fs::write(&path, "by root").unwrap();
        assert_eq!(mode(), 0o6777);
        let writer = path.clone();
        std::thread::spawn(move || {
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let file = File::options().write(true).open(writer).unwrap();
            file.write_all_at(b"y", 0).unwrap();
        })
        .join()
        .unwrap();
        assert_eq!(mode(), 0o777);
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}
