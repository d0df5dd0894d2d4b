//! The chunk engine of one disk.
//!
//! An [`Engine`] stores the chunks of all targets of a disk: bytes in size-classed block files, everything
//! about them in one index. It guarantees:
//!
//! 1. **A prepared version is durable** when [`Engine::prepare`] returns (what that means is
//!    [`Durability`]), and the committed version is untouched: what overlaps committed bytes
//!    goes to a fresh block, an append goes behind them ([`plan`]).
//! 2. **The index is the only truth.** A record is committed only when its data is durable, and a pending one whose
//!    data is not is dropped at open ([`unflushed`]); free blocks are whatever no record owns, worked out at
//!    open ([`alloc`]).
//! 3. **Cache entry, record and block ownership of a chunk change together**, under the chunk's gate, even
//!    when the caller goes away ([`core`], [`writer`]). A reader keeps the block it reads.
//! 4. **Nothing blocks a tokio worker.** Data goes through one io_uring with its own thread ([`ring`]), the index
//!    has a writer and a reader thread, growing and punching block files a fourth ([`space`]). Each is
//!    reached through a bounded lane ([`lane`]).
//!
//! It relies on its caller, the chain, for the order of writes of a chunk (it refuses versions out of
//! turn), for verified checksums, and for deciding what becomes of a pending version after a crash.
//!
//! Commit records are not flushed: after a loss of power a committed version may be pending again, and
//! the comparison along the chain settles it. Rejected: one file per chunk (an inode and a directory entry for
//! each 4 KiB), in-place overwrites with a journal (each byte twice), allocator state on disk (a
//! second truth to keep in step with the first).
//!
//! A disk's directory holds `disk.toml` ([`identity`]), `LOCK`, `index/`, and `blocks/NNNNNk.blk`, one file per
//! size class ([`classes`]).

mod alloc;
mod bitmap;
mod cache;
mod change;
mod check;
mod classes;
mod core;
#[cfg(test)]
mod faults;
mod files;
mod health;
pub mod identity;
mod index;
mod lane;
mod open;
mod plan;
mod read;
mod record;
mod repair;
mod ring;
mod space;
mod targets;
mod transfer;
mod types;
mod unflushed;
mod writer;

use std::sync::Arc;

use emberfs_proto::ids::{ChainVersion, ChunkIndex, ChunkKey, ChunkVersion, InodeId, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};

pub use check::{InvariantReport, MAX_VIOLATIONS};
#[cfg(test)]
pub(crate) use types::remember;
pub use types::{
    BadPage, ChunkMeta, DEFAULT_CACHE_ENTRIES, DEFAULT_INDEX_CACHE_BYTES, DEFAULT_IO_BUFFER_BYTES,
    DEFAULT_QUEUE_DEPTH, DEFAULT_RESERVE_BYTES, Damage, DiskHealth, DiskState, Durability,
    EngineConfig, Mark, PendingKind, PendingMeta, Prepare, PrepareKind, REMEMBERED_WRITES,
    ReadData, ReadVersion, Space, Verify,
};

/// The engine of one disk; clones are handles to the same. Dropping the last one closes the index and
/// blocks until that is done; [`Engine::shutdown`] does not block.
///
/// Every method that names a target answers [`NotServing`] when the disk has no such target, and
/// [`Unavailable`] after the shutdown. All futures may be dropped at any point: a change that
/// was begun either happens as a whole or not at all.
///
/// [`NotServing`]: emberfs_proto::ErrorCode::NotServing
/// [`Unavailable`]: emberfs_proto::ErrorCode::Unavailable
#[derive(Clone)]
pub struct Engine {
    core: Arc<core::Core>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.core.health.disk())
    }
}

impl Engine {
    /// Opens the disk: opens the index, works out which blocks are free (one scan of the index),
    /// finishes interrupted target drops. Blocks; not for a tokio worker.
    ///
    /// `NodeConflict`: another engine, here or in another process, has the index open. (A server
    /// holds a [`identity::DiskLock`] as well, from before it looks at the disk's identity.)
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers move it into a blocking task"
    )]
    pub fn open(config: EngineConfig) -> Result<Self> {
        Ok(Self {
            core: Arc::new(open::open(&config)?),
        })
    }

    /// Refuses new requests, waits for those in work, flushes and closes the index, ends the
    /// threads. The second call finds nothing to do.
    pub async fn shutdown(&self) {
        self.core.shutdown().await;
    }

    /// Makes room for a target. Does nothing if it exists.
    pub async fn create_target(&self, target: TargetId) -> Result<()> {
        self.core.create_target(target).await
    }

    /// Deletes a target and all its chunks, after all operations on it have finished. Does nothing if it does
    /// not exist. Goes on at the next open if the process dies meanwhile.
    pub async fn drop_target(&self, target: TargetId) -> Result<()> {
        self.core.drop_target(target).await
    }

    /// Every target of the disk, in order.
    #[expect(clippy::unused_async, reason = "as the other calls")]
    pub async fn targets(&self) -> Result<Vec<TargetId>> {
        self.core.list_targets()
    }

    /// What is known of a chunk; `None` if there is none.
    pub async fn meta(&self, target: TargetId, chunk: ChunkKey) -> Result<Option<ChunkMeta>> {
        let touch = self.core.touch(target, chunk).await?;
        Ok(self.core.record(&touch).await?.map(|record| record.meta()))
    }

    /// Makes a change durable as the chunk's pending version.
    ///
    /// Without [`PrepareKind::Replace`] the version must be committed + 1, and no other write may be
    /// pending: `StaleChunkVersion` (with the committed version), `MissingVersion`, `PendingExists`. The
    /// same write again (version and non-default tag) is answered as done. `NoSpace`: nothing
    /// has changed. `ChecksumMismatch`: bytes that the new version keeps are damaged here.
    /// `DiskReadOnly`, `DiskError`: see [`Engine::health`].
    pub async fn prepare(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        prepare: Prepare,
    ) -> Result<ChunkMeta> {
        // Whoever asked may go away; what has begun comes to its end.
        let core = Arc::clone(&self.core);
        let work = tokio::spawn(async move { core.prepare(target, chunk, prepare).await });
        match work.await {
            Ok(prepared) => prepared,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::new(ErrorCode::Unavailable, "the process is ending")),
        }
    }

    /// The pending version becomes the committed one, stamped with `chain`; `None`: it was a removal, the
    /// chunk is gone. Visible at once; not flushed. The old block is freed when no reader has it.
    ///
    /// A version that is committed already is answered as done. `MissingVersion`: this one is not
    /// pending here. `ChunkNotFound`: there is no such chunk (or its removal was committed before).
    pub async fn commit(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        version: ChunkVersion,
        chain: ChainVersion,
    ) -> Result<Option<ChunkMeta>> {
        self.core.commit(target, chunk, version, chain).await
    }

    /// Gives the pending `version` up, durably; the chunk disappears if nothing is committed. Does
    /// nothing if that version is not pending. For chain repair only: a version that was forwarded must not be
    /// used for another write.
    pub async fn abort(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        version: ChunkVersion,
    ) -> Result<Option<ChunkMeta>> {
        self.core.abort(target, chunk, version).await
    }

    /// Drops a chunk at once, durably, whatever its versions; does nothing if there is none. For resync:
    /// a chunk that the predecessor does not have.
    pub async fn drop_chunk(&self, target: TargetId, chunk: ChunkKey) -> Result<()> {
        self.core.drop_chunk(target, chunk).await
    }

    /// Reads at most `len` bytes at `offset` of one version; fewer at its end, none beyond.
    ///
    /// `ChunkNotFound`: that version of the chunk is not there, or is a removal. `ChecksumMismatch`: a page of
    /// which only a part was asked for is damaged (whole pages are verified by their reader).
    pub async fn read(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        which: ReadVersion,
        offset: u32,
        len: u32,
    ) -> Result<ReadData> {
        let verify = Verify::Page;
        self.core
            .read(
                target,
                chunk,
                which,
                offset..offset.saturating_add(len),
                verify,
            )
            .await
    }

    /// As [`Engine::read`], of the range `bytes`, which may end beyond the content, checked as `verify` says.
    pub async fn read_range(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        which: ReadVersion,
        bytes: std::ops::Range<u32>,
        verify: Verify,
    ) -> Result<ReadData> {
        self.core.read(target, chunk, which, bytes, verify).await
    }

    /// Reads all pages of the committed content and verifies them: `ChecksumMismatch` names the first bad
    /// one. For scrubbing.
    pub async fn verify(&self, target: TargetId, chunk: ChunkKey) -> Result<()> {
        self.core.verify(target, chunk).await
    }

    /// Reads all bytes of a version and compares every page with its checksum. A page that the device
    /// will not give counts as damaged.
    ///
    /// `ChunkNotFound`, `StaleChunkVersion`, `MissingVersion`: as [`Engine::read`]. `Busy`: a pending
    /// version changed meanwhile.
    pub async fn damage(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        which: ReadVersion,
    ) -> Result<Damage> {
        self.core.damage(target, chunk, which).await
    }

    /// Puts whole pages, each with its offset, into the content of `version` in place of damaged ones,
    /// durably and in one step. Other damage stays. `false`: that version is not here any more.
    ///
    /// `ChecksumMismatch`: bytes that are not those of the version. `NoSpace`: there is no room for
    /// a second copy of the chunk. `DiskError`: another page of the chunk cannot be read.
    pub async fn repair(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        version: ChunkVersion,
        pages: &[(u32, bytes::Bytes)],
    ) -> Result<bool> {
        self.core.repair(target, chunk, version, pages).await
    }

    /// At most `limit` chunks of a target after `after`, in key order, pending ones included. Fewer than
    /// `limit`: there are no more.
    pub async fn list(
        &self,
        target: TargetId,
        after: Option<ChunkKey>,
        limit: usize,
    ) -> Result<Vec<(ChunkKey, ChunkMeta)>> {
        self.core.list(target, after, limit).await
    }

    /// As [`Engine::list`], of one file.
    pub async fn list_inode(
        &self,
        target: TargetId,
        inode: InodeId,
        after: Option<ChunkKey>,
        limit: usize,
    ) -> Result<Vec<(ChunkKey, ChunkMeta)>> {
        self.core.list_inode(target, inode, after, limit).await
    }

    /// The last chunk of a file that has bytes here, and its length: committed or pending, the larger.
    pub async fn last_chunk(
        &self,
        target: TargetId,
        inode: InodeId,
    ) -> Result<Option<(ChunkIndex, u32)>> {
        self.core.last_chunk(target, inode).await
    }

    /// Room on the disk, at most a second old.
    pub fn space(&self) -> Space {
        self.core.map.space()
    }

    /// Whether the disk can be trusted.
    pub fn health(&self) -> DiskHealth {
        self.core.health.report()
    }

    /// Compares the index with what the engine believes: every block owned once, none leaked, none
    /// beyond its file. Keeps all targets from changing meanwhile; for tests and `fsck`.
    pub async fn check_invariants(&self) -> Result<InvariantReport> {
        self.core.check_invariants().await
    }
}

#[cfg(test)]
mod tests;
