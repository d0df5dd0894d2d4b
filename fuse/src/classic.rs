//! The classic transport: threads that read requests from `/dev/fuse`, each from a device of its own where the kernel
//! lets one be cloned, so that they do not meet at one queue.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use emberfs_proto::Result;
use rustix::io::Errno;

use crate::MountOptions;
use crate::backend::Backend;
use crate::caching;
use crate::device::{self, Device};
use crate::protocol::request::Head;
use crate::protocol::{MESSAGE, reply};
use crate::server::{AbortOnDrop, MAX_WAITERS, Parts, Server};
use crate::takeover::nudge;

/// Pause between two attempts to interrupt threads.
const NUDGE_AGAIN: Duration = Duration::from_millis(5);

/// A mounted file system that [`Session::run`] serves.
pub(crate) struct Session<B: Backend> {
    server: Arc<Server<B>>,
    /// Hears of what other machines change.
    _others: Option<AbortOnDrop>,
    devices: Vec<Arc<OwnedFd>>,
    /// Of a mount that was made through the helper.
    _device: Option<Device>,
    /// Another process has served this mount before.
    resumes: bool,
    messages: (mpsc::Sender<Message>, mpsc::Receiver<Message>),
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The mount is gone.
    Unmounted,
    /// [`Leave::ask`]: nothing is read any more.
    Left,
}

/// Makes a session stop reading requests.
#[derive(Clone)]
pub(crate) struct Leave(mpsc::Sender<Message>);

impl Leave {
    pub(crate) fn ask(&self) {
        // Fails if the session has ended.
        let _ = self.0.send(Message::Leave);
    }
}

enum Message {
    Leave,
    Ended(io::Result<End>),
}

impl<B: Backend> Session<B> {
    /// Mounts at `path` (checked before) and shakes hands with the kernel. Leaves nothing behind if it fails.
    pub(crate) fn attach(parts: &Parts<B>, path: &Path, options: &MountOptions) -> Result<Self> {
        let device = device::attach(path, options)?;
        let devices = device::several(&device.fd, options.threads);
        Ok(Self {
            _device: Some(device),
            ..Self::over(parts, devices, options)
        })
    }

    /// Serves a mount that another process holds, by its devices, of which there is at least one.
    pub(crate) fn over(
        parts: &Parts<B>,
        devices: Vec<Arc<OwnedFd>>,
        options: &MountOptions,
    ) -> Self {
        let first = devices[0].clone();
        let server = Server::new(parts.clone(), first, options, MAX_WAITERS, true);
        Self {
            _others: server.follow_others(),
            server,
            devices,
            _device: None,
            resumes: false,
            messages: mpsc::channel(),
        }
    }

    /// Another process has served this mount before. `refuse`: requests that it did not answer get an error.
    pub(crate) fn resuming(mut self, refuse: bool) -> Self {
        self.resumes = true;
        if refuse {
            self.server.refuse_resent();
        }
        self
    }

    pub(crate) fn leave(&self) -> Leave {
        Leave(self.messages.0.clone())
    }

    /// Serves until the mount is gone or it is asked to leave; the first failure counts.
    pub(crate) fn run(self) -> io::Result<End> {
        if self.resumes && self.resume()? == End::Unmounted {
            return Ok(End::Unmounted);
        }
        let leaving = Arc::new(AtomicBool::new(false));
        let (sender, messages) = self.messages;
        let mut threads = Vec::new();
        let mut outcome = Ok(End::Unmounted);
        for (number, device) in self.devices.into_iter().enumerate() {
            let (server, leaving, sender) = (self.server.clone(), leaving.clone(), sender.clone());
            let thread = std::thread::Builder::new().name(format!("emberfs-fuse-{number}"));
            let spawned = thread.spawn(move || {
                // Told even if the thread panics.
                let mut told = Told(
                    sender,
                    Some(Err(io::Error::other("a device thread panicked"))),
                );
                told.1 = Some(serve(&server, &device, &leaving));
            });
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        let mut ended = 0;
        while ended < threads.len() {
            let message = if leaving.load(Ordering::Acquire) {
                let blocked = threads.iter().filter(|thread| !thread.is_finished());
                blocked.for_each(nudge::nudge);
                messages.recv_timeout(NUDGE_AGAIN).ok()
            } else {
                // This end of the channel is open: `sender` is still here.
                messages.recv().ok()
            };
            match message {
                Some(Message::Leave) => leaving.store(true, Ordering::Release),
                Some(Message::Ended(end)) => {
                    ended += 1;
                    outcome = match (outcome, end) {
                        (Ok(_), Ok(End::Left)) => Ok(End::Left),
                        (outcome, end) => outcome.and_then(|so_far| end.map(|_| so_far)),
                    };
                }
                None => {}
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
        outcome
    }

    /// Reads what an earlier process did not answer, which the kernel gives out before anything else.
    fn resume(&self) -> io::Result<End> {
        let device = &self.devices[0];
        for message in caching::stale(self.server.handler()) {
            // It fails in kernels that do not know epochs, where names are believed for their term.
            let _ = rustix::io::write(device, &message);
        }
        rustix::io::write(device, &reply::send_again())?;
        rustix::io::ioctl_fionbio(device, true)?;
        let mut message = buffer();
        let end = loop {
            match rustix::io::read(device, &mut message) {
                Ok(len) => {
                    let head = Head::decode(&message[..len]);
                    self.server.message(device, &message[..len]);
                    if head.is_some_and(|head| !head.is_resent() && head.is_ordinary()) {
                        break End::Left;
                    }
                }
                Err(Errno::AGAIN) => break End::Left,
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV) => break End::Unmounted,
                Err(errno) => return Err(errno.into()),
            }
        };
        rustix::io::ioctl_fionbio(device.as_fd(), false)?;
        self.server.resumed();
        Ok(end)
    }
}

/// Tells how a thread ended when it is dropped.
struct Told(mpsc::Sender<Message>, Option<io::Result<End>>);

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(end) = self.1.take() {
            let _ = self.0.send(Message::Ended(end));
        }
    }
}

/// Memory for a message, with pages: while it lacks them, the kernel answers a request EIO if this process is killed just
/// when the request is copied here, and no successor can see it.
fn buffer() -> Vec<u8> {
    // Zeros would be memory without pages.
    vec![u8::MAX; MESSAGE]
}

fn serve<B: Backend>(
    server: &Server<B>,
    device: &Arc<OwnedFd>,
    leaving: &AtomicBool,
) -> io::Result<End> {
    let mut message = buffer();
    while !leaving.load(Ordering::Acquire) {
        match rustix::io::read(&**device, &mut message) {
            Ok(len) => server.message(device, &message[..len]),
            // NOENT: a request was given up before it was read.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
            // Unmounted.
            Err(Errno::NODEV) => return Ok(End::Unmounted),
            Err(errno) => {
                tracing::error!(%errno, "a device thread cannot read any more");
                return Err(errno.into());
            }
        }
    }
    Ok(End::Left)
}
