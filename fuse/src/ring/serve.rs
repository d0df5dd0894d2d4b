//! From a decoded request to its reply: the same answers as the classic transport gives.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_client::{Creds, RenameFlags, Result};
use fuser::INodeNo;

use super::queue::Return;
use super::reply::{self, Lifetimes, Reply};
use super::request::{Head, Operation};
use crate::MountOptions;
use crate::adapter::{Gate, Groups, fenced, fopen_flags};
use crate::backend::Backend;
use crate::handler::{Handler, Opened};

/// Where a reply goes.
enum Target {
    Device(Arc<OwnedFd>),
    Ring(Return),
}

/// Sends one reply; dropped without one it sends EIO, so that no program waits for ever.
pub(super) struct Responder {
    unique: u64,
    target: Option<Target>,
}

impl Responder {
    /// Replies by writing to the device.
    pub(super) fn device(device: Arc<OwnedFd>, unique: u64) -> Self {
        Self {
            unique,
            target: Some(Target::Device(device)),
        }
    }

    /// Replies by way of a queue's entry.
    pub(super) fn ring(to: Return, unique: u64) -> Self {
        Self {
            unique,
            target: Some(Target::Ring(to)),
        }
    }

    pub(super) fn send(mut self, reply: Reply) {
        self.finish(reply);
    }

    fn finish(&mut self, reply: Reply) {
        match self.target.take() {
            Some(Target::Device(device)) => {
                let header = reply.header(self.unique);
                let parts = [
                    std::io::IoSlice::new(&header),
                    std::io::IoSlice::new(&reply.data),
                ];
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

/// Serves the requests of all queues and of the device.
pub(super) struct Server<B: Backend> {
    handler: Arc<Handler<B>>,
    runtime: tokio::runtime::Handle,
    gate: Arc<Gate>,
    groups: Groups,
    /// For messages to the kernel that answer no request.
    device: Arc<OwnedFd>,
    ttl: Lifetimes,
}

impl<B: Backend> Server<B> {
    pub(super) fn new(
        handler: Arc<Handler<B>>,
        runtime: tokio::runtime::Handle,
        gate: Arc<Gate>,
        device: Arc<OwnedFd>,
        options: &MountOptions,
    ) -> Self {
        Self {
            handler,
            runtime,
            gate,
            groups: Groups::default(),
            device,
            ttl: Lifetimes {
                entry: options.entry_timeout,
                attr: options.attr_timeout,
            },
        }
    }

    fn creds(&self, head: &Head) -> Creds {
        self.groups.creds(head.pid, head.uid, head.gid)
    }

    /// Starts one request. Blocks only while [`Gate`] is full.
    pub(super) fn serve(&self, head: &Head, operation: Operation, respond: Responder) {
        use Operation as Op;
        let (handler, node, ttl) = (self.handler.clone(), head.node, self.ttl);
        match operation {
            Op::GetAttr => {
                let work = async move { handler.getattr(node).await };
                let encode = move |attr| reply::attributes(&attr, ttl.attr);
                self.spawn("getattr", node, respond, work, encode);
            }
            Op::Open { flags } => {
                let creds = self.creds(head);
                let device = self.device.clone();
                let work = async move { handler.open(&creds, node, flags).await };
                let encode = move |opened| reply_opened(node, &opened, &device);
                self.spawn("open", node, respond, work, encode);
            }
            Op::Read {
                handle,
                offset,
                size,
            } => {
                let work = async move { handler.read(handle, offset, size as usize).await };
                self.spawn("read", node, respond, work, Reply::data);
            }
            Op::Write {
                handle,
                offset,
                data,
            } => {
                let written = data.len() as u32;
                let work = async move { handler.write(handle, offset, data).await };
                let encode = move |()| reply::written(written);
                self.spawn("write", node, respond, work, encode);
            }
            Op::Flush { handle } => {
                let work = async move { handler.flush(handle).await };
                self.spawn("flush", node, respond, work, empty);
            }
            Op::FSync { handle } => {
                let work = async move { handler.fsync(handle).await };
                self.spawn("fsync", node, respond, work, empty);
            }
            Op::Release { handle } => {
                let work = async move { handler.release(handle).await };
                self.spawn("release", node, respond, work, empty);
            }
            // The kernel has looked the directory up and checked its permissions.
            Op::OpenDir => respond.send(reply::opened(self.handler.opendir(node), 0)),
            Op::ReadDir {
                handle,
                offset,
                size,
                plus,
            } => {
                let creds = self.creds(head);
                let operation = if plus { "readdirplus" } else { "readdir" };
                let lifetimes = plus.then_some(ttl.shorter());
                let work = async move { handler.readdir(&creds, handle, offset, plus).await };
                let encode = move |items: Vec<_>| reply::listing(&items, size, lifetimes);
                self.spawn(operation, node, respond, work, encode);
            }
            Op::ReleaseDir { handle } => {
                self.handler.releasedir(handle);
                respond.send(Reply::empty());
            }
            Op::FSyncDir | Op::Destroy => respond.send(Reply::empty()),
            Op::StatFs => {
                let creds = self.creds(head);
                let work = async move { handler.statfs(&creds).await };
                let encode = |usage| reply::usage(&usage);
                self.spawn("statfs", node, respond, work, encode);
            }
            Op::Refused(errno) => respond.send(Reply::error(errno)),
            // Never comes with a reply to send, see `Self::forget`.
            Op::Forget { .. } => {}
            names => self.serve_names(head, names, respond),
        }
    }

    /// Exact counts are not needed: inode ids are never reused, so a node that the kernel looks up
    /// again is simply learned again.
    pub(super) fn forget(&self, nodes: &[u64]) {
        for &node in nodes {
            self.handler.forget(node);
        }
    }

    /// Operations on names and attributes, all of which need to know who asks.
    fn serve_names(&self, head: &Head, operation: Operation, respond: Responder) {
        use Operation as Op;
        let (handler, creds) = (self.handler.clone(), self.creds(head));
        let (node, ttl) = (head.node, self.ttl);
        let entry = move |attr| reply::entry(&attr, ttl);
        match operation {
            Op::Lookup { name } => {
                let work = async move { handler.lookup(&creds, node, &name).await };
                self.spawn("lookup", node, respond, work, entry);
            }
            Op::SetAttr { changes, handle } => {
                let work = async move { handler.setattr(&creds, node, changes, handle).await };
                let encode = move |attr| reply::attributes(&attr, ttl.attr);
                self.spawn("setattr", node, respond, work, encode);
            }
            Op::ReadLink => {
                let work = async move { handler.readlink(&creds, node).await };
                self.spawn("readlink", node, respond, work, |target: Bytes| {
                    Reply::data(target)
                });
            }
            Op::Symlink { name, target } => {
                let work = async move { handler.symlink(&creds, node, &name, &target).await };
                self.spawn("symlink", node, respond, work, entry);
            }
            Op::MkNod { name, mode, rdev } => {
                let work = async move { handler.mknod(&creds, node, &name, mode, rdev).await };
                self.spawn("mknod", node, respond, work, entry);
            }
            Op::MkDir { name, mode } => {
                let work = async move { handler.mkdir(&creds, node, &name, mode).await };
                self.spawn("mkdir", node, respond, work, entry);
            }
            Op::Unlink { name } => {
                let work = async move { handler.unlink(&creds, node, &name).await };
                self.spawn("unlink", node, respond, work, empty);
            }
            Op::RmDir { name } => {
                let work = async move { handler.rmdir(&creds, node, &name).await };
                self.spawn("rmdir", node, respond, work, empty);
            }
            Op::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => {
                let Some(flags) = rename_flags(flags) else {
                    return respond.send(Reply::error(libc::EINVAL));
                };
                let work = async move {
                    let (from, to) = ((node, &*name), (new_parent, &*new_name));
                    handler.rename(&creds, from, to, flags).await
                };
                self.spawn("rename", node, respond, work, empty);
            }
            Op::Link { node: old, name } => {
                let work = async move { handler.link(&creds, old, node, &name).await };
                self.spawn("link", old, respond, work, entry);
            }
            Op::Create { name, mode, flags } => {
                let work = async move { handler.create(&creds, node, &name, mode, flags).await };
                let encode = move |(attr, opened): (_, Opened)| {
                    let bits = fopen_flags(&opened).bits();
                    reply::created(&attr, ttl.shorter(), opened.handle, bits)
                };
                self.spawn("create", node, respond, work, encode);
            }
            // All others are served above; the responder says EIO.
            _ => {}
        }
    }

    /// Runs one request, fenced against panics, and sends what comes out.
    fn spawn<T, F>(
        &self,
        operation: &'static str,
        node: u64,
        respond: Responder,
        work: F,
        encode: impl FnOnce(T) -> Reply + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let pass = self.gate.enter();
        self.runtime.spawn(async move {
            let outcome = fenced(operation, INodeNo(node), work).await;
            let reply = match outcome {
                Ok(value) => encode(value),
                Err(errno) => Reply::error(errno.into()),
            };
            respond.send(reply);
            drop(pass);
        });
    }
}

fn empty((): ()) -> Reply {
    Reply::empty()
}

fn rename_flags(flags: u32) -> Option<RenameFlags> {
    let known = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE;
    (flags & !known == 0).then_some(RenameFlags {
        no_replace: flags & libc::RENAME_NOREPLACE != 0,
        exchange: flags & libc::RENAME_EXCHANGE != 0,
    })
}

/// The kernel forgets stale attributes before it learns that the file is open.
fn reply_opened(node: u64, opened: &Opened, device: &OwnedFd) -> Reply {
    if opened.attr_stale {
        // It fails if the kernel has no such inode cached, which is as good.
        let _ = rustix::io::write(device, &reply::stale_attributes(node));
    }
    reply::opened(opened.handle, fopen_flags(opened).bits())
}
