//! Requests out of the kernel's bytes. Nothing that the bytes say can panic or allocate more than
//! their own length.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use emberfs_client::{SetAttr, TimeSet};

use super::abi::{self, attr, op, u32_at, u64_at};

#[cfg(test)]
mod tests;

/// What every request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) opcode: u32,
    /// Names the request in its reply.
    pub(crate) unique: u64,
    pub(crate) node: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: u32,
}

impl Head {
    /// The kernel's number for the request, however often it is sent.
    pub(crate) fn number(&self) -> u64 {
        self.unique & !abi::UNIQUE_RESENT
    }

    /// It comes in the order in which requests were made; the kernel gives out forgets and interrupts when it likes.
    pub(crate) fn is_ordinary(&self) -> bool {
        !matches!(self.opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT)
    }

    /// An earlier process has read it and not answered.
    pub(crate) fn is_resent(&self) -> bool {
        self.unique & abi::UNIQUE_RESENT != 0
    }

    /// `None` if there are fewer than [`abi::IN_HEADER`] bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            opcode: u32_at(bytes, 4)?,
            unique: u64_at(bytes, 8)?,
            node: u64_at(bytes, 16)?,
            uid: u32_at(bytes, 24)?,
            gid: u32_at(bytes, 28)?,
            pid: u32_at(bytes, 32)?,
        })
    }
}

/// What is asked; it owns its bytes.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Lookup {
        name: Bytes,
    },
    /// Has no reply.
    Forget {
        nodes: Vec<u64>,
    },
    GetAttr,
    SetAttr {
        changes: SetAttr,
        handle: Option<u64>,
    },
    ReadLink,
    Symlink {
        name: Bytes,
        target: Bytes,
    },
    MkNod {
        name: Bytes,
        mode: u32,
        umask: u32,
        rdev: u32,
    },
    MkDir {
        name: Bytes,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: Bytes,
    },
    RmDir {
        name: Bytes,
    },
    Rename {
        name: Bytes,
        new_parent: u64,
        new_name: Bytes,
        flags: u32,
    },
    Link {
        node: u64,
        name: Bytes,
    },
    Open {
        flags: i32,
    },
    Create {
        name: Bytes,
        mode: u32,
        umask: u32,
        flags: i32,
    },
    /// O_TMPFILE.
    TmpFile {
        mode: u32,
        umask: u32,
        flags: i32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        data: Bytes,
        /// Set-id bits go with it.
        kill_ids: bool,
        /// Through a descriptor with O_APPEND.
        append: bool,
    },
    Flush {
        handle: u64,
        /// Whose locks of fcntl(2) on the inode end.
        owner: u64,
    },
    FSync {
        handle: u64,
    },
    Release {
        handle: u64,
        /// Whose flock ends.
        flock: Option<u64>,
    },
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDir {
        handle: u64,
    },
    FSyncDir {
        handle: u64,
    },
    StatFs,
    SetXattr {
        name: Bytes,
        value: Bytes,
        flags: u32,
    },
    /// `size`: room for the value; 0 asks how long it is.
    GetXattr {
        name: Bytes,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: Bytes,
    },
    GetLock {
        lock: Lock,
    },
    SetLock {
        lock: Lock,
        wait: bool,
    },
    Allocate {
        handle: u64,
        offset: u64,
        len: u64,
        mode: i32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyRange {
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    },
    /// Who waits for this request got a signal. Has no reply if it was understood.
    Interrupt {
        unique: u64,
    },
    Destroy,
    /// Not served; the number is the reply.
    Refused(i32),
}

/// A lock as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    pub(crate) handle: u64,
    pub(crate) owner: u64,
    pub(crate) start: u64,
    /// Inclusive.
    pub(crate) end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub(crate) kind: i32,
    pub(crate) pid: u32,
    /// Of flock(2).
    pub(crate) flock: bool,
}

impl Lock {
    /// Of `fuse_lk_in`.
    fn decode(fixed: &[u8]) -> Option<Self> {
        let eight = |at| u64_at(fixed, at);
        Some(Self {
            handle: eight(0)?,
            owner: eight(8)?,
            start: eight(16)?,
            end: eight(24)?,
            kind: u32_at(fixed, 32)?.cast_signed(),
            pid: u32_at(fixed, 36)?,
            flock: u32_at(fixed, 40)? & abi::LOCK_FLOCK != 0,
        })
    }
}

/// Bytes of the operation's fixed part, which the device puts before the rest and a ring apart.
pub(crate) fn fixed_len(opcode: u32) -> usize {
    match opcode {
        op::SETATTR => 88,
        op::COPY_FILE_RANGE => 56,
        op::GETLK | op::SETLK | op::SETLKW => 48,
        op::READ | op::WRITE | op::READDIR | op::READDIRPLUS => 40,
        op::FALLOCATE => 32,
        op::RELEASE | op::RELEASEDIR | op::FLUSH | op::LSEEK => 24,
        op::GETATTR
        | op::MKNOD
        | op::CREATE
        | op::TMPFILE
        | op::RENAME2
        | op::FSYNC
        | op::FSYNCDIR => 16,
        op::MKDIR
        | op::RENAME
        | op::LINK
        | op::OPEN
        | op::OPENDIR
        | op::FORGET
        | op::BATCH_FORGET
        | op::SETXATTR
        | op::GETXATTR
        | op::LISTXATTR
        | op::INTERRUPT => 8,
        _ => 0,
    }
}

impl Operation {
    /// `None` if the bytes are no such request. Of `fixed` at least [`fixed_len`] bytes are needed,
    /// more are ignored; `rest` is exact.
    pub(crate) fn decode(opcode: u32, fixed: &[u8], rest: &[u8]) -> Option<Self> {
        Self::decode_keeping(opcode, fixed, rest, Bytes::copy_from_slice)
    }

    /// As [`Self::decode`]; `keep` copies what is to be written.
    fn decode_keeping(
        opcode: u32,
        fixed: &[u8],
        rest: &[u8],
        keep: impl FnOnce(&[u8]) -> Bytes,
    ) -> Option<Self> {
        let four = |at| u32_at(fixed, at);
        let eight = |at| u64_at(fixed, at);
        Some(match opcode {
            op::LOOKUP => Self::Lookup { name: name(rest)? },
            op::FORGET => Self::Forget { nodes: Vec::new() },
            op::BATCH_FORGET => Self::Forget {
                nodes: forgotten(four(0)?, rest)?,
            },
            op::GETATTR => Self::GetAttr,
            op::SETATTR => Self::SetAttr {
                changes: changes(fixed)?,
                handle: chosen(four(0)?, attr::HANDLE, eight(8)?),
            },
            op::READLINK => Self::ReadLink,
            op::SYMLINK => {
                let (name, target) = two_names(rest)?;
                Self::Symlink { name, target }
            }
            op::MKNOD => Self::MkNod {
                name: name(rest)?,
                mode: four(0)?,
                rdev: four(4)?,
                umask: four(8)?,
            },
            op::MKDIR => Self::MkDir {
                name: name(rest)?,
                mode: four(0)?,
                umask: four(4)?,
            },
            op::UNLINK => Self::Unlink { name: name(rest)? },
            op::RMDIR => Self::RmDir { name: name(rest)? },
            op::RENAME | op::RENAME2 => {
                let (name, new_name) = two_names(rest)?;
                let flags = if opcode == op::RENAME2 { four(8)? } else { 0 };
                Self::Rename {
                    name,
                    new_parent: eight(0)?,
                    new_name,
                    flags,
                }
            }
            op::LINK => Self::Link {
                node: eight(0)?,
                name: name(rest)?,
            },
            op::OPEN => Self::Open {
                flags: four(0)?.cast_signed(),
            },
            op::CREATE => Self::Create {
                name: name(rest)?,
                flags: four(0)?.cast_signed(),
                mode: four(4)?,
                umask: four(8)?,
            },
            op::TMPFILE => Self::TmpFile {
                flags: four(0)?.cast_signed(),
                mode: four(4)?,
                umask: four(8)?,
            },
            op::READ => Self::Read {
                handle: eight(0)?,
                offset: eight(8)?,
                size: four(16)?,
            },
            op::WRITE => Self::Write {
                handle: eight(0)?,
                offset: eight(8)?,
                data: keep(rest.get(..four(16)? as usize)?),
                kill_ids: four(20)? & abi::WRITE_KILL_SUIDGID != 0,
                append: four(32)?.cast_signed() & libc::O_APPEND != 0,
            },
            op::FLUSH => Self::Flush {
                handle: eight(0)?,
                owner: eight(16)?,
            },
            op::FSYNC => Self::FSync { handle: eight(0)? },
            op::RELEASE => Self::Release {
                handle: eight(0)?,
                flock: chosen(four(12)?, abi::RELEASE_FLOCK_UNLOCK, eight(16)?),
            },
            op::OPENDIR => Self::OpenDir,
            op::READDIR | op::READDIRPLUS => Self::ReadDir {
                handle: eight(0)?,
                offset: eight(8)?,
                size: four(16)?,
                plus: opcode == op::READDIRPLUS,
            },
            op::RELEASEDIR => Self::ReleaseDir { handle: eight(0)? },
            op::FSYNCDIR => Self::FSyncDir { handle: eight(0)? },
            op::STATFS => Self::StatFs,
            op::SETXATTR => {
                let (name, value) = cut(rest)?;
                Self::SetXattr {
                    name: Bytes::copy_from_slice(name),
                    value: Bytes::copy_from_slice(value.get(..four(0)? as usize)?),
                    flags: four(4)?,
                }
            }
            op::GETXATTR => Self::GetXattr {
                name: name(rest)?,
                size: four(0)?,
            },
            op::LISTXATTR => Self::ListXattr { size: four(0)? },
            op::REMOVEXATTR => Self::RemoveXattr { name: name(rest)? },
            op::GETLK => Self::GetLock {
                lock: Lock::decode(fixed)?,
            },
            op::SETLK | op::SETLKW => Self::SetLock {
                lock: Lock::decode(fixed)?,
                wait: opcode == op::SETLKW,
            },
            op::FALLOCATE => Self::Allocate {
                handle: eight(0)?,
                offset: eight(8)?,
                len: eight(16)?,
                mode: four(24)?.cast_signed(),
            },
            op::LSEEK => Self::Seek {
                handle: eight(0)?,
                offset: eight(8)?,
                whence: four(16)?,
            },
            op::COPY_FILE_RANGE => Self::CopyRange {
                from: eight(0)?,
                from_offset: eight(8)?,
                to: eight(24)?,
                to_offset: eight(32)?,
                len: eight(40)?,
            },
            op::INTERRUPT => Self::Interrupt { unique: eight(0)? },
            op::DESTROY => Self::Destroy,
            op::IOCTL => Self::Refused(libc::ENOTTY),
            _ => Self::Refused(libc::ENOSYS),
        })
    }
}

/// A request as the device gives it; `keep` copies what is to be written, given the request's number. The second part is
/// `None` if it is malformed.
pub(crate) fn decode_message(
    bytes: &[u8],
    keep: impl FnOnce(u64, &[u8]) -> Bytes,
) -> Option<(Head, Option<Operation>)> {
    let head = Head::decode(bytes)?;
    let body = bytes.get(abi::IN_HEADER..)?;
    let parts = body.split_at_checked(fixed_len(head.opcode));
    let keep = |data: &[u8]| keep(head.number(), data);
    let operation =
        parts.and_then(|(fixed, rest)| Operation::decode_keeping(head.opcode, fixed, rest, keep));
    Some((head, operation))
}

/// One name, which ends with a zero byte.
fn name(bytes: &[u8]) -> Option<Bytes> {
    let (name, _) = cut(bytes)?;
    Some(Bytes::copy_from_slice(name))
}

fn two_names(bytes: &[u8]) -> Option<(Bytes, Bytes)> {
    let (first, rest) = cut(bytes)?;
    Some((Bytes::copy_from_slice(first), name(rest)?))
}

fn cut(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The nodes of a batch: pairs of a node and a count, eight bytes each.
fn forgotten(count: u32, bytes: &[u8]) -> Option<Vec<u64>> {
    let bytes = bytes.get(..(count as usize).checked_mul(16)?)?;
    bytes.chunks_exact(16).map(|one| u64_at(one, 0)).collect()
}

fn chosen<T>(valid: u32, bit: u32, value: T) -> Option<T> {
    (valid & bit != 0).then_some(value)
}

fn changes(fixed: &[u8]) -> Option<SetAttr> {
    let four = |at| u32_at(fixed, at);
    let valid = four(0)?;
    let time = |bit, now, seconds, nanos| {
        Some(match valid {
            valid if valid & bit == 0 => None,
            valid if valid & now != 0 => Some(TimeSet::Now),
            _ => {
                let seconds = u64_at(fixed, seconds)?.cast_signed();
                Some(TimeSet::At(system_time(seconds, four(nanos)?)?))
            }
        })
    };
    Some(SetAttr {
        mode: chosen(valid, attr::MODE, four(68)? & 0o7777),
        uid: chosen(valid, attr::UID, four(76)?),
        gid: chosen(valid, attr::GID, four(80)?),
        size: chosen(valid, attr::SIZE, u64_at(fixed, 16)?),
        atime: time(attr::ATIME, attr::ATIME_NOW, 32, 56)?,
        mtime: time(attr::MTIME, attr::MTIME_NOW, 40, 60)?,
    })
}

/// A time that may lie before 1970; nanoseconds count forward from the second.
fn system_time(seconds: i64, nanos: u32) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    second?.checked_add(Duration::from_nanos(u64::from(nanos)))
}
