//! `/proc/self/mountinfo`: what is mounted where, read without touching the file systems themselves.
//!
//! A `stat` of a mount point is a request to whoever serves it, and hangs or fails with its server;
//! this file does not.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Mount id.
    pub(crate) id: u64,
    /// `major:minor`, as under `/sys/class/bdi`.
    pub(crate) device: String,
    /// Absolute path.
    pub(crate) path: PathBuf,
    /// Such as `fuse.emberfs`.
    pub(crate) fs_type: String,
    /// Such as `emberfs`.
    pub(crate) source: String,
}

impl MountEntry {
    /// Is it served by some FUSE daemon?
    pub(crate) fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type.starts_with("fuse.")
    }
}

/// The uppermost mount at exactly `path`, which must be absolute and without symlinks.
pub(crate) fn find(path: &Path) -> io::Result<Option<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    // Mounts stacked on one path appear in the order they were made.
    Ok(parse(&table).into_iter().rfind(|entry| entry.path == path))
}

fn parse(table: &[u8]) -> Vec<MountEntry> {
    table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /root /path options optional... - type source super-options`.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let device = text(fields.nth(1)?);
    let path = fields.nth(1)?;
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = text(fields.next()?);
    let source = text(&unescape(fields.next()?));
    Some(MountEntry {
        id,
        device,
        path: OsString::from_vec(unescape(path)).into(),
        fs_type,
        source,
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\'
            && let Some(digits) = tail.get(..3)
            && let Ok(code) = u8::from_str_radix(&text(digits), 8)
        {
            out.push(code);
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let table = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            41 36 0:52 / /srv/a\\040b\\134c rw,nosuid shared:7 propagate_from:2 - fuse.emberfs x\\040y rw,user_id=0\n\
            garbage\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        assert!(!entries[0].is_fuse());
        let expected = MountEntry {
            id: 41,
            device: "0:52".to_owned(),
            path: PathBuf::from("/srv/a b\\c"),
            fs_type: "fuse.emberfs".to_owned(),
            source: "x y".to_owned(),
        };
        assert_eq!(entries[1], expected);
        assert!(entries[1].is_fuse());
    }

    #[test]
    fn the_mount_on_top_is_found() {
        assert!(find(Path::new("/proc")).unwrap().is_some());
        assert_eq!(find(Path::new("/no/such/mount")).unwrap(), None);
    }
}
