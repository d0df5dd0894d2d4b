//! The thread of a ring: takes jobs in, hands them to the kernel in batches, and answers them.
//!
//! It looks for jobs and completions in turn as long as there are any, and only then says that it sleeps. So
//! while it is busy nobody pays for waking it, and all that has come meanwhile is handed to the kernel in one call.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};

use emberfs_proto::{Error, ErrorCode, Result};
use io_uring::{opcode, types};

use super::flight::{Flight, abandon, finish, same_error};
use super::queues::Queues;
use super::{IoJob, RingEnd};
use crate::engine::classes::{CLASSES, Class};
#[cfg(test)]
use crate::engine::faults::Faults;
use crate::engine::lane::{Job, Received};

/// Completion of the wake-up read.
const WAKE: u64 = u64::MAX;

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
    queues: Queues,
    slots: ManuallyDrop<Vec<Option<Flight>>>,
    free: Vec<usize>,
    flushes: [Flushes; CLASSES],
    /// Completed wake-ups land here; boxed because the kernel writes to it.
    wake_buf: ManuallyDrop<Box<[u8; 64]>>,
    wake_armed: bool,
    in_kernel: usize,
    stopping: bool,
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
    let queues = match Queues::new(slots as u32 + 1) {
        Ok(queues) => queues,
        Err(error) => {
            let what = format!(
                "io_uring is not usable ({error}): check the sysctl kernel.io_uring_disabled and the container's seccomp profile"
            );
            return started(Err(Error::new(ErrorCode::Unsupported, what)));
        }
    };
    started(Ok(()));
    let mut thread = Thread {
        queues,
        slots: ManuallyDrop::new((0..slots).map(|_| None).collect()),
        free: (0..slots).rev().collect(),
        flushes: std::array::from_fn(|_| Flushes::default()),
        wake_buf: ManuallyDrop::new(Box::new([0; 64])),
        wake_armed: false,
        in_kernel: 0,
        stopping: false,
        #[cfg(test)]
        faults,
    };
    match thread.run(end) {
        // Nothing is in the kernel any more.
        Ok(()) => {
            *thread.slots = Vec::new();
            thread.queues.forget_files();
        }
        Err(error) => {
            tracing::error!(%error, "io_uring failed: the disk's engine stops");
            for flight in thread.slots.iter_mut().filter_map(Option::take) {
                abandon(flight.job.work, same_error(&error));
            }
        }
    }
}

impl Thread {
    fn run(&mut self, end: &RingEnd) -> io::Result<()> {
        loop {
            let mut busy = self.take_jobs(end);
            if self.stopping && self.in_kernel == 0 {
                return Ok(());
            }
            if self.queues.has_work() {
                self.queues.submit()?;
            }
            busy |= self.reap();
            if !busy {
                self.sleep(end)?;
            }
        }
    }

    /// Takes in the jobs that are there, if there is room; whether there were any.
    fn take_jobs(&mut self, end: &RingEnd) -> bool {
        let mut any = false;
        while self.takes_jobs() {
            match end.jobs.try_recv() {
                Received::Job(job) => self.start(job),
                Received::Closed => self.stopping = true,
                Received::Nothing => break,
            }
            any = true;
        }
        any
    }

    /// Sleeps until there is a completion or a job that it would take.
    fn sleep(&mut self, end: &RingEnd) -> io::Result<()> {
        if !self.takes_jobs() {
            return self.queues.wait();
        }
        self.arm_wake(end.pipe.as_raw_fd());
        end.waker.fall_asleep();
        // See `Waker` for why this look must come after.
        if !self.take_jobs(end) {
            self.queues.wait()?;
        }
        end.waker.stay_awake();
        Ok(())
    }

    fn takes_jobs(&self) -> bool {
        // The last CLASSES slots are for flushes.
        !self.stopping && self.free.len() > CLASSES
    }

    /// Takes a job in.
    fn start(&mut self, job: Job<IoJob>) {
        #[cfg(test)]
        if let Some(error) = self.faults.check(&job.work) {
            finish(job.work, Err(error));
            return;
        }
        match &job.work {
            IoJob::Stop => self.stopping = true,
            IoJob::Flush { class, .. } => {
                let class = *class;
                self.flushes[class.index()].waiting.push(job);
                self.start_flush(class);
            }
            IoJob::Read { .. } | IoJob::Write { .. } => self.launch(Flight::new(job)),
        }
    }

    fn start_flush(&mut self, class: Class) {
        let flushes = &mut self.flushes[class.index()];
        if flushes.flying {
            return;
        }
        flushes.joined = std::mem::take(&mut flushes.waiting);
        if let Some(job) = flushes.joined.pop() {
            flushes.flying = true;
            self.launch(Flight::new(job));
        }
    }

    fn launch(&mut self, mut flight: Flight) {
        let slot = self
            .free
            .pop()
            .expect("takes_jobs() left slots for all I/O and one flush per class");
        let entry = self.queues.entry(&mut flight).user_data(slot as u64);
        self.slots[slot] = Some(flight);
        self.in_kernel += 1;
        // SAFETY: the entry points into a job that stays in `slots`, at an address that does not change, until
        // its completion is reaped; the slots are leaked if this thread unwinds.
        unsafe { self.queues.push(&entry) };
    }

    fn arm_wake(&mut self, fd: RawFd) {
        if !self.wake_armed {
            let (ptr, len) = (self.wake_buf.as_mut_ptr(), self.wake_buf.len() as u32);
            let read = opcode::Read::new(types::Fd(fd), ptr, len).build();
            // SAFETY: the entry points to `wake_buf`, which is leaked and used for nothing else.
            unsafe { self.queues.push(&read.user_data(WAKE)) };
            self.wake_armed = true;
        }
    }

    /// Answers what is complete; whether anything was.
    fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some((number, result)) = self.queues.next() {
            any = true;
            if number == WAKE {
                self.wake_armed = false;
                continue;
            }
            let slot = number as usize;
            let Some(mut flight) = self.slots[slot].take() else {
                continue;
            };
            self.free.push(slot);
            self.in_kernel -= 1;
            match flight.progress(result) {
                None => self.launch(flight),
                Some(result) => self.complete(flight, result),
            }
        }
        any
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
