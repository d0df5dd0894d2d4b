//! Taking a mount away.

use std::path::Path;
use std::process::Command;

use emberfs_proto::{Error, ErrorCode, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::mountinfo;
use crate::preflight::{at, resolve_parent};

/// Unmounts the file system at `path`; works on a mount of another process and on a dead one. A
/// user who is not root goes through `fusermount3`. Blocks while the kernel writes back what
/// programs left in mapped files: call it outside of async code.
pub fn unmount(path: &Path) -> Result<()> {
    let resolved = resolve_parent(path).map_err(|error| {
        at(
            path,
            ErrorCode::NotFound,
            &format!("cannot be found ({error}); check the path"),
        )
    })?;
    // A live mount may have been named through a symlink; a dead one cannot be looked at.
    let resolved = resolved.canonicalize().unwrap_or(resolved);
    let mounted = mountinfo::find(&resolved).map_err(|error| {
        at(
            path,
            ErrorCode::Internal,
            &format!("cannot be looked up in /proc/self/mountinfo: {error}"),
        )
    })?;
    match mounted {
        None => return Err(at(&resolved, ErrorCode::NotFound, "is not mounted")),
        Some(mount) if !mount.is_fuse() => {
            let what = format!(
                "is a mount of type {}, not of EmberFS; use umount",
                mount.fs_type
            );
            return Err(at(&resolved, ErrorCode::InvalidArgument, &what));
        }
        Some(_) => {}
    }
    match rustix::mount::unmount(&resolved, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(&resolved)),
        Err(Errno::PERM) => with_helper(&resolved, false),
        // Somebody else was faster.
        Err(Errno::INVAL) => Err(at(&resolved, ErrorCode::NotFound, "is not mounted")),
        Err(errno) => Err(at(
            &resolved,
            ErrorCode::Internal,
            &format!("cannot be unmounted: {errno}"),
        )),
    }
}

/// Unmounts with the set-user-id helper, for users who are not root.
pub(crate) fn with_helper(path: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(path).output().map_err(|error| {
        let what = format!(
            "cannot be unmounted by this user: fusermount3 does not run ({error}); install fuse3 or be root"
        );
        at(path, ErrorCode::NotPermitted, &what)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(busy(path));
    }
    Err(at(
        path,
        ErrorCode::NotPermitted,
        &format!("cannot be unmounted: {}", said.trim()),
    ))
}

fn busy(path: &Path) -> Error {
    let what = format!(
        "is in use by a program with an open file or its working directory there; see which with: fuser -vm {}",
        path.display()
    );
    at(path, ErrorCode::Busy, &what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_is_said_to_be_so() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unmount(dir.path()).unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(
            unmount(&dir.path().join("a/b")).unwrap_err().code,
            ErrorCode::NotFound
        );
    }

    #[test]
    fn other_file_systems_are_left_alone() {
        let error = unmount(Path::new("/proc")).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(mountinfo::find(Path::new("/proc")).unwrap().is_some());
    }
}
