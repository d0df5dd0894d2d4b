//! The disk thread: one io_uring per disk, owned by one thread, does every data read and write.
//!
//! Tasks queue jobs in a bounded lane and wait for a oneshot. While it has work the thread hands over all that was
//! queued in one call and does not sleep, so nobody has to wake it; else it sleeps in the kernel
//! until a completion or a wake-up (a byte in a pipe, written only when the thread says that it
//! sleeps) arrives. A flush of a block file is shared: all who ask while one runs wait for the
//! next one, so that each flush starts after every write it stands for.
//!
//! Rejected, µs of processor time per 4 KiB read on two busy cores: before it sleeps, yielding (9.0 against 8.3) or
//! spinning for some µs (9.3 against 7.9); in a model of the two threads, waiting for several completions at once with a
//! time limit (10 against 7.3). Neighbouring reads need no merging here: the kernel merges what it gets in one call.
//!
//! **Memory safety.** A job owns its buffer and the pin of its block, and stays in `slots` until the
//! kernel has answered; the slots are leaked rather than freed should the thread ever unwind.

mod flight;
mod queues;
mod thread;

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use emberfs_proto::Result;
use emberfs_proto::buf::AlignedBuf;
use tokio::sync::oneshot;

use super::alloc::Block;
use super::classes::Class;
use super::core::Gate;
use super::lane::{Lane, LaneEnd, lane};

pub(super) use thread::run;

/// What the disk thread can be asked for. Offsets are in the file, lengths whole sectors.
pub(super) enum IoJob {
    /// Fills the buffer.
    Read {
        file: Arc<File>,
        at: u64,
        buf: AlignedBuf,
        pin: Arc<Block>,
        reply: oneshot::Sender<io::Result<AlignedBuf>>,
    },
    /// Writes all bytes. The block, and the gate of its chunk, are kept until it is done.
    Write {
        file: Arc<File>,
        write: BlockWrite,
        pin: Arc<Block>,
        gate: Option<Gate>,
        reply: Done,
    },
    /// Makes all completed writes of the class's file durable.
    Flush {
        class: Class,
        file: Arc<File>,
        reply: Done,
    },
    /// End the thread when all is answered.
    Stop,
}

/// Bytes for a block file.
pub(super) struct BlockWrite {
    pub(super) at: u64,
    pub(super) data: Bytes,
    /// They are durable when it is done.
    pub(super) durable: bool,
}

type Done = oneshot::Sender<io::Result<()>>;

/// The tasks' side.
#[derive(Clone)]
pub(super) struct Ring {
    lane: Lane<IoJob>,
    waker: Arc<Waker>,
}

/// Wakes the thread when it sleeps, and costs next to nothing when it does not.
///
/// No wake-up is lost. A sender queues its job, then swaps `sleeping`; the thread swaps `sleeping`, then looks
/// for jobs. `sleeping` is changed by swaps alone, so they are in one order, and each sees what was done before
/// the earlier ones. If the sender's swap comes before the thread's, the thread finds the job. If it comes after,
/// it finds the flag set, or one that came between has cleared it: another sender's, which writes to the pipe, or the
/// thread's own on waking, after which it looks again.
struct Waker {
    sleeping: AtomicBool,
    pipe: PipeWriter,
}

impl Waker {
    /// For a sender, after it has queued.
    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::AcqRel) {
            // A full pipe wakes as well; a closed one has no reader to wake.
            let _ = (&self.pipe).write(&[1]);
        }
    }

    /// For the thread, before it looks for jobs a last time.
    fn fall_asleep(&self) {
        self.sleeping.swap(true, Ordering::AcqRel);
    }

    /// For the thread, when it does not sleep any more.
    fn stay_awake(&self) {
        self.sleeping.swap(false, Ordering::AcqRel);
    }
}

impl Ring {
    /// Queues a job and wakes the thread.
    pub(super) async fn send(&self, job: IoJob) -> Result<()> {
        self.lane.send(job).await?;
        self.waker.wake();
        Ok(())
    }

    /// Fills `buf` from the file.
    pub(super) async fn read(
        &self,
        file: &Arc<File>,
        at: u64,
        buf: AlignedBuf,
        pin: &Arc<Block>,
    ) -> Result<io::Result<AlignedBuf>> {
        let (reply, answer) = oneshot::channel();
        let (file, pin) = (Arc::clone(file), Arc::clone(pin));
        self.send(IoJob::Read {
            file,
            at,
            buf,
            pin,
            reply,
        })
        .await?;
        answer.await.map_err(|_| self.lane.closed())
    }

    /// Writes to the file, keeping the block and the gate even if the caller goes away.
    pub(super) async fn write(
        &self,
        file: &Arc<File>,
        write: BlockWrite,
        pin: &Arc<Block>,
        gate: Option<&Gate>,
    ) -> Result<io::Result<()>> {
        let (reply, answer) = oneshot::channel();
        let (file, pin) = (Arc::clone(file), Arc::clone(pin));
        let gate = gate.map(Arc::clone);
        self.send(IoJob::Write {
            file,
            write,
            pin,
            gate,
            reply,
        })
        .await?;
        answer.await.map_err(|_| self.lane.closed())
    }

    /// Makes the file's completed writes durable.
    pub(super) async fn flush(&self, class: Class, file: &Arc<File>) -> Result<io::Result<()>> {
        let (reply, answer) = oneshot::channel();
        self.send(IoJob::Flush {
            class,
            file: Arc::clone(file),
            reply,
        })
        .await?;
        answer.await.map_err(|_| self.lane.closed())
    }

    /// Ends the thread when all is answered.
    pub(super) fn close(&self) {
        self.lane.close(IoJob::Stop);
        self.waker.wake();
    }
}

/// Where the thread waits.
pub(super) struct RingEnd {
    jobs: LaneEnd<IoJob>,
    waker: Arc<Waker>,
    pipe: PipeReader,
    depth: u32,
}

/// The two sides of a ring for `depth` I/Os in flight.
pub(super) fn ring(depth: u32) -> io::Result<(Ring, RingEnd)> {
    let (reader, writer) = io::pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    let (lane, jobs) = lane("disk", 2 * depth as usize);
    let waker = Arc::new(Waker {
        sleeping: AtomicBool::new(false),
        pipe: writer,
    });
    let end = RingEnd {
        jobs,
        waker: Arc::clone(&waker),
        pipe: reader,
        depth,
    };
    Ok((Ring { lane, waker }, end))
}

#[cfg(test)]
mod tests;
