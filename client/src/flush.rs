//! Moves buffered writes to the chains, and lengths to the metadata server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use emberfs_proto::ids::{ChunkIndex, ChunkKey};
use emberfs_proto::{ErrorCode, Result, pb};
use futures::StreamExt;

use crate::chunk_write::ChunkWrite;
use crate::core::Core;
use crate::eager::spawn_eager;
use crate::inode_state::{Handle, InodeState};
use crate::length::Report;
use crate::meta_rpc::{attr_of, rpc};
use crate::write_buffer::{Run, Why};
use crate::{Attr, Creds};

impl Core {
    /// Buffers a write, once there is memory for it. The caller holds the inode's gate.
    pub(crate) async fn buffer(
        self: &Arc<Self>,
        state: &Arc<InodeState>,
        offset: u64,
        mut data: Bytes,
    ) -> Result<()> {
        for span in state.layout.spans(offset, data.len())? {
            let room = self.budget.for_write(span.len as usize, || self.relieve());
            let permit = room.await;
            let part = data.split_to(span.len as usize);
            let start = offset + span.at as u64;
            let end = start + part.len() as u64;
            let mut ready = {
                let mut buffers = state.buffers.lock();
                state.length.lock().wrote(start, end, SystemTime::now());
                let ready = buffers.add(span.index.0, span.offset, part, Some(permit));
                if ready {
                    vec![span.index.0]
                } else {
                    Vec::new()
                }
            };
            if self.budget.pressed() {
                ready.extend(state.buffers.lock().hurry(Instant::now()));
            }
            // After the bytes count as buffered: see `read_ahead`.
            state.read_ahead.lock().invalidate(start, end - start);
            self.start_workers(state, &ready);
        }
        Ok(())
    }

    /// Memory is short: everything that rests in a buffer goes on its way.
    pub(crate) fn relieve(self: &Arc<Self>) {
        let now = Instant::now();
        for state in self.all_known() {
            let ready = state.buffers.lock().hurry(now);
            self.start_workers(&state, &ready);
        }
    }

    /// One worker per chunk with sealed runs; it ends when there are none.
    pub(crate) fn start_workers(self: &Arc<Self>, state: &Arc<InodeState>, chunks: &[u32]) {
        for &index in chunks {
            // Detached: a write that was begun is finished, whoever stopped waiting for it.
            self.runtime
                .spawn(drain(self.clone(), state.clone(), index));
        }
    }

    /// Sends everything buffered on its way, and waits for it.
    pub(crate) async fn settle(self: &Arc<Self>, state: &Arc<InodeState>, why: Why) {
        let (ready, number) = state.buffers.lock().seal_all(why);
        if let &[index] = &ready[..] {
            // The caller has nothing else to do.
            let work = drain(self.clone(), state.clone(), index);
            spawn_eager(&self.runtime, work);
        } else {
            self.start_workers(state, &ready);
        }
        state.done_to(number).await;
    }

    /// As [`Self::settle`], for the chunks of a byte range only. True if there was anything.
    pub(crate) async fn settle_range(
        self: &Arc<Self>,
        state: &Arc<InodeState>,
        offset: u64,
        len: usize,
    ) -> bool {
        let first = state.layout.chunk_of(offset).0;
        let last = state.layout.chunk_of(offset + (len as u64).max(1) - 1).0;
        let (ready, number) = state.buffers.lock().seal_range(first, last);
        self.start_workers(state, &ready);
        state.done_to(number).await;
        number > 0
    }

    /// Before a truncate to `size` (or before the mtime is set): afterwards nothing is buffered, and
    /// the server knows how far this client wrote. The caller has the inode's gate alone.
    pub(crate) async fn quiesce(
        self: &Arc<Self>,
        state: &Arc<InodeState>,
        size: Option<u64>,
    ) -> Result<()> {
        if let Some(size) = size {
            let (watermark, end) = {
                let mut buffers = state.buffers.lock();
                buffers.discard_from(size);
                (buffers.watermark(), buffers.end())
            };
            state.length.lock().dropped(end);
            state.advance(watermark);
        }
        self.settle(state, Why::Flush).await;
        if let Some(writer) = state.writer() {
            self.report(state, &writer).await?;
        }
        Ok(())
    }

    /// Tells the server how far acknowledged writes got, if it does not know yet.
    pub(crate) async fn report(&self, state: &InodeState, handle: &Handle) -> Result<Option<Attr>> {
        let _turn = state.reporting.lock().await;
        let report = state.length.lock().take_report();
        if report.is_none() && !state.fresh.load(Ordering::Acquire) {
            return Ok(None);
        }
        let result = self.send_report(state, handle, report, false).await;
        Self::reported(state, &result);
        result.map(Some)
    }

    /// Ends a session, with the last report if it was open for writing.
    pub(crate) async fn end_session(
        self: &Arc<Self>,
        state: &Arc<InodeState>,
        handle: &Handle,
    ) -> Result<()> {
        if handle.write {
            self.settle(state, Why::Close).await;
        }
        let _turn = state.reporting.lock().await;
        let report = if handle.write {
            state.length.lock().take_report()
        } else {
            None
        };
        if report.is_none() && !state.fresh.load(Ordering::Acquire) {
            self.end_soon(state.inode, handle.session.load(Ordering::Acquire));
            return Ok(());
        }
        let result = self.send_report(state, handle, report, true).await;
        Self::reported(state, &result);
        result.map(drop)
    }

    fn reported(state: &InodeState, result: &Result<Attr>) {
        // First the answer, then the report goes: the size must not drop in between.
        if let Ok(attr) = result {
            state.learn(attr);
        }
        state.length.lock().reported(result.is_ok());
    }

    async fn send_report(
        &self,
        state: &InodeState,
        handle: &Handle,
        report: Option<Report>,
        close: bool,
    ) -> Result<Attr> {
        let first = self.send_once(state, handle, report, close).await;
        match first {
            Err(error) if error.code == ErrorCode::NoSession && report.is_some() => {
                self.reopen(state, handle, &handle.creds).await?;
                self.send_once(state, handle, report, close).await
            }
            first => first,
        }
    }

    async fn send_once(
        &self,
        state: &InodeState,
        handle: &Handle,
        report: Option<Report>,
        close: bool,
    ) -> Result<Attr> {
        let epoch = state.length.lock().epoch();
        let request = pb::SyncRequest {
            caller: None,
            inode: state.inode.0,
            session: handle.session.load(Ordering::Acquire),
            end: report.map(|r| r.end),
            truncate_epoch: report.map_or(epoch, |r| r.epoch),
            mtime: report.map(|r| r.mtime.into()),
            sparse: report.is_some_and(|r| r.sparse),
            settle: false,
            starts: Vec::new(),
        };
        let reply = if close {
            rpc!(self.meta, &handle.creds, Own, close, request)
        } else {
            rpc!(self.meta, &handle.creds, Own, sync, request)
        };
        let reply = reply?;
        let attr = attr_of(reply.attr)?;
        // Such an answer comes when all before it is durable; one to the close of a file that is only read may come earlier.
        if let Some(log) = reply.log {
            self.names.synced(log);
            state.fresh.store(false, Ordering::Release);
        }
        Ok(attr)
    }

    /// Opens anew, as `creds`, what the server has forgotten or is about to.
    pub(crate) async fn reopen(
        &self,
        state: &InodeState,
        handle: &Handle,
        creds: &Creds,
    ) -> Result<()> {
        let request = pb::OpenRequest {
            caller: None,
            inode: state.inode.0,
            read: handle.read,
            write: handle.write,
            truncate: false,
            execute: handle.execute,
        };
        let reply = rpc!(self.meta, creds, Own, open, request)?;
        // A delegation ends with the session that it was given with.
        handle.delegated.store(false, Ordering::SeqCst);
        handle.session.store(reply.session, Ordering::Release);
        if let Some(attr) = &reply.attr {
            state.learn(attr);
        }
        tracing::info!(inode = %state.inode, session = reply.session, "opened a file again");
        Ok(())
    }

    /// Sends old data and lengths on their way; see [`crate::ClientConfig::write_back`].
    pub(crate) async fn write_back(self: &Arc<Self>) {
        /// Files whose length is reported at the same time.
        const REPORTS: usize = 8;
        let old = Instant::now().checked_sub(self.config.write_back / 2);
        let Some(old) = old else { return };
        let mut late = Vec::new();
        for state in self.all_known() {
            let ready = state.buffers.lock().hurry(old);
            self.start_workers(&state, &ready);
            let since = state.length.lock().unreported_since();
            if since.is_some_and(|since| since <= old)
                && let Some(writer) = state.writer()
            {
                late.push((state, writer));
            }
        }
        let reports = futures::stream::iter(late).map(|(state, writer)| async move {
            if let Err(error) = self.report(&state, &writer).await {
                tracing::warn!(inode = %state.inode, %error, "periodic length report failed");
            }
        });
        reports.buffer_unordered(REPORTS).collect::<()>().await;
    }
}

impl InodeState {
    /// Waits until all runs up to `number` are done.
    async fn done_to(&self, number: u64) {
        let mut progress = self.progress.subscribe();
        // The sender lives in self: it cannot have gone.
        let _ = progress.wait_for(|&done| done >= number).await;
    }

    fn advance(&self, watermark: u64) {
        // Never backwards: another worker may have come first with a higher one.
        self.progress.send_if_modified(|done| {
            let further = watermark > *done;
            *done = watermark.max(*done);
            further
        });
    }
}

/// Sends a chunk's sealed runs, one after the other.
async fn drain(core: Arc<Core>, state: Arc<InodeState>, index: u32) {
    loop {
        let flight = state.flights.acquire().await;
        let Some(mut run) = state.buffers.lock().next(index) else {
            return;
        };
        let result = send(&core, &state, index, &mut run).await;
        drop(flight);
        if let Err(error) = &result {
            tracing::error!(inode = %state.inode, chunk = index, len = run.len, %error, "buffered write lost");
        }
        let number = run.number;
        let end = state.layout.chunk_start(ChunkIndex(index)) + u64::from(run.offset + run.len);
        // Before anybody hears of it: the bytes are needed no longer.
        drop(run);
        let mut buffers = state.buffers.lock();
        let acked = result.is_ok();
        buffers.done(index, number, result.err());
        let waiting = buffers.end();
        let mut length = state.length.lock();
        if acked {
            length.acked(end, waiting);
        } else {
            length.dropped(waiting);
        }
        drop(length);
        let watermark = buffers.watermark();
        drop(buffers);
        state.advance(watermark);
    }
}

async fn send(core: &Core, state: &InodeState, index: u32, run: &mut Run) -> Result<()> {
    let write = ChunkWrite {
        key: ChunkKey {
            inode: state.inode,
            index: ChunkIndex(index),
        },
        chain: state.chain(&core.io, ChunkIndex(index)).await?,
        layout: state.layout,
        offset: run.offset,
        pieces: std::mem::take(&mut run.pieces),
        size_hint: run.size_hint,
    };
    core.io.write(&write).await.map(drop)
}
