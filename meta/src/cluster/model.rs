//! The manager without its I/O: the very members, table and evaluation that production runs, for a
//! simulator that brings its own clock, disk and network. Not part of the crate's interface.
//!
//! What `Manager` does around them is the caller's to imitate: one evaluation at a time, save the
//! candidate, then publish it; answer `Register` when a published map names the process.

use std::time::Duration;

use emberfs_proto::cluster::{ClusterMap, Node};
use emberfs_proto::ids::{IncarnationId, NodeId};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::time::Instant;

use super::evaluate::{Layout, evaluate, facts};
use super::members::{Admission, Members, StreamId, Suspect};
use super::moves::{Change, Pace};

/// A heartbeat stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(StreamId);

/// Whom to probe: a refused connection to it may be reported to [`Model::refused`].
#[derive(Debug, PartialEq, Eq)]
pub struct Probe(Suspect);

impl Probe {
    /// The node to connect to.
    pub fn node(&self) -> NodeId {
        self.0.node
    }
}

/// What the manager knows and has published.
pub struct Model {
    map: ClusterMap,
    members: Members,
    layout: Layout,
    lease: Duration,
}

impl Model {
    /// A manager that has just started with the map it had stored.
    pub fn start(
        map: ClusterMap,
        replicas: u32,
        expected_nodes: u32,
        targets_per_disk: u32,
        lease: Duration,
        now: Instant,
    ) -> Self {
        let layout = Layout {
            replicas,
            expected_nodes,
            targets_per_disk,
        };
        Self {
            members: Members::from_map(&map, lease, now),
            map,
            layout,
            lease,
        }
    }

    /// The published map.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// `Ok(None)`: admitted, to be answered when a published map names it. `Ok(Some)`: another process
    /// may still serve; probe that one and ask again.
    pub fn register(&mut self, node: &Node, now: Instant) -> Result<Option<Probe>> {
        let admission = self.members.register(node.clone().into(), &self.map, now)?;
        Ok(match admission {
            Admission::Admitted => None,
            Admission::Contested {
                addr, incarnation, ..
            } => Some(Probe(Suspect {
                node: node.id,
                incarnation,
                addr,
            })),
        })
    }

    /// The first message of a heartbeat stream came.
    pub fn attach(&mut self, node: NodeId, incarnation: IncarnationId) -> Result<Stream> {
        self.members.attach(node, incarnation).map(Stream)
    }

    /// A heartbeat stream broke.
    pub fn detach(&mut self, node: NodeId, stream: Stream) {
        self.members.detach(node, stream.0);
    }

    /// A heartbeat came; the answer grants the lease.
    pub fn heartbeat(
        &mut self,
        stream: Stream,
        request: pb::HeartbeatRequest,
        now: Instant,
    ) -> Result<pb::HeartbeatReply> {
        let sequence = request.sequence;
        self.members.heartbeat(stream.0, request, &self.map, now)?;
        Ok(pb::HeartbeatReply {
            sequence,
            lease_ms: self.lease.as_millis() as u32,
            map_version: self.map.version.0,
        })
    }

    /// A node stops cleanly.
    pub fn leave(&mut self, node: NodeId, incarnation: IncarnationId) -> Result<()> {
        self.members.leave(node, incarnation, &self.map)
    }

    /// Time passes. Answers whom to probe.
    pub fn tick(&mut self, now: Instant) -> Vec<Probe> {
        let tick = self.members.tick(&self.map, now);
        tick.suspects.into_iter().map(Probe).collect()
    }

    /// The connection was refused: the process is gone.
    pub fn refused(&mut self, probe: &Probe) {
        self.members.refused(&probe.0, &self.map);
    }

    /// The next map, to be saved and then handed to [`Self::publish`]; `None`: nothing to do.
    pub fn evaluate(&mut self) -> Option<ClusterMap> {
        if self.members.is_settling() || !self.members.take_dirty() {
            return None;
        }
        let pace = Pace::of(&self.map, self.layout.targets_per_disk);
        evaluate(&self.map, &self.members, &self.layout, pace).map
    }

    /// An operator's wish: the map with it, to be saved and then handed to [`Self::publish`]; `None`: it is
    /// so already. As `Manager::change`; refused while the manager still hears its nodes.
    pub fn change(&mut self, request: &pb::ChangeRequest) -> Result<Option<ClusterMap>> {
        let change = Change::try_from(request)?;
        if self.members.is_settling() {
            let what = "the manager has just started and hears its nodes first";
            return Err(Error::new(ErrorCode::Unavailable, what));
        }
        let mut new = change.apply(&self.map, &facts(&self.map, &self.members))?;
        if new == self.map {
            return Ok(None);
        }
        new.version.0 += 1;
        self.members.set_dirty();
        Ok(Some(new))
    }

    /// Saving failed: evaluate again later.
    pub fn unsaved(&mut self) {
        self.members.set_dirty();
    }

    /// The candidate is durable and in force.
    pub fn publish(&mut self, map: ClusterMap) {
        self.members.adopt(&map);
        self.map = map;
    }

    /// Whether the process that a map would name is still the registered one.
    pub fn is_registered(&self, node: NodeId, incarnation: IncarnationId) -> bool {
        let session = self.members.session(node);
        session.is_some_and(|s| s.node.alive && s.node.incarnation == incarnation)
    }
}
