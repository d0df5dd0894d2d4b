//! One queue of the kernel's FUSE over io_uring: a thread, an io_uring, and a few entries.
//!
//! An entry is a buffer that the kernel fills with one request at a time and that carries the reply
//! back. The thread alone touches entries: it copies a request out, hands it to the server, and
//! takes the reply from a channel whose senders wake it through a pipe that the ring reads.
//!
//! All unsafe code of the transport is here. What makes it sound is [`Buffer::lent`]: while a command or a
//! read that names a buffer is in the kernel the thread does not look at it, and a buffer that has
//! not come back when the queue ends is leaked instead of freed.

use std::alloc::Layout;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use crate::protocol::abi;
use crate::protocol::reply::Reply;

/// Completion of the pipe's read.
const WAKE: u64 = u64::MAX;
/// Bytes taken from the pipe at a time.
const WAKE_READ: u32 = 64;
/// Offset in a buffer of the two `iovec`s that describe it to the kernel.
const IOVECS: usize = 512;
/// Offset in a buffer of the payload: page-aligned.
const PAYLOAD: usize = 4096;
/// Offset of `len` in a submission: the crate has no setter for it.
const SQE_LEN: usize = 24;
/// Pause when the kernel has no memory for a submission.
const SHORT_OF_MEMORY: Duration = Duration::from_millis(1);
/// How long a queue that ends waits for its entries. The kernel gives them back as soon as the mount is gone.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a queue that ends looks at the clock.
const STOP_TURN: Duration = Duration::from_millis(50);

type Uring = IoUring<Entry128, cqueue::Entry>;

/// Makes a queue's thread look around.
pub(super) struct Wake {
    pipe: PipeWriter,
    /// The pipe holds a byte that the thread has not seen; there is never more than one per sleep.
    woken: AtomicBool,
    stop: AtomicBool,
}

impl Wake {
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // A pipe takes thousands of bytes and holds at most two. It fails if the thread is gone.
            let _ = (&self.pipe).write(&[0]);
        }
    }

    /// The thread shall end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }
}

/// A finished request on its way back to the thread.
struct Done {
    slot: usize,
    unique: u64,
    reply: Reply,
}

/// The way back for one request.
pub(crate) struct Return {
    slot: usize,
    done: SyncSender<Done>,
    wake: Arc<Wake>,
}

impl Return {
    pub(crate) fn send(self, unique: u64, reply: Reply) {
        let done = Done {
            slot: self.slot,
            unique,
            reply,
        };
        // There is room for one per entry, and an entry has one request. It fails if the thread is gone.
        if self.done.try_send(done).is_ok() {
            self.wake.wake();
        }
    }
}

/// Memory that is lent to the kernel and comes back with a completion.
struct Buffer {
    base: NonNull<u8>,
    layout: Layout,
    /// The kernel may write to it at any time.
    lent: bool,
}

impl Buffer {
    /// Zeroed memory for a header and `capacity` bytes of payload.
    fn new(capacity: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(PAYLOAD + capacity, PAYLOAD)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the layout has at least PAYLOAD bytes, so it is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        Ok(Self {
            base: NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?,
            layout,
            lent: false,
        })
    }

    fn capacity(&self) -> usize {
        self.layout.size() - PAYLOAD
    }

    /// The bytes, unless the kernel has them.
    fn bytes(&mut self) -> Option<&mut [u8]> {
        // SAFETY: base points to so many initialised bytes that only this buffer owns; the kernel
        // does not have them (`lent`), and the borrow of self keeps them from being lent meanwhile.
        (!self.lent).then(|| unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size())
        })
    }

    /// Writes the `iovec`s that say where header and payload are; answers their address.
    fn describe(&mut self) -> Option<u64> {
        let base = self.base.as_ptr().expose_provenance();
        let parts = [base, abi::RING_HEADER, base + PAYLOAD, self.capacity()];
        let bytes = self.bytes()?;
        for (at, part) in (IOVECS..).step_by(size_of::<usize>()).zip(parts) {
            bytes[at..at + size_of::<usize>()].copy_from_slice(&part.to_ne_bytes());
        }
        Some((base + IOVECS) as u64)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.lent {
            // SAFETY: allocated with this layout, not freed before, and the kernel does not have it.
            unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) }
        }
    }
}

struct Slot {
    buffer: Buffer,
    /// The kernel's name for the request that is being served.
    commit_id: u64,
    /// The kernel refused to have it back.
    dead: bool,
}

/// A request that an entry brought.
pub(super) struct Arrived<'a> {
    pub(super) header: &'a [u8],
    pub(super) fixed: &'a [u8],
    pub(super) payload: &'a [u8],
    pub(super) back: Return,
}

/// One queue; lives on its thread.
pub(super) struct Queue {
    // First: the kernel lets go of the ring before any buffer is freed.
    uring: Uring,
    /// The number of the CPU whose requests come here.
    id: u16,
    slots: Vec<Slot>,
    /// Where the pipe's bytes land.
    nudge: Buffer,
    pipe: PipeReader,
    wake: Arc<Wake>,
    done: Receiver<Done>,
    done_sender: SyncSender<Done>,
    /// Known after the handshake.
    device: Option<Arc<OwnedFd>>,
    stopping: bool,
    /// Why entries died, if not because the mount is gone.
    failure: Option<io::Error>,
}

impl Queue {
    /// A queue with `entries` entries of `capacity` bytes. The calling thread must be the one that uses it.
    pub(super) fn build(id: u16, entries: usize, capacity: usize) -> io::Result<Self> {
        let uring = Uring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            // One submission per entry and the pipe's.
            .build(entries as u32 + 1)?;
        let (pipe, writer) = io::pipe()?;
        let (done_sender, done) = sync_channel(entries);
        let slot = || {
            Ok(Slot {
                buffer: Buffer::new(capacity)?,
                commit_id: 0,
                dead: false,
            })
        };
        Ok(Self {
            uring,
            id,
            slots: (0..entries).map(|_| slot()).collect::<io::Result<_>>()?,
            nudge: Buffer::new(WAKE_READ as usize)?,
            pipe,
            wake: Arc::new(Wake {
                pipe: writer,
                woken: AtomicBool::new(false),
                stop: AtomicBool::new(false),
            }),
            done,
            done_sender,
            device: None,
            stopping: false,
            failure: None,
        })
    }

    pub(super) fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    /// Gives all entries to the kernel, after INIT. On error some may be there nevertheless.
    pub(super) fn register(
        &mut self,
        device: Arc<OwnedFd>,
        serve: &mut dyn FnMut(Arrived<'_>),
    ) -> io::Result<()> {
        self.device = Some(device);
        for slot in 0..self.slots.len() {
            let iovecs = self.slots[slot].buffer.describe();
            let iovecs = iovecs.ok_or(io::ErrorKind::AlreadyExists)?;
            self.submit(slot, abi::CMD_REGISTER, 0, Some(iovecs))?;
        }
        self.uring.submit()?;
        // A refusal comes at once; anything else is a request already.
        self.take_completions(serve);
        let dead = self.slots.iter().any(|slot| slot.dead);
        match self.failure.take() {
            Some(error) => Err(error),
            None if dead => Err(io::ErrorKind::NotConnected.into()),
            None => Ok(()),
        }
    }

    /// Serves until the mount is gone or [`Wake::stop`]. An error means that the queue is of no more
    /// use while the mount may still be there.
    pub(super) fn run(&mut self, serve: &mut dyn FnMut(Arrived<'_>)) -> io::Result<()> {
        while !self.stopping {
            self.read_pipe()?;
            self.turn(None, serve)?;
            self.take_replies()?;
            if self.wake.stop.load(Ordering::Acquire) {
                self.stopping = true;
            }
            if self.slots.iter().all(|slot| slot.dead)
                && let Some(error) = self.failure.take()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits a limited time until the kernel has given everything back.
    pub(super) fn drain(&mut self) {
        self.stopping = true;
        let deadline = Instant::now() + STOP_TIMEOUT;
        // For the read that is under way.
        let _ = (&self.wake.pipe).write(&[0]);
        while self.has_lent() {
            if Instant::now() >= deadline {
                tracing::warn!(
                    queue = self.id,
                    "the kernel keeps buffers of a queue that ended"
                );
                return;
            }
            if let Err(error) = self.turn(Some(STOP_TURN), &mut |_| {}) {
                tracing::warn!(queue = self.id, %error, "a queue could not be ended properly");
                return;
            }
        }
    }

    fn has_lent(&self) -> bool {
        self.nudge.lent || self.slots.iter().any(|slot| slot.buffer.lent)
    }

    /// Submits what is prepared, waits for something, and handles what has come.
    fn turn(
        &mut self,
        timeout: Option<Duration>,
        serve: &mut dyn FnMut(Arrived<'_>),
    ) -> io::Result<()> {
        let waited = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                self.uring.submitter().submit_with_args(1, &args)
            }
        };
        match waited.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) | Err(Some(libc::EINTR | libc::ETIME)) => {}
            Err(Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => {
                std::thread::sleep(SHORT_OF_MEMORY);
            }
            Err(_) => waited.map(drop)?,
        }
        self.take_completions(serve);
        Ok(())
    }

    fn take_completions(&mut self, serve: &mut dyn FnMut(Arrived<'_>)) {
        while let Some((token, result)) = self.next_completion() {
            self.completed(token, result, serve);
        }
    }

    fn next_completion(&mut self) -> Option<(u64, i32)> {
        let completion = self.uring.completion().next()?;
        Some((completion.user_data(), completion.result()))
    }

    fn completed(&mut self, token: u64, result: i32, serve: &mut dyn FnMut(Arrived<'_>)) {
        if token == WAKE {
            self.nudge.lent = false;
            // Before the replies are looked at: a sender who comes later writes again.
            self.wake.woken.swap(false, Ordering::AcqRel);
            return;
        }
        let index = token as usize;
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        slot.buffer.lent = false;
        match -result {
            ..=0 => {
                let back = Return {
                    slot: index,
                    done: self.done_sender.clone(),
                    wake: self.wake.clone(),
                };
                if !self.stopping {
                    arrived(slot, back, serve);
                }
            }
            libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED => {
                slot.dead = true;
                self.stopping = true;
            }
            errno => {
                slot.dead = true;
                let error = io::Error::from_raw_os_error(errno);
                tracing::warn!(queue = self.id, slot = index, %error, "an entry was lost");
                self.failure = Some(error);
            }
        }
    }

    /// Hands finished requests to the kernel with the next turn.
    fn take_replies(&mut self) -> io::Result<()> {
        while let Ok(done) = self.done.try_recv() {
            let buffer = &mut self.slots[done.slot].buffer;
            let capacity = buffer.capacity();
            let Some(bytes) = buffer.bytes() else {
                continue;
            };
            let reply = done.reply.limited(capacity);
            let len = reply.data.len();
            bytes[..abi::OUT_HEADER].copy_from_slice(&reply.header(done.unique));
            bytes[PAYLOAD..PAYLOAD + len].copy_from_slice(&reply.data);
            // At most the capacity, which is far below 4 GiB.
            let len = (len as u32).to_ne_bytes();
            bytes[abi::RING_PAYLOAD_LEN..abi::RING_PAYLOAD_LEN + 4].copy_from_slice(&len);
            let commit_id = self.slots[done.slot].commit_id;
            self.submit(done.slot, abi::CMD_COMMIT_AND_FETCH, commit_id, None)?;
        }
        Ok(())
    }

    /// Prepares a command about one entry, which belongs to the kernel from then on.
    fn submit(
        &mut self,
        slot: usize,
        command: u32,
        commit_id: u64,
        iovecs: Option<u64>,
    ) -> io::Result<()> {
        // `fuse_uring_cmd_req`: flags, commit_id, qid, padding.
        let mut request = [0; 80];
        request[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        request[16..18].copy_from_slice(&self.id.to_ne_bytes());
        let device = self.device.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let command = opcode::UringCmd80::new(Fd(device.as_raw_fd()), command);
        let mut entry = command
            .cmd(request)
            .addr(iovecs)
            .build()
            .user_data(slot as u64);
        if iovecs.is_some() {
            set_len(&mut entry, 2);
        }
        self.slots[slot].buffer.lent = true;
        // SAFETY: the entry's buffer, which holds the iovecs too, is marked as lent: it is neither
        // used nor freed before the completion.
        unsafe { self.push(&entry) }
    }

    /// Keeps a read of the pipe in the kernel.
    fn read_pipe(&mut self) -> io::Result<()> {
        if self.nudge.lent {
            return Ok(());
        }
        let fd = Fd(self.pipe.as_raw_fd());
        let read = opcode::Read::new(fd, self.nudge.base.as_ptr(), WAKE_READ);
        let entry = Entry128::from(read.build().user_data(WAKE));
        self.nudge.lent = true;
        // SAFETY: the buffer has WAKE_READ bytes and is marked as lent until the completion; the
        // pipe stays open as long as the ring.
        unsafe { self.push(&entry) }
    }

    /// # Safety
    /// What the entry points to must stay valid and unused until its completion.
    unsafe fn push(&mut self, entry: &Entry128) -> io::Result<()> {
        // SAFETY: the caller's promise is the one that is asked for.
        let pushed = unsafe { self.uring.submission().push(entry) };
        pushed.map_err(|_| io::Error::other("the submission queue is full"))
    }
}

/// Requests that came through rings in this process.
#[cfg(test)]
pub(crate) static ARRIVED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Lets the server copy an entry's request.
fn arrived(slot: &mut Slot, back: Return, serve: &mut dyn FnMut(Arrived<'_>)) {
    #[cfg(test)]
    ARRIVED.fetch_add(1, Ordering::Relaxed);
    let capacity = slot.buffer.capacity();
    let Some(bytes) = slot.buffer.bytes() else {
        return;
    };
    let (header, payload) = bytes.split_at(PAYLOAD);
    slot.commit_id = abi::u64_at(header, abi::RING_COMMIT_ID).unwrap_or(0);
    let len = abi::u32_at(header, abi::RING_PAYLOAD_LEN).unwrap_or(0) as usize;
    serve(Arrived {
        header: &header[..abi::IN_HEADER],
        fixed: &header[abi::RING_OP..abi::RING_ENTRY],
        payload: &payload[..len.min(capacity)],
        back,
    });
}

fn set_len(entry: &mut Entry128, len: u32) {
    let at = std::ptr::from_mut(entry).cast::<u8>();
    // SAFETY: an Entry128 is the kernel's `io_uring_sqe` of 128 bytes, where `len` is the four bytes
    // at SQE_LEN.
    unsafe { at.add(SQE_LEN).cast::<[u8; 4]>().write(len.to_ne_bytes()) }
}
