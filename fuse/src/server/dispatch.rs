//! Which operation of the kernel is which call of the handler, and how its outcome is encoded.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use emberfs_client::attr::AttrExt;
use emberfs_client::{Attr, Creds, NewMode, RenameFlags, Result, spawn_eager};
use emberfs_proto::ErrorCode;

use super::{Call, Responder, Server, groups};
use crate::backend::Backend;
use crate::caching::Believed;
use crate::handler::{Asked, DirItem, Handler, Opened, Step, Vanished, Written};
use crate::protocol::reply::{self, Reply, fopen_flags};
use crate::protocol::request::{Head, Operation};

impl<B: Backend> Server<B> {
    pub(super) fn serve(&self, head: &Head, operation: Operation, respond: Responder) {
        use Operation as Op;
        let (handler, node) = (self.parts.handler.clone(), head.node);
        let asked = asked(head);
        match operation {
            Op::GetAttr => {
                let since = self.caching.now();
                if let Some((attr, left)) = handler.known_directory(node) {
                    let believed = self.caching.believe(since);
                    let lifetime = believed.attr(attr.inode).min(left);
                    return respond.send(reply::attributes(&attr, attr.blocks(), lifetime));
                }
                let work = async move { handler.getattr(node).await };
                let encode = |(attr, blocks): (Attr, u64), believed: &Believed<'_>| {
                    reply::attributes(&attr, blocks, believed.attr(attr.inode))
                };
                self.spawn_believed(call("getattr", node, respond), work, encode, |_| {});
            }
            Op::Open { flags } => {
                let creds = creds(head);
                let device = self.device.clone();
                let opener = handler.clone();
                let work = async move { opener.open_once(asked, &creds, node, flags).await };
                let encode =
                    move |opened: Opened, _: &Believed<'_>| reply_opened(node, &opened, &device);
                let undo = move |opened: Opened| release(handler, opened.handle);
                self.spawn_believed(self.change("open", head, respond), work, encode, undo);
            }
            Op::Read {
                handle,
                offset,
                size,
            } => {
                let work = async move { handler.read(handle, offset, size as usize).await };
                self.spawn(call("read", node, respond), work, Reply::data);
            }
            Op::Write {
                handle,
                offset,
                data,
                kill_ids,
                append,
            } => {
                let how = (kill_ids.then(|| creds(head)), append);
                let sent = data.clone();
                let work =
                    async move { handler.write_once(asked, handle, offset, sent, how).await };
                self.spawn_write(call("write", node, respond), data, work);
            }
            Op::Flush { handle, owner } => {
                let work = async move { handler.flush(handle, owner).await };
                self.spawn(call("flush", node, respond), work, empty);
            }
            Op::FSync { handle } => {
                let work = async move { handler.fsync(handle).await };
                self.spawn(call("fsync", node, respond), work, empty);
            }
            Op::Release { handle, flock } => {
                let work = async move { handler.release_once(asked, handle, flock).await };
                self.spawn(call("release", node, respond), work, empty);
            }
            // The kernel has looked the directory up and checked its permissions.
            Op::OpenDir => {
                let handle = self.parts.handler.opendir_once(asked, node);
                respond.send(reply::opened(handle, 0));
            }
            Op::ReadDir {
                handle,
                offset,
                size,
                plus,
            } => {
                let operation = if plus { "readdirplus" } else { "readdir" };
                let work = async move { handler.readdir(handle, offset, plus).await };
                let encode = move |items: Vec<DirItem>, believed: &Believed<'_>| {
                    let lifetimes = |item: &DirItem| believed.listed(node, item);
                    reply::listing(&items, size, plus.then_some(&lifetimes))
                };
                self.spawn_believed(call(operation, node, respond), work, encode, |_| {});
            }
            Op::ReleaseDir { handle } => {
                self.parts.handler.releasedir(handle);
                respond.send(Reply::empty());
            }
            Op::FSyncDir { handle } => {
                let work = async move { handler.sync_directory(handle).await };
                self.spawn(call("fsyncdir", node, respond), work, empty);
            }
            Op::Destroy => respond.send(Reply::empty()),
            Op::StatFs => {
                let creds = creds(head);
                let work = async move { handler.statfs(&creds, node).await };
                let encode = |usage| reply::usage(&usage);
                self.spawn(call("statfs", node, respond), work, encode);
            }
            Op::GetLock { lock } => {
                let work = async move { handler.test_lock(node, lock).await };
                let encode = |found: Option<_>| reply::lock(found.as_ref());
                self.spawn(call("getlk", node, respond), work, encode);
            }
            Op::SetLock { lock, wait } => {
                let work = async move { handler.set_lock(node, lock, wait).await };
                if wait {
                    self.spawn_waiting(call("setlkw", node, respond), work, empty);
                } else {
                    self.spawn(call("setlk", node, respond), work, empty);
                }
            }
            Op::Allocate {
                handle,
                offset,
                len,
                mode,
            } => {
                let creds = creds(head);
                let work = async move { handler.allocate(&creds, handle, offset, len, mode).await };
                self.spawn(call("fallocate", node, respond), work, empty);
            }
            Op::Seek {
                handle,
                offset,
                whence,
            } => {
                let work = async move { handler.seek(handle, offset, whence).await };
                self.spawn(call("lseek", node, respond), work, reply::offset);
            }
            Op::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                len,
            } => {
                let (from, to) = ((from, from_offset), (to, to_offset));
                let work = async move { handler.copy_range(from, to, len).await };
                // At most what one copy takes, see there.
                let encode = |copied| reply::written(copied as u32);
                self.spawn(call("copy_file_range", node, respond), work, encode);
            }
            Op::Refused(errno) => respond.send(Reply::error(errno)),
            names => self.serve_names(head, names, respond),
        }
    }

    /// A name that is looked up. Nothing that is known here needs to know who asks: the kernel lets nobody look who may not.
    fn serve_lookup(&self, head: &Head, name: Bytes, respond: Responder) {
        let (handler, node) = (self.parts.handler.clone(), head.node);
        let since = self.caching.now();
        if let Some(left) = handler.absent_for(node, &name) {
            let believed = self.caching.believe(since);
            return respond.send(reply::no_entry(believed.name(node).min(left)));
        }
        let Step { found, fetch } = handler.step(head.pid, node, &name);
        if let Some((attr, left)) = found {
            let believed = self.caching.believe(since);
            let lifetimes = believed.entry(node, &attr).at_most(left);
            respond.send(reply::entry(&attr, lifetimes));
        } else {
            let (finder, creds) = (handler.clone(), creds(head));
            let work = async move { finder.lookup(&creds, node, &name).await };
            self.spawn_lookup(call("lookup", node, respond), work);
        }
        if let Some(fetch) = fetch {
            let work = async move { handler.fetch_ahead(fetch).await };
            spawn_eager(&self.parts.runtime, work);
        }
    }

    /// Operations on names and attributes, all of which need to know who asks.
    fn serve_names(&self, head: &Head, operation: Operation, respond: Responder) {
        use Operation as Op;
        let handler = self.parts.handler.clone();
        let (node, asked) = (head.node, asked(head));
        if let Op::Lookup { name } = operation {
            return self.serve_lookup(head, name, respond);
        }
        let creds = creds(head);
        match operation {
            Op::SetAttr { changes, handle } => {
                let work = async move { handler.setattr(&creds, node, changes, handle).await };
                self.spawn_attributes(self.change("setattr", head, respond), work);
            }
            Op::ReadLink => {
                let work = async move { handler.readlink(&creds, node).await };
                let encode = |target: Bytes| Reply::data(target);
                self.spawn(call("readlink", node, respond), work, encode);
            }
            Op::Symlink { name, target } => {
                let work = async move { handler.symlink(&creds, node, &name, &target).await };
                self.spawn_entry(self.change("symlink", head, respond), work);
            }
            Op::MkNod {
                name,
                mode,
                umask,
                rdev,
            } => {
                let mode = NewMode { mode, umask };
                let work = async move { handler.mknod(&creds, node, &name, mode, rdev).await };
                self.spawn_entry(self.change("mknod", head, respond), work);
            }
            Op::MkDir { name, mode, umask } => {
                let mode = NewMode { mode, umask };
                let maker = handler.clone();
                let work = async move { maker.mkdir(&creds, node, &name, mode).await };
                self.spawn_mkdir(self.change("mkdir", head, respond), handler, work);
            }
            Op::Unlink { name } => {
                let work = async move { handler.unlink(&creds, node, &name).await };
                self.spawn(self.change("unlink", head, respond), work, empty);
            }
            Op::RmDir { name } => {
                let work = async move { handler.rmdir(&creds, node, &name).await };
                self.spawn(self.change("rmdir", head, respond), work, empty);
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
                self.spawn_rename(self.change("rename", head, respond), work);
            }
            Op::Link { node: old, name } => {
                let work = async move { handler.link(&creds, old, node, &name).await };
                self.spawn_entry(self.change("link", head, respond), work);
            }
            Op::Create {
                name,
                mode,
                umask,
                flags,
            } => {
                let (creator, mode) = (handler.clone(), NewMode { mode, umask });
                let work = async move {
                    let create = creator.create(&creds, node, &name, mode, flags);
                    creator.create_once(asked, create).await
                };
                self.spawn_creating(self.change("create", head, respond), handler, work);
            }
            Op::TmpFile { mode, umask, flags } => {
                let (creator, mode) = (handler.clone(), NewMode { mode, umask });
                let work = async move {
                    let create = creator.create_unnamed(&creds, node, mode, flags);
                    creator.create_once(asked, create).await
                };
                self.spawn_creating(self.change("tmpfile", head, respond), handler, work);
            }
            Op::SetXattr { name, value, flags } => {
                let set =
                    async move { handler.set_xattr(&creds, node, &name, &value, flags).await };
                self.spawn(self.change("setxattr", head, respond), set, empty);
            }
            Op::GetXattr { name, size } => {
                let work = async move { handler.get_xattr(&creds, node, &name).await };
                let encode = move |value| reply::sized(value, size);
                self.spawn(call("getxattr", node, respond), work, encode);
            }
            Op::ListXattr { size } => {
                let work = async move { handler.list_xattr(&creds, node).await };
                let encode = move |names| reply::sized(names, size);
                self.spawn(call("listxattr", node, respond), work, encode);
            }
            Op::RemoveXattr { name } => {
                let work = async move { handler.remove_xattr(&creds, node, &name).await };
                self.spawn(self.change("removexattr", head, respond), work, empty);
            }
            // All others are served above; the responder says EIO.
            _ => {}
        }
    }
}

impl<B: Backend> Server<B> {
    /// A call that changes names or attributes.
    fn change(&self, operation: &'static str, head: &Head, respond: Responder) -> Call {
        Call {
            scope: self.parts.handler.scope(head.number()),
            ..call(operation, head.node, respond)
        }
    }

    /// Runs a write of `data`.
    fn spawn_write<F>(&self, call: Call, data: Bytes, work: F)
    where
        F: Future<Output = Result<Written>> + Send + 'static,
    {
        let (node, device) = (call.node, self.device.clone());
        let finish = move |outcome: std::result::Result<Written, i32>, respond: Responder| {
            if outcome.as_ref().is_ok_and(|written| written.attr_stale) {
                forget_attributes(node, &device);
            }
            let stale = outcome.as_ref().is_ok_and(|written| written.pages_stale);
            let len = data.len() as u32;
            let errno = outcome.as_ref().err().copied();
            respond.send(errno.map_or_else(|| reply::written(len), Reply::error));
            // Until now a successor of this process had to find where they went.
            drop((data, outcome));
            if stale {
                // Only now: the kernel holds its pages until the reply.
                tokio::task::spawn_blocking(move || {
                    let _ = rustix::io::write(&*device, &reply::stale_pages(node));
                });
            }
        };
        self.run(call, work, finish, |_| {});
    }

    /// Runs a rename, after which the kernel may have to forget the new name.
    fn spawn_rename<F>(&self, call: Call, work: F)
    where
        F: Future<Output = Result<Option<Vanished>>> + Send + 'static,
    {
        let device = self.device.clone();
        let finish = move |outcome: std::result::Result<Option<Vanished>, i32>,
                           respond: Responder| {
            let (reply, vanished) = match outcome {
                Ok(vanished) => (Reply::empty(), vanished),
                Err(errno) => (Reply::error(errno), None),
            };
            respond.send(reply);
            if let Some(Vanished { parent, name }) = vanished {
                // Only now: the kernel holds both directories until the reply.
                tokio::task::spawn_blocking(move || {
                    let _ = rustix::io::write(&*device, &reply::stale_name(parent, &name));
                });
            }
        };
        self.run(call, work, finish, |_| {});
    }

    /// Runs what answers a node's attributes.
    fn spawn_attributes<F>(&self, call: Call, work: F)
    where
        F: Future<Output = Result<Attr>> + Send + 'static,
    {
        let encode = |attr: Attr, believed: &Believed<'_>| {
            reply::attributes(&attr, attr.blocks(), believed.attr_of(&attr))
        };
        self.spawn_believed(call, work, encode, |_| {});
    }

    /// Runs what answers the meaning of a name in the call's node.
    fn spawn_entry<F>(&self, call: Call, work: F)
    where
        F: Future<Output = Result<Attr>> + Send + 'static,
    {
        let parent = call.node;
        let encode = move |attr: Attr, believed: &Believed<'_>| {
            reply::entry(&attr, believed.entry(parent, &attr))
        };
        self.spawn_believed(call, work, encode, |_| {});
    }

    /// As [`Self::spawn_entry`], of a new directory.
    fn spawn_mkdir<F>(&self, call: Call, handler: Arc<Handler<B>>, work: F)
    where
        F: Future<Output = Result<Attr>> + Send + 'static,
    {
        let (parent, since) = (call.node, Instant::now());
        let encode = move |attr: Attr, believed: &Believed<'_>| {
            if !believed.name(attr.inode).is_zero() {
                handler.made_empty(attr.inode, since);
            }
            reply::entry(&attr, believed.entry(parent, &attr))
        };
        self.spawn_believed(call, work, encode, |_| {});
    }

    /// As [`Self::spawn_entry`]; that there is no such name may be believed as well.
    fn spawn_lookup<F>(&self, call: Call, work: F)
    where
        F: Future<Output = Result<Attr>> + Send + 'static,
    {
        let parent = call.node;
        let found = async move {
            match work.await {
                Ok(attr) => Ok(Some(attr)),
                Err(error) if error.code == ErrorCode::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        let encode = move |found: Option<Attr>, believed: &Believed<'_>| match found {
            Some(attr) => reply::entry(&attr, believed.entry(parent, &attr)),
            None if believed.watched() => reply::no_entry(believed.name(parent)),
            None => Reply::error(libc::ENOENT),
        };
        self.spawn_believed(call, found, encode, |_| {});
    }

    /// Runs what makes and opens a file in the call's node.
    fn spawn_creating<F>(&self, call: Call, handler: Arc<Handler<B>>, work: F)
    where
        F: Future<Output = Result<(Attr, Opened)>> + Send + 'static,
    {
        let parent = call.node;
        let encode = move |(attr, opened): (Attr, Opened), believed: &Believed<'_>| {
            let bits = fopen_flags(&opened).bits();
            let lifetimes = believed.entry(parent, &attr);
            reply::created(&attr, lifetimes, opened.handle, bits)
        };
        let undo = move |(_, opened): (Attr, Opened)| release(handler, opened.handle);
        self.spawn_believed(call, work, encode, undo);
    }
}

fn call(operation: &'static str, node: u64, respond: Responder) -> Call {
    Call {
        operation,
        node,
        respond,
        scope: None,
    }
}

fn creds(head: &Head) -> Creds {
    groups::creds(head.pid, head.uid, head.gid)
}

fn asked(head: &Head) -> Asked {
    Asked {
        number: head.number(),
        again: head.is_resent(),
    }
}

/// Gives back a file that was opened for a program which has gone on without it.
fn release<B: Backend>(handler: Arc<Handler<B>>, handle: u64) {
    tokio::spawn(async move {
        if let Err(error) = handler.release(handle, None).await {
            tracing::warn!(%error, "a file that was opened in vain could not be closed");
        }
    });
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

/// Makes the kernel ask anew for a node's attributes.
fn forget_attributes(node: u64, device: &OwnedFd) {
    // It fails if the kernel has no such inode cached, which is as good.
    let _ = rustix::io::write(device, &reply::stale_attributes(node));
}

/// The kernel forgets stale attributes before it learns that the file is open.
fn reply_opened(node: u64, opened: &Opened, device: &OwnedFd) -> Reply {
    if opened.attr_stale {
        forget_attributes(node, device);
    }
    reply::opened(opened.handle, fopen_flags(opened).bits())
}
