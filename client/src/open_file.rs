//! An open file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result};

use crate::core::Core;
use crate::inode_state::{Handle, InodeState};
use crate::write_buffer::Why;
use crate::{Attr, Creds, OpenFlags};

/// Longest background close of a file that was dropped, when the client has no limit of its own.
const BACKGROUND_CLOSE: Duration = Duration::from_mins(2);

/// An open file. Clones share one session; dropping the last without [`File::close`] closes it in the
/// background, and an error of that goes to the log.
///
/// Writes are buffered: an error may show only at a later write, or at [`File::sync`],
/// [`File::flush`] or [`File::close`]. Each handle reports each failure once, as Linux does.
#[derive(Clone)]
pub struct File {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    state: Arc<InodeState>,
    handle: Arc<Handle>,
    flags: OpenFlags,
    /// Write failures of the inode that this handle has reported.
    seen: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.handle.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (core, state, handle) = (self.core.clone(), self.state.clone(), self.handle.clone());
        let limit = core.config.io_timeout.unwrap_or(BACKGROUND_CLOSE);
        let close = async move {
            let closed = tokio::time::timeout(limit, core.end_session(&state, &handle)).await;
            let error = match closed {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no end within {} s", limit.as_secs()),
            };
            tracing::warn!(inode = %state.inode, %error, "closing a dropped file failed");
        };
        self.core.closing.spawn_on(close, &self.core.runtime);
    }
}

impl File {
    pub(crate) fn new(
        core: Arc<Core>,
        state: Arc<InodeState>,
        creds: &Creds,
        session: u64,
        flags: OpenFlags,
    ) -> Self {
        let handle = Arc::new(Handle {
            session: AtomicU64::new(session),
            read: flags.read,
            execute: flags.execute,
            write: flags.write,
            creds: creds.clone(),
            closed: AtomicBool::new(false),
            delegated: AtomicBool::new(false),
        });
        state.attach(&handle);
        let seen = AtomicU64::new(state.buffers.lock().failures().0);
        Self {
            inner: Arc::new(Inner {
                core,
                state,
                handle,
                flags,
                seen,
            }),
        }
    }

    /// It was made by this open.
    pub(crate) fn mark_fresh(&self) {
        self.inner.state.fresh.store(true, Ordering::Release);
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    pub(crate) fn state(&self) -> &Arc<InodeState> {
        &self.inner.state
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.inner.handle
    }

    pub(crate) fn flags(&self) -> OpenFlags {
        self.inner.flags
    }

    /// The session under which the metadata server knows this open.
    pub(crate) fn session(&self) -> u64 {
        self.inner.handle.session.load(Ordering::Acquire)
    }

    /// Which file.
    pub fn inode(&self) -> InodeId {
        self.inner.state.inode
    }

    /// Length in bytes as far as this client knows, its own buffered writes included.
    pub fn size(&self) -> u64 {
        self.inner.state.size()
    }

    /// Reads `len` bytes at `offset`; fewer only at the end of the file. Holes are zeros.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.readable()?;
        crate::read::read(self, offset, len).await
    }

    /// Reads into the spare capacity of `buf` (that is how many bytes are wanted); fewer only at the
    /// end of the file. The bytes land there straight from the socket.
    pub async fn read_into(&self, offset: u64, buf: BytesMut) -> Result<BytesMut> {
        self.readable()?;
        crate::read::read_into(self, offset, buf).await
    }

    /// Reads many `(offset, length)` ranges at once, with few requests per storage node; results in
    /// the order of the ranges, each as [`File::read`] would answer. [`crate::Client::read_many`] does
    /// the same for many files.
    pub async fn read_many(&self, ranges: &[(u64, usize)]) -> Vec<Result<Bytes>> {
        if let Err(error) = self.readable() {
            return ranges.iter().map(|_| Err(error.clone())).collect();
        }
        crate::read_many::read_many(self, ranges).await
    }

    /// Writes into this client's buffer; [`File::sync`] makes it durable. Waits when the buffer is
    /// full. [`ErrorCode::QuotaExceeded`]: a quota leaves no room for all of it; nothing is written. With `append` the offset is ignored; with `direct` or `sync` this returns when the
    /// replicas have the bytes.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        if self.inner.flags.append {
            return self.append(data).await.map(drop);
        }
        self.writable()?;
        self.put(offset, data).await
    }

    /// Writes at the end of the file and answers the offset. Appends of this client never overlap;
    /// those of two clients may, if both append at the same time.
    pub async fn append(&self, data: Bytes) -> Result<u64> {
        self.writable()?;
        let state = &self.inner.state;
        let _turn = state.appending.lock().await;
        if state.buffers.lock().is_clean() && state.length.lock().unreported_since().is_none() {
            self.inner.core.refresh(state).await?;
        }
        let offset = state.size();
        self.put(offset, data).await?;
        Ok(offset)
    }

    async fn put(&self, offset: u64, data: Bytes) -> Result<()> {
        let Inner {
            core,
            state,
            handle,
            flags,
            ..
        } = &*self.inner;
        self.check_failure()?;
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len();
        {
            let _gate = state.gate.read().await;
            let end = offset.saturating_add(len as u64);
            core.make_room(state, handle, end).await?;
            core.buffer(state, offset, data).await?;
        }
        if flags.sync {
            self.sync().await?;
        } else if flags.direct {
            core.settle_range(state, offset, len).await;
            self.check_failure()?;
        }
        Ok(())
    }

    /// fsync: every buffered write of this inode is on its replicas, and its length is known to the
    /// metadata server. Answers the attributes after that. Of attributes that were set, and of losses, see [`crate::Client::sync_changes`].
    pub async fn sync(&self) -> Result<Attr> {
        let Inner {
            core,
            state,
            handle,
            ..
        } = &*self.inner;
        self.open()?;
        core.settle(state, Why::Flush).await;
        // What did reach the chains is reported even if something else did not.
        let reporter = if handle.write || state.fresh.load(Ordering::Acquire) {
            Some(handle.clone())
        } else {
            state.writer()
        };
        let reported = match reporter {
            Some(writer) => core.report(state, &writer).await,
            None => Ok(None),
        };
        self.report_failure()?;
        let mut attr = match reported? {
            Some(attr) => attr,
            None => core.refresh(state).await?,
        };
        core.overlay(&mut attr);
        Ok(attr)
    }

    /// What close(2) waits for: as [`File::sync`], and nothing if nothing was written.
    pub async fn flush(&self) -> Result<()> {
        let Inner {
            core,
            state,
            handle,
            ..
        } = &*self.inner;
        self.open()?;
        if handle.write {
            core.settle(state, Why::Close).await;
            let reported = core.report(state, handle).await;
            self.report_failure()?;
            reported?;
        }
        Ok(())
    }

    /// Flushes and ends the session. Other clones of this handle are closed with it.
    pub async fn close(self) -> Result<()> {
        let Inner {
            core,
            state,
            handle,
            ..
        } = &*self.inner;
        if handle.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let guard = CloseAnyway(handle);
        let ended = core.end_session(state, handle).await;
        std::mem::forget(guard);
        self.report_failure()?;
        ended
    }

    /// Fails while a buffered write is known to be lost. A write does not count as having reported
    /// it: the kernel turns the error of a later piece of one write(2) into a short count, which nobody
    /// takes for an error. Only `fsync` and `close` settle it.
    pub(crate) fn check_failure(&self) -> Result<()> {
        let seen = self.inner.seen.load(Ordering::Acquire);
        self.failure_since(seen).1
    }

    /// A failure of a buffered write that this handle has not reported yet.
    fn report_failure(&self) -> Result<()> {
        let (count, result) = self.failure_since(self.inner.seen.load(Ordering::Acquire));
        self.inner.seen.fetch_max(count, Ordering::AcqRel);
        result
    }

    /// Failures so far, and the last one if it came after the first `seen`.
    fn failure_since(&self, seen: u64) -> (u64, Result<()>) {
        let buffers = self.inner.state.buffers.lock();
        let (count, last) = buffers.failures();
        let result = match last {
            Some(error) if count > seen => Err(error
                .clone()
                .context(format!("earlier write to inode {} was lost", self.inode()))),
            _ => Ok(()),
        };
        (count, result)
    }

    pub(crate) fn open(&self) -> Result<()> {
        if self.inner.handle.closed.load(Ordering::Acquire) {
            let what = format!("the handle on inode {} is closed", self.inode());
            return Err(Error::new(ErrorCode::NoSession, what));
        }
        Ok(())
    }

    pub(crate) fn readable(&self) -> Result<()> {
        self.open()?;
        self.allowed(self.inner.flags.read, "reading")
    }

    pub(crate) fn writable(&self) -> Result<()> {
        self.open()?;
        self.allowed(self.inner.flags.write, "writing")
    }

    fn allowed(&self, flag: bool, what: &str) -> Result<()> {
        if flag {
            return Ok(());
        }
        let what = format!(
            "the handle on inode {} was not opened for {what}",
            self.inode()
        );
        Err(Error::new(ErrorCode::NoSession, what))
    }
}

/// A close whose caller stopped waiting is still owed: dropping the file then does it.
struct CloseAnyway<'a>(&'a Handle);

impl Drop for CloseAnyway<'_> {
    fn drop(&mut self) {
        self.0.closed.store(false, Ordering::Release);
    }
}
