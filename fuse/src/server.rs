//! From a request of the kernel to its reply, whatever transport it came by.
//!
//! A transport's thread hands in a request's bytes; they are decoded and copied, and the request begins on the handler. What is known
//! here is answered there and then; what has to wait goes on as a task ([`spawn_eager`]), which sends the reply.
//! So those threads never wait for a server, except when [`Gate`] has reached its limit, which
//! is the bound on memory. `dispatch` says which operation is which call; `in_flight` knows all that are
//! being served.
//!
//! What is not served is answered ENOSYS, which the kernel remembers and stops asking for: access (checked in the
//! kernel from our attributes), statx (it falls back to getattr), poll (files are always ready).

mod dispatch;
mod gate;
mod groups;
mod in_flight;
mod outcome;
mod respond;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use emberfs_client::{RequestScope, Result, spawn_eager};
use tokio::sync::Semaphore;

use crate::backend::Backend;
use crate::caching::{Believed, Caching};
use crate::handler::Handler;
use crate::protocol::abi::op;
use crate::protocol::reply::{self, Lifetimes, Reply};
use crate::protocol::request::{Head, Operation, decode_message, fixed_len};
use crate::{MountOptions, caching};
pub(crate) use gate::Gate;
use in_flight::{InFlight, PATIENCE};
pub(crate) use respond::Responder;

/// Requests in flight, of all kinds. The kernel bounds the asynchronous ones lower still.
pub(crate) const MAX_IN_FLIGHT: usize = 4096;

/// Programs that may wait for locks, each with a request in flight; more are told that there are no locks left.
pub(crate) const MAX_WAITERS: usize = 65_536;

/// A request that takes longer is named in the log.
const OVERDUE: Duration = Duration::from_secs(30);
/// How often the watchdog looks.
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// What every transport is made of.
pub(crate) struct Parts<B: Backend> {
    pub(crate) handler: Arc<Handler<B>>,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Counts the requests in flight.
    pub(crate) gate: Arc<Gate>,
}

impl<B: Backend> Clone for Parts<B> {
    fn clone(&self) -> Self {
        Self {
            handler: self.handler.clone(),
            runtime: self.runtime.clone(),
            gate: self.gate.clone(),
        }
    }
}

/// Serves the requests of one mount.
pub(crate) struct Server<B: Backend> {
    parts: Parts<B>,
    in_flight: Arc<InFlight>,
    /// Programs that may wait for locks: they do not count in the gate, which must stay open for those who unlock.
    waiters: Arc<Semaphore>,
    /// For messages to the kernel that answer no request.
    device: Arc<OwnedFd>,
    caching: Arc<Caching>,
    /// Requests that an earlier process did not answer get an error.
    refuse_resent: AtomicBool,
}

/// A task that ends with this.
pub(crate) struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One request on its way through [`Server::run`].
struct Call {
    operation: &'static str,
    node: u64,
    respond: Responder,
    /// Of a change of names or attributes.
    scope: Option<RequestScope>,
}

impl<B: Backend> Server<B> {
    /// `waiters`: programs that may wait for locks at a time. `in_order`: [`Responder::send`] returns when the kernel has
    /// the reply.
    pub(crate) fn new(
        parts: Parts<B>,
        device: Arc<OwnedFd>,
        options: &MountOptions,
        waiters: usize,
        in_order: bool,
    ) -> Arc<Self> {
        let in_flight = Arc::new(InFlight::default());
        parts.runtime.spawn(watch(Arc::downgrade(&in_flight)));
        let ordinary = Lifetimes {
            entry: options.entry_timeout,
            attr: options.attr_timeout,
        };
        // Not to keep it open: the handler outlives what serves the device.
        let kernel = Arc::downgrade(&device);
        parts.handler.drop_pages_by(move |node, from| {
            if let Some(kernel) = kernel.upgrade() {
                // It fails if the kernel has no such inode, which is as good.
                let _ = rustix::io::write(&*kernel, &reply::stale_pages_from(node, from));
            }
        });
        let caching = Arc::new(Caching::new(ordinary, options.timeouts_chosen, in_order));
        Arc::new(Self {
            parts,
            in_flight,
            waiters: Arc::new(Semaphore::new(waiters)),
            device,
            caching,
            refuse_resent: AtomicBool::new(false),
        })
    }

    /// Requests that an earlier process did not answer may be what ended it: they get an error.
    pub(crate) fn refuse_resent(&self) {
        self.refuse_resent.store(true, Ordering::Relaxed);
    }

    pub(crate) fn handler(&self) -> &Handler<B> {
        &self.parts.handler
    }

    /// All those requests have been read.
    pub(crate) fn resumed(&self) {
        self.parts.handler.resumed();
    }

    /// Follows what other machines change, beside the requests; ends with the mount.
    pub(crate) fn follow_others(&self) -> Option<AbortOnDrop> {
        let events = self.parts.handler.watch()?;
        let handler = self.parts.handler.clone();
        let work = caching::follow(self.caching.clone(), handler, self.device.clone(), events);
        Some(AbortOnDrop(self.parts.runtime.spawn(work)))
    }

    /// A message that was read from the device.
    pub(crate) fn message(&self, device: &Arc<OwnedFd>, message: &[u8]) {
        let keep = |number, data: &[u8]| self.parts.handler.keep_bytes(number, data);
        let Some((head, operation)) = decode_message(message, keep) else {
            let bytes = message.len();
            tracing::warn!(bytes, "a message of the kernel is too short");
            return;
        };
        let respond = Responder::device(device.clone(), head.unique);
        self.request(&head, operation, respond);
    }

    /// A request that came by a ring, in parts.
    pub(crate) fn arrived(&self, head: &Head, fixed: &[u8], rest: &[u8], respond: Responder) {
        let fixed = fixed.get(..fixed_len(head.opcode));
        let operation = fixed.and_then(|fixed| Operation::decode(head.opcode, fixed, rest));
        self.request(head, operation, respond);
    }

    /// Starts one request. Blocks only while [`Gate`] is full.
    fn request(&self, head: &Head, operation: Option<Operation>, respond: Responder) {
        match operation {
            Some(Operation::Forget { nodes }) => {
                respond.keep_silent();
                let own = (head.opcode == op::FORGET).then_some(head.node);
                // Exact counts are not needed: inode ids are never reused, so a node that the kernel looks up again is
                // simply learned again.
                for node in nodes.into_iter().chain(own) {
                    self.parts.handler.forget(node);
                }
            }
            Some(Operation::Interrupt { unique }) => {
                if self.in_flight.interrupt(unique) {
                    respond.keep_silent();
                } else {
                    // If another thread is about to read that request, the kernel sends this one again.
                    respond.send(Reply::error(libc::EAGAIN));
                }
            }
            Some(_) if head.is_resent() && self.refuse_resent.load(Ordering::Relaxed) => {
                tracing::warn!(
                    opcode = head.opcode,
                    node = head.node,
                    "refused: it may be this request that ended the processes before this one"
                );
                respond.send(Reply::error(libc::EIO));
            }
            Some(operation) => self.serve(head, operation, respond),
            // Malformed: dropping the responder says EIO.
            None => {}
        }
    }

    /// Runs one request, fenced against panics, and sends what comes out.
    fn spawn<T, F>(&self, call: Call, work: F, encode: impl FnOnce(T) -> Reply + Send + 'static)
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send,
    {
        let finish = |outcome: std::result::Result<T, i32>, respond: Responder| {
            respond.send(outcome.map_or_else(Reply::error, encode));
        };
        self.run(call, work, finish, |_| {});
    }

    /// As [`Self::spawn`], for answers that the kernel may believe for a while.
    fn spawn_believed<T, F>(
        &self,
        call: Call,
        work: F,
        encode: impl FnOnce(T, &Believed<'_>) -> Reply + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send,
    {
        let (caching, since) = (self.caching.clone(), self.caching.now());
        let finish = move |outcome: std::result::Result<T, i32>, respond: Responder| {
            let believed = caching.believe(since);
            respond.send(outcome.map_or_else(Reply::error, |value| encode(value, &believed)));
        };
        self.run(call, work, finish, undo);
    }

    /// Runs one request, fenced against panics; `finish` sends the reply. `undo` gets what comes out after the program
    /// has been told that it was interrupted.
    fn run<T, F>(
        &self,
        call: Call,
        work: F,
        finish: impl FnOnce(std::result::Result<T, i32>, Responder) + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send,
    {
        let Call {
            operation,
            node,
            respond,
            scope,
        } = call;
        let pass = self.parts.gate.enter();
        let ticket = self.in_flight.begin(respond.unique(), operation, node);
        spawn_eager(&self.parts.runtime, async move {
            let numbered = async {
                match &scope {
                    Some(scope) => scope.run(work).await,
                    None => work.await,
                }
            };
            let mut work = pin!(outcome::fenced(operation, node, numbered));
            let outcome = tokio::select! {
                biased;
                outcome = &mut work => Some(outcome),
                () = ticket.flight.interrupted(PATIENCE) => None,
            };
            match outcome {
                Some(outcome) => finish(outcome, respond),
                None => {
                    respond.send(Reply::error(libc::EINTR));
                    // A change must not be torn, so it goes on to its end.
                    if let Ok(value) = work.await {
                        undo(value);
                    }
                }
            }
            drop((ticket, pass));
            // And the scope: only now may the numbers of its changes be forgotten.
        });
    }

    /// Runs a request that may wait for other programs as long as they like; an interrupt ends it at once, and really.
    fn spawn_waiting<T, F>(
        &self,
        call: Call,
        work: F,
        encode: impl FnOnce(T) -> Reply + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let Call {
            operation,
            node,
            respond,
            ..
        } = call;
        let Ok(place) = self.waiters.clone().try_acquire_owned() else {
            return respond.send(Reply::error(libc::ENOLCK));
        };
        let ticket = self
            .in_flight
            .begin_patient(respond.unique(), operation, node);
        self.parts.runtime.spawn(async move {
            let reply = tokio::select! {
                outcome = outcome::fenced(operation, node, work) => outcome.map_or_else(Reply::error, encode),
                () = ticket.flight.interrupted(Duration::ZERO) => Reply::error(libc::EINTR),
            };
            respond.send(reply);
            drop((ticket, place));
        });
    }
}

/// Reports requests that nobody answers, until the mount is gone.
async fn watch(in_flight: Weak<InFlight>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let Some(in_flight) = in_flight.upgrade() else {
            return;
        };
        in_flight.report_overdue(OVERDUE);
    }
}
