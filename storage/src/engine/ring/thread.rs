//! The thread of a ring: the only place that talks to the kernel's queues.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use emberfs_proto::buf::arena;
use emberfs_proto::{Error, ErrorCode, Result};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::{IoJob, RingEnd};
use crate::engine::classes::{CLASSES, Class};
#[cfg(test)]
use crate::engine::faults::Faults;
use crate::engine::lane::{Job, Received};

/// Pause when the kernel has no memory for a submission.
const SHORT_OF_MEMORY: Duration = Duration::from_millis(1);
/// Completion of the wake-up read.
const WAKE: u64 = u64::MAX;

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
    /// Addresses of the buffers that the kernel knows; empty if it took none.
    known_memory: Range<usize>,
    /// Classes whose file the kernel knows under the class's number; `None` if it takes no table.
    known_files: Option<[bool; CLASSES]>,
    slots: ManuallyDrop<Vec<Option<Flight>>>,
    free: Vec<usize>,
    flushes: [Flushes; CLASSES],
    /// Completed wake-ups land here; boxed because the kernel writes to it.
    wake_buf: ManuallyDrop<Box<[u8; 64]>>,
    wake_armed: bool,
    in_kernel: usize,
    #[cfg(test)]
    faults: std::sync::Arc<Faults>,
}

/// The thread's body. Tells `started` whether there is a ring.
pub(in crate::engine) fn run(
    end: &RingEnd,
    #[cfg(test)] faults: std::sync::Arc<Faults>,
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
    let submitter = uring.submitter();
    let known_files = submitter.register_files_sparse(CLASSES as u32);
    let mut thread = Thread {
        known_memory: register_memory(&uring),
        known_files: known_files.is_ok().then_some([false; CLASSES]),
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
        Ok(()) => {
            *thread.slots = Vec::new();
            // A ring lets go of files only some time after its end; the disk may be unmounted at once.
            let _ = thread.uring.submitter().unregister_files();
        }
        Err(error) => {
            tracing::error!(%error, "io_uring failed: the disk's engine stops");
            for flight in thread.slots.iter_mut().filter_map(Option::take) {
                abandon(flight.job.work, same_error(&error));
            }
        }
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

/// Tells the kernel the region of I/O buffers, once; what of it is known then. Its registration ends with the ring.
fn register_memory(uring: &IoUring) -> Range<usize> {
    let Some(region) = arena::addresses() else {
        return 0..0;
    };
    let whole = libc::iovec {
        iov_base: region.start as *mut libc::c_void,
        iov_len: region.len(),
    };
    // SAFETY: the region stays mapped as long as the process lives (see `arena`).
    match unsafe { uring.submitter().register_buffers(&[whole]) } {
        Ok(()) => region,
        Err(error) => {
            tracing::warn!(
                %error, bytes = region.len(),
                "I/O buffers cannot be registered with io_uring, disk I/O costs more: raise the limit of locked memory (LimitMEMLOCK, ulimit -l)"
            );
            0..0
        }
    }
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
                // Completions first, or the kernel is short of memory: no event tells when it is not.
                Err(error) if is(&error, Errno::BUSY) => {}
                Err(error) if is(&error, Errno::AGAIN) => std::thread::sleep(SHORT_OF_MEMORY),
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
        #[cfg(test)]
        if let Some(error) = self.faults.check(&job.work) {
            finish(job.work, Err(error));
            return false;
        }
        match &job.work {
            IoJob::Stop => return true,
            IoJob::Flush { class, .. } => {
                let class = *class;
                self.flushes[class.index()].waiting.push(job);
                self.start_flush(class);
            }
            IoJob::Read { .. } | IoJob::Write { .. } => {
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
        let entry = self.entry(&mut flight).user_data(slot as u64);
        self.slots[slot] = Some(flight);
        self.in_kernel += 1;
        self.push(&entry);
    }

    /// What the kernel is asked, from where it stopped the last time.
    fn entry(&mut self, flight: &mut Flight) -> squeue::Entry {
        let done = flight.done;
        match &mut flight.job.work {
            IoJob::Read {
                file, at, buf, pin, ..
            } => {
                let (fd, flags) = self.known_file(pin.loc().class, file);
                let (at, rest) = (*at + done as u64, &mut buf[done..]);
                let (known, len) = (self.knows(rest), rest.len() as u32);
                let ptr = rest.as_mut_ptr();
                let entry = if known {
                    opcode::ReadFixed::new(fd, ptr, len, 0).offset(at).build()
                } else {
                    opcode::Read::new(fd, ptr, len).offset(at).build()
                };
                entry.flags(flags)
            }
            IoJob::Write {
                file,
                at,
                data,
                pin,
                ..
            } => {
                let (fd, flags) = self.known_file(pin.loc().class, file);
                let (at, rest) = (*at + done as u64, &data[done..]);
                let (ptr, len) = (rest.as_ptr(), rest.len() as u32);
                let entry = if self.knows(rest) {
                    opcode::WriteFixed::new(fd, ptr, len, 0).offset(at).build()
                } else {
                    opcode::Write::new(fd, ptr, len).offset(at).build()
                };
                entry.flags(flags)
            }
            IoJob::Flush { class, file, .. } => {
                let (fd, flags) = self.known_file(*class, file);
                let datasync = types::FsyncFlags::DATASYNC;
                opcode::Fsync::new(fd).flags(datasync).build().flags(flags)
            }
            IoJob::Stop => opcode::Nop::new().build(),
        }
    }

    fn knows(&self, memory: &[u8]) -> bool {
        let start = memory.as_ptr() as usize;
        self.known_memory.start <= start && start + memory.len() <= self.known_memory.end
    }

    /// How a class's file is named in an entry. The kernel learns it when it is first used; it is the same
    /// as long as the engine lives.
    fn known_file(&mut self, class: Class, file: &File) -> (types::Fd, squeue::Flags) {
        let number = class.index();
        let plain = (types::Fd(file.as_raw_fd()), squeue::Flags::empty());
        let Some(known) = &mut self.known_files else {
            return plain;
        };
        if !known[number] {
            let files = [file.as_raw_fd()];
            let told = self.uring.submitter();
            known[number] = told.register_files_update(number as u32, &files).is_ok();
        }
        if known[number] {
            (types::Fd(number as i32), squeue::Flags::FIXED_FILE)
        } else {
            plain
        }
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

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Answers a job that the kernel may still be working on: its memory and its block are never
/// used again.
fn abandon(job: IoJob, error: io::Error) {
    match job {
        IoJob::Read {
            buf, pin, reply, ..
        } => {
            std::mem::forget((buf, pin));
            let _ = reply.send(Err(error));
        }
        IoJob::Write {
            data,
            pin,
            gate,
            reply,
            ..
        } => {
            std::mem::forget((data, pin, gate));
            let _ = reply.send(Err(error));
        }
        job => finish(job, Err(error)),
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
        IoJob::Write {
            pin, gate, reply, ..
        } => {
            drop((pin, gate));
            let _ = reply.send(result);
        }
        IoJob::Flush { reply, .. } => {
            let _ = reply.send(result);
        }
        IoJob::Stop => {}
    }
}
