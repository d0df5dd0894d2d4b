//! Modes, owners and times.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use emberfs_tests::{ALICE, BOB, CAROL, Checks, as_user, wait};
use rustix::fs::{
    Access, AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    Uid, access, chmod, chown, chownat, lstat, open, stat, symlink, utimensat,
};
use rustix::io::Errno;
use rustix::thread::{set_thread_groups, set_thread_res_uid};

use super::{make, make_dir, on_a_mount};

fn mode(path: &Path) -> u32 {
    lstat(path).map_or(u32::MAX, |stat| stat.st_mode & 0o7777)
}

fn owners(path: &Path) -> (u32, u32) {
    lstat(path).map_or((u32::MAX, u32::MAX), |stat| (stat.st_uid, stat.st_gid))
}

fn set_mode(path: &Path, mode: u32) -> rustix::io::Result<()> {
    chmod(path, Mode::from_raw_mode(mode))
}

fn set_owner(path: &Path, uid: Option<u32>, gid: Option<u32>) -> rustix::io::Result<()> {
    chown(path, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

fn append(path: &Path) -> rustix::io::Result<usize> {
    let file = open(path, OFlags::WRONLY | OFlags::APPEND, Mode::empty())?;
    rustix::io::write(&file, b"more")
}

#[test]
fn modes_and_owners_change_for_those_who_may() -> Result<()> {
    on_a_mount(|dir, checks| {
        let file = dir.join("file");
        as_user(BOB, || make(&file, 0o644, b"x")).expect("a file");
        checks.equal("owner of what one makes", owners(&file), (BOB.uid, BOB.gid));
        for bits in [0o000, 0o777, 0o4755, 0o2755, 0o1644, 0o7777] {
            checks.works("chmod by root", set_mode(&file, bits));
            checks.equal("mode", mode(&file), bits);
        }
        set_mode(&file, 0o644).expect("changed");
        checks.merge(as_user(ALICE, || {
            let mut checks = Checks::default();
            checks.fails("chmod of another's", set_mode(&file, 0o777), Errno::PERM);
            let theft = set_owner(&file, Some(ALICE.uid), None);
            checks.fails("chown of another's", theft, Errno::PERM);
            checks.fails("write to another's", append(&file), Errno::ACCESS);
            checks.works(
                "read of another's",
                std::fs::read(&file).map_err(|_| Errno::IO),
            );
            let asked = access(&file, Access::WRITE_OK);
            checks.fails("access for writing", asked, Errno::ACCESS);
            checks.works("access for reading", access(&file, Access::READ_OK));
            checks
        }));
        checks.merge(as_user(BOB, || {
            let mut checks = Checks::default();
            checks.works("chmod of one's own", set_mode(&file, 0o600));
            let gift = set_owner(&file, Some(ALICE.uid), None);
            checks.fails("giving away", gift, Errno::PERM);
            let foreign = set_owner(&file, None, Some(ALICE.gid));
            checks.fails("a group of others", foreign, Errno::PERM);
            checks.works("an own group", set_owner(&file, None, Some(BOB.groups[0])));
            checks.works("the same owner", set_owner(&file, Some(BOB.uid), None));
            checks
        }));
        checks.equal("its group", owners(&file), (BOB.uid, BOB.groups[0]));
        set_mode(&file, 0o640).expect("changed");
        let shared = as_user(CAROL, || std::fs::read(&file).map_err(|_| Errno::ACCESS));
        checks.works("a member of the group reads", shared);
        checks.fails(
            "but does not write",
            as_user(CAROL, || append(&file)),
            Errno::ACCESS,
        );
        checks.works(
            "root gives away",
            set_owner(&file, Some(ALICE.uid), Some(ALICE.gid)),
        );
        checks.equal("to", owners(&file), (ALICE.uid, ALICE.gid));

        let link = dir.join("link");
        symlink("file", &link).expect("a link");
        let (uid, gid) = (Some(Uid::from_raw(7)), Some(Gid::from_raw(8)));
        let lchown = chownat(CWD, &link, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        checks.works("lchown", lchown);
        checks.equal("changes the link", owners(&link), (7, 8));
        checks.equal("not its target", owners(&file), (ALICE.uid, ALICE.gid));
        checks.equal("links allow all", mode(&link), 0o777);
    })
}

#[test]
fn set_id_bits_go_when_they_should() -> Result<()> {
    on_a_mount(|dir, checks| {
        let file = dir.join("file");
        as_user(BOB, || make(&file, 0o777, b"x")).expect("a file");
        // What somebody outside the group leaves, and what the owner does.
        for (bits, foreign, own) in [
            (0o6777, 0o777, 0o777),
            (0o4777, 0o777, 0o777),
            (0o2777, 0o777, 0o777),
            (0o2767, 0o767, 0o2767),
        ] {
            let ids = format!("{bits:o}");
            set_mode(&file, bits).expect("changed");
            checks.works("a write by another", as_user(ALICE, || append(&file)));
            checks.equal(&format!("{ids} after a write"), mode(&file), foreign);
            // One that goes through pages.
            set_mode(&file, bits).expect("changed");
            let over = || rustix::io::write(open(&file, OFlags::WRONLY, Mode::empty())?, b"y");
            checks.works("a write over it", as_user(ALICE, over));
            checks.equal(&format!("{ids} after that"), mode(&file), foreign);
            // One that was permitted when it was opened.
            set_mode(&file, bits).expect("changed");
            let open_it = || open(&file, OFlags::WRONLY, Mode::empty());
            let opened = as_user(ALICE, open_it).expect("opened");
            set_mode(&file, bits & !0o002).expect("changed");
            let late = as_user(ALICE, || rustix::io::write(&opened, b"z"));
            checks.works("a late write", late);
            drop(opened);
            checks.equal(&format!("{ids} after that"), mode(&file), foreign & !0o002);
            set_mode(&file, bits).expect("changed");
            let cut = as_user(ALICE, || {
                open(&file, OFlags::WRONLY | OFlags::TRUNC, Mode::empty()).map(drop)
            });
            checks.works("a truncate by another", cut);
            checks.equal(&format!("{ids} after a truncate"), mode(&file), foreign);
            set_mode(&file, bits).expect("changed");
            let moved = as_user(BOB, || set_owner(&file, None, Some(BOB.groups[0])));
            checks.works("a chown by the owner", moved);
            checks.equal(&format!("{ids} after a chown"), mode(&file), own);
            set_owner(&file, None, Some(BOB.gid)).expect("back");
            set_mode(&file, bits).expect("changed");
            checks.works("a write by root", append(&file));
            checks.equal(&format!("{ids} after root wrote"), mode(&file), bits);
        }
        set_owner(&file, None, Some(ALICE.gid)).expect("changed");
        checks.works("chmod", as_user(BOB, || set_mode(&file, 0o2755)));
        checks.equal("setgid for a foreign group", mode(&file), 0o755);

        let shared = make_dir(&dir.join("shared"), 0o777);
        set_owner(&shared, None, Some(ALICE.gid)).expect("changed");
        set_mode(&shared, 0o2777).expect("changed");
        as_user(BOB, || {
            make(&shared.join("file"), 0o644, b"").expect("a file");
            make_dir(&shared.join("sub"), 0o755);
        });
        checks.equal(
            "the group of a file there",
            owners(&shared.join("file")).1,
            ALICE.gid,
        );
        checks.equal("of a directory", owners(&shared.join("sub")).1, ALICE.gid);
        checks.equal(
            "which hands it down, too",
            mode(&shared.join("sub")),
            0o2755,
        );

        rustix::process::umask(Mode::from_raw_mode(0o027));
        make(&dir.join("masked"), 0o666, b"").expect("a file");
        make_dir(&dir.join("masked-dir"), 0o777);
        rustix::process::umask(Mode::empty());
        checks.equal("the umask of a file", mode(&dir.join("masked")), 0o640);
        checks.equal("of a directory", mode(&dir.join("masked-dir")), 0o750);
    })
}

const OMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_OMIT,
};
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW,
};

fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

fn set_times(
    path: &Path,
    last_access: Timespec,
    last_modification: Timespec,
) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access,
        last_modification,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn stamps(path: &Path) -> ((i64, i64), (i64, i64)) {
    let of = |s: Stat| {
        (
            (s.st_atime, s.st_atime_nsec as i64),
            (s.st_mtime, s.st_mtime_nsec as i64),
        )
    };
    lstat(path).map_or(((0, 0), (0, 0)), of)
}

#[test]
fn times_are_kept_to_the_nanosecond() -> Result<()> {
    on_a_mount(|dir, checks| {
        let file = dir.join("file");
        as_user(BOB, || make(&file, 0o666, b"x")).expect("a file");
        symlink("file", dir.join("link")).expect("a link");
        make_dir(&dir.join("dir"), 0o755);
        for name in ["file", "link", "dir"] {
            let path = dir.join(name);
            let cases = [
                (at(1, 2), at(3, 999_999_999)),
                (at(-5, 7), at(-1, 0)),
                (at(4_294_967_296, 1), at(9_000_000_000, 0)),
            ];
            for (atime, mtime) in cases {
                checks.works("utimensat", set_times(&path, atime, mtime));
                let wanted = ((atime.tv_sec, atime.tv_nsec), (mtime.tv_sec, mtime.tv_nsec));
                checks.equal(name, stamps(&path), wanted);
            }
            checks.works("one time only", set_times(&path, OMIT, at(11, 12)));
            checks.equal(name, stamps(&path), ((4_294_967_296, 1), (11, 12)));
        }
        let before = stat(&file).expect("attributes");
        sleep(Duration::from_millis(5));
        checks.works("nothing", set_times(&file, OMIT, OMIT));
        checks.works("both now", set_times(&file, NOW, NOW));
        let after = stat(&file).expect("attributes");
        checks.holds("now is later", after.st_mtime > before.st_mtime);
        let ctime = |s: &Stat| (s.st_ctime, s.st_ctime_nsec);
        checks.holds("ctime moves, too", ctime(&after) > ctime(&before));

        checks.merge(as_user(ALICE, || {
            let mut checks = Checks::default();
            checks.works("now, by who may write", set_times(&file, NOW, NOW));
            checks.fails(
                "a time by others",
                set_times(&file, at(1, 1), at(1, 1)),
                Errno::PERM,
            );
            checks.fails(
                "one time by others",
                set_times(&file, NOW, OMIT),
                Errno::PERM,
            );
            checks
        }));
        set_mode(&file, 0o644).expect("changed");
        let denied = as_user(ALICE, || set_times(&file, NOW, NOW));
        checks.fails("now, by who may not write", denied, Errno::ACCESS);
        let owner = as_user(BOB, || set_times(&file, at(1, 1), at(1, 1)));
        checks.works("a time by the owner", owner);

        set_times(&file, at(1, 0), at(1, 0)).expect("set");
        append(&file).expect("written");
        checks.holds("a write moves mtime", stamps(&file).1.0 > 1);
        set_times(&file, at(1, 0), at(1, 0)).expect("set");
        let cut = open(&file, OFlags::WRONLY | OFlags::TRUNC, Mode::empty());
        checks.works("a truncate", cut.map(drop));
        checks.holds("moves mtime", stamps(&file).1.0 > 1);
    })
}

type Change = fn(&Path) -> rustix::io::Result<()>;

/// A setgid bit without permission to execute for the group stays for members of the group only.
#[test]
fn set_id_bits_go_with_changes_by_others_than_the_group() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("file");
        let changes: [(&str, Change); 3] = [
            ("write", |path| append(path).map(drop)),
            ("truncate", |path| {
                rustix::fs::ftruncate(open(path, OFlags::WRONLY, Mode::empty())?, 1)
            }),
            ("O_TRUNC", |path| {
                open(path, OFlags::WRONLY | OFlags::TRUNC, Mode::empty()).map(drop)
            }),
        ];
        for (what, change) in changes {
            for (group, bits, after) in [
                (BOB.groups[0], 0o6766, 0o2766),
                (BOB.groups[0], 0o6776, 0o776),
                (ALICE.gid, 0o6766, 0o766),
                (ALICE.gid, 0o6776, 0o776),
            ] {
                make(&path, 0o666, b"text").expect("made");
                set_owner(&path, Some(ALICE.uid), Some(group)).expect("given");
                set_mode(&path, bits).expect("changed");
                checks.works(what, as_user(BOB, || change(&path)));
                checks.equal(&format!("{what}, {bits:o} of {group}"), mode(&path), after);
                rustix::fs::unlink(&path).expect("removed");
            }
        }
        // A change of neither owner nor group takes them as well, from whoever may do that.
        make(&path, 0o755, b"").expect("made");
        set_owner(&path, Some(ALICE.uid), Some(ALICE.gid)).expect("given");
        set_mode(&path, 0o6755).expect("changed");
        let nothing = || set_owner(&path, None, None);
        checks.fails("chown -1 -1 by another", as_user(BOB, nothing), Errno::PERM);
        checks.equal("they are there", mode(&path), 0o6755);
        checks.works("chown -1 -1", as_user(ALICE, nothing));
        checks.equal("they are gone", mode(&path), 0o755);
        checks.works("chown -1 -1 of nothing", as_user(BOB, nothing));
    })
}

#[test]
fn what_may_be_executed_need_not_be_readable() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("true");
        std::fs::copy("/bin/true", &path).expect("copied");
        for (bits, runs) in [(0o111, true), (0o100, false), (0o444, false)] {
            set_mode(&path, bits).expect("changed");
            let ran = as_user(BOB, || std::process::Command::new(&path).status());
            let what = format!("mode {bits:o}");
            checks.equal(&what, ran.is_ok_and(|status| status.success()), runs);
        }
        set_mode(&path, 0o111).expect("changed");
        let read = as_user(BOB, || open(&path, OFlags::RDONLY, Mode::empty()).map(drop));
        checks.fails("reading it", read, Errno::ACCESS);
    })
}

/// An open for reading that truncates: the kernel finds out too late that it may not.
#[test]
fn a_program_that_runs_is_not_truncated() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("sleep");
        std::fs::copy("/bin/sleep", &path).expect("copied");
        let size = std::fs::metadata(&path).expect("it is there").len();
        let mut running = std::process::Command::new(&path)
            .arg("60")
            .spawn()
            .expect("it runs");
        for access in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
            let opened = open(&path, access | OFlags::TRUNC, Mode::empty()).map(drop);
            checks.fails(&format!("{access:?}"), opened, Errno::TXTBSY);
        }
        let now = std::fs::metadata(&path).expect("it is there").len();
        checks.equal("its size", now, size);
        running.kill().expect("it still runs");
        running.wait().expect("it has ended");
        let cut = || open(&path, OFlags::RDONLY | OFlags::TRUNC, Mode::empty()).map(drop);
        // The kernel lets go of a program a moment after its end.
        let gone = wait(Duration::from_secs(5), || Ok(cut().is_ok()));
        checks.equal("afterwards", gone.is_ok(), true);
    })
}

/// Servers that act for their users change their groups from one request to the next.
#[test]
fn groups_count_as_they_are_at_the_moment() -> Result<()> {
    on_a_mount(|dir, checks| {
        let group = BOB.groups[0];
        let path = dir.join("f");
        as_user(BOB, || make(&path, 0o644, b"x")).expect("a file");
        set_owner(&path, None, Some(group)).expect("root may");
        let root = Uid::ROOT;
        for round in 0..4 {
            let member = round % 2 == 1;
            let groups: &[Gid] = if member { &[Gid::from_raw(group)] } else { &[] };
            let bob = Uid::from_raw(BOB.uid);
            set_thread_groups(groups).expect("root may");
            set_thread_res_uid(bob, bob, root).expect("root may");
            checks.works("chmod", set_mode(&path, 0o2755));
            set_thread_res_uid(root, root, root).expect("it was root");
            let expected = if member { 0o2755 } else { 0o755 };
            checks.equal(&format!("round {round}"), mode(&path), expected);
        }
    })
}

#[test]
fn an_open_directory_is_listed_whatever_its_mode_becomes() -> Result<()> {
    on_a_mount(|dir, checks| {
        let sub = as_user(BOB, || make_dir(&dir.join("sub"), 0o700));
        make(&sub.join("name"), 0o600, b"").expect("made");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let listed: rustix::io::Result<usize> = as_user(BOB, || {
            let fd = open(&sub, flags, Mode::empty())?;
            set_mode(&sub, 0)?;
            let names = rustix::fs::Dir::new(fd)?;
            Ok(names
                .filter_map(|entry| Some(entry.ok()?.file_name().to_owned()))
                .count())
        });
        checks.equal("names", listed, Ok(3));
        let again = as_user(BOB, || open(&sub, flags, Mode::empty()).map(drop));
        checks.fails("another open", again, Errno::ACCESS);
    })
}

#[test]
fn a_write_moves_both_times_before_anything_is_stored() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("file");
        make(&path, 0o644, b"").expect("made");
        let file = open(&path, OFlags::WRONLY, Mode::empty()).expect("opened");
        let times = || {
            let stat = rustix::fs::fstat(&file).expect("it is open");
            let mtime = (stat.st_mtime, stat.st_mtime_nsec);
            (mtime, (stat.st_ctime, stat.st_ctime_nsec))
        };
        let before = times();
        sleep(Duration::from_millis(20));
        checks.works("a write", rustix::io::write(&file, b"x"));
        let after = times();
        checks.holds("mtime", after.0 > before.0);
        checks.holds("ctime", after.1 > before.1);
    })
}
