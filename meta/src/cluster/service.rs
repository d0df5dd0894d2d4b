//! The gRPC face of the manager. Streams end when the manager stops; none holds it up.

use std::pin::Pin;
use std::sync::Arc;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::NodeId;
use emberfs_proto::{Error, ErrorCode, pb};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status, Streaming};

use super::manager::{Manager, stopping};

/// Answers that may wait for a node to read them; more means it does not read, and its next
/// heartbeats wait until its lease is over.
const REPLY_QUEUE: usize = 4;

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Implements `pb::cluster_server::Cluster`; clones share one manager.
#[derive(Clone)]
pub struct ClusterService {
    manager: Arc<Manager>,
}

impl ClusterService {
    pub(super) fn new(manager: Arc<Manager>) -> Self {
        Self { manager }
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterService {
    type HeartbeatStream = Reply<pb::HeartbeatReply>;
    type WatchClusterStream = Reply<pb::ClusterMapMsg>;

    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterReply>, Status> {
        Ok(Response::new(
            self.manager.register(request.into_inner()).await?,
        ))
    }

    async fn heartbeat(
        &self,
        request: Request<Streaming<pb::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        Ok(Response::new(heartbeats(
            Arc::clone(&self.manager),
            request.into_inner(),
        )))
    }

    async fn watch_cluster(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        self.manager.check_cluster(&request.get_ref().cluster)?;
        let maps = WatchStream::new(self.manager.watch());
        let maps = maps.map(|map| Ok(pb::ClusterMapMsg::from(&*map)));
        let closed = self.manager.closing().clone().cancelled_owned();
        Ok(Response::new(Box::pin(maps.take_until(closed))))
    }

    async fn get_map(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<pb::ClusterMapMsg>, Status> {
        self.manager.check_cluster(&request.get_ref().cluster)?;
        let map: Arc<ClusterMap> = self.manager.map();
        Ok(Response::new(pb::ClusterMapMsg::from(&*map)))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveReply>, Status> {
        let version = self.manager.leave(request.get_ref()).await?;
        Ok(Response::new(pb::LeaveReply {
            map_version: version.0,
        }))
    }

    async fn report(
        &self,
        _: Request<pb::ReportRequest>,
    ) -> Result<Response<pb::ReportReply>, Status> {
        Ok(Response::new(self.manager.report()))
    }

    async fn configure(
        &self,
        request: Request<pb::ConfigureRequest>,
    ) -> Result<Response<pb::SettingsMsg>, Status> {
        let changes = request.into_inner().changes.unwrap_or_default();
        Ok(Response::new(
            self.manager.configure(&changes).await?.into(),
        ))
    }
}

/// Answers heartbeats until the node, or the manager, ends the stream. Runs in a task of its own,
/// so that the end is noticed at once, not when somebody polls.
fn heartbeats<S>(manager: Arc<Manager>, mut requests: S) -> Reply<pb::HeartbeatReply>
where
    S: Stream<Item = Result<pb::HeartbeatRequest, Status>> + Send + Unpin + 'static,
{
    let (send, replies) = mpsc::channel(REPLY_QUEUE);
    tokio::spawn(async move {
        let closing = manager.closing().clone();
        tokio::select! {
            () = answer(&manager, &mut requests, &send) => {}
            // If the queue is full the node learns it from the end of the stream.
            () = closing.cancelled() => drop(send.try_send(Err(stopping().into()))),
        }
    });
    Box::pin(ReceiverStream::new(replies))
}

async fn answer<S>(
    manager: &Arc<Manager>,
    requests: &mut S,
    send: &mpsc::Sender<Result<pb::HeartbeatReply, Status>>,
) where
    S: Stream<Item = Result<pb::HeartbeatRequest, Status>> + Send + Unpin,
{
    let first = tokio::time::timeout(manager.config().lease, requests.next()).await;
    let mut request = match first {
        Ok(Some(Ok(request))) => request,
        Ok(_) => return,
        Err(_) => {
            let what = "no heartbeat came on this stream within a lease; open it when there is one to send";
            drop(send.try_send(Err(Error::new(ErrorCode::DeadlineExceeded, what).into())));
            return;
        }
    };
    let node = NodeId(request.node);
    let stream = match manager.attach(&request) {
        Ok(stream) => stream,
        Err(error) => {
            drop(send.try_send(Err(error.into())));
            return;
        }
    };
    loop {
        let reply = manager.heartbeat(stream, request);
        let over = reply.is_err();
        if send.send(reply.map_err(Status::from)).await.is_err() || over {
            break;
        }
        let next = tokio::select! {
            next = requests.next() => next,
            () = send.closed() => None,
        };
        match next {
            Some(Ok(next)) => request = next,
            _ => break,
        }
    }
    manager.detach(node, stream);
}

#[cfg(test)]
pub(super) use tests_support::stream_of;

#[cfg(test)]
mod tests_support {
    use super::*;

    /// A heartbeat stream without a network.
    pub(crate) fn stream_of(
        manager: &Arc<Manager>,
        requests: mpsc::Receiver<Result<pb::HeartbeatRequest, Status>>,
    ) -> Reply<pb::HeartbeatReply> {
        heartbeats(Arc::clone(manager), ReceiverStream::new(requests))
    }
}
