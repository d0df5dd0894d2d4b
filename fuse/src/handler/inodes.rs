//! What the kernel has been told about each inode, and what it may still believe.
//!
//! The kernel caches attributes for `attr_timeout` and pages until it is told otherwise. Three
//! questions are answered from here:
//! - **May cached pages survive this open?** Only if the server's stamp (size, times, truncate
//!   epoch) is the one under which the pages were read. A stamp counts only after the kernel has
//!   acted on the open that brought it, which the first request on that handle proves: of two opens
//!   that race, none keeps pages that the other is about to drop.
//! - **Is this size believable?** Within one truncate epoch a file only grows. An answer that was
//!   overtaken by a local write would make the kernel cut its own pages, so sizes never go back
//!   within an epoch.
//! - **Has something changed since a directory page was fetched?** A clock counts changes by this machine, and those by
//!   others that it hears of; listings compare it with the time of their fetch.
//!
//! A write of this mount moves the stamp along, as NFS clients do: if another machine wrote while
//! the file was open for writing here, that is concurrent sharing, which close-to-open excludes.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::atomic::{self, AtomicU64};
use std::time::{Duration, Instant};

use emberfs_client::{Attr, Creds, MAX_EARLY_READ};
use emberfs_proto::pb::{FileKind, Time};
use parking_lot::Mutex;

#[cfg(test)]
mod tests;

/// Locks, so that requests of different files do not meet.
const SHARDS: usize = 32;

/// Inodes remembered per shard; beyond it the closed ones are dropped, which costs their pages at
/// the next open. Some 200 bytes each: 50 MiB in all.
const MAX_PER_SHARD: usize = 8192;

/// Small files whose attributes are remembered per shard: 10 MiB in all.
const MAX_SMALL: usize = 1 << 10;

/// Tells two states of a file apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    size: u64,
    epoch: u64,
    mtime: Option<Time>,
    ctime: Option<Time>,
}

impl Stamp {
    pub(crate) fn of(attr: &Attr) -> Self {
        Self {
            size: attr.size,
            epoch: attr.truncate_epoch,
            mtime: attr.mtime,
            ctime: attr.ctime,
        }
    }
}

/// What an open must tell the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenVerdict {
    /// Cached pages are those of the file as it is now.
    pub(crate) keep_cache: bool,
    /// Cached attributes are not.
    pub(crate) attr_stale: bool,
}

#[derive(Default)]
struct Inode {
    /// Permission bits, as far as they are known: to notice set-id bits.
    mode: u32,
    gid: u32,
    /// Until then it is known to have no extended attributes.
    plain_until: Option<Instant>,
    /// The last attributes given to the kernel.
    shown: Option<Stamp>,
    /// The state under which cached pages were read, all of them.
    pages: Option<Stamp>,
    /// The oldest state that pages may be of which the kernel has; none before the first request on an open of it.
    cached: Option<Stamp>,
    /// The length that the kernel's pages are right for: it was told that, or has written so far through them.
    reach: u64,
    /// Largest size seen under `epoch`.
    size: u64,
    epoch: u64,
    opens: u32,
    writers: u32,
    /// When it last changed, by the clock.
    changed: u64,
}

#[derive(Default)]
struct Shard {
    inodes: HashMap<u64, Inode>,
    /// Small files as they were shown lately.
    small: HashMap<u64, Attr>,
    /// Whatever is not in `inodes` may have been changed as late as this.
    evicted: u64,
}

/// The table.
#[derive(Default)]
pub(crate) struct Inodes {
    shards: [Mutex<Shard>; SHARDS],
    clock: AtomicU64,
    /// How long answers may be believed, in nanoseconds.
    term: AtomicU64,
}

impl Inodes {
    fn with<T>(&self, inode: u64, act: impl FnOnce(&mut Inode) -> T) -> T {
        let mut shard = self.shards[inode as usize % SHARDS].lock();
        if shard.inodes.len() >= MAX_PER_SHARD && !shard.inodes.contains_key(&inode) {
            shard.evicted = self.now();
            shard.inodes.retain(|_, inode| inode.opens > 0);
        }
        let changed = shard.evicted;
        act(shard.inodes.entry(inode).or_insert_with(|| Inode {
            changed,
            ..Inode::default()
        }))
    }

    /// Attributes on their way to the kernel, for which the server was asked at `asked`: corrects an overtaken size and
    /// remembers them.
    pub(crate) fn present(&self, attr: &mut Attr, asked: Instant) {
        let term = Duration::from_nanos(self.term.load(atomic::Ordering::Relaxed));
        let plain = !attr.has_acl && !attr.has_xattrs && !term.is_zero();
        let plain = plain.then(|| asked + term);
        if attr.kind() != FileKind::File && plain.is_none() {
            return;
        }
        self.with(attr.inode, |inode| {
            inode.plain_until = plain;
            if attr.kind() == FileKind::File {
                inode.believe(attr);
                if inode.cached.is_none() || attr.size < inode.reach {
                    inode.reach = attr.size;
                }
                inode.shown = Some(Stamp::of(attr));
                (inode.mode, inode.gid) = (attr.mode, attr.gid);
            }
        });
        if attr.kind() == FileKind::File && (1..=MAX_EARLY_READ).contains(&attr.size) {
            let mut shard = self.shards[attr.inode as usize % SHARDS].lock();
            if shard.small.len() >= MAX_SMALL {
                shard.small.clear();
            }
            shard.small.insert(attr.inode, *attr);
        }
    }

    /// The attributes of a small file as they were shown, if the kernel has no pages of it and it is not open.
    pub(crate) fn to_be_read(&self, inode: u64) -> Option<Attr> {
        let shard = self.shards[inode as usize % SHARDS].lock();
        let known = shard.inodes.get(&inode);
        let here = known.is_some_and(|inode| inode.opens > 0 || inode.pages.is_some());
        shard.small.get(&inode).filter(|_| !here).copied()
    }

    /// From now on the server tells of changes to what it answered within this time; zero: it does not.
    pub(crate) fn watched_for(&self, term: Duration) {
        let nanos = u64::try_from(term.as_nanos()).unwrap_or(u64::MAX);
        self.term.store(nanos, atomic::Ordering::Relaxed);
    }

    /// Whether the server tells of changes.
    pub(crate) fn is_watched(&self) -> bool {
        self.term.load(atomic::Ordering::Relaxed) > 0
    }

    /// Is it known that the inode has neither extended attributes nor an ACL? The kernel asks for them far more often
    /// than there are any.
    pub(crate) fn is_plain(&self, inode: u64) -> bool {
        let shard = self.shards[inode as usize % SHARDS].lock();
        let until = shard.inodes.get(&inode).and_then(|inode| inode.plain_until);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Changes by others may have been missed.
    pub(crate) fn missed(&self) {
        let now = self.tick();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.evicted = shard.evicted.max(now);
            for inode in shard.inodes.values_mut() {
                inode.plain_until = None;
                inode.changed = inode.changed.max(now);
            }
        }
    }

    /// It may have some now.
    pub(crate) fn decorated(&self, inode: u64) {
        self.with(inode, |inode| inode.plain_until = None);
    }

    /// The mode that a write by an ordinary user leaves, if that takes set-id bits away.
    pub(crate) fn mode_after_write(&self, inode: u64, writer: &Creds) -> Option<u32> {
        let shard = self.shards[inode as usize % SHARDS].lock();
        let inode = shard.inodes.get(&inode)?;
        let of_group = writer.gid == inode.gid || writer.groups.contains(&inode.gid);
        let after = without_set_ids(inode.mode, of_group);
        (after != inode.mode).then_some(after)
    }

    /// An open was answered with `attr`. The stamp that counts once the kernel has acted on it is
    /// to be handed to [`Self::confirm`].
    pub(crate) fn opened(&self, attr: &mut Attr, writer: bool) -> OpenVerdict {
        self.with(attr.inode, |inode| {
            if inode.writers == 0 {
                // Nothing of ours is on its way, so the server's word is final.
                (inode.size, inode.epoch) = (attr.size, attr.truncate_epoch);
            }
            inode.believe(attr);
            (inode.mode, inode.gid) = (attr.mode, attr.gid);
            let stamp = Stamp::of(attr);
            let keep_cache = inode.pages == Some(stamp);
            let attr_stale = inode.shown != Some(stamp);
            if !keep_cache {
                inode.pages = None;
            }
            inode.opens += 1;
            inode.writers += u32::from(writer);
            OpenVerdict {
                keep_cache,
                attr_stale,
            }
        })
    }

    /// The kernel has acted on an open that was answered under `stamp`.
    pub(crate) fn confirm(&self, inode: u64, stamp: Stamp) {
        self.with(inode, |inode| {
            if inode.pages.is_none() {
                // This open, or a change before it, has made the kernel drop what it had.
                inode.cached = Some(stamp);
            }
            inode.pages = Some(stamp);
            inode.cached.get_or_insert(stamp);
        });
    }

    /// A write of this mount up to `end` has succeeded. `cached`: the kernel has put it into its pages as well.
    pub(crate) fn wrote(&self, inode: u64, end: u64, cached: bool) {
        let now = self.tick();
        self.with(inode, |inode| {
            inode.size = inode.size.max(end);
            inode.changed = inode.changed.max(now);
            if cached {
                inode.reach = inode.reach.max(end);
            }
        });
    }

    /// Where the pages that the kernel may have end to be right, if the file has grown beyond that. Corrects an overtaken
    /// size.
    pub(crate) fn outgrown(&self, attr: &mut Attr) -> Option<u64> {
        if attr.kind() != FileKind::File {
            return None;
        }
        let mut shard = self.shards[attr.inode as usize % SHARDS].lock();
        let inode = shard.inodes.get_mut(&attr.inode)?;
        inode.believe(attr);
        (inode.cached.is_some() && attr.size > inode.reach).then_some(inode.reach)
    }

    /// The kernel has dropped its pages from there on; those that it reads now are right up to `size`.
    pub(crate) fn dropped(&self, inode: u64, size: u64) {
        self.with(inode, |inode| inode.reach = inode.reach.max(size));
    }

    /// The writes of this mount are on the server, which answered `attr`.
    pub(crate) fn synced(&self, attr: &mut Attr) {
        let now = self.tick();
        self.with(attr.inode, |inode| {
            inode.changed = inode.changed.max(now);
            inode.believe(attr);
            inode.advance(Stamp::of(attr));
        });
    }

    /// Writes of this mount were lost: neither sizes nor pages can be trusted.
    pub(crate) fn lost(&self, inode: u64) {
        self.with(inode, |inode| {
            inode.size = 0;
            inode.pages = None;
            inode.shown = None;
        });
    }

    /// This mount changed attributes; `attr` is what the server answered.
    pub(crate) fn changed(&self, attr: &mut Attr) {
        let now = self.tick();
        self.with(attr.inode, |inode| {
            inode.believe(attr);
            inode.changed = inode.changed.max(now);
            (inode.mode, inode.gid) = (attr.mode, attr.gid);
            let stamp = Stamp::of(attr);
            // Without a writer here, only a change that left the contents alone keeps the pages.
            let same_contents = inode.pages.is_some_and(|pages| {
                Stamp {
                    ctime: stamp.ctime,
                    ..pages
                } == stamp
            });
            if inode.writers > 0 || same_contents {
                inode.advance(stamp);
            }
            if attr.kind() == FileKind::File {
                inode.shown = Some(stamp);
            }
        });
    }

    /// Somebody changed the inode, or the names in a directory.
    pub(crate) fn touched(&self, inode: u64) {
        let now = self.tick();
        self.with(inode, |inode| inode.changed = inode.changed.max(now));
    }

    /// Another machine changed the inode. Has this mount pages of it that a program may be reading?
    pub(crate) fn changed_elsewhere(&self, inode: u64) -> bool {
        let mut shard = self.shards[inode as usize % SHARDS].lock();
        let found = shard.inodes.get_mut(&inode);
        found.is_some_and(|inode| {
            inode.plain_until = None;
            inode.opens > 0 && inode.cached.is_some()
        })
    }

    /// Whether the pages that the kernel may have are of another state than `attr`; then they do not count any more.
    pub(crate) fn drop_pages(&self, attr: &Attr) -> bool {
        self.with(attr.inode, |inode| {
            let now = Stamp::of(attr);
            let other = |pages: Stamp| {
                (pages.size, pages.epoch, pages.mtime) != (now.size, now.epoch, now.mtime)
            };
            let stale = inode.writers == 0 && inode.cached.is_some_and(other);
            if stale {
                // Programs that have it open go on reading.
                (inode.pages, inode.cached) = (None, Some(now));
            }
            stale
        })
    }

    /// Has this mount an open that can write?
    pub(crate) fn has_writers(&self, inode: u64) -> bool {
        let shard = self.shards[inode as usize % SHARDS].lock();
        shard
            .inodes
            .get(&inode)
            .is_some_and(|inode| inode.writers > 0)
    }

    /// An open was released; was it the last one?
    pub(crate) fn closed(&self, inode: u64, writer: bool) -> bool {
        self.with(inode, |inode| {
            inode.opens = inode.opens.saturating_sub(1);
            inode.writers = inode.writers.saturating_sub(u32::from(writer));
            inode.opens == 0
        })
    }

    /// The kernel has dropped the inode with everything it cached of it.
    pub(crate) fn forget(&self, inode: u64) {
        let mut shard = self.shards[inode as usize % SHARDS].lock();
        shard.small.remove(&inode);
        if let Some(known) = shard.inodes.get(&inode)
            && known.opens == 0
        {
            shard.evicted = shard.evicted.max(known.changed);
            shard.inodes.remove(&inode);
        }
    }

    /// The clock of changes.
    pub(crate) fn now(&self) -> u64 {
        self.clock.load(atomic::Ordering::Acquire)
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, atomic::Ordering::AcqRel) + 1
    }

    /// Has the inode changed after `then`, as far as this mount knows?
    pub(crate) fn changed_since(&self, inode: u64, then: u64) -> bool {
        let shard = self.shards[inode as usize % SHARDS].lock();
        shard
            .inodes
            .get(&inode)
            .map_or(shard.evicted, |inode| inode.changed)
            > then
    }
}

/// The mode of anything but a directory after somebody else may have changed it. `of_group`: whoever changes it is root or in
/// its group, and so keeps setgid on a file that the group may not execute, where it means mandatory locking.
pub(super) fn without_set_ids(mode: u32, of_group: bool) -> u32 {
    let group = if mode & libc::S_IXGRP == 0 && of_group {
        0
    } else {
        libc::S_ISGID
    };
    mode & !(libc::S_ISUID | group)
}

impl Inode {
    /// Takes a newer size over, or corrects `attr` if it was overtaken.
    fn believe(&mut self, attr: &mut Attr) {
        if attr.kind() != FileKind::File {
            return;
        }
        match attr.truncate_epoch.cmp(&self.epoch) {
            Ordering::Greater => (self.epoch, self.size) = (attr.truncate_epoch, attr.size),
            Ordering::Less => (attr.truncate_epoch, attr.size) = (self.epoch, self.size),
            Ordering::Equal => {
                self.size = self.size.max(attr.size);
                attr.size = self.size;
            }
        }
    }

    /// A change of our own moves the state that the pages are of.
    fn advance(&mut self, stamp: Stamp) {
        if self.pages.is_some() {
            (self.pages, self.cached) = (Some(stamp), Some(stamp));
        }
    }
}
