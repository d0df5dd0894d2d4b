//! Where a reply goes.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::protocol::reply::Reply;
use crate::ring::Return;

enum Target {
    /// The device that the request was read from: the kernel looks for it there.
    Device(Arc<OwnedFd>),
    Ring(Return),
}

/// Sends one reply; dropped without one it sends EIO, so that no program waits for ever.
pub(crate) struct Responder {
    unique: u64,
    target: Option<Target>,
}

impl Responder {
    /// Replies by writing to the device.
    pub(crate) fn device(device: Arc<OwnedFd>, unique: u64) -> Self {
        Self {
            unique,
            target: Some(Target::Device(device)),
        }
    }

    /// Replies by way of a queue's entry.
    pub(crate) fn ring(to: Return, unique: u64) -> Self {
        Self {
            unique,
            target: Some(Target::Ring(to)),
        }
    }

    /// The kernel's number for the request.
    pub(super) fn unique(&self) -> u64 {
        self.unique
    }

    /// Sends nothing: the request has no reply.
    pub(super) fn keep_silent(mut self) {
        self.target = None;
    }

    pub(super) fn send(mut self, reply: Reply) {
        self.finish(reply);
    }

    fn finish(&mut self, reply: Reply) {
        match self.target.take() {
            Some(Target::Device(device)) => {
                let header = reply.header(self.unique);
                let parts = [IoSlice::new(&header), IoSlice::new(&reply.data)];
                // It fails if the request was given up meanwhile, which leaves nothing to do.
                if let Err(errno) = rustix::io::writev(&*device, &parts) {
                    tracing::debug!(unique = self.unique, %errno, "a reply was not taken");
                }
            }
            Some(Target::Ring(to)) => to.send(self.unique, reply),
            None => {}
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.finish(Reply::error(libc::EIO));
    }
}
