//! The sending half of a connection.
//!
//! Whoever has a frame writes it to the socket right away, and with it what others queue meanwhile. A task of its
//! own writes only when the socket takes no more, or when one sender has written for others long enough: a frame that
//! goes out from where it was made saves the change of threads, which costs more than a small frame itself.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, Semaphore};

use super::io::OutFrame;

/// Most slices that one `writev` carries.
const MAX_SLICES: usize = 64;
/// System calls that a sender makes before the task goes on for it.
const MAX_ROUNDS: usize = 4;

/// Sends frames in the order in which they were handed over; clones share the connection.
#[derive(Clone)]
pub(super) struct FrameSender {
    end: Arc<End>,
}

/// The senders' side: no more frames come when the last of them is gone.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.task.notify_one();
    }
}

struct Shared {
    half: OwnedWriteHalf,
    /// Frames that may be queued.
    room: Semaphore,
    state: Mutex<State>,
    /// The task is to write, or to end.
    task: Notify,
}

#[derive(Default)]
struct State {
    pending: VecDeque<Piece>,
    writer: Writer,
    /// No more frames come.
    closed: bool,
    /// The connection is broken; why, until the task has said it.
    failed: bool,
    failure: Option<io::Error>,
}

/// Who writes: at most one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Nobody,
    Sender,
    /// Woken whenever this is set.
    Task,
}

struct Piece {
    bytes: Bytes,
    /// Its frame is complete with it.
    last: bool,
}

/// The connection takes no frames any more.
#[derive(Debug)]
pub(super) struct Closed;

impl FrameSender {
    /// For at most `room` queued frames. The future is the task: it ends when all senders are gone and everything is
    /// written, or with the failure of the connection.
    pub(super) fn new(
        half: OwnedWriteHalf,
        room: usize,
    ) -> (Self, impl Future<Output = io::Result<()>> + Send + 'static) {
        let shared = Arc::new(Shared {
            half,
            room: Semaphore::new(room),
            state: Mutex::default(),
            task: Notify::new(),
        });
        let task = shared.clone();
        let end = Arc::new(End(shared));
        (Self { end }, async move { task.run().await })
    }

    /// Waits for a place in the queue, then hands the frame over; it is written even if this is dropped after that.
    pub(super) async fn send(&self, frame: OutFrame) -> Result<(), Closed> {
        let shared = &self.end.0;
        let place = shared.room.acquire().await.map_err(|_| Closed)?;
        {
            let mut state = shared.state.lock();
            if state.failed {
                return Err(Closed);
            }
            // Given back when the frame is written.
            place.forget();
            let last = frame.pieces.len() - 1;
            let pieces = frame.pieces.into_iter().enumerate();
            state.pending.extend(pieces.map(|(n, bytes)| Piece {
                bytes,
                last: n == last,
            }));
            if state.writer != Writer::Nobody {
                return Ok(());
            }
            state.writer = Writer::Sender;
        }
        shared.write();
        Ok(())
    }
}

impl Shared {
    async fn run(&self) -> io::Result<()> {
        let ended = self.serve().await;
        if ended.is_err() {
            self.state.lock().failed = true;
            self.room.close();
        }
        ended
    }

    async fn serve(&self) -> io::Result<()> {
        loop {
            self.task.notified().await;
            while self.has_work()? {
                self.half.writable().await?;
                self.write();
            }
            let state = self.state.lock();
            if state.closed && state.pending.is_empty() && state.writer == Writer::Nobody {
                return Ok(());
            }
        }
    }

    /// Whether the task is the one that writes.
    fn has_work(&self) -> io::Result<bool> {
        let mut state = self.state.lock();
        if state.failed {
            let failure = state.failure.take();
            return Err(failure.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()));
        }
        Ok(state.writer == Writer::Task)
    }

    /// Writes what is queued, as the one writer. Ends with nobody writing, or leaves the rest to the task: when the socket
    /// takes no more, or for others to have a turn.
    fn write(&self) {
        for _ in 0..MAX_ROUNDS {
            let mut batch: VecDeque<Piece> = {
                let mut state = self.state.lock();
                let count = state.pending.len().min(MAX_SLICES);
                if count == 0 {
                    state.writer = Writer::Nobody;
                    if state.closed {
                        self.task.notify_one();
                    }
                    return;
                }
                state.pending.drain(..count).collect()
            };
            let written = self.push(&mut batch);
            let mut state = self.state.lock();
            match written {
                Ok(()) => {
                    for piece in batch.into_iter().rev() {
                        state.pending.push_front(piece);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    for piece in batch.into_iter().rev() {
                        state.pending.push_front(piece);
                    }
                    break;
                }
                Err(error) => {
                    state.failed = true;
                    state.failure = Some(error);
                    state.pending.clear();
                    state.writer = Writer::Nobody;
                    self.room.close();
                    self.task.notify_one();
                    return;
                }
            }
        }
        self.state.lock().writer = Writer::Task;
        self.task.notify_one();
    }

    /// One system call; takes what was written out of `batch`.
    fn push(&self, batch: &mut VecDeque<Piece>) -> io::Result<()> {
        let slices: Vec<_> = batch.iter().map(|p| IoSlice::new(&p.bytes)).collect();
        let mut written = self.half.try_write_vectored(&slices)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(front) = batch.front_mut() {
            let part = written.min(front.bytes.len());
            front.bytes.advance(part);
            written -= part;
            if !front.bytes.is_empty() {
                break;
            }
            if front.last {
                self.room.add_permits(1);
            }
            batch.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
