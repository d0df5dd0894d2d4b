use proptest::prelude::*;

use super::*;

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
            rdev: 3,
        },
    );
    same(
        &decoded(op::MKDIR, &[&four(0o755), &four(0o22), b"dir\0"]),
        &Operation::MkDir {
            name: text("dir"),
            mode: 0o755,
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
        },
    );
    let short = message(op::WRITE, &[&io.concat(), b"dat"]);
    assert!(decode_message(&short).unwrap().1.is_none());
    same(
        &decoded(op::FSYNC, &[&eight(3), &eight(0)]),
        &Operation::FSync { handle: 3 },
    );
    for (opcode, expected) in [
        (op::FLUSH, Operation::Flush { handle: 3 }),
        (op::RELEASE, Operation::Release { handle: 3 }),
        (op::RELEASEDIR, Operation::ReleaseDir { handle: 3 }),
    ] {
        same(&decoded(opcode, &[&eight(3), &[0; 16]]), &expected);
    }
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
fn what_is_not_served_is_refused_as_the_classic_transport_does() {
    const GETXATTR: u32 = 22;
    for (opcode, errno) in [
        (GETXATTR, libc::ENOSYS),
        (op::INTERRUPT, libc::ENOSYS),
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
