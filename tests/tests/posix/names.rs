//! Names: making, finding, moving and removing them.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use emberfs_tests::{ALICE, BOB, Checks, ROOT, as_user};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, linkat, lstat, mkdir, mknodat, open,
    readlink, rename, renameat_with, rmdir, stat, symlink, unlink,
};
use rustix::io::Errno;

use super::{make, make_dir, on_a_mount};

/// More than the granularity of any clock that stamps files.
const TICK: Duration = Duration::from_millis(5);

type Call = fn(&Path) -> rustix::io::Result<()>;

/// Every call that makes a name, and some that need one.
const MAKERS: &[(&str, Call)] = &[
    ("mkdir", |path| mkdir(path, Mode::RWXU)),
    ("open", |path| {
        open(
            path,
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR,
            Mode::RWXU,
        )
        .map(drop)
    }),
    ("symlink", |path| symlink("target", path)),
    ("mkfifo", |path| {
        mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0)
    }),
    ("mknod of a file", |path| {
        mknodat(CWD, path, FileType::RegularFile, Mode::RWXU, 0)
    }),
    ("mknod of a socket", |path| {
        mknodat(CWD, path, FileType::Socket, Mode::RWXU, 0)
    }),
];

const USERS: &[(&str, Call)] = &[
    ("stat", |path| stat(path).map(drop)),
    ("chmod", |path| rustix::fs::chmod(path, Mode::RWXU)),
    ("truncate", |path| {
        open(path, OFlags::WRONLY | OFlags::TRUNC, Mode::empty()).map(drop)
    }),
    ("open", |path| {
        open(path, OFlags::RDONLY, Mode::empty()).map(drop)
    }),
    ("unlink", |path| unlink(path)),
    ("rmdir", |path| rmdir(path)),
    ("readlink", |path| readlink(path, Vec::new()).map(drop)),
    ("rename", |path| rename(path, path.with_file_name("free"))),
];

fn long(len: usize) -> String {
    "n".repeat(len)
}

/// A path of exactly this many bytes to a name in `dir`, by way of `./`.
fn padded(dir: &Path, name: &str, len: usize) -> PathBuf {
    let mut path = dir.as_os_str().as_bytes().to_vec();
    let end = len - name.len();
    path.push(b'/');
    while path.len() + 2 <= end {
        path.extend_from_slice(b"./");
    }
    if path.len() < end {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    assert_eq!(path.len(), len, "a name shorter than the path");
    PathBuf::from(std::ffi::OsStr::from_bytes(&path))
}

#[test]
fn names_are_checked_in_the_order_that_posix_wants() -> Result<()> {
    on_a_mount(|dir, checks| {
        make(&dir.join("file"), 0o644, b"x").expect("a file");
        make_dir(&dir.join("full"), 0o755);
        make(&dir.join("full/inner"), 0o644, b"").expect("a file");
        symlink("loop-b", dir.join("loop-a")).expect("a link");
        symlink("loop-a", dir.join("loop-b")).expect("a link");
        for (name, call) in MAKERS.iter().chain(USERS) {
            let check = |checks: &mut Checks, path: PathBuf, wanted| {
                checks.fails(&format!("{name} of {}", short(&path)), call(&path), wanted);
            };
            check(checks, dir.join("missing/x"), Errno::NOENT);
            check(checks, dir.join("file/x"), Errno::NOTDIR);
            check(checks, dir.join(long(256)), Errno::NAMETOOLONG);
            check(checks, dir.join(long(256)).join("x"), Errno::NAMETOOLONG);
            check(checks, padded(dir, "x", 4096), Errno::NAMETOOLONG);
            check(checks, dir.join("loop-a/x"), Errno::LOOP);
        }
        for (name, call) in MAKERS {
            for taken in ["file", "full", "loop-a"] {
                let what = format!("{name} over {taken}");
                checks.fails(&what, call(&dir.join(taken)), Errno::EXIST);
            }
            for (len, path) in [
                (255, dir.join(long(255))),
                (4095, padded(dir, "deep", 4095)),
            ] {
                let what = format!("{name} with {len} bytes");
                checks.works(&what, call(&path));
                let removed = unlink(&path).or_else(|_| rmdir(&path));
                checks.works(&format!("removal of it after {name}"), removed);
            }
        }
        checks.fails(
            "unlink of a directory",
            unlink(dir.join("full")),
            Errno::ISDIR,
        );
        checks.fails("rmdir of a file", rmdir(dir.join("file")), Errno::NOTDIR);
        checks.fails(
            "rmdir of a full one",
            rmdir(dir.join("full")),
            Errno::NOTEMPTY,
        );
        checks.fails("rmdir of .", rmdir(dir.join("full/.")), Errno::INVAL);
        checks.fails("rmdir of ..", rmdir(dir.join("full/..")), Errno::NOTEMPTY);
        checks.fails(
            "a loop is opened",
            open_read(&dir.join("loop-a")),
            Errno::LOOP,
        );
        let nofollow = open(dir.join("loop-a"), OFlags::NOFOLLOW, Mode::empty());
        checks.fails("a link is not followed", nofollow, Errno::LOOP);
        let directory = open(dir.join("file"), OFlags::DIRECTORY, Mode::empty());
        checks.fails("a file is no directory", directory, Errno::NOTDIR);
        let written = open(dir.join("full"), OFlags::WRONLY, Mode::empty());
        checks.fails("a directory is not written", written, Errno::ISDIR);
        checks.fails(
            "an empty link",
            symlink("", dir.join("empty")),
            Errno::NOENT,
        );
        checks.works("a long link", symlink(long(4095), dir.join("long")));
        checks.fails(
            "a longer one",
            symlink(long(4096), dir.join("longer")),
            Errno::NAMETOOLONG,
        );
        let target = readlink(dir.join("long"), Vec::new()).map(|target| target.as_bytes().len());
        checks.equal("it is read", target, Ok(4095));
        checks.fails(
            "a file is no link",
            readlink(dir.join("file"), Vec::new()),
            Errno::INVAL,
        );
        let no_socket = open_read(&{
            let path = dir.join("socket");
            mknodat(CWD, &path, FileType::Socket, Mode::RWXU, 0).expect("a socket");
            path
        });
        checks.fails("a socket is opened", no_socket, Errno::NXIO);
        for bad in ["wh\u{1}at", "äöü", "-rf", " ", "\n", "%s"] {
            let path = dir.join(bad);
            checks.works(&format!("a name of {bad:?}"), make(&path, 0o644, b"y"));
            checks.works(&format!("removal of {bad:?}"), unlink(&path));
        }
    })
}

fn open_read(path: &Path) -> rustix::io::Result<()> {
    open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).map(drop)
}

fn short(path: &Path) -> String {
    let text = path.display().to_string();
    let start = text.chars().count().saturating_sub(24);
    text.chars().skip(start).collect()
}

#[test]
fn renames_and_links_follow_the_rules() -> Result<()> {
    on_a_mount(|dir, checks| {
        let at = |name: &str| dir.join(name);
        for name in ["a", "b", "c"] {
            make_dir(&at(name), 0o755);
            make(&at(&format!("{name}-file")), 0o644, name.as_bytes()).expect("a file");
        }
        make(&at("b/inner"), 0o644, b"").expect("a file");
        let cases: &[(&str, &str, Errno)] = &[
            ("missing", "x", Errno::NOENT),
            ("a-file", "missing/x", Errno::NOENT),
            ("a-file", "b", Errno::ISDIR),
            ("a", "a-file", Errno::NOTDIR),
            ("a", "b", Errno::NOTEMPTY),
            ("a", "a/x", Errno::INVAL),
            ("b", "b/inner/x", Errno::NOTDIR),
            ("a-file", "b-file/x", Errno::NOTDIR),
            ("a/.", "x", Errno::BUSY),
            ("a/..", "x", Errno::BUSY),
        ];
        for (from, to, wanted) in cases {
            let outcome = rename(at(from), at(to));
            checks.fails(&format!("rename {from} {to}"), outcome, *wanted);
        }
        checks.works("onto itself", rename(at("a-file"), at("a-file")));
        checks.works("over an empty directory", rename(at("b"), at("a")));
        checks.fails("its old name", stat(at("b")), Errno::NOENT);
        checks.works("what was in it", stat(at("a/inner")));
        checks.works("over a file", rename(at("a-file"), at("b-file")));
        let read = std::fs::read(at("b-file")).unwrap_or_default();
        checks.equal("the bytes came along", read, b"a".to_vec());

        let exchange =
            |from: &str, to: &str| renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE);
        let noreplace = |from: &str, to: &str| {
            renameat_with(CWD, at(from), CWD, at(to), RenameFlags::NOREPLACE)
        };
        checks.works("exchange of file and directory", exchange("c", "c-file"));
        checks.holds("now a directory", is(&at("c-file"), FileType::Directory));
        checks.holds("now a file", is(&at("c"), FileType::RegularFile));
        checks.fails("exchange with nothing", exchange("c", "none"), Errno::NOENT);
        checks.fails(
            "exchange into itself",
            exchange("a", "a/inner"),
            Errno::INVAL,
        );
        checks.fails("no replacement", noreplace("c", "b-file"), Errno::EXIST);
        checks.works("a free name", noreplace("c", "free"));
        let whiteout = renameat_with(CWD, at("free"), CWD, at("y"), RenameFlags::WHITEOUT);
        checks.fails("a whiteout", whiteout, Errno::INVAL);

        // Two names of one inode: nothing happens.
        checks.works("a link", rustix::fs::link(at("free"), at("second")));
        checks.works("between two names", rename(at("free"), at("second")));
        checks.equal("both stay", nlink(&at("free")), 2);
        checks.works("one goes", unlink(at("second")));
        checks.equal("the other stays", nlink(&at("free")), 1);
        checks.fails(
            "a link to a directory",
            rustix::fs::link(at("a"), at("x")),
            Errno::PERM,
        );
        checks.fails(
            "over a name",
            rustix::fs::link(at("free"), at("a")),
            Errno::EXIST,
        );
        checks.fails(
            "to nothing",
            rustix::fs::link(at("none"), at("x")),
            Errno::NOENT,
        );
        symlink("free", at("soft")).expect("a link");
        checks.works(
            "to a link",
            linkat(CWD, at("soft"), CWD, at("soft-2"), AtFlags::empty()),
        );
        checks.holds("is a link", is(&at("soft-2"), FileType::Symlink));
        let followed = linkat(CWD, at("soft"), CWD, at("hard"), AtFlags::SYMLINK_FOLLOW);
        checks.works("to what it points to", followed);
        checks.equal("counts", nlink(&at("free")), 2);
    })
}

fn is(path: &Path, kind: FileType) -> bool {
    lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
}

fn nlink(path: &Path) -> u64 {
    lstat(path).map_or(0, |stat| stat.st_nlink)
}

#[test]
fn permissions_and_sticky_directories_are_obeyed() -> Result<()> {
    on_a_mount(|dir, checks| {
        let closed = make_dir(&dir.join("closed"), 0o755);
        let blind = make_dir(&dir.join("blind"), 0o666);
        make(&closed.join("file"), 0o600, b"secret").expect("a file");
        make(&blind.join("file"), 0o666, b"").expect("a file");
        checks.merge(as_user(ALICE, || {
            let mut checks = Checks::default();
            for (name, call) in MAKERS {
                let what = format!("{name} without write permission");
                checks.fails(&what, call(&closed.join("new")), Errno::ACCESS);
                let what = format!("{name} over a name there");
                checks.fails(&what, call(&closed.join("file")), Errno::EXIST);
            }
            for (name, call) in MAKERS.iter().chain(USERS) {
                let what = format!("{name} without search permission");
                checks.fails(&what, call(&blind.join("file")), Errno::ACCESS);
            }
            checks.fails("unlink", unlink(closed.join("file")), Errno::ACCESS);
            checks.fails(
                "rename",
                rename(closed.join("file"), closed.join("g")),
                Errno::ACCESS,
            );
            checks.fails("open", open_read(&closed.join("file")), Errno::ACCESS);
            let device = mknodat(
                CWD,
                dir.join("null"),
                FileType::CharacterDevice,
                Mode::RWXU,
                259,
            );
            checks.fails("a device node", device, Errno::PERM);
            checks
        }));

        let sticky = make_dir(&dir.join("sticky"), 0o1777);
        as_user(ALICE, || {
            make(&sticky.join("hers"), 0o666, b"").expect("a file");
            make_dir(&sticky.join("her-dir"), 0o777);
        });
        checks.merge(as_user(BOB, || {
            let mut checks = Checks::default();
            let hers = sticky.join("hers");
            make(&sticky.join("his"), 0o666, b"").expect("a file");
            checks.fails("unlink of hers", unlink(&hers), Errno::PERM);
            checks.fails("rmdir of hers", rmdir(sticky.join("her-dir")), Errno::PERM);
            checks.fails(
                "rename of hers",
                rename(&hers, sticky.join("x")),
                Errno::PERM,
            );
            checks.fails(
                "his over hers",
                rename(sticky.join("his"), &hers),
                Errno::PERM,
            );
            checks.works("unlink of his", unlink(sticky.join("his")));
            checks
        }));
        checks.works(
            "the owner's",
            as_user(ALICE, || unlink(sticky.join("hers"))),
        );
        checks.works("root's", as_user(ROOT, || rmdir(sticky.join("her-dir"))));
        let null = dir.join("null");
        let device = rustix::fs::makedev(1, 3);
        let made = mknodat(CWD, &null, FileType::CharacterDevice, Mode::RWXU, device);
        checks.works("a device node by root", made);
        checks.equal(
            "its number",
            stat(&null).map(|stat| stat.st_rdev),
            Ok(device),
        );
    })
}

/// (mtime, ctime) in nanoseconds.
fn times(path: &Path) -> (i128, i128) {
    let at = |seconds: i64, nanos: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let of = |s: Stat| {
        (
            at(s.st_mtime, s.st_mtime_nsec),
            at(s.st_ctime, s.st_ctime_nsec),
        )
    };
    lstat(path).map_or((0, 0), of)
}

#[test]
fn directories_count_their_links_and_keep_their_times() -> Result<()> {
    on_a_mount(|dir, checks| {
        let parent = make_dir(&dir.join("parent"), 0o755);
        checks.equal("links of an empty directory", nlink(&parent), 2);
        let file = parent.join("file");
        make(&file, 0o644, b"").expect("a file");
        let mut change = |what: &str, moved: bool, act: &dyn Fn()| {
            sleep(TICK);
            let before = times(&parent);
            act();
            let after = times(&parent);
            checks.equal(&format!("mtime after {what}"), after.0 > before.0, moved);
            checks.equal(&format!("ctime after {what}"), after.1 > before.1, moved);
        };
        change("mkdir", true, &|| {
            make_dir(&parent.join("sub"), 0o755);
        });
        change("create", true, &|| {
            make(&parent.join("new"), 0o644, b"").expect("a file");
        });
        change("a write to a child", false, &|| {
            std::fs::write(&file, b"x").expect("written");
        });
        change("chmod of a child", false, &|| {
            rustix::fs::chmod(&file, Mode::RWXU).expect("changed");
        });
        change("symlink", true, &|| {
            symlink("x", parent.join("soft")).expect("a link");
        });
        change("link", true, &|| {
            rustix::fs::link(&file, parent.join("hard")).expect("a link");
        });
        change("rename", true, &|| {
            rename(parent.join("new"), parent.join("newer")).expect("renamed");
        });
        change("unlink", true, &|| {
            unlink(parent.join("newer")).expect("removed");
        });
        change("rmdir", true, &|| {
            rmdir(parent.join("sub")).expect("removed");
        });
        change("a failed mkdir", false, &|| {
            mkdir(&file, Mode::RWXU).expect_err("taken");
        });

        sleep(TICK);
        let before = times(&file);
        unlink(parent.join("hard")).expect("removed");
        let after = times(&file);
        checks.holds("unlink moves the ctime of what is left", after.1 > before.1);
        checks.equal("and not its mtime", after.0, before.0);

        for count in 1..=20 {
            make_dir(&parent.join(format!("d{count}")), 0o755);
            checks.equal("links with subdirectories", nlink(&parent), 2 + count);
        }
        rename(parent.join("d1"), dir.join("away")).expect("moved");
        checks.equal("after one moved away", nlink(&parent), 21);
        rename(dir.join("away"), parent.join("d2")).expect("moved");
        checks.equal("after one replaced another", nlink(&parent), 21);
    })
}

#[test]
fn a_large_directory_is_listed_whole_while_it_changes() -> Result<()> {
    on_a_mount(|dir, checks| {
        let many = make_dir(&dir.join("many"), 0o755);
        for index in 0..3000 {
            make(&many.join(format!("stays-{index:05}")), 0o644, b"").expect("a file");
            make(&many.join(format!("goes-{index:05}")), 0o644, b"").expect("a file");
        }
        let mut seen = std::collections::HashMap::new();
        let listing = std::fs::read_dir(&many).expect("a listing");
        for (index, entry) in listing.enumerate() {
            let name = entry.expect("an entry").file_name();
            *seen.entry(name.to_string_lossy().into_owned()).or_insert(0) += 1;
            if index % 3 == 0 {
                let number = index / 3;
                let _ = unlink(many.join(format!("goes-{number:05}")));
                make(&many.join(format!("comes-{number:05}")), 0o644, b"").expect("a file");
            }
        }
        for index in 0..3000 {
            let name = format!("stays-{index:05}");
            checks.equal(&name, seen.get(&name).copied(), Some(1));
        }
        checks.holds("nothing twice", seen.values().all(|count| *count == 1));
    })
}
