//! The classic transport: `/dev/fuse` through `fuser`.
//!
//! A device thread takes a request, copies what it borrows, and spawns it onto the runtime; the
//! task sends the reply. The device threads therefore never wait for a server, except when
//! [`gate::Gate`] has reached its limit, which is the bound on memory.
//!
//! Operations that EmberFS does not have are answered ENOSYS where the kernel remembers that and
//! stops asking: extended attributes (programs see EOPNOTSUPP), fallocate, copy_file_range and
//! lseek (the kernel does them itself or says EOPNOTSUPP), access (checked in the kernel from our
//! attributes), file locks (local to this machine).

mod convert;
mod gate;
mod groups;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use emberfs_client::{Creds, RenameFlags, Result, SetAttr};
use emberfs_proto::{Error, ErrorCode};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use futures::FutureExt;

use crate::MountOptions;
use crate::backend::Backend;
use crate::handler::{Handler, Opened, ROOT_NODE};
use convert::{file_attr, file_type, fill_statfs, listed_attr, time_set};
pub(crate) use gate::Gate;
use groups::Groups;

/// Largest read and write, bytes: what the kernel allows without raising `fs.fuse.max_pages_limit`.
const MAX_IO: u32 = 1 << 20;

/// Requests in flight, of all kinds. The kernel bounds the asynchronous ones lower still.
const MAX_IN_FLIGHT: usize = 4096;

/// Implements the transport's callbacks.
pub(crate) struct Adapter<B: Backend> {
    handler: Arc<Handler<B>>,
    runtime: tokio::runtime::Handle,
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
        notifier: Arc<OnceLock<Notifier>>,
        options: &MountOptions,
    ) -> Self {
        Self {
            handler,
            runtime,
            gate: Gate::new(MAX_IN_FLIGHT),
            groups: Groups::default(),
            notifier,
            attr_timeout: options.attr_timeout,
            entry_timeout: options.entry_timeout,
            max_background: options.max_background,
        }
    }

    /// Counts the requests in flight.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    fn creds(&self, request: &Request) -> Creds {
        let (uid, gid) = (request.uid(), request.gid());
        Creds {
            uid,
            gid,
            groups: self.groups.of(request.pid(), uid, gid),
        }
    }

    /// Runs one request; `reply` gets its outcome whatever happens, a panic included.
    fn spawn<T, F>(
        &self,
        operation: &'static str,
        node: INodeNo,
        work: F,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let pass = self.gate.enter();
        self.runtime.spawn(async move {
            let outcome = AssertUnwindSafe(work).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|panic| {
                let said = panic_message(&*panic);
                tracing::error!(operation, node = node.0, panic = said, "a request panicked");
                Err(Error::new(
                    ErrorCode::Internal,
                    format!("{operation} panicked: {said}"),
                ))
            });
            reply(outcome.map_err(|error| errno(operation, node, &error)));
            drop(pass);
        });
    }
}

/// The one place where an error becomes an errno and a line in the log.
fn errno(operation: &str, node: INodeNo, error: &Error) -> Errno {
    let number = match error.errno() {
        // Programs do not expect "try again" from a file.
        libc::EAGAIN => libc::EIO,
        number => number,
    };
    let fault = matches!(
        number,
        libc::EIO | libc::EPROTO | libc::ETIMEDOUT | libc::ENXIO | libc::ENOSPC | libc::EROFS
    );
    if fault {
        tracing::warn!(operation, node = node.0, %error, errno = number, "request failed");
    } else {
        tracing::debug!(operation, node = node.0, %error, errno = number, "request refused");
    }
    Errno::from_i32(number)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

fn owned(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn fopen_flags(opened: &Opened) -> FopenFlags {
    let chosen = [
        (opened.keep_cache, FopenFlags::FOPEN_KEEP_CACHE),
        (opened.direct, FopenFlags::FOPEN_DIRECT_IO),
        (opened.direct, FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES),
        // Nothing to flush at close: spares a request.
        (!opened.writable, FopenFlags::FOPEN_NOFLUSH),
    ];
    chosen
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(FopenFlags::empty(), |all, (_, flag)| all | flag)
}

/// Replies nothing or an error.
fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) + Send {
    move |outcome| match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Replies an entry or an error.
fn entry(
    reply: ReplyEntry,
    attr_timeout: Duration,
    entry_timeout: Duration,
) -> impl FnOnce(Result<emberfs_client::Attr, Errno>) + Send {
    move |outcome| match outcome {
        Ok(attr) => {
            let generation = Generation(attr.generation);
            reply.entry_with_ttls(&attr_timeout, &entry_timeout, &file_attr(&attr), generation);
        }
        Err(errno) => reply.error(errno),
    }
}

/// Replies attributes or an error.
fn attributes(
    reply: ReplyAttr,
    timeout: Duration,
) -> impl FnOnce(Result<emberfs_client::Attr, Errno>) + Send {
    move |outcome| match outcome {
        Ok(attr) => reply.attr(&timeout, &file_attr(&attr)),
        Err(errno) => reply.error(errno),
    }
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
        let reply = entry(reply, self.attr_timeout, self.entry_timeout);
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
        self.spawn("getattr", node, work, attributes(reply, self.attr_timeout));
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
        self.spawn("setattr", node, work, attributes(reply, self.attr_timeout));
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let work = async move { handler.readlink(&creds, node.0).await };
        self.spawn("readlink", node, work, move |outcome| match outcome {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        });
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
        let reply = entry(reply, self.attr_timeout, self.entry_timeout);
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
        let reply = entry(reply, self.attr_timeout, self.entry_timeout);
        self.spawn("mkdir", parent, work, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let work = async move { handler.unlink(&creds, parent.0, &name).await };
        self.spawn("unlink", parent, work, empty(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (handler, creds, name) = (self.handler.clone(), self.creds(request), owned(name));
        let work = async move { handler.rmdir(&creds, parent.0, &name).await };
        self.spawn("rmdir", parent, work, empty(reply));
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
        let reply = entry(reply, self.attr_timeout, self.entry_timeout);
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
        self.spawn("rename", parent, work, empty(reply));
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
        let reply = entry(reply, self.attr_timeout, self.entry_timeout);
        self.spawn("link", node, work, reply);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let notifier = self.notifier.clone();
        let work = async move { handler.open(&creds, node.0, flags.0).await };
        self.spawn("open", node, work, move |outcome| match outcome {
            Ok(opened) => {
                if opened.attr_stale
                    && let Some(notifier) = notifier.get()
                {
                    // A negative offset: attributes only, so no page lock is waited for. It fails
                    // if the kernel has no such inode cached, which is as good.
                    let _ = notifier.inval_inode(node, -1, 0);
                }
                reply.opened(FileHandle(opened.handle), fopen_flags(&opened));
            }
            Err(errno) => reply.error(errno),
        });
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
        self.spawn("create", parent, work, move |outcome| match outcome {
            Ok((attr, opened)) => reply.created(
                &timeout,
                &file_attr(&attr),
                Generation(attr.generation),
                FileHandle(opened.handle),
                fopen_flags(&opened),
            ),
            Err(errno) => reply.error(errno),
        });
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
        self.spawn("read", node, work, move |outcome| match outcome {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        });
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
        self.spawn("write", node, work, move |outcome| match outcome {
            Ok(()) => reply.written(written),
            Err(errno) => reply.error(errno),
        });
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
        self.spawn("flush", node, work, empty(reply));
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
        self.spawn("fsync", node, work, empty(reply));
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
        self.spawn("release", node, work, empty(reply));
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
        mut reply: ReplyDirectory,
    ) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let work = async move { handler.readdir(&creds, handle.0, offset, false).await };
        self.spawn("readdir", node, work, move |outcome| match outcome {
            Ok(items) => {
                for item in items {
                    let name = OsStr::from_bytes(&item.name);
                    if reply.add(INodeNo(item.node), item.cookie, file_type(item.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (handler, creds) = (self.handler.clone(), self.creds(request));
        let timeout = self.attr_timeout.min(self.entry_timeout);
        let work = async move { handler.readdir(&creds, handle.0, offset, true).await };
        self.spawn("readdirplus", node, work, move |outcome| match outcome {
            Ok(items) => {
                for item in items {
                    let (attr, generation) = listed_attr(&item);
                    let name = OsStr::from_bytes(&item.name);
                    let node = INodeNo(item.node);
                    if reply.add(node, item.cookie, name, &timeout, &attr, generation) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
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
        self.spawn(
            "statfs",
            INodeNo(ROOT_NODE),
            work,
            move |outcome| match outcome {
                Ok(usage) => fill_statfs(&usage, reply),
                Err(errno) => reply.error(errno),
            },
        );
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
