//! Replies as the kernel's bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use emberfs_client::Attr;
use emberfs_proto::pb::StatFsReply;
use fuser::{FileAttr, FileType, Generation};

use super::abi;
use crate::adapter::convert::{NAME_MAX, STATFS_BLOCK, file_attr, file_type, listed_attr};
use crate::handler::DirItem;

#[cfg(test)]
mod tests;

/// What a request gets: an errno, or bytes, which may be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Positive; 0 for success.
    pub(super) errno: i32,
    pub(super) data: Bytes,
}

impl Reply {
    pub(super) fn error(errno: i32) -> Self {
        Self {
            errno,
            data: Bytes::new(),
        }
    }

    pub(super) fn data(data: Bytes) -> Self {
        Self { errno: 0, data }
    }

    /// Success without more to say.
    pub(super) fn empty() -> Self {
        Self::data(Bytes::new())
    }

    /// The header of the reply to the request `unique`; the data follow it.
    pub(super) fn header(&self, unique: u64) -> [u8; abi::OUT_HEADER] {
        // Data are at most one payload buffer, see `limited`.
        let len = (abi::OUT_HEADER + self.data.len()) as u32;
        let mut header = [0; abi::OUT_HEADER];
        header[..4].copy_from_slice(&len.to_ne_bytes());
        header[4..8].copy_from_slice(&(-self.errno).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        header
    }

    /// Itself, or EIO if it has more than `limit` bytes.
    pub(super) fn limited(self, limit: usize) -> Self {
        if self.data.len() <= limit {
            self
        } else {
            Self::error(libc::EIO)
        }
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn four(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn eight(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn attributes(&mut self, attr: &FileAttr) {
        let times = [attr.atime, attr.mtime, attr.ctime].map(since_epoch);
        self.eight(attr.ino.0);
        self.eight(attr.size);
        self.eight(attr.blocks);
        for (seconds, _) in times {
            self.eight(seconds.cast_unsigned());
        }
        for (_, nanos) in times {
            self.four(nanos);
        }
        self.four(type_bits(attr.kind) | u32::from(attr.perm));
        self.four(attr.nlink);
        self.four(attr.uid);
        self.four(attr.gid);
        self.four(attr.rdev);
        self.four(attr.blksize);
        self.four(0);
    }

    fn entry(&mut self, attr: &FileAttr, generation: Generation, ttl: Lifetimes) {
        self.eight(attr.ino.0);
        self.eight(generation.0);
        self.eight(ttl.entry.as_secs());
        self.eight(ttl.attr.as_secs());
        self.four(ttl.entry.subsec_nanos());
        self.four(ttl.attr.subsec_nanos());
        self.attributes(attr);
    }

    fn opened(&mut self, handle: u64, flags: u32) {
        self.eight(handle);
        self.four(flags);
        self.four(0);
    }

    fn listed(&mut self, item: &DirItem) {
        self.eight(item.node);
        self.eight(item.cookie);
        // A name is at most 255 bytes.
        self.four(item.name.len() as u32);
        self.four(type_bits(file_type(item.kind)) >> 12);
        self.0.extend_from_slice(&item.name);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }

    fn finish(self) -> Reply {
        Reply::data(self.0.into())
    }
}

/// How long the kernel may believe what an entry says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    pub(super) entry: Duration,
    pub(super) attr: Duration,
}

impl Lifetimes {
    /// One lifetime for both, for the replies where the classic transport has only one.
    pub(super) fn shorter(self) -> Self {
        let both = self.entry.min(self.attr);
        Self {
            entry: both,
            attr: both,
        }
    }
}

pub(super) fn entry(attr: &Attr, ttl: Lifetimes) -> Reply {
    let mut writer = Writer::default();
    writer.entry(&file_attr(attr), Generation(attr.generation), ttl);
    writer.finish()
}

pub(super) fn attributes(attr: &Attr, ttl: Duration) -> Reply {
    let mut writer = Writer::default();
    writer.eight(ttl.as_secs());
    writer.four(ttl.subsec_nanos());
    writer.four(0);
    writer.attributes(&file_attr(attr));
    writer.finish()
}

pub(super) fn opened(handle: u64, flags: u32) -> Reply {
    let mut writer = Writer::default();
    writer.opened(handle, flags);
    writer.finish()
}

pub(super) fn created(attr: &Attr, ttl: Lifetimes, handle: u64, flags: u32) -> Reply {
    let mut writer = Writer::default();
    writer.entry(&file_attr(attr), Generation(attr.generation), ttl);
    writer.opened(handle, flags);
    writer.finish()
}

pub(super) fn written(bytes: u32) -> Reply {
    let mut writer = Writer::default();
    writer.four(bytes);
    writer.four(0);
    writer.finish()
}

/// As many entries as fit into `size` bytes; with attributes if `plus` gives their lifetimes.
pub(super) fn listing(items: &[DirItem], size: u32, plus: Option<Lifetimes>) -> Reply {
    let mut writer = Writer::default();
    for item in items {
        let before = writer.0.len();
        if let Some(ttl) = plus {
            let (attr, generation) = listed_attr(item);
            writer.entry(&attr, generation, ttl);
        }
        writer.listed(item);
        if writer.0.len() > size as usize {
            writer.0.truncate(before);
            break;
        }
    }
    writer.finish()
}

pub(super) fn usage(usage: &StatFsReply) -> Reply {
    let block = u64::from(STATFS_BLOCK);
    let free = usage.free / block;
    let mut writer = Writer::default();
    for value in [
        usage.capacity / block,
        free,
        free,
        usage.inodes,
        usage.inodes_free,
    ] {
        writer.eight(value);
    }
    for value in [STATFS_BLOCK, NAME_MAX, STATFS_BLOCK] {
        writer.four(value);
    }
    // Padding and spare words.
    writer.0.resize(80, 0);
    writer.finish()
}

/// The message that makes the kernel ask again for a node's attributes, and nothing else of it.
pub(super) fn stale_attributes(node: u64) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.four(40);
    writer.four(abi::NOTIFY_INVAL_INODE);
    writer.eight(0);
    writer.eight(node);
    // A negative offset: no page lock is waited for.
    writer.eight((-1i64).cast_unsigned());
    writer.eight(0);
    writer.0
}

fn type_bits(kind: FileType) -> u32 {
    match kind {
        FileType::NamedPipe => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::Directory => libc::S_IFDIR,
        FileType::RegularFile => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

/// Seconds, which are negative before 1970, and nanoseconds, which count forward.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs().cast_signed(), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = before.as_secs().cast_signed();
            match before.subsec_nanos() {
                0 => (-seconds, 0),
                nanos => (-seconds - 1, 1_000_000_000 - nanos),
            }
        }
    }
}
