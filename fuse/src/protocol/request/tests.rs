use proptest::prelude::*;

use super::*;

fn decode_message(bytes: &[u8]) -> Option<(Head, Option<Operation>)> {
    super::decode_message(bytes, |_, data| Bytes::copy_from_slice(data))
}

/// A message as the device gives it, field by field.
fn message(opcode: u32, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((abi::IN_HEADER + body.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&77u64.to_ne_bytes());
    bytes.extend_from_slice(&5u64.to_ne_bytes());
    for value in [1000u32, 1001, 4242, 0] {
        bytes.extend_from_slice(&value.to_ne_bytes());
    }
    bytes.extend_from_slice(&body);
    bytes
}

fn decoded(opcode: u32, fields: &[&[u8]]) -> Operation {
    let (head, operation) = decode_message(&message(opcode, fields)).unwrap();
    assert_eq!(
        head,
        Head {
            opcode,
            unique: 77,
            node: 5,
            uid: 1000,
            gid: 1001,
            pid: 4242
        }
    );
    operation.unwrap()
}

fn four(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

fn eight(value: u64) -> [u8; 8] {
    value.to_ne_bytes()
}

/// Compares what `Debug` shows: operations hold types without equality.
#[track_caller]
fn same(got: &Operation, expected: &Operation) {
    assert_eq!(format!("{got:?}"), format!("{expected:?}"));
}

fn text(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

#[test]
fn names_are_read_up_to_their_zero() {
    same(
        &decoded(op::LOOKUP, &[b"file\0"]),
        &Operation::Lookup { name: text("file") },
    );
    same(
        &decoded(op::SYMLINK, &[b"link\0", b"../target\0"]),
        &Operation::Symlink {
            name: text("link"),
            target: text("../target"),
        },
    );
    let renamed = |flags| Operation::Rename {
        name: text("a"),
        new_parent: 9,
        new_name: text("b"),
        flags,
    };
    same(&decoded(op::RENAME, &[&eight(9), b"a\0b\0"]), &renamed(0));
    same(
        &decoded(op::RENAME2, &[&eight(9), &four(1), &four(0), b"a\0b\0"]),
        &renamed(1),
    );
    same(
        &decoded(op::LINK, &[&eight(12), b"hard\0"]),
        &Operation::Link {
            node: 12,
            name: text("hard"),
        },
    );
}

#[test]
fn what_is_created_has_its_mode() {
    same(
        &decoded(
            op::MKNOD,
            &[&four(0o10644), &four(3), &four(0o22), &four(0), b"fifo\0"],
        ),
        &Operation::MkNod {
            name: text("fifo"),
            mode: 0o10644,
            umask: 0o22,
            rdev: 3,
        },
    );
    same(
        &decoded(op::MKDIR, &[&four(0o755), &four(0o22), b"dir\0"]),
        &Operation::MkDir {
            name: text("dir"),
            mode: 0o755,
            umask: 0o22,
        },
    );
    let flags = four(libc::O_RDWR.cast_unsigned());
    same(
        &decoded(
            op::CREATE,
            &[&flags, &four(0o100_600), &four(0o22), &four(0), b"new\0"],
        ),
        &Operation::Create {
            name: text("new"),
            mode: 0o100_600,
            umask: 0o22,
            flags: libc::O_RDWR,
        },
    );
    same(
        &decoded(
            op::TMPFILE,
            &[&flags, &four(0o100_600), &four(0o22), &four(0), b"/\0"],
        ),
        &Operation::TmpFile {
            mode: 0o100_600,
            umask: 0o22,
            flags: libc::O_RDWR,
        },
    );
}

#[test]
fn reads_writes_and_handles() {
    let (handle, offset, size) = (eight(3), eight(1 << 40), four(4));
    let io = [&handle[..], &offset, &size, &[0; 20]];
    same(
        &decoded(op::READ, &io),
        &Operation::Read {
            handle: 3,
            offset: 1 << 40,
            size: 4,
        },
    );
    same(
        &decoded(op::READDIRPLUS, &io),
        &Operation::ReadDir {
            handle: 3,
            offset: 1 << 40,
            size: 4,
            plus: true,
        },
    );
    let write = message(op::WRITE, &[&io.concat(), b"data"]);
    let (_, operation) = decode_message(&write).unwrap();
    same(
        &operation.unwrap(),
        &Operation::Write {
            handle: 3,
            offset: 1 << 40,
            data: text("data"),
            kill_ids: false,
            append: false,
        },
    );
    let flags = four(abi::WRITE_KILL_SUIDGID);
    let kill = message(
        op::WRITE,
        &[&handle, &offset, &size, &flags, &[0; 16], b"data"],
    );
    let (_, operation) = decode_message(&kill).unwrap();
    let kill_ids = |op: &Operation| matches!(op, Operation::Write { kill_ids: true, .. });
    assert!(operation.is_some_and(|operation| kill_ids(&operation)));
    let short = message(op::WRITE, &[&io.concat(), b"dat"]);
    assert!(decode_message(&short).unwrap().1.is_none());
    same(
        &decoded(op::FSYNC, &[&eight(3), &eight(0)]),
        &Operation::FSync { handle: 3 },
    );
    same(
        &decoded(op::RELEASEDIR, &[&eight(3), &[0; 16]]),
        &Operation::ReleaseDir { handle: 3 },
    );
    let (handle, owner) = (3, 8);
    same(
        &decoded(op::FLUSH, &[&eight(3), &[0; 8], &eight(8)]),
        &Operation::Flush { handle, owner },
    );
    for (bits, flock) in [(1, None), (2, Some(8)), (3, Some(8))] {
        same(
            &decoded(op::RELEASE, &[&eight(3), &four(0), &four(bits), &eight(8)]),
            &Operation::Release { handle, flock },
        );
    }
}

#[test]
fn extended_attributes_and_their_sizes() {
    let (name, value) = (text("user.a"), text("one"));
    let set = Operation::SetXattr {
        name: name.clone(),
        value,
        flags: 2,
    };
    let fixed = [four(3), four(2)].concat();
    same(&decoded(op::SETXATTR, &[&fixed, b"user.a\0one"]), &set);
    let short = message(op::SETXATTR, &[&fixed, b"user.a\0on"]);
    assert!(decode_message(&short).unwrap().1.is_none());
    let get = Operation::GetXattr {
        name: name.clone(),
        size: 100,
    };
    same(
        &decoded(op::GETXATTR, &[&four(100), &four(0), b"user.a\0"]),
        &get,
    );
    same(
        &decoded(op::LISTXATTR, &[&four(7), &four(0)]),
        &Operation::ListXattr { size: 7 },
    );
    same(
        &decoded(op::REMOVEXATTR, &[b"user.a\0"]),
        &Operation::RemoveXattr { name },
    );
}

#[test]
fn locks_and_ranges() {
    let kind = four(libc::F_WRLCK.cast_unsigned());
    let fields = [
        &eight(3)[..],
        &eight(8),
        &eight(100),
        &eight(199),
        &kind,
        &four(4242),
    ];
    let lock = |flock| Lock {
        handle: 3,
        owner: 8,
        start: 100,
        end: 199,
        kind: libc::F_WRLCK,
        pid: 4242,
        flock,
    };
    for (opcode, flags, expected) in [
        (op::GETLK, 0, Operation::GetLock { lock: lock(false) }),
        (
            op::SETLK,
            1,
            Operation::SetLock {
                lock: lock(true),
                wait: false,
            },
        ),
        (
            op::SETLKW,
            0,
            Operation::SetLock {
                lock: lock(false),
                wait: true,
            },
        ),
    ] {
        same(
            &decoded(opcode, &[&fields.concat(), &four(flags), &four(0)]),
            &expected,
        );
    }
    same(
        &decoded(
            op::FALLOCATE,
            &[&eight(3), &eight(4), &eight(5), &four(3), &four(0)],
        ),
        &Operation::Allocate {
            handle: 3,
            offset: 4,
            len: 5,
            mode: 3,
        },
    );
    let data = four(libc::SEEK_DATA.cast_unsigned());
    same(
        &decoded(op::LSEEK, &[&eight(3), &eight(4), &data, &four(0)]),
        &Operation::Seek {
            handle: 3,
            offset: 4,
            whence: 3,
        },
    );
    let copy = [1u64, 2, 99, 3, 4, 5, 0].map(eight).concat();
    same(
        &decoded(op::COPY_FILE_RANGE, &[&copy]),
        &Operation::CopyRange {
            from: 1,
            from_offset: 2,
            to: 3,
            to_offset: 4,
            len: 5,
        },
    );
    same(
        &decoded(op::INTERRUPT, &[&eight(76)]),
        &Operation::Interrupt { unique: 76 },
    );
}

#[test]
fn only_attributes_that_are_set_are_changed() {
    let mut fixed = [0xff; 88];
    let valid = attr::MODE | attr::SIZE | attr::ATIME | attr::MTIME | attr::MTIME_NOW;
    fixed[..4].copy_from_slice(&four(valid));
    fixed[16..24].copy_from_slice(&eight(4096));
    fixed[32..40].copy_from_slice(&(-2i64).to_ne_bytes());
    fixed[56..60].copy_from_slice(&four(500_000_000));
    fixed[68..72].copy_from_slice(&four(0o100_640));
    let changed = Operation::SetAttr {
        changes: SetAttr {
            mode: Some(0o640),
            uid: None,
            gid: None,
            size: Some(4096),
            atime: Some(TimeSet::At(UNIX_EPOCH - Duration::from_millis(1500))),
            mtime: Some(TimeSet::Now),
        },
        handle: None,
    };
    same(&decoded(op::SETATTR, &[&fixed]), &changed);
}

#[test]
fn batches_of_forgets_are_as_long_as_they_say() {
    let pairs = [1u64, 1, 2, 5].map(eight).concat();
    same(
        &decoded(op::BATCH_FORGET, &[&four(2), &four(0), &pairs]),
        &Operation::Forget { nodes: vec![1, 2] },
    );
    let long = message(op::BATCH_FORGET, &[&four(u32::MAX), &four(0), &pairs]);
    assert!(decode_message(&long).unwrap().1.is_none());
}

#[test]
fn what_is_not_served_is_refused() {
    const ACCESS: u32 = 34;
    for (opcode, errno) in [
        (ACCESS, libc::ENOSYS),
        (op::IOCTL, libc::ENOTTY),
        (9999, libc::ENOSYS),
    ] {
        same(&decoded(opcode, &[&[0; 64]]), &Operation::Refused(errno));
    }
}

#[test]
fn malformed_requests_are_no_requests() {
    assert_eq!(Head::decode(&[0; 35]), None);
    for opcode in [op::LOOKUP, op::SYMLINK, op::RENAME, op::OPEN, op::SETATTR] {
        let (_, operation) = decode_message(&message(opcode, &[b"abc"])).unwrap();
        assert!(operation.is_none(), "{opcode}");
    }
    let one_name = message(op::RENAME, &[&eight(1), b"only\0"]);
    assert!(decode_message(&one_name).unwrap().1.is_none());
}

proptest! {
    #[test]
    fn no_message_panics(opcode in 0u32..60, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_message(&message(opcode, &[&body]));
        let _ = decode_message(&body);
        let _ = Operation::decode(opcode, &body, &body);
    }

    #[test]
    fn no_time_panics(seconds: i64, nanos: u32) {
        let _ = system_time(seconds, nanos);
    }
}
