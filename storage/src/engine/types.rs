//! What callers say to the engine and what it answers.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::ids::{ChainVersion, ChunkVersion, WriteTag};

/// Free bytes that are left to the rest of the file system (the index needs room to record
/// removals on a full disk) unless the configuration says otherwise.
pub const DEFAULT_RESERVE_BYTES: u64 = 256 << 20;
/// Chunks whose metadata stays in memory unless the configuration says otherwise (about 1 KiB
/// each with 4 MiB chunks).
pub const DEFAULT_CACHE_ENTRIES: usize = 65_536;
/// Reads and writes in flight per disk unless the configuration says otherwise: enough for
/// an NVMe drive, few enough to bound latency.
pub const DEFAULT_QUEUE_DEPTH: u32 = 128;
/// Memory of the index's block cache unless the configuration says otherwise, bytes.
pub const DEFAULT_INDEX_CACHE_BYTES: usize = 64 << 20;

/// Memory for I/O buffers of the process that is registered with the kernel unless the configuration says
/// otherwise, bytes: 64 reads of 1 MiB. Buffers beyond it work and cost more.
pub const DEFAULT_IO_BUFFER_BYTES: usize = 64 << 20;

/// What an acknowledged [`prepare`](super::Engine::prepare) survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Loss of power: data and index record are flushed to the device first.
    #[default]
    Power,
    /// A killed process, but not a crashed kernel or loss of power: no flush at all.
    Process,
}

/// How to open the engine of one disk.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Directory of the disk. Holds `blocks/` and `index/`, created as needed.
    pub path: PathBuf,
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Refuse new blocks when the file system has fewer free bytes than this. Never taken for more
    /// than an eighth of the file system, so that small disks work.
    pub reserve_bytes: u64,
    /// Chunks whose metadata is kept in memory.
    pub cache_entries: usize,
    /// Reads and writes in flight at most.
    pub queue_depth: u32,
    /// Use at most this many bytes for blocks; `None`: as much as the file system has.
    pub capacity_bytes: Option<u64>,
    /// Memory of the index's block cache, bytes.
    pub index_cache_bytes: usize,
    /// Memory for I/O buffers that is registered with the kernel, bytes; 0: none. One region serves all
    /// engines of a process, and the first to open decides.
    pub io_buffer_bytes: usize,
    /// Length to which logs of the index are made when the disk is opened, bytes; 0: none. Until the first logs are full,
    /// flushes are cheaper for it.
    pub ready_log_bytes: usize,
    #[cfg(test)]
    pub(crate) faults: Arc<super::faults::Faults>,
}

impl EngineConfig {
    /// The defaults for the disk at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            durability: Durability::Power,
            reserve_bytes: DEFAULT_RESERVE_BYTES,
            cache_entries: DEFAULT_CACHE_ENTRIES,
            queue_depth: DEFAULT_QUEUE_DEPTH,
            capacity_bytes: None,
            index_cache_bytes: DEFAULT_INDEX_CACHE_BYTES,
            io_buffer_bytes: DEFAULT_IO_BUFFER_BYTES,
            ready_log_bytes: 0,
            #[cfg(test)]
            faults: Arc::default(),
        }
    }
}

/// One change of a chunk, to be made durable as its pending version.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// The version that the change makes: committed + 1, or any with [`PrepareKind::Replace`].
    pub version: ChunkVersion,
    /// Chain version under which the change was ordered.
    pub chain_version: ChainVersion,
    /// Names the write for exactly-once; remembered with the version.
    pub tag: WriteTag,
    /// What to do.
    pub kind: PrepareKind,
    /// Bytes per checksum page: a power of two from 4 KiB. The same for each write of a chunk.
    pub page_size: u32,
    /// Most bytes of the chunk: a power of two up to 64 MiB. The same for each write of a chunk.
    pub chunk_size: u32,
}

/// The change itself. Checksums are CRC-32 and already verified by the caller.
#[derive(Clone, Debug)]
pub enum PrepareKind {
    /// Bytes at an offset; what lies between the old end and the offset reads as zeros.
    Write {
        /// First byte within the chunk.
        offset: u32,
        /// The bytes. Go to the disk without a copy where their address has the alignment of `offset`.
        data: Bytes,
        /// One per fragment of `[offset, offset + data.len())`.
        checksums: Vec<u32>,
        /// Expected final length of the chunk (0: unknown); picks the block's size class.
        size_hint: u32,
    },
    /// Cuts the chunk, or extends it with zeros, to `len` bytes.
    Truncate {
        /// The new length.
        len: u32,
    },
    /// Removes the chunk; its commit drops the record.
    Remove,
    /// The whole content of the chunk, whatever its version here; takes the place of an existing
    /// pending version (resync, and writes forwarded to a syncing target).
    Replace {
        /// The new content.
        data: Bytes,
        /// One per page.
        checksums: Vec<u32>,
        /// The earlier writes that the content holds.
        recent: Arc<[Mark]>,
    },
}

/// Earlier writes of a chunk that its record remembers, each of another (client, channel).
///
/// A retry of a write is answered from here when every process that carried it out has died since. Beyond
/// it, that is when so many other channels have written the chunk between a write and its retry *and*
/// every member of the chain has restarted or been replaced meanwhile, the write is applied again.
pub const REMEMBERED_WRITES: usize = 8;

/// A finished write of a chunk that others have followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The write.
    pub tag: WriteTag,
    /// The version it made.
    pub version: ChunkVersion,
    /// Length of the chunk with it, bytes.
    pub len: u32,
}

/// The marks of a version that `next` makes on top of the write `last`, before which `recent` came. A channel
/// retries only its last write, so one mark for each is enough. Newest first.
pub(crate) fn remember(recent: &Arc<[Mark]>, last: Mark, next: WriteTag) -> Arc<[Mark]> {
    let named = |tag: WriteTag| (tag.client, tag.channel);
    if last.tag == WriteTag::default() || named(last.tag) == named(next) {
        // One writer, the usual case: nothing to allocate.
        if recent.iter().all(|mark| named(mark.tag) != named(next)) {
            return Arc::clone(recent);
        }
    }
    let with_last = std::iter::once(last).filter(|last| last.tag != WriteTag::default());
    let earlier = recent.iter().copied();
    let earlier = earlier.filter(|mark| named(mark.tag) != named(last.tag));
    let all = with_last.chain(earlier);
    all.filter(|mark| named(mark.tag) != named(next))
        .take(REMEMBERED_WRITES)
        .collect()
}

/// What the engine knows about a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkMeta {
    /// The committed version; 0: nothing is committed.
    pub committed: ChunkVersion,
    /// Length of the committed content, bytes.
    pub committed_len: u32,
    /// Chain version with which it was committed.
    pub committed_chain: ChainVersion,
    /// The committed write.
    pub tag: WriteTag,
    /// Over the committed content: equal on two replicas exactly when their bytes are
    /// (up to a CRC collision). 0 when nothing is committed.
    pub checksum: u32,
    /// Writes before the committed one.
    pub recent: Arc<[Mark]>,
    /// The version that is durable but not committed.
    pub pending: Option<PendingMeta>,
    /// Bytes per checksum page.
    pub page_size: u32,
    /// Most bytes of the chunk.
    pub chunk_size: u32,
}

impl ChunkMeta {
    /// Length of the committed or the pending content, the larger, bytes.
    pub fn max_len(&self) -> u32 {
        self.committed_len
            .max(self.pending.as_ref().map_or(0, |p| p.len))
    }
}

/// A durable version that waits for its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingMeta {
    /// Its version.
    pub version: ChunkVersion,
    /// Length that the chunk will have, bytes; 0 for a removal.
    pub len: u32,
    /// Chain version under which it was ordered.
    pub chain: ChainVersion,
    /// The write.
    pub tag: WriteTag,
    /// As [`ChunkMeta::checksum`], over the pending content.
    pub checksum: u32,
    /// Writes before this one.
    pub recent: Arc<[Mark]>,
    /// Content or removal.
    pub kind: PendingKind,
}

/// What committing a pending version does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingKind {
    /// It becomes the content.
    Write,
    /// The chunk disappears.
    Remove,
}

/// Which version a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVersion {
    /// The committed one.
    Committed,
    /// The newest durable one: the pending version, or without one the committed.
    Pending,
    /// This one, committed or pending; [`StaleChunkVersion`] when the chunk is past it,
    /// [`MissingVersion`] when it has not come here yet.
    ///
    /// [`StaleChunkVersion`]: emberfs_proto::ErrorCode::StaleChunkVersion
    /// [`MissingVersion`]: emberfs_proto::ErrorCode::MissingVersion
    Exactly(ChunkVersion),
}

/// What a read of a part of a page is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Its whole page is read and compared with the checksum that the writer computed.
    Page,
    /// Nothing: only the sectors of the range are read, and their checksum is computed here, so that it covers
    /// the way to the reader but not the disk. Whole pages keep their writer's checksum.
    Transfer,
}

/// What was read.
#[derive(Clone, Debug)]
pub struct ReadData {
    /// The bytes: as many as were asked for and exist.
    pub data: Bytes,
    /// One per fragment of the returned range. Those of whole pages are the stored ones and
    /// were not checked against the bytes here: the reader does that.
    pub checksums: Vec<u32>,
    /// Length of the whole chunk in that version, bytes.
    pub chunk_len: u32,
    /// The version that was read.
    pub version: ChunkVersion,
    /// Bytes per checksum page of this chunk: where the fragments begin.
    pub page_size: u32,
}

/// What a look at all bytes of one version of a chunk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The version that was looked at.
    pub version: ChunkVersion,
    /// Its length, bytes.
    pub len: u32,
    /// Bytes per checksum page.
    pub page_size: u32,
    /// Pages that are not what was written, in order; none: all is well.
    pub pages: Vec<BadPage>,
}

/// A damaged page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPage {
    /// Where its bytes lie in the chunk.
    pub range: std::ops::Range<u32>,
    /// Checksum of the bytes that should be there.
    pub checksum: u32,
}

/// Room on a disk, bytes. Blocks count with their whole size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Used and free together.
    pub capacity: u64,
    /// In blocks that hold chunks.
    pub used: u64,
    /// Left for blocks.
    pub free: u64,
}

/// Whether a disk can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskState {
    /// Works.
    #[default]
    Healthy,
    /// The file system refuses writes; reads go on.
    ReadOnly,
    /// A write or a flush failed: what is on the disk is uncertain. Prepares are refused; the
    /// targets must leave their chains.
    Failed,
}

/// State and error counts of a disk since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskHealth {
    /// Whether it can be used.
    pub state: DiskState,
    /// Why it is not healthy.
    pub reason: Option<String>,
    /// Failed reads.
    pub read_errors: u64,
    /// Failed writes and flushes.
    pub write_errors: u64,
    /// Pages whose bytes did not match their checksum.
    pub checksum_mismatches: u64,
}
