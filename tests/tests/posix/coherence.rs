//! What one mount knows without asking, and another one changes.
//!
//! A mount answers for names that cannot be there and for directories that it has just changed. Both must end as soon as the
//! other mount has changed something there, long before what was told would expire by itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use emberfs_tests::{TestCluster, wait};

/// Rounds, each in a new directory.
const ROUNDS: usize = 40;
/// Far more than telling takes, and far less than the ten seconds for which a mount would believe.
const TOLD: Duration = Duration::from_secs(2);

fn subdirectories(dir: &Path) -> Result<u64> {
    Ok(fs::metadata(dir)?.nlink() - 2)
}

#[test]
fn what_another_mount_makes_is_seen_where_it_was_known_to_be_absent() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount(), second.path().to_owned());
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let name = format!("d{round}");
        let (here, there) = (one.join(&name), other.join(&name));
        fs::create_dir(&here)?;
        // From here on the first mount knows what is in it, and how it is.
        fs::write(here.join("own"), "1")?;
        fs::create_dir(here.join("sub"))?;
        ensure!(!here.join("file").exists() && subdirectories(&here)? == 1);
        ensure!(!here.join("dir").exists());

        fs::write(there.join("file"), "another's")?;
        fs::create_dir(there.join("dir"))?;
        let made = Instant::now();
        wait(TOLD, || {
            Ok(here.join("file").exists() && subdirectories(&here)? == 2)
        })?;
        slowest = slowest.max(made.elapsed());
        ensure!(fs::read(here.join("file"))? == b"another's");
        // Whatever a mount believes: the server decides who makes a name.
        ensure!(fs::create_dir(here.join("dir")).is_err());

        fs::rename(there.join("file"), there.join("renamed"))?;
        fs::remove_dir(there.join("sub"))?;
        wait(TOLD, || {
            let renamed = here.join("renamed").exists() && !here.join("file").exists();
            Ok(renamed && subdirectories(&here)? == 1)
        })?;
        let names = fs::read_dir(&here)?.count();
        ensure!(names == 3, "{names} names in round {round}");
    }
    println!("the slowest of {ROUNDS} was seen after {slowest:?}");
    Ok(())
}

/// A directory's times, size of its listing and links are the same everywhere once nobody changes it.
#[test]
fn after_changes_by_two_mounts_at_once_both_show_the_same_directory() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount().join("d"), second.path().join("d"));
    fs::create_dir(&one)?;
    std::thread::scope(|scope| {
        let work = [&one, &other].map(|dir| {
            scope.spawn(move || -> Result<()> {
                for n in 0..60 {
                    let name = format!("{n}-{}", dir.display()).replace('/', "_");
                    let path = dir.join(name);
                    fs::create_dir(&path)?;
                    fs::metadata(dir)?;
                    if n % 3 == 0 {
                        fs::remove_dir(&path)?;
                    }
                }
                Ok(())
            })
        });
        work.into_iter()
            .try_for_each(|work| work.join().expect("no panic"))
    })?;
    let seen = |dir: &Path| -> Result<_> {
        let meta = fs::metadata(dir)?;
        let times = (
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        Ok((meta.nlink(), times, fs::read_dir(dir)?.count()))
    };
    wait(TOLD, || {
        let (here, there) = (seen(&one)?, seen(&other)?);
        Ok(here == there && here.0 == 82 && here.2 == 80)
    })?;
    Ok(())
}

/// A metadata server that restarts does not know any more whom it told what.
#[test]
fn what_was_believed_before_the_metadata_server_restarted_is_asked_for_again() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount(), second.path().to_owned());
    fs::write(one.join("written"), "1")?;
    fs::write(one.join("renamed"), "1")?;
    let open = fs::File::open(one.join("written"))?;
    let believed = |name: &str| fs::metadata(one.join(name)).is_ok();
    // Names that are there, one that is not, and an open file.
    ensure!(believed("written") && believed("renamed") && !believed("made"));
    ensure!(open.metadata()?.len() == 1);

    cluster.stop_process("meta-1")?;
    cluster.start_process("meta-1")?;
    fs::write(other.join("written"), "longer")?;
    fs::write(other.join("made"), "")?;
    fs::remove_file(other.join("renamed"))?;
    // Without a watch it may believe for a second; with the one before it would for minutes.
    wait(TOLD * 2, || {
        let lens = [fs::metadata(one.join("written"))?, open.metadata()?].map(|meta| meta.len());
        Ok(lens == [6, 6] && !believed("renamed") && believed("made"))
    })?;
    Ok(())
}

/// Files in a directory that is walked through.
const MANY: usize = 400;

fn nth(number: usize) -> String {
    format!("file-{number:04}")
}

fn many_files(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    (0..MANY).try_for_each(|n| Ok(fs::write(dir.join(nth(n)), "")?))
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// A mount has fetched more of a listing than it has handed out.
#[test]
fn a_listing_that_another_mount_overtakes_is_not_believed() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount().join("d"), second.path().join("d"));
    many_files(&other)?;
    let mut listing = fs::read_dir(&one)?;
    ensure!(listing.next().is_some());
    for n in 100..MANY {
        set_mode(&other.join(nth(n)), 0o600)?;
    }
    fs::remove_file(other.join(nth(MANY / 2)))?;
    // Until the first mount has heard of all that, and its kernel still has not read on.
    wait(TOLD, || Ok(mode(&one.join(nth(MANY - 1)))? == 0o600))?;
    listing.try_for_each(|entry| entry.map(drop))?;
    wait(TOLD, || {
        let modes = (100..MANY).filter(|n| *n != MANY / 2);
        let changed = modes.map(|n| mode(&one.join(nth(n))));
        let changed = changed.collect::<Result<Vec<_>>>()?;
        let gone = !one.join(nth(MANY / 2)).exists();
        Ok(gone && changed.iter().all(|mode| *mode == 0o600))
    })?;
    Ok(())
}

/// A mount has fetched names that a program has not asked for yet.
#[test]
fn a_walk_through_a_directory_finds_what_another_mount_has_changed() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount().join("d"), second.path().join("d"));
    many_files(&other)?;
    for (round, first) in (0..MANY).step_by(20).enumerate() {
        let ahead = nth(first + 12);
        for n in first..first + 10 {
            ensure!(mode(&one.join(nth(n)))? != 0o600);
        }
        match round % 3 {
            0 => {
                set_mode(&other.join(&ahead), 0o600)?;
                wait(TOLD, || Ok(mode(&one.join(&ahead))? == 0o600))?;
            }
            1 => {
                fs::remove_file(other.join(&ahead))?;
                wait(TOLD, || Ok(!one.join(&ahead).exists()))?;
            }
            _ => {
                fs::write(other.join("new"), "another file")?;
                fs::rename(other.join("new"), other.join(&ahead))?;
                wait(TOLD, || Ok(fs::metadata(one.join(&ahead))?.len() == 12))?;
                ensure!(fs::read(one.join(&ahead))? == b"another file");
            }
        }
    }
    Ok(())
}

/// Small files are read while they are opened; an open sees what was closed before it all the same.
/// The kernel refuses a rename of a directory that it still has at another place, until it was told or looks there (docs/posix.md).
#[test]
fn a_directory_that_another_mount_has_moved_can_be_renamed_without_a_look() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount(), second.path());
    for side in ["left", "right"] {
        fs::create_dir(one.join(side))?;
    }
    for round in 0..ROUNDS {
        let name = |side: &str| format!("{side}/d{round}");
        fs::create_dir_all(one.join(name("left")).join("sub"))?;
        ensure!(other.join(name("left")).join("sub").is_dir());
        fs::rename(one.join(name("left")), one.join(name("right")))?;
        let back = || fs::rename(other.join(name("right")), other.join(name("left")));
        wait(TOLD, || match back() {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(false),
            done => done.map(|()| true).map_err(Into::into),
        })?;
        ensure!(other.join(name("left")).join("sub").is_dir());
    }
    Ok(())
}

#[test]
fn an_open_sees_what_another_mount_has_closed_before() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let second = cluster.mount_again("")?;
    let (one, other) = (cluster.mount().join("f"), second.path().join("f"));
    fs::write(&other, "first")?;
    for round in 0..200 {
        // The same length each time, so that nothing but the times differs.
        let text = format!("round {round:04}");
        fs::write(&other, &text)?;
        let seen = fs::read_to_string(&one)?;
        ensure!(seen == text, "{seen:?} instead of {text:?}");
    }
    Ok(())
}

/// What another mount has just made, where this one knows all names.
fn told(path: &Path) -> Result<Vec<u8>> {
    wait(TOLD, || Ok(path.exists()))?;
    Ok(fs::read(path)?)
}

/// With `late_close` a small new file is closed before its mount has stored it. Whoever looks then, by whatever way, finds what was written.
#[test]
fn what_was_just_closed_is_there_for_others() -> Result<()> {
    const WAYS: usize = 8;
    let cluster = TestCluster::start(3, 3)?;
    let second = cluster.mount_again("late_close")?;
    let (one, other) = (second.path().join("d"), cluster.mount().join("d"));
    fs::create_dir(&one)?;
    fs::create_dir(one.join("kept"))?;
    wait(TOLD, || Ok(other.join("kept").exists()))?;
    for round in 0..25 * WAYS {
        let bytes: Vec<u8> = (0..=round * 61).map(|i| (i + round) as u8).collect();
        let name = format!("f{round}");
        fs::write(one.join(&name), &bytes)?;
        let there = other.join(&name);
        let read = match round % WAYS {
            0 => fs::read(&there)?,
            1 => {
                let seen = fs::metadata(&there)?.len();
                ensure!(seen == bytes.len() as u64, "{seen} bytes in round {round}");
                fs::read(&there)?
            }
            2 => {
                let listed = fs::read_dir(&other)?.map(|entry| {
                    let entry = entry?;
                    Ok((entry.file_name(), entry.metadata()?.len()))
                });
                let listed = listed.collect::<Result<Vec<_>>>()?;
                let found = (std::ffi::OsString::from(&name), bytes.len() as u64);
                ensure!(listed.contains(&found), "{listed:?} in round {round}");
                fs::read(&there)?
            }
            3 => {
                fs::rename(&there, other.join("kept").join(&name))?;
                told(&one.join("kept").join(&name))?
            }
            4 => {
                fs::hard_link(&there, other.join("kept").join(&name))?;
                fs::read(other.join("kept").join(&name))?
            }
            5 => {
                let mut file = fs::OpenOptions::new().append(true).open(&there)?;
                file.write_all(b"more")?;
                drop(file);
                let read = fs::read(&there)?;
                ensure!(read.ends_with(b"more"), "round {round}");
                read[..read.len() - 4].to_vec()
            }
            6 => {
                fs::copy(&there, other.join("kept").join(&name))?;
                told(&one.join("kept").join(&name))?
            }
            // By its writer, who has it open again.
            _ => {
                let file = fs::File::open(one.join(&name))?;
                file.sync_all()?;
                fs::read(&there)?
            }
        };
        ensure!(read == bytes, "round {round}");
    }
    drop(second);
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}
