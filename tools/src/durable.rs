//! Small files that a loss of power leaves whole: the old one, or the new one.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::Builder;

/// What a new file may be used for: read by all, as one that an editor made.
const NEW: u32 = 0o644;

/// Puts a file there, or another one in its place with the same permissions; it is on disk when this returns.
pub(crate) fn put(path: &Path, text: &str) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let permissions = match fs::metadata(path) {
        Ok(old) => old.permissions(),
        Err(_) => Permissions::from_mode(NEW),
    };
    let mut file = Builder::new().prefix(".emberfs-").tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(permissions)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_keeps_its_permissions() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let mode = || {
            let metadata = fs::metadata(&path).expect("it is there");
            metadata.permissions().mode() & 0o777
        };
        put(&path, "one").expect("written");
        assert_eq!(mode(), NEW);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("changed");
        put(&path, "two").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "two");
        assert_eq!(mode(), 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
