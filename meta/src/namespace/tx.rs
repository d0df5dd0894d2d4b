//! One transaction on the namespace: records instead of bytes.
//!
//! **Conflicts.** Everything that is done in a directory reads the directory's inode record (its
//! existence and permissions), and `rmdir` deletes that record: so the two conflict, while entries
//! of one directory do not conflict with each other. For the same reason what entries change of
//! their directory (times, number of subdirectories) is kept in keys of its own that are written
//! without being read.
//!
//! **Usage.** What it stores and removes of inodes is counted at its end, see [`super::usage`].
//!
//! **Caches.** What its caller is told is noted, and what it changes is collected, see [`crate::interests`].

use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result};
use prost::Message;

use super::core::Core;
use super::keys::{self, Span};
use super::records::{Dentry, DirTimes, InodeRecord, TrimIntent, decode, encode};
use super::usage::Ledger;
use super::usage::table::Table;
use super::{names, time};
use crate::interests::{Changed, ChangedName, Noter};
use crate::kv::Transaction;

/// See the module.
pub(crate) struct Tx<'a> {
    pub(crate) core: &'a Core,
    /// The time of this transaction.
    pub(crate) now: pb::Time,
    txn: &'a mut dyn Transaction,
    conflicts: bool,
    /// Notes what its caller is told.
    noter: Option<Noter>,
    /// Who is told.
    asker: Option<ClientId>,
    /// A file that he may not be told of yet, see [`crate::delegations`].
    withheld: Option<InodeId>,
    /// What it changes, for those who cached it.
    changed: Changed,
    /// The directories that it looked at.
    dirs: Vec<InodeRecord>,
    /// Those whose entries it changed.
    touched: Vec<InodeId>,
    /// Which quotas there are.
    pub(super) quotas: Arc<Table>,
    /// What it does to usage.
    pub(super) ledger: Ledger,
}

impl<'a> Tx<'a> {
    /// A transaction that will be committed.
    pub(crate) fn new(core: &'a Core, txn: &'a mut dyn Transaction, noter: Option<Noter>) -> Self {
        Self {
            core,
            now: time::now(),
            txn,
            conflicts: true,
            noter,
            asker: None,
            withheld: None,
            changed: Changed::default(),
            dirs: Vec::new(),
            touched: Vec::new(),
            quotas: core.quotas.current(),
            ledger: Ledger::default(),
        }
    }

    /// One that only looks at one snapshot.
    pub(crate) fn read_only(
        core: &'a Core,
        txn: &'a mut dyn Transaction,
        noter: Option<Noter>,
    ) -> Self {
        Self {
            conflicts: false,
            ..Self::new(core, txn, noter)
        }
    }

    /// Its caller is this client.
    pub(crate) fn asked_by(self, asker: Option<ClientId>) -> Self {
        Self { asker, ..self }
    }

    /// At its end: [`ErrorCode::Delegated`] if its caller would be told of a file that somebody else has to report first.
    pub(crate) fn check_withheld(&self) -> Result<()> {
        match self.withheld {
            Some(inode) => {
                let what = format!("inode {inode} is delegated to another client");
                Err(Error::new(ErrorCode::Delegated, what).newer_version(inode.0))
            }
            None => Ok(()),
        }
    }

    /// A file is given a name, which is not to be seen before what was written to it: whoever holds it reports.
    pub(crate) fn expose(&mut self, record: &InodeRecord) {
        self.recall(record, None);
    }

    fn recall(&mut self, record: &InodeRecord, asker: Option<ClientId>) {
        if !record.is_file() {
            return;
        }
        let delegations = &self.core.sessions.delegations;
        if let Some((holder, first)) = delegations.withheld(record.id(), asker) {
            self.withheld = Some(record.id());
            if first {
                self.core.interests.recall(holder, &[record.id()]);
            }
        }
    }

    /// What it has changed.
    pub(crate) fn into_changed(self) -> Changed {
        self.changed
    }

    /// Its caller is told names of this directory.
    pub(crate) fn note_names(&self, directory: InodeId) {
        if let Some(noter) = &self.noter {
            noter.names(directory);
        }
    }

    fn get_raw(&mut self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(if self.conflicts {
            self.txn.get(key)?
        } else {
            self.txn.get_snapshot(key)?
        })
    }

    pub(crate) fn get<R: Message + Default>(&mut self, key: &[u8]) -> Result<Option<R>> {
        self.get_raw(key)?.map(|bytes| decode(&bytes)).transpose()
    }

    pub(crate) fn exists(&mut self, key: &[u8]) -> Result<bool> {
        Ok(self.get_raw(key)?.is_some())
    }

    pub(crate) fn put(&mut self, key: &[u8], record: &impl Message) {
        self.txn.put(key, &encode(record));
    }

    pub(crate) fn put_empty(&mut self, key: &[u8]) {
        self.txn.put(key, &[]);
    }

    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.txn.delete(key);
    }

    pub(crate) fn delete_span(&mut self, span: &Span) {
        self.txn.delete_range(span.range());
    }

    pub(crate) fn add(&mut self, counter: &[u8], delta: i64) {
        self.txn.add_i64(counter, delta);
    }

    /// See [`Transaction::add_at_most`].
    pub(super) fn add_at_most(&mut self, counter: &[u8], delta: i64, max: i64) {
        self.txn.add_at_most(counter, delta, max);
    }

    /// A number changed by [`Self::add`], without a conflict.
    pub(super) fn peek_number(&mut self, key: &[u8]) -> Result<i64> {
        let bytes = self.txn.get_snapshot(key)?;
        Ok(as_number(bytes.as_deref()))
    }

    /// As [`Self::scan`], without a conflict.
    pub(crate) fn peek(&mut self, span: &Span, limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        Ok(self.txn.get_range_snapshot(span.range(), limit, false)?)
    }

    /// A number changed by [`Self::add`].
    pub(crate) fn number(&mut self, key: &[u8]) -> Result<i64> {
        let bytes = self.get_raw(key)?;
        Ok(as_number(bytes.as_deref()))
    }

    pub(crate) fn scan(&mut self, span: &Span, limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        Ok(if self.conflicts {
            self.txn.get_range(span.range(), limit, false)?
        } else {
            self.txn.get_range_snapshot(span.range(), limit, false)?
        })
    }

    pub(crate) fn inode(&mut self, id: InodeId) -> Result<Option<InodeRecord>> {
        let record: Option<InodeRecord> = self.get(&keys::inode(id))?;
        if let Some(record) = record.as_ref().filter(|_| self.counts()) {
            self.ledger.read(&self.quotas, record);
        }
        Ok(record)
    }

    /// Whether what it stores is counted.
    fn counts(&self) -> bool {
        self.conflicts && !self.quotas.is_idle()
    }

    /// As [`Self::inode`], whatever becomes of it before the commit.
    pub(crate) fn peek_inode(&mut self, id: InodeId) -> Result<Option<InodeRecord>> {
        let found = self.txn.get_snapshot(&keys::inode(id))?;
        found.map(|bytes| decode(&bytes)).transpose()
    }

    /// As [`Self::scan`], whatever becomes of it before the commit.
    pub(crate) fn peek_span(&mut self, span: &Span, limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        Ok(self.txn.get_range_snapshot(span.range(), limit, false)?)
    }

    /// An inode that must exist: [`ErrorCode::Stale`] otherwise.
    pub(crate) fn live(&mut self, id: InodeId) -> Result<InodeRecord> {
        self.inode(id)?.ok_or_else(|| names::stale(id))
    }

    /// A directory that something is looked up or changed in: [`ErrorCode::NotFound`] or
    /// [`ErrorCode::NotDirectory`] otherwise.
    pub(crate) fn dir(&mut self, id: InodeId) -> Result<InodeRecord> {
        let gone = || Error::new(ErrorCode::NotFound, format!("directory {id} was deleted"));
        let record = self.inode(id)?.ok_or_else(gone)?;
        if record.is_dir() && (record.condemned || record.trashed != 0) {
            return Err(gone());
        }
        if !record.is_dir() {
            let what = format!("inode {id} is not a directory");
            return Err(Error::new(ErrorCode::NotDirectory, what));
        }
        if self.conflicts && self.noter.is_some() {
            self.dirs.push(record.clone());
        }
        Ok(record)
    }

    /// The directories whose entries it changed, as they will be, for a caller who caches; he was noted for them before
    /// this transaction began. Nothing of it conflicts with others who change entries of theirs.
    pub(crate) fn parents(&mut self) -> Result<Vec<pb::Attr>> {
        let mut parents = Vec::new();
        for mut record in std::mem::take(&mut self.dirs) {
            let known = |parent: &pb::Attr| parent.inode == record.id;
            if !self.touched.contains(&record.id()) || parents.iter().any(known) {
                continue;
            }
            let subdirs = self.peek_number(&keys::subdirs(record.id()))?;
            (record.mtime, record.ctime) = (self.now, time::later(self.now, record.ctime));
            let mut attr = self.plain_attr(&record);
            self.fill_dir(&mut attr, &record, subdirs);
            parents.push(attr);
        }
        Ok(parents)
    }

    pub(crate) fn put_inode(&mut self, record: &InodeRecord) {
        self.changed.inodes.push(record.id());
        self.put_marks(record);
    }

    /// As [`Self::put_inode`], if what others may have cached stays as it is.
    pub(super) fn put_marks(&mut self, record: &InodeRecord) {
        if self.counts() {
            self.ledger.stored(&self.quotas, record);
        }
        self.put(&keys::inode(record.id()), record);
    }

    /// Adds an inode; a directory gets its times.
    pub(crate) fn add_inode(&mut self, record: &InodeRecord) {
        if self.counts() {
            self.ledger.added(record.id());
        }
        self.put_inode(record);
        self.add(keys::INODES, 1);
        if record.is_dir() {
            self.touch_dir(record.id());
        }
    }

    /// Removes an inode and what belongs to it.
    pub(crate) fn drop_inode(&mut self, record: &InodeRecord) {
        self.changed.inodes.push(record.id());
        self.delete(&keys::inode(record.id()));
        if self.counts() {
            self.ledger.dropped(record.id());
        }
        self.add(keys::INODES, -1);
        if record.trash_keep.is_some() {
            self.add(keys::TRASH_POLICIES, -1);
        }
        if record.is_dir() {
            self.delete(&keys::dir_times(record.id()));
            self.delete(&keys::subdirs(record.id()));
        }
        if record.xattr_names > 0 {
            self.delete_span(&keys::xattrs(record.id()));
        }
    }

    /// Takes one name from a non-directory. Without names a file becomes garbage, anything else
    /// goes at once.
    pub(crate) fn drop_link(&mut self, record: &mut InodeRecord) {
        record.nlink = record.nlink.saturating_sub(1);
        record.ctime = self.now;
        if record.nlink > 0 {
            self.put_inode(record);
        } else if record.is_file() {
            self.put_inode(record);
            self.put_empty(&keys::garbage(time::nanos(self.now), record.id()));
            self.add(keys::GARBAGE, 1);
        } else {
            self.drop_inode(record);
        }
    }

    pub(crate) fn dentry(&mut self, parent: InodeId, name: &[u8]) -> Result<Option<Dentry>> {
        self.note_names(parent);
        self.get(&keys::dentry(parent, name))
    }

    pub(crate) fn put_dentry(&mut self, parent: InodeId, name: &[u8], inode: &InodeRecord) {
        let dentry = Dentry {
            inode: inode.id,
            kind: inode.kind,
        };
        self.put(&keys::dentry(parent, name), &dentry);
        self.name_changed(parent, name);
    }

    fn name_changed(&mut self, parent: InodeId, name: &[u8]) {
        self.changed.names.push(ChangedName {
            directory: parent,
            name: Bytes::copy_from_slice(name),
            vacated: false,
        });
    }

    /// What stood at this name, which has changed, is in another directory now.
    pub(crate) fn vacated(&mut self, parent: InodeId, name: &[u8], what: &InodeRecord) {
        if what.is_dir() {
            let names = self.changed.names.iter_mut();
            for changed in names.filter(|it| it.directory == parent && it.name == name) {
                changed.vacated = true;
            }
        }
    }

    pub(crate) fn delete_dentry(&mut self, parent: InodeId, name: &[u8]) {
        self.delete(&keys::dentry(parent, name));
        self.name_changed(parent, name);
    }

    /// Whether a directory has no entries. Conflicts with every entry made meanwhile.
    pub(crate) fn is_empty(&mut self, dir: InodeId) -> Result<bool> {
        Ok(self.scan(&keys::dentries(dir), 1)?.is_empty())
    }

    /// Entries of the directory changed now.
    pub(crate) fn touch_dir(&mut self, id: InodeId) {
        self.changed.inodes.push(id);
        self.touched.push(id);
        let now = self.now;
        let times = DirTimes {
            mtime: now,
            ctime: now,
        };
        self.put(&keys::dir_times(id), &times);
    }

    pub(crate) fn add_subdirs(&mut self, dir: InodeId, delta: i64) {
        self.add(&keys::subdirs(dir), delta);
    }

    pub(crate) fn trim_intent(&mut self, id: InodeId) -> Result<Option<TrimIntent>> {
        self.get(&keys::trim(id))
    }

    /// Whether anybody has the file open for writing.
    pub(crate) fn has_writers(&mut self, id: InodeId) -> Result<bool> {
        Ok(!self.scan(&keys::sessions_of(id), 1)?.is_empty())
    }

    /// Attributes as users see them.
    pub(crate) fn attr(&mut self, record: &InodeRecord) -> Result<pb::Attr> {
        if let Some(noter) = &self.noter {
            noter.attributes(record.id());
        }
        if self.asker.is_some() {
            self.recall(record, self.asker);
        }
        let mut attr = self.plain_attr(record);
        if record.is_dir() {
            let times = self.get::<DirTimes>(&keys::dir_times(record.id()))?;
            if let Some(times) = times {
                attr.mtime = Some(times.mtime);
                attr.ctime = Some(time::later(times.ctime, record.ctime));
            }
            let subdirs = self.number(&keys::subdirs(record.id()))?;
            self.fill_dir(&mut attr, record, subdirs);
        }
        Ok(attr)
    }

    fn fill_dir(&self, attr: &mut pb::Attr, record: &InodeRecord, subdirs: i64) {
        attr.nlink = u32::try_from(subdirs.saturating_add(2)).unwrap_or(u32::MAX);
        attr.layout = Some(self.core.inherited_layout(record));
    }

    /// What the record itself says.
    fn plain_attr(&self, record: &InodeRecord) -> pb::Attr {
        let mut attr = pb::Attr {
            inode: record.id,
            kind: record.kind,
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            nlink: record.nlink,
            size: record.size,
            atime: Some(record.atime),
            mtime: Some(record.mtime),
            ctime: Some(record.ctime),
            rdev: record.rdev,
            layout: record.layout,
            truncate_epoch: record.epoch,
            generation: 1 + u64::from(record.returns),
            sparse: record.sparse,
            has_acl: !record.acl.is_empty() || !record.default_acl.is_empty(),
            has_xattrs: record.xattr_names > 0,
            ..pb::Attr::default()
        };
        if self.quotas.limits_bytes(record) {
            attr.limited = true;
            attr.granted = record.charged_bytes();
            attr.grant = record.grant;
        }
        attr
    }

    /// [`Self::attr`] of a name's inode.
    pub(crate) fn attr_of(&mut self, dentry: Dentry) -> Result<pb::Attr> {
        let record = self.live(dentry.id())?;
        self.attr(&record)
    }

    /// An inode of its own, not stored yet.
    pub(crate) fn fresh(
        &self,
        kind: FileKind,
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> Result<InodeRecord> {
        let now = self.now;
        Ok(InodeRecord {
            id: self.core.next_id()?,
            kind: kind as i32,
            mode,
            uid,
            gid,
            nlink: 1,
            atime: now,
            mtime: now,
            ctime: now,
            owner_era: self.quotas.era(),
            ..InodeRecord::default()
        })
    }
}

fn as_number(bytes: Option<&[u8]>) -> i64 {
    let low = bytes.and_then(<[u8]>::first_chunk);
    low.map_or(0, |low| i64::from_le_bytes(*low))
}
