//! A metadata server with one directory, exactly-once changes, and faults on demand.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::NodeId;
use emberfs_proto::layout::Layout;
use emberfs_proto::pb::cluster_server::{Cluster, ClusterServer};
use emberfs_proto::pb::metadata_server::{Metadata, MetadataServer};
use emberfs_proto::wire::metadata::MetadataFrames;
use emberfs_proto::wire::port;
use emberfs_proto::wire::server::{Host, Limits, serve};
use emberfs_proto::{Error, ErrorCode, pb};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::locks::FakeLocks;
use super::xattr::Xattrs;
use super::{CLUSTER, Shared};

type Reply<T> = Result<Response<T>, Status>;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: HashMap<u64, pb::Attr>,
    names: BTreeMap<Bytes, u64>,
    links: HashMap<u64, Bytes>,
    /// Open sessions: inode and whether for writing.
    pub(crate) sessions: HashMap<u64, (u64, bool)>,
    last_session: u64,
    /// Every request that changes something: verb, request number, acknowledged.
    pub(crate) changes: Vec<(&'static str, u64, u64)>,
    /// Reported ends: (inode, end).
    pub(crate) ends: Vec<(u64, Option<u64>)>,
    pub(crate) attached: usize,
    pub(crate) get_attrs: usize,
    /// Lookups of many names.
    pub(crate) lookups: usize,
    /// Files that such a lookup refuses for now.
    pub(crate) truncating: HashSet<u64>,
    pub(crate) forgotten: bool,
    /// Where the chunks of a file end, if not where it was reported.
    pub(crate) stored: HashMap<u64, u64>,
    /// Opens of a file: inode and user.
    pub(crate) opens: Vec<(u64, u32)>,
    /// What the last keep-alive has acknowledged.
    pub(crate) acknowledged: u64,
    /// The newest process of each client.
    instances: HashMap<Bytes, u32>,
    /// Requests for room: (inode, end).
    pub(crate) reserved: Vec<(u64, u64)>,
    /// How long a limited file may be.
    pub(crate) most: u64,
    pub(crate) locks: FakeLocks,
    /// Where clients hear of changes by others.
    pub(crate) watchers: Vec<mpsc::Sender<Result<pb::Invalidation, Status>>>,
    records: HashMap<u64, pb::OpenReply>,
    xattrs: Xattrs,
    /// Verb, error, and whether the change is made before it is answered.
    faults: VecDeque<(&'static str, ErrorCode, bool)>,
    layout: Option<Layout>,
}

#[derive(Clone)]
pub(crate) struct FakeMeta {
    pub(crate) state: Shared<State>,
    map: watch::Sender<Arc<ClusterMap>>,
    addr: String,
    task: Shared<Option<AbortHandle>>,
}

fn attr_reply(attr: Option<pb::Attr>) -> pb::AttrReply {
    pb::AttrReply {
        attr,
        parents: Vec::new(),
    }
}

fn fail<T>(code: ErrorCode, what: &str) -> Result<T, Status> {
    Err(Error::new(code, what).into())
}

impl FakeMeta {
    pub(crate) async fn start(layout: Layout, map: ClusterMap) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let root = pb::Attr {
            inode: 1,
            kind: pb::FileKind::Directory.into(),
            mode: 0o755,
            nlink: 2,
            ..pb::Attr::default()
        };
        let state = State {
            files: HashMap::from([(1, root)]),
            layout: Some(layout),
            ..State::default()
        };
        let this = Self {
            state: Arc::new(parking_lot::Mutex::new(state)),
            map: watch::Sender::new(Arc::new(map)),
            addr,
            task: Arc::default(),
        };
        this.serve(listener);
        this
    }

    fn serve(&self, listener: TcpListener) {
        let server = tonic::transport::Server::builder()
            .add_service(MetadataServer::new(self.clone()))
            .add_service(ClusterServer::new(self.clone()));
        let port::Split {
            frames,
            grpc,
            accepting,
        } = port::split(listener);
        let host = Host {
            cluster: CLUSTER,
            node: NodeId::default(),
        };
        let service = Arc::new(MetadataFrames(self.clone()));
        let (keep, stop) = watch::channel(false);
        // They live on when this ends.
        let by_frames = serve(
            frames,
            host,
            Limits::default(),
            service,
            stop,
            Duration::ZERO,
        );
        let task = tokio::spawn(async move {
            let _keep = keep;
            tokio::select! {
                ended = server.serve_with_incoming(ReceiverStream::new(grpc)) => ended.unwrap(),
                () = by_frames => {}
                () = accepting => {}
            }
        });
        *self.task.lock() = Some(task.abort_handle());
    }

    /// Refuses connections from now on. Those that exist live on in their own tasks.
    pub(crate) fn kill(&self) {
        self.task.lock().take().unwrap().abort();
    }

    pub(crate) async fn revive(&self) {
        // A connection of another test may have drawn the port meanwhile.
        let mut tries = 0;
        let listener = loop {
            match TcpListener::bind(&self.addr).await {
                Err(_) if tries < 200 => tries += 1,
                bound => break bound.unwrap(),
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        };
        self.serve(listener);
    }

    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    pub(crate) fn publish(&self, map: ClusterMap) {
        self.map.send_replace(Arc::new(map));
    }

    pub(crate) fn fault(&self, verb: &'static str, code: ErrorCode, after: bool, times: usize) {
        self.state
            .lock()
            .faults
            .extend(std::iter::repeat_n((verb, code, after), times));
    }

    pub(crate) fn attr(&self, inode: u64) -> pb::Attr {
        self.state.lock().files[&inode]
    }

    /// Adds a name for a file, directory or link.
    pub(crate) fn plant(&self, name: &str, kind: pb::FileKind, size: u64, target: &str) -> u64 {
        let mut state = self.state.lock();
        let inode = state.new_inode(kind, 0o644);
        state.files.get_mut(&inode).unwrap().size = size;
        state
            .names
            .insert(Bytes::copy_from_slice(name.as_bytes()), inode);
        state
            .links
            .insert(inode, Bytes::copy_from_slice(target.as_bytes()));
        inode
    }

    /// Runs a change once per request number, with the faults that were asked for.
    fn change<T>(
        &self,
        verb: &'static str,
        caller: Option<&pb::Caller>,
        run: impl FnOnce(&mut State) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let caller = caller.unwrap();
        assert!(
            caller.request > caller.acknowledged,
            "{verb} was acknowledged before its answer"
        );
        let mut state = self.state.lock();
        state
            .changes
            .push((verb, caller.request, caller.acknowledged));
        let fault = state.take_fault(verb);
        if let Some((code, false)) = fault {
            return fail(code, "told to fail");
        }
        let done = run(&mut state);
        match fault {
            Some((code, true)) => fail(code, "told to lose the answer"),
            _ => done,
        }
    }
}

impl State {
    /// The next fault, if it is for this verb: its code, and whether the request is carried out.
    pub(super) fn take_fault(&mut self, verb: &str) -> Option<(ErrorCode, bool)> {
        let fault = self.faults.front().filter(|fault| fault.0 == verb);
        let (code, after) = fault.map(|fault| (fault.1, fault.2))?;
        self.faults.pop_front();
        Some((code, after))
    }

    /// Refuses earlier processes of a client.
    pub(super) fn check_instance(&self, caller: Option<&pb::Caller>) -> Result<(), Error> {
        let caller = caller.unwrap();
        if self.instances.get(&caller.client) > Some(&caller.instance) {
            return Err(Error::new(ErrorCode::Superseded, "there is a later one"));
        }
        Ok(())
    }

    pub(crate) fn forget_faults(&mut self) {
        self.faults.clear();
    }

    fn new_inode(&mut self, kind: pb::FileKind, mode: u32) -> u64 {
        let inode = self.files.len() as u64 + 1;
        let now = Some(std::time::SystemTime::now().into());
        let attr = pb::Attr {
            inode,
            kind: kind.into(),
            mode,
            nlink: 1,
            mtime: now,
            layout: self.layout.map(Into::into),
            truncate_epoch: 1,
            ..pb::Attr::default()
        };
        self.files.insert(inode, attr);
        inode
    }

    fn file(&mut self, inode: u64) -> Result<&mut pb::Attr, Status> {
        match self.files.get_mut(&inode) {
            Some(attr) => Ok(attr),
            None => fail(ErrorCode::NotFound, "no such inode"),
        }
    }

    fn session(&mut self, inode: u64, write: bool, created: bool) -> pb::OpenReply {
        self.last_session += 1;
        self.sessions.insert(self.last_session, (inode, write));
        let attr = self.files.get(&inode).copied();
        pb::OpenReply {
            attr,
            session: self.last_session,
            created,
            parents: Vec::new(),
        }
    }

    fn resize(&mut self, inode: u64, size: u64) -> Result<(), Status> {
        let attr = self.file(inode)?;
        if size < attr.size {
            attr.truncate_epoch += 1;
        }
        attr.size = size;
        Ok(())
    }

    fn sync(&mut self, request: &pb::SyncRequest, close: bool) -> Reply<pb::AttrReply> {
        if !self.sessions.contains_key(&request.session) {
            return fail(ErrorCode::NoSession, "no such session");
        }
        if close {
            self.sessions.remove(&request.session);
        }
        self.ends.push((request.inode, request.end));
        let stored = self.stored.get(&request.inode).copied().unwrap_or_default();
        let attr = self.file(request.inode)?;
        if let Some(end) = request.end
            && request.truncate_epoch == attr.truncate_epoch
        {
            attr.size = attr.size.max(end);
        }
        if request.mtime.is_some() {
            attr.mtime = request.mtime;
        }
        attr.sparse |= request.sparse;
        if request.settle {
            attr.size = attr.size.max(stored);
        }
        Ok(Response::new(attr_reply(Some(*attr))))
    }
}

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
            Ok(Response::new(attr_reply(Some(*attr))))
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
            let reply = state.session(inode, request.write, existing.is_none());
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
        fail(ErrorCode::Unsupported, "not faked")
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

#[tonic::async_trait]
impl Cluster for FakeMeta {
    type HeartbeatStream = Pin<Box<dyn Stream<Item = Result<pb::HeartbeatReply, Status>> + Send>>;
    type WatchClusterStream = Pin<Box<dyn Stream<Item = Result<pb::ClusterMapMsg, Status>> + Send>>;

    async fn watch_cluster(&self, _: Request<pb::WatchRequest>) -> Reply<Self::WatchClusterStream> {
        let maps = WatchStream::new(self.map.subscribe());
        Ok(Response::new(Box::pin(
            maps.map(|map| Ok(pb::ClusterMapMsg::from(&*map))),
        )))
    }

    async fn get_map(&self, _: Request<pb::WatchRequest>) -> Reply<pb::ClusterMapMsg> {
        Ok(Response::new(pb::ClusterMapMsg::from(&**self.map.borrow())))
    }

    async fn register(&self, _: Request<pb::RegisterRequest>) -> Reply<pb::RegisterReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn heartbeat(
        &self,
        _: Request<tonic::Streaming<pb::HeartbeatRequest>>,
    ) -> Reply<Self::HeartbeatStream> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Reply<pb::LeaveReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn change(&self, _: Request<pb::ChangeRequest>) -> Reply<pb::PlanReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn plan(&self, _: Request<pb::PlanRequest>) -> Reply<pb::PlanReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn configure(&self, _: Request<pb::ConfigureRequest>) -> Reply<pb::SettingsMsg> {
        fail(ErrorCode::Unsupported, "not faked")
    }

    async fn report(&self, _: Request<pb::ReportRequest>) -> Reply<pb::ReportReply> {
        fail(ErrorCode::Unsupported, "not faked")
    }
}
