//! The node's side of its membership: registration, heartbeats, the cluster map.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ClusterId, IncarnationId, MapVersion, NodeId};
use emberfs_proto::pb::cluster_client::ClusterClient;
use emberfs_proto::wire::MAX_VERSION;
use emberfs_proto::{Error, ErrorCode, Result, RetryClass, pb};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{Node, lease};

/// First and longest wait before the manager is called again.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// Longest wait for a connection to the manager.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 pings on an idle connection: a manager whose host fell silent is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// So often the manager may say that another process runs under this node's id, each time because that one
/// has just sent a heartbeat: it is not on its way out.
const MAX_CONFLICTS: u32 = 3;
/// Complaints that repeat are logged this often at most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for the manager to let this node go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The manager, `host:port`.
    pub meta: String,
    /// The cluster that the disks belong to; `None` for fresh disks.
    pub cluster: Option<ClusterId>,
    /// This node.
    pub node: NodeId,
    /// This run of the process.
    pub incarnation: IncarnationId,
    /// Where others reach its data plane.
    pub data_addr: String,
    /// Where others reach its management service.
    pub admin_addr: String,
    /// Its disks, with the marks of their openings.
    pub disks: Vec<pb::DiskMsg>,
    /// The newest map that its last run knew of.
    pub seen: MapVersion,
}

/// What the manager answered.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// A map that names this run of the node.
    pub map: MapVersion,
}

impl Registration {
    fn client(&self) -> Result<ClusterClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.meta)).map_err(|e| {
            let what = format!(
                "metadata server address {:?}: {e}; give host:port",
                self.meta
            );
            Error::new(ErrorCode::InvalidArgument, what)
        })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(ClusterClient::new(channel))
    }

    /// Registers, having adopted map `adopted`, and waits for the manager as long as it takes; a
    /// refusal is final.
    pub async fn register(
        &self,
        adopted: MapVersion,
        stop: &CancellationToken,
    ) -> Result<Membership> {
        let mut client = self.client()?;
        let mut wait = BACK_OFF[0];
        let mut conflicts = 0;
        loop {
            let request = pb::RegisterRequest {
                cluster: self.cluster.map(ClusterId::to_bytes).unwrap_or_default(),
                node: self.node.0,
                incarnation: self.incarnation.to_bytes(),
                protocol_version: MAX_VERSION,
                data_addr: self.data_addr.clone(),
                admin_addr: self.admin_addr.clone(),
                disks: self.disks.clone(),
                map_version: self.seen.max(adopted).0,
            };
            let reply = tokio::select! {
                reply = client.register(request) => reply,
                () = stop.cancelled() => return Err(stopped()),
            };
            match reply.map_err(Error::from) {
                Ok(reply) => return membership(&reply.into_inner()),
                Err(error) => {
                    conflicts += u32::from(error.code == ErrorCode::NodeConflict);
                    let waits = error.code == ErrorCode::NodeConflict && conflicts < MAX_CONFLICTS;
                    if error.retry() == RetryClass::Never && !waits {
                        return Err(error.context(format!("metadata server {}", self.meta)));
                    }
                    tracing::warn!(meta = %self.meta, %error, "cannot register yet; trying again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(BACK_OFF[1]),
                () = stop.cancelled() => return Err(stopped()),
            }
        }
    }

    /// Keeps the membership alive until `stop`; never gives up on the manager.
    pub async fn keep(&self, node: Arc<Node>, membership: Membership, stop: CancellationToken) {
        let work = async {
            tokio::join!(self.heartbeats(&node, membership, &stop), self.watch(&node));
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn heartbeats(&self, node: &Arc<Node>, membership: Membership, stop: &CancellationToken) {
        let mut wait = BACK_OFF[0];
        let mut complained: Option<Duration> = None;
        loop {
            let Err(error) = self.heartbeat_stream(node, membership, &mut wait).await;
            if error.code == ErrorCode::UnknownNode && node.lease.is_resigned() {
                // It has left: registering now would bring it back to life while it stops.
                return;
            }
            let error = if error.code == ErrorCode::UnknownNode {
                tracing::info!(%error, "the cluster manager does not know this node any more; registering again");
                self.register(node.map().version, stop).await.err()
            } else {
                Some(error)
            };
            let due = complained.is_none_or(|at| lease::now() >= at + COMPLAIN_EVERY);
            match error {
                Some(error) if error.retry() == RetryClass::Never && due => {
                    complained = Some(lease::now());
                    tracing::error!(%error, "the cluster manager refuses this node, which serves until its lease is over");
                }
                Some(error) => tracing::debug!(%error, "heartbeat stream ended"),
                None => complained = None,
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACK_OFF[1]);
        }
    }

    async fn heartbeat_stream(
        &self,
        node: &Arc<Node>,
        membership: Membership,
        wait: &mut Duration,
    ) -> Result<std::convert::Infallible> {
        let mut client = self.client()?;
        let (send, requests) = mpsc::channel(2);
        let mut sequence = 0;
        let mut sent = std::collections::BTreeMap::new();
        // The first heartbeat opens the stream.
        sent.insert(sequence, lease::now());
        send.send(node.heartbeat(sequence))
            .await
            .map_err(|_| ended())?;
        let mut replies = client
            .heartbeat(ReceiverStream::new(requests))
            .await?
            .into_inner();
        let mut due = tokio::time::interval(membership.heartbeat);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                reply = replies.next() => {
                    let reply = reply.ok_or_else(ended)??;
                    if let Some(&at) = sent.get(&reply.sequence) {
                        let lease = Duration::from_millis(u64::from(reply.lease_ms));
                        node.lease.granted(at, lease, MapVersion(reply.map_version));
                        sent = sent.split_off(&(reply.sequence + 1));
                        *wait = BACK_OFF[0];
                    }
                    continue;
                }
                _ = due.tick() => {}
                () = node.report.notified() => {}
            }
            sequence += 1;
            let request = node.heartbeat(sequence);
            let now = lease::now();
            // A full queue means that the manager does not read: this heartbeat may be skipped.
            match send.try_send(request) {
                Ok(()) => drop(sent.insert(sequence, now)),
                Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(ended()),
            }
        }
    }

    async fn watch(&self, node: &Arc<Node>) {
        let mut wait = BACK_OFF[0];
        loop {
            if let Err(error) = self.watch_stream(node, &mut wait).await {
                tracing::debug!(%error, "cluster map stream ended");
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACK_OFF[1]);
        }
    }

    async fn watch_stream(&self, node: &Arc<Node>, wait: &mut Duration) -> Result<()> {
        let mut client = self.client()?;
        let request = pb::WatchRequest {
            cluster: node.cluster.to_bytes(),
            known_version: node.map().version.0,
        };
        let mut maps = client.watch_cluster(request).await?.into_inner();
        while let Some(map) = maps.next().await {
            node.adopt(ClusterMap::try_from(&map?)?).await;
            *wait = BACK_OFF[0];
        }
        Ok(())
    }

    /// Tells the manager that this node stops; returns when its targets have left their chains.
    pub async fn leave(&self) -> Result<()> {
        let mut client = self.client()?;
        let request = pb::LeaveRequest {
            node: self.node.0,
            incarnation: self.incarnation.to_bytes(),
        };
        match tokio::time::timeout(LEAVE_TIMEOUT, client.leave(request)).await {
            Ok(reply) => reply.map(|_| ()).map_err(Error::from),
            Err(_) => Err(Error::new(
                ErrorCode::DeadlineExceeded,
                "the cluster manager did not answer",
            )),
        }
    }
}

fn membership(reply: &pb::RegisterReply) -> Result<Membership> {
    let cluster = ClusterId::from_bytes(&reply.cluster)
        .ok_or_else(|| Error::new(ErrorCode::Protocol, "the manager sent no cluster id"))?;
    let heartbeat = Duration::from_millis(u64::from(reply.heartbeat_ms.max(10)));
    Ok(Membership {
        cluster,
        heartbeat,
        map: MapVersion(reply.map_version),
    })
}

fn stopped() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "stopped before the cluster manager answered",
    )
}

fn ended() -> Error {
    Error::new(
        ErrorCode::Unreachable,
        "the cluster manager closed the stream",
    )
}
