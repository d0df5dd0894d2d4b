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
pub(super) struct Head {
    pub(super) opcode: u32,
    /// Names the request in its reply.
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
}

impl Head {
    /// `None` if there are fewer than [`abi::IN_HEADER`] bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
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
pub(super) enum Operation {
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
        rdev: u32,
    },
    MkDir {
        name: Bytes,
        mode: u32,
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
    },
    Flush {
        handle: u64,
    },
    FSync {
        handle: u64,
    },
    Release {
        handle: u64,
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
    /// Every change of names was durable before it was answered.
    FSyncDir,
    StatFs,
    Destroy,
    /// Not served; the number is the reply.
    Refused(i32),
}

/// Bytes of the operation's fixed part, which the device puts before the rest and a ring apart.
pub(super) fn fixed_len(opcode: u32) -> usize {
    match opcode {
        op::SETATTR => 88,
        op::READ | op::WRITE | op::READDIR | op::READDIRPLUS => 40,
        op::RELEASE | op::RELEASEDIR | op::FLUSH => 24,
        op::GETATTR | op::MKNOD | op::CREATE | op::RENAME2 | op::FSYNC | op::FSYNCDIR => 16,
        op::MKDIR
        | op::RENAME
        | op::LINK
        | op::OPEN
        | op::OPENDIR
        | op::FORGET
        | op::BATCH_FORGET
        | op::INTERRUPT => 8,
        _ => 0,
    }
}

impl Operation {
    /// `None` if the bytes are no such request. Of `fixed` at least [`fixed_len`] bytes are needed,
    /// more are ignored; `rest` is exact.
    pub(super) fn decode(opcode: u32, fixed: &[u8], rest: &[u8]) -> Option<Self> {
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
            },
            op::MKDIR => Self::MkDir {
                name: name(rest)?,
                mode: four(0)?,
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
            },
            op::READ => Self::Read {
                handle: eight(0)?,
                offset: eight(8)?,
                size: four(16)?,
            },
            op::WRITE => Self::Write {
                handle: eight(0)?,
                offset: eight(8)?,
                data: Bytes::copy_from_slice(rest.get(..four(16)? as usize)?),
            },
            op::FLUSH => Self::Flush { handle: eight(0)? },
            op::FSYNC => Self::FSync { handle: eight(0)? },
            op::RELEASE => Self::Release { handle: eight(0)? },
            op::OPENDIR => Self::OpenDir,
            op::READDIR | op::READDIRPLUS => Self::ReadDir {
                handle: eight(0)?,
                offset: eight(8)?,
                size: four(16)?,
                plus: opcode == op::READDIRPLUS,
            },
            op::RELEASEDIR => Self::ReleaseDir { handle: eight(0)? },
            op::FSYNCDIR => Self::FSyncDir,
            op::STATFS => Self::StatFs,
            op::DESTROY => Self::Destroy,
            op::IOCTL => Self::Refused(libc::ENOTTY),
            _ => Self::Refused(libc::ENOSYS),
        })
    }
}

/// A request as the device gives it. The second part is `None` if it is malformed.
pub(super) fn decode_message(bytes: &[u8]) -> Option<(Head, Option<Operation>)> {
    let head = Head::decode(bytes)?;
    let body = bytes.get(abi::IN_HEADER..)?;
    let parts = body.split_at_checked(fixed_len(head.opcode));
    let operation = parts.and_then(|(fixed, rest)| Operation::decode(head.opcode, fixed, rest));
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
