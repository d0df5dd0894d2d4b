//! What the metadata server asks of the chunks: cut, remove, where do they end.
//!
//! [`ChunkStore`] is what the namespace needs; [`WireChunks`] asks the storage servers.

use emberfs_proto::Result;
use emberfs_proto::ids::InodeId;
use emberfs_proto::layout::Layout;
use futures::future::BoxFuture;

mod wire;

pub use wire::{Patience, WireChunks};

/// The chunks of files, on all chains of their stripe. Every call may be repeated; an error
/// says that at least one chain has not confirmed.
pub trait ChunkStore: Send + Sync + 'static {
    /// Removes every byte from `size` on. Chunks keep their versions.
    fn cut(&self, inode: InodeId, layout: Layout, size: u64) -> BoxFuture<'_, Result<()>>;

    /// Removes every chunk of an inode that is gone for good.
    fn remove(&self, inode: InodeId, layout: Layout) -> BoxFuture<'_, Result<()>>;

    /// The end of the last byte stored, 0 if there is none.
    fn end(&self, inode: InodeId, layout: Layout) -> BoxFuture<'_, Result<u64>>;
}
