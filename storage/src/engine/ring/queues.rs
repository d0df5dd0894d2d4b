//! The kernel's side of a ring: its two queues, and the memory and files that it was told beforehand.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use emberfs_proto::buf::arena;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::IoJob;
use super::flight::Flight;
use crate::engine::classes::{CLASSES, Class};

/// Pause when the kernel has no memory for a submission.
const SHORT_OF_MEMORY: Duration = Duration::from_millis(1);

/// An io_uring, owned by one thread.
pub(super) struct Queues {
    uring: IoUring,
    /// Addresses of the buffers that the kernel knows; empty if it took none.
    known_memory: Range<usize>,
    /// Classes whose file the kernel knows under the class's number; `None` if it takes no table.
    known_files: Option<[bool; CLASSES]>,
}

impl Queues {
    /// A ring with room for `entries` requests.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let uring = build(entries)?;
        let table = uring.submitter().register_files_sparse(CLASSES as u32);
        Ok(Self {
            known_memory: register_memory(&uring),
            known_files: table.is_ok().then_some([false; CLASSES]),
            uring,
        })
    }

    /// Queues an entry, which the kernel sees with the next [`Self::submit`] or [`Self::wait`].
    ///
    /// # Safety
    /// What the entry points to stays where it is and is used by nobody else until its completion was taken.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.uring.submission().push(entry) };
        assert!(
            pushed.is_ok(),
            "the queue has an entry per slot and one for the wake-up"
        );
    }

    /// Whether the kernel has something to be fetched, or something is queued for it.
    pub(super) fn has_work(&mut self) -> bool {
        let queue = self.uring.submission();
        let pending = !queue.is_empty() || queue.taskrun();
        drop(queue);
        pending || !self.uring.completion().is_empty()
    }

    /// Hands what is queued to the kernel and fetches what is complete, without waiting.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// As [`Self::submit`], and waits until something is complete.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.uring.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Completions first, or the kernel is short of memory: no event tells when it is not.
            Err(error) if is(&error, Errno::BUSY) => {}
            Err(error) if is(&error, Errno::AGAIN) => std::thread::sleep(SHORT_OF_MEMORY),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The next completion: the number of its request, and its result.
    pub(super) fn next(&mut self) -> Option<(u64, i32)> {
        let completion = self.uring.completion().next()?;
        Some((completion.user_data(), completion.result()))
    }

    /// Lets go of the files: a ring does so only some time after its end, and the disk may be unmounted at once.
    pub(super) fn forget_files(&self) {
        // Fails when no table was taken.
        let _ = self.uring.submitter().unregister_files();
    }

    /// What the kernel is asked for a flight, from where it stopped the last time.
    pub(super) fn entry(&mut self, flight: &mut Flight) -> squeue::Entry {
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
                file, write, pin, ..
            } => {
                let (fd, flags) = self.known_file(pin.loc().class, file);
                let (at, rest) = (write.at + done as u64, &write.data[done..]);
                let (ptr, len) = (rest.as_ptr(), rest.len() as u32);
                let how = if write.durable { libc::RWF_DSYNC } else { 0 };
                let entry = if self.knows(rest) {
                    let entry = opcode::WriteFixed::new(fd, ptr, len, 0);
                    entry.offset(at).rw_flags(how).build()
                } else {
                    let entry = opcode::Write::new(fd, ptr, len);
                    entry.offset(at).rw_flags(how).build()
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
}

/// The cheapest ring that the kernel knows.
fn build(entries: u32) -> io::Result<IoUring> {
    let best = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
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

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
