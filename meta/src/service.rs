//! The `Metadata` gRPC service: hands every request to the namespace.

use std::sync::Arc;

use emberfs_proto::pb;
use emberfs_proto::pb::metadata_server::Metadata;
use tonic::{Request, Response, Status};

use crate::namespace::Namespace;

/// See the module.
#[derive(Clone)]
pub(crate) struct MetadataService {
    namespace: Arc<Namespace>,
}

impl MetadataService {
    pub(crate) fn new(namespace: Arc<Namespace>) -> Self {
        Self { namespace }
    }
}

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

            async fn stat_fs(&self, _: Request<pb::StatFsRequest>) -> Result<Response<pb::StatFsReply>, Status> {
                let reply = self.namespace.statfs().await;
                reply.map(Response::new).map_err(Status::from)
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
    mkdir(MkdirRequest) -> AttrReply = mkdir;
    symlink(SymlinkRequest) -> AttrReply = symlink;
    mknod(MknodRequest) -> AttrReply = mknod;
    link(LinkRequest) -> AttrReply = link;
    unlink(NameRequest) -> UnlinkReply = unlink;
    rmdir(NameRequest) -> UnlinkReply = rmdir;
    rename(RenameRequest) -> RenameReply = rename;
    readlink(GetAttrRequest) -> ReadlinkReply = readlink;
    read_dir(ReadDirRequest) -> ReadDirReply = readdir;
    open(OpenRequest) -> OpenReply = open_inode;
    sync(SyncRequest) -> AttrReply = sync;
    close(SyncRequest) -> AttrReply = close;
    list_inodes(ListInodesRequest) -> ListInodesReply = list_inodes;
}
