use emberfs_proto::pb::{FileKind, Time};
use proptest::prelude::*;

use super::*;
use crate::protocol::abi::{u32_at, u64_at};

const TTL: Lifetimes = Lifetimes {
    entry: Duration::new(1, 2),
    attr: Duration::new(3, 4),
};

fn attr() -> Attr {
    Attr {
        inode: 7,
        generation: 8,
        kind: FileKind::Symlink as i32,
        mode: 0o777,
        uid: 9,
        gid: 10,
        nlink: 11,
        size: 1025,
        atime: Some(Time {
            seconds: -1,
            nanos: 5,
        }),
        mtime: Some(Time {
            seconds: 12,
            nanos: 13,
        }),
        rdev: 14,
        ..Attr::default()
    }
}

/// `fuse_attr` of [`attr`] at an offset.
#[track_caller]
fn assert_attributes(bytes: &[u8], at: usize) {
    let eights: Vec<_> = (0..6).map(|i| u64_at(bytes, at + 8 * i).unwrap()).collect();
    assert_eq!(eights, [7, 1025, 3, u64::MAX, 12, 0]);
    let fours: Vec<_> = (0..10)
        .map(|i| u32_at(bytes, at + 48 + 4 * i).unwrap())
        .collect();
    let mode = libc::S_IFLNK | 0o777;
    assert_eq!(fours, [5, 13, 0, mode, 11, 9, 10, 14, 128 << 10, 0]);
}

#[test]
fn headers_say_length_errno_and_request() {
    let reply = Reply::data(Bytes::from_static(b"abcd"));
    let header = reply.header(99);
    assert_eq!(u32_at(&header, 0), Some(20));
    assert_eq!(u32_at(&header, 4), Some(0));
    assert_eq!(u64_at(&header, 8), Some(99));
    let header = Reply::error(libc::ENOENT).header(1);
    assert_eq!(u32_at(&header, 0), Some(16));
    assert_eq!(u32_at(&header, 4), Some((-libc::ENOENT).cast_unsigned()));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let reply = Reply::data(Bytes::from_static(b"abcd"));
    assert_eq!(reply.clone().limited(4), reply);
    assert_eq!(reply.limited(3), Reply::error(libc::EIO));
}

#[test]
fn entries_and_attributes_lie_where_the_kernel_reads_them() {
    let entry = entry(&attr(), TTL).data;
    assert_eq!(entry.len(), 128);
    let eights: Vec<_> = (0..4).map(|i| u64_at(&entry, 8 * i).unwrap()).collect();
    assert_eq!(eights, [7, 8, 1, 3]);
    assert_eq!((u32_at(&entry, 32), u32_at(&entry, 36)), (Some(2), Some(4)));
    assert_attributes(&entry, 40);
    let attributes = attributes(&attr(), 3, TTL.attr).data;
    assert_eq!(attributes.len(), 104);
    assert_eq!(u64_at(&attributes, 0), Some(3));
    assert_eq!(u32_at(&attributes, 8), Some(4));
    assert_attributes(&attributes, 16);
    let created = created(&attr(), TTL, 21, 22).data;
    assert_eq!(created.len(), 144);
    assert_eq!(
        (u64_at(&created, 16), u64_at(&created, 24)),
        (Some(1), Some(3))
    );
    assert_attributes(&created, 40);
    assert_eq!(created[128..], opened(21, 22).data);
    assert_eq!(u64_at(&created, 128), Some(21));
    assert_eq!(u32_at(&created, 136), Some(22));
    assert_eq!(written(5).data[..], [5u32.to_ne_bytes(), [0; 4]].concat());
}

fn item(name: &'static str, cookie: u64) -> DirItem {
    DirItem {
        node: 7,
        cookie,
        name: Bytes::from_static(name.as_bytes()),
        kind: FileKind::Directory,
        attr: None,
    }
}

#[test]
fn listings_hold_whole_entries_up_to_the_size() {
    let items = [item("a", 1), item("eight888", 2), item("nine99999", 3)];
    let all = listing(&items, 4096, None).data;
    assert_eq!(all.len(), 32 + 32 + 40);
    assert_eq!(u64_at(&all, 0), Some(7));
    assert_eq!(u64_at(&all, 32 + 8), Some(2));
    assert_eq!(u32_at(&all, 32 + 16), Some(8));
    assert_eq!(u32_at(&all, 32 + 20), Some(4));
    assert_eq!(all[32 + 24..64], *b"eight888");
    assert_eq!(listing(&items, 103, None).data, all[..64]);
    assert_eq!(listing(&items, 31, None).data.len(), 0);
    let plus = listing(&items, 4096, Some(&|_| TTL)).data;
    assert_eq!(plus.len(), all.len() + 3 * 128);
    assert_eq!(plus[128..160], all[..32]);
    assert_eq!(u64_at(&plus, 0), Some(7));
}

#[test]
fn usage_is_in_blocks() {
    let bytes = usage(&StatFsReply {
        capacity: 40960,
        free: 8192,
        inodes: 3,
        inodes_free: 2,
    })
    .data;
    assert_eq!(bytes.len(), 80);
    let eights: Vec<_> = (0..5).map(|i| u64_at(&bytes, 8 * i).unwrap()).collect();
    assert_eq!(eights, [10, 2, 2, 3, 2]);
    let fours: Vec<_> = (0..3)
        .map(|i| u32_at(&bytes, 40 + 4 * i).unwrap())
        .collect();
    assert_eq!(fours, [4096, 255, 4096]);
}

#[test]
fn a_notification_names_the_node_and_no_pages() {
    let bytes = stale_attributes(7);
    assert_eq!(bytes.len(), 40);
    assert_eq!(u32_at(&bytes, 0), Some(40));
    assert_eq!(u32_at(&bytes, 4), Some(abi::NOTIFY_INVAL_INODE));
    let eights: Vec<_> = (1..5).map(|i| u64_at(&bytes, 8 * i).unwrap()).collect();
    assert_eq!(eights, [0, 7, u64::MAX, 0]);
}

#[test]
fn other_notifications_name_pages_and_names() {
    let pages = stale_pages(7);
    assert_eq!(u64_at(&pages, 24), Some(0), "from the first page on");
    let name = stale_name(7, b"name");
    assert_eq!(u32_at(&name, 0), Some(name.len() as u32));
    assert_eq!(u32_at(&name, 4), Some(abi::NOTIFY_INVAL_ENTRY));
    assert_eq!((u64_at(&name, 16), u32_at(&name, 24)), (Some(7), Some(4)));
    assert_eq!(u32_at(&name, 28), Some(abi::EXPIRE_ONLY));
    assert_eq!(name[32..], *b"name\0");
    let mut gone = vacated_name(7, b"name");
    assert_eq!(u32_at(&gone, 28), Some(0));
    without_force(&mut gone);
    assert_eq!(gone, name);
    let (mut inode, before) = (stale_pages(7), stale_pages(7));
    without_force(&mut inode);
    assert_eq!(inode, before);
}

#[test]
fn values_are_sized_and_locks_described() {
    let value = Bytes::from_static(b"value");
    assert_eq!(sized(value.clone(), 0), written(5));
    assert_eq!(sized(value.clone(), 4), Reply::error(libc::ERANGE));
    assert_eq!(sized(value.clone(), 5), Reply::data(value));
    let found = LockInfo {
        kind: LockKind::Exclusive,
        start: 1,
        end: 2,
        pid: 3,
    };
    let bytes = lock(Some(&found)).data;
    assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 8)), (Some(1), Some(2)));
    let kind = u32_at(&bytes, 16).map(u32::cast_signed);
    assert_eq!((kind, u32_at(&bytes, 20)), (Some(libc::F_WRLCK), Some(3)));
    let none = lock(None).data;
    assert_eq!(u32_at(&none, 16).map(u32::cast_signed), Some(libc::F_UNLCK));
    assert_eq!(offset(9).data[..], 9u64.to_ne_bytes());
    let missing = no_entry(TTL.entry).data;
    assert_eq!(
        (missing.len(), u64_at(&missing, 0), u64_at(&missing, 16)),
        (128, Some(0), Some(1))
    );
}

proptest! {
    #[test]
    fn times_before_and_after_1970_keep_their_value(seconds: i64, nanos in 0u32..1_000_000_000) {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let time = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
        prop_assert_eq!(since_epoch(time + Duration::from_nanos(nanos.into())), (seconds, nanos));
    }
}
