//! The classic transport: threads that read requests from `/dev/fuse`, each from a device of its own where the kernel
//! lets one be cloned, so that they do not meet at one queue.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use emberfs_proto::Result;
use rustix::io::Errno;

use crate::MountOptions;
use crate::backend::Backend;
use crate::device::{self, Device};
use crate::protocol::MESSAGE;
use crate::server::{AbortOnDrop, MAX_WAITERS, Parts, Server};

/// A mounted file system that [`Session::run`] serves.
pub(crate) struct Session<B: Backend> {
    server: Arc<Server<B>>,
    /// Hears of what other machines change.
    _others: Option<AbortOnDrop>,
    device: Device,
    threads: usize,
}

impl<B: Backend> Session<B> {
    /// Mounts at `path` (checked before) and shakes hands with the kernel. Leaves nothing behind if it fails.
    pub(crate) fn attach(parts: &Parts<B>, path: &Path, options: &MountOptions) -> Result<Self> {
        let device = device::attach(path, options)?;
        let server = Server::new(parts.clone(), device.fd.clone(), options, MAX_WAITERS);
        Ok(Self {
            _others: server.follow_others(),
            server,
            device,
            threads: options.threads,
        })
    }

    /// Serves until the mount is gone; the first failure counts.
    pub(crate) fn run(self) -> io::Result<()> {
        let mut devices = vec![self.device.fd.clone()];
        while devices.len() < self.threads {
            // Without a clone the threads share one device.
            let clone = device::clone(&self.device.fd).map_or_else(
                |error| {
                    tracing::debug!(%error, "the device cannot be cloned");
                    self.device.fd.clone()
                },
                Arc::new,
            );
            devices.push(clone);
        }
        let threads = (0..).zip(devices).map(|(number, device): (u32, _)| {
            let server = self.server.clone();
            let thread = std::thread::Builder::new().name(format!("emberfs-fuse-{number}"));
            thread.spawn(move || serve(&server, &device))
        });
        let threads: Vec<io::Result<JoinHandle<_>>> = threads.collect();
        let mut outcome = Ok(());
        for thread in threads {
            let ended = thread.and_then(|thread| {
                let panicked = |_| Err(io::Error::other("a device thread panicked"));
                thread.join().unwrap_or_else(panicked)
            });
            outcome = outcome.and(ended);
        }
        outcome
    }
}

fn serve<B: Backend>(server: &Server<B>, device: &Arc<OwnedFd>) -> io::Result<()> {
    let mut message = vec![0; MESSAGE];
    loop {
        match rustix::io::read(&**device, &mut message) {
            Ok(len) => server.message(device, &message[..len]),
            // NOENT: a request was given up before it was read.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
            // Unmounted.
            Err(Errno::NODEV) => return Ok(()),
            Err(errno) => {
                tracing::error!(%errno, "a device thread cannot read any more");
                return Err(errno.into());
            }
        }
    }
}
