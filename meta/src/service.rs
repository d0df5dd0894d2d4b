//! The `Metadata` gRPC service: hands every request to the namespace.

use std::pin::Pin;
use std::sync::Arc;

use emberfs_proto::pb;
use emberfs_proto::pb::metadata_server::Metadata;
use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::namespace::Namespace;

/// See the module.
#[derive(Clone)]
pub(crate) struct MetadataService {
    namespace: Arc<Namespace>,
    /// Ends the streams.
    stop: CancellationToken,
}

impl MetadataService {
    pub(crate) fn new(namespace: Arc<Namespace>, stop: CancellationToken) -> Self {
        Self { namespace, stop }
    }
}

type Invalidations = Pin<Box<dyn Stream<Item = Result<pb::Invalidation, Status>> + Send>>;

macro_rules! delegate {
    ($($rpc:ident($request:ident) -> $reply:ident = $method:ident;)+) => {
        #[tonic::async_trait]
        impl Metadata for MetadataService {
            $(
                async fn $rpc(&self, request: Request<pb::$request>) -> Result<Response<pb::$reply>, Status> {
                    let reply = self.namespace.$method(request.into_inner()).await;
                    reply.map(Response::new).map_err(Status::from)
                }
            )+

            type WatchInodesStream = Invalidations;

            async fn watch_inodes(
                &self,
                request: Request<pb::WatchInodesRequest>,
            ) -> Result<Response<Invalidations>, Status> {
                let watch = self.namespace.watch_inodes(request.get_ref())?;
                let stopped = self.stop.clone().cancelled_owned();
                Ok(Response::new(Box::pin(watch.take_until(stopped))))
            }

            async fn summary(&self, _: Request<pb::SummaryRequest>) -> Result<Response<pb::SummaryReply>, Status> {
                let reply = self.namespace.summary().await;
                reply.map(Response::new).map_err(Status::from)
            }
        }
    };
}

delegate! {
    attach(AttachRequest) -> AttachReply = attach;
    keep_alive(KeepAliveRequest) -> KeepAliveReply = keep_alive;
    lookup(NameRequest) -> AttrReply = lookup;
    lookup_many(LookupManyRequest) -> LookupManyReply = lookup_many;
    get_attr(GetAttrRequest) -> AttrReply = getattr;
    set_attr(SetAttrRequest) -> AttrReply = setattr;
    create(CreateRequest) -> OpenReply = create;
    create_unnamed(CreateUnnamedRequest) -> OpenReply = create_unnamed;
    mkdir(MkdirRequest) -> AttrReply = mkdir;
    symlink(SymlinkRequest) -> AttrReply = symlink;
    mknod(MknodRequest) -> AttrReply = mknod;
    link(LinkRequest) -> AttrReply = link;
    unlink(NameRequest) -> UnlinkReply = unlink;
    rmdir(NameRequest) -> UnlinkReply = rmdir;
    remove_tree(NameRequest) -> UnlinkReply = remove_tree;
    rename(RenameRequest) -> RenameReply = rename;
    readlink(GetAttrRequest) -> ReadlinkReply = readlink;
    read_dir(ReadDirRequest) -> ReadDirReply = readdir;
    open(OpenRequest) -> OpenReply = open_inode;
    sync(SyncRequest) -> AttrReply = sync;
    close(SyncRequest) -> AttrReply = close;
    lock(LockRequest) -> LockReply = lock;
    unlock(UnlockRequest) -> LockReply = unlock;
    test_lock(TestLockRequest) -> TestLockReply = test_lock;
    cancel_lock(CancelLockRequest) -> LockReply = cancel_lock;
    reclaim_locks(ReclaimLocksRequest) -> ReclaimLocksReply = reclaim_locks;
    resume_locks(ResumeLocksRequest) -> ResumeLocksReply = resume_locks;
    list_locks(ListLocksRequest) -> ListLocksReply = list_locks;
    set_xattr(SetXattrRequest) -> AttrReply = set_xattr;
    remove_xattr(XattrRequest) -> AttrReply = remove_xattr;
    get_xattr(XattrRequest) -> GetXattrReply = get_xattr;
    list_xattr(GetAttrRequest) -> ListXattrReply = list_xattr;
    close_many(CloseManyRequest) -> CloseManyReply = close_many;
    reserve(ReserveRequest) -> AttrReply = reserve;
    set_quota(SetQuotaRequest) -> ListQuotasReply = set_quota;
    list_quotas(ListQuotasRequest) -> ListQuotasReply = list_quotas;
    list_inodes(ListInodesRequest) -> ListInodesReply = list_inodes;
    set_trash(SetTrashRequest) -> TrashPolicy = set_trash;
    get_trash(GetAttrRequest) -> TrashPolicy = get_trash;
    list_trash(ListTrashRequest) -> ListTrashReply = list_trash;
    restore_trash(RestoreTrashRequest) -> RestoreTrashReply = restore_trash;
    purge_trash(PurgeTrashRequest) -> PurgeTrashReply = purge_trash;
    stat_fs(StatFsRequest) -> StatFsReply = statfs;
}
