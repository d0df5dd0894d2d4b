//! What has no name any more and is still in use: by those who have it open, or stand in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use emberfs_tests::{ALICE, Checks, as_user};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fchmod, fchown, fstat, fsync, mkdirat,
    mknodat, open, openat, rename, rmdir, statat, symlink, unlink,
};
use rustix::io::Errno;

use super::{make, make_dir, on_a_mount};

/// Kind, permission bits and links.
fn shown(stat: rustix::io::Result<Stat>) -> rustix::io::Result<(FileType, u32, u32)> {
    let stat = stat?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    Ok((kind, stat.st_mode & 0o7777, stat.st_nlink as u32))
}

#[test]
fn an_open_directory_without_a_name_is_empty_and_keeps_its_attributes() -> Result<()> {
    on_a_mount(|dir, checks| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let (gone, new) = (make_dir(&dir.join("gone"), 0o750), dir.join("new"));
        let removed = open(&gone, flags, Mode::empty()).expect("opened");
        rmdir(&gone).expect("removed");
        make_dir(&new, 0o700);
        let replaced = open(&new, flags, Mode::empty()).expect("opened");
        let left = make_dir(&dir.join("left"), 0o750);
        let emptied = open(&left, flags, Mode::empty()).expect("opened");
        make(&left.join("f"), 0o600, b"").expect("made");
        unlink(left.join("f")).expect("removed");
        rmdir(&left).expect("removed");
        rename(make_dir(&dir.join("other"), 0o711), &new).expect("replaced");
        for (what, fd, mode) in [
            ("removed", &removed, 0o750),
            ("replaced", &replaced, 0o700),
            ("emptied", &emptied, 0o750),
        ] {
            let expected = Ok((FileType::Directory, mode, 0));
            checks.equal(&format!("fstat, {what}"), shown(fstat(fd)), expected);
            let here = statat(fd, ".", AtFlags::empty());
            checks.equal(&format!("stat of ., {what}"), shown(here), expected);
            let names = Dir::read_from(fd).map(Iterator::count);
            checks.equal(&format!("names, {what}"), names, Ok(0));
            let made = mkdirat(fd, "x", Mode::RWXU);
            checks.fails(&format!("mkdir, {what}"), made, Errno::NOENT);
            let file = openat(fd, "x", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
            checks.fails(&format!("create, {what}"), file, Errno::NOENT);
            let found = statat(fd, "x", AtFlags::empty());
            checks.fails(&format!("a name, {what}"), found, Errno::NOENT);
            checks.works(&format!("fsync, {what}"), fsync(fd));
            let before = fstat(fd).map(|stat| stat.st_ctime_nsec);
            checks.works(
                &format!("chmod, {what}"),
                fchmod(fd, Mode::RWXU | Mode::RGRP),
            );
            let expected = Ok((FileType::Directory, 0o740, 0));
            checks.equal(&format!("its mode, {what}"), shown(fstat(fd)), expected);
            let after = fstat(fd).map(|stat| stat.st_ctime_nsec);
            checks.equal(&format!("ctime moves, {what}"), before == after, false);
        }
        checks.merge(as_user(ALICE, || {
            let mut checks = Checks::default();
            let refused = fchmod(&removed, Mode::empty());
            checks.fails("chmod of another's", refused, Errno::PERM);
            let refused = fchown(&removed, Some(rustix::fs::Uid::from_raw(ALICE.uid)), None);
            checks.fails("chown of another's", refused, Errno::PERM);
            checks
        }));
    })
}

type Make<'a> = &'a dyn Fn() -> rustix::io::Result<()>;

#[test]
fn what_is_open_by_its_path_only_lives_without_a_name() -> Result<()> {
    on_a_mount(|dir, checks| {
        let path = dir.join("it");
        let fifo = || mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        let kinds: [(&str, FileType, Make<'_>); 3] = [
            ("file", FileType::RegularFile, &|| make(&path, 0o600, b"x")),
            ("link", FileType::Symlink, &|| symlink("to", &path)),
            ("pipe", FileType::Fifo, &fifo),
        ];
        for (what, kind, make) in kinds {
            make().expect("made");
            let handle = open(&path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty());
            let handle = handle.expect("opened");
            let before = shown(fstat(&handle)).expect("it is there");
            unlink(&path).expect("removed");
            checks.equal(what, shown(fstat(&handle)), Ok((kind, before.1, 0)));
        }
    })
}

/// In a process of its own, because all threads stand in the same directory.
#[test]
fn whoever_stands_in_a_removed_directory_may_look_around_and_leave() -> Result<()> {
    on_a_mount(|dir, checks| {
        let gone = make_dir(&dir.join("gone"), 0o755);
        let script = "cd gone && rmdir ../gone && stat -c '%h %F' . && ls -a && \
                      ! touch x 2>/dev/null && cd .. && stat -c %F .";
        let said = |dir: &Path| -> Result<String> {
            let mut shell = std::process::Command::new("sh");
            let run = shell.args(["-c", script]).current_dir(dir).output()?;
            ensure!(run.status.success(), "{run:?}");
            Ok(String::from_utf8(run.stdout)?)
        };
        let said = said(dir).unwrap_or_else(|error| error.to_string());
        checks.equal("what it sees", &*said, "0 directory\ndirectory\n");
        checks.equal("it is gone", gone.exists(), false);
        checks.equal(
            "links of the parent",
            fs::metadata(dir).map_or(0, |m| m.nlink()),
            2,
        );
    })
}
