//! The disk thread: one io_uring per disk, owned by one thread, does every data read and write.
//!
//! Tasks queue jobs in a bounded lane and wait for a oneshot; the thread sleeps in the kernel
//! until a completion or a wake-up (a byte in a pipe, written only when the thread says that it
//! sleeps) arrives. A flush of a block file is shared: all who ask while one runs wait for the
//! next one, so that each flush starts after every write it stands for.
//!
//! **Memory safety.** A job owns its buffer and the pin of its block, and stays in `slots` until the
//! kernel has answered; the slots are leaked rather than freed should the thread ever unwind.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::{Error, ErrorCode, Result};
use io_uring::{IoUring, opcode, squeue, types};
use tokio::sync::oneshot;

use super::alloc::Block;
use super::classes::{CLASSES, Class};
use super::lane::{Job, Lane, LaneEnd, Received, lane};

/// Completion of the wake-up read.
const WAKE: u64 = u64::MAX;

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
    /// Writes all bytes.
    Write {
        file: Arc<File>,
        at: u64,
        data: Bytes,
        pin: Arc<Block>,
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

type Done = oneshot::Sender<io::Result<()>>;

/// The tasks' side.
#[derive(Clone)]
pub(super) struct Ring {
    lane: Lane<IoJob>,
    waker: Arc<Waker>,
}

struct Waker {
    /// Set by the thread before it sleeps, cleared by whoever wakes it.
    sleeping: AtomicBool,
    pipe: PipeWriter,
}

impl Waker {
    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // A full pipe wakes as well; a closed one has no reader to wake.
            let _ = (&self.pipe).write(&[1]);
        }
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

    /// Writes `data` to the file.
    pub(super) async fn write(
        &self,
        file: &Arc<File>,
        at: u64,
        data: Bytes,
        pin: &Arc<Block>,
    ) -> Result<io::Result<()>> {
        let (reply, answer) = oneshot::channel();
        let (file, pin) = (Arc::clone(file), Arc::clone(pin));
        self.send(IoJob::Write {
            file,
            at,
            data,
            pin,
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

/// One I/O that the kernel has.
struct Flight {
    job: Job<IoJob>,
    /// Bytes that are done.
    done: usize,
}

/// Flushes of one file.
#[derive(Default)]
struct Flushes {
    /// The kernel works on one.
    flying: bool,
    /// Share its result.
    joined: Vec<Job<IoJob>>,
    /// Came later: the next flush is theirs.
    waiting: Vec<Job<IoJob>>,
}

struct Thread {
    uring: IoUring,
    slots: ManuallyDrop<Vec<Option<Flight>>>,
    free: Vec<usize>,
    flushes: [Flushes; CLASSES],
    /// Completed wake-ups land here; boxed because the kernel writes to it.
    wake_buf: ManuallyDrop<Box<[u8; 64]>>,
    wake_armed: bool,
    in_kernel: usize,
    #[cfg(test)]
    faults: Arc<super::faults::Faults>,
}

/// The thread's body. Tells `started` whether there is a ring.
pub(super) fn run(
    end: &RingEnd,
    #[cfg(test)] faults: Arc<super::faults::Faults>,
    started: impl FnOnce(Result<()>),
) {
    // Flushes take slots too: one per class at most.
    let slots = end.depth as usize + CLASSES;
    let uring = match build(slots as u32 + 1) {
        Ok(uring) => uring,
        Err(error) => {
            let what = format!(
                "io_uring is not usable ({error}): check the sysctl kernel.io_uring_disabled and the container's seccomp profile"
            );
            return started(Err(Error::new(ErrorCode::Unsupported, what)));
        }
    };
    started(Ok(()));
    let mut thread = Thread {
        uring,
        slots: ManuallyDrop::new((0..slots).map(|_| None).collect()),
        free: (0..slots).rev().collect(),
        flushes: std::array::from_fn(|_| Flushes::default()),
        wake_buf: ManuallyDrop::new(Box::new([0; 64])),
        wake_armed: false,
        in_kernel: 0,
        #[cfg(test)]
        faults,
    };
    match thread.run(end) {
        // Nothing is in the kernel any more.
        Ok(()) => *thread.slots = Vec::new(),
        Err(error) => tracing::error!(%error, "io_uring failed: the disk's engine stops"),
    }
}

/// The cheapest ring that the kernel knows.
fn build(entries: u32) -> io::Result<IoUring> {
    let best = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_clamp()
        .build(entries);
    best.or_else(|_| IoUring::builder().setup_clamp().build(entries))
}

impl Thread {
    fn run(&mut self, end: &RingEnd) -> io::Result<()> {
        let mut stopping = false;
        loop {
            while !stopping && self.has_room() {
                match end.jobs.try_recv() {
                    Received::Job(job) => stopping = self.start(job),
                    Received::Closed => stopping = true,
                    Received::Nothing => {
                        // Says that it sleeps, then looks again: a sender either sees the flag
                        // or was seen.
                        if end.waker.sleeping.swap(true, Ordering::SeqCst) {
                            break;
                        }
                    }
                }
            }
            if stopping && self.in_kernel == 0 {
                return Ok(());
            }
            self.arm_wake(end.pipe.as_raw_fd());
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
            end.waker.sleeping.store(false, Ordering::SeqCst);
            self.reap();
        }
    }

    fn has_room(&self) -> bool {
        // The last CLASSES slots are for flushes.
        self.free.len() > CLASSES
    }

    /// Takes a job in; whether it was the last.
    fn start(&mut self, job: Job<IoJob>) -> bool {
        match &job.work {
            IoJob::Stop => return true,
            IoJob::Flush { class, .. } => {
                let class = *class;
                self.flushes[class.index()].waiting.push(job);
                self.start_flush(class);
            }
            IoJob::Read { .. } | IoJob::Write { .. } => {
                #[cfg(test)]
                if let Some(error) = self.faults.check(&job.work) {
                    finish(job.work, Err(error));
                    return false;
                }
                self.launch(Flight { job, done: 0 });
            }
        }
        false
    }

    fn start_flush(&mut self, class: Class) {
        let flushes = &mut self.flushes[class.index()];
        if flushes.flying {
            return;
        }
        flushes.joined = std::mem::take(&mut flushes.waiting);
        if let Some(job) = flushes.joined.pop() {
            flushes.flying = true;
            self.launch(Flight { job, done: 0 });
        }
    }

    fn launch(&mut self, mut flight: Flight) {
        let slot = self
            .free
            .pop()
            .expect("has_room() left slots for all I/O and one flush per class");
        let entry = entry(&mut flight).user_data(slot as u64);
        self.slots[slot] = Some(flight);
        self.in_kernel += 1;
        self.push(&entry);
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points into a job that stays in `slots` (or into `wake_buf`), at an address that does
        // not change, until its completion is reaped; both are leaked if this thread unwinds.
        let pushed = unsafe { self.uring.submission().push(entry) };
        assert!(
            pushed.is_ok(),
            "the queue has an entry per slot and one for the wake-up"
        );
    }

    fn arm_wake(&mut self, fd: RawFd) {
        if !self.wake_armed {
            let (ptr, len) = (self.wake_buf.as_mut_ptr(), self.wake_buf.len() as u32);
            self.push(
                &opcode::Read::new(types::Fd(fd), ptr, len)
                    .build()
                    .user_data(WAKE),
            );
            self.wake_armed = true;
        }
    }

    fn reap(&mut self) {
        loop {
            let next = self.uring.completion().next();
            let Some(completion) = next else { break };
            if completion.user_data() == WAKE {
                self.wake_armed = false;
                continue;
            }
            let slot = completion.user_data() as usize;
            let Some(mut flight) = self.slots[slot].take() else {
                continue;
            };
            self.free.push(slot);
            self.in_kernel -= 1;
            match progress(&mut flight, completion.result()) {
                None => self.launch(flight),
                Some(result) => self.complete(flight, result),
            }
        }
    }

    fn complete(&mut self, flight: Flight, result: io::Result<()>) {
        if let IoJob::Flush { class, .. } = &flight.job.work {
            let class = *class;
            self.flushes[class.index()].flying = false;
            for job in std::mem::take(&mut self.flushes[class.index()].joined) {
                finish(job.work, result.as_ref().copied().map_err(same_error));
            }
            self.start_flush(class);
        }
        finish(flight.job.work, result);
    }
}

/// What the kernel is asked, from where it stopped the last time.
fn entry(flight: &mut Flight) -> squeue::Entry {
    let done = flight.done;
    match &mut flight.job.work {
        IoJob::Read { file, at, buf, .. } => {
            let rest = &mut buf[done..];
            opcode::Read::new(
                types::Fd(file.as_raw_fd()),
                rest.as_mut_ptr(),
                rest.len() as u32,
            )
            .offset(*at + done as u64)
            .build()
        }
        IoJob::Write { file, at, data, .. } => {
            let rest = &data[done..];
            opcode::Write::new(
                types::Fd(file.as_raw_fd()),
                rest.as_ptr(),
                rest.len() as u32,
            )
            .offset(*at + done as u64)
            .build()
        }
        IoJob::Flush { file, .. } => opcode::Fsync::new(types::Fd(file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        IoJob::Stop => opcode::Nop::new().build(),
    }
}

fn same_error(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// What a completion means; `None`: ask the kernel for the rest.
fn progress(flight: &mut Flight, result: i32) -> Option<io::Result<()>> {
    if result < 0 {
        let error = io::Error::from_raw_os_error(-result);
        return match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => None,
            _ => Some(Err(error)),
        };
    }
    let len = match &flight.job.work {
        IoJob::Read { buf, .. } => buf.len(),
        IoJob::Write { data, .. } => data.len(),
        IoJob::Flush { .. } | IoJob::Stop => 0,
    };
    flight.done += result as usize;
    if flight.done >= len {
        Some(Ok(()))
    } else if result == 0 {
        Some(Err(io::ErrorKind::UnexpectedEof.into()))
    } else {
        None
    }
}

/// Answers a job. A caller that went away needs none.
fn finish(job: IoJob, result: io::Result<()>) {
    match job {
        IoJob::Read {
            buf, pin, reply, ..
        } => {
            drop(pin);
            let _ = reply.send(result.map(|()| buf));
        }
        IoJob::Write { pin, reply, .. } => {
            drop(pin);
            let _ = reply.send(result);
        }
        IoJob::Flush { reply, .. } => {
            let _ = reply.send(result);
        }
        IoJob::Stop => {}
    }
}

#[cfg(test)]
mod tests;
