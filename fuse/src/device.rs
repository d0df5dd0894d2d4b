//! Attaching to the kernel: the device, the mount call, and the kernel's read-ahead.
//!
//! Root mounts directly. `fuser`'s own unmounting is kept out of that path: in 0.18.0 it takes a
//! severed connection for a live mount and unmounts whatever is at the path by then. Others go
//! through the set-user-id helper `fusermount3`, which `fuser` speaks to. Either way it is not `fuser` that serves
//! requests: it knows no interrupts, without which a program that waits for a dead cluster cannot be killed.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use emberfs_proto::{Error, ErrorCode, Result};
use fuser::{InitFlags, MountOption, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::preflight::{FUSE_DEVICE, at};
use crate::protocol::{MAX_IO, init};
use crate::{MountOptions, mountinfo};

/// The kernel's request to clone a device: read, 4 bytes, type 229, number 0.
const DEVICE_CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);

/// The device of a mount.
pub(crate) struct Device {
    pub(crate) fd: Arc<OwnedFd>,
    /// Of a mount that was made through the helper: with it that mount goes.
    _helper: Option<fuser::Session<Greeter>>,
}

/// Mounts at `path` (checked before) and shakes hands with the kernel.
pub(crate) fn attach(path: &Path, options: &MountOptions) -> Result<Device> {
    if rustix::process::geteuid().is_root() && !options.auto_unmount {
        let device = mount_directly(path, options)?;
        init::handshake(&device, options.max_background, false).map_err(|error| {
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            refused(path, &error)
        })?;
        return Ok(Device {
            fd: Arc::new(device),
            _helper: None,
        });
    }
    let mut config = fuser::Config::default();
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.mount_options = helper_options(options);
    let greeter = Greeter {
        max_background: options.max_background,
    };
    let session = fuser::Session::new(greeter, path, &config);
    let session = session.map_err(|error| refused(path, &error))?;
    let fd = session.as_fd().try_clone_to_owned();
    Ok(Device {
        fd: Arc::new(fd.map_err(|error| refused(path, &error))?),
        _helper: Some(session),
    })
}

/// Answers INIT for mounts through the helper, where `fuser` does that; all other requests are ours.
pub(crate) struct Greeter {
    max_background: u16,
}

impl fuser::Filesystem for Greeter {
    fn init(&mut self, _: &fuser::Request, config: &mut fuser::KernelConfig) -> io::Result<()> {
        for flag in InitFlags::from_bits_truncate(init::WANTED) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel lacks a FUSE capability");
            }
        }
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(self.max_background);
        Ok(())
    }
}

/// So many devices of one mount; without clones they are the same.
pub(crate) fn several(first: &Arc<OwnedFd>, count: usize) -> Vec<Arc<OwnedFd>> {
    let mut devices = vec![first.clone()];
    while devices.len() < count {
        let device = clone(first).map_or_else(
            |error| {
                tracing::debug!(%error, "the device cannot be cloned");
                first.clone()
            },
            Arc::new,
        );
        devices.push(device);
    }
    devices
}

/// Another device of the same mount, with a queue of its own for requests that are being served.
fn clone(device: &OwnedFd) -> io::Result<OwnedFd> {
    let fresh = File::options().read(true).write(true).open(FUSE_DEVICE)?;
    let number = u32::try_from(device.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the kernel's FUSE_DEV_IOC_CLONE takes a pointer to the number of an open device, which it only reads.
    let clone = unsafe { rustix::ioctl::Setter::<DEVICE_CLONE, u32>::new(number) };
    // SAFETY: as above; `fresh` is a FUSE device that is not attached yet.
    unsafe { rustix::ioctl::ioctl(&fresh, clone)? };
    Ok(fresh.into())
}

/// Mounts without a helper; the handshake is still to be done.
pub(crate) fn mount_directly(path: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(FUSE_DEVICE).map_err(|error| {
        let what = format!(
            "cannot be opened ({error}); in a container, start it with --device {FUSE_DEVICE} --cap-add SYS_ADMIN"
        );
        at(Path::new(FUSE_DEVICE), ErrorCode::NotPermitted, &what)
    })?;
    let root_mode = std::fs::metadata(path)
        .map_err(|error| refused(path, &error))?
        .mode();
    let mut data = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|error| refused(path, &error.into()))?;
    let fs_type = format!("fuse.{}", options.subtype);
    rustix::mount::mount(&*options.fsname, path, &*fs_type, flags(options), &*data)
        .map_err(|errno| refused(path, &errno.into()))?;
    Ok(device.into())
}

fn flags(options: &MountOptions) -> MountFlags {
    let chosen = [
        (options.read_only, MountFlags::RDONLY),
        (!options.suid, MountFlags::NOSUID),
        (!options.dev, MountFlags::NODEV),
        (!options.exec, MountFlags::NOEXEC),
        (options.noatime, MountFlags::NOATIME),
        (options.sync, MountFlags::SYNCHRONOUS),
        (options.dirsync, MountFlags::DIRSYNC),
    ];
    chosen
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(MountFlags::empty(), |all, (_, flag)| all | flag)
}

fn helper_options(options: &MountOptions) -> Vec<MountOption> {
    let chosen = [
        (options.read_only, MountOption::RO),
        (options.suid, MountOption::Suid),
        (!options.suid, MountOption::NoSuid),
        (options.dev, MountOption::Dev),
        (!options.dev, MountOption::NoDev),
        (!options.exec, MountOption::NoExec),
        (options.noatime, MountOption::NoAtime),
        (options.sync, MountOption::Sync),
        (options.dirsync, MountOption::DirSync),
        (options.auto_unmount, MountOption::AutoUnmount),
    ];
    let mut list = vec![
        MountOption::FSName(options.fsname.clone()),
        MountOption::Subtype(options.subtype.clone()),
        MountOption::DefaultPermissions,
    ];
    list.extend(
        chosen
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, option)| option),
    );
    list
}

fn refused(path: &Path, error: &io::Error) -> Error {
    let said = error.to_string();
    let (code, next) = match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => (
            ErrorCode::NotPermitted,
            "be root, install fuse3, or start the container with --cap-add SYS_ADMIN",
        ),
        Some(Errno::NODEV) => (
            ErrorCode::Unsupported,
            "load the kernel module with modprobe fuse",
        ),
        _ if said.contains("user_allow_other") => (
            ErrorCode::NotPermitted,
            "use -o noallow_other, or set user_allow_other in /etc/fuse.conf",
        ),
        _ => (ErrorCode::Internal, "see dmesg for the kernel's reason"),
    };
    at(
        path,
        code,
        &format!("cannot be mounted ({}); {next}", said.trim()),
    )
}

/// Lets the kernel read ahead further than the 128 KiB that FUSE starts with. Worth having but not
/// worth failing for: only root may.
pub(crate) fn set_read_ahead(path: &Path, kib: u32) {
    let outcome = mountinfo::find(path).and_then(|mount| {
        let mount = mount.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let file = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
        std::fs::write(file, kib.to_string())
    });
    if let Err(error) = outcome {
        tracing::info!(
            mountpoint = %path.display(), kib, %error,
            "the kernel's read-ahead stays at its default; large sequential reads are slower"
        );
    }
}

/// Mounts and lets go of the device at once, as a crashed process does.
#[cfg(test)]
pub(crate) fn leave_dead_mount(path: &Path) {
    drop(mount_directly(path, &MountOptions::default()).unwrap());
}
