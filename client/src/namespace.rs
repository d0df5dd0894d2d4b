//! The namespace verbs.

use bytes::Bytes;
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use crate::attr::AttrExt;
use crate::meta_rpc::{attr_of, rpc};
use crate::{
    Attr, Client, CreateFlags, Creds, File, LossesHeard, NewMode, OpenFlags, RenameFlags, SetAttr,
    TimeSet,
};

/// Most entries of one page of a directory.
const READDIR_LIMIT: u32 = 4096;

fn name_request(parent: InodeId, name: &[u8]) -> pb::NameRequest {
    pb::NameRequest {
        caller: None,
        parent: parent.0,
        name: Bytes::copy_from_slice(name),
    }
}

impl Client {
    /// Attributes from an answer, with what only this client knows.
    fn seen(&self, attr: Option<Attr>) -> Result<Attr> {
        let mut attr = attr_of(attr)?;
        self.core.overlay(&mut attr);
        Ok(attr)
    }

    /// From now on `hear` is told of each directory whose entries this client has changed, how it is after that, before the change
    /// is answered here; not always, and in any order. Only the first call counts.
    pub fn hear_of_parents(&self, hear: impl Fn(&Attr) + Send + Sync + 'static) {
        self.core.parents.get_or_init(|| Box::new(hear));
    }

    /// The entry `name` of a directory.
    pub async fn lookup(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        let request = name_request(parent, name);
        self.seen(rpc!(self.core.meta, creds, Reads, lookup, request)?.attr)
    }

    /// Attributes, with the size and mtime of this client's writes that are not yet synced.
    pub async fn getattr(&self, inode: InodeId) -> Result<Attr> {
        self.seen(Some(self.core.fetch_attr(inode).await?))
    }

    /// Changes attributes. `file`: an open handle on the inode (ftruncate through one that may write
    /// needs no permission check). A new size takes effect after all buffered writes of this
    /// client; those beyond it are dropped.
    pub async fn setattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        changes: SetAttr,
        file: Option<&File>,
    ) -> Result<Attr> {
        let at = |time: Option<TimeSet>| match time {
            Some(TimeSet::At(time)) => Some(pb::Time::from(time)),
            _ => None,
        };
        let request = pb::SetAttrRequest {
            caller: None,
            inode: inode.0,
            mode: changes.mode,
            uid: changes.uid,
            gid: changes.gid,
            size: changes.size,
            atime: at(changes.atime),
            mtime: at(changes.mtime),
            atime_now: changes.atime == Some(TimeSet::Now),
            mtime_now: changes.mtime == Some(TimeSet::Now),
            session: file
                .filter(|f| f.inode() == inode && f.flags().write)
                .map_or(0, File::session),
        };
        let known = self.core.known(inode);
        // A new size must not overtake writes.
        let gate = match &known {
            Some(state) if changes.size.is_some() => {
                let gate = state.gate.write().await;
                self.core.quiesce(state, changes.size).await?;
                Some(gate)
            }
            _ => None,
        };
        // A report that is on its way, or made later, must not undo a new mtime.
        let _turn = match &known {
            Some(state) if changes.mtime.is_some() => Some(state.reporting.lock().await),
            _ => None,
        };
        let reply = rpc!(self.core.meta, creds, Changes, set_attr, request)?;
        self.core.changed(reply.log, None, reply.attr.as_ref());
        if let Some(state) = &known {
            if changes.mtime.is_some() {
                let mtime = attr_of(reply.attr)?.modified();
                state.length.lock().set_mtime(mtime);
            }
            if changes.size.is_some() {
                state.read_ahead.lock().clear();
            }
        }
        let attr = self.seen(reply.attr);
        drop(gate);
        attr
    }

    /// Creates a file, or opens the one that has the name. `mode`: umask already applied.
    pub async fn create(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        self.create_with(creds, parent, name, mode.into(), flags)
            .await
    }

    /// As [`Self::create`], with the umask to be applied by the server.
    pub async fn create_with(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: NewMode,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        let making = self.core.delegations.making().filter(|_| flags.write);
        let request = pb::CreateRequest {
            caller: None,
            parent: parent.0,
            name: Bytes::copy_from_slice(name),
            mode: mode.mode,
            exclusive: flags.exclusive,
            truncate: flags.truncate,
            write: flags.write,
            umask: mode.umask,
            delegate: making.is_some(),
        };
        let open = OpenFlags {
            read: flags.read,
            write: flags.write,
            ..OpenFlags::default()
        };
        let ordered = flags.truncate && !flags.exclusive && !self.core.inodes.lock().is_empty();
        if ordered {
            // Most often there is no such file, and then nothing to be ordered.
            let exclusive = pb::CreateRequest {
                exclusive: true,
                ..request.clone()
            };
            match rpc!(self.core.meta, creds, Changes, create, exclusive) {
                Err(error) if error.code == ErrorCode::Exists => {}
                made => return self.created(creds, Some(parent), &made?, open),
            }
        }
        let existing = if ordered {
            // Perhaps a file that this client writes to: those writes come before the truncate.
            match self.lookup(creds, parent, name).await {
                Ok(attr) => Some(InodeId(attr.inode)),
                Err(error) if error.code == ErrorCode::NotFound => None,
                Err(error) => return Err(error),
            }
        } else {
            None
        };
        let known = existing.and_then(|inode| self.core.known(inode));
        let _gate = match &known {
            Some(state) => {
                let gate = state.gate.write().await;
                self.core.quiesce(state, Some(0)).await?;
                Some(gate)
            }
            None => None,
        };
        let reply = rpc!(self.core.meta, creds, Changes, create, request)?;
        self.created(creds, Some(parent), &reply, open)
    }

    /// Opens a file.
    pub async fn open(
        &self,
        creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
    ) -> Result<(Attr, File)> {
        let request = pb::OpenRequest {
            caller: None,
            inode: inode.0,
            read: flags.read,
            write: flags.write,
            truncate: flags.truncate,
            execute: flags.execute,
        };
        let known = if flags.truncate {
            self.core.known(inode)
        } else {
            None
        };
        let _gate = match &known {
            Some(state) => {
                let gate = state.gate.write().await;
                self.core.quiesce(state, Some(0)).await?;
                Some(gate)
            }
            None => None,
        };
        let reply = rpc!(self.core.meta, creds, Changes, open, request)?;
        self.opened(creds, &reply, flags)
    }

    /// As [`Self::opened`], perhaps of a new file, in the directory `parent` if it has a name.
    pub(crate) fn created(
        &self,
        creds: &Creds,
        parent: Option<InodeId>,
        reply: &pb::OpenReply,
        flags: OpenFlags,
    ) -> Result<(Attr, File)> {
        if reply.created {
            self.core.changed(reply.log, parent, reply.attr.as_ref());
        }
        self.opened(creds, reply, flags)
    }

    pub(crate) fn opened(
        &self,
        creds: &Creds,
        reply: &pb::OpenReply,
        flags: OpenFlags,
    ) -> Result<(Attr, File)> {
        self.core.told_parents(&reply.parents);
        let mut attr = attr_of(reply.attr)?;
        let state = self.core.state_of(&attr)?;
        state.length.lock().overlay(&mut attr);
        let file = File::new(self.core.clone(), state, creds, reply.session, flags);
        if reply.created {
            file.mark_fresh();
        }
        if reply.delegated && !self.core.delegations.given(file.inode(), file.handle()) {
            self.core.recalled(vec![file.inode()]);
        }
        Ok((attr, file))
    }

    /// For who opens a file or directory: of which losses [`Self::sync_changes`] need not tell.
    pub fn losses_heard(&self, inode: InodeId) -> LossesHeard {
        self.core.names.heard(inode)
    }

    /// Waits until what this client has changed of an inode's attributes, and of the names in it, survives a loss of power, as
    /// fsync(2) of it does. What makes and removes names and sets attributes may be answered before that; all else is not.
    ///
    /// [`ErrorCode::ChangesLost`], once for each `heard`: some of it was lost, because the metadata server lost its power.
    pub async fn sync_changes(&self, inode: InodeId, heard: &LossesHeard) -> Result<()> {
        self.core.settle_changes(Some(inode)).await?;
        if self.core.names.tell(inode, heard) {
            let what = format!(
                "inode {inode}: the metadata server lost its power before names or attributes that were changed here were on \
                 its disk, and they are lost; look at what is there, and change it again"
            );
            return Err(Error::new(ErrorCode::ChangesLost, what));
        }
        Ok(())
    }

    /// Creates a directory. `mode`: umask already applied.
    pub async fn mkdir(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr> {
        self.mkdir_with(creds, parent, name, mode.into()).await
    }

    /// As [`Self::mkdir`], with the umask to be applied by the server.
    pub async fn mkdir_with(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: NewMode,
    ) -> Result<Attr> {
        let name = Bytes::copy_from_slice(name);
        let request = pb::MkdirRequest {
            caller: None,
            parent: parent.0,
            name,
            mode: mode.mode,
            umask: mode.umask,
        };
        let reply = rpc!(self.core.meta, creds, Changes, mkdir, request)?;
        self.core.told_parents(&reply.parents);
        self.core
            .changed(reply.log, Some(parent), reply.attr.as_ref());
        attr_of(reply.attr)
    }

    /// Creates a symbolic link to `target`.
    pub async fn symlink(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr> {
        let request = pb::SymlinkRequest {
            caller: None,
            parent: parent.0,
            name: Bytes::copy_from_slice(name),
            target: Bytes::copy_from_slice(target),
        };
        let reply = rpc!(self.core.meta, creds, Changes, symlink, request)?;
        self.core.told_parents(&reply.parents);
        self.core
            .changed(reply.log, Some(parent), reply.attr.as_ref());
        attr_of(reply.attr)
    }

    /// Creates a FIFO, socket, device or empty file. `mode`: umask already applied.
    pub async fn mknod(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        kind: pb::FileKind,
        mode: u32,
        rdev: u32,
    ) -> Result<Attr> {
        self.mknod_with(creds, parent, name, kind, mode.into(), rdev)
            .await
    }

    /// As [`Self::mknod`], with the umask to be applied by the server.
    pub async fn mknod_with(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        kind: pb::FileKind,
        mode: NewMode,
        rdev: u32,
    ) -> Result<Attr> {
        let request = pb::MknodRequest {
            caller: None,
            parent: parent.0,
            name: Bytes::copy_from_slice(name),
            kind: kind.into(),
            mode: mode.mode,
            rdev,
            umask: mode.umask,
        };
        let reply = rpc!(self.core.meta, creds, Changes, mknod, request)?;
        self.core.told_parents(&reply.parents);
        self.core
            .changed(reply.log, Some(parent), reply.attr.as_ref());
        attr_of(reply.attr)
    }

    /// Gives `inode` a further name.
    pub async fn link(
        &self,
        creds: &Creds,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        let name = Bytes::copy_from_slice(name);
        let request = pb::LinkRequest {
            caller: None,
            inode: inode.0,
            parent: parent.0,
            name,
        };
        let reply = rpc!(self.core.meta, creds, Changes, link, request)?;
        self.core.told_parents(&reply.parents);
        self.seen(reply.attr)
    }

    /// Removes a name that is no directory; answers the attributes of its inode after that.
    pub async fn unlink(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        let request = name_request(parent, name);
        let reply = rpc!(self.core.meta, creds, Changes, unlink, request)?;
        self.core.told_parents(&reply.parents);
        self.core
            .changed(reply.log, Some(parent), reply.attr.as_ref());
        self.seen(reply.attr)
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        let request = name_request(parent, name);
        let reply = rpc!(self.core.meta, creds, Changes, rmdir, request)?;
        self.core.told_parents(&reply.parents);
        self.core
            .changed(reply.log, Some(parent), reply.attr.as_ref());
        attr_of(reply.attr)
    }

    /// Removes a directory with everything below it, as root: the name is gone when this returns, the rest goes in the
    /// background. Files that are open live until they are closed.
    pub async fn remove_tree(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        let request = name_request(parent, name);
        let reply = rpc!(self.core.meta, creds, Changes, remove_tree, request)?;
        self.core.told_parents(&reply.parents);
        attr_of(reply.attr)
    }

    /// Renames. The answer tells what moved and what, if anything, was replaced.
    pub async fn rename(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<pb::RenameReply> {
        let request = pb::RenameRequest {
            caller: None,
            parent: parent.0,
            name: Bytes::copy_from_slice(name),
            new_parent: new_parent.0,
            new_name: Bytes::copy_from_slice(new_name),
            no_replace: flags.no_replace,
            exchange: flags.exchange,
        };
        let mut reply = rpc!(self.core.meta, creds, Changes, rename, request)?;
        self.core.told_parents(&reply.parents);
        for attr in reply.moved.iter_mut().chain(&mut reply.replaced) {
            self.core.overlay(attr);
        }
        Ok(reply)
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, creds: &Creds, inode: InodeId) -> Result<Bytes> {
        let request = pb::GetAttrRequest {
            caller: None,
            inode: inode.0,
        };
        Ok(rpc!(self.core.meta, creds, Reads, readlink, request)?.target)
    }

    /// Capacity and use: of the cluster, or of the tree with a quota that `inode` is in, if that is less.
    pub async fn statfs(&self, creds: &Creds, inode: InodeId) -> Result<pb::StatFsReply> {
        let request = pb::StatFsRequest {
            caller: None,
            inode: inode.0,
        };
        rpc!(self.core.meta, creds, Reads, stat_fs, request)
    }

    /// One page of a directory: up to `limit` entries (at most 4096; 0 means that) after the name
    /// `after` (empty: from the start).
    pub async fn readdir(
        &self,
        creds: &Creds,
        inode: InodeId,
        after: &[u8],
        limit: u32,
    ) -> Result<pb::ReadDirReply> {
        let limit = if limit == 0 {
            READDIR_LIMIT
        } else {
            limit.min(READDIR_LIMIT)
        };
        let after = Bytes::copy_from_slice(after);
        let request = pb::ReadDirRequest {
            caller: None,
            inode: inode.0,
            after,
            limit,
        };
        let mut reply = rpc!(self.core.meta, creds, Reads, read_dir, request)?;
        for attr in reply
            .entries
            .iter_mut()
            .filter_map(|entry| entry.attr.as_mut())
        {
            self.core.overlay(attr);
        }
        Ok(reply)
    }
}
