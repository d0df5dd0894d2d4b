//! What this client holds of one open file, shared by all handles on it.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use emberfs_proto::convert::required;
use emberfs_proto::ids::{ChainId, ChunkIndex, InodeId};
use emberfs_proto::layout::{ChunkSpan, Layout};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use tokio::sync::{RwLock, Semaphore, watch};

use crate::attr::AttrExt;
use crate::chunk_io::ChunkIo;
use crate::chunk_read::ChunkRange;
use crate::length::Length;
use crate::read_ahead::ReadAhead;
use crate::write_buffer::Buffers;
use crate::{Attr, Creds};

/// Chunk writes of one file in flight.
pub(crate) const WRITES_IN_FLIGHT: usize = 16;

/// One open of a file, as the metadata server knows it.
pub(crate) struct Handle {
    /// Changes when the server had forgotten this client and the file was opened again.
    pub(crate) session: AtomicU64,
    pub(crate) read: bool,
    pub(crate) execute: bool,
    pub(crate) write: bool,
    pub(crate) creds: Creds,
    pub(crate) closed: AtomicBool,
    /// See [`crate::delegations`].
    pub(crate) delegated: AtomicBool,
}

/// State of one open file.
pub(crate) struct InodeState {
    pub(crate) inode: InodeId,
    pub(crate) layout: Layout,
    stripe: OnceLock<Vec<ChainId>>,
    pub(crate) length: Mutex<Length>,
    pub(crate) buffers: Mutex<Buffers>,
    /// All numbered runs up to this one are done.
    pub(crate) progress: watch::Sender<u64>,
    pub(crate) flights: Semaphore,
    pub(crate) read_ahead: Mutex<ReadAhead>,
    /// Writers share it; who truncates has it alone.
    pub(crate) gate: RwLock<()>,
    /// One append at a time finds the end.
    pub(crate) appending: tokio::sync::Mutex<()>,
    /// One request for room at a time.
    pub(crate) reserving: tokio::sync::Mutex<()>,
    /// One report of the length at a time.
    pub(crate) reporting: tokio::sync::Mutex<()>,
    /// The file was made here, which the server has answered before it was durable, and has not said since that it is.
    pub(crate) fresh: AtomicBool,
    handles: Mutex<Vec<Weak<Handle>>>,
    /// Contents as the server told them last, to notice that someone else wrote since.
    seen: Mutex<(u64, Option<pb::Time>)>,
}

impl InodeState {
    pub(crate) fn new(attr: &Attr, keep_pieces: bool) -> Result<Self> {
        if !attr.is_file() {
            let code = if attr.is_dir() {
                ErrorCode::IsDirectory
            } else {
                ErrorCode::InvalidArgument
            };
            let what = format!(
                "inode {} is no regular file: it cannot be read or written",
                attr.inode
            );
            return Err(Error::new(code, what));
        }
        let layout = Layout::try_from(required(attr.layout.as_ref(), "layout")?)?;
        Ok(Self {
            inode: InodeId(attr.inode),
            layout,
            stripe: OnceLock::new(),
            length: Mutex::new(Length::new(attr)),
            buffers: Mutex::new(Buffers::new(layout, keep_pieces)),
            progress: watch::Sender::new(0),
            flights: Semaphore::new(WRITES_IN_FLIGHT),
            read_ahead: Mutex::default(),
            gate: RwLock::default(),
            appending: tokio::sync::Mutex::default(),
            reserving: tokio::sync::Mutex::default(),
            reporting: tokio::sync::Mutex::default(),
            fresh: AtomicBool::new(false),
            handles: Mutex::default(),
            seen: Mutex::new((attr.size, attr.mtime)),
        })
    }

    /// Another open: what was read ahead stays only if the file is as it was (close-to-open).
    pub(crate) fn opened_again(&self, attr: &Attr) {
        let cut = self.length.lock().learn(attr);
        if self.is_news(attr) || cut {
            self.read_ahead.lock().clear();
        }
    }

    /// Takes in an answer of the server. What was read ahead goes if the file was truncated, or changed by somebody
    /// else: nobody here writes it.
    pub(crate) fn learn(&self, attr: &Attr) {
        let cut = self.length.lock().learn(attr);
        if cut || (!self.is_written_here() && self.is_news(attr)) {
            self.read_ahead.lock().clear();
        }
    }

    fn is_written_here(&self) -> bool {
        let handles = self.handles.lock();
        handles
            .iter()
            .filter_map(Weak::upgrade)
            .any(|handle| handle.write)
    }

    /// Whether the contents are others than when this was asked last.
    fn is_news(&self, attr: &Attr) -> bool {
        let now = (attr.size, attr.mtime);
        std::mem::replace(&mut *self.seen.lock(), now) != now
    }

    /// Length as this client knows it.
    pub(crate) fn size(&self) -> u64 {
        self.length.lock().size()
    }

    /// The chain of a chunk. Waits for a map that has the file's chain table.
    pub(crate) async fn chain(&self, io: &ChunkIo, index: ChunkIndex) -> Result<ChainId> {
        let stripe = self.stripe(io).await?;
        Ok(stripe[index.0 as usize % stripe.len()])
    }

    /// The chains that hold the chunks of a range, each once.
    pub(crate) async fn chains_of(
        &self,
        io: &ChunkIo,
        range: &RangeInclusive<u32>,
    ) -> Result<Vec<ChainId>> {
        let stripe = self.stripe(io).await?;
        let indices = range.clone().take(stripe.len());
        Ok(indices
            .map(|index| stripe[index as usize % stripe.len()])
            .collect())
    }

    /// The chains of the file, in stripe order. Waits as [`Self::chain`].
    async fn stripe(&self, io: &ChunkIo) -> Result<&[ChainId]> {
        if let Some(stripe) = self.stripe.get() {
            return Ok(stripe);
        }
        let mut patience = io.patience();
        loop {
            let map = io.map.current();
            let table = map.table(self.layout.table, self.layout.table_version);
            match table.and_then(|table| self.layout.stripe(table)) {
                Ok(stripe) => return Ok(self.stripe.get_or_init(|| stripe)),
                Err(error) => {
                    let what = || format!("looking for the chains of inode {}", self.inode);
                    patience
                        .wait(error, what, io.map.newer(map.version))
                        .await?;
                }
            }
        }
    }

    /// The span of a chunk as a request names it.
    pub(crate) async fn range(&self, io: &ChunkIo, span: &ChunkSpan) -> Result<ChunkRange> {
        Ok(ChunkRange {
            key: emberfs_proto::ids::ChunkKey {
                inode: self.inode,
                index: span.index,
            },
            chain: self.chain(io, span.index).await?,
            offset: span.offset,
            len: span.len,
            page_size: self.layout.page_size,
        })
    }

    /// Registers an open.
    pub(crate) fn attach(&self, handle: &Arc<Handle>) {
        let mut handles = self.handles.lock();
        handles.retain(|h| h.strong_count() > 0);
        handles.push(Arc::downgrade(handle));
    }

    /// Opens that are not closed.
    pub(crate) fn open_handles(&self) -> Vec<Arc<Handle>> {
        let mut handles = self.live_handles();
        handles.retain(|handle| !handle.closed.load(Ordering::Acquire));
        handles
    }

    /// Opens with the file's delegation, closed ones too.
    pub(crate) fn delegated(&self) -> impl Iterator<Item = Arc<Handle>> {
        let handles = self.live_handles().into_iter();
        handles.filter(|handle| handle.delegated.load(Ordering::SeqCst))
    }

    /// From now on no handle ends its session.
    pub(crate) fn abandon(&self) {
        for handle in self.live_handles() {
            handle.closed.store(true, Ordering::Release);
        }
    }

    /// Some open for writing; one that is being closed if there is no other: what it has not reported
    /// yet can be reported through it.
    pub(crate) fn writer(&self) -> Option<Arc<Handle>> {
        let mut writers = self.live_handles();
        writers.retain(|handle| handle.write);
        writers.sort_by_key(|handle| handle.closed.load(Ordering::Acquire));
        writers.into_iter().next()
    }

    fn live_handles(&self) -> Vec<Arc<Handle>> {
        self.handles
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}
