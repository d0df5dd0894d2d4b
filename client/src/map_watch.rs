//! The newest cluster map, pushed by the manager.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ClusterId, MapVersion};
use emberfs_proto::pb::{self, cluster_client::ClusterClient};
use emberfs_proto::{Error, ErrorCode, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::retry::Patience;

/// Longest wait for the first map in one attempt.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// A view of the map that follows the manager.
#[derive(Clone)]
pub(crate) struct MapWatch {
    current: watch::Receiver<Arc<ClusterMap>>,
}

impl MapWatch {
    /// Fetches the first map and follows the manager until `stop`.
    pub(crate) async fn start(
        client: ClusterClient<Channel>,
        cluster: ClusterId,
        limit: Duration,
        stop: CancellationToken,
    ) -> Result<Self> {
        let first = fetch(client.clone(), cluster, limit, &stop).await?;
        let (send, current) = watch::channel(Arc::new(first));
        tokio::spawn(async move {
            tokio::select! {
                () = follow(client, cluster, send, &stop) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(Self { current })
    }

    /// The newest map.
    pub(crate) fn current(&self) -> Arc<ClusterMap> {
        self.current.borrow().clone()
    }

    /// Ends when a map newer than `known` is here.
    pub(crate) async fn newer(&self, known: MapVersion) {
        self.until(|map| map.version > known).await;
    }

    /// Ends when the map says so.
    pub(crate) async fn until(&self, condition: impl Fn(&ClusterMap) -> bool) {
        let mut current = self.current.clone();
        if current.wait_for(|map| condition(map)).await.is_err() {
            // The watch task has ended: nothing newer will come, so only other wake-ups count.
            std::future::pending::<()>().await;
        }
    }

    /// A receiver that sees every later change.
    pub(crate) fn receiver(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.current.clone()
    }
}

async fn fetch(
    client: ClusterClient<Channel>,
    cluster: ClusterId,
    limit: Duration,
    stop: &CancellationToken,
) -> Result<ClusterMap> {
    let mut patience = Patience::new(Some(limit), stop);
    loop {
        let mut client = client.clone();
        let request = pb::WatchRequest {
            cluster: cluster.to_bytes(),
            known_version: 0,
        };
        let deadline = patience.attempt(FETCH_TIMEOUT);
        let error = match tokio::time::timeout_at(deadline.into(), client.get_map(request)).await {
            Ok(Ok(reply)) => return accept(&reply.into_inner(), cluster),
            Ok(Err(status)) => Error::from(status),
            Err(_) => Error::new(ErrorCode::DeadlineExceeded, "no answer"),
        };
        patience
            .wait(
                error,
                || "fetching the cluster map".to_owned(),
                std::future::pending(),
            )
            .await?;
    }
}

fn accept(msg: &pb::ClusterMapMsg, cluster: ClusterId) -> Result<ClusterMap> {
    let map = ClusterMap::try_from(msg)?;
    if map.cluster != cluster {
        let what = format!(
            "the manager sent the map of cluster {}, this client belongs to {cluster}; remount if the cluster was rebuilt",
            map.cluster
        );
        return Err(Error::new(ErrorCode::WrongCluster, what));
    }
    Ok(map)
}

/// Holds a watch stream, and opens the next when one breaks.
async fn follow(
    client: ClusterClient<Channel>,
    cluster: ClusterId,
    send: watch::Sender<Arc<ClusterMap>>,
    stop: &CancellationToken,
) {
    let mut patience = Patience::new(None, stop);
    loop {
        let known = send.borrow().version;
        let error = match stream(client.clone(), cluster, &send).await {
            Ok(()) => Error::new(ErrorCode::Unreachable, "the manager ended the stream"),
            Err(error) => error,
        };
        if send.borrow().version > known {
            patience = Patience::new(None, stop);
        }
        tracing::debug!(%error, "map stream broken; opening it again");
        // Whatever the error says, the manager may come back: only the pace changes.
        let again = Error::new(ErrorCode::Unavailable, error.message);
        let what = || "following the cluster map".to_owned();
        if patience
            .wait(again, what, std::future::pending())
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn stream(
    mut client: ClusterClient<Channel>,
    cluster: ClusterId,
    send: &watch::Sender<Arc<ClusterMap>>,
) -> Result<()> {
    let known_version = send.borrow().version.0;
    let request = pb::WatchRequest {
        cluster: cluster.to_bytes(),
        known_version,
    };
    let mut maps = client.watch_cluster(request).await?.into_inner();
    while let Some(msg) = maps.message().await? {
        let map = accept(&msg, cluster)?;
        send.send_if_modified(|current| {
            let newer = map.version > current.version;
            if newer {
                tracing::debug!(version = %map.version, "new cluster map");
                *current = Arc::new(map);
            }
            newer
        });
    }
    Ok(())
}
