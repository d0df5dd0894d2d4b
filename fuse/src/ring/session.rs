//! A mount that is served by rings: from the handshake to the end of all its threads.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use emberfs_proto::{Error, ErrorCode, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::queue::{Arrived, Queue, Wake};
use super::support;
use crate::backend::Backend;
use crate::preflight::at;
use crate::protocol::MESSAGE;
use crate::protocol::init::{self, payload_capacity};
use crate::protocol::request::Head;
use crate::server::{AbortOnDrop, Parts, Responder, Server};
use crate::{MountOptions, device};

#[cfg(test)]
mod tests;

/// A mounted file system whose queues are running; [`Session::run`] serves the device beside them.
pub(crate) struct Session<B: Backend> {
    server: Arc<Server<B>>,
    /// Hears of what other machines change.
    _others: Option<AbortOnDrop>,
    device: Arc<OwnedFd>,
    queues: Queues<B>,
}

/// The threads of the queues.
struct Queues<B: Backend> {
    threads: Vec<Running<B>>,
    /// Ends of this pipe are held by the threads: whatever ends one is seen by the session.
    ended: PipeReader,
}

struct Running<B: Backend> {
    wake: Arc<Wake>,
    /// Starts the queue once the mount is there.
    go: SyncSender<(Arc<OwnedFd>, Arc<Server<B>>)>,
    /// Whether the ring is built, then whether the kernel has its entries.
    steps: Receiver<io::Result<Option<Arc<Wake>>>>,
    thread: JoinHandle<io::Result<()>>,
}

impl<B: Backend> Session<B> {
    /// Mounts at `path` (checked before). Leaves nothing behind if it fails.
    pub(crate) fn attach(parts: &Parts<B>, path: &Path, options: &MountOptions) -> Result<Self> {
        let cpus = support::check(options)?;
        let queues = Queues::start(cpus).map_err(|error| unusable(path, &error))?;
        let device = Arc::new(device::mount_directly(path, options)?);
        let attached = handshake(&device, options).and_then(|()| {
            // A request that waits occupies an entry; one of each queue must stay free for those who unlock.
            let waiters = support::entries(cpus) - 1;
            let server = Server::new(parts.clone(), device.clone(), options, waiters, false);
            queues.register(&device, &server)?;
            Ok(server)
        });
        match attached {
            Ok(server) => Ok(Self {
                _others: server.follow_others(),
                server,
                device,
                queues,
            }),
            Err(error) => {
                let _ = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                drop(device);
                let _ = queues.stop();
                Err(unusable(path, &error))
            }
        }
    }

    /// Serves until the mount is gone. An error means that it was given up and is dead.
    pub(crate) fn run(self) -> io::Result<()> {
        let served = self.serve_device();
        // The kernel ends the connection when the device and all rings are closed.
        let joined = self.queues.stop();
        served.and(joined)
    }

    /// Messages that never come through a ring: forgets, interrupts, and whatever the kernel sends
    /// here while rings are not ready.
    fn serve_device(&self) -> io::Result<()> {
        let mut message = vec![0; MESSAGE];
        loop {
            let mut ready = [
                PollFd::new(&*self.device, PollFlags::IN),
                PollFd::new(&self.queues.ended, PollFlags::IN),
            ];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if !ready[1].revents().is_empty() {
                return Ok(());
            }
            match rustix::io::read(&*self.device, &mut message) {
                Ok(len) => self.server.message(&self.device, &message[..len]),
                // NOENT: a request was given up before it was read.
                Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl<B: Backend> Queues<B> {
    /// Builds one queue per CPU, each on its thread.
    fn start(cpus: u16) -> io::Result<Self> {
        let (ended, guard) = io::pipe()?;
        let mut queues = Self {
            threads: Vec::with_capacity(usize::from(cpus)),
            ended,
        };
        for id in 0..cpus {
            queues.threads.push(start_one(id, cpus, &guard)?);
        }
        Ok(queues)
    }

    /// Gives the kernel all entries of all queues.
    fn register(&self, device: &Arc<OwnedFd>, server: &Arc<Server<B>>) -> io::Result<()> {
        for running in &self.threads {
            let _ = running.go.send((device.clone(), server.clone()));
        }
        for running in &self.threads {
            running.steps.recv().map_err(|_| thread_lost())??;
        }
        Ok(())
    }

    fn ask_to_stop(&self) {
        for running in &self.threads {
            running.wake.stop();
        }
    }

    /// Ends all threads; the first failure counts.
    fn stop(mut self) -> io::Result<()> {
        self.ask_to_stop();
        let mut outcome = Ok(());
        for running in std::mem::take(&mut self.threads) {
            // A thread that was never started ends when it sees that nobody will.
            drop(running.go);
            let ended = running.thread.join().unwrap_or_else(|_| Err(thread_lost()));
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl<B: Backend> Drop for Queues<B> {
    fn drop(&mut self) {
        self.ask_to_stop();
    }
}

fn start_one<B: Backend>(id: u16, cpus: u16, guard: &PipeWriter) -> io::Result<Running<B>> {
    let (go, started) = sync_channel(1);
    let (step, steps) = sync_channel(2);
    let guard = Guard(guard.try_clone()?);
    let (entries, capacity) = (support::entries(cpus), payload_capacity());
    let thread = std::thread::Builder::new()
        .name(format!("emberfs-ring-{id}"))
        .spawn(move || {
            let queue = match Queue::build(id, entries, capacity) {
                Ok(queue) => queue,
                Err(error) => {
                    let _ = step.send(Err(error));
                    return Ok(());
                }
            };
            let _ = step.send(Ok(Some(queue.wake())));
            serve_queue(queue, &started, &step, guard)
        })?;
    let built = steps.recv().map_err(|_| thread_lost())?;
    Ok(Running {
        wake: built?.ok_or_else(thread_lost)?,
        go,
        steps,
        thread,
    })
}

/// Tells the session that a thread has ended, by whatever way.
struct Guard(PipeWriter);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.write(&[0]);
    }
}

/// The life of a queue's thread once it has a ring.
fn serve_queue<B: Backend>(
    mut queue: Queue,
    started: &Receiver<(Arc<OwnedFd>, Arc<Server<B>>)>,
    step: &SyncSender<io::Result<Option<Arc<Wake>>>>,
    guard: Guard,
) -> io::Result<()> {
    let Ok((device, server)) = started.recv() else {
        return Ok(());
    };
    let mut serve = |arrived: Arrived<'_>| serve_arrived(&server, arrived);
    let registered = queue.register(device, &mut serve);
    let usable = registered.is_ok();
    let _ = step.send(registered.map(|()| None));
    let outcome = if usable {
        queue.run(&mut serve)
    } else {
        Ok(())
    };
    // Before the wait: all queues end together.
    drop(guard);
    queue.drain();
    outcome
}

fn serve_arrived<B: Backend>(server: &Server<B>, arrived: Arrived<'_>) {
    let Some(head) = Head::decode(arrived.header) else {
        return;
    };
    let respond = Responder::ring(arrived.back, head.unique);
    server.arrived(&head, arrived.fixed, arrived.payload, respond);
}

fn handshake(device: &OwnedFd, options: &MountOptions) -> io::Result<()> {
    init::handshake(device, options.max_background, true)?;
    // From now on the device is read only when it has something.
    let flags = rustix::fs::fcntl_getfl(device)?;
    rustix::fs::fcntl_setfl(device, flags | OFlags::NONBLOCK)?;
    Ok(())
}

fn thread_lost() -> io::Error {
    io::Error::other("the thread of a queue ended early")
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    let what = format!("cannot be served by transport=ring ({error}); use transport=classic");
    at(path, ErrorCode::Unsupported, &what)
}
