//! A file system in memory, behind the handler's tests and the mount's.
//!
//! Harsher than the real client in one respect: sizes lag behind writes until a sync, also in
//! `getattr`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use emberfs_client::{
    Attr, CacheEvent, CreateFlags, Creds, LockInfo, LockRequest, LockSpace, LossesHeard, NewMode,
    OpenFlags, RenameFlags, RequestLog, RequestScope, Result, SetAttr, TimeSet, XattrFlags,
};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, FileKind, Time};
use emberfs_proto::{Error, ErrorCode};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::backend::{Backend, OpenFile};

mod elsewhere;
mod file;
mod locks;

pub(crate) use file::MemoryFile;

/// A name whose lookup panics.
pub(crate) const PANIC: &str = "panic";

/// How names begin whose lookup waits for [`Shared::released`]; there are no such files.
pub(crate) const HANG: &str = "hang";

#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Shared>);

#[derive(Default)]
pub(crate) struct Shared {
    nodes: Mutex<HashMap<u64, Node>>,
    clock: AtomicU64,
    pub(crate) reads: AtomicU64,
    /// Lookups and getattrs.
    pub(crate) lookups: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) open_files: AtomicU64,
    pub(crate) readdirs: AtomicU64,
    /// Opens that may read at once.
    pub(crate) early_reads: AtomicU64,
    pub(crate) shut_down: AtomicBool,
    pub(crate) fail_sync: AtomicBool,
    /// Waits for changes of names and attributes.
    pub(crate) waits: AtomicU64,
    /// Whether closes may come before what was written is stored.
    pub(crate) late_closes: AtomicBool,
    /// Lookups of [`HANG`] names that have come.
    pub(crate) hanging: watch::Sender<u64>,
    /// They are answered.
    pub(crate) released: watch::Sender<bool>,
    pub(crate) locks: locks::Locks,
    /// Where a test says what other machines change.
    pub(crate) others: Mutex<Option<mpsc::Sender<CacheEvent>>>,
}

#[derive(Default)]
struct Node {
    attr: Attr,
    data: Vec<u8>,
    target: Bytes,
    names: BTreeMap<Bytes, u64>,
    parent: u64,
    dirty: bool,
    xattrs: BTreeMap<Bytes, Bytes>,
}

impl std::ops::Deref for Memory {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

fn error(code: ErrorCode) -> Error {
    Error::new(code, "in memory")
}

fn masked(mode: NewMode) -> u32 {
    mode.mode & 0o7777 & !mode.umask
}

impl Memory {
    pub(crate) fn new() -> Self {
        let memory = Self::default();
        memory.insert(0, FileKind::Directory, 0o755);
        memory
    }

    fn now(&self) -> Time {
        let tick = self.clock.fetch_add(1, Ordering::Relaxed);
        Time {
            seconds: 1_700_000_000 + tick as i64,
            nanos: 0,
        }
    }

    fn insert(&self, parent: u64, kind: FileKind, mode: u32) -> Attr {
        let mut nodes = self.nodes.lock();
        let now = Some(self.now());
        let attr = Attr {
            inode: nodes.keys().max().unwrap_or(&0) + 1,
            kind: kind as i32,
            mode,
            nlink: 1,
            atime: now,
            mtime: now,
            ctime: now,
            ..Attr::default()
        };
        nodes.insert(
            attr.inode,
            Node {
                attr,
                parent,
                ..Node::default()
            },
        );
        attr
    }

    fn add(&self, parent: InodeId, name: &[u8], kind: FileKind, mode: u32) -> Result<Attr> {
        if self.child(parent, name).is_ok() {
            return Err(error(ErrorCode::Exists));
        }
        let attr = self.insert(parent.0, kind, mode);
        self.attach(parent, name, attr.inode);
        Ok(attr)
    }

    fn attach(&self, parent: InodeId, name: &[u8], inode: u64) {
        let mut nodes = self.nodes.lock();
        let now = Some(self.now());
        let dir = nodes.get_mut(&parent.0).unwrap();
        dir.names.insert(Bytes::copy_from_slice(name), inode);
        (dir.attr.mtime, dir.attr.ctime) = (now, now);
    }

    fn child(&self, parent: InodeId, name: &[u8]) -> Result<u64> {
        let nodes = self.nodes.lock();
        let dir = nodes
            .get(&parent.0)
            .ok_or_else(|| error(ErrorCode::NotFound))?;
        dir.names
            .get(name)
            .copied()
            .ok_or_else(|| error(ErrorCode::NotFound))
    }

    fn attr(&self, inode: u64) -> Result<Attr> {
        let nodes = self.nodes.lock();
        nodes
            .get(&inode)
            .map(|n| n.attr)
            .ok_or_else(|| error(ErrorCode::NotFound))
    }

    fn change<T>(&self, inode: u64, act: impl FnOnce(&mut Node) -> T) -> T {
        act(self.nodes.lock().get_mut(&inode).unwrap())
    }

    fn detach(&self, parent: InodeId, name: &[u8]) -> Result<Attr> {
        let inode = self.child(parent, name)?;
        self.change(parent.0, |dir| dir.names.remove(name));
        Ok(self.change(inode, |node| {
            node.attr.nlink -= 1;
            node.attr
        }))
    }

    fn truncate(&self, inode: u64, size: u64) {
        let now = Some(self.now());
        self.change(inode, |node| {
            node.attr.truncate_epoch += u64::from(size < node.attr.size);
            node.data.resize(size as usize, 0);
            (node.attr.size, node.attr.mtime, node.attr.ctime) = (size, now, now);
        });
    }

    fn file(&self, inode: u64) -> MemoryFile {
        self.open_files.fetch_add(1, Ordering::Relaxed);
        MemoryFile {
            memory: self.clone(),
            inode,
        }
    }

    /// The bytes of a file.
    pub(crate) fn contents(&self, inode: u64) -> Vec<u8> {
        self.change(inode, |node| node.data.clone())
    }

    /// What the metadata server believes.
    pub(crate) fn server_attr(&self, inode: u64) -> Attr {
        self.attr(inode).unwrap()
    }
}

impl Backend for Memory {
    type File = MemoryFile;

    fn root(&self) -> InodeId {
        InodeId::ROOT
    }

    async fn resolve(&self, _creds: &Creds, path: &str) -> Result<Attr> {
        let mut inode = InodeId::ROOT;
        for name in path.split('/') {
            inode = InodeId(self.child(inode, name.as_bytes())?);
        }
        self.attr(inode.0)
    }

    async fn lookup(&self, _creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        assert!(name != PANIC.as_bytes(), "a name that panics");
        self.lookups.fetch_add(1, Ordering::Relaxed);
        if name.starts_with(HANG.as_bytes()) {
            let mut released = self.released.subscribe();
            self.hanging.send_modify(|count| *count += 1);
            let _ = released.wait_for(|released| *released).await;
        }
        self.attr(self.child(parent, name)?)
    }

    async fn getattr(&self, inode: InodeId) -> Result<Attr> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        self.attr(inode.0)
    }

    async fn blocks(&self, attr: &Attr) -> Result<u64> {
        Ok(attr.size.div_ceil(512))
    }

    async fn setattr(
        &self,
        _creds: &Creds,
        inode: InodeId,
        changes: SetAttr,
        _file: Option<&MemoryFile>,
    ) -> Result<Attr> {
        self.attr(inode.0)?;
        if let Some(size) = changes.size {
            self.truncate(inode.0, size);
        }
        let now = Some(self.now());
        let time = |set| match set {
            TimeSet::Now => now,
            TimeSet::At(time) => Some(time.into()),
        };
        Ok(self.change(inode.0, |node| {
            let attr = &mut node.attr;
            attr.mode = changes.mode.unwrap_or(attr.mode);
            attr.uid = changes.uid.unwrap_or(attr.uid);
            attr.gid = changes.gid.unwrap_or(attr.gid);
            attr.atime = changes.atime.map_or(attr.atime, time);
            attr.mtime = changes.mtime.map_or(attr.mtime, time);
            attr.ctime = now;
            *attr
        }))
    }

    async fn create(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: NewMode,
        flags: CreateFlags,
    ) -> Result<(Attr, MemoryFile)> {
        let mut attr = match self.child(parent, name) {
            Ok(_) if flags.exclusive => return Err(error(ErrorCode::Exists)),
            Ok(inode) => {
                if flags.truncate {
                    self.truncate(inode, 0);
                }
                self.attr(inode)?
            }
            Err(_) => self.add(parent, name, FileKind::File, masked(mode))?,
        };
        attr.uid = creds.uid;
        self.change(attr.inode, |node| node.attr.uid = creds.uid);
        let file = self.file(attr.inode);
        Ok((attr, file))
    }

    async fn create_unnamed(
        &self,
        _creds: &Creds,
        parent: InodeId,
        mode: NewMode,
        _flags: CreateFlags,
    ) -> Result<(Attr, MemoryFile)> {
        self.attr(parent.0)?;
        let inode = self.insert(parent.0, FileKind::File, masked(mode)).inode;
        let attr = self.change(inode, |node| {
            node.attr.nlink = 0;
            node.attr
        });
        Ok((attr, self.file(inode)))
    }

    async fn open(
        &self,
        _creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
        believed: Option<&Attr>,
    ) -> Result<(Attr, MemoryFile)> {
        let early = u64::from(believed.is_some());
        self.early_reads.fetch_add(early, Ordering::Relaxed);
        self.attr(inode.0)?;
        if flags.truncate {
            self.truncate(inode.0, 0);
        }
        Ok((self.attr(inode.0)?, self.file(inode.0)))
    }

    async fn mkdir(
        &self,
        _creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: NewMode,
    ) -> Result<Attr> {
        self.add(parent, name, FileKind::Directory, masked(mode))
    }

    async fn symlink(
        &self,
        _creds: &Creds,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr> {
        let attr = self.add(parent, name, FileKind::Symlink, 0o777)?;
        Ok(self.change(attr.inode, |node| {
            node.target = Bytes::copy_from_slice(target);
            node.attr.size = target.len() as u64;
            node.attr
        }))
    }

    async fn mknod(
        &self,
        _creds: &Creds,
        parent: InodeId,
        name: &[u8],
        kind: FileKind,
        mode: NewMode,
        rdev: u32,
    ) -> Result<Attr> {
        let attr = self.add(parent, name, kind, masked(mode))?;
        Ok(self.change(attr.inode, |node| {
            node.attr.rdev = rdev;
            node.attr
        }))
    }

    async fn link(
        &self,
        _creds: &Creds,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        if self.child(parent, name).is_ok() {
            return Err(error(ErrorCode::Exists));
        }
        self.attach(parent, name, inode.0);
        Ok(self.change(inode.0, |node| {
            node.attr.nlink += 1;
            node.attr
        }))
    }

    async fn unlink(&self, _creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.detach(parent, name)
    }

    async fn rmdir(&self, _creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        let inode = self.child(parent, name)?;
        if !self.change(inode, |dir| dir.names.is_empty()) {
            return Err(error(ErrorCode::NotEmpty));
        }
        self.detach(parent, name)
    }

    async fn remove_tree(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        if creds.uid != 0 {
            return Err(error(ErrorCode::NotPermitted));
        }
        if self.attr(self.child(parent, name)?)?.kind() != FileKind::Directory {
            return Err(error(ErrorCode::NotDirectory));
        }
        self.detach(parent, name)
    }

    async fn rename(
        &self,
        _creds: &Creds,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> Result<pb::RenameReply> {
        let inode = self.child(from.0, from.1)?;
        let there = self.child(to.0, to.1).ok();
        if flags.no_replace && there.is_some() {
            return Err(error(ErrorCode::Exists));
        }
        self.change(from.0.0, |dir| dir.names.remove(from.1));
        self.attach(to.0, to.1, inode);
        if let (true, Some(there)) = (flags.exchange, there) {
            self.attach(from.0, from.1, there);
        }
        let replaced = there.map(|there| self.attr(there)).transpose()?;
        Ok(pb::RenameReply {
            moved: Some(self.attr(inode)?),
            replaced,
            ..pb::RenameReply::default()
        })
    }

    async fn readlink(&self, _creds: &Creds, inode: InodeId) -> Result<Bytes> {
        Ok(self.change(inode.0, |node| node.target.clone()))
    }

    async fn readdir(
        &self,
        _creds: &Creds,
        inode: InodeId,
        after: &[u8],
        limit: u32,
    ) -> Result<pb::ReadDirReply> {
        self.readdirs.fetch_add(1, Ordering::Relaxed);
        let nodes = self.nodes.lock();
        let dir = nodes
            .get(&inode.0)
            .ok_or_else(|| error(ErrorCode::NotFound))?;
        let mut rest = dir
            .names
            .range::<[u8], _>((Bound::Excluded(after), Bound::Unbounded));
        let entries = rest
            .by_ref()
            .take(limit as usize)
            .map(|(name, inode)| pb::DirEntry {
                name: name.clone(),
                attr: nodes.get(inode).map(|node| node.attr),
            });
        let entries = entries.collect();
        Ok(pb::ReadDirReply {
            entries,
            end: rest.next().is_none(),
            parent: dir.parent,
        })
    }

    async fn get_xattr(&self, _creds: &Creds, inode: InodeId, name: &[u8]) -> Result<Bytes> {
        let found = self.change(inode.0, |node| node.xattrs.get(name).cloned());
        found.ok_or_else(|| error(ErrorCode::NoAttribute))
    }

    async fn set_xattr(
        &self,
        _creds: &Creds,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.change(inode.0, |node| {
            match node.xattrs.contains_key(name) {
                true if flags.create => return Err(error(ErrorCode::Exists)),
                false if flags.replace => return Err(error(ErrorCode::NoAttribute)),
                _ => {}
            }
            let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
            node.xattrs.insert(name, value);
            node.attr.has_xattrs = true;
            Ok(())
        })
    }

    async fn remove_xattr(&self, _creds: &Creds, inode: InodeId, name: &[u8]) -> Result<()> {
        let removed = self.change(inode.0, |node| node.xattrs.remove(name));
        removed
            .map(drop)
            .ok_or_else(|| error(ErrorCode::NoAttribute))
    }

    async fn list_xattr(&self, _creds: &Creds, inode: InodeId) -> Result<Vec<Bytes>> {
        Ok(self.change(inode.0, |node| node.xattrs.keys().cloned().collect()))
    }

    async fn set_lock(&self, inode: InodeId, lock: LockRequest, wait: bool) -> Result<()> {
        self.locks.set(inode.0, lock, wait).await
    }

    async fn test_lock(&self, inode: InodeId, lock: LockRequest) -> Result<Option<LockInfo>> {
        Ok(self.locks.conflict(inode.0, &lock))
    }

    async fn release_locks(&self, inode: InodeId, owner: u64, space: LockSpace) -> Result<()> {
        self.locks.release(inode.0, owner, space);
        Ok(())
    }

    async fn copy_range(
        &self,
        from: &MemoryFile,
        from_offset: u64,
        to: &MemoryFile,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let data = from.read(from_offset, len as usize).await?;
        let copied = data.len() as u64;
        to.write(to_offset, data).await?;
        Ok(copied)
    }

    fn hear_of_parents(&self, _hear: impl Fn(&Attr) + Send + Sync + 'static) {}

    fn losses_heard(&self, _inode: InodeId) -> LossesHeard {
        LossesHeard::default()
    }

    fn note_changes(&self, _note: impl Fn(u64, u64) + Send + Sync + 'static) {}

    fn inherit_changes(&self, _start: u64, _commit: u64) {}

    async fn sync_changes(&self, _inode: InodeId, _heard: &LossesHeard) -> Result<()> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn statfs(&self, _creds: &Creds, _inode: InodeId) -> Result<pb::StatFsReply> {
        Ok(pb::StatFsReply {
            capacity: 1 << 40,
            free: 1 << 39,
            inodes: self.nodes.lock().len() as u64,
            inodes_free: 1 << 20,
        })
    }

    fn watch(&self) -> Option<mpsc::Receiver<CacheEvent>> {
        let (sender, receiver) = mpsc::channel(16);
        *self.others.lock() = Some(sender);
        Some(receiver)
    }

    fn scope(&self, _log: Arc<dyn RequestLog>) -> Option<RequestScope> {
        None
    }

    fn hold_numbers(&self, _numbers: &[u64]) {}

    fn release_numbers(&self) {}

    async fn shut_out_earlier(&self) -> Result<()> {
        Ok(())
    }

    async fn resume_file(
        &self,
        _creds: &Creds,
        inode: InodeId,
        _flags: OpenFlags,
        _complete: bool,
    ) -> Result<(Attr, MemoryFile)> {
        Ok((self.attr(inode.0)?, self.file(inode.0)))
    }

    async fn resume_locks(&self) -> Result<Vec<InodeId>> {
        Ok(Vec::new())
    }

    async fn shutdown(&self) {
        self.shut_down.store(true, Ordering::Relaxed);
    }
}
