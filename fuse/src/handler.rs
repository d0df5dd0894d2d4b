//! The operation handler: plain requests in, plain replies out, no transport.
//!
//! Node numbers are what the kernel uses: inode ids, except that the root of the mount is always 1
//! whatever directory of the cluster it is. Handles are numbers drawn here. A caller may run any
//! requests concurrently; the kernel orders those that exclude each other (writes and truncates of
//! one inode, changes of names and listings of one directory).

mod dirs;
mod inodes;
mod io;
mod namespace;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emberfs_client::Attr;
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode};
use parking_lot::RwLock;

use crate::backend::Backend;

use dirs::DirHandle;
pub(crate) use dirs::DirItem;
use inodes::Inodes;
use io::FileHandle;
pub(crate) use io::Opened;

/// The node number of the mount's root.
pub(crate) const ROOT_NODE: u64 = 1;

/// State of one mount.
pub(crate) struct Handler<B: Backend> {
    backend: B,
    /// The directory that is the mount's root.
    root: InodeId,
    /// Every open bypasses the page cache.
    direct_io: bool,
    inodes: Inodes,
    files: RwLock<HashMap<u64, Arc<FileHandle<B::File>>>>,
    dirs: RwLock<HashMap<u64, Arc<DirHandle>>>,
    next_handle: AtomicU64,
}

impl<B: Backend> Handler<B> {
    /// A handler serving the directory `root`.
    pub(crate) fn new(backend: B, root: InodeId, direct_io: bool) -> Self {
        Self {
            backend,
            root,
            direct_io,
            inodes: Inodes::default(),
            files: RwLock::default(),
            dirs: RwLock::default(),
            next_handle: AtomicU64::new(1),
        }
    }

    fn inode(&self, node: u64) -> InodeId {
        if node == ROOT_NODE {
            self.root
        } else {
            InodeId(node)
        }
    }

    fn node(&self, inode: u64) -> u64 {
        if inode == self.root.0 {
            ROOT_NODE
        } else {
            inode
        }
    }

    /// Attributes as the kernel shall see them.
    fn show(&self, mut attr: Attr) -> Attr {
        self.inodes.present(&mut attr);
        attr.inode = self.node(attr.inode);
        attr
    }

    fn draw_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// After the kernel is gone: closes what it left open, then ends the backend's sessions.
    pub(crate) async fn finish(&self) {
        use crate::backend::OpenFile as _;

        let left: Vec<_> = self
            .files
            .write()
            .drain()
            .map(|(_, handle)| handle)
            .collect();
        for handle in left {
            if let Err(error) = handle.file.clone().close().await {
                tracing::error!(
                    inode = handle.inode, %error,
                    "buffered writes of a file that was open at unmount are lost"
                );
            }
        }
        self.dirs.write().clear();
        self.backend.shutdown().await;
    }
}

fn bad_handle(handle: u64) -> Error {
    Error::new(
        ErrorCode::NoSession,
        format!("handle {handle} is not open in this mount"),
    )
}
