//! Its answers about the cluster.

use std::pin::Pin;

use emberfs_proto::pb::cluster_server::Cluster;
use emberfs_proto::{ErrorCode, pb};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{FakeMeta, Reply, fail};

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
