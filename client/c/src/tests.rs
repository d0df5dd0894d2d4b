//! What needs no server: arguments, memory bounds, errors in words, panics.

use std::ffi::CStr;
use std::ptr;

use crate::abi::{Cqe, Options, Sqe, Stat};
use crate::client::{parse_flags, split};
use crate::error::guard;
use crate::exports::*;
use crate::handles::check_owner;
use crate::memory::Region;

/// This thread's last error.
fn said() -> String {
    // SAFETY: the pointer is this thread's last error, which lives until its next failure.
    let text = unsafe { CStr::from_ptr(emberfs_last_error()) };
    text.to_string_lossy().into_owned()
}

#[test]
fn unknown_handles_are_refused_in_words_everywhere() {
    assert_eq!(emberfs_disconnect(77), -libc::EBADF);
    assert_eq!(said(), "emberfs_disconnect: 77 is no open client");
    assert_eq!(emberfs_close(0), -libc::EBADF);
    assert_eq!(emberfs_fsync(u64::MAX), -libc::EBADF);
    assert_eq!(emberfs_ring_unregister(5, 0), -libc::EBADF);
    assert_eq!(emberfs_ring_eventfd(5), -libc::EBADF);
    assert_eq!(emberfs_ring_destroy(5), -libc::EBADF);
    assert_eq!(said(), "emberfs_ring_destroy: 5 is no open ring");
    let (mut handle, mut byte) = (9, 0u8);
    let (mut cqe, sqe) = (Cqe::default(), Sqe::default());
    let mut stat = Stat {
        size: size_of::<Stat>() as u32,
        ..Stat::default()
    };
    let byte = (&raw mut byte).cast();
    // SAFETY: every pointer is to a live local.
    unsafe {
        assert_eq!(
            emberfs_open(5, c"/a".as_ptr(), 0, 0, &raw mut handle),
            -libc::EBADF
        );
        assert_eq!(emberfs_stat(5, c"/a".as_ptr(), &raw mut stat), -libc::EBADF);
        assert_eq!(emberfs_pread(5, byte, 1, 0), -i64::from(libc::EBADF));
        assert_eq!(emberfs_pwrite(5, byte, 0, 0), -i64::from(libc::EBADF));
        assert_eq!(emberfs_ring_create(5, 8, &raw mut handle), -libc::EBADF);
        assert_eq!(emberfs_ring_register(5, byte, 1), -libc::EBADF);
        assert_eq!(emberfs_ring_submit(5, &raw const sqe, 1), -libc::EBADF);
        assert_eq!(emberfs_ring_wait(5, &raw mut cqe, 1, 0, 0), -libc::EBADF);
    }
    assert_eq!(handle, 9, "a failed call wrote a handle");
}

#[test]
fn null_and_nonsense_are_invalid() {
    let mut handle = 9;
    let address = c"127.0.0.1:1".as_ptr();
    let odd = Options {
        size: 3,
        ..Options::default()
    };
    let greedy = Options {
        size: size_of::<Options>() as u32,
        threads: 100_000,
        ..Options::default()
    };
    let mut stat = Stat::default();
    // SAFETY: every pointer is NULL or to a live local.
    unsafe {
        let invalid = -libc::EINVAL;
        assert_eq!(
            emberfs_connect(ptr::null(), ptr::null(), &raw mut handle),
            invalid
        );
        assert_eq!(said(), "emberfs_connect: address is NULL");
        assert_eq!(
            emberfs_connect(address, ptr::null(), ptr::null_mut()),
            invalid
        );
        assert_eq!(
            emberfs_connect(c"\xff".as_ptr(), ptr::null(), &raw mut handle),
            invalid
        );
        assert_eq!(
            emberfs_connect(address, &raw const odd, &raw mut handle),
            invalid
        );
        assert!(said().contains("options.size is 3"), "{}", said());
        assert_eq!(
            emberfs_connect(address, &raw const greedy, &raw mut handle),
            invalid
        );
        assert_eq!(emberfs_open(5, ptr::null(), 0, 0, &raw mut handle), invalid);
        assert_eq!(
            emberfs_open(5, c"/a".as_ptr(), 0, 0, ptr::null_mut()),
            invalid
        );
        assert_eq!(
            emberfs_open(5, c"/a".as_ptr(), -1, 0, &raw mut handle),
            invalid
        );
        assert_eq!(emberfs_stat(5, c"/a".as_ptr(), &raw mut stat), invalid);
        assert_eq!(emberfs_stat(5, c"/a".as_ptr(), ptr::null_mut()), invalid);
        assert_eq!(emberfs_pread(5, ptr::null_mut(), 1, 0), i64::from(invalid));
        assert_eq!(emberfs_ring_create(5, 0, &raw mut handle), invalid);
        assert_eq!(emberfs_ring_create(5, u32::MAX, &raw mut handle), invalid);
        assert_eq!(emberfs_ring_register(5, ptr::null_mut(), 1), invalid);
        assert_eq!(
            emberfs_ring_register(5, (&raw mut handle).cast(), usize::MAX),
            invalid
        );
        assert_eq!(emberfs_ring_submit(5, ptr::null(), 1), invalid);
        assert_eq!(emberfs_ring_wait(5, ptr::null_mut(), 1, 0, 0), invalid);
    }
    assert_eq!(handle, 9, "a failed call wrote a handle");
}

#[test]
fn a_panic_stops_at_the_boundary() {
    assert_eq!(guard("f", || panic!("on purpose")), -i64::from(libc::EIO));
    assert!(said().starts_with("f: a bug"), "{}", said());
    let other = std::thread::spawn(said).join();
    assert_eq!(
        other.ok().as_deref(),
        Some(""),
        "an error is its thread's own"
    );
}

#[test]
fn a_forked_child_is_told_so() {
    assert!(check_owner(0, 7).is_ok() && check_owner(7, 7).is_ok());
    let refused = check_owner(7, 8).expect_err("another process");
    assert_eq!(refused.errno, libc::EPERM);
    assert!(
        refused.message.contains("forked from 7"),
        "{}",
        refused.message
    );
}

#[test]
fn no_part_of_a_region_is_outside_of_it() {
    let mut memory = [1u8; 8];
    // SAFETY: the region is used only while `memory` lives, which nothing else touches until then.
    let region = unsafe { Region::new(memory.as_mut_ptr(), 8) }.expect("a fine region");
    for (offset, len) in [(8, 1), (0, 9), (u64::MAX, 1), (1, u64::MAX), (9, 0)] {
        assert!(region.part(offset, len).is_none(), "{offset}+{len}");
    }
    let part = region.part(2, 3).expect("is inside");
    assert_eq!(part.fill(&[7; 100]), 3);
    assert_eq!(region.copy().as_ref(), [1, 1, 7, 7, 7, 1, 1, 1]);
    assert_eq!(region.part(8, 0).map(|part| part.copy().len()), Some(0));
}

#[test]
fn flags_and_names_are_those_of_open() {
    let flags = parse_flags(libc::O_RDWR | libc::O_APPEND | libc::O_SYNC).expect("known");
    assert!(flags.read && flags.write && flags.append && flags.sync && !flags.direct);
    let flags = parse_flags(libc::O_WRONLY).expect("known");
    assert!(!flags.read && flags.write);
    for unknown in [libc::O_PATH, libc::O_TMPFILE, libc::O_ACCMODE] {
        assert_eq!(
            parse_flags(unknown).expect_err("unknown").errno,
            libc::EINVAL
        );
    }
    assert_eq!(split("/a/b/c").ok(), Some(("/a/b", "c")));
    assert_eq!(split("c").ok(), Some(("", "c")));
    for directory in ["", "/", "/a/..", "."] {
        assert_eq!(
            split(directory).expect_err("a directory").errno,
            libc::EISDIR
        );
    }
}
