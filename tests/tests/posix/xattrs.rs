//! Extended attributes and access control lists.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use emberfs_tests::{ALICE, BOB, CAROL, Checks, as_user};
use rustix::fs::{
    Mode, XattrFlags, chmod, getxattr, listxattr, lstat, removexattr, setxattr, symlink,
};
use rustix::io::Errno;

use super::{make, make_dir, on_a_mount};

const ACCESS: &CStr = c"system.posix_acl_access";
const DEFAULT: &CStr = c"system.posix_acl_default";
const ANY: XattrFlags = XattrFlags::empty();

fn get(path: &Path, name: &CStr) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 70_000];
    let len = getxattr(path, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

fn names(path: &Path) -> Vec<String> {
    let mut list = vec![0; 70_000];
    let len = listxattr(path, &mut list).unwrap_or(0);
    let mut names: Vec<_> = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    names
}

/// What a program may do is copied before the copy is closed, and goes with the next write.
#[test]
fn capabilities_stay_with_what_was_written_before_them() -> Result<()> {
    const NAME: &CStr = c"security.capability";
    // Version 2, effective: cap_net_bind_service.
    const VALUE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    on_a_mount(|dir, checks| {
        let path = dir.join("program");
        let mut program = File::create(&path).expect("made");
        program.write_all(b"bytes").expect("written");
        checks.works("set", setxattr(&path, NAME, &VALUE, ANY));
        drop(program);
        checks.equal("after the close", get(&path, NAME), Ok(VALUE.to_vec()));
        let mut program = File::options().append(true).open(&path).expect("opened");
        program.write_all(b"more").expect("written");
        drop(program);
        checks.fails("after a write", get(&path, NAME), Errno::NODATA);
    })
}

#[test]
fn extended_attributes_are_kept_and_guarded() -> Result<()> {
    on_a_mount(|dir, checks| {
        let file = dir.join("file");
        as_user(BOB, || make(&file, 0o644, b"x")).expect("a file");
        let sub = make_dir(&dir.join("sub"), 0o755);
        symlink("file", dir.join("link")).expect("a link");

        checks.fails("none yet", get(&file, c"user.a"), Errno::NODATA);
        checks.fails(
            "nothing to replace",
            setxattr(&file, c"user.a", b"1", XattrFlags::REPLACE),
            Errno::NODATA,
        );
        checks.works(
            "set",
            setxattr(&file, c"user.a", b"one", XattrFlags::CREATE),
        );
        checks.fails(
            "again",
            setxattr(&file, c"user.a", b"2", XattrFlags::CREATE),
            Errno::EXIST,
        );
        checks.works(
            "replaced",
            setxattr(&file, c"user.a", b"two", XattrFlags::REPLACE),
        );
        checks.equal("its value", get(&file, c"user.a"), Ok(b"two".to_vec()));
        checks.works("an empty one", setxattr(&file, c"user.empty", b"", ANY));
        checks.equal("is there", get(&file, c"user.empty"), Ok(Vec::new()));
        checks.works("of a directory", setxattr(&sub, c"user.a", b"dir", ANY));
        checks.equal(
            "names",
            names(&file),
            vec!["user.a".to_owned(), "user.empty".to_owned()],
        );
        checks.fails(
            "no room",
            getxattr(&file, c"user.a", &mut [0_u8; 2][..]),
            Errno::RANGE,
        );
        checks.works("removed", removexattr(&file, c"user.empty"));
        checks.fails("twice", removexattr(&file, c"user.empty"), Errno::NODATA);
        let large = vec![b'v'; 65_536];
        checks.works("64 KiB", setxattr(&file, c"user.large", &large, ANY));
        checks.equal(
            "of them",
            get(&file, c"user.large").map(|v| v == large),
            Ok(true),
        );
        let larger = setxattr(&file, c"user.large", &vec![0; 65_537], ANY);
        checks.fails("one more", larger, Errno::TOOBIG);
        checks.fails(
            "no namespace",
            setxattr(&file, c"nothing", b"x", ANY),
            Errno::OPNOTSUPP,
        );
        checks.fails(
            "an unknown one",
            setxattr(&file, c"what.ever", b"x", ANY),
            Errno::OPNOTSUPP,
        );
        let fifo = dir.join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .expect("a fifo");
        checks.fails(
            "user of a fifo",
            setxattr(&fifo, c"user.a", b"x", ANY),
            Errno::PERM,
        );
        checks.works(
            "trusted of a fifo",
            setxattr(&fifo, c"trusted.a", b"x", ANY),
        );

        checks.works("trusted by root", setxattr(&file, c"trusted.a", b"t", ANY));
        checks.works(
            "security by root",
            setxattr(&file, c"security.a", b"s", ANY),
        );
        checks.merge(as_user(ALICE, || {
            let mut checks = Checks::default();
            checks.works("others read", get(&file, c"user.a"));
            checks.fails(
                "but do not write",
                setxattr(&file, c"user.a", b"x", ANY),
                Errno::ACCESS,
            );
            checks.fails("nor remove", removexattr(&file, c"user.a"), Errno::ACCESS);
            checks.fails("trusted is hidden", get(&file, c"trusted.a"), Errno::NODATA);
            checks.fails(
                "and not set",
                setxattr(&file, c"trusted.a", b"x", ANY),
                Errno::PERM,
            );
            checks.holds(
                "nor listed",
                !names(&file).contains(&"trusted.a".to_owned()),
            );
            checks
        }));
        chmod(&file, Mode::from_raw_mode(0o600)).expect("changed");
        let unreadable = as_user(ALICE, || get(&file, c"user.a"));
        checks.fails("an unreadable file's", unreadable, Errno::ACCESS);
        let listed = as_user(ALICE, || names(&file));
        checks.holds("but its names", listed.contains(&"user.a".to_owned()));
        checks.works(
            "the owner's",
            as_user(BOB, || setxattr(&file, c"user.b", b"x", ANY)),
        );

        let before = lstat(&file).expect("attributes");
        std::thread::sleep(std::time::Duration::from_millis(5));
        setxattr(&file, c"user.b", b"y", ANY).expect("set");
        let after = lstat(&file).expect("attributes");
        let ctime = |s: &rustix::fs::Stat| (s.st_ctime, s.st_ctime_nsec);
        checks.holds("ctime moves", ctime(&after) > ctime(&before));
        checks.equal("mtime does not", after.st_mtime_nsec, before.st_mtime_nsec);
    })
}

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// An ACL as Linux writes it.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        let id = if matches!(*tag, USER | GROUP) {
            *id
        } else {
            u32::MAX
        };
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn mode(path: &Path) -> u32 {
    lstat(path).map_or(u32::MAX, |stat| stat.st_mode & 0o7777)
}

fn readable(path: &Path) -> rustix::io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

#[test]
fn access_lists_are_enforced_and_inherited() -> Result<()> {
    on_a_mount(|dir, checks| {
        let file = dir.join("file");
        as_user(BOB, || make(&file, 0o640, b"x")).expect("a file");
        checks.fails("no list yet", get(&file, ACCESS), Errno::NODATA);
        checks.fails(
            "alice before",
            as_user(ALICE, || readable(&file)),
            Errno::ACCESS,
        );
        let list = acl(&[
            (USER_OBJ, 6, 0),
            (USER, 4, ALICE.uid),
            (GROUP_OBJ, 0, 0),
            (GROUP, 6, CAROL.groups[0]),
            (MASK, 6, 0),
            (OTHER, 0, 0),
        ]);
        let foreign = as_user(ALICE, || setxattr(&file, ACCESS, &list, ANY));
        checks.fails("set by another", foreign, Errno::PERM);
        checks.works(
            "set by the owner",
            as_user(BOB, || setxattr(&file, ACCESS, &list, ANY)),
        );
        checks.equal("read back", get(&file, ACCESS), Ok(list.clone()));
        checks.equal("the mask shows as the group's bits", mode(&file), 0o660);
        checks.works("a named user reads", as_user(ALICE, || readable(&file)));
        let append = || File::options().append(true).open(&file);
        let write = || {
            append()
                .map(drop)
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
        };
        checks.fails("and does not write", as_user(ALICE, write), Errno::ACCESS);
        checks.works("a named group writes", as_user(CAROL, write));
        chmod(&file, Mode::from_raw_mode(0o640)).expect("changed");
        checks.fails(
            "not with a smaller mask",
            as_user(CAROL, write),
            Errno::ACCESS,
        );
        checks.works("but reads", as_user(CAROL, || readable(&file)));
        checks.works("removed", removexattr(&file, ACCESS));
        checks.fails(
            "alice after",
            as_user(ALICE, || readable(&file)),
            Errno::ACCESS,
        );

        let plain = acl(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)]);
        checks.works(
            "one that says what a mode says",
            setxattr(&file, ACCESS, &plain, ANY),
        );
        checks.equal("is the mode", mode(&file), 0o644);
        checks.fails("and no list", get(&file, ACCESS), Errno::NODATA);
        for (what, broken) in [
            (
                "no mask",
                acl(&[
                    (USER_OBJ, 6, 0),
                    (USER, 4, 1),
                    (GROUP_OBJ, 0, 0),
                    (OTHER, 0, 0),
                ]),
            ),
            ("no owner", acl(&[(GROUP_OBJ, 0, 0), (OTHER, 0, 0)])),
            ("half an entry", list[..list.len() - 3].to_vec()),
        ] {
            checks.fails(what, setxattr(&file, ACCESS, &broken, ANY), Errno::INVAL);
        }
        let not_a_directory = setxattr(&file, DEFAULT, &plain, ANY);
        checks.fails("a default for a file", not_a_directory, Errno::ACCESS);

        let shared = make_dir(&dir.join("shared"), 0o777);
        let default = acl(&[
            (USER_OBJ, 7, 0),
            (USER, 7, ALICE.uid),
            (GROUP_OBJ, 5, 0),
            (MASK, 7, 0),
            (OTHER, 0, 0),
        ]);
        checks.works("a default", setxattr(&shared, DEFAULT, &default, ANY));
        rustix::process::umask(Mode::from_raw_mode(0o077));
        as_user(BOB, || {
            make(&shared.join("file"), 0o666, b"x").expect("a file");
            make_dir(&shared.join("sub"), 0o777);
        });
        rustix::process::umask(Mode::empty());
        checks.equal(
            "the umask does not count",
            mode(&shared.join("file")),
            0o660,
        );
        checks.works(
            "alice reads",
            as_user(ALICE, || readable(&shared.join("file"))),
        );
        checks.equal(
            "handed down",
            get(&shared.join("sub"), DEFAULT),
            Ok(default),
        );
        let through = as_user(ALICE, || make(&shared.join("sub/hers"), 0o600, b""));
        checks.works("alice makes a file below", through);
    })
}
