//! What nodes ask of the manager: one method per request. Each hands its event to the members and
//! wakes the background loop; none waits for a
//! disk, except `Register` and `Leave`, which promise a durable map.

use emberfs_proto::cluster::{Disk, Node, Settings};
use emberfs_proto::ids::{ClusterId, MapVersion, NodeId};
use emberfs_proto::wire::{MAX_VERSION, MIN_VERSION};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::time::Instant;

use super::Manager;
use crate::cluster::members::{
    Admission, PROBE_INTERVAL, Session, StreamId, Suspect, parse_incarnation,
};

impl Manager {
    /// Refuses a peer of another cluster; an empty id means it does not know yet.
    pub(in crate::cluster) fn check_cluster(&self, cluster: &[u8]) -> Result<()> {
        if cluster.is_empty() || cluster == self.cluster.to_bytes() {
            return Ok(());
        }
        let theirs = ClusterId::from_bytes(cluster).map_or("malformed".into(), |id| id.to_string());
        let what = format!(
            "the peer belongs to cluster {theirs}, this is cluster {}; check its configuration and disks",
            self.cluster
        );
        Err(Error::new(ErrorCode::WrongCluster, what))
    }

    /// A node announces itself. Waits while another process of the same node may still serve, at
    /// most until that one's lease is over, and then until a durable, published map names this one:
    /// a process must never take an older map, in which its predecessor was SERVING, for its own.
    pub(in crate::cluster) async fn register(
        &self,
        request: pb::RegisterRequest,
    ) -> Result<pb::RegisterReply> {
        self.check_cluster(&request.cluster)?;
        let node = parse_node(&request)?;
        let mut moved = self.moved.subscribe();
        let mut seen = None;
        loop {
            let map = self.map();
            moved.mark_unchanged();
            let admission = self
                .members
                .lock()
                .register(node.clone(), &map, Instant::now())?;
            let Admission::Contested {
                addr,
                incarnation,
                heartbeats,
            } = admission
            else {
                break;
            };
            // A heartbeat since we first looked: two processes run under this id.
            if *seen.get_or_insert(heartbeats) != heartbeats {
                let what = format!(
                    "node {} runs already at {addr} as incarnation {incarnation}; stop one of the two or give it another id",
                    node.id
                );
                return Err(Error::new(ErrorCode::NodeConflict, what));
            }
            let suspect = Suspect {
                node: node.id,
                incarnation,
                addr,
            };
            if self.probe(suspect).await {
                continue;
            }
            tokio::select! {
                _ = moved.changed() => {}
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
                () = self.closing.cancelled() => return Err(stopping()),
            }
        }
        tracing::info!(node = %node.id, addr = node.data_addr, incarnation = %node.incarnation, "node registered");
        self.stir();
        // Until a map names this process, what maps say is about the one before it.
        self.named(&node).await?;
        Ok(pb::RegisterReply {
            cluster: self.cluster.to_bytes(),
            lease_ms: self.config.lease.as_millis() as u32,
            heartbeat_ms: self.config.heartbeat.as_millis() as u32,
        })
    }

    /// Waits until the map in force names this run of the node.
    async fn named(&self, node: &Node) -> Result<()> {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            let ours = |n: &Node| n.incarnation == node.incarnation;
            if self.map().nodes.get(&node.id).is_some_and(ours) {
                return Ok(());
            }
            if !self
                .members
                .lock()
                .session(node.id)
                .is_some_and(|s| s.node.alive && ours(&s.node))
            {
                let what = format!(
                    "node {} was replaced or declared dead while it registered; register again",
                    node.id
                );
                return Err(Error::new(ErrorCode::UnknownNode, what));
            }
            tokio::select! {
                _ = moved.changed() => {}
                () = self.closing.cancelled() => return Err(stopping()),
            }
        }
    }

    /// The first message of a heartbeat stream.
    pub(in crate::cluster) fn attach(&self, request: &pb::HeartbeatRequest) -> Result<StreamId> {
        let incarnation = parse_incarnation(&request.incarnation)?;
        self.members
            .lock()
            .attach(NodeId(request.node), incarnation)
    }

    /// The end of a heartbeat stream.
    pub(in crate::cluster) fn detach(&self, node: NodeId, stream: StreamId) {
        if self.members.lock().detach(node, stream) {
            tracing::warn!(%node, "the heartbeat stream broke");
            self.stir();
        }
    }

    /// One heartbeat.
    pub(in crate::cluster) fn heartbeat(
        &self,
        stream: StreamId,
        request: pb::HeartbeatRequest,
    ) -> Result<pb::HeartbeatReply> {
        let sequence = request.sequence;
        let map = self.map();
        let news = self
            .members
            .lock()
            .heartbeat(stream, request, &map, Instant::now())?;
        if news {
            self.stir();
        }
        Ok(pb::HeartbeatReply {
            sequence,
            lease_ms: self.config.lease.as_millis() as u32,
            map_version: map.version.0,
        })
    }

    /// A clean stop: returns once a durable, published map is without the node's targets.
    pub(in crate::cluster) async fn leave(&self, request: &pb::LeaveRequest) -> Result<MapVersion> {
        let node = NodeId(request.node);
        let incarnation = parse_incarnation(&request.incarnation)?;
        let map = self.map();
        self.members.lock().leave(node, incarnation, &map)?;
        tracing::info!(%node, "node leaves");
        self.stir();
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            self.evaluate().await?;
            let map = self.map();
            if map
                .nodes
                .get(&node)
                .is_none_or(|n| !n.alive || n.incarnation != incarnation)
            {
                return Ok(map.version);
            }
            if self
                .members
                .lock()
                .session(node)
                .is_some_and(|s| s.node.alive)
            {
                let what = format!("node {node} registered again while it was leaving");
                return Err(Error::new(ErrorCode::NodeConflict, what));
            }
            // Settling: the background loop ends it in bounded time.
            tokio::select! {
                _ = moved.changed() => {}
                () = self.closing.cancelled() => return Err(stopping()),
            }
        }
    }

    /// Changes settings; returns once a durable, published map carries them.
    pub(in crate::cluster) async fn configure(
        &self,
        changes: &pb::SettingsMsg,
    ) -> Result<Settings> {
        let _writer = self.writer.lock().await;
        let old = self.map();
        let settings = old.settings.with(changes)?;
        if settings != old.settings {
            let mut new = (*old).clone();
            new.settings = settings;
            new.version.0 += 1;
            self.publish(&old, new).await?;
            self.stir();
        }
        Ok(settings)
    }

    /// Everything known, for `status`.
    pub(in crate::cluster) fn report(&self) -> pb::ReportReply {
        let map = self.map();
        let members = self.members.lock();
        let now = Instant::now();
        let node = |s: &Session| pb::NodeReport {
            node: s.node.id.0,
            registered: s.node.alive && s.returned,
            heartbeat_age_ms: s
                .heard
                .map_or(u64::MAX, |at| now.duration_since(at).as_millis() as u64),
            disks: s.disks.clone(),
            targets: s.targets.clone(),
        };
        // Without chains, so many nodes have to come before there are any.
        let needed = if map.chains.is_empty() {
            self.config.replicas
        } else {
            0
        };
        let expected_nodes = self.config.expected_nodes.max(needed);
        pb::ReportReply {
            map: Some(pb::ClusterMapMsg::from(&*map)),
            nodes: members.sessions().map(node).collect(),
            settling: members.is_settling(),
            expected_nodes,
        }
    }
}

fn parse_node(request: &pb::RegisterRequest) -> Result<Node> {
    let invalid = |what: &str| {
        let what = format!("registration of node {} refused: {what}", request.node);
        Error::new(ErrorCode::InvalidArgument, what)
    };
    let theirs = request.protocol_version;
    if !(MIN_VERSION..=MAX_VERSION).contains(&theirs) {
        let what = format!(
            "node {} speaks protocol version {theirs}, this manager {MIN_VERSION} to {MAX_VERSION}; upgrade the older one",
            request.node
        );
        return Err(Error::new(ErrorCode::IncompatibleVersion, what));
    }
    if request.node == 0 {
        return Err(invalid("node ids count from 1"));
    }
    if request.data_addr.is_empty() {
        return Err(invalid("it names no data address"));
    }
    let disks = request
        .disks
        .iter()
        .map(Disk::try_from)
        .collect::<Result<Vec<_>>>();
    let mut disks = disks.map_err(|_| invalid("a disk id is not 16 bytes"))?;
    disks.sort_by_key(|disk| disk.id);
    if let Some(pair) = disks.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(invalid(&format!(
            "disk {} is named twice ({}, {})",
            pair[0].id, pair[0].path, pair[1].path
        )));
    }
    Ok(Node {
        id: NodeId(request.node),
        data_addr: request.data_addr.clone(),
        admin_addr: request.admin_addr.clone(),
        incarnation: parse_incarnation(&request.incarnation)?,
        alive: true,
        disks,
    })
}

pub(in crate::cluster) fn stopping() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the cluster manager is stopping; try again soon",
    )
}
