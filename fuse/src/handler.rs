//! The operation handler: plain requests in, plain replies out, no transport.
//!
//! Node numbers are what the kernel uses: inode ids, except that the root of the mount is always 1
//! whatever directory of the cluster it is. Handles are numbers drawn here. A caller may run any
//! requests concurrently; the kernel orders those that exclude each other (writes and truncates of
//! one inode, changes of names and listings of one directory).

mod absent;
mod append;
mod data;
mod dirs;
mod ghosts;
mod inodes;
mod io;
mod locks;
mod namespace;
mod parents;
mod succession;
#[cfg(test)]
mod tests;
mod virtual_dir;
mod walks;
mod xattr;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use emberfs_client::{Attr, CacheEvent};
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode};
use futures::StreamExt;
use parking_lot::RwLock;
use tokio::sync::mpsc;

use crate::backend::{Backend, OpenFile};
use crate::takeover::Ledger;

use absent::Absent;
use append::Appends;
use dirs::DirHandle;
pub(crate) use dirs::DirItem;
use ghosts::Ghosts;
use inodes::Inodes;
use io::FileHandle;
pub(crate) use io::{Opened, Written};
use locks::Locked;
use parents::Parents;
pub(crate) use succession::Asked;
pub(crate) use virtual_dir::Vanished;
pub(crate) use walks::Step;
use walks::Walks;

/// The node number of the mount's root.
pub(crate) const ROOT_NODE: u64 = 1;

/// Files closed at a time when the mount ends.
const MAX_CLOSING: usize = 64;

/// How long that may take, servers that are down included.
const CLOSE_TIMEOUT: Duration = Duration::from_mins(1);

/// Node and offset; blocks.
type DropPages = dyn Fn(u64, u64) + Send + Sync;

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
    appends: Appends,
    absent: Absent,
    parents: Arc<Parents>,
    ghosts: Ghosts,
    locked: Locked,
    walks: Walks,
    next_handle: AtomicU64,
    /// Files whose close(2) has returned and whose bytes are still being stored.
    late: AtomicUsize,
    /// Makes the kernel drop a node's pages from an offset on.
    drop_pages: OnceLock<Arc<DropPages>>,
    /// What a successor of this process will need to know; `None` if there will be none.
    ledger: Option<Arc<Ledger>>,
}

impl<B: Backend> Handler<B> {
    /// A handler serving the directory `root`.
    pub(crate) fn new(backend: B, root: InodeId, direct_io: bool) -> Self {
        let parents = Arc::new(Parents::default());
        backend.hear_of_parents({
            let parents = parents.clone();
            move |attr: &Attr| parents.told(attr)
        });
        Self {
            backend,
            parents,
            root,
            direct_io,
            inodes: Inodes::default(),
            files: RwLock::default(),
            dirs: RwLock::default(),
            appends: Appends::default(),
            absent: Absent::default(),
            ghosts: Ghosts::default(),
            locked: Locked::default(),
            walks: Walks::default(),
            next_handle: AtomicU64::new(1),
            late: AtomicUsize::new(0),
            drop_pages: OnceLock::new(),
            ledger: None,
        }
    }

    /// Notes in `ledger` what a successor of this process will need to know.
    pub(crate) fn with_ledger(mut self, ledger: Arc<Ledger>) -> Self {
        if let Some((start, commit)) = ledger.last_change() {
            self.backend.inherit_changes(start, commit);
        }
        self.backend.note_changes({
            let ledger = ledger.clone();
            move |start, commit| ledger.note_change(start, commit)
        });
        self.ledger = Some(ledger);
        self
    }

    /// How to make the kernel drop a node's pages from an offset on; the first one counts. May block.
    pub(crate) fn drop_pages_by(&self, drop_pages: impl Fn(u64, u64) + Send + Sync + 'static) {
        self.drop_pages.get_or_init(|| Arc::new(drop_pages));
    }

    fn inode(&self, node: u64) -> InodeId {
        if node == ROOT_NODE {
            self.root
        } else {
            InodeId(node)
        }
    }

    /// The node of an inode.
    pub(crate) fn node(&self, inode: u64) -> u64 {
        if inode == self.root.0 {
            ROOT_NODE
        } else {
            inode
        }
    }

    /// Attributes as the kernel shall see them.
    fn show(&self, attr: Attr) -> Attr {
        self.show_asked(attr, Instant::now())
    }

    /// As [`Self::show`], of an answer to a request that was sent at `asked`.
    fn show_asked(&self, mut attr: Attr, asked: Instant) -> Attr {
        self.inodes.present(&mut attr, asked);
        attr.inode = self.node(attr.inode);
        attr
    }

    /// Hears of what other machines change, if the backend can tell.
    pub(crate) fn watch(&self) -> Option<mpsc::Receiver<CacheEvent>> {
        self.backend.watch()
    }

    fn draw_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// After the kernel is gone: closes what it left open, then ends the backend's sessions. What
    /// close(2) returned for is on the servers already, so this has little to lose and a limit.
    pub(crate) async fn finish(&self) {
        let left: Vec<_> = self
            .files
            .write()
            .drain()
            .map(|(_, handle)| handle)
            .collect();
        let closing = futures::stream::iter(left).for_each_concurrent(MAX_CLOSING, |handle| async move {
            if let Err(error) = handle.file.clone().close().await {
                let inode = handle.inode;
                tracing::error!(inode, %error, "writes to a file that was open at unmount are lost");
            }
        });
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::error!("files that were open at unmount could not be closed in time");
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
