//! Moving blocks by io_uring: the checksums and the bytes of a block are one chain of two requests, submitted and
//! waited for by one system call.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::failure::{Context, Result};

use super::{Block, Sink};

/// Room for the requests of a block and the notifications of a zero-copy send.
const ENTRIES: u32 = 8;
/// All bytes, or an error.
const WHOLE: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

pub(super) fn send(to: TcpStream, pool: &[Block], blocks: u64) -> Result<()> {
    let mut end = End::new(to).context("cannot use io_uring")?;
    let fd = types::Fd(end.socket.as_raw_fd());
    for block in pool.iter().cycle().take(blocks as usize) {
        let part = |bytes: &[u8]| {
            let send = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32);
            (send.flags(WHOLE).build(), bytes.len())
        };
        let parts = [part(&block.checksums), part(&block.data)];
        // SAFETY: both parts point into `block`, which is borrowed until this returns.
        unsafe { end.move_all(parts) }.context("cannot send")?;
    }
    Ok(())
}

/// As [`send`], from memory that the kernel knows, and without copying it if the way allows that.
pub(super) fn send_zerocopy(to: TcpStream, pool: &[Block], blocks: u64) -> Result<()> {
    let mut end = End::new(to).context("cannot use io_uring")?;
    let memory: Vec<_> = pool.iter().map(|block| iovec(&block.data)).collect();
    // SAFETY: the pool outlives the ring, and nobody changes it; the kernel only reads it.
    unsafe { end.uring.submitter().register_buffers(&memory) }.context("cannot register memory")?;
    let fd = types::Fd(end.socket.as_raw_fd());
    let numbered = pool.iter().enumerate().cycle();
    for (number, block) in numbered.take(blocks as usize) {
        let (sums, data) = (&block.checksums, &block.data);
        let first = opcode::Send::new(fd, sums.as_ptr(), sums.len() as u32);
        let second = opcode::SendZc::new(fd, data.as_ptr(), data.len() as u32)
            .buf_index(Some(number as u16))
            .flags(WHOLE);
        let parts = [
            (first.flags(WHOLE).build(), sums.len()),
            (second.build(), data.len()),
        ];
        // SAFETY: both parts point into `block`. The kernel may still send from its pages after this returns, which
        // it has pinned, and which nobody changes.
        unsafe { end.move_all(parts) }.context("cannot send")?;
    }
    Ok(())
}

pub(super) fn receive(from: TcpStream, blocks: u64) -> Result<()> {
    let mut end = End::new(from).context("cannot use io_uring")?;
    let fd = types::Fd(end.socket.as_raw_fd());
    let mut sink = Sink::new();
    for _ in 0..blocks {
        let (sums, data) = sink.room();
        let part = |bytes: &mut [u8]| {
            let receive = opcode::Recv::new(fd, bytes.as_mut_ptr(), bytes.len() as u32);
            (receive.flags(libc::MSG_WAITALL).build(), bytes.len())
        };
        let parts = [part(sums), part(data)];
        // SAFETY: both parts point into `sink`, which is borrowed exclusively and untouched until this returns.
        unsafe { end.move_all(parts) }.context("cannot receive")?;
        sink.check()?;
    }
    Ok(())
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// One end of a connection.
struct End {
    uring: IoUring,
    socket: TcpStream,
}

impl End {
    fn new(socket: TcpStream) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES)?;
        Ok(Self { uring, socket })
    }

    /// Runs two requests in turn and waits for both, each of which must move as many bytes as it says.
    ///
    /// # Safety
    /// The memory of the requests must be theirs until this returns.
    unsafe fn move_all(&mut self, parts: [(squeue::Entry, usize); 2]) -> io::Result<()> {
        let [(first, first_len), (second, second_len)] = parts;
        let wanted = [first_len, second_len];
        let chain = [
            first.user_data(0).flags(squeue::Flags::IO_LINK),
            second.user_data(1),
        ];
        // SAFETY: the caller vouches for the memory until both have completed, which is waited for below.
        let pushed = unsafe { self.uring.submission().push_multiple(&chain) };
        pushed.map_err(|_| io::Error::other("the submission queue is full"))?;
        let mut moved = [None; 2];
        while moved.contains(&None) {
            let missing = moved.iter().filter(|moved| moved.is_none()).count();
            match self.uring.submit_and_wait(missing) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel may be using the memory, and nothing tells when it no longer is.
                Err(_) => std::process::abort(),
            }
            for done in self.uring.completion() {
                // Of a zero-copy send there is a second completion, once the memory is free again.
                if !cqueue::notif(done.flags()) {
                    moved[done.user_data() as usize] = Some(done.result());
                }
            }
        }
        for (moved, wanted) in moved.into_iter().flatten().zip(wanted) {
            if moved < 0 {
                return Err(io::Error::from_raw_os_error(-moved));
            }
            if moved as usize != wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}
