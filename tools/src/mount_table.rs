//! What the kernel says is mounted where, and unmounting.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::failure::{Context, Result, fail};

/// How long an unmount may take before it is given up: the kernel flushes the mount's files first.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);

/// How long a mount may take to say that it is alive.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Where.
    pub(crate) path: PathBuf,
    /// `fuse.emberfs`, `ext4`, …
    pub(crate) fs_type: String,
    /// What is mounted.
    pub(crate) source: String,
    /// Its number, `major:minor`.
    pub(crate) device: String,
}

impl MountEntry {
    /// It is a mount of ours that was made with these options: `subtype=` decides the type shown.
    pub(crate) fn is_emberfs(&self, options: &str) -> bool {
        let subtype = emberfs_fuse::MountOptions::parse(options).map(|options| options.subtype);
        match subtype.as_deref() {
            Ok("") => self.fs_type == "fuse",
            Ok(subtype) => self.fs_type.strip_prefix("fuse.") == Some(subtype),
            Err(_) => false,
        }
    }
}

/// The file system that is visible at exactly `path`, without touching it.
pub(crate) fn find(path: &Path) -> Result<Option<MountEntry>> {
    // The last one mounted hides those before.
    Ok(parse(&table()?).filter(|entry| entry.path == path).last())
}

/// The mount that `path`, absolute, lies on, as far as its letters say: nothing is touched.
pub(crate) fn above(path: &Path) -> Result<Option<MountEntry>> {
    let table = table()?;
    let above = parse(&table).filter(|entry| path.starts_with(&entry.path));
    // Of several at one place the last one hides the others.
    Ok(above.max_by_key(|entry| entry.path.as_os_str().len()))
}

fn table() -> Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")
}

fn parse(table: &[u8]) -> impl Iterator<Item = MountEntry> {
    table.split(|&b| b == b'\n').filter_map(|line| {
        let mut fields = line.split(|&b| b == b' ');
        let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
        let path = unescape(fields.nth(1)?);
        let mut rest = fields.skip_while(|&field| field != b"-").skip(1);
        let fs_type = String::from_utf8_lossy(rest.next()?).into_owned();
        let source = rest.next().map(unescape).unwrap_or_default();
        Some(MountEntry {
            path: path.into(),
            fs_type,
            source: source.to_string_lossy().into_owned(),
            device,
        })
    })
}

/// Undoes the kernel's `\040` for a space and its like.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\');
        let code = octal.and_then(|o| std::str::from_utf8(o).ok());
        match code.and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Whether the process of the mount at `path` is gone. One that does not answer may come back.
pub(crate) async fn is_dead(path: &Path) -> bool {
    let path = path.to_owned();
    let call = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path).err());
    let outcome = tokio::time::timeout(ANSWER_LIMIT, call).await;
    matches!(outcome, Ok(Ok(Some(Errno::NOTCONN | Errno::CONNABORTED))))
}

/// Unmounts `path`; `lazy` detaches it even while programs use it.
pub(crate) async fn unmount(path: &Path, lazy: bool) -> Result<()> {
    let target = path.to_owned();
    let call = tokio::task::spawn_blocking(move || {
        if lazy {
            detach(&target)
        } else {
            Ok(emberfs_fuse::unmount(&target)?)
        }
    });
    match tokio::time::timeout(UNMOUNT_LIMIT, call).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => fail(format!("cannot unmount {}: {panic}", path.display())),
        Err(_) => fail(format!(
            "cannot unmount {}: the kernel does not finish; detach it with --force",
            path.display()
        )),
    }
}

fn detach(path: &Path) -> Result<()> {
    let what = format!("cannot detach {}", path.display());
    if rustix::process::geteuid().is_root() {
        return rustix::mount::unmount(path, UnmountFlags::DETACH).context(what);
    }
    let output = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(path)
        .output();
    let output = output.context(format!("{what}: fusermount3 (package fuse3)"))?;
    if output.status.success() {
        return Ok(());
    }
    fail(format!(
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Checks that a directory can be mounted on; makes it if it is missing. Answers whether it did.
pub(crate) fn prepare_mountpoint(path: &Path) -> Result<bool> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => fail(format!(
            "cannot mount on {shown}: it is not a directory; choose another place"
        )),
        Ok(_) => {
            let mut entries =
                std::fs::read_dir(path).context(format!("cannot read the mount point {shown}"))?;
            if entries.next().is_some() {
                return fail(format!(
                    "cannot mount on {shown}: it is not empty and its files would be hidden; choose another place"
                ));
            }
            Ok(false)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            crate::cluster_dir::make_dir(path)?;
            Ok(true)
        }
        Err(error) => fail(format!("cannot mount on {shown}: {error}")),
    }
}

/// A name for files about a mount point: its path with `/` as `-`.
pub(crate) fn escaped(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let text = String::from_utf8_lossy(bytes);
    text.trim_matches('/')
        .chars()
        .map(|c| if c == '/' { '-' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_with_spaces_and_optional_fields() {
        let table = b"36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.emberfs 127.0.0.1:7400 rw\n\
                      37 35 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let entries: Vec<_> = parse(table).collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].path, Path::new("/mnt/a b"));
        assert_eq!(entries[0].fs_type, "fuse.emberfs");
        assert_eq!(entries[0].source, "127.0.0.1:7400");
        assert_eq!(entries[1].fs_type, "ext4");
        assert!(entries[0].is_emberfs("ro") && !entries[0].is_emberfs("subtype=x"));
        assert!(!entries[1].is_emberfs(""));
    }

    #[test]
    fn proc_is_found_where_it_is_and_nowhere_else() {
        let proc = find(Path::new("/proc"))
            .expect("readable")
            .expect("mounted");
        assert_eq!(proc.fs_type, "proc");
        assert_eq!(find(Path::new("/proc/self")).expect("readable"), None);
    }

    #[test]
    fn a_mount_point_is_an_empty_directory_or_made() {
        let temp = tempfile::tempdir().expect("temporary directory");
        assert!(prepare_mountpoint(&temp.path().join("a/b")).expect("made"));
        assert!(!prepare_mountpoint(&temp.path().join("a/b")).expect("there"));
        let full = prepare_mountpoint(&temp.path().join("a")).expect_err("not empty");
        assert!(full.to_string().contains("not empty"), "{full}");
        std::fs::write(temp.path().join("f"), "").expect("written");
        let file = prepare_mountpoint(&temp.path().join("f")).expect_err("a file");
        assert!(file.to_string().contains("not a directory"), "{file}");
    }

    #[tokio::test]
    async fn unmounting_what_is_not_mounted_says_so() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let error = unmount(temp.path(), false)
            .await
            .expect_err("not mounted")
            .to_string();
        assert!(error.contains("not mounted"), "{error}");
    }
}
