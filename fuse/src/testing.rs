//! A file system in memory, behind the handler's tests and the mount's.
//!
//! Harsher than the real client in one respect: sizes lag behind writes until a sync, also in
//! `getattr`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use emberfs_client::{Attr, CreateFlags, Creds, OpenFlags, RenameFlags, Result, SetAttr, TimeSet};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, FileKind, Time};
use emberfs_proto::{Error, ErrorCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{Backend, OpenFile};

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
    pub(crate) syncs: AtomicU64,
    pub(crate) open_files: AtomicU64,
    pub(crate) readdirs: AtomicU64,
    pub(crate) shut_down: AtomicBool,
    pub(crate) fail_sync: AtomicBool,
    /// Lookups of [`HANG`] names that have come.
    pub(crate) hanging: watch::Sender<u64>,
    /// They are answered.
    pub(crate) released: watch::Sender<bool>,
}

#[derive(Default)]
struct Node {
    attr: Attr,
    data: Vec<u8>,
    target: Bytes,
    names: BTreeMap<Bytes, u64>,
    parent: u64,
    dirty: bool,
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

    /// Creates a file, as another machine would.
    pub(crate) fn create_elsewhere(&self, parent: u64, name: &str, data: &[u8]) -> u64 {
        let attr = self
            .add(InodeId(parent), name.as_bytes(), FileKind::File, 0o644)
            .unwrap();
        self.write_elsewhere(attr.inode, data);
        attr.inode
    }

    /// Replaces a file's contents, as another machine would.
    pub(crate) fn write_elsewhere(&self, inode: u64, data: &[u8]) {
        let now = Some(self.now());
        self.change(inode, |node| {
            node.data = data.to_vec();
            node.attr.truncate_epoch += u64::from((data.len() as u64) < node.attr.size);
            (node.attr.size, node.attr.mtime, node.attr.ctime) = (data.len() as u64, now, now);
        });
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
        if name.starts_with(HANG.as_bytes()) {
            let mut released = self.released.subscribe();
            self.hanging.send_modify(|count| *count += 1);
            let _ = released.wait_for(|released| *released).await;
        }
        self.attr(self.child(parent, name)?)
    }

    async fn getattr(&self, inode: InodeId) -> Result<Attr> {
        self.attr(inode.0)
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
        mode: u32,
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
            Err(_) => self.add(parent, name, FileKind::File, mode)?,
        };
        attr.uid = creds.uid;
        self.change(attr.inode, |node| node.attr.uid = creds.uid);
        let file = self.file(attr.inode);
        Ok((attr, file))
    }

    async fn open(
        &self,
        _creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
    ) -> Result<(Attr, MemoryFile)> {
        self.attr(inode.0)?;
        if flags.truncate {
            self.truncate(inode.0, 0);
        }
        Ok((self.attr(inode.0)?, self.file(inode.0)))
    }

    async fn mkdir(&self, _creds: &Creds, parent: InodeId, name: &[u8], mode: u32) -> Result<Attr> {
        self.add(parent, name, FileKind::Directory, mode)
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
        mode: u32,
        rdev: u32,
    ) -> Result<Attr> {
        let attr = self.add(parent, name, kind, mode)?;
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

    async fn statfs(&self, _creds: &Creds) -> Result<pb::StatFsReply> {
        Ok(pb::StatFsReply {
            capacity: 1 << 40,
            free: 1 << 39,
            inodes: self.nodes.lock().len() as u64,
            inodes_free: 1 << 20,
        })
    }

    async fn shutdown(&self) {
        self.shut_down.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone)]
pub(crate) struct MemoryFile {
    memory: Memory,
    inode: u64,
}

impl OpenFile for MemoryFile {
    async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.memory.reads.fetch_add(1, Ordering::Relaxed);
        Ok(self.memory.change(self.inode, |node| {
            let start = (offset as usize).min(node.data.len());
            let end = (start + len).min(node.data.len());
            Bytes::copy_from_slice(&node.data[start..end])
        }))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.memory.change(self.inode, |node| {
            let end = offset as usize + data.len();
            if node.data.len() < end {
                node.data.resize(end, 0);
            }
            node.data[offset as usize..end].copy_from_slice(&data);
            node.dirty = true;
        });
        Ok(())
    }

    async fn sync(&self) -> Result<Attr> {
        self.memory.syncs.fetch_add(1, Ordering::Relaxed);
        if self.memory.fail_sync.load(Ordering::Relaxed) {
            return Err(error(ErrorCode::NoSpace));
        }
        let now = Some(self.memory.now());
        Ok(self.memory.change(self.inode, |node| {
            if std::mem::take(&mut node.dirty) {
                node.attr.size = node.data.len() as u64;
                (node.attr.mtime, node.attr.ctime) = (now, now);
            }
            node.attr
        }))
    }

    async fn close(self) -> Result<()> {
        self.memory.open_files.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}
