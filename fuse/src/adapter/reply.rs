//! What is sent for each outcome.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use emberfs_client::Attr;
use emberfs_proto::pb::StatFsReply;
use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, Notifier, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite,
};

use super::convert::{file_attr, file_type, fill_statfs, listed_attr};
use crate::handler::{DirItem, Opened};

/// A request's result as the kernel learns it.
pub(crate) type Outcome<T> = Result<T, Errno>;

/// What the kernel may do with an open file.
pub(crate) fn fopen_flags(opened: &Opened) -> FopenFlags {
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
pub(super) fn empty(reply: ReplyEmpty) -> impl FnOnce(Outcome<()>) + Send {
    move |outcome| match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Replies an entry or an error.
pub(super) fn entry(
    reply: ReplyEntry,
    attr_timeout: Duration,
    entry_timeout: Duration,
) -> impl FnOnce(Outcome<Attr>) + Send {
    move |outcome| match outcome {
        Ok(attr) => {
            let generation = Generation(attr.generation);
            reply.entry_with_ttls(&attr_timeout, &entry_timeout, &file_attr(&attr), generation);
        }
        Err(errno) => reply.error(errno),
    }
}

/// Replies attributes or an error.
pub(super) fn attributes(reply: ReplyAttr, timeout: Duration) -> impl FnOnce(Outcome<Attr>) + Send {
    move |outcome| match outcome {
        Ok(attr) => reply.attr(&timeout, &file_attr(&attr)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn data(reply: ReplyData) -> impl FnOnce(Outcome<Bytes>) + Send {
    move |outcome| match outcome {
        Ok(data) => reply.data(&data),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn written(reply: ReplyWrite, bytes: u32) -> impl FnOnce(Outcome<()>) + Send {
    move |outcome| match outcome {
        Ok(()) => reply.written(bytes),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn opened(
    reply: ReplyOpen,
    node: INodeNo,
    notifier: Arc<OnceLock<Notifier>>,
) -> impl FnOnce(Outcome<Opened>) + Send {
    move |outcome| match outcome {
        Ok(opened) => {
            if opened.attr_stale
                && let Some(notifier) = notifier.get()
            {
                // A negative offset: attributes only, so no page lock is waited for. It fails if
                // the kernel has no such inode cached, which is as good.
                let _ = notifier.inval_inode(node, -1, 0);
            }
            reply.opened(FileHandle(opened.handle), fopen_flags(&opened));
        }
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn created(
    reply: ReplyCreate,
    timeout: Duration,
) -> impl FnOnce(Outcome<(Attr, Opened)>) + Send {
    move |outcome| match outcome {
        Ok((attr, opened)) => reply.created(
            &timeout,
            &file_attr(&attr),
            Generation(attr.generation),
            FileHandle(opened.handle),
            fopen_flags(&opened),
        ),
        Err(errno) => reply.error(errno),
    }
}

/// As many entries as fit.
pub(super) fn listing(mut reply: ReplyDirectory) -> impl FnOnce(Outcome<Vec<DirItem>>) + Send {
    move |outcome| match outcome {
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
    }
}

/// As many entries as fit, each of which the kernel then knows as if it had looked it up.
pub(super) fn listing_with_attributes(
    mut reply: ReplyDirectoryPlus,
    timeout: Duration,
) -> impl FnOnce(Outcome<Vec<DirItem>>) + Send {
    move |outcome| match outcome {
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
    }
}

pub(super) fn usage(reply: ReplyStatfs) -> impl FnOnce(Outcome<StatFsReply>) + Send {
    move |outcome| match outcome {
        Ok(usage) => fill_statfs(&usage, reply),
        Err(errno) => reply.error(errno),
    }
}
