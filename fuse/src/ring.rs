//! The second transport: FUSE over io_uring (Linux 6.14 and later, Bernd Schubert's design).
//!
//! The kernel has one queue per CPU and puts a request on the queue of the CPU where the program
//! runs. Each queue has a thread here with an io_uring of its own and a few entries, buffers of
//! 1 MiB that are registered once. A request costs no read and no write of the device: it comes as
//! a completion, and committing its reply fetches the next one.
//!
//! `queue` is a thread's ring, `session` the life of all of them, `support` says whether all this is possible
//! here.
//!
//! The device is still read: forgets and interrupts come there, and notifications go there.

mod queue;
mod session;
mod support;

pub(crate) use queue::Return;
pub(crate) use session::Session;
#[cfg(test)]
pub(crate) use support::PARAMETER;

/// Requests that came through rings in this process.
#[cfg(test)]
pub(crate) fn arrived() -> u64 {
    queue::ARRIVED.load(std::sync::atomic::Ordering::Relaxed)
}
