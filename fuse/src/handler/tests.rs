use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use emberfs_client::{Creds, NewMode, RenameFlags, SetAttr};
use emberfs_proto::ErrorCode;
use emberfs_proto::ids::InodeId;
use libc::{O_APPEND, O_CREAT, O_DSYNC, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use parking_lot::Mutex;

use super::{Asked, Handler, ROOT_NODE};
use crate::takeover::Ledger;
use crate::testing::Memory;

fn handler() -> (Handler<Memory>, Memory, Creds) {
    let memory = Memory::new();
    (
        Handler::new(memory.clone(), InodeId::ROOT, false),
        memory,
        Creds::default(),
    )
}

const fn mode(mode: u32) -> NewMode {
    NewMode { mode, umask: 0 }
}

const MODE: NewMode = mode(0o644);
const DIR: NewMode = mode(0o755);
const DATA: Bytes = Bytes::from_static(b"twelve bytes");

#[tokio::test]
async fn unsynced_writes_are_in_every_answer() {
    let (handler, memory, me) = handler();
    let (attr, open) = handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_RDWR)
        .await
        .unwrap();
    handler
        .write(open.handle, 0, DATA, (None, false))
        .await
        .unwrap();
    assert_eq!(
        memory.server_attr(attr.inode).size,
        0,
        "the fake lags, as servers do"
    );
    assert_eq!(handler.getattr(attr.inode).await.unwrap().0.size, 12);
    assert_eq!(handler.lookup(&me, ROOT_NODE, b"f").await.unwrap().size, 12);
    let dir = handler.opendir(ROOT_NODE);
    let listed = handler.readdir(dir, 0, true).await.unwrap();
    assert_eq!(listed[2].attr.as_ref().unwrap().size, 12);
    assert_eq!(
        handler.read(open.handle, 6, 100).await.unwrap(),
        DATA.slice(6..)
    );
}

#[tokio::test]
async fn close_waits_for_written_data_and_reports_its_errors() {
    let (handler, memory, me) = handler();
    let (attr, open) = handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_WRONLY)
        .await
        .unwrap();
    handler
        .write(open.handle, 0, DATA, (None, false))
        .await
        .unwrap();
    memory.fail_sync.store(true, Ordering::Relaxed);
    assert_eq!(
        handler.flush(open.handle, 0).await.unwrap_err().code,
        ErrorCode::NoSpace
    );
    memory.fail_sync.store(false, Ordering::Relaxed);
    handler.flush(open.handle, 0).await.unwrap();
    assert_eq!(memory.server_attr(attr.inode).size, 12);
    let syncs = memory.syncs.load(Ordering::Relaxed);
    handler.flush(open.handle, 0).await.unwrap();
    handler.release(open.handle, None).await.unwrap();
    assert_eq!(
        memory.syncs.load(Ordering::Relaxed),
        syncs,
        "nothing new to flush"
    );
    assert_eq!(memory.open_files.load(Ordering::Relaxed), 0);
    assert_eq!(
        handler.flush(open.handle, 0).await.unwrap_err().code,
        ErrorCode::NoSession
    );
}

#[tokio::test]
async fn a_late_close_is_made_good_at_the_release_or_by_an_fsync() {
    let (handler, memory, me) = handler();
    memory.late_closes.store(true, Ordering::Relaxed);
    let new = async |name: &str| {
        let (attr, open) = handler
            .create(&me, ROOT_NODE, name.as_bytes(), MODE, O_CREAT | O_WRONLY)
            .await
            .unwrap();
        let written = handler.write(open.handle, 0, DATA, (None, false));
        written.await.unwrap();
        handler.flush(open.handle, 0).await.unwrap();
        (attr.inode, open.handle)
    };
    let size = |inode| memory.server_attr(inode).size;
    let (inode, handle) = new("released").await;
    assert_eq!(size(inode), 0);
    handler.release(handle, None).await.unwrap();
    assert_eq!(size(inode), 12);

    let (inode, handle) = new("synced").await;
    let reader = handler.open(&me, inode, O_RDONLY).await.unwrap();
    assert_eq!(memory.waits.load(Ordering::Relaxed), 0);
    handler.fsync(reader.handle).await.unwrap();
    assert_eq!(memory.waits.load(Ordering::Relaxed), 1, "for its name");
    assert_eq!(size(inode), 12);
    memory.fail_sync.store(true, Ordering::Relaxed);
    handler.release(handle, None).await.unwrap();
    memory.fail_sync.store(false, Ordering::Relaxed);

    // Not for ever more of them.
    let mut open = Vec::new();
    for n in 0.. {
        let (inode, handle) = new(&n.to_string()).await;
        open.push(handle);
        if size(inode) > 0 {
            break;
        }
    }
    assert_eq!(open.len(), 257);
    handler.release(open.remove(0), None).await.unwrap();
    let (inode, _) = new("room again").await;
    assert_eq!(size(inode), 0);
    handler.finish().await;
    assert_eq!(memory.open_files.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_synchronous_write_is_on_the_server_when_it_returns() {
    let (handler, memory, me) = handler();
    let flags = O_CREAT | O_WRONLY | O_DSYNC;
    let (attr, open) = handler
        .create(&me, ROOT_NODE, b"f", MODE, flags)
        .await
        .unwrap();
    handler
        .write(open.handle, 0, DATA, (None, false))
        .await
        .unwrap();
    assert_eq!(memory.server_attr(attr.inode).size, 12);
}

#[tokio::test]
async fn fsync_through_a_reader_covers_the_writers() {
    let (handler, memory, me) = handler();
    let (attr, writer) = handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_WRONLY)
        .await
        .unwrap();
    let reader = handler.open(&me, attr.inode, O_RDONLY).await.unwrap();
    handler
        .write(writer.handle, 0, DATA, (None, false))
        .await
        .unwrap();
    handler.fsync(reader.handle).await.unwrap();
    assert_eq!(memory.server_attr(attr.inode).size, 12);
}

#[tokio::test]
async fn a_truncate_comes_after_the_writes_before_it() {
    let (handler, memory, me) = handler();
    let (attr, open) = handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_WRONLY)
        .await
        .unwrap();
    handler
        .write(open.handle, 0, DATA, (None, false))
        .await
        .unwrap();
    let shorter = SetAttr {
        size: Some(3),
        ..SetAttr::default()
    };
    let shown = handler
        .setattr(&me, attr.inode, shorter, Some(open.handle))
        .await
        .unwrap();
    assert_eq!(shown.size, 3);
    handler.release(open.handle, None).await.unwrap();
    assert_eq!(memory.server_attr(attr.inode).size, 3);
    assert_eq!(handler.getattr(attr.inode).await.unwrap().0.size, 3);
}

#[tokio::test]
async fn an_opening_truncate_empties_what_another_handle_wrote() {
    let (handler, _, me) = handler();
    let (attr, open) = handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_WRONLY)
        .await
        .unwrap();
    handler
        .write(open.handle, 0, DATA, (None, false))
        .await
        .unwrap();
    handler
        .open(&me, attr.inode, O_WRONLY | O_TRUNC)
        .await
        .unwrap();
    assert_eq!(handler.getattr(attr.inode).await.unwrap().0.size, 0);
}

#[tokio::test]
async fn a_reopened_file_keeps_its_pages_until_another_machine_writes() {
    let (handler, memory, me) = handler();
    let inode = memory.create_elsewhere(1, "f", b"first");
    handler.lookup(&me, ROOT_NODE, b"f").await.unwrap();
    for round in 0..3 {
        let open = handler.open(&me, inode, O_RDONLY).await.unwrap();
        assert_eq!(open.keep_cache, round > 0);
        assert!(!open.attr_stale);
        handler.read(open.handle, 0, 10).await.unwrap();
        handler.release(open.handle, None).await.unwrap();
    }
    memory.write_elsewhere(inode, b"other");
    let open = handler.open(&me, inode, O_RDONLY).await.unwrap();
    assert!(!open.keep_cache);
    assert!(open.attr_stale);
}

#[tokio::test]
async fn what_this_mount_wrote_stays_cached() {
    let (handler, _, me) = handler();
    let (attr, open) = handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_RDWR)
        .await
        .unwrap();
    handler
        .write(open.handle, 0, DATA, (None, false))
        .await
        .unwrap();
    handler.flush(open.handle, 0).await.unwrap();
    handler.release(open.handle, None).await.unwrap();
    assert!(
        handler
            .open(&me, attr.inode, O_RDONLY)
            .await
            .unwrap()
            .keep_cache
    );
}

#[tokio::test]
async fn a_subdirectory_is_node_one() {
    let (_, memory, me) = handler();
    let whole = Handler::new(memory.clone(), InodeId::ROOT, false);
    let dir = whole.mkdir(&me, ROOT_NODE, b"sub", DIR).await.unwrap();
    whole.mkdir(&me, dir.inode, b"inner", DIR).await.unwrap();
    let part = Handler::new(memory, InodeId(dir.inode), false);
    assert_eq!(part.getattr(ROOT_NODE).await.unwrap().0.inode, ROOT_NODE);
    let inner = part.lookup(&me, ROOT_NODE, b"inner").await.unwrap();
    let handle = part.opendir(inner.inode);
    let items = part.readdir(handle, 0, false).await.unwrap();
    assert_eq!((items[0].node, items[1].node), (inner.inode, ROOT_NODE));
}

#[tokio::test]
async fn names_and_kinds_are_checked() {
    let (handler, _, me) = handler();
    let long = vec![b'x'; 256];
    let error = handler.mkdir(&me, ROOT_NODE, &long, DIR).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NameTooLong);
    let error = handler
        .rename(
            &me,
            (ROOT_NODE, b"a"),
            (ROOT_NODE, &long),
            RenameFlags::default(),
        )
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::NameTooLong);
    let error = handler
        .mknod(&me, ROOT_NODE, b"d", mode(libc::S_IFDIR | 0o755), 0)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn the_end_closes_what_the_kernel_left_open() {
    let (handler, memory, me) = handler();
    handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_WRONLY)
        .await
        .unwrap();
    assert_eq!(memory.open_files.load(Ordering::Relaxed), 1);
    handler.finish().await;
    assert_eq!(memory.open_files.load(Ordering::Relaxed), 0);
    assert!(memory.shut_down.load(Ordering::Relaxed));
}

#[tokio::test]
async fn an_append_is_made_once_though_its_successor_dies_between_storing_and_answering() {
    for room in [true, false] {
        append_once(room).await;
    }
}

/// `room`: for the bytes of the first attempt, where its successors look for them.
async fn append_once(room: bool) {
    let memory = Memory::new();
    let files = Ledger::create().unwrap();
    let begin = || {
        let twins = files.each_ref().map(|file| file.try_clone().unwrap());
        let (ledger, found) = Ledger::open(twins).unwrap();
        let handler = Handler::new(memory.clone(), InodeId::ROOT, false);
        (handler.with_ledger(Arc::new(ledger)), found)
    };
    let asked = |number, again| Asked { number, again };
    let append = || (None, true);

    let (first, found) = begin();
    first.resume(found, true).await.unwrap();
    let me = Creds::default();
    let made = first.create(&me, ROOT_NODE, b"log", MODE, O_CREAT | O_RDWR);
    let (_, open) = first.create_once(asked(2, false), made).await.unwrap();
    let data = if room {
        first.keep_bytes(4, &DATA)
    } else {
        DATA
    };
    let written = first.write_once(asked(4, false), open.handle, 0, data.clone(), append());
    let kept = written.await.unwrap().kept;
    // It dies before it answers, and the next one when it has stored what the first one left.
    std::mem::forget((first, data, kept));
    let (second, found) = begin();
    second.resume(found, true).await.unwrap();
    std::mem::forget(second);

    let (third, found) = begin();
    third.resume(found, true).await.unwrap();
    let data = third.keep_bytes(4, &DATA);
    let written = third.write_once(asked(4, true), open.handle, 0, data, append());
    written.await.unwrap();
    let seen = third.read(open.handle, 0, 100).await.unwrap();
    assert_eq!(seen, DATA, "room: {room}");
}

#[tokio::test]
async fn a_small_file_is_read_while_it_is_opened_unless_it_is_cached_or_may_be_written() {
    let (handler, memory, me) = handler();
    let early = async |name: &str, flags| {
        let before = memory.early_reads.load(Ordering::Relaxed);
        let found = handler.lookup(&me, ROOT_NODE, name.as_bytes()).await;
        let opened = handler.open(&me, found.unwrap().inode, flags).await;
        let opened = opened.unwrap().handle;
        let early = memory.early_reads.load(Ordering::Relaxed) > before;
        (early, opened)
    };
    for (name, size) in [
        ("small", 10),
        ("empty", 0),
        ("large", 1 << 20),
        ("mine", 10),
    ] {
        memory.create_elsewhere(1, name, &vec![1; size]);
    }
    assert!(!early("empty", O_RDONLY).await.0 && !early("large", O_RDONLY).await.0);
    for flags in [O_RDWR, O_WRONLY | O_TRUNC] {
        assert!(!early("mine", flags).await.0, "{flags:o}");
    }
    let (read, first) = early("small", O_RDONLY).await;
    assert!(read);
    assert!(!early("small", O_RDONLY).await.0, "it is open");
    let (_, second) = early("small", O_RDONLY).await;
    handler.read(first, 0, 10).await.unwrap();
    for open in [first, second, second - 1] {
        handler.release(open, None).await.unwrap();
    }
    assert!(!early("small", O_RDONLY).await.0, "the kernel has it");
}

#[tokio::test]
async fn pages_that_a_file_has_outgrown_go_before_its_length_is_told() {
    let (handler, memory, me) = handler();
    let dropped = Arc::new(Mutex::new(Vec::new()));
    let told = dropped.clone();
    handler.drop_pages_by(move |node, from| told.lock().push((node, from)));
    let (attr, writer) = handler
        .create(&me, ROOT_NODE, b"f", MODE, O_CREAT | O_RDWR)
        .await
        .unwrap();
    let node = attr.inode;
    let look = async || {
        let size = handler.getattr(node).await.unwrap().0.size;
        (size, std::mem::take(&mut *dropped.lock()))
    };
    // What the kernel writes is in its pages.
    let write = async |open: u64, append| {
        let written = handler.write(open, 0, DATA, (None, append)).await;
        written.unwrap();
    };
    write(writer.handle, false).await;
    assert_eq!(look().await, (12, vec![]));
    // An append goes past them, though not the first look at what it made longer.
    let log = handler.open(&me, node, O_WRONLY | O_APPEND).await.unwrap();
    write(log.handle, true).await;
    assert_eq!(look().await, (24, vec![(node, 12)]));
    assert_eq!(look().await, (24, vec![]));
    // As what others write.
    handler.fsync(log.handle).await.unwrap();
    memory.write_elsewhere(node, &[1; 40]);
    let found = handler.lookup(&me, ROOT_NODE, b"f").await.unwrap();
    assert_eq!(found.size, 40);
    assert_eq!(look().await, (40, vec![(node, 24)]));
    memory.write_elsewhere(node, &[1; 50]);
    let list = handler.opendir(ROOT_NODE);
    let listed = handler.readdir(list, 0, true).await.unwrap();
    assert_eq!((listed[2].node, listed[2].attr), (node, None));
    // Nobody has pages of what is opened for the first time.
    let other = memory.create_elsewhere(1, "g", b"1");
    handler.getattr(other).await.unwrap();
    memory.write_elsewhere(other, &[1; 10]);
    assert_eq!(handler.getattr(other).await.unwrap().0.size, 10);
    assert_eq!(*dropped.lock(), []);
}
