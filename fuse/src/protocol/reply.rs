//! Replies as the kernel's bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use emberfs_client::{Attr, LockInfo, LockKind};
use emberfs_proto::pb::StatFsReply;
use fuser::{FileAttr, FileType, FopenFlags, Generation};

use super::abi;
use super::convert::{NAME_MAX, STATFS_BLOCK, file_attr, file_type, listed_attr};
use crate::handler::{DirItem, Opened};

#[cfg(test)]
mod tests;

/// What a request gets: an errno, or bytes, which may be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Positive; 0 for success.
    pub(crate) errno: i32,
    pub(crate) data: Bytes,
}

impl Reply {
    pub(crate) fn error(errno: i32) -> Self {
        Self {
            errno,
            data: Bytes::new(),
        }
    }

    pub(crate) fn data(data: Bytes) -> Self {
        Self { errno: 0, data }
    }

    /// Success without more to say.
    pub(crate) fn empty() -> Self {
        Self::data(Bytes::new())
    }

    /// The header of the reply to the request `unique`; the data follow it.
    pub(crate) fn header(&self, unique: u64) -> [u8; abi::OUT_HEADER] {
        // Data are at most one payload buffer, see `limited`.
        let len = (abi::OUT_HEADER + self.data.len()) as u32;
        let mut header = [0; abi::OUT_HEADER];
        header[..4].copy_from_slice(&len.to_ne_bytes());
        header[4..8].copy_from_slice(&(-self.errno).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        header
    }

    /// Itself, or EIO if it has more than `limit` bytes.
    pub(crate) fn limited(self, limit: usize) -> Self {
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
    /// The beginning of a message that answers no request, of so many bytes in all.
    fn notification(len: u32, code: u32) -> Self {
        let mut writer = Self::default();
        writer.four(len);
        writer.four(code);
        writer.eight(0);
        writer
    }

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
pub(crate) struct Lifetimes {
    pub(crate) entry: Duration,
    pub(crate) attr: Duration,
}

impl Lifetimes {
    pub(crate) fn at_most(self, limit: Duration) -> Self {
        Self {
            entry: self.entry.min(limit),
            attr: self.attr.min(limit),
        }
    }
}

/// What the kernel may do with an open file.
pub(crate) fn fopen_flags(opened: &Opened) -> FopenFlags {
    let chosen = [
        (opened.keep_cache, FopenFlags::FOPEN_KEEP_CACHE),
        (opened.direct, FopenFlags::FOPEN_DIRECT_IO),
        (opened.direct, FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES),
        // Nothing to flush at close: spares a request.
        (!opened.flushes, FopenFlags::FOPEN_NOFLUSH),
    ];
    chosen
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(FopenFlags::empty(), |all, (_, flag)| all | flag)
}

pub(crate) fn entry(attr: &Attr, ttl: Lifetimes) -> Reply {
    let mut writer = Writer::default();
    writer.entry(&file_attr(attr), Generation(attr.generation), ttl);
    writer.finish()
}

/// That there is no such name.
pub(crate) fn no_entry(ttl: Duration) -> Reply {
    let mut writer = Writer::default();
    // Node 0; attributes that nobody looks at.
    writer.eight(0);
    writer.eight(0);
    writer.eight(ttl.as_secs());
    writer.eight(0);
    writer.four(ttl.subsec_nanos());
    writer.0.resize(abi::ENTRY_OUT, 0);
    writer.finish()
}

pub(crate) fn attributes(attr: &Attr, blocks: u64, ttl: Duration) -> Reply {
    let mut writer = Writer::default();
    writer.eight(ttl.as_secs());
    writer.four(ttl.subsec_nanos());
    writer.four(0);
    let attr = FileAttr {
        blocks,
        ..file_attr(attr)
    };
    writer.attributes(&attr);
    writer.finish()
}

pub(crate) fn opened(handle: u64, flags: u32) -> Reply {
    let mut writer = Writer::default();
    writer.opened(handle, flags);
    writer.finish()
}

pub(crate) fn created(attr: &Attr, ttl: Lifetimes, handle: u64, flags: u32) -> Reply {
    let mut writer = Writer::default();
    writer.entry(&file_attr(attr), Generation(attr.generation), ttl);
    writer.opened(handle, flags);
    writer.finish()
}

pub(crate) fn written(bytes: u32) -> Reply {
    let mut writer = Writer::default();
    writer.four(bytes);
    writer.four(0);
    writer.finish()
}

/// Bytes for a program that has room for `size` of them, or only wants to know how many there are.
pub(crate) fn sized(value: Bytes, size: u32) -> Reply {
    if size == 0 {
        return written(value.len() as u32);
    }
    if value.len() > size as usize {
        return Reply::error(libc::ERANGE);
    }
    Reply::data(value)
}

/// The lock that is in the way, or that none is.
pub(crate) fn lock(found: Option<&LockInfo>) -> Reply {
    let mut writer = Writer::default();
    let (start, end, kind, pid) = match found {
        Some(lock) => {
            let kind = match lock.kind {
                LockKind::Shared => libc::F_RDLCK,
                LockKind::Exclusive => libc::F_WRLCK,
                LockKind::Unlock => libc::F_UNLCK,
            };
            (lock.start, lock.end, kind, lock.pid)
        }
        None => (0, 0, libc::F_UNLCK, 0),
    };
    writer.eight(start);
    writer.eight(end);
    writer.four(kind.cast_unsigned());
    writer.four(pid);
    writer.finish()
}

/// A place in a file.
pub(crate) fn offset(offset: u64) -> Reply {
    let mut writer = Writer::default();
    writer.eight(offset);
    writer.finish()
}

/// As many entries as fit into `size` bytes; with attributes if `plus` gives their lifetimes.
pub(crate) fn listing(
    items: &[DirItem],
    size: u32,
    plus: Option<&dyn Fn(&DirItem) -> Lifetimes>,
) -> Reply {
    let mut writer = Writer::default();
    for item in items {
        let before = writer.0.len();
        if let Some(lifetimes) = plus {
            let (attr, generation) = listed_attr(item);
            writer.entry(&attr, generation, lifetimes(item));
        }
        writer.listed(item);
        if writer.0.len() > size as usize {
            writer.0.truncate(before);
            break;
        }
    }
    writer.finish()
}

pub(crate) fn usage(usage: &StatFsReply) -> Reply {
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
pub(crate) fn stale_attributes(node: u64) -> Vec<u8> {
    // A negative offset: no page lock is waited for.
    stale_inode(node, -1)
}

/// The message that makes the kernel drop a node's pages, and ask again for its attributes.
pub(crate) fn stale_pages(node: u64) -> Vec<u8> {
    stale_pages_from(node, 0)
}

/// As [`stale_pages`], of those from an offset on.
pub(crate) fn stale_pages_from(node: u64, offset: u64) -> Vec<u8> {
    stale_inode(node, offset.cast_signed().max(0))
}

fn stale_inode(node: u64, offset: i64) -> Vec<u8> {
    let mut writer = Writer::notification(40, abi::NOTIFY_INVAL_INODE);
    writer.eight(node);
    writer.eight(offset.cast_unsigned());
    // To the end.
    writer.eight(0);
    writer.0
}

/// The message that makes the kernel ask what a name means when it is used again. What stands in it meanwhile, programs and
/// mounts, stays.
pub(crate) fn stale_name(parent: u64, name: &[u8]) -> Vec<u8> {
    name_message(parent, name, abi::EXPIRE_ONLY)
}

/// The message that makes the kernel forget a name at which a directory stood that is in another one now.
///
/// While the kernel has it at the old place, a rename of it that does not look at the new one before fails with ESTALE: the kernel would
/// have to move it in its memory, for which it needs the lock that the rename holds.
pub(crate) fn vacated_name(parent: u64, name: &[u8]) -> Vec<u8> {
    name_message(parent, name, 0)
}

fn name_message(parent: u64, name: &[u8], flags: u32) -> Vec<u8> {
    // A name is at most 255 bytes; one of zero ends it.
    let len = name.len() as u32;
    let mut writer = Writer::notification(NAME_AT as u32 + len + 1, abi::NOTIFY_INVAL_ENTRY);
    writer.eight(parent);
    writer.four(len);
    writer.four(flags);
    writer.0.extend_from_slice(name);
    writer.0.push(0);
    writer.0
}

/// Where the flags of a message about a name are, and where the name begins.
const NAME_FLAGS_AT: usize = 28;
const NAME_AT: usize = 32;

/// Of a message that is sent again later: by then, a name may stand for something new that programs are in, which must stay.
pub(crate) fn without_force(message: &mut [u8]) {
    if message.get(4..8) == Some(&abi::NOTIFY_INVAL_ENTRY.to_ne_bytes()) {
        message[NAME_FLAGS_AT..NAME_AT].copy_from_slice(&abi::EXPIRE_ONLY.to_ne_bytes());
    }
}

/// The message that makes the kernel send again what was read and not answered.
pub(crate) fn send_again() -> Vec<u8> {
    Writer::notification(16, abi::NOTIFY_RESEND).0
}

/// The message that makes the kernel ask again for what all names mean.
pub(crate) fn stale_names() -> Vec<u8> {
    Writer::notification(16, abi::NOTIFY_INC_EPOCH).0
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
                // The first second of all has no opposite, and is itself here.
                0 => (seconds.wrapping_neg(), 0),
                nanos => (-seconds - 1, 1_000_000_000 - nanos),
            }
        }
    }
}
