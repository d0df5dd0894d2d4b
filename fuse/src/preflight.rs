//! What is checked before mounting, so that every common mistake is one clear line.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use emberfs_proto::{Error, ErrorCode, Result};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::mountinfo;

#[cfg(test)]
mod tests;

/// Most dead mounts that may lie on top of each other at one mount point.
const MAX_STALE_MOUNTS: usize = 16;

/// The device of the classic transport.
pub(crate) const FUSE_DEVICE: &str = "/dev/fuse";

/// Checks the device and the mount point; removes mounts whose process died. Answers the mount
/// point as an absolute path without symlinks.
pub(crate) fn check(mountpoint: &Path) -> Result<PathBuf> {
    check_device(Path::new(FUSE_DEVICE))?;
    check_path(mountpoint)
}

fn check_path(mountpoint: &Path) -> Result<PathBuf> {
    for _ in 0..MAX_STALE_MOUNTS {
        match file_type(mountpoint) {
            Ok(FileType::Directory) => return check_live(mountpoint),
            Ok(_) => {
                return Err(at(
                    mountpoint,
                    ErrorCode::NotDirectory,
                    "is not a directory; choose one",
                ));
            }
            Err(Errno::NOTCONN | Errno::CONNABORTED) => detach_dead(mountpoint)?,
            Err(errno) => return Err(unreachable_mountpoint(mountpoint, &errno.into())),
        }
    }
    Err(at(
        mountpoint,
        ErrorCode::Exists,
        &format!("has more than {MAX_STALE_MOUNTS} dead mounts on it; unmount them with umount -l"),
    ))
}

/// What is there. Not from the kernel's memory, which outlives the process of a mount.
fn file_type(path: &Path) -> rustix::io::Result<FileType> {
    let found = rustix::fs::statx(
        CWD,
        path,
        AtFlags::STATX_FORCE_SYNC,
        StatxFlags::TYPE | StatxFlags::MODE,
    )?;
    Ok(FileType::from_raw_mode(found.stx_mode.into()))
}

fn check_device(device: &Path) -> Result<()> {
    let name = device.display();
    match std::fs::metadata(device) {
        Ok(meta) if meta.file_type().is_char_device() => Ok(()),
        Ok(_) => Err(at(
            device,
            ErrorCode::Unsupported,
            "is not a device; recreate it with: mknod -m 666 /dev/fuse c 10 229",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::new(
            ErrorCode::Unsupported,
            format!(
                "{name} does not exist: load the module with modprobe fuse, or start the container \
                 with --device {name} --cap-add SYS_ADMIN"
            ),
        )),
        Err(error) => Err(unreachable_mountpoint(device, &error)),
    }
}

fn check_live(mountpoint: &Path) -> Result<PathBuf> {
    let path = mountpoint
        .canonicalize()
        .map_err(|e| unreachable_mountpoint(mountpoint, &e))?;
    if path.parent().is_none() {
        return Err(at(
            &path,
            ErrorCode::InvalidArgument,
            "cannot be a mount point; choose another",
        ));
    }
    let below = mountinfo::find(&path).map_err(|e| unreachable_mountpoint(&path, &e))?;
    match below {
        Some(mount) if mount.fs_type.ends_with(&format!(".{}", crate::SUBTYPE)) => Err(at(
            &path,
            ErrorCode::Exists,
            &format!("is already a mount of {}; unmount it first", mount.source),
        )),
        _ => Ok(path),
    }
}

/// Takes away a mount whose process is gone: every use of it fails with ENOTCONN anyway.
fn detach_dead(mountpoint: &Path) -> Result<()> {
    let path = resolve_parent(mountpoint).map_err(|e| unreachable_mountpoint(mountpoint, &e))?;
    tracing::warn!(mountpoint = %path.display(), "removing a dead mount whose process is gone");
    match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => crate::unmount::with_helper(&path, true),
        Err(errno) => Err(at(
            &path,
            ErrorCode::Exists,
            &format!("holds a dead mount that cannot be removed ({errno}); try umount -l"),
        )),
    }
}

/// Absolute and without symlinks, except that the last component itself is not looked at: looking
/// at a dead mount fails.
pub(crate) fn resolve_parent(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(path),
    }
}

fn unreachable_mountpoint(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => at(
            path,
            ErrorCode::NotFound,
            &format!(
                "does not exist; create it with: mkdir -p {}",
                path.display()
            ),
        ),
        io::ErrorKind::NotADirectory => at(
            path,
            ErrorCode::NotDirectory,
            "goes through something that is not a directory",
        ),
        io::ErrorKind::PermissionDenied => at(
            path,
            ErrorCode::PermissionDenied,
            "may not be used by this user; choose a directory of your own or run as root",
        ),
        _ => at(
            path,
            ErrorCode::Internal,
            &format!("cannot be examined: {error}"),
        ),
    }
}

pub(crate) fn at(path: &Path, code: ErrorCode, what: &str) -> Error {
    Error::new(code, format!("{} {what}", path.display()))
}
