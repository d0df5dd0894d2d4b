//! Names and attributes.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use emberfs_client::attr::AttrExt;
use emberfs_client::{Attr, Creds, NewMode, RenameFlags, Result, SetAttr};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{FileKind, StatFsReply};
use emberfs_proto::{Error, ErrorCode};

use super::ghosts::is_gone;
use super::{Handler, Vanished, virtual_dir};
use crate::backend::Backend;

/// Longest name in bytes.
const NAME_MAX: usize = 255;

/// How long an answer waits for the kernel to drop pages.
const DROP_LIMIT: Duration = Duration::from_millis(100);

impl<B: Backend> Handler<B> {
    pub(crate) async fn lookup(&self, creds: &Creds, parent: u64, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        if virtual_dir::is_virtual(parent) {
            return virtual_dir::lookup(parent, name);
        }
        let answer = self.backend.lookup(creds, self.inode(parent), name).await;
        let mut attr = virtual_dir::found(parent, name, answer)?;
        self.drop_tail(&mut attr).await;
        Ok(self.show(attr))
    }

    /// If a file has grown by other means than the kernel's own pages, the last page that the kernel may have ends in zeros
    /// that are no hole. It has to be gone before the kernel learns of the new length: a program may read the page in the moment between that
    /// and the kernel's dropping it.
    async fn drop_tail(&self, attr: &mut Attr) {
        let Some(from) = self.inodes.outgrown(attr) else {
            return;
        };
        if let Some(drop_pages) = self.drop_pages.get().cloned() {
            let node = self.node(attr.inode);
            // The kernel waits for pages that are being read, by requests that may wait for this one to make room.
            let dropped = tokio::task::spawn_blocking(move || drop_pages(node, from));
            if tokio::time::timeout(DROP_LIMIT, dropped).await.is_ok() {
                self.inodes.dropped(attr.inode, attr.size);
            }
        }
    }

    /// How long it holds that there is no such name, if that is known without asking anybody.
    pub(crate) fn absent_for(&self, parent: u64, name: &[u8]) -> Option<Duration> {
        // One that is too long is refused, which is another answer.
        check_name(name).ok()?;
        self.absent.absent_for(self.inode(parent).0, name)
    }

    /// Runs what gives something this name.
    pub(super) async fn naming<T>(
        &self,
        parent: InodeId,
        name: &[u8],
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let since = Instant::now();
        let _changing = self.parents.change(parent.0);
        // Whatever comes of it.
        self.absent.appears(parent.0, name);
        let named = work.await?;
        self.absent.used(parent.0, since);
        Ok(named)
    }

    /// This mount has made a directory, by a request that came at `since`; nobody else has been in it.
    pub(crate) fn made_empty(&self, node: u64, since: Instant) {
        self.absent.made(self.inode(node).0, since);
    }

    /// The attributes of a directory and how long they hold, if they are known without asking anybody.
    pub(crate) fn known_directory(&self, node: u64) -> Option<(Attr, Duration)> {
        let (mut attr, left) = self.parents.get(self.inode(node).0)?;
        attr.inode = node;
        Some((attr, left))
    }

    /// Another machine has changed what a name means.
    pub(crate) fn renamed_elsewhere(&self, parent: InodeId, name: &[u8]) {
        self.absent.appears(parent.0, name);
        self.inodes.touched(parent.0);
    }

    /// Another machine has changed the inode.
    pub(crate) fn heard_of(&self, inode: InodeId) {
        self.parents.changed_elsewhere(inode.0);
        self.inodes.touched(inode.0);
    }

    /// Changes by others may have been missed.
    pub(crate) fn missed_changes(&self) {
        self.absent.forget_all();
        self.parents.missed();
        self.inodes.missed();
    }

    /// What programs have open.
    pub(crate) fn open_nodes(&self) -> Vec<u64> {
        let files = self.files.read();
        let files = files.values().map(|file| self.node(file.inode));
        let dirs = self.dirs.read();
        let dirs = dirs.values().map(|dir| self.node(dir.inode.0));
        let nodes: BTreeSet<u64> = files.chain(dirs).collect();
        nodes.into_iter().collect()
    }

    /// The kernel has dropped the node from its caches.
    pub(crate) fn forget(&self, node: u64) {
        let inode = self.inode(node).0;
        self.inodes.forget(inode);
        self.ghosts.forget(inode);
    }

    /// Attributes, and how many blocks of 512 bytes a file takes: its holes take none.
    pub(crate) async fn getattr(&self, node: u64) -> Result<(Attr, u64)> {
        if let Some(attr) = virtual_dir::attr(node) {
            return Ok((attr, 0));
        }
        let inode = self.inode(node);
        let attr = self.backend.getattr(inode).await;
        let mut attr = self.ghosts.or_last(inode.0, attr)?;
        // Servers that cannot be asked now do not make stat fail.
        let blocks = self.backend.blocks(&attr).await;
        let blocks = blocks.unwrap_or_else(|_| attr.blocks());
        self.drop_tail(&mut attr).await;
        Ok((self.show(attr), blocks))
    }

    /// Another machine has changed the inode: whether pages of it that the kernel may have are stale. Of a file that nobody
    /// here has open, the next open tells.
    pub(crate) async fn pages_are_stale(&self, inode: InodeId) -> bool {
        if !self.inodes.changed_elsewhere(inode.0) {
            return false;
        }
        let attr = self.backend.getattr(inode).await;
        attr.is_ok_and(|attr| self.inodes.drop_pages(&attr))
    }

    /// From now on other machines' changes to what the server said are told for so long; zero: they are not. `names`: what
    /// is said about names may be believed for that time, too.
    pub(crate) fn watched_for(&self, term: Duration, names: bool) {
        self.inodes.watched_for(term);
        let believed = if names { term } else { Duration::ZERO };
        self.absent.watched_for(believed);
        self.walks.watched_for(believed);
        self.parents.watched_for(believed);
    }

    /// `handle`: the one that ftruncate came through.
    pub(crate) async fn setattr(
        &self,
        creds: &Creds,
        node: u64,
        changes: SetAttr,
        handle: Option<u64>,
    ) -> Result<Attr> {
        let inode = self.real(node)?;
        if changes.size.is_some() {
            // What was written before must not come after, beyond a truncate.
            self.sync_writers(inode.0).await?;
        }
        let handle = handle.and_then(|handle| self.files.read().get(&handle).cloned());
        let file = handle
            .as_ref()
            .filter(|handle| handle.writable)
            .map(|handle| &handle.file);
        let _changing = self.parents.change(inode.0);
        let changed = match self.backend.setattr(creds, inode, changes, file).await {
            Err(error) if is_gone(&error) => {
                let changed = self.ghosts.change(inode.0, creds, &changes);
                changed.unwrap_or(Err(error))
            }
            // The kernel asks for no change before a write to a file with set-id bits, as for chown(-1, -1). The write takes them.
            Err(error)
                if error.code == ErrorCode::NotPermitted
                    && changes == SetAttr::default()
                    && self.inodes.has_writers(inode.0) =>
            {
                self.backend.getattr(inode).await
            }
            changed => changed,
        };
        let mut attr = changed?;
        if changes.size.is_none() {
            self.drop_tail(&mut attr).await;
        }
        self.inodes.changed(&mut attr);
        Ok(self.show(attr))
    }

    pub(crate) async fn readlink(&self, creds: &Creds, node: u64) -> Result<Bytes> {
        self.backend.readlink(creds, self.inode(node)).await
    }

    /// `mode`: file type and permission bits, as mknod(2) takes them.
    pub(crate) async fn mknod(
        &self,
        creds: &Creds,
        parent: u64,
        name: &[u8],
        mode: NewMode,
        rdev: u32,
    ) -> Result<Attr> {
        check_name(name)?;
        let kind = kind_of_mode(mode.mode)?;
        let parent = self.real(parent)?;
        let mode = NewMode {
            mode: mode.mode & 0o7777,
            ..mode
        };
        let made = self.backend.mknod(creds, parent, name, kind, mode, rdev);
        let attr = self.naming(parent, name, made).await?;
        self.inodes.touched(parent.0);
        Ok(self.show(attr))
    }

    pub(crate) async fn mkdir(
        &self,
        creds: &Creds,
        parent: u64,
        name: &[u8],
        mode: NewMode,
    ) -> Result<Attr> {
        check_name(name)?;
        let parent = self.real(parent)?;
        let made = self.backend.mkdir(creds, parent, name, mode);
        let attr = self.naming(parent, name, made).await?;
        self.inodes.touched(parent.0);
        Ok(self.show(attr))
    }

    pub(crate) async fn symlink(
        &self,
        creds: &Creds,
        parent: u64,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr> {
        check_name(name)?;
        let parent = self.real(parent)?;
        let made = self.backend.symlink(creds, parent, name, target);
        let attr = self.naming(parent, name, made).await?;
        self.inodes.touched(parent.0);
        Ok(self.show(attr))
    }

    pub(crate) async fn link(
        &self,
        creds: &Creds,
        node: u64,
        parent: u64,
        name: &[u8],
    ) -> Result<Attr> {
        check_name(name)?;
        let parent = self.real(parent)?;
        let made = self.backend.link(creds, self.real(node)?, parent, name);
        let mut attr = self.naming(parent, name, made).await?;
        self.inodes.touched(parent.0);
        self.inodes.changed(&mut attr);
        Ok(self.show(attr))
    }

    pub(crate) async fn unlink(&self, creds: &Creds, parent: u64, name: &[u8]) -> Result<()> {
        let parent = self.real(parent)?;
        let _changing = self.parents.change(parent.0);
        let mut attr = self.backend.unlink(creds, parent, name).await?;
        self.inodes.touched(parent.0);
        self.inodes.changed(&mut attr);
        if attr.nlink == 0 {
            self.ghosts.removed(&attr);
        }
        Ok(())
    }

    pub(crate) async fn rmdir(&self, creds: &Creds, parent: u64, name: &[u8]) -> Result<()> {
        self.spare_hidden(creds, parent, name).await?;
        let parent = self.real(parent)?;
        let _changing = self.parents.change(parent.0);
        let attr = self.backend.rmdir(creds, parent, name).await?;
        // What was told of it after a change in it is over.
        self.parents.changed_elsewhere(attr.inode);
        self.inodes.touched(parent.0);
        self.inodes.touched(attr.inode);
        self.ghosts.removed(&attr);
        Ok(())
    }

    /// Answers a name that is not where the kernel believes it to be then.
    pub(crate) async fn rename(
        &self,
        creds: &Creds,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: RenameFlags,
    ) -> Result<Option<Vanished>> {
        check_name(to.1)?;
        if virtual_dir::removes(to.0) {
            return self.remove_moved(creds, from, to, flags).await.map(Some);
        }
        for (parent, name) in [from, to] {
            self.spare_hidden(creds, parent, name).await?;
        }
        let (from, to) = ((self.real(from.0)?, from.1), (self.real(to.0)?, to.1));
        let left = (from.0 != to.0).then(|| self.parents.change(from.0.0));
        let renamed = self.backend.rename(creds, from, to, flags);
        let reply = self.naming(to.0, to.1, renamed).await?;
        drop(left);
        for inode in [&reply.moved, &reply.replaced].into_iter().flatten() {
            self.parents.changed_elsewhere(inode.inode);
        }
        self.inodes.touched(from.0.0);
        self.inodes.touched(to.0.0);
        let replaced = reply.replaced;
        for mut attr in reply.moved.into_iter().chain(replaced) {
            self.inodes.changed(&mut attr);
        }
        if let Some(attr) = replaced
            && !flags.exchange
            && (attr.nlink == 0 || attr.is_dir())
        {
            self.ghosts.removed(&attr);
        }
        Ok(None)
    }

    pub(crate) async fn statfs(&self, creds: &Creds, node: u64) -> Result<StatFsReply> {
        let inode = self.real(node).unwrap_or(self.root);
        self.backend.statfs(creds, inode).await
    }
}

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        let what = format!(
            "a name of {} bytes: at most {NAME_MAX} are allowed",
            name.len()
        );
        return Err(Error::new(ErrorCode::NameTooLong, what));
    }
    Ok(())
}

fn kind_of_mode(mode: u32) -> Result<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(FileKind::File),
        libc::S_IFIFO => Ok(FileKind::Fifo),
        libc::S_IFSOCK => Ok(FileKind::Socket),
        libc::S_IFCHR => Ok(FileKind::CharDevice),
        libc::S_IFBLK => Ok(FileKind::BlockDevice),
        other => {
            let what = format!("mknod of file type {other:o}: make it with mkdir or symlink");
            Err(Error::new(ErrorCode::InvalidArgument, what))
        }
    }
}
