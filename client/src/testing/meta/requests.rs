//! Its answers about names, inodes and open files.

use emberfs_proto::pb::metadata_server::Metadata;
use emberfs_proto::{ErrorCode, pb};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::super::CLUSTER;
use super::{FakeMeta, Reply, attr_reply, fail};

#[tonic::async_trait]
impl Metadata for FakeMeta {
    async fn close_many(
        &self,
        request: Request<pb::CloseManyRequest>,
    ) -> Reply<pb::CloseManyReply> {
        let mut state = self.state.lock();
        for one in &request.get_ref().sessions {
            state.sessions.remove(&one.session);
        }
        let reported = state.ends.len();
        let returned = request.get_ref().returned.iter();
        state
            .returned
            .extend(returned.map(|&inode| (inode, reported)));
        Ok(Response::new(pb::CloseManyReply {}))
    }

    async fn reserve(&self, request: Request<pb::ReserveRequest>) -> Reply<pb::AttrReply> {
        let request = request.into_inner();
        let mut state = self.state.lock();
        state.reserved.push((request.inode, request.end));
        if !state.sessions.contains_key(&request.session) {
            return fail(ErrorCode::NoSession, "no such session");
        }
        let most = state.most;
        let attr = state.file(request.inode)?;
        if attr.limited && request.end > attr.granted {
            if request.end > most {
                return fail(ErrorCode::QuotaExceeded, "the quota is used up");
            }
            attr.granted = (request.end + 1000).min(most);
        }
        Ok(Response::new(attr_reply(Some(*attr))))
    }

    async fn set_quota(&self, _: Request<pb::SetQuotaRequest>) -> Reply<pb::ListQuotasReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn list_quotas(&self, _: Request<pb::ListQuotasRequest>) -> Reply<pb::ListQuotasReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn remove_tree(&self, _: Request<pb::NameRequest>) -> Reply<pb::UnlinkReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    type WatchInodesStream = ReceiverStream<Result<pb::Invalidation, Status>>;

    async fn watch_inodes(
        &self,
        _: Request<pb::WatchInodesRequest>,
    ) -> Reply<Self::WatchInodesStream> {
        let (sender, receiver) = mpsc::channel(16);
        let first = pb::Invalidation {
            term_ms: 300,
            ..pb::Invalidation::default()
        };
        drop(sender.try_send(Ok(first)));
        self.state.lock().watchers.push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Reply<pb::AttachReply> {
        let mut state = self.state.lock();
        let caller = request.get_ref().caller.clone().unwrap();
        state.check_instance(Some(&caller))?;
        state.instances.insert(caller.client, caller.instance);
        state.attached += 1;
        state.locks.attached(request.get_ref().caller.as_ref());
        let root = state.files.get(&1).copied();
        let cluster = CLUSTER.to_bytes();
        Ok(Response::new(pb::AttachReply {
            cluster,
            protocol_version: 1,
            root,
            lease_ms: 300,
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<pb::KeepAliveRequest>,
    ) -> Reply<pb::KeepAliveReply> {
        let mut state = self.state.lock();
        let caller = request.get_ref().caller.as_ref();
        state.check_instance(caller)?;
        state.acknowledged = caller.unwrap().acknowledged;
        let forgotten = std::mem::take(&mut state.forgotten);
        let sessions_lost = forgotten || state.locks.forgot(request.get_ref().caller.as_ref());
        Ok(Response::new(pb::KeepAliveReply {
            lease_ms: 300,
            sessions_lost,
        }))
    }

    async fn lookup(&self, request: Request<pb::NameRequest>) -> Reply<pb::AttrReply> {
        let state = self.state.lock();
        match state.names.get(&request.get_ref().name) {
            Some(inode) => Ok(Response::new(attr_reply(state.files.get(inode).copied()))),
            None => fail(ErrorCode::NotFound, "no such name"),
        }
    }

    async fn lookup_many(
        &self,
        request: Request<pb::LookupManyRequest>,
    ) -> Reply<pb::LookupManyReply> {
        let mut state = self.state.lock();
        state.lookups += 1;
        let found = |name| {
            let attr = *state.files.get(state.names.get(name)?)?;
            Some(attr)
        };
        let results = request.get_ref().names.iter().map(|name| {
            let (attr, status) = match found(name) {
                None => (None, ErrorCode::NotFound as u32),
                Some(attr) if state.truncating.contains(&attr.inode) => {
                    (None, ErrorCode::Busy as u32)
                }
                Some(attr) if attr.mode & 0o004 == 0 => (None, ErrorCode::PermissionDenied as u32),
                attr => (attr, 0),
            };
            let message = String::new();
            pb::LookupResult {
                attr,
                status,
                message,
            }
        });
        let results = results.collect();
        Ok(Response::new(pb::LookupManyReply { results }))
    }

    async fn get_attr(&self, request: Request<pb::GetAttrRequest>) -> Reply<pb::AttrReply> {
        let mut state = self.state.lock();
        state.get_attrs += 1;
        let attr = *state.file(request.get_ref().inode)?;
        Ok(Response::new(attr_reply(Some(attr))))
    }

    async fn set_attr(&self, request: Request<pb::SetAttrRequest>) -> Reply<pb::AttrReply> {
        let request = request.into_inner();
        self.change("set_attr", request.caller.as_ref(), |state| {
            if let Some(size) = request.size {
                state.resize(request.inode, size)?;
            }
            let attr = state.file(request.inode)?;
            attr.mode = request.mode.unwrap_or(attr.mode);
            attr.mtime = request.mtime.or(attr.mtime);
            let mut reply = attr_reply(Some(*attr));
            reply.log = Some(state.early());
            Ok(Response::new(reply))
        })
    }

    async fn create(&self, request: Request<pb::CreateRequest>) -> Reply<pb::OpenReply> {
        let request = request.into_inner();
        let number = request.caller.as_ref().unwrap().request;
        self.change("create", request.caller.as_ref(), |state| {
            if let Some(record) = state.records.get(&number) {
                return Ok(Response::new(record.clone()));
            }
            let existing = state.names.get(&request.name).copied();
            if existing.is_some() && request.exclusive {
                return fail(ErrorCode::Exists, "exists");
            }
            let inode = match existing {
                Some(inode) => inode,
                None => state.new_inode(pb::FileKind::File, request.mode & !request.umask),
            };
            if request.truncate {
                state.resize(inode, 0)?;
            }
            state.names.insert(request.name.clone(), inode);
            let mut reply = state.session(inode, request.write, existing.is_none());
            reply.delegated = request.delegate && existing.is_none();
            reply.log = Some(state.early());
            state.records.insert(number, reply.clone());
            Ok(Response::new(reply))
        })
    }

    async fn create_unnamed(
        &self,
        request: Request<pb::CreateUnnamedRequest>,
    ) -> Reply<pb::OpenReply> {
        let request = request.into_inner();
        self.change("create_unnamed", request.caller.as_ref(), |state| {
            let inode = state.new_inode(pb::FileKind::File, request.mode);
            state.file(inode)?.nlink = 0;
            Ok(Response::new(state.session(inode, true, true)))
        })
    }

    async fn open(&self, request: Request<pb::OpenRequest>) -> Reply<pb::OpenReply> {
        let request = request.into_inner();
        self.change("open", request.caller.as_ref(), |state| {
            state.file(request.inode)?;
            let uid = request.caller.as_ref().unwrap().uid;
            state.opens.push((request.inode, uid));
            if request.truncate {
                state.resize(request.inode, 0)?;
            }
            Ok(Response::new(state.session(
                request.inode,
                request.write,
                false,
            )))
        })
    }

    async fn sync(&self, request: Request<pb::SyncRequest>) -> Reply<pb::AttrReply> {
        let request = request.into_inner();
        self.change("sync", request.caller.as_ref(), |state| {
            if request.session == 0 && request.end.is_none() {
                let attr = *state.file(request.inode)?;
                let mut reply = attr_reply(Some(attr));
                state.sync_log(&mut reply, &request.starts);
                return Ok(Response::new(reply));
            }
            state.sync(&request, false)
        })
    }

    async fn close(&self, request: Request<pb::SyncRequest>) -> Reply<pb::AttrReply> {
        let request = request.into_inner();
        self.change("close", request.caller.as_ref(), |state| {
            state.sync(&request, true)
        })
    }

    async fn readlink(&self, request: Request<pb::GetAttrRequest>) -> Reply<pb::ReadlinkReply> {
        let target = self.state.lock().links[&request.get_ref().inode].clone();
        Ok(Response::new(pb::ReadlinkReply { target }))
    }

    async fn set_xattr(&self, request: Request<pb::SetXattrRequest>) -> Reply<pb::AttrReply> {
        let request = request.into_inner();
        self.change("set_xattr", request.caller.as_ref(), |state| {
            let attr = Some(*state.file(request.inode)?);
            state.xattrs.set(&request)?;
            Ok(Response::new(attr_reply(attr)))
        })
    }

    async fn remove_xattr(&self, request: Request<pb::XattrRequest>) -> Reply<pb::AttrReply> {
        let request = request.into_inner();
        self.change("remove_xattr", request.caller.as_ref(), |state| {
            let attr = Some(*state.file(request.inode)?);
            state.xattrs.remove(&request)?;
            Ok(Response::new(attr_reply(attr)))
        })
    }

    async fn get_xattr(&self, request: Request<pb::XattrRequest>) -> Reply<pb::GetXattrReply> {
        let value = self.state.lock().xattrs.get(request.get_ref())?;
        Ok(Response::new(pb::GetXattrReply { value }))
    }

    async fn list_xattr(&self, request: Request<pb::GetAttrRequest>) -> Reply<pb::ListXattrReply> {
        let names = self.state.lock().xattrs.list(request.get_ref().inode);
        Ok(Response::new(pb::ListXattrReply { names }))
    }

    async fn mkdir(&self, _: Request<pb::MkdirRequest>) -> Reply<pb::AttrReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn symlink(&self, _: Request<pb::SymlinkRequest>) -> Reply<pb::AttrReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn mknod(&self, _: Request<pb::MknodRequest>) -> Reply<pb::AttrReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn link(&self, request: Request<pb::LinkRequest>) -> Reply<pb::AttrReply> {
        let request = request.into_inner();
        self.change("link", request.caller.as_ref(), |state| {
            let attr = state.file(request.inode)?;
            attr.nlink += 1;
            let attr = Some(*attr);
            state.names.insert(request.name.clone(), request.inode);
            Ok(Response::new(attr_reply(attr)))
        })
    }

    async fn unlink(&self, _: Request<pb::NameRequest>) -> Reply<pb::UnlinkReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn rmdir(&self, _: Request<pb::NameRequest>) -> Reply<pb::UnlinkReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn rename(&self, _: Request<pb::RenameRequest>) -> Reply<pb::RenameReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn read_dir(&self, _: Request<pb::ReadDirRequest>) -> Reply<pb::ReadDirReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn stat_fs(&self, _: Request<pb::StatFsRequest>) -> Reply<pb::StatFsReply> {
        let free = self.state.lock().free;
        Ok(Response::new(pb::StatFsReply {
            capacity: 1 << 40,
            free,
            ..pb::StatFsReply::default()
        }))
    }

    async fn summary(&self, _: Request<pb::SummaryRequest>) -> Reply<pb::SummaryReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn lock(&self, request: Request<pb::LockRequest>) -> Reply<pb::LockReply> {
        let reply = self.fake_lock(request.into_inner()).await;
        Ok(Response::new(reply?))
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Reply<pb::LockReply> {
        Ok(Response::new(self.fake_unlock(request.get_ref())?))
    }

    async fn test_lock(&self, request: Request<pb::TestLockRequest>) -> Reply<pb::TestLockReply> {
        Ok(Response::new(self.fake_test(request.get_ref())?))
    }

    async fn cancel_lock(&self, request: Request<pb::CancelLockRequest>) -> Reply<pb::LockReply> {
        Ok(Response::new(self.fake_cancel(request.get_ref())?))
    }

    async fn reclaim_locks(
        &self,
        request: Request<pb::ReclaimLocksRequest>,
    ) -> Reply<pb::ReclaimLocksReply> {
        Ok(Response::new(self.fake_reclaim(request.get_ref())?))
    }

    async fn resume_locks(
        &self,
        request: Request<pb::ResumeLocksRequest>,
    ) -> Reply<pb::ResumeLocksReply> {
        Ok(Response::new(self.fake_resume(request.get_ref())?))
    }

    async fn list_locks(&self, _: Request<pb::ListLocksRequest>) -> Reply<pb::ListLocksReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn list_inodes(&self, _: Request<pb::ListInodesRequest>) -> Reply<pb::ListInodesReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn set_trash(&self, _: Request<pb::SetTrashRequest>) -> Reply<pb::TrashPolicy> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn get_trash(&self, _: Request<pb::GetAttrRequest>) -> Reply<pb::TrashPolicy> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn list_trash(&self, _: Request<pb::ListTrashRequest>) -> Reply<pb::ListTrashReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn restore_trash(
        &self,
        _: Request<pb::RestoreTrashRequest>,
    ) -> Reply<pb::RestoreTrashReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn purge_trash(&self, _: Request<pb::PurgeTrashRequest>) -> Reply<pb::PurgeTrashReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }
}
