//! The classic transport: `/dev/fuse` through `fuser`. The [`crate::ring`] transport shares its
//! parts that are not about the transport.
//!
//! A device thread takes a request, copies what it borrows, and spawns it onto the runtime; the
//! task sends the reply. The device threads therefore never wait for a server, except when
//! [`gate::Gate`] has reached its limit, which is the bound on memory.
//!
//! Operations that EmberFS does not have are answered ENOSYS where the kernel remembers that and
//! stops asking: extended attributes (programs see EOPNOTSUPP), fallocate, copy_file_range and
//! lseek (the kernel does them itself or says EOPNOTSUPP), access (checked in the kernel from our
//! attributes), file locks (local to this machine).

pub(crate) mod convert;
mod gate;
mod groups;
mod reply;
mod spawn;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use emberfs_client::{Attr, Creds, RenameFlags, SetAttr};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents,
    PollFlags, PollNotifier, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::MountOptions;
use crate::backend::Backend;
use crate::handler::{Handler, ROOT_NODE};
use convert::time_set;
pub(crate) use gate::Gate;
pub(crate) use groups::Groups;
use reply::Outcome;
pub(crate) use reply::fopen_flags;
pub(crate) use spawn::fenced;

/// Largest read and write, bytes: what the kernel allows without raising `fs.fuse.max_pages_limit`.
pub(crate) const MAX_IO: u32 = 1 << 20;

/// Requests in flight, of all kinds. The kernel bounds the asynchronous ones lower still.
pub(crate) const MAX_IN_FLIGHT: usize = 4096;

/// Implements the transport's callbacks.
pub(crate) struct Adapter<B: Backend> {
    handler: Arc<Handler<B>>,
    runtime: tokio::runtime::Handle,
    /// Counts the requests in flight.
    gate: Arc<Gate>,
    groups: Groups,
    /// Set once the session exists; requests cannot come earlier.
    notifier: Arc<OnceLock<Notifier>>,
    attr_timeout: Duration,
    entry_timeout: Duration,
    max_background: u16,
}

impl<B: Backend> Adapter<B> {
    pub(crate) fn new(
        handler: Arc<Handler<B>>,
        runtime: tokio::runtime::Handle,
        gate: Arc<Gate>,
        notifier: Arc<OnceLock<Notifier>>,
        options: &MountOptions,
    ) -> Self {
        Self {
            handler,
            runtime,
            gate,
            groups: Groups::default(),
            notifier,
            attr_timeout: options.attr_timeout,
            entry_timeout: options.entry_timeout,
            max_background: options.max_background,
        }
    }

    fn creds(&self, request: &Request) -> Creds {
        self.groups
            .creds(request.pid(), request.uid(), request.gid())
    }

    fn entry_reply(&self, reply: ReplyEntry) -> impl FnOnce(Outcome<Attr>) + Send + use<B> {
        reply::entry(reply, self.attr_timeout, self.entry_timeout)
    }
}

fn owned(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

impl<B: Backend> Filesystem for Adapter<B> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel lacks a FUSE capability");
            }
        }
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(self.max_background);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let work = async move { handler.lookup(&creds, parent.0, &name).await };
        let reply = self.entry_reply(reply);
        self.spawn("lookup", parent, work, reply);
    }

    fn forget(&self, _request: &Request, node: INodeNo, _lookups: u64) {
        // Exact counts are not needed: inode ids are never reused, so a node that the kernel looks
        // up again is simply learned again.
        self.handler.forget(node.0);
    }

    fn getattr(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let handler = self.handler.clone();
        let work = async move { handler.getattr(node.0).await };
        self.spawn(
            "getattr",
            node,
            work,
            reply::attributes(reply, self.attr_timeout),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let (atime, mtime) = (atime.map(time_set), mtime.map(time_set));
        let changes = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let handle = handle.map(|handle| handle.0);
        let work = async move { handler.setattr(&creds, node.0, changes, handle).await };
        self.spawn(
            "setattr",
            node,
            work,
            reply::attributes(reply, self.attr_timeout),
        );
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let work = async move { handler.readlink(&creds, node.0).await };
        self.spawn("readlink", node, work, reply::data(reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let work = async move { handler.mknod(&creds, parent.0, &name, mode, rdev).await };
        let reply = self.entry_reply(reply);
        self.spawn("mknod", parent, work, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let work = async move { handler.mkdir(&creds, parent.0, &name, mode).await };
        let reply = self.entry_reply(reply);
        self.spawn("mkdir", parent, work, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let work = async move { handler.unlink(&creds, parent.0, &name).await };
        self.spawn("unlink", parent, work, reply::empty(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let work = async move { handler.rmdir(&creds, parent.0, &name).await };
        self.spawn("rmdir", parent, work, reply::empty(reply));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let target = owned(target.as_os_str());
        let work = async move { handler.symlink(&creds, parent.0, &name, &target).await };
        let reply = self.entry_reply(reply);
        self.spawn("symlink", parent, work, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let known = fuser::RenameFlags::RENAME_NOREPLACE | fuser::RenameFlags::RENAME_EXCHANGE;
        if !known.contains(flags) {
            reply.error(Errno::EINVAL);
            return;
        }
        let flags = RenameFlags {
            no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        };
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let (name, new_name) = (owned(name), owned(new_name));
        let work = async move {
            let (from, to) = ((parent.0, &*name), (new_parent.0, &*new_name));
            handler.rename(&creds, from, to, flags).await
        };
        self.spawn("rename", parent, work, reply::empty(reply));
    }

    fn link(
        &self,
        request: &Request,
        node: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(new_name));
        let work = async move { handler.link(&creds, node.0, new_parent.0, &name).await };
        let reply = self.entry_reply(reply);
        self.spawn("link", node, work, reply);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let notifier = self.notifier.clone();
        let work = async move { handler.open(&creds, node.0, flags.0).await };
        self.spawn("open", node, work, reply::opened(reply, node, notifier));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        // The reply has one lifetime for both.
        let timeout = self.attr_timeout.min(self.entry_timeout);
        let work = async move { handler.create(&creds, parent.0, &name, mode, flags).await };
        self.spawn("create", parent, work, reply::created(reply, timeout));
    }

    fn read(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handler = self.handler.clone();
        let work = async move { handler.read(handle.0, offset, size as usize).await };
        self.spawn("read", node, work, reply::data(reply));
    }

    fn write(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The thread's buffer is reused for its next request.
        let (handler, data) = (self.handler.clone(), Bytes::copy_from_slice(data));
        let written = data.len() as u32;
        let work = async move { handler.write(handle.0, offset, data).await };
        self.spawn("write", node, work, reply::written(reply, written));
    }

    fn flush(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let handler = self.handler.clone();
        let work = async move { handler.flush(handle.0).await };
        self.spawn("flush", node, work, reply::empty(reply));
    }

    fn fsync(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let handler = self.handler.clone();
        let work = async move { handler.fsync(handle.0).await };
        self.spawn("fsync", node, work, reply::empty(reply));
    }

    fn release(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let handler = self.handler.clone();
        let work = async move { handler.release(handle.0).await };
        self.spawn("release", node, work, reply::empty(reply));
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel has looked the directory up and checked its permissions.
        reply.opened(
            FileHandle(self.handler.opendir(node.0)),
            FopenFlags::empty(),
        );
    }

    fn readdir(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let work = async move { handler.readdir(&creds, handle.0, offset, false).await };
        self.spawn("readdir", node, work, reply::listing(reply));
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let timeout = self.attr_timeout.min(self.entry_timeout);
        let work = async move { handler.readdir(&creds, handle.0, offset, true).await };
        self.spawn(
            "readdirplus",
            node,
            work,
            reply::listing_with_attributes(reply, timeout),
        );
    }

    fn releasedir(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handler.releasedir(handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Every change of names was durable before it was answered.
        reply.ok();
    }

    fn statfs(&self, request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let work = async move { handler.statfs(&creds).await };
        self.spawn("statfs", INodeNo(ROOT_NODE), work, reply::usage(reply));
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
